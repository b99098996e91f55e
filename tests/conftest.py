"""What several test files share: small CIFAR-10 folders in the genuine format, the real one, and no network."""

import hashlib
import os
import signal
import socket
import struct
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import main
from utils import cifar10, data
from utils.data import LabelledImages, load_dataset

import numpy as np
import pytest
import torch
from helpers import draw_nothing, few_images, fork_server

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
IMAGES_PER_FILE = 40


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as those of the tests, threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that a test starts
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_reaches_children() -> Iterator[None]:
    """`nohup pytest &` ignores Ctrl-C, and the processes that a test starts and interrupts would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def fork_server_is_ready(one_thread: None, ctrl_c_reaches_children: None) -> None:
    """What the runs in other processes import is loaded while the first tests run."""
    if sys.platform != "win32":
        from multiprocessing import forkserver

        fork_server()
        forkserver.ensure_running()


@pytest.fixture(scope="session", autouse=True)
def images_are_drawn_once() -> Iterator[None]:
    """They are always the same, and to draw 3,000 of them takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_synthetic", cache(data.load_synthetic))
        yield


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def no_network(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test, and no process that one starts, reaches a host other than this machine."""
    nowhere = f"http://127.0.0.1:{closed_port}"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar10, "MIRRORS", (f"{nowhere}/cifar-10-python.tar.gz",))


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
    random = np.random.default_rng(0)
    names = (*TRAIN_FILES, "test_batch")
    pixels = {name: random.integers(0, 256, (IMAGES_PER_FILE, 3072), dtype=np.uint8) for name in names}
    train_labels = random.permutation(np.arange(5 * IMAGES_PER_FILE) % 10).reshape(5, IMAGES_PER_FILE)
    labels = {name: part.tolist() for name, part in zip(TRAIN_FILES, train_labels, strict=True)}
    labels["test_batch"] = random.permutation(np.arange(IMAGES_PER_FILE) % 10).tolist()
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(pickle_batch(name, pixels[name], labels[name]))
    (folder / "batches.meta").write_bytes(pickle_meta())
    archive = tmp_path / "archive" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(cifar10, "FILE_MD5", {name: file_md5(folder / name) for name in (*names, "batches.meta")})
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", file_md5(archive))
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


@pytest.fixture
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process use few images, and leave empty files in the place of figures."""
    monkeypatch.setattr(main, "load_dataset", lambda choice, data_dir: few_images())
    draw_nothing(monkeypatch)


def file_md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


# The genuine files were written by Python 2, whose text Python 3 reads as bytes or as text, as it is told. Python 3
# does not write such text any more, so here are the opcodes of the genuine files, one by one (see pickletools in the
# standard library).


def pickle_batch(name: str, pixels: np.ndarray, labels: list[int]) -> bytes:
    filenames = [f"{name}_{index:06d}.png" for index in range(len(labels))]
    return pickle_dictionary(
        {
            "batch_label": pickle_text(name.replace("_", " ").encode()),
            "labels": pickle_list([pickle_number(label) for label in labels]),
            "data": pickle_array(pixels),
            "filenames": pickle_list([pickle_text(filename.encode()) for filename in filenames]),
        }
    )


def pickle_meta() -> bytes:
    return pickle_dictionary(
        {
            "num_cases_per_batch": pickle_number(IMAGES_PER_FILE),
            "label_names": pickle_list([pickle_text(name.encode()) for name in CLASS_NAMES]),
            "num_vis": pickle_number(3072),
        }
    )


def pickle_dictionary(values: dict[str, bytes]) -> bytes:
    return b"\x80\x02}(" + b"".join(pickle_text(key.encode()) + value for key, value in values.items()) + b"u."


def pickle_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def pickle_text(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def pickle_number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def pickle_array(array: np.ndarray) -> bytes:
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + pickle_number(0) + b"\x85"
    empty += pickle_text(b"b") + b"\x87R"
    byte_type = b"cnumpy\ndtype\n" + pickle_text(b"u1") + pickle_number(0) + pickle_number(1) + b"\x87R("
    byte_type += pickle_number(3) + pickle_text(b"|") + b"NNN"
    byte_type += pickle_number(-1) + pickle_number(-1) + pickle_number(0) + b"tb"
    shape = b"".join(pickle_number(length) for length in array.shape) + b"\x86"
    return empty + b"(" + pickle_number(1) + shape + byte_type + b"\x89" + pickle_text(array.tobytes()) + b"tb"
