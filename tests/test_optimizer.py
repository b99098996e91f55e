"""utils/optimizer.py: filters move equally far in all directions, the rest as in SGD; SGD and Adam are PyTorch's."""

from collections.abc import Callable

from utils.optimizer import FILTER_RATE, find_filters, make_optimizer, orthogonalize
from utils.recipe import Recipe

import pytest
import torch
from helpers import make_model
from torch import nn


def take_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: Callable) -> dict[str, torch.Tensor]:
    """Give each trained parameter the gradient `gradient(parameter)`; return by how much a step moves it."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = gradient(parameter)
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("name", "decaying"), [("muon", {"head.weight"}), ("sgd", None), ("adam", None)])
def test_biases_scales_and_muons_filters_do_not_decay(name: str, decaying: set[str] | None) -> None:
    model = make_model()
    optimizer = make_optimizer(Recipe(optimizer=name, lr=0.1, weight_decay=0.5), model)
    take_a_step(model, optimizer, torch.zeros_like)  # Muon's filters get their length
    moved = {name for name, step in take_a_step(model, optimizer, torch.zeros_like).items() if step.abs().max() > 1e-6}
    weights = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and parameter.requires_grad}
    assert moved == (decaying or weights)


def test_sgd_and_adam_are_those_of_pytorch() -> None:
    sgd = make_optimizer(Recipe(optimizer="sgd", lr=0.3, momentum=0.8), make_model())
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.3, 0.8, True)
    adam = make_optimizer(Recipe(optimizer="adam", lr=0.01, momentum=0.8), make_model())
    assert type(adam) is torch.optim.Adam and adam.defaults["betas"] == (0.8, 0.999)
    assert not make_optimizer(Recipe(optimizer="sgd", momentum=0), make_model()).defaults["nesterov"]


def test_what_is_not_a_filter_moves_as_in_nesterov_sgd() -> None:
    steps = []
    for name in ("muon", "sgd"):
        model = make_model("mlp")
        optimizer = make_optimizer(Recipe(optimizer=name, weight_decay=0.01), model)
        steps.append([take_a_step(model, optimizer, lambda parameter: parameter.detach().sin()) for _ in range(3)])
    torch.testing.assert_close(*steps)


def test_filters_keep_their_length_and_move_all_ways() -> None:
    steps = []
    for factor in (1, 1000):
        model = make_model(width=0.5)
        optimizer = make_optimizer(Recipe(optimizer="muon", weight_decay=0), model)
        name, filters = next((name, p) for name, p in model.named_parameters() if p.ndim == 4 and p.requires_grad)
        sizes = torch.logspace(0, 1, len(filters)).view(-1, 1, 1, 1)
        gradient = sizes * torch.randn(filters.shape, generator=torch.Generator().manual_seed(0))
        take_a_step(model, optimizer, torch.zeros_like)
        assert filters.norm().item() == pytest.approx(len(filters) ** 0.5, rel=1e-5)
        filters.grad = factor * gradient
        steps.append(take_a_step(model, optimizer, lambda p: p.grad)[name])
    spread = torch.linalg.svdvals(steps[0].flatten(1)) / (0.1 * FILTER_RATE)
    assert spread.min() > 0.6 and spread.max() < 1.25
    assert (gradient * steps[0]).sum() < 0
    torch.testing.assert_close(*steps)


def test_muon_leaves_alone_what_only_looks_like_a_filter_or_has_no_gradient() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3, groups=6), nn.Linear(6, 10))
    model.register_parameter("scale", nn.Parameter(torch.zeros(1, 6, 1, 1)))
    assert find_filters(model) == {model[0].weight}
    for parameter in model.parameters():
        nn.init.constant_(parameter, 2)
    optimizer = make_optimizer(Recipe(optimizer="muon", weight_decay=0.5), model)
    steps = take_a_step(model, optimizer, lambda p: torch.ones_like(p) if p is not model[2].weight else None)
    # As in SGD: 0.1 * (1 + 0.9) times the gradient of 1, to which the decay adds 0.5 * 2.
    for name, step in {"scale": -0.38, "1.weight": -0.38, "1.bias": -0.19, "2.weight": 0.0}.items():
        torch.testing.assert_close(steps[name], torch.full_like(steps[name], step))


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7), (1, 9)])
def test_orthogonalizing_keeps_the_directions(shape: tuple[int, int]) -> None:
    random = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(random, full_matrices=False)
    stretched = left @ torch.linspace(1, 5, min(shape)).diag() @ right
    diagonal = left.T @ orthogonalize(stretched) @ right.T
    assert (diagonal - diagonal.diag().diag()).abs().max() < 1e-4
    assert diagonal.diag().min() > 0.6 and diagonal.diag().max() < 1.25
    assert (orthogonalize(torch.zeros(shape)) == 0).all()


def test_muon_computes_its_products_in_the_precision_of_the_run() -> None:
    steps = []
    for precision in ("float32", "bfloat16"):
        model = make_model()
        optimizer = make_optimizer(Recipe(optimizer="muon"), model, precision)
        steps.append(take_a_step(model, optimizer, lambda parameter: parameter.detach().sin())["groups.0.0.weight"])
    assert not torch.equal(*steps)
    torch.testing.assert_close(*steps, rtol=0, atol=0.05 * steps[0].abs().max().item())
