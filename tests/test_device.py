"""utils/device.py: a device is used if it computes what the CPU does; layout, precision and threads fit it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from main import train_one_epoch
from utils import data, device
from utils.data import ImageDataset, batches, training_batches
from utils.device import choose_device, choose_precision, cpu_quotas, limit_threads, to_device
from utils.evaluation import evaluate
from utils.files import InputError
from utils.optimizer import make_optimizer
from utils.recipe import Recipe
from utils.schedule import plan_epoch
from utils.synthetic import draw_images

import pytest
import torch
from helpers import make_model
from torch import nn
from torch.nn.functional import cross_entropy

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
RECIPE = Recipe(epochs=2, batch_size=32, optimizer="muon", crop_sizes=(26, 26, 32), cut_size=8)
ACCELERATORS = [name for name in device.present_devices() if name != "cpu"]
Step = tuple[list[float], dict[str, torch.Tensor]]
GENUINE = device.try_step


@pytest.fixture
def dataset() -> ImageDataset:
    return ImageDataset(*map(torch.from_numpy, draw_images(64, seed=0)))


@pytest.fixture
def choose(dataset: ImageDataset) -> Callable[[str], torch.device]:
    """Choose the device of this name for a small network."""
    images, labels = dataset.__getitems__(range(32))
    make = partial(make_optimizer, RECIPE)

    def choose(name: str) -> torch.device:
        return choose_device(name, "float32", make_model(width=0.2), make, images, labels)[0]

    return choose


# Which device


def test_a_device_that_is_not_there_is_refused(
    choose: Callable[[str], torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "present_devices", lambda: ["cpu"])
    for name in ("cuda", "mps"):
        with pytest.raises(InputError, match=rf"--device: this machine has no {name}: use --device cpu or auto"):
            choose(name)
    assert choose("cpu") == choose("auto") == CPU


def raises(step: Step) -> Step:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might")


def other_loss(step: Step) -> Step:
    return [1.5 * step[0][0], step[0][1]], step[1]


def nan_after_the_step(step: Step) -> Step:
    return [step[0][0], float("nan")], step[1]


def one_other_gradient(step: Step) -> Step:
    name = max(step[1], key=lambda name: step[1][name].norm())
    return step[0], step[1] | {name: torch.zeros_like(step[1][name])}


def right(step: Step) -> Step:
    """As exact as bfloat16: another of two nearly equal features is the larger one, faint gradients are noise."""
    longest = max(gradient.norm() for gradient in step[1].values())

    def disturb(gradient: torch.Tensor) -> torch.Tensor:
        noise = nn.functional.normalize(torch.randn_like(gradient), dim=None)
        return gradient + noise * max(0.3 * gradient.norm(), 0.02 * longest)

    return [1.003 * loss for loss in step[0]], {name: disturb(gradient) for name, gradient in step[1].items()}


def stand_in(monkeypatch: pytest.MonkeyPatch, **cards: Callable[[Step], Step]) -> list[tuple[str, str]]:
    """Let this machine say that it has these devices; each changes by its function what the CPU computes.

    Returns a list, in which the devices and precisions that are tried will stand.
    """
    tried = []

    def try_step(*arguments: object) -> Step:
        *batch, where, precision = arguments
        tried.append((where.type, precision))
        step = GENUINE(*batch, CPU, "float32")
        return step if where == CPU else cards[where.type](step)

    monkeypatch.setattr(device, "present_devices", lambda: [*cards, "cpu"])
    monkeypatch.setattr(device, "try_step", try_step)
    return tried


def test_a_card_that_computes_right_is_taken_and_tried_in_the_precision_of_the_run(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = stand_in(monkeypatch, cuda=right)
    batch, make = dataset.__getitems__(range(32)), partial(make_optimizer, RECIPE)
    for model in (make_model(width=0.2), make_model("mlp")):
        assert choose_device("auto", "bfloat16", model, make, *batch) == (CUDA, "bfloat16")
    assert set(tried) == {("cpu", "float32"), ("cuda", "bfloat16")}
    assert capsys.readouterr().err == ""


WRONG = {
    raises: "no kernel image is available",
    other_loss: "its loss before a step is",
    nan_after_the_step: "its loss after a step is nan",
    one_other_gradient: "its gradient of",
}


@pytest.mark.parametrize(("card", "reason"), WRONG.items(), ids=[card.__name__ for card in WRONG])
def test_a_card_that_computes_wrong_is_passed_over_but_taken_by_name(
    choose: Callable[[str], torch.device],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    card: Callable[[Step], Step],
    reason: str,
) -> None:
    stand_in(monkeypatch, cuda=card, mps=right)
    assert choose("auto") == MPS
    passed_over = capsys.readouterr().err
    assert passed_over.count("\n") == 1 and "cuda is not used" in passed_over and reason in passed_over
    assert choose("cuda") == CUDA
    by_name = capsys.readouterr().err
    assert by_name.count("\n") == 1 and "cuda is used because of --device" in by_name and reason in by_name


def test_the_trial_is_a_step_of_the_run_and_changes_no_weights(dataset: ImageDataset) -> None:
    """Dropout, which differs from device to device, is no reason for distrust."""
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = dataset.__getitems__(range(32))
    first, second = (
        device.try_step(model, partial(make_optimizer, Recipe(lr=0.001)), *batch, CPU, "float32") for _ in range(2)
    )
    assert first[0] == second[0] and first[0][1] < first[0][0]  # the optimizer has made a step
    in_bfloat16 = device.try_step(model, partial(make_optimizer, RECIPE), *batch, CPU, "bfloat16")
    assert in_bfloat16[0][0] != first[0][0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_accelerator_is_taken_and_learns_as_the_cpu_does(
    name: str, dataset: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the precision that `auto` takes there."""
    if name not in ACCELERATORS:
        pytest.skip(f"this machine has no {name}")
    batch, make = dataset.__getitems__(range(32)), partial(make_optimizer, RECIPE)
    chosen = choose_device(name, "auto", make_model(width=0.2), make, *batch)
    assert capsys.readouterr().err == ""
    losses = []
    for where, precision in ((CPU, "float32"), chosen):
        model, images = to_device(make_model(width=0.2), where), dataset.to(where)
        plan, optimizer = plan_epoch(RECIPE, 1, torch.rand(64)), make_optimizer(RECIPE, model, precision)
        trained = train_one_epoch(model, training_batches(images, plan), optimizer, plan, precision=precision)
        losses.append((trained.mean().item(), evaluate(model, batches(images), precision).loss))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


# Precision and memory layout


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells what a CPU has")
def test_bfloat16_is_taken_if_asked_for_or_if_this_cpu_has_it() -> None:
    features = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    in_hardware = "avx512_bf16" in features or "amx_bf16" in features
    assert choose_precision("auto", CPU) == ("bfloat16" if in_hardware else "float32")
    assert choose_precision("auto", MPS) == choose_precision("float32", CPU) == "float32"
    assert choose_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_layer_gets_the_layout_of_the_device(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    """On MPS, gradients of batch normalization and pooling were wrong with channels_last inputs."""
    genuine = device.memory_format
    for module in (data, device):
        monkeypatch.setattr(module, "memory_format", lambda device: layout)
    met = []

    def look(module: nn.Module, inputs: tuple, *_: object) -> None:
        met.extend(tensor.is_contiguous(memory_format=layout) for tensor in inputs if tensor.dim() == 4)

    model = to_device(make_model(), CPU)
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(look)
    images, labels = next(iter(training_batches(dataset, plan_epoch(RECIPE, 1, torch.rand(64)))))
    assert images.is_contiguous(memory_format=layout)
    cross_entropy(model(images), labels).backward()
    assert len(met) > 10 and all(met)
    assert all(p.is_contiguous(memory_format=layout) for p in model.parameters() if p.dim() == 4)
    assert genuine(MPS) == torch.contiguous_format
    assert genuine(CUDA) == genuine(CPU) == torch.channels_last


# Threads


def test_a_quota_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert list(cpu_quotas(tmp_path)) == []
    for content, expected in {"150000 100000\n": [1.5], "max 100000\n": [], "50000 0\n": [], "nonsense": []}.items():
        (tmp_path / "cpu.max").write_text(content, encoding="utf-8")
        assert list(cpu_quotas(tmp_path)) == expected


@pytest.mark.parametrize(
    ("cores", "quotas", "asked", "expected"),
    [(64, [2.0], None, 2), (3, [], None, 3), (64, [0.5], None, 1), (64, [], None, 4), (64, [], 3, 3)],
)
def test_no_more_threads_than_cores_allowed_or_asked_for(
    monkeypatch: pytest.MonkeyPatch, cores: int, quotas: list[float], asked: int | None, expected: int
) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: cores)
    monkeypatch.setattr(device, "cpu_quotas", lambda: quotas)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        limit_threads(asked)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
