"""utils/cifar10.py: whole data or none, and fetched only when it has to be."""

import math
import os
import pickle
import shutil
import ssl
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from utils import cifar10, files
from utils.cifar10 import DownloadError, load_cifar10
from utils.data import load_dataset

import certifi
import pytest
import torch
from conftest import CLASS_NAMES, TRAIN_FILES, SmallCifar10, file_md5
from helpers import MINUTE, contents, visible_files
from utils.errors import InputError

CERTIFICATE = Path(__file__).with_name("certificate.pem")  # for 127.0.0.1, with its key; nobody else trusts it
GENUINE_ARCHIVE_MD5, GENUINE_FILE_MD5, GENUINE_MIRRORS = cifar10.ARCHIVE_MD5, cifar10.FILE_MD5, cifar10.MIRRORS


# What is read


def test_every_pixel_and_label_is_read(small_cifar10: SmallCifar10) -> None:
    read = load_cifar10(small_cifar10.data_dir)
    for names, images, labels in (
        (TRAIN_FILES, read.train_images, read.train_labels),
        (("test_batch",), read.test_images, read.test_labels),
    ):
        raw_pixels = [image for name in names for image in small_cifar10.pixels[name]]
        raw_labels = [label for name in names for label in small_cifar10.labels[name]]
        assert labels.tolist() == raw_labels
        assert images.shape == (len(raw_labels), 32, 32, 3)
        for image, raw in zip(images, raw_pixels, strict=True):
            red, green, blue = torch.from_numpy(raw).view(3, 32, 32)
            assert torch.equal(image, torch.stack([red, green, blue], dim=2))
    assert read.class_names == CLASS_NAMES


def test_a_complete_folder_is_only_read(small_cifar10: SmallCifar10) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (small_cifar10.data_dir, *small_cifar10.data_dir.rglob("*"))}

    before = state()
    load_cifar10(small_cifar10.data_dir)
    assert state() == before


# Damaged files


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped byte": flip_a_byte,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("choice", ["cifar10", "auto"])
def test_each_damaged_file_is_named_with_what_to_do(small_cifar10: SmallCifar10, damage: str, choice: str) -> None:
    for name in (*TRAIN_FILES, "test_batch", "batches.meta"):
        path = small_cifar10.folder / name
        content = path.read_bytes()
        DAMAGE[damage](path)
        with pytest.raises(InputError) as caught:
            load_dataset(choice, small_cifar10.data_dir)
        message = str(caught.value)
        assert name in message and str(small_cifar10.folder) in message and "--data-dir" in message
        assert "elete" in message and "\n" not in message
        others = {*TRAIN_FILES, "test_batch", "batches.meta"} - {name}
        assert not any(other in message for other in others)
        path.write_bytes(content)
    load_dataset(choice, small_cifar10.data_dir)


def test_all_damaged_files_are_named_at_once(small_cifar10: SmallCifar10) -> None:
    flip_a_byte(small_cifar10.folder / "data_batch_2")
    (small_cifar10.folder / "test_batch").unlink()
    with pytest.raises(InputError, match=r"data_batch_2.*test_batch"):
        load_cifar10(small_cifar10.data_dir)


@pytest.mark.parametrize("choice", ["cifar10", "auto"])
def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path, choice: str) -> None:
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"--data-dir: .*data is a file"):
        load_dataset(choice, path)
    assert path.read_text() == "precious"


def test_a_file_in_place_of_the_folder_is_refused(small_cifar10: SmallCifar10) -> None:
    shutil.rmtree(small_cifar10.folder)
    small_cifar10.folder.write_text("")
    with pytest.raises(InputError, match="data_batch_1"):
        load_cifar10(small_cifar10.data_dir)


# Where the files are


def test_a_data_folder_that_is_the_inner_folder(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    renamed = small_cifar10.folder.with_name("cifar")
    renamed.symlink_to(small_cifar10.folder)
    for folder in (small_cifar10.folder, renamed):
        assert len(load_cifar10(folder).train_labels) == 200
    (renamed / "data_batch_2").unlink()
    with pytest.raises(InputError, match="data_batch_2 cannot be read"):
        load_cifar10(renamed)


def test_a_download_goes_beside_the_folder_that_was_named(
    small_cifar10: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tmp_path / "new"
    data_dir.mkdir()
    shutil.copy(small_cifar10.archive, data_dir)
    load_cifar10(data_dir / "cifar-10-batches-py")
    assert visible_files(data_dir) == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}


# Several runs at once


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_first_runs_at_once_both_get_whole_data(
    small_cifar10: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    """With locks, the second reads what the first brought; without, each brings its own."""
    downloads = []

    def download_slowly(url: str, path: Path) -> None:
        downloads.append(url)
        time.sleep(0.3)
        shutil.copy(small_cifar10.archive, path)

    monkeypatch.setattr(cifar10, "download", download_slowly)
    monkeypatch.setattr(files, "has_locks", lambda folder: has_locks)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(load_dataset, "auto", tmp_path / "new") for _ in range(2)]
        loaded = [run.result(timeout=MINUTE) for run in runs]
    assert [data.name for data in loaded] == ["cifar10"] * 2
    assert all(len(data.train_labels) == 200 for data in loaded)
    assert len(downloads) == (1 if has_locks else 2)
    assert visible_files(tmp_path / "new") == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}


@pytest.mark.parametrize("times", [2, math.inf])
def test_a_folder_held_while_it_is_moved_into_place(
    small_cifar10: SmallCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: float
) -> None:
    """On Windows, a virus scanner looks at what was just unpacked."""
    held, replace = [], os.replace

    def replace_later(source: Path, target: Path) -> None:
        held.append(target)
        if len(held) <= times:
            raise PermissionError(13, "Access is denied", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_later)
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    shutil.copy(small_cifar10.archive, tmp_path)
    if times == 2:
        assert len(load_cifar10(tmp_path).train_labels) == 200
    else:
        with pytest.raises(InputError, match=r"cannot unpack .*Access is denied"):
            load_cifar10(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match="cannot be written"):
        load_cifar10(tmp_path / "new")


# The constants


def test_the_constants_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR10

    assert (CIFAR10.filename, CIFAR10.base_folder) == (cifar10.ARCHIVE, cifar10.FOLDER)
    assert CIFAR10.tgz_md5 == GENUINE_ARCHIVE_MD5
    parts = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    assert list(GENUINE_FILE_MD5.items()) == [tuple(part) for part in parts]
    assert CIFAR10.url in GENUINE_MIRRORS


# Archives


def test_an_archive_put_in_by_hand_is_used(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    data_dir = tmp_path / "by hand"
    data_dir.mkdir()
    shutil.copy(small_cifar10.archive, data_dir)
    read = load_cifar10(data_dir)
    assert torch.equal(read.test_images, load_cifar10(small_cifar10.data_dir).test_images)
    assert visible_files(data_dir) == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}  # and no half-unpacked folder


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "empty"])
@pytest.mark.parametrize("choice", ["cifar10", "auto"])
def test_a_damaged_archive_is_named_with_what_to_do(
    small_cifar10: SmallCifar10, tmp_path: Path, damage: str, choice: str
) -> None:
    data_dir = tmp_path / "by hand"
    data_dir.mkdir()
    archive = data_dir / "cifar-10-python.tar.gz"
    shutil.copy(small_cifar10.archive, archive)
    DAMAGE[damage](archive)
    damaged = archive.read_bytes()
    with pytest.raises(InputError) as caught:
        load_dataset(choice, data_dir)
    assert str(archive) in str(caught.value) and "delete it" in str(caught.value)
    assert visible_files(data_dir) == {archive.name} and archive.read_bytes() == damaged


# Downloads, from servers on this machine


class Hosts:
    """A server whose paths behave like different hosts: /good, /wrong (bytes), /early (end), /stall, /missing."""

    def __init__(self, archive: bytes) -> None:
        self.requests: list[str] = []
        self.stop_stalling = threading.Event()
        hosts = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hosts.requests.append(self.path)
                if self.path == "/missing":
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(len(archive)))
                self.end_headers()
                body = {"/good": archive, "/wrong": bytes(len(archive))}.get(self.path, archive[: len(archive) // 2])
                self.wfile.write(body)
                if self.path == "/stall":
                    hosts.stop_stalling.wait(60)

            def log_message(self, *_: object) -> None:
                pass

        self.scheme = "http"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def urls(self, *paths: str) -> tuple[str, ...]:
        return tuple(f"{self.scheme}://127.0.0.1:{self.server.server_port}{path}" for path in paths)

    def encrypt(self) -> None:
        """Speak https, with a certificate that nobody knows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https"


@pytest.fixture
def hosts(small_cifar10: SmallCifar10) -> Iterator[Hosts]:
    hosts = Hosts(small_cifar10.archive.read_bytes())
    yield hosts
    hosts.stop_stalling.set()
    hosts.server.shutdown()
    hosts.server.server_close()


def test_the_first_good_host_delivers(
    small_cifar10: SmallCifar10, hosts: Hosts, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = f"http://127.0.0.1:{closed_port}/"
    bad = hosts.urls("/missing", "/wrong", "/early", "/stall")
    monkeypatch.setattr(cifar10, "MIRRORS", (refusing, *bad, *hosts.urls("/good", "/never-asked")))
    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.3)
    data_dir = tmp_path / "new" / "folder"
    read = load_dataset("auto", data_dir)
    assert read.name == "cifar10"
    assert torch.equal(read.train_images, load_cifar10(small_cifar10.data_dir).train_images)
    assert hosts.requests == ["/missing", "/wrong", "/early", "/stall", "/good"]
    assert visible_files(data_dir) == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}

    load_dataset("auto", data_dir)
    assert len(hosts.requests) == 5  # what is there is not fetched again


@pytest.mark.parametrize(
    ("path", "reason"), [("/missing", "404"), ("/wrong", "MD5"), ("/early", "bytes"), ("/stall", "timed out")]
)
def test_a_bad_host_is_given_up_and_leaves_nothing(
    hosts: Hosts, tmp_path: Path, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar10, "MIRRORS", hosts.urls(path))
    monkeypatch.setattr(cifar10, "STALL_SECONDS", 0.3)
    with pytest.raises(DownloadError, match=reason):
        load_cifar10(tmp_path / "new")
    assert visible_files(tmp_path / "new") == set()


def test_hosts_that_fail_are_listed_with_their_reasons(
    hosts: Hosts, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = f"http://127.0.0.1:{closed_port}/"
    monkeypatch.setattr(cifar10, "MIRRORS", (refusing, *hosts.urls("/missing", "/wrong")))
    with pytest.raises(DownloadError) as caught:
        load_dataset("cifar10", tmp_path / "new")
    message = str(caught.value)
    port = hosts.server.server_port
    assert f"127.0.0.1:{closed_port}: " in message and "refused" in message
    assert f"127.0.0.1:{port}: " in message and "404" in message and "MD5" in message
    assert f"put it into {tmp_path / 'new'}" in message and "cifar-10-python.tar.gz" in message
    assert "--dataset synthetic" in message and "\n" not in message


def test_a_certificate_that_certifi_knows_is_trusted(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python from python.org has no certificates of its own on macOS."""
    hosts.encrypt()
    monkeypatch.setattr(cifar10, "MIRRORS", hosts.urls("/good"))
    monkeypatch.setattr(certifi, "where", lambda: str(CERTIFICATE))
    assert len(load_cifar10(tmp_path / "new").train_labels) == 200


def test_an_unknown_certificate_is_told_once(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts.encrypt()
    monkeypatch.setattr(cifar10, "MIRRORS", hosts.urls("/good", "/good", "/good"))
    with pytest.raises(DownloadError) as caught:
        load_cifar10(tmp_path / "new")
    message = str(caught.value)
    assert message.count("certificate is not trusted") == message.count("pip install --upgrade certifi") == 1
    assert message.count(f"127.0.0.1:{hosts.server.server_port}") == 3


def test_auto_falls_back_to_drawn_images_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = load_dataset("auto", tmp_path)
    assert read.name == "synthetic" and "not CIFAR-10" in read.title
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "NOT CIFAR-10" in warning and "127.0.0.1" in warning


def test_synthetic_never_downloads(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "MIRRORS", hosts.urls("/good"))
    assert load_dataset("synthetic", tmp_path / "new").name == "synthetic"
    assert hosts.requests == [] and not (tmp_path / "new").exists()


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


def test_a_redirection_is_followed_if_it_leads_somewhere(
    redirecting_host: str, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = (f"http://127.0.0.1:{closed_port}/", "http://[", "http://a..b/", "file:///etc/hostname", "/?/?")
    monkeypatch.setattr(cifar10, "MIRRORS", [f"{redirecting_host}/?{where}" for where in nowhere])
    with pytest.raises(cifar10.DownloadError) as caught:
        load_cifar10(tmp_path)
    assert str(caught.value).count("127.0.0.1") >= len(nowhere)
    monkeypatch.setattr(cifar10, "MIRRORS", [*cifar10.MIRRORS, f"{redirecting_host}/?/good"])
    assert len(load_cifar10(tmp_path).train_labels) == 200


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
