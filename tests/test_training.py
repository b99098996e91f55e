"""utils/training.py: honest averages, runs that can be repeated and resumed, checkpoints that are whole or refused."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from utils.data import ImageDataset, make_loader, serve_epoch
from utils.errors import InputError, RunError
from utils.model import build_model
from utils.synthetic import draw_images
from utils.training import (
    FILTER_RATE,
    HISTORY,
    MOMENTUM,
    Progress,
    cut_size,
    evaluate,
    image_size,
    images_to_train_on,
    load_checkpoint,
    make_optimizer,
    one_cycle,
    orthogonalize,
    save_checkpoints,
    seed_epoch,
    train_one_epoch,
)

OPTIONS = {"model": "convnet", "width": 0.1, "lr": 0.1}


def make_images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images (count, 32, 32, 3) uint8, which get brighter one by one, and random labels."""
    generator = torch.Generator().manual_seed(seed)
    brightness = torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)
    images = (brightness * torch.randint(0, 256, (count, 32, 32, 3), generator=generator)).to(torch.uint8)
    return images, torch.randint(0, 10, (count,), generator=generator)


def serve(count: int, batch_size: int, augment: bool = False) -> DataLoader:
    return make_loader(ImageDataset(*make_images(count), augment), batch_size)


def make_model(name: str = "convnet", width: float = 0.1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    images, _ = ImageDataset(*make_images(20), augment=False).__getitems__(list(range(20)))
    return build_model(name, width, 10, images)


def linear_classifier() -> nn.Module:
    """Return a model whose logits for an image depend on nothing else."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))


def train(model: nn.Module, epochs: range, seed: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Train like main.py, on 50 augmented images in batches of 16, as a part of a run of 3 epochs."""
    optimizer = optimizer or make_optimizer(model, 5e-4)
    loader = serve(50, 16, augment=True)
    for epoch in epochs:
        seed_epoch(seed, epoch)
        train_one_epoch(model, loader, optimizer, one_cycle(0.1, epoch, 3, len(loader)), 0.1)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


# Averages


def test_an_unequal_last_batch_does_not_bend_the_training_averages() -> None:
    model = linear_classifier()
    loader = serve(20, 8)  # batches of 8, 8 and 4
    images, labels = loader.dataset.__getitems__(list(range(20)))
    logits = model(images)
    of_batches = torch.stack([cross_entropy(logits[part], labels[part]) for part in torch.arange(20).split(8)])
    assert abs(of_batches.mean() - cross_entropy(logits, labels)) > 0.001  # a mean of batch means would be seen
    losses, accuracy = train_one_epoch(model, loader, make_optimizer(model, 0.0), [0.0] * 3)
    assert losses.mean().item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).sum().item() / 20)


def test_an_unequal_last_batch_does_not_bend_the_evaluation() -> None:
    model = linear_classifier()
    loader = serve(20, 8)
    images, labels = loader.dataset.__getitems__(list(range(20)))
    logits = model(images)
    result = evaluate(model, loader)
    assert result.loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).sum().item() / 20)
    assert torch.equal(result.labels, labels)


def test_an_evaluation_does_not_depend_on_the_batches_and_changes_nothing() -> None:
    model = make_model()
    train(model, range(1, 2), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    at_once, in_sevens = evaluate(model, serve(30, 30)), evaluate(model, serve(30, 7))
    torch.testing.assert_close(at_once.logits, in_sevens.logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None or parameter.requires_grad for parameter in model.parameters())


def test_training_after_an_evaluation_is_training_again() -> None:
    undisturbed, evaluated = make_model(), make_model()
    evaluate(evaluated, serve(30, 30))
    for model in (undisturbed, evaluated):
        train(model, range(1, 2), seed=0)
    assert same_state(undisturbed, evaluated)


def test_the_confusion_matrix_has_actual_classes_in_rows_and_predicted_ones_in_columns() -> None:
    model, loader = linear_classifier(), serve(50, 16)
    result = evaluate(model, loader)
    images, labels = loader.dataset.__getitems__(list(range(50)))
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for actual, predicted in zip(labels, model(images).argmax(1), strict=True):
        expected[actual, predicted] += 1
    assert not torch.equal(expected, expected.T)
    assert torch.equal(result.confusion_matrix(), expected)


# Training


def test_the_reported_losses_are_without_label_smoothing_which_the_training_uses() -> None:
    plain, smoothed = linear_classifier(), linear_classifier()
    losses = []
    for model, smoothing in ((plain, 0.0), (smoothed, 0.3)):
        losses.append(train_one_epoch(model, serve(20, 20), make_optimizer(model, 0.0), [0.1], smoothing)[0])
    assert torch.equal(*losses)
    assert not same_state(plain, smoothed)


@pytest.mark.parametrize(("name", "learning_rate"), [("convnet", 0.1), ("mlp", 0.01)])
def test_twenty_images_can_be_overfitted(name: str, learning_rate: float) -> None:
    model = make_model(name, width=0.5)
    images, labels = map(torch.from_numpy, draw_images(20, seed=0))
    loader = make_loader(ImageDataset(images, labels, augment=False), 20)
    optimizer = make_optimizer(model, 0.0)
    for rate in one_cycle(learning_rate, 1, 1, 60):
        train_one_epoch(model, loader, optimizer, [rate])
    assert evaluate(model, loader).accuracy == 1


def test_a_loss_that_is_no_number_stops_the_training_where_it_happened() -> None:
    model = linear_classifier()
    images, labels = make_images(12)
    normalized, _ = ImageDataset(images, labels, augment=False).__getitems__(list(range(12)))
    normalized[8] = math.inf
    batches = [(part, labels[:4]) for part in normalized.split(4)]
    optimizer = make_optimizer(model, 0.0)
    with pytest.raises(RunError, match=r"epoch 7, step 3 of 3.*--lr"):
        train_one_epoch(model, batches, optimizer, [0.01] * 3, title="epoch 7")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_training_in_bfloat16_keeps_weights_and_logits_in_float32() -> None:
    model = make_model("mlp")
    losses, _ = train_one_epoch(model, serve(20, 20), make_optimizer(model, 0.0), [0.01], precision="bfloat16")
    assert losses.dtype == torch.float32 and losses.isfinite().all()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    in_bfloat16, in_float32 = (evaluate(model, serve(20, 20), name).logits for name in ("bfloat16", "float32"))
    assert in_bfloat16.dtype == torch.float32
    assert not torch.equal(in_bfloat16, in_float32)
    torch.testing.assert_close(in_bfloat16, in_float32, rtol=0.1, atol=0.1)


def test_the_learning_rate_rises_to_its_peak_then_falls_to_zero() -> None:
    rates = [rate for epoch in range(1, 9) for rate in one_cycle(0.5, epoch, 8, 100)]
    assert len(rates) == 800
    peak = rates.index(max(rates))
    assert 0.48 < max(rates) <= 0.5 and min(rates) > 0 and rates[0] < 0.02 and rates[-1] < 0.02
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak < 400  # more time is spent coming down


def test_the_learning_rate_does_not_jump_between_epochs() -> None:
    in_three_epochs = [rate for epoch in (1, 2, 3) for rate in one_cycle(0.5, epoch, 3, 10)]
    assert in_three_epochs == pytest.approx(one_cycle(0.5, 1, 1, 30))


def take_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: Callable) -> dict[str, torch.Tensor]:
    """Give each trained parameter the gradient `gradient(parameter)`; return by how much a step moves it."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
        for parameter in group["params"]:
            parameter.grad = gradient(parameter)
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def test_only_the_weights_of_linear_layers_decay_and_frozen_filters_do_not_move() -> None:
    model = make_model()
    optimizer = make_optimizer(model, 0.5)
    take_a_step(model, optimizer, torch.zeros_like)  # filters get their length
    moved = {name for name, step in take_a_step(model, optimizer, torch.zeros_like).items() if step.abs().max() > 1e-6}
    assert moved == {"head.weight"}


def test_what_is_not_a_filter_moves_as_in_sgd_with_nesterov_momentum() -> None:
    ours, theirs = make_model("mlp"), make_model("mlp")
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=MOMENTUM, nesterov=True, weight_decay=0.01)
    sgd.param_groups[0]["params"] = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    optimizer = make_optimizer(ours, 0.01)
    for _ in range(3):
        expected = take_a_step(theirs, sgd, lambda parameter: parameter.detach().sin())
        steps = take_a_step(ours, optimizer, lambda parameter: parameter.detach().sin())
        for name in ("layers.0.weight", "layers.5.weight"):
            torch.testing.assert_close(steps[name], expected[name])


def test_filters_keep_their_length_and_move_equally_far_in_all_directions_whatever_the_gradients_size() -> None:
    steps = []
    for factor in (1, 1000):
        model = make_model(width=0.5)
        optimizer = make_optimizer(model, 0.0)
        name, filters = next((name, p) for name, p in model.named_parameters() if p.ndim == 4 and p.requires_grad)
        generator = torch.Generator().manual_seed(0)
        gradient = (
            torch.randn(filters.shape, generator=generator) * torch.logspace(0, 1, len(filters))[:, None, None, None]
        )
        take_a_step(model, optimizer, torch.zeros_like)
        assert filters.norm().item() == pytest.approx(len(filters) ** 0.5, rel=1e-5)
        steps.append(
            take_a_step(model, optimizer, lambda p, g=factor * gradient: g if p.shape == g.shape else 0 * p)[name]
        )
    spread = torch.linalg.svdvals(steps[0].flatten(1)) / (0.1 * FILTER_RATE)
    assert spread.min() > 0.6 and spread.max() < 1.25
    assert (gradient * steps[0]).sum() < 0
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7), (1, 9)])
def test_orthogonalizing_keeps_the_directions_and_evens_out_how_far_each_goes(shape: tuple[int, int]) -> None:
    random = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(random, full_matrices=False)
    stretched = left @ torch.linspace(1, 5, min(shape)).diag() @ right
    diagonal = left.T @ orthogonalize(stretched) @ right.T
    assert (diagonal - diagonal.diag().diag()).abs().max() < 1e-4
    assert diagonal.diag().min() > 0.6 and diagonal.diag().max() < 1.25
    assert (orthogonalize(torch.zeros(shape)) == 0).all()


def test_images_grow_in_the_course_of_a_run_and_are_whole_in_its_last_epoch() -> None:
    sizes = (18, 26, 32)
    assert [image_size(sizes, epoch, 10) for epoch in range(1, 11)] == [18] * 2 + [26] * 4 + [32] * 4
    assert all(image_size(sizes, epochs, epochs) == 32 for epochs in range(1, 50))


def test_squares_are_cut_out_in_long_runs_only_and_not_of_the_smallest_images() -> None:
    assert [cut_size(epoch, 15) for epoch in range(1, 16)] == [0] * 15
    assert [cut_size(epoch, 16) for epoch in range(1, 17)] == [0] * 4 + [8] * 12


def test_the_losses_are_in_the_order_in_which_the_images_were_met() -> None:
    model, order = linear_classifier(), torch.randperm(20)
    images, labels = serve(20, 8).dataset.__getitems__(order.tolist())
    expected = cross_entropy(model(images), labels, reduction="none")
    losses, _ = train_one_epoch(model, serve_epoch(serve(20, 8), order, 1), make_optimizer(model, 0.0), [0.0] * 3)
    torch.testing.assert_close(losses, expected)


# Skipping what is known


def test_only_images_of_the_half_with_low_losses_are_skipped_and_most_of_them() -> None:
    losses = torch.arange(1000.0)[torch.randperm(1000)]
    chosen = images_to_train_on(losses, 0.9, epoch=6, epochs=10)
    assert chosen.unique().numel() == chosen.numel()
    assert not torch.equal(chosen, chosen.sort().values)
    known = (losses[chosen] < 499).sum()
    assert (losses[chosen] >= 499).sum() == 501 and known == 50


def test_a_model_that_skips_nothing_sees_every_image_once() -> None:
    assert images_to_train_on(torch.rand(200), 0.0, 8, 16).sort().values.tolist() == list(range(200))


def test_no_image_is_skipped_in_the_warm_up_nor_before_its_loss_is_known() -> None:
    losses = torch.rand(200)
    skipping = [len(images_to_train_on(losses, 0.9, epoch, 16)) < 200 for epoch in range(1, 17)]
    assert skipping == [False] * 4 + [True] * 12
    assert len(images_to_train_on(torch.full((200,), math.inf), 0.9, 8, 16)) == 200


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_epoch_is_empty(count: int) -> None:
    for _ in range(20):
        assert len(images_to_train_on(torch.full((count,), 0.1), 0.9, 5, 10)) == count  # none known better
        assert len(images_to_train_on(torch.rand(count), 0.9, 5, 10)) > 0


# Repeating


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    models = []
    for first_weights, seed in ((0, 0), (0, 0), (0, 1), (1, 0)):
        models.append(make_model(seed=first_weights))
        train(models[-1], range(1, 3), seed)
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2])
    assert not same_state(models[0], models[3])


def test_epochs_and_seeds_do_not_share_their_random_numbers() -> None:
    first_numbers = set()
    for seed in range(5):
        for epoch in range(1, 21):
            seed_epoch(seed, epoch)
            first_numbers.add(torch.rand(1, dtype=torch.float64).item())
    assert len(first_numbers) == 100


# Checkpoints


def row(epoch: int, validation_accuracy: float = 0.5) -> tuple[float, ...]:
    """Return the numbers of an epoch in the order of HISTORY."""
    return (epoch, 0.1, 2.0, 0.3, 1.9, validation_accuracy, 1.5)


@pytest.fixture
def checkpoint_folder(tmp_path: Path) -> Path:
    """A folder with best.pt and last.pt of a run of two epochs, the first of which was the best."""
    save_run(tmp_path)
    return tmp_path


def new_progress(options: dict = OPTIONS) -> Progress:
    return Progress(dict(options), torch.full((50,), math.inf))


def save_run(folder: Path) -> tuple[list[nn.Module], Progress]:
    """Train two epochs, save after each, and return the model as it was after each."""
    model, progress, snapshots = make_model(), new_progress(), []
    optimizer = make_optimizer(model, 5e-4)
    for epoch, accuracy in ((1, 0.7), (2, 0.6)):
        train(model, range(epoch, epoch + 1), 0, optimizer)
        progress.image_losses = torch.rand(50)
        progress.add_epoch(row(epoch, accuracy), model)
        save_checkpoints(folder, progress, model, optimizer)
        snapshots.append(make_model(seed=9))
        snapshots[-1].load_state_dict(model.state_dict())
    return snapshots, progress


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_interrupted(checkpoint_folder: Path) -> None:
    whole = make_model()
    train(whole, range(1, 4), seed=0)
    resumed = make_model(seed=5)
    optimizer = make_optimizer(resumed, 5e-4)
    progress = load_checkpoint(checkpoint_folder / "last.pt", new_progress(), tuple(OPTIONS), resumed, optimizer)
    assert [row["epoch"] for row in progress.history] == [1, 2]
    torch.rand(1)  # whatever else has used random numbers
    train(resumed, range(3, 4), 0, optimizer)
    assert same_state(whole, resumed)


def test_best_pt_holds_the_epoch_with_the_best_validation_accuracy(tmp_path: Path) -> None:
    (after_first, after_second), saved = save_run(tmp_path)
    assert not same_state(after_first, after_second)
    model = make_model(seed=5)
    progress = load_checkpoint(tmp_path / "best.pt", new_progress(), tuple(OPTIONS), model)
    assert same_state(model, after_first)
    assert progress.best_epoch == 1
    assert progress.history == saved.history and len(progress.history) == 2
    load_checkpoint(tmp_path / "last.pt", new_progress(), tuple(OPTIONS), model, make_optimizer(model, 0.0))
    assert same_state(model, after_second)


def test_the_first_of_equally_good_epochs_is_the_best() -> None:
    progress, model, best = new_progress({}), linear_classifier(), []
    for epoch, accuracy in enumerate((0.0, 0.4, 0.4, 0.6, 0.5), start=1):
        progress.add_epoch(row(epoch, accuracy), model)
        best.append(progress.best_epoch)
    assert best == [1, 2, 2, 4, 4]


def test_checkpoints_are_plain_data(checkpoint_folder: Path) -> None:
    assert sorted(os.listdir(checkpoint_folder)) == ["best.pt", "last.pt"]
    for name in ("best.pt", "last.pt"):
        checkpoint = torch.load(checkpoint_folder / name, weights_only=True)
        assert checkpoint["options"] == OPTIONS
        assert all(tuple(numbers) == HISTORY for numbers in checkpoint["history"])


def test_the_losses_of_the_images_are_restored_with_the_last_weights(tmp_path: Path) -> None:
    _, saved = save_run(tmp_path)
    optimizer = make_optimizer(make_model(), 0.0)
    resumed = load_checkpoint(tmp_path / "last.pt", new_progress(), tuple(OPTIONS), make_model(), optimizer)
    assert torch.equal(resumed.image_losses, saved.image_losses) and resumed.image_losses.isfinite().all()
    of_fewer_images = Progress(dict(OPTIONS), torch.zeros(49))
    with pytest.raises(InputError, match=r"last\.pt.*damaged"):
        load_checkpoint(tmp_path / "last.pt", of_fewer_images, tuple(OPTIONS), make_model(), optimizer)


def load_both(folder: Path, options: dict = OPTIONS) -> None:
    model = make_model()
    load_checkpoint(folder / "best.pt", new_progress(options), tuple(OPTIONS), model)
    load_checkpoint(folder / "last.pt", new_progress(options), tuple(OPTIONS), model, make_optimizer(model, 0.0))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint .*best\.pt.* --resume"):
        load_both(tmp_path)


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "flipped byte": flip_a_byte,
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another kind of file": lambda content: b"an essay\n" * 100,
}


@pytest.mark.parametrize("name", ["best.pt", "last.pt"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused(checkpoint_folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    load_both(checkpoint_folder)
    path = checkpoint_folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        load_both(checkpoint_folder)
    assert str(path) in str(caught.value) and "damaged" in str(caught.value) and "\n" not in str(caught.value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_carries_code_is_refused_and_the_code_not_run(checkpoint_folder: Path) -> None:
    checkpoint = torch.load(checkpoint_folder / "best.pt", weights_only=True)
    sprung = checkpoint_folder / "sprung"
    torch.save({**checkpoint, "history": Trap(sprung)}, checkpoint_folder / "best.pt")
    with pytest.raises(InputError, match=r"best\.pt"):
        load_both(checkpoint_folder)
    assert not sprung.exists()


def test_a_checkpoint_of_another_model_is_refused(checkpoint_folder: Path) -> None:
    wider = make_model(width=0.2)
    with pytest.raises(InputError, match=r"best\.pt"):
        load_checkpoint(checkpoint_folder / "best.pt", new_progress(), (), wider)


def test_all_other_options_that_matter_are_listed(checkpoint_folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_both(checkpoint_folder, {"model": "mlp", "width": 0.1, "lr": 0.3})
    message = str(caught.value)
    assert str(checkpoint_folder / "best.pt") in message and "\n" not in message
    assert "--model convnet" in message and "mlp" in message
    assert "--lr 0.1" in message and "0.3" in message
    assert "--width" not in message


# Devices
