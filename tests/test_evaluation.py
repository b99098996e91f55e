"""utils/evaluation.py: honest averages, views, accuracy by class, the most confident mistakes."""

import math
from dataclasses import replace

from utils.data import batches
from utils.evaluation import Evaluation, evaluate
from utils.files import RunError

import pytest
import torch
from helpers import make_dataset, make_model
from torch import nn
from torch.nn.functional import cross_entropy


def test_an_unequal_last_batch_does_not_bend_the_loss() -> None:
    """Batches of 8, 8 and 4: the mean of their means would be another number."""
    model, dataset = make_model("mlp"), make_dataset(20)
    images, labels = dataset.__getitems__(list(range(20)))
    logits = model(images)
    result = evaluate(model, batches(dataset, 8))
    assert result.loss == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.accuracy == pytest.approx((logits.argmax(1) == labels).sum().item() / 20)
    assert torch.equal(result.labels, labels)


def test_an_evaluation_changes_nothing() -> None:
    model, dataset = make_model().train(), make_dataset(30)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    at_once, in_sevens = evaluate(model, batches(dataset, 30)), evaluate(model, batches(dataset, 7))
    torch.testing.assert_close(at_once.logits, in_sevens.logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_views_are_moved_and_mirrored_images() -> None:
    """By a pixel to two corners; where nothing is left, the image is mirrored at its edge."""
    model, dataset = make_model("mlp"), make_dataset(8)
    there, back = torch.arange(1, 33), torch.arange(-1, 31).abs()
    there[-1] = 30
    of_views = []
    for number, rows in enumerate((torch.arange(32), there, back) * 2):
        moved = dataset.pixels[:, rows][:, :, rows]
        pixels = moved.flip(2) if number % 2 else moved
        of_views.append(evaluate(model, batches(replace(dataset, pixels=pixels))))
    for count in (1, 2, 3, 6):
        evaluation = evaluate(model, batches(dataset), views=count)
        expected = torch.stack([view.logits for view in of_views[:count]]).mean(dim=0)
        assert torch.allclose(evaluation.logits, expected, atol=1e-5)
        assert (evaluation.views, evaluation.plain_accuracy) == (count, of_views[0].accuracy)


def test_bfloat16_gives_logits_in_float32() -> None:
    model, dataset = make_model("mlp"), make_dataset(20)
    in_bfloat16, in_float32 = (evaluate(model, batches(dataset, 20), name).logits for name in ("bfloat16", "float32"))
    assert in_bfloat16.dtype == torch.float32
    assert not torch.equal(in_bfloat16, in_float32)
    torch.testing.assert_close(in_bfloat16, in_float32, rtol=0.1, atol=0.1)


def test_weights_that_are_no_numbers_are_refused_without_advice_on_training() -> None:
    model = make_model("mlp")
    nn.init.constant_(model.layers[-1].bias, math.nan)
    with pytest.raises(RunError, match="the loss is nan in an evaluation") as caught:
        evaluate(model, batches(make_dataset(5)))
    assert "--lr" not in str(caught.value)


def test_confusion_accuracies_and_confidence_are_those_counted_by_hand() -> None:
    """Two cats, one taken for a dog, and two ships, both recognized; no dog."""
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8], [0.04, 0.06, 0.9]])
    evaluation = Evaluation(probabilities.log(), torch.tensor([0, 0, 2, 2]))
    torch.testing.assert_close(evaluation.probabilities, probabilities)
    assert evaluation.confidence == pytest.approx((0.7 + 0.6 + 0.8 + 0.9) / 4)
    assert evaluation.confusion_matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 2]]  # actual classes in rows
    assert evaluation.class_accuracies(("cat", "dog", "ship")) == {"cat": 0.5, "dog": None, "ship": 1.0}


def test_the_worst_mistakes_are_the_most_confident_ones() -> None:
    logits = torch.tensor([[1.0, 0], [3, 0], [2, 0], [0, 5], [0, 4]])  # the last two are right
    evaluation = Evaluation(logits, torch.tensor([1, 1, 1, 1, 1]))
    assert evaluation.worst_mistakes(10).tolist() == [1, 2, 0]
    assert evaluation.worst_mistakes(1).tolist() == [1]
    assert Evaluation(logits[3:], torch.tensor([1, 1])).worst_mistakes(10).tolist() == []
