"""utils/device.py: a device is used only if it computes what the CPU does; layout, precision and threads fit it."""

from argparse import ArgumentTypeError
from collections.abc import Iterator
from pathlib import Path

from utils import data, device
from utils.checkpoint import Progress, resume_training, save_checkpoints
from utils.data import ImageDataset, batches, training_batches
from utils.device import (
    choose_device,
    choose_precision,
    cpu_quotas,
    device_name,
    find_problem,
    limit_threads,
    memory_format,
    place,
    present_devices,
)
from utils.model import build_model
from utils.optimizer import make_optimizer
from utils.schedule import EpochPlan, Schedule
from utils.synthetic import draw_images

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from utils.errors import InputError
from utils.training import evaluate, train_one_epoch

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
ACCELERATORS = [name for name in present_devices() if name != "cpu"]


PLAN = EpochPlan(epoch=1, indices=torch.arange(64), crop_size=26, cut_size=8, batch_size=32, learning_rates=[0.1, 0.1])


def make_dataset(plan: EpochPlan | None = None) -> ImageDataset:
    return ImageDataset(*map(torch.from_numpy, draw_images(64, seed=0)), plan)


def make_model(name: str = "convnet") -> nn.Module:
    torch.manual_seed(0)
    images, _ = ImageDataset(*map(torch.from_numpy, draw_images(64, seed=0))).__getitems__(range(64))
    return build_model(name, 10, 0.2, images)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return ImageDataset(*map(torch.from_numpy, draw_images(32, seed=0))).__getitems__(range(32))


# Which device


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "present_devices", lambda: ["cpu"])
    for name in ("cuda", "mps"):
        with pytest.raises(ArgumentTypeError, match=rf"no {name}.*--device cpu"):
            device_name(name)
    assert device_name("cpu") == "cpu" and device_name("auto") == "auto"


Gradients = tuple[float, dict[str, torch.Tensor]]
GENUINE = device.compute_gradients


def raises(gradients: Gradients) -> Gradients:
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might")


def other_loss(gradients: Gradients) -> Gradients:
    return 1.5 * gradients[0], gradients[1]


def nan_loss(gradients: Gradients) -> Gradients:
    return float("nan"), gradients[1]


def other_gradients(gradients: Gradients) -> Gradients:
    return gradients[0], {name: -gradient for name, gradient in gradients[1].items()}


def one_other_gradient(gradients: Gradients) -> Gradients:
    name = max(gradients[1], key=lambda name: gradients[1][name].norm())
    return gradients[0], gradients[1] | {name: torch.zeros_like(gradients[1][name])}


def no_gradients(gradients: Gradients) -> Gradients:
    return gradients[0], {}


def right(gradients: Gradients) -> Gradients:
    """As exact as TF32 in a deep network: another of two nearly equal features is the larger one."""
    return gradients[0] * 1.0001, {
        name: gradient + 0.1 * gradient.norm() * nn.functional.normalize(torch.randn_like(gradient), dim=None)
        for name, gradient in gradients[1].items()
    }


def stand_in(monkeypatch: pytest.MonkeyPatch, **cards: object) -> None:
    """Let this machine say that it has these devices; each changes by its function what the CPU computes."""

    def compute_gradients(model: nn.Module, where: torch.device, *batch: torch.Tensor) -> Gradients:
        gradients = GENUINE(model, CPU, *batch)
        return gradients if where == CPU else cards[where.type](gradients)

    monkeypatch.setattr(device, "present_devices", lambda: [*cards, "cpu"])
    monkeypatch.setattr(device, "compute_gradients", compute_gradients)


@pytest.mark.parametrize("model", ["convnet", "mlp"])
def test_a_card_that_computes_right_is_taken(monkeypatch: pytest.MonkeyPatch, batch: tuple, model: str) -> None:
    stand_in(monkeypatch, cuda=right)
    assert choose_device("auto", make_model(model), *batch) == choose_device("cuda", make_model(), *batch) == CUDA


WRONG = {
    raises: "no kernel image is available",
    other_loss: "its loss is",
    nan_loss: "its loss is nan",
    other_gradients: "its gradient of",
    one_other_gradient: "its gradient of",
    no_gradients: "its gradient of",
}


@pytest.mark.parametrize(("card", "reason"), WRONG.items(), ids=[card.__name__ for card in WRONG])
def test_a_card_that_computes_wrong_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, batch: tuple, capsys: pytest.CaptureFixture[str], card: object, reason: str
) -> None:
    stand_in(monkeypatch, cuda=card, mps=right)
    assert choose_device("auto", make_model(), *batch).type == "mps"
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "cuda" in warning and reason in warning

    with pytest.raises(InputError, match=f"--device: cuda .*{reason}.*--device cpu") as caught:
        choose_device("cuda", make_model(), *batch)
    assert "\n" not in str(caught.value)

    stand_in(monkeypatch, cuda=card, mps=card)
    assert choose_device("auto", make_model(), *batch) == CPU
    assert capsys.readouterr().err.count("\n") == 2


def test_dropout_is_no_reason_for_distrust(batch: tuple) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 10))
    assert find_problem(torch.device("cpu", 0), model, *batch) is None


def test_trying_a_device_changes_no_weights(batch: tuple) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert find_problem(torch.device("cpu", 0), model, *batch) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_card_that_is_there_by_name_only(
    monkeypatch: pytest.MonkeyPatch, batch: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the answer to is_available is replaced: what fails is the real PyTorch on a machine without MPS."""
    if "mps" in present_devices():
        pytest.skip("this machine has MPS")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto", make_model(), *batch) == CPU
    assert "mps is not used" in capsys.readouterr().err


# Precision


def test_a_precision_asked_for_is_taken() -> None:
    assert choose_precision("float32", CPU) == "float32" and choose_precision("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_is_taken_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch, in_hardware: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: in_hardware)
    expected = "bfloat16" if in_hardware else "float32"
    assert choose_precision("auto", CPU) == choose_precision("auto", CUDA) == expected
    assert choose_precision("auto", torch.device("mps")) == "float32"


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.exists(), reason="only Linux tells what a CPU has")
def test_bfloat16_is_taken_if_this_cpu_has_it() -> None:
    features = CPUINFO.read_text().split()
    in_hardware = "avx512_bf16" in features or "amx_bf16" in features
    assert choose_precision("auto", CPU) == ("bfloat16" if in_hardware else "float32")


# Memory layout


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_layer_gets_the_layout_of_the_device(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format
) -> None:
    """On MPS, gradients of batch normalization and pooling were wrong with channels_last inputs."""
    for module in (data, device):
        monkeypatch.setattr(module, "memory_format", lambda device: layout)
    met = []

    def look(module: nn.Module, inputs: tuple, *_: object) -> None:
        met.extend(tensor.is_contiguous(memory_format=layout) for tensor in inputs if tensor.dim() == 4)

    model = place(make_model(), CPU)
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(look)
    dataset = make_dataset(PLAN)
    images, labels = dataset.__getitems__(range(32))
    assert images.is_contiguous(memory_format=layout)
    cross_entropy(model(images), labels).backward()
    assert len(met) > 10 and all(met)
    assert all(p.is_contiguous(memory_format=layout) for p in model.parameters() if p.dim() == 4)


def test_only_mps_gets_contiguous_tensors() -> None:
    assert memory_format(torch.device("mps")) == torch.contiguous_format
    assert memory_format(CUDA) == memory_format(CPU) == torch.channels_last


# Placement


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="PyTorch could not pretend so well before 2.10"
)
def test_no_tensor_is_left_on_another_device() -> None:
    """Without a GPU, PyTorch can pretend: tensors without content, on a device that is not there."""
    dataset, model = make_dataset(PLAN), make_model()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):  # a backward pass would need the device
        images, labels = (torch.empty_like(tensor, device=CUDA) for tensor in (dataset.images, dataset.labels))
        dataset = ImageDataset(images, labels, PLAN)
        model = model.to_empty(device=CUDA)
        images, labels = dataset.__getitems__(range(32))
        logits = model(images)
        loss = cross_entropy(logits, labels, label_smoothing=0.2)
        optimizer = make_optimizer(model, 5e-4)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert {tensor.device.type for tensor in (images, labels, logits, loss)} == {"cuda"}


@pytest.mark.parametrize("name", ACCELERATORS or [pytest.param("none", marks=pytest.mark.skip("no accelerator"))])
def test_an_accelerator_trains_tests_and_resumes(name: str, tmp_path: Path) -> None:
    """On each accelerator of this machine, against the CPU."""
    losses = {}
    for where in (CPU, torch.device(name)):
        dataset, model, progress = make_dataset().to(where), place(make_model(), where), Progress({}, 64, 0.0)
        optimizer = make_optimizer(model, 5e-4)
        plan = Schedule.for_model(model, 1, 32, 0.1, 0).plan(1, progress.image_losses)
        trained = train_one_epoch(model, training_batches(dataset, plan), optimizer, plan)
        evaluation = evaluate(model, batches(dataset))
        progress.add_epoch(plan, trained, evaluation, evaluation, model)
        save_checkpoints(tmp_path, progress, model, optimizer)
        again = place(make_model(), where)
        resume_training(tmp_path / "last.pt", Progress({}, 64, 0.0), again, make_optimizer(again, 5e-4))
        assert evaluate(again, batches(dataset)).loss == pytest.approx(evaluation.loss, rel=1e-4)
        losses[where.type] = (trained.mean().item(), evaluation.loss)
    assert losses["cpu"] == pytest.approx(losses[name], rel=0.05)


# Threads


@pytest.fixture
def thread_count() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


QUOTAS = {
    "version 2": ("0::/user/job\n", {"user/job/cpu.max": "150000 100000\n"}, 1.5),
    "version 2, of a group above": (
        "0::/user/job\n",
        {"user/job/cpu.max": "max 100000", "user/cpu.max": "200000 100000"},
        2,
    ),
    "version 2, in a container": ("0::/docker/id\n", {"cpu.max": "200000 100000\n"}, 2),
    "version 1": (
        "4:memory:/m\n3:cpu,cpuacct:/job\n",
        {"cpu/job/cpu.cfs_quota_us": "50000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        0.5,
    ),
    "version 1, in a container": (
        "3:cpuacct,cpu:/docker/id\n",
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        2,
    ),
    "no limit": (
        "3:cpu:/\n0::/\n",
        {"cpu.max": "max 100000\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "1\n"},
        None,
    ),
    "no control groups": (None, {}, None),
}


@pytest.mark.parametrize(("groups", "limits", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_the_quota_of_a_control_group_is_found(
    tmp_path: Path, groups: str | None, limits: dict[str, str], expected: float | None
) -> None:
    if groups:
        (tmp_path / "own").write_text(groups)
    for name, text in limits.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(cpu_quotas(tmp_path / "own", tmp_path / "groups")) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("cores", "quotas", "expected"), [(64, [2.0], 2), (3, [], 3), (64, [4.0, 1.5], 1), (64, [0.5], 1)]
)
def test_no_more_threads_than_cores_allowed(
    thread_count: int, monkeypatch: pytest.MonkeyPatch, cores: int, quotas: list[float], expected: int
) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: cores)
    monkeypatch.setattr(device, "cpu_quotas", lambda: quotas)
    torch.set_num_threads(4)
    limit_threads()
    assert torch.get_num_threads() == expected


def test_fewer_threads_stay_as_they_are(thread_count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_cores", lambda: 64)
    torch.set_num_threads(1)
    limit_threads()
    assert torch.get_num_threads() == 1
