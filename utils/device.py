"""Where and how a run computes: the device, whether it can be trusted, precision, memory layout, threads."""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

from utils.files import InputError, warn

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

Gradients = dict[str, torch.Tensor]
TRIAL_IMAGES = 32  # for the training step that a device is tried with

# How far loss and gradients of a device may be from those of the CPU in float32, as a share. Gradients in bfloat16 were
# off by up to 0.28, because it chooses the other one where two features are nearly equal; a wrong kernel is off by 1.
LOSS_TOLERANCE = 0.03
GRADIENT_TOLERANCE = 0.5
FAINT = 0.05  # gradients shorter than this share of the longest are compared with it: they are mostly rounding errors


def choose_device(
    name: str,
    precision: str,
    model: nn.Module,
    make_optimizer: Callable[[nn.Module, str], Optimizer],
    images: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[torch.device, str]:
    """Return the device called `name`, or the fastest one that computes what the CPU does ("auto"), and the precision.

    Each is tried with a training step on images (N, 3, H, W) with labels (N,), as the run will do it.
    Raises InputError if there is no such device.
    """
    present = present_devices()
    if name not in ("auto", *present):
        raise InputError(f"--device: this machine has no {name}: use --device cpu or auto")
    step = partial(try_step, model, make_optimizer, images[:TRIAL_IMAGES], labels[:TRIAL_IMAGES])
    for candidate in present if name == "auto" else [name]:
        device = torch.device(candidate)
        chosen = choose_precision(precision, device)
        problem = "" if candidate == "cpu" else find_problem(device, chosen, step)
        if problem:
            verdict = "is used because of --device, but" if name == candidate else "is not used:"
            warn(f"WARNING: {candidate} {verdict} it does not compute what the CPU does ({problem})")
        if not problem or name == candidate:
            return device, chosen
    raise AssertionError("the CPU is always there")


def present_devices() -> list[str]:
    """Return the devices that say they are there, the fastest first."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_present in present.items() if is_present]


def find_problem(device: torch.device, precision: str, step: Callable[..., tuple[list[float], Gradients]]) -> str:
    """Do a training step on the device and on the CPU; return in what they differ, or why the device failed, or "".

    A card may be there without being able to compute (no kernels for it, an old driver) and kernels may be wrong
    (pytorch/pytorch#175189).
    """
    expected, expected_gradients = step(torch.device("cpu"), "float32")
    try:
        losses, gradients = step(device, precision)
    except Exception as error:  # what a broken driver can raise has no end
        return " ".join(str(error).split())[:200] or type(error).__name__
    for when, loss, expected_loss in zip(("before", "after"), losses, expected, strict=True):
        if not abs(loss - expected_loss) <= LOSS_TOLERANCE * abs(expected_loss):
            return f"its loss {when} a step is {loss:.4g}, that of the CPU {expected_loss:.4g}"
    longest = max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).norm()
        if not difference <= GRADIENT_TOLERANCE * max(gradient.norm(), FAINT * longest):
            return f"its gradient of {name} is off by {difference / gradient.norm():.0%}"
    return ""


def try_step(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module, str], Optimizer],
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
    precision: str,
) -> tuple[list[float], Gradients]:
    """Train a copy of the model for one step; return the losses before and after it, and by name the gradients."""
    model = to_device(deepcopy(model), device).train()
    for layer in model.modules():
        layer.training &= "Dropout" not in type(layer).__name__  # each device drops other units
    images, labels = images.to(device, memory_format=memory_format(device)), labels.to(device)
    optimizer = make_optimizer(model, precision)
    with autocast(device, precision):
        loss = cross_entropy(model(images).float(), labels)
    loss.backward()
    optimizer.step()
    with autocast(device, precision):
        loss_after = cross_entropy(model(images).float(), labels)
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return [loss.item(), loss_after.item()], {name: gradient.float().cpu() for name, gradient in named.items()}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which convolutions and matrix products are computed in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, in the memory layout of that device."""
    return model.to(device, memory_format=memory_format(device))


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the layout of images and filters: channels_last is faster, but was wrong on MPS.

    There, batch normalization and pooling had wrong gradients with it up to PyTorch 2.13 (pytorch/pytorch#175189,
    #175190).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def choose_precision(name: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16"; "auto" takes bfloat16 only where the hardware computes in it.

    A CPU without AVX512-BF16 or AMX would emulate it, 40 times slower (pytorch/pytorch#146508).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # Not public, but there since PyTorch 2.6; the public torch.cpu.get_capabilities came later.
        in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        in_hardware = False
    return "bfloat16" if in_hardware else "float32"


def limit_threads(count: int | None = None) -> None:
    """Use `count` threads, or no more than this process may have cores: a container is shown those of its host."""
    allowed = max(1, int(min([available_cores(), *cpu_quotas()])))
    torch.set_num_threads(count or min(torch.get_num_threads(), allowed))


def available_cores() -> int:
    """Return the number of cores that the process may run on, which only Linux limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quotas(groups: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """Yield the quota, in cores, of this process's control group (version 2), if it has one that can be read."""
    try:
        quota, period = (groups / "cpu.max").read_text(encoding="utf-8").split()
        yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none, "max", empty, not for this user, or nonsense
        return
