"""What several test files share: a small CIFAR-10 in the genuine format, the real one, one thread and no network."""

import hashlib
import os
import pickle
import signal
import socket
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import main
from utils import data
from utils.data import LabelledImages, load_dataset

import numpy as np
import pytest
import torch

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
IMAGES_PER_FILE = 40


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as those of the tests, threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # for the processes that a test starts
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_children() -> Iterator[None]:
    """`nohup pytest &` ignores Ctrl-C, and the processes that a test starts and interrupts would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def synthetic_images_are_drawn_once() -> Iterator[None]:
    """They are always the same, and to draw 3,000 of them takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_synthetic", cache(data.load_synthetic))
        yield


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nothing listens."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(autouse=True)
def no_network(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test, and no process that one starts, reaches another host: a proxy that is not there stands before it."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave empty files in their place: drawing takes longer than all else in a small run."""
    for name in ("plot_curves", "plot_predictions", "plot_confusion"):
        monkeypatch.setattr(main, name, lambda *arguments: arguments[-1].touch())


@dataclass(frozen=True)
class SmallCifar10:
    """A small CIFAR-10: the raw contents of its batch files, the folder and the archive made of them."""

    pixels: dict[str, np.ndarray]  # by file name: (40, 3072) uint8, all red values of an image, then green, then blue
    labels: dict[str, list[int]]
    data_dir: Path  # what --data-dir takes
    folder: Path  # the seven files, inside data_dir
    archive: Path  # not inside data_dir


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallCifar10:
    """Write 200 images for training and 40 for test, as many of each class as of any other, and accept their MD5s."""
    from utils import cifar10  # here, because torchvision takes as long as PyTorch to import

    random = np.random.default_rng(0)
    names = (*TRAIN_FILES, "test_batch")
    pixels = {name: random.integers(0, 256, (IMAGES_PER_FILE, 3072), dtype=np.uint8) for name in names}
    train_labels = random.permutation(np.arange(5 * IMAGES_PER_FILE) % 10).reshape(5, IMAGES_PER_FILE)
    labels = {name: part.tolist() for name, part in zip(TRAIN_FILES, train_labels, strict=True)}
    labels["test_batch"] = random.permutation(np.arange(IMAGES_PER_FILE) % 10).tolist()
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in names:
        batch = {"batch_label": name, "data": pixels[name], "labels": labels[name]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"num_cases_per_batch": IMAGES_PER_FILE, "label_names": list(CLASS_NAMES), "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    archive = tmp_path / "archive" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(cifar10, "FILE_MD5", {name: file_md5(folder / name) for name in (*names, "batches.meta")})
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", file_md5(archive))
    monkeypatch.setitem(cifar10.CIFAR10.meta, "md5", file_md5(folder / "batches.meta"))
    return SmallCifar10(pixels, labels, folder.parent, folder, archive)


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """The folder with the real CIFAR-10; tests that ask for it are skipped on a machine that has none."""
    if not os.environ.get("CIFAR10_DIR"):
        pytest.skip("the environment variable CIFAR10_DIR names no folder with CIFAR-10")
    return Path(os.environ["CIFAR10_DIR"]).absolute()


@pytest.fixture(scope="session")
def real_cifar10(real_data_dir: Path) -> LabelledImages:
    return load_dataset("cifar10", real_data_dir)


def file_md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
