"""Muon, and the optimizers by name."""

from utils.recipe import Recipe

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

FILTER_RATE = 0.15  # times the learning rate: the share of its own length by which a filter moves in a step
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of a step towards an orthogonal matrix (Jordan 2024)


class Muon(Optimizer):
    """SGD with Nesterov momentum, in which the step of the groups with `is_filters` is made orthogonal.

    The gradient is large in a few directions, which rule a step of SGD; an orthogonal step goes equally far in all
    directions (Jordan 2024, kellerjordan.github.io/posts/muon). It is for convolutions that batch normalization
    follows: only the direction of their filters counts, so filters keep their length instead of decaying.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, precision: str = "float32") -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "is_filters": False})
        self.precision = precision  # of the matrix products

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["is_filters"]:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-7))
                    nesterov = self.add_momentum(parameter, parameter.grad, group["momentum"]).flatten(1)
                    with torch.autocast(parameter.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                        step = FILTER_RATE * orthogonalize(nesterov)
                else:
                    gradient = parameter.grad + group["weight_decay"] * parameter
                    step = self.add_momentum(parameter, gradient, group["momentum"])
                parameter.sub_(group["lr"] * step.view_as(parameter))

    def add_momentum(self, parameter: nn.Parameter, gradient: torch.Tensor, momentum: float) -> torch.Tensor:
        """Update the momentum of a parameter and return the step that Nesterov takes from it."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient + momentum * buffer


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of a matrix near 1 (0.7 to 1.2), except those that are almost zero.

    Three steps of Newton-Schulz. To do them on X Xᵀ alone would save 1 to 2 % of an epoch (measured).
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + 1e-7)  # no singular value is above 1
    for _ in range(3):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def make_optimizer(recipe: Recipe, model: nn.Module, precision: str = "float32") -> Optimizer:
    """Return the optimizer that the recipe names, for what the model trains; biases and scales do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    filters = find_filters(model) if recipe.optimizer == "muon" else set()
    others = [parameter for parameter in trained if parameter not in filters]
    groups = [
        {"params": [parameter for parameter in others if parameter.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in others if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "muon":
        groups.append({"params": [parameter for parameter in trained if parameter in filters], "is_filters": True})
        return Muon(groups, recipe.lr, recipe.momentum, precision)
    if recipe.optimizer == "adam":
        return Adam(groups, recipe.lr, betas=(recipe.momentum, 0.999))
    return SGD(groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0)


def find_filters(model: nn.Module) -> set[nn.Parameter]:
    """Return the weights of convolutions; depthwise ones have no matrix to make orthogonal."""
    return {layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.groups == 1}


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
