"""utils/cifar10.py: the genuine images, or one line that says why not; nothing of the user's is touched."""

import errno
import gzip
import io
import os
import pickle
import shutil
import ssl
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from utils import cifar10
from utils.cifar10 import DownloadError, load_cifar10
from utils.data import load_dataset
from utils.files import InputError, RunError

import certifi
import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, TRAIN_FILES, SmallCifar10
from helpers import Trap, contents

CERTIFICATE = Path(__file__).with_name("certificate.pem")  # for 127.0.0.1, with its key; nobody trusts it
CERTIFI = certifi.where()
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
ALL_FILES = (*TRAIN_FILES, "test_batch", "batches.meta")


def refusal(data_dir: Path, kind: type[Exception] = InputError, choice: str = "auto") -> str:
    """Return in which line a folder is refused; `auto` does not go on with synthetic images then."""
    with pytest.raises(kind) as caught:
        load_dataset(choice, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


def test_every_pixel_and_label_is_read(small_cifar10: SmallCifar10) -> None:
    read = load_dataset("auto", small_cifar10.data_dir)
    assert (read.name, read.class_names) == ("cifar10", CLASS_NAMES)
    for names, (images, labels) in ((TRAIN_FILES, read.training), (("test_batch",), read.test)):
        raw = np.concatenate([small_cifar10.pixels[name] for name in names]).reshape(-1, 3, 32, 32)
        assert np.array_equal(images.numpy(), raw.transpose(0, 2, 3, 1))
        assert labels.tolist() == [label for name in names for label in small_cifar10.labels[name]]


@pytest.mark.parametrize("inside", ["", FOLDER, f"{FOLDER}/{FOLDER}", "cifar-10-python", f"cifar-10 (1)/{FOLDER}"])
def test_the_files_are_found_where_people_have_them(small_cifar10: SmallCifar10, tmp_path: Path, inside: str) -> None:
    """7-Zip, Explorer and Finder make a folder around the folder, or one of the archive's name."""
    data_dir = tmp_path / "images"
    shutil.copytree(small_cifar10.folder, data_dir / inside)
    load_cifar10(data_dir)
    (data_dir / inside / "data_batch_3").unlink()
    message = refusal(data_dir)
    assert "data_batch_3" in message and f"{data_dir / inside}:" in message


# Damaged files


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    path.unlink()
    if how == "flipped":
        content[middle] ^= 1
    hostile = pickle.dumps(Trap(path.with_name("sprung")))
    if how != "missing":
        path.write_bytes({"flipped": content, "cut off": content[:middle], "hostile": hostile}[how])


@pytest.mark.parametrize("how", ["flipped", "cut off", "hostile", "missing"])
@pytest.mark.parametrize("names", [["batches.meta"], ["data_batch_2", "test_batch"]])
def test_damaged_files_are_named_and_stay(small_cifar10: SmallCifar10, how: str, names: list[str]) -> None:
    for name in names:
        damage(small_cifar10.folder / name, how)
    before = contents(small_cifar10.folder)
    message = refusal(small_cifar10.data_dir)
    assert [name for name in ALL_FILES if name in message] == sorted(names)
    assert "--data-dir" in message and str(small_cifar10.folder) in message and "delete" not in message.lower()
    assert contents(small_cifar10.folder) == before  # no code in them was run


# Folders that cannot be used


def test_a_folder_that_cannot_be_used_is_no_reason_for_synthetic_images(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / FOLDER).mkdir()  # somebody's, without a file of CIFAR-10
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below", tmp_path):
        assert str(data_dir) in refusal(data_dir)
    assert contents(tmp_path) == {tmp_path / "file": b"precious"}
    if sys.platform != "win32":  # plain accounts may not make links there
        (tmp_path / "link").symlink_to(tmp_path / "nothing")
        assert f"{tmp_path / 'link'} (it is a file, or a link to nothing)" in refusal(tmp_path / "link")


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, RunError), (errno.EACCES, InputError)])
def test_a_disk_that_takes_nothing_is_no_reason_for_synthetic_images(
    small_cifar10: SmallCifar10, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    data_dir = small_cifar10.archive.parent
    message = refusal(data_dir, kind)
    assert str(data_dir) in message and os.strerror(code) in message and os.listdir(data_dir) == [ARCHIVE]


# Archives put in by hand


def test_an_archive_is_used_packed_or_not(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    packed = small_cifar10.archive.read_bytes()
    plain = gzip.decompress(packed)  # as Safari leaves it
    for number, archives in enumerate(([packed], [None, plain], [packed[:-999], plain], [packed, plain[:-99999]])):
        data_dir = tmp_path / str(number)
        data_dir.mkdir()
        for name, content in zip((ARCHIVE, "cifar-10-python.tar"), archives, strict=False):
            if content:
                (data_dir / name).write_bytes(content)
        before = contents(data_dir)
        load_cifar10(data_dir)
        assert contents(data_dir) == before | contents(data_dir / FOLDER)


@pytest.mark.parametrize("how", ["flipped", "cut off"])
def test_a_damaged_archive_is_named(small_cifar10: SmallCifar10, how: str) -> None:
    damage(small_cifar10.archive, how)
    before = contents(small_cifar10.archive.parent)
    message = refusal(small_cifar10.archive.parent)
    assert f"{small_cifar10.archive} is damaged" in message and r"\n" not in message
    assert contents(small_cifar10.archive.parent) == before


def test_nothing_but_the_seven_files_is_unpacked(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    data_dir = tmp_path / "a" / "b"
    data_dir.mkdir(parents=True)
    genuine = f"{FOLDER}/data_batch_1"
    with tarfile.open(data_dir / "cifar-10-python.tar", "w") as archive:
        archive.add(small_cifar10.folder, FOLDER)
        for name in ("../../evil", f"{FOLDER}/../../../evil", str(tmp_path / "evil"), f"{FOLDER}/evil"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(genuine)
            member.type, member.linkname = kind, "../../../evil"
            archive.addfile(member)
    before = contents(tmp_path)
    load_cifar10(data_dir)
    assert contents(tmp_path).keys() - before.keys() == {data_dir / FOLDER / name for name in ALL_FILES}
    assert not (data_dir / genuine).is_symlink()


# Downloads, from a server on this machine


class Hosts:
    """A server whose paths behave like different hosts."""

    def __init__(self, archive: bytes) -> None:
        self.requests, self.ended = [], threading.Event()
        hosts, half = self, archive[: len(archive) // 2]
        bodies = {"/good": archive, "/wrong": bytes(len(archive)), "/early": half, "/stall": half, "/slow": b""}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hosts.requests.append(self.path)
                status = 302 if self.path.startswith("/to?") else 200 if self.path in bodies else 404
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", self.path.removeprefix("/to?"))
                self.send_header("Content-Length", str(len(archive) if status == 200 else 0))
                self.end_headers()
                self.wfile.write(bodies.get(self.path, b""))
                if self.path == "/stall":
                    hosts.ended.wait(20)
                for _ in range(200 if self.path == "/slow" else 0):
                    hosts.ended.wait(0.05)
                    self.wfile.write(b"a")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def urls(self, *paths: str) -> tuple[str, ...]:
        return tuple(f"https://127.0.0.1:{self.server.server_port}{path}" for path in paths)


@pytest.fixture
def hosts(small_cifar10: SmallCifar10, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    hosts = Hosts(small_cifar10.archive.read_bytes())
    for name, value in (("STALL_SECONDS", 0.5), ("WINDOW", 0.5), ("SLOWEST", 1000), ("MIRRORS", hosts.urls("/good"))):
        monkeypatch.setattr(cifar10, name, value)
    monkeypatch.setattr(certifi, "where", lambda: str(CERTIFICATE))
    yield hosts
    hosts.ended.set()
    hosts.server.shutdown()
    hosts.server.server_close()


BAD_HOSTS = {"/missing": "404", "/wrong": "MD5", "/early": "bytes", "/stall": "timed out", "/slow": "bytes per second"}
NOWHERE = ("/to?http://[", "/to?http://a..b/", "/to?file:///etc/hostname")


def test_the_first_good_host_delivers_and_the_others_are_told(
    hosts: Hosts, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing, data_dir = f"http://127.0.0.1:{closed_port}/", tmp_path / "new" / "er"
    monkeypatch.setattr(cifar10, "MIRRORS", (refusing, *hosts.urls(*BAD_HOSTS, *NOWHERE)))
    monkeypatch.setenv("no_proxy", "*")  # none of the redirections leads to a host
    message = refusal(data_dir, DownloadError, "cifar10")
    for text in (*BAD_HOSTS.values(), f"(127.0.0.1:{closed_port}", str(data_dir), ARCHIVE, "--dataset synthetic"):
        assert text in message
    assert message.count(f"127.0.0.1:{hosts.server.server_port}") == len(hosts.requests) == len(BAD_HOSTS) + 3
    assert os.listdir(data_dir) == []
    hosts.requests.clear()
    for name in (".backup.tmp/thesis", "cifar-10-notes/x"):  # of others
        (data_dir / name).parent.mkdir()
        (data_dir / name).write_bytes(b"precious")
    before = contents(data_dir)
    monkeypatch.setattr(cifar10, "MIRRORS", (refusing, *hosts.urls("/wrong", "/to?/good", "/never-asked")))
    assert [load_dataset("auto", data_dir).name for _ in range(2)] == ["cifar10"] * 2
    assert hosts.requests == ["/wrong", "/to?/good", "/good"]  # and once only
    assert contents(data_dir) == before | contents(data_dir / FOLDER)


def test_only_where_no_host_delivers_auto_goes_on_with_synthetic_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cifar-10-python (1).tar.gz").write_bytes(b"not under the right name")
    assert load_dataset("auto", tmp_path).name == "synthetic"
    reason, warning = capsys.readouterr().err.splitlines()
    assert "WARNING" in reason and "cifar-10-python (1).tar.gz" in reason and "NOT CIFAR-10" in warning


ADDRESSES = [
    *("http://us3r:s3cret@{}", "http://us3r:%40%2Fs3cret%23@{}", "http://us3r:@/?#s3cret:@{}", "us3r:s3cret@{}"),
    *("http:/us3r:s3cret@{}", "socks5://us3r:s3cret@{}", "http://[us3r:s3cret@{}", "http://{}:s3cret"),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_of_a_proxy_its_host_is_told_and_never_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int, address: str
) -> None:
    """Not even where the address is mistyped."""
    monkeypatch.setenv("https_proxy", address.format(f"127.0.0.1:{closed_port}" if "@" in address else "127.0.0.1"))
    message = refusal(tmp_path, DownloadError, "cifar10")
    assert "s3cret" not in message and "us3r" not in message
    assert message.count("127.0.0.1") == 1
    names = {urlsplit(url).netloc for url in cifar10.MIRRORS}
    assert len(names) == 3 and all(name in message for name in names)


def cannot_be_read(context: ssl.SSLContext, *_: object) -> None:
    raise ssl.SSLError("nested asn1 error")


def test_certificates_of_the_system_need_not_be_readable(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some Windows machines they are not."""
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", cannot_be_read)
    assert len(load_cifar10(tmp_path)[1][1]) == 200


def test_an_unknown_certificate_is_told_once(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifi, "where", lambda: CERTIFI)
    monkeypatch.setattr(cifar10, "MIRRORS", hosts.urls("/good") * 3)
    message = refusal(tmp_path, DownloadError, "cifar10")
    assert message.count("certificate is not trusted") == message.count("pip install --upgrade certifi") == 1
    assert message.count(f"127.0.0.1:{hosts.server.server_port}") == 3


# Several runs at once


@pytest.mark.parametrize("moment", [(Path, "write_bytes"), (os, "replace")], ids=str)
def test_another_run_may_start_while_one_unpacks(
    small_cifar10: SmallCifar10, monkeypatch: pytest.MonkeyPatch, moment: tuple[object, str]
) -> None:
    data_dir, others, action = small_cifar10.archive.parent, [], getattr(*moment)

    def start_another(*arguments: object) -> object:
        if moment[1] == "write_bytes":
            action(*arguments)
        if not others:
            others.append(None)
            others[0] = load_cifar10(data_dir)
        return action(*arguments)

    monkeypatch.setattr(*moment, start_another)
    for read in (load_cifar10(data_dir), *others):
        assert len(read[1][1]) == 200
    assert {*os.listdir(data_dir)} == {ARCHIVE, FOLDER}


# A torchvision that cannot be used


def test_a_torchvision_that_does_not_fit_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision.py").write_text(error, encoding="utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal(tmp_path)
    assert "torchvision" in message and torch.__version__ in message and "pip install" in message
    assert load_dataset("synthetic", tmp_path).name == "synthetic"  # needs none
