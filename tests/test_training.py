"""utils/training.py: honest averages, and training that can be repeated."""

import math
from dataclasses import replace

from utils.data import ImageDataset, batches, training_batches
from utils.optimizer import make_optimizer
from utils.schedule import Schedule, one_cycle
from utils.synthetic import draw_images

import pytest
import torch
from helpers import make_dataset, make_model, make_plan, same_state
from torch import nn
from torch.nn.functional import cross_entropy
from utils.errors import RunError
from utils.training import Evaluation, evaluate, train_one_epoch


def linear_classifier() -> nn.Module:
    """Return a model whose logits for an image depend on nothing else."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


def train(model: nn.Module, epochs: range, seed: int) -> None:
    """Train like main.py, on 50 augmented images in batches of 16, as a part of a run of 3 epochs."""
    optimizer, dataset = make_optimizer(model, 5e-4), make_dataset(50)
    schedule = Schedule.for_model(model, 3, 16, 0.1, seed)
    for epoch in epochs:
        plan = schedule.plan(epoch, torch.rand(50, generator=torch.Generator().manual_seed(0)))
        train_one_epoch(model, training_batches(dataset, plan), optimizer, plan, 0.1)


# Averages


def test_an_unequal_last_batch_does_not_bend_the_loss() -> None:
    """Batches of 8, 8 and 4: the mean of their means would be another number."""
    model, dataset = linear_classifier(), make_dataset(20)
    images, labels = dataset.__getitems__(list(range(20)))
    logits = model(images)
    expected = cross_entropy(logits, labels)
    of_batches = torch.stack([cross_entropy(logits[part], labels[part]) for part in torch.arange(20).split(8)])
    assert abs(of_batches.mean() - expected) > 0.001
    losses = train_one_epoch(model, batches(dataset, 8), make_optimizer(model, 0.0), make_plan([0.0] * 3))
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    result = evaluate(model, batches(dataset, 8))
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).sum().item() / 20)
    assert torch.equal(result.labels, labels)


def test_an_evaluation_changes_nothing() -> None:
    model, dataset = make_model(), make_dataset(30)
    train(model, range(1, 2), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    at_once, in_sevens = evaluate(model, batches(dataset, 30)), evaluate(model, batches(dataset, 7))
    torch.testing.assert_close(at_once.logits, in_sevens.logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_training_after_an_evaluation_is_training_again() -> None:
    undisturbed, evaluated = make_model(), make_model()
    evaluate(evaluated, batches(make_dataset(30), 30))
    for model in (undisturbed, evaluated):
        train(model, range(1, 2), seed=0)
    assert same_state(undisturbed, evaluated)


def test_the_confusion_matrix_has_actual_classes_in_rows() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    labels = make_dataset(50).labels
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for actual, predicted in zip(labels, logits.argmax(1), strict=True):
        expected[actual, predicted] += 1
    assert not torch.equal(expected, expected.T)
    assert torch.equal(Evaluation(logits, labels).confusion_matrix, expected)


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    evaluation = Evaluation(torch.tensor([[0.0, math.log(3)]]), torch.tensor([1]))
    assert evaluation.probabilities[0].tolist() == pytest.approx([0.25, 0.75])


def test_confidence_is_the_mean_of_the_highest_probabilities() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(9), 0.0]])
    assert Evaluation(logits, torch.tensor([0, 0])).confidence == pytest.approx((0.75 + 0.9) / 2)


def test_the_views_are_moved_and_mirrored_images() -> None:
    """By a pixel to two corners; where nothing is left, the image is mirrored at its edge."""
    model, dataset = linear_classifier(), make_dataset(8)
    there, back = torch.arange(1, 33), torch.arange(-1, 31).abs()
    there[-1] = 30
    of_views = []
    for rows in (torch.arange(32), there, back):
        moved = dataset.images[:, rows][:, :, rows]
        for images in (moved, moved.flip(2)):
            of_views.append(evaluate(model, batches(replace(dataset, images=images))).logits)
    for count in (1, 2, 3, 6):
        evaluation = evaluate(model, batches(dataset), views=count)
        assert torch.allclose(evaluation.logits, torch.stack(of_views[:count]).mean(dim=0), atol=1e-5)
        assert evaluation.views == count


# Training


def test_label_smoothing_trains_but_is_not_in_the_losses() -> None:
    plain, smoothed = linear_classifier(), linear_classifier()
    losses = []
    for model, smoothing in ((plain, 0.0), (smoothed, 0.3)):
        shown = batches(make_dataset(20), 20)
        losses.append(train_one_epoch(model, shown, make_optimizer(model, 0.0), make_plan([0.1]), smoothing))
    assert torch.equal(*losses)
    assert not same_state(plain, smoothed)


def test_losses_are_in_the_order_of_the_batches() -> None:
    model, dataset, order = linear_classifier(), make_dataset(20), torch.randperm(20)
    images, labels = dataset.__getitems__(order.tolist())
    expected = cross_entropy(model(images), labels, reduction="none")
    shown = batches(dataset, 8, order.tolist())
    torch.testing.assert_close(
        train_one_epoch(model, shown, make_optimizer(model, 0.0), make_plan([0.0] * 3)), expected
    )


@pytest.mark.parametrize(("name", "learning_rate"), [("convnet", 0.1), ("mlp", 0.01)])
def test_twenty_images_can_be_overfitted(name: str, learning_rate: float) -> None:
    model = make_model(name, width=0.5)
    dataset = ImageDataset(*map(torch.from_numpy, draw_images(20, seed=0)))
    optimizer = make_optimizer(model, 0.0)
    for rate in one_cycle(learning_rate, 1, 1, 60):
        train_one_epoch(model, batches(dataset, 20), optimizer, make_plan([rate]))
    assert evaluate(model, batches(dataset, 20)).accuracy == 1


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    model = linear_classifier()
    images, labels = make_dataset(12).__getitems__(list(range(12)))
    images[8] = math.inf
    shown = [(part, labels[:4]) for part in images.split(4)]
    with pytest.raises(RunError, match=r"epoch 7, step 3 of 3.*--lr"):
        train_one_epoch(model, shown, make_optimizer(model, 0.0), make_plan([0.01] * 3, epoch=7))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_an_evaluation_without_a_number_is_refused() -> None:
    model = linear_classifier()
    nn.init.constant_(model[1].bias, math.nan)
    with pytest.raises(RunError, match=r"nan in an evaluation.*--lr"):
        evaluate(model, batches(make_dataset(5)))


def test_bfloat16_keeps_weights_and_logits_in_float32() -> None:
    model, dataset = make_model("mlp"), make_dataset(20)
    losses = train_one_epoch(
        model, batches(dataset, 20), make_optimizer(model, 0.0), make_plan([0.01]), precision="bfloat16"
    )
    assert losses.dtype == torch.float32 and losses.isfinite().all()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    in_bfloat16, in_float32 = (evaluate(model, batches(dataset, 20), name).logits for name in ("bfloat16", "float32"))
    assert in_bfloat16.dtype == torch.float32
    assert not torch.equal(in_bfloat16, in_float32)
    torch.testing.assert_close(in_bfloat16, in_float32, rtol=0.1, atol=0.1)


def test_one_value_a_step_is_copied_from_the_device() -> None:
    """On a GPU, each copy waits for all that it is computing."""

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: object, types: object, args: tuple = (), kwargs: dict | None = None):  # noqa: ANN204
            self.count += "_local_scalar_dense" in str(function)
            return function(*args, **(kwargs or {}))

    model, dataset = make_model(), make_dataset(20)
    shown = list(batches(dataset, 2))  # so that only the steps are counted
    with Copies() as copies:
        train_one_epoch(model, shown, make_optimizer(model, 0.0), make_plan([0.01] * 10))
    assert copies.count <= 10


def test_the_seed_decides_the_weights() -> None:
    models = []
    for first_weights, seed in ((0, 0), (0, 0), (0, 1), (1, 0)):
        models.append(make_model(seed=first_weights))
        train(models[-1], range(1, 3), seed)
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2])
    assert not same_state(models[0], models[3])
