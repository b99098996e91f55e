"""Where and how a run computes: the device, whether it can be trusted, precision, memory layout, threads."""

import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from utils.errors import InputError

DEVICES = ("cuda", "mps", "cpu")  # the fastest first
TRIAL_IMAGES = 32  # for the training step that a device is tried with

# How far loss and gradients of a device may be from those of the CPU, as a share. TF32 is off by up to 0.12, because it
# chooses the other one where two features are nearly equal; a wrong kernel is off by about 1.
LOSS_TOLERANCE = 0.01
GRADIENT_TOLERANCE = 0.25
FAINT = 0.05  # gradients shorter than this share of the longest are compared with it: they are mostly rounding errors


def device_name(text: str) -> str:
    """Check an option's value: "auto" or the name of a device that this machine has. Raises ArgumentTypeError."""
    if text in DEVICES and text not in present_devices():
        raise ArgumentTypeError(f"this machine has no {text}: use --device cpu or auto")
    return text


def present_devices() -> list[str]:
    """Return the devices that say they are there, the fastest first."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name in DEVICES if present[name]]


def set_up_device(
    name: str, precision: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.device, str]:
    """Return the device and the precision to compute with, and use no more threads than are allowed.

    A model on the CPU, and images (N, 3, H, W) with labels (N,), are to try the device with.
    Raises InputError if a device that was asked for by name computes something else than the CPU, or nothing.
    """
    limit_threads()
    device = choose_device(name, model, images[:TRIAL_IMAGES], labels[:TRIAL_IMAGES])
    return device, choose_precision(precision, device)


def choose_device(name: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.device:
    """Return the device called `name`, or the fastest one that computes what the CPU does ("auto")."""
    for candidate in present_devices() if name == "auto" else [name]:
        device = torch.device(candidate)
        problem = None if candidate == "cpu" else find_problem(device, model, images, labels)
        if problem is None:
            return device
        if name == candidate:
            raise InputError(f"--device: {name} cannot be trusted here ({problem}): use --device cpu or auto")
        print(f"WARNING: {candidate} is not used, it cannot be trusted here: {problem}", file=sys.stderr)
    raise AssertionError("the CPU is always there")


def find_problem(device: torch.device, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> str | None:
    """Do a training step on the device and on the CPU; return in what they differ, or why the device failed, or None.

    A card may be there without being able to compute (no kernels for it, an old driver) and kernels may be wrong
    (pytorch/pytorch#175189).
    """
    cpu = torch.device("cpu")
    model.train()
    expected_loss, expected = compute_gradients(model, cpu, images, labels)
    if compute_gradients(model, cpu, images, labels)[0] != expected_loss:  # dropout differs each time
        expected_loss, expected = compute_gradients(model.eval(), cpu, images, labels)
    try:
        loss, gradients = compute_gradients(model, device, images, labels)
    except Exception as error:  # what a broken driver can raise has no end
        return " ".join(str(error).split())[:200] or type(error).__name__
    if not abs(loss - expected_loss) <= LOSS_TOLERANCE * abs(expected_loss):
        return f"its loss is {loss:.4g}, that of the CPU {expected_loss:.4g}"
    longest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (gradients.get(name, torch.nan) - gradient).norm()
        if not difference <= GRADIENT_TOLERANCE * max(gradient.norm(), FAINT * longest):
            return f"its gradient of {name} is not that of the CPU"
    return None


def compute_gradients(
    model: nn.Module, device: torch.device, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of a copy of the model on the device, and by name the gradients of its parameters."""
    model = place(deepcopy(model), device)
    images = images.to(device, memory_format=memory_format(device))
    loss = cross_entropy(model(images), labels.to(device))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return loss.item(), {name: gradient.cpu() for name, gradient in gradients.items() if gradient is not None}


def place(model: nn.Module, device: torch.device) -> nn.Module:
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


def limit_threads() -> None:
    """Use no more threads than this process may have cores: in a container, PyTorch takes those of the whole host."""
    allowed = max(1, int(min([available_cores(), *cpu_quotas()])))
    if torch.get_num_threads() > allowed:
        torch.set_num_threads(allowed)


def available_cores() -> int:
    """Return the number of cores that the process may run on, which only Linux limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quotas(own_groups: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """Yield the quotas, in cores, of the control groups (of version 1 or 2) of this process and of those above them.

    `own_groups` names them relative to the host, which inside a container may not be where they are: its root is.
    """
    for line in own_groups.read_text().splitlines() if own_groups.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        folder = root / group.lstrip("/")
        while folder.is_relative_to(root):
            yield from quota_of(folder)
            folder = folder.parent


def quota_of(folder: Path) -> Iterator[float]:
    """Yield the quota of a control group, if it has one."""
    for files in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        if all((folder / name).exists() for name in files):
            quota, period = " ".join((folder / name).read_text() for name in files).split()
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
