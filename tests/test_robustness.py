"""Hostile files, odd options, bare environments and degenerate numbers: each works, or is refused in one clear line."""

import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path

import pytest
import torch
from conftest import SmallCifar10, file_md5
from helpers import MINUTE, PROJECT, contents, end_of, read_json, visible_files
from test_main import FILES

import main
from utils import cifar10
from utils.cifar10 import load_cifar10
from utils.command_line import run_command
from utils.data import ImageData, load_dataset
from utils.errors import InputError
from utils.model import MLP
from utils.synthetic import CLASS_NAMES, draw_images
from utils.training import Progress, load_checkpoint, make_optimizer

TINY = ["--dataset", "synthetic", "--model", "mlp", "--width", "0.05", "--device", "cpu", "--batch-size", "180"]


def make_data(**parts: torch.Tensor) -> ImageData:
    """Return 200 drawn images for training and validation and 40 for test, with some parts replaced."""
    drawn = {}
    for split, count in (("train", 200), ("test", 40)):
        images, labels = map(torch.from_numpy, draw_images(count, seed=0))
        drawn |= {f"{split}_images": images, f"{split}_labels": labels}
    return ImageData("synthetic", "Synthetic images (not CIFAR-10)", CLASS_NAMES, **(drawn | parts))


class Walk:
    """Runs main.py's command line in this process, on few images, into `out_dir`."""

    def __init__(self, out_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out_dir = out_dir
        self.folder = out_dir / "synthetic"
        self.capsys = capsys

    def __call__(self, *arguments: object) -> int:
        """Return the exit code; what was printed is in `out` and `err`."""
        arguments = [*TINY, "--out-dir", str(self.out_dir), *map(str, arguments)]
        code = run_command(main.main, arguments, "go on with --resume")
        self.out, self.err = self.capsys.readouterr()
        return code

    def assert_is_refused(self, *arguments: object) -> None:
        assert self(*arguments) == 2, arguments
        assert self.err.startswith("error: ") and self.err.endswith("\n") and self.err[:-1].isprintable(), arguments


@pytest.fixture
def walk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Walk:
    few = make_data()
    monkeypatch.setattr(main, "load_dataset", lambda choice, data_dir: few)
    return Walk(tmp_path / "out", capsys)


# Checkpoints from strangers


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The checkpoints of a run of which one of two epochs is finished."""
    out_dir = tmp_path_factory.mktemp("genuine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "load_dataset", lambda choice, data_dir: make_data())
        assert run_command(main.main, [*TINY, "--epochs", "1", "--out-dir", str(out_dir)], "") == 0
    checkpoints = {}
    for name in ("last.pt", "best.pt"):
        checkpoint = torch.load(out_dir / "synthetic" / name, weights_only=True)
        checkpoint["options"]["epochs"] = 2
        checkpoints[name] = saved(checkpoint)
    return checkpoints


def saved(checkpoint: object) -> bytes:
    buffer = BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def put(*path: object) -> Callable[[dict], None]:
    """Return a change: put("history", 0, "epoch", 7) sets checkpoint["history"][0]["epoch"] to 7."""
    *keys, last, value = path

    def change(checkpoint: dict) -> None:
        part = checkpoint
        for key in keys:
            part = part[key]
        part[last] = value(part[last]) if callable(value) else value

    return change


WEIGHT = "layers.0.weight"
FOREIGN_TENSORS = {
    "of an absurd size": lambda tensor: torch.ones(1).expand(2**50),
    "of another shape": lambda tensor: tensor[:1],
    "of another type": lambda tensor: tensor.half(),
    "of complex numbers": lambda tensor: tensor.to(torch.complex64),
    "that is sparse": lambda tensor: tensor.to_sparse(),
    "that is none": lambda tensor: [1.0, 2.0],
}
HOSTILE = {
    **{f"weights with a tensor {kind}": put("weights", WEIGHT, tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    **{f"best weights {kind}": put("best_weights", WEIGHT, tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    **{f"momentum {kind}": put("momentum", 0, tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    **{f"losses {kind}": put("image_losses", tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    "weights of another name": lambda checkpoint: checkpoint["weights"].update({"\x1b[2J": torch.ones(2)}),
    "no weights": lambda checkpoint: checkpoint.pop("weights"),
    "no momentum": put("momentum", {}),
    "an option that is not JSON": put("options", "seconds", float("nan")),
    "an option of another kind": put("options", "data_dir", torch.ones(3)),
    "an option without a name": put("options", (1, 2), 3),
    "an option of several lines": put("options", "width", "0.05\n\x1b[2J"),
    "an option without end": put("options", "width", "9" * 100_000),
    "options that are none": put("options", [1, 2]),
    "an epoch that is a tensor": put("history", 0, "epoch", torch.tensor(1)),
    "a loss that is a tensor": put("history", 0, "train_loss", torch.tensor(1.0)),
    "a loss that cannot be drawn": put("history", 0, "validation_loss", 1e308),
    "a loss that is NaN": put("history", 0, "validation_loss", float("nan")),
    "a number too long for a float": put("history", 0, "seconds", 10**400),
    "another number of epochs": put("history", lambda history: history * 2),
    "no history": put("history", []),
    "a history that cannot grow": put("history", tuple),
    "a history of words": put("history", "history"),
    "a best epoch that is a tensor": put("best_epoch", torch.tensor(1)),
    "a best epoch that is no whole number": put("best_epoch", 1.0),
    "a best epoch that never was": put("best_epoch", 7),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_one_line(
    walk: Walk, genuine: dict[str, bytes], change: Callable[[dict], None], recwarn: pytest.WarningsRecorder
) -> None:
    checkpoint = torch.load(BytesIO(genuine["last.pt"]), weights_only=True)
    change(checkpoint)
    walk.folder.mkdir(parents=True)
    path = walk.folder / "last.pt"
    path.write_bytes(saved(checkpoint))
    before = contents(walk.folder)
    walk.assert_is_refused("--epochs", 2, "--resume")
    assert str(path) in walk.err and len(walk.err) < len(str(path)) + 400
    assert not recwarn.list  # it would be a second line
    assert contents(walk.folder) == before


def test_the_genuine_checkpoint_is_taken(walk: Walk, genuine: dict[str, bytes]) -> None:
    walk.folder.mkdir(parents=True)
    (walk.folder / "last.pt").write_bytes(genuine["last.pt"])
    assert walk("--epochs", 2, "--resume") == 0
    assert [row["epoch"] for row in read_json(walk.folder / "metrics.json")["history"]] == [1, 2]


def test_a_compressed_checkpoint_is_refused(walk: Walk, genuine: dict[str, bytes]) -> None:
    """PyTorch never compresses; a file of a few kilobytes that does could unpack to terabytes."""
    walk.folder.mkdir(parents=True)
    parts = zipfile.ZipFile(BytesIO(genuine["last.pt"]))
    with zipfile.ZipFile(walk.folder / "last.pt", "w", zipfile.ZIP_DEFLATED) as compressed:
        for name in parts.namelist():
            compressed.writestr(name, parts.read(name))
    walk.assert_is_refused("--epochs", 2, "--resume")


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_no_flipped_byte_changes_what_is_loaded(genuine: dict[str, bytes], tmp_path: Path, name: str) -> None:
    options = torch.load(BytesIO(genuine[name]), weights_only=True)["options"]
    new = Progress(options, torch.load(BytesIO(genuine["last.pt"]), weights_only=True)["image_losses"])

    def load(content: bytes) -> bytes:
        (tmp_path / name).write_bytes(content)
        model = MLP((51, 26, 13, 6, 3))
        optimizer = make_optimizer(model, 0.0)
        progress = load_checkpoint(
            tmp_path / name, new, tuple(options), model, optimizer if name == "last.pt" else None
        )
        return saved([vars(progress), model.state_dict(), optimizer.state_dict()])

    original, generator = genuine[name], random.Random(0)
    expected, refused = load(original), 0
    size = len(original)
    # Most bytes are those of the tensors, but the names and sizes, at the ends of the file, are what is hard to check.
    for start, end, count in ((0, size, 40), (0, 3000, 30), (size - 5000, size, 30)):
        for position in generator.sample(range(start, end), count):
            flipped = bytearray(original)
            flipped[position] ^= 1 << generator.randrange(8)
            try:
                assert load(flipped) == expected, position
            except InputError as error:
                assert "damaged" in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 50


# Data from strangers


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_code_in_a_data_file_is_not_run(small_cifar10: SmallCifar10, tmp_path: Path, name: str) -> None:
    (small_cifar10.folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match=name):
        load_cifar10(small_cifar10.data_dir)
    assert not (tmp_path / "sprung").exists()


def put_in_archive(small_cifar10: SmallCifar10, data_dir: Path, *members: tuple[str, bytes, str]) -> None:
    """Put an archive with some members (name, type, target of the link) after the genuine ones into `data_dir`."""
    data_dir.mkdir(parents=True)
    with tarfile.open(data_dir / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(small_cifar10.folder, small_cifar10.folder.name)
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, BytesIO(b"evil"))


LINK, FILE = tarfile.SYMTYPE, tarfile.REGTYPE
LEAVING = {
    "a path": [("../../evil", FILE, "")],
    "a path through the folder": [("cifar-10-batches-py/../../../evil", FILE, "")],
    "a link": [("cifar-10-batches-py/link", LINK, "../../../.."), ("cifar-10-batches-py/link/evil", FILE, "")],
    "an absolute link": [("link", LINK, "/")],
    "a hard link": [("cifar-10-batches-py/link", tarfile.LNKTYPE, "../../../target")],
    "a device": [("cifar-10-batches-py/device", tarfile.FIFOTYPE, "")],
    "a link of a genuine name": [("cifar-10-batches-py/data_batch_1", LINK, "../../../target")],
    "a hard link of a genuine name": [("cifar-10-batches-py/data_batch_1", tarfile.LNKTYPE, "../../../target")],
    "a device of a genuine name": [("cifar-10-batches-py/test_batch", tarfile.FIFOTYPE, "")],
}


@pytest.mark.parametrize("members", LEAVING.values(), ids=LEAVING)
def test_nothing_else_in_an_archive_is_unpacked(
    small_cifar10: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[tuple[str, bytes, str]]
) -> None:
    data_dir = tmp_path / "a" / "b"
    put_in_archive(small_cifar10, data_dir, *members)
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", file_md5(data_dir / "cifar-10-python.tar.gz"))
    (tmp_path / "target").write_text("precious")
    before = contents(tmp_path)
    load_cifar10(data_dir)
    unpacked = {data_dir / "cifar-10-batches-py" / name for name in cifar10.FILE_MD5}
    after = contents(tmp_path)
    assert after.keys() - before.keys() == unpacked and before.items() <= after.items()
    assert all(path.is_file() and not path.is_symlink() for path in unpacked)


def test_an_absolute_path_in_an_archive_is_not_followed(
    small_cifar10: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_archive(small_cifar10, tmp_path / "new", (str(tmp_path / "evil"), FILE, ""))
    monkeypatch.setattr(cifar10, "ARCHIVE_MD5", file_md5(tmp_path / "new" / "cifar-10-python.tar.gz"))
    load_cifar10(tmp_path / "new")
    assert not (tmp_path / "evil").exists()


# Hosts that redirect


@pytest.fixture
def redirecting_host(small_cifar10: SmallCifar10) -> Iterator[str]:
    """A host that serves the archive at /good and redirects what else it is asked for: /?<where>."""
    archive = small_cifar10.archive.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/good" else 302)
            if self.path != "/good":
                self.send_header("Location", self.path.removeprefix("/?"))
            self.end_headers()
            if self.path == "/good":
                self.wfile.write(archive)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_redirection_is_followed_and_one_that_leads_nowhere_given_up(
    redirecting_host: str, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (f"http://127.0.0.1:{closed_port}/", "http://[", "http://a..b/", "file:///etc/hostname", "/?/?")
    monkeypatch.setattr(cifar10, "MIRRORS", [f"{redirecting_host}/?{where}" for where in nowhere])
    with pytest.raises(cifar10.DownloadError) as caught:
        load_cifar10(tmp_path)
    assert str(caught.value).count("127.0.0.1") >= len(nowhere)
    monkeypatch.setattr(cifar10, "MIRRORS", [*cifar10.MIRRORS, f"{redirecting_host}/?/good"])
    assert len(load_cifar10(tmp_path).train_labels) == 200


# Options

VALUES = [
    *("", " ", "0", "-0", "-1", "0.5", "1e-400", "1e400", "9" * 5000, "nan", "-nan", "inf", "-inf", "Infinity"),
    *("0x10", "1_0", "1,5", "½", "٣", "None", "True", "[]", "%s", "{}", "$(id)", "*", "-", "--", "--lr", "'", '"'),
    *("two words", "é", "漢字", "🙂", "a\nb", "\x1b[2J", "\udcff", "a" * 1000, "../..", "~", "a/b/c", "link", "link/a"),
]
OPTIONS = [
    *("--dataset", "--data-dir", "--out-dir", "--model", "--width", "--epochs", "--batch-size", "--lr"),
    *("--weight-decay", "--label-smoothing", "--seed", "--device", "--precision"),
]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with home, temporary and (deep inside) current folder, in which there is a symbolic link to another."""
    for name, variable in (("home", "HOME"), ("tmp", "TMPDIR")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "linked").mkdir()
    current = tmp_path / "a" / "b" / "c"
    current.mkdir(parents=True)
    (current / "link").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(current)
    return tmp_path


@pytest.mark.parametrize("option", OPTIONS)
def test_no_value_of_an_option_gives_a_traceback_or_a_file_elsewhere(
    places: Path, walk: Walk, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    if option == "--data-dir":
        monkeypatch.setattr(main, "load_dataset", lambda choice, data_dir: load_dataset("cifar10", data_dir))
    before = contents(places)
    for value in VALUES:
        # Without a checkpoint, --test-only stops after all options, data and folders have been looked at.
        walk.assert_is_refused("--test-only", option, value)
        assert contents(places) == before


def test_no_combination_of_options_gives_a_traceback_or_a_file_elsewhere(places: Path, walk: Walk) -> None:
    generator, before = random.Random(0), contents(places)
    for _ in range(100):
        chosen = generator.sample(OPTIONS, 3)
        values = [generator.choice([*VALUES, "1", "0.1", "synthetic", "mlp", "cpu"]) for _ in chosen]
        arguments = [text for pair in zip(chosen, values, strict=True) for text in pair]
        walk.assert_is_refused(generator.choice(["--resume", "--test-only"]), *arguments)
        assert contents(places) == before


def test_a_folder_of_any_name_works(places: Path, walk: Walk) -> None:
    folder = Path("link") / ("two words é 漢 🙂 %s {0} $HOME 'quoted\" new\nline \udcff " + "a" * 100)
    assert walk("--out-dir", folder, "--dry-run") == 0
    assert visible_files(places / "linked" / folder.name / "synthetic") == FILES
    walk.assert_is_refused("--out-dir", folder, "--dry-run", "--resume", "--seed", 1)
    assert [path for path in contents(places) if (places / "linked") not in path.parents] == []


# Environments


def start(tmp_path: Path, *flags: str, **settings: object) -> subprocess.Popen:
    """Start a dry run of main.py into <tmp_path>/out, as a process of its own."""
    command = [sys.executable, *flags, str(PROJECT / "main.py"), *TINY, "--dry-run", "--out-dir", str(tmp_path / "out")]
    return subprocess.Popen(command, **settings)


def test_the_walk_runs_where_almost_nothing_is_there(tmp_path: Path) -> None:
    """No terminal, display, home or locale, one core, 20 columns, no asserts, and each warning of ours is an error.

    A torchvision that does not fit torch, and a backend of matplotlib that is not installed.
    """
    (tmp_path / "file").touch()
    for name in ("current", "tmp", "broken"):
        (tmp_path / name).mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "broken" / "torchvision.py").write_text(broken)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "file" / "home"),  # cannot be made, not even by root
        "TMPDIR": str(tmp_path / "tmp"),
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",  # a terminal that does not know the letters of the paths
        "COLUMNS": "20",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tmp_path / "broken"),
        "MPLBACKEND": "module://no_such_package.backend",
    }
    modules = ["__main__", *(f"utils.{path.stem}" for path in (PROJECT / "utils").glob("*.py"))]
    run = start(
        tmp_path / "é",
        *("-O", *(f"-Werror:::{module}" for module in modules)),
        env=environment,
        cwd=tmp_path / "current",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    code, _, err = end_of(run)
    assert code == 0 and b"Traceback" not in err, err
    assert visible_files(tmp_path / "é" / "out" / "synthetic") == FILES
    assert os.listdir(tmp_path / "current") == []


def close_all_streams() -> None:
    for number in (0, 1, 2):
        os.close(number)


def test_without_standard_streams_a_run_is_silent(tmp_path: Path) -> None:
    """No file may get the number of a closed stream, and in it what was meant for the terminal."""
    run = start(tmp_path, preexec_fn=close_all_streams)
    assert run.wait(MINUTE) == 0
    folder = tmp_path / "out" / "synthetic"
    assert visible_files(folder) == FILES
    for name in ("last.pt", "best.pt"):
        torch.load(folder / name, weights_only=True)
    read_json(folder / "metrics.json")


@pytest.mark.parametrize("reader", ["full disk", "closed pipe"])
def test_an_output_that_nobody_takes_ends_the_run_in_one_line(tmp_path: Path, reader: str) -> None:
    out = os.open("/dev/full", os.O_WRONLY) if reader == "full disk" else subprocess.PIPE
    run = start(tmp_path, stdout=out, stderr=subprocess.PIPE, text=True)
    if run.stdout:
        run.stdout.close()
    err = run.stderr.read()
    assert run.wait(MINUTE) == 1
    assert err.startswith("error: ") and err.count("\n") == 1


# Numbers

NUMBERS = {
    "constant images": ({"train_images": torch.full((200, 32, 32, 3), 128, dtype=torch.uint8)}, 60),
    "one class only": ({"train_labels": torch.full((200,), 3), "test_labels": torch.full((40,), 3)}, 60),
    "one batch": ({}, 180),
    "a last batch of one image": ({}, 179),
}


@pytest.mark.parametrize(("parts", "batch_size"), NUMBERS.values(), ids=NUMBERS)
def test_degenerate_data_can_be_trained_on(
    walk: Walk, monkeypatch: pytest.MonkeyPatch, parts: dict[str, torch.Tensor], batch_size: int
) -> None:
    monkeypatch.setattr(main, "load_dataset", lambda choice, data_dir: make_data(**parts))
    assert walk("--model", "convnet", "--epochs", 1, "--batch-size", batch_size) == 0
    assert visible_files(walk.folder) == FILES
    read_json(walk.folder / "metrics.json")
