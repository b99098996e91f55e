"""train_one_epoch of main.py: the losses of each image, and training that can be repeated."""

import math

from main import train_one_epoch
from utils.data import ImageDataset, batches, training_batches
from utils.evaluation import evaluate
from utils.files import RunError
from utils.optimizer import make_optimizer
from utils.recipe import Recipe
from utils.schedule import one_cycle, plan_epoch
from utils.synthetic import draw_images

import pytest
import torch
from helpers import make_dataset, make_model, make_plan
from torch import nn
from torch.nn.functional import cross_entropy

MUON = Recipe(optimizer="muon", weight_decay=0)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_losses_are_those_of_each_image_in_the_order_of_the_batches() -> None:
    model, dataset, order = make_model("mlp"), make_dataset(20), torch.randperm(20)
    images, labels = dataset.__getitems__(order.tolist())
    expected = cross_entropy(model(images), labels, reduction="none")
    shown, plan = batches(dataset, 8, order.tolist()), make_plan([0.0] * 3)
    torch.testing.assert_close(train_one_epoch(model, shown, make_optimizer(MUON, model), plan), expected)


def test_each_step_has_the_learning_rate_of_the_plan() -> None:
    model, expected, dataset = make_model("mlp"), make_model("mlp"), make_dataset(20)
    rates = [0.1, 0.0, 0.3]
    optimizer = make_optimizer(Recipe(momentum=0, weight_decay=0), model)
    train_one_epoch(model, batches(dataset, 8), optimizer, make_plan(rates))
    for rate, (images, labels) in zip(rates, batches(dataset, 8), strict=True):
        plain = torch.optim.SGD(expected.parameters(), rate)
        plain.zero_grad()
        cross_entropy(expected(images), labels).backward()
        plain.step()
    assert same_state(model, expected)


def test_label_smoothing_trains_but_is_not_in_the_losses() -> None:
    plain, smoothed = make_model("mlp"), make_model("mlp")
    losses = [
        train_one_epoch(model, batches(make_dataset(20), 20), make_optimizer(MUON, model), make_plan([0.1]), smoothing)
        for model, smoothing in ((plain, 0.0), (smoothed, 0.3))
    ]
    assert torch.equal(*losses)
    assert not same_state(plain, smoothed)


@pytest.mark.parametrize(("name", "learning_rate"), [("convnet", 0.2), ("mlp", 0.02)])
def test_twenty_images_can_be_overfitted(name: str, learning_rate: float) -> None:
    model = make_model(name, width=0.3)
    dataset = ImageDataset(*map(torch.from_numpy, draw_images(20, seed=0)))
    optimizer = make_optimizer(MUON, model)
    for rate in one_cycle(Recipe(lr=learning_rate, epochs=1), 1, 40):
        train_one_epoch(model, batches(dataset, 20), optimizer, make_plan([rate]))
    assert evaluate(model, batches(dataset, 20)).accuracy == 1


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    model = make_model("mlp")
    images, labels = make_dataset(12).__getitems__(list(range(12)))
    images[8] = math.inf
    shown = [(part, labels[:4]) for part in images.split(4)]
    with pytest.raises(RunError, match=r"step 3 of epoch 7.*--lr"):
        train_one_epoch(model, shown, make_optimizer(MUON, model), make_plan([0.01] * 3, epoch=7))


def test_bfloat16_keeps_weights_and_losses_in_float32() -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        model = make_model("mlp")
        optimizer, shown = make_optimizer(MUON, model, precision), batches(make_dataset(20), 20)
        losses.append(train_one_epoch(model, shown, optimizer, make_plan([0.01]), precision=precision))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[1].dtype == torch.float32 and not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.1, atol=0.1)


def test_the_seed_decides_the_weights_and_an_evaluation_does_not() -> None:
    models, dataset = [], make_dataset(50)
    for first_weights, seed in ((0, 0), (0, 0), (0, 1), (1, 0)):
        model = make_model(seed=first_weights)
        recipe = Recipe(epochs=3, batch_size=16, optimizer="muon", crop_sizes=(18, 26, 32), cut_size=8, seed=seed)
        optimizer = make_optimizer(recipe, model)
        if len(models) == 1:
            evaluate(model, batches(dataset))
        for epoch in (1, 2):
            plan = plan_epoch(recipe, epoch, torch.arange(50.0))
            train_one_epoch(model, training_batches(dataset, plan), optimizer, plan, 0.1)
        models.append(model)
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2]) and not same_state(models[0], models[3])
