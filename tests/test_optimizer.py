"""utils/optimizer.py: filters move equally far in all directions, the rest as in SGD."""

from collections.abc import Callable

from utils.optimizer import FILTER_RATE, MOMENTUM, make_optimizer, orthogonalize

import pytest
import torch
from helpers import make_model
from torch import nn


def take_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, gradient: Callable) -> dict[str, torch.Tensor]:
    """Give each trained parameter the gradient `gradient(parameter)`; return by how much a step moves it."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
        for parameter in group["params"]:
            parameter.grad = gradient(parameter)
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def test_only_weights_of_linear_layers_decay() -> None:
    model = make_model()
    optimizer = make_optimizer(model, 0.5)
    take_a_step(model, optimizer, torch.zeros_like)  # filters get their length
    moved = {name for name, step in take_a_step(model, optimizer, torch.zeros_like).items() if step.abs().max() > 1e-6}
    assert moved == {"head.weight"}


def test_what_is_not_a_filter_moves_as_in_nesterov_sgd() -> None:
    ours, theirs = make_model("mlp"), make_model("mlp")
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=MOMENTUM, nesterov=True, weight_decay=0.01)
    sgd.param_groups[0]["params"] = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    optimizer = make_optimizer(ours, 0.01)
    for _ in range(3):
        expected = take_a_step(theirs, sgd, lambda parameter: parameter.detach().sin())
        steps = take_a_step(ours, optimizer, lambda parameter: parameter.detach().sin())
        for name in ("layers.0.weight", "layers.5.weight"):
            torch.testing.assert_close(steps[name], expected[name])


def test_filters_keep_their_length_and_move_all_ways() -> None:
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
def test_orthogonalizing_keeps_the_directions(shape: tuple[int, int]) -> None:
    random = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(random, full_matrices=False)
    stretched = left @ torch.linspace(1, 5, min(shape)).diag() @ right
    diagonal = left.T @ orthogonalize(stretched) @ right.T
    assert (diagonal - diagonal.diag().diag()).abs().max() < 1e-4
    assert diagonal.diag().min() > 0.6 and diagonal.diag().max() < 1.25
    assert (orthogonalize(torch.zeros(shape)) == 0).all()


def test_a_parameter_without_a_gradient_stays_as_it_is() -> None:
    model = make_model("mlp")
    optimizer = make_optimizer(model, 0.5)
    model.layers[0].weight.grad = torch.ones_like(model.layers[0].weight)
    before = model.layers[1].weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert torch.equal(model.layers[1].weight, before)
    assert len(optimizer.all_momentum()) == len(list(model.parameters()))


def test_every_parameter_is_trained_whatever_its_shape() -> None:
    shapes = [(), (2,), (2, 3), (2, 3, 3), (2, 3, 3, 3)]
    model = nn.ParameterList([torch.zeros(shape) for shape in shapes])
    steps = take_a_step(model, make_optimizer(model, 0.0), torch.ones_like)
    assert all(step.isfinite().all() and step.abs().max() > 0 for step in steps.values())
