"""utils/data.py: the right images in the right split, whole or refused, and fetched only when they have to be."""

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import CLASS_NAMES, TRAIN_FILES, SmallCifar10
from torch.nn.functional import pad

from utils import data
from utils.data import (
    DownloadError,
    ImageData,
    ImageDataset,
    Loaders,
    load_cifar10,
    load_dataset,
    make_loader,
    make_loaders,
    normalize,
    serve_epoch,
    split_train_validation,
    unnormalize,
)
from utils.errors import InputError

CPU = torch.device("cpu")


# What is read


def test_every_pixel_and_label_is_read_as_it_stands_in_the_files(small_cifar10: SmallCifar10) -> None:
    read = load_cifar10(small_cifar10.data_dir)
    for files, images, labels in (
        (TRAIN_FILES, read.train_images, read.train_labels),
        (("test_batch",), read.test_images, read.test_labels),
    ):
        raw_pixels = [image for name in files for image in small_cifar10.pixels[name]]
        raw_labels = [label for name in files for label in small_cifar10.labels[name]]
        assert labels.tolist() == raw_labels
        assert images.shape == (len(raw_labels), 32, 32, 3)
        for image, raw in zip(images, raw_pixels, strict=True):
            red, green, blue = torch.from_numpy(raw).view(3, 32, 32)
            assert torch.equal(image, torch.stack([red, green, blue], dim=2))
    assert read.class_names == CLASS_NAMES


def test_a_complete_folder_is_read_without_writing_into_it(small_cifar10: SmallCifar10) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (small_cifar10.data_dir, *small_cifar10.data_dir.rglob("*"))}

    before = state()
    load_cifar10(small_cifar10.data_dir)
    assert state() == before


# Splits


def image_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def assert_splits_are_disjoint_and_balanced(loaders: Loaders, count: int) -> None:
    images = [image_set(loader.dataset.images) for loader in loaders]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]
    assert len(loaders.training.dataset) + len(loaders.validation.dataset) == count
    assert len(loaders.validation.dataset) == count // 10
    for loader in loaders:
        per_class = loader.dataset.labels.bincount(minlength=10)
        expected = len(loader.dataset) / 10
        assert (per_class - expected).abs().max() <= 0.05 * expected


def test_splits_are_disjoint_and_balanced(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_cifar10(small_cifar10.data_dir), 16, CPU)
    assert_splits_are_disjoint_and_balanced(loaders, 200)


def test_splits_of_the_real_images_are_disjoint_and_balanced(real_cifar10: ImageData) -> None:
    loaders = make_loaders(real_cifar10, 256, CPU)
    assert_splits_are_disjoint_and_balanced(loaders, 50_000)
    assert len(loaders.test.dataset) == 10_000


def test_each_image_keeps_its_own_label(small_cifar10: SmallCifar10) -> None:
    read = load_cifar10(small_cifar10.data_dir)
    pairs = zip(read.train_images, read.train_labels, strict=True)
    label_of = {image.numpy().tobytes(): int(label) for image, label in pairs}
    for loader in make_loaders(read, 16, CPU)[:2]:
        for image, label in zip(loader.dataset.images, loader.dataset.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_every_run_validates_on_the_same_images_whatever_its_seed() -> None:
    labels = torch.arange(500) % 10
    torch.manual_seed(1)
    one = split_train_validation(labels)
    torch.manual_seed(2)
    other = split_train_validation(labels)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


# Batches


def test_an_epoch_shows_every_training_image_once_in_a_new_order(small_cifar10: SmallCifar10) -> None:
    read = load_cifar10(small_cifar10.data_dir)
    loader = make_loaders(read, 50, CPU).training
    loader.dataset.labels = torch.arange(len(loader.dataset))  # tells which image is which
    first, second = ([labels for _, labels in loader] for _ in range(2))
    assert [len(labels) for labels in first] == [50, 50, 50, 30]
    assert torch.cat(first).sort().values.tolist() == torch.cat(second).sort().values.tolist() == list(range(180))
    assert torch.cat(first).tolist() != torch.cat(second).tolist() != list(range(180))


def test_validation_and_test_images_are_never_augmented(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_cifar10(small_cifar10.data_dir), 16, CPU)
    for loader in (loaders.validation, loaders.test):
        raw = loader.dataset.images
        for _ in range(2):
            served = torch.cat([images for images, _ in loader])
            assert torch.equal(unnormalize(served), raw)
            assert torch.equal(torch.cat([labels for _, labels in loader]), loader.dataset.labels)


def test_training_images_are_augmented(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_cifar10(small_cifar10.data_dir), 16, CPU)
    raw = image_set(loaders.training.dataset.images)
    served = image_set(torch.cat([unnormalize(images) for images, _ in loaders.training]))
    assert len(served - raw) > 0.9 * len(raw)  # 1 of 50 crops and flips leaves an image as it is


def all_crops_and_flips(image: torch.Tensor) -> list[torch.Tensor]:
    """Return the 50 images (32, 32, 3) that augmentation may make: each of 25 crops, as it is and then flipped."""
    padded = pad(image.permute(2, 0, 1).float()[None], (2, 2, 2, 2), mode="reflect")[0].to(torch.uint8)
    crops = [padded[:, top : top + 32, left : left + 32].permute(1, 2, 0) for top in range(5) for left in range(5)]
    return crops + [crop.flip(1) for crop in crops]


def served_in_epoch(epoch: int, images: torch.Tensor, indices: list[int], crop_size: int = 32) -> torch.Tensor:
    """Return pixels (len(indices), crop_size, crop_size, 3) of augmented images, as an epoch of training shows them."""
    loader = make_loader(ImageDataset(images, torch.arange(len(images)), augment=True), len(indices))
    batch, labels = next(iter(serve_epoch(loader, torch.tensor(indices), epoch, crop_size)))
    assert labels.tolist() == indices
    return unnormalize(batch)


def test_crop_and_flip_keep_the_pixels_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)
    torch.manual_seed(0)
    epochs = [served_in_epoch(epoch, images, [0, 1, 2] * 250) for epoch in (1, 2)]
    for index in range(3):
        number_of = {crop.numpy().tobytes(): number for number, crop in enumerate(all_crops_and_flips(images[index]))}
        # A KeyError here is an image that no crop and flip of this image gives.
        numbers = [[number_of[image.numpy().tobytes()] for image in served[index::3]] for served in epochs]
        assert {frozenset(of_epoch) for of_epoch in numbers} == {frozenset(range(25)), frozenset(range(25, 50))}
        assert all(max(map(of_epoch.count, of_epoch)) < 30 for of_epoch in numbers)  # of 10 that are expected


def test_each_image_is_mirrored_in_every_other_epoch_and_half_of_them_in_the_first() -> None:
    symmetric_but_for_one_column = torch.zeros(400, 32, 32, 3, dtype=torch.uint8)
    symmetric_but_for_one_column[:, :, 8] = 255
    mirrored = []
    for epoch in range(1, 5):
        served = served_in_epoch(epoch, symmetric_but_for_one_column, list(range(400)))
        mirrored.append(served[:, 0, :, 0].argmax(dim=1) > 15)
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2]) and torch.equal(mirrored[1], mirrored[3])
    assert 150 < mirrored[0].sum() < 250


def test_each_image_of_a_batch_is_cropped_on_its_own() -> None:
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    assert len(image_set(served_in_epoch(1, image, [0] * 200))) > 20  # of 25 that there are


def test_small_crops_stay_within_the_image_and_reach_all_of_it() -> None:
    image = torch.arange(1024).view(1, 32, 32, 1).expand(1, 32, 32, 3) % 251  # tells where a pixel comes from
    windows = image[0].unfold(0, 26, 1).unfold(1, 26, 1).permute(0, 1, 3, 4, 2).reshape(49, 26, 26, 3)
    expected = image_set(torch.cat([windows, windows.flip(2)]).to(torch.uint8))
    served = [image_set(served_in_epoch(epoch, image.to(torch.uint8), [0] * 500, 26)) for epoch in (1, 2)]
    assert served[0] | served[1] == expected


def test_one_square_is_cut_out_of_each_image_and_it_can_lie_anywhere() -> None:
    white = ImageDataset(torch.full((500, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(500), augment=True)
    epoch = serve_epoch(make_loader(white, 500), torch.arange(500), 1, 26, cut_size=8)
    cut = (next(iter(epoch))[0] == 0).all(dim=1)  # (500, 26, 26): the mean colour is 0, and white is not
    heights, widths = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
    assert torch.equal(cut.sum(dim=(1, 2)), heights * widths)  # a rectangle, and nothing else
    assert {*heights.tolist(), *widths.tolist()} == {4, 5, 6, 7, 8}  # beyond an edge, up to half of it
    assert cut.any(dim=0).all()


def test_an_epoch_leaves_the_loader_it_comes_from_as_it_was() -> None:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    loader = make_loader(ImageDataset(images, torch.arange(4), augment=True), 4)
    serve_epoch(loader, torch.arange(2), 2, 26, 8)
    served = next(iter(loader))[0]
    assert len(loader.dataset) == 4 and served.shape == (4, 3, 32, 32) and (served != 0).all()


def test_a_single_image_can_be_looked_at() -> None:
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    image, label = ImageDataset(images, torch.arange(5), augment=False)[3]
    assert label == 3
    assert torch.equal(unnormalize(image[None])[0], images[3])


def test_a_dry_run_gets_one_batch_of_each_split(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_cifar10(small_cifar10.data_dir), 16, CPU, images_per_split=16)
    assert [len(loader) for loader in loaders] == [1, 1, 1]
    assert len(loaders.training.dataset) == 16


def test_a_batch_larger_than_the_training_set_is_refused(small_cifar10: SmallCifar10) -> None:
    read = load_cifar10(small_cifar10.data_dir)
    assert len(make_loaders(read, 180, CPU).training) == 1
    with pytest.raises(InputError, match=r"--batch-size: 181 .* 180"):
        make_loaders(read, 181, CPU)


# Normalization


def test_normalization_uses_the_constants_of_the_training_images() -> None:
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 32, 32, 3)
    normalized = normalize(pixels)
    assert normalized.shape == (3, 3, 32, 32) and normalized.dtype == torch.float32
    for channel, (mean, std) in enumerate(((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))):
        expected = torch.tensor([(value / 255 - mean) / std for value in (0, 100, 255)])
        torch.testing.assert_close(normalized[:, channel], expected.view(3, 1, 1).expand(3, 32, 32))


def test_unnormalizing_gives_back_every_pixel_value() -> None:
    pixels = torch.arange(256 * 12).view(1, 32, 32, 3).remainder(256).to(torch.uint8)
    pixels = torch.cat([pixels, pixels.flip(1), pixels.roll(1, 3)])
    assert torch.equal(unnormalize(normalize(pixels)), pixels)


def test_normalizing_leaves_the_pixels_it_was_given_alone() -> None:
    pixels = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    normalize(pixels)
    assert (pixels == 77).all()


def test_the_constants_are_those_of_the_real_training_images(real_cifar10: ImageData) -> None:
    channels = real_cifar10.train_images.view(-1, 3).T
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels])
    share = counts.double() / counts.sum(dim=1, keepdim=True)  # (3, 256)
    value = torch.arange(256).double() / 255
    mean = (share * value).sum(dim=1)
    std = ((share * value**2).sum(dim=1) - mean**2).sqrt()
    assert (mean - data.MEAN).abs().max() < 6e-5
    assert (std - data.STD).abs().max() < 6e-5


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


def test_a_file_in_place_of_the_folder_of_batches_is_refused(small_cifar10: SmallCifar10) -> None:
    shutil.rmtree(small_cifar10.folder)
    small_cifar10.folder.write_text("")
    with pytest.raises(InputError, match="data_batch_1"):
        load_cifar10(small_cifar10.data_dir)


# Archives


def test_an_archive_put_in_by_hand_is_used(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    data_dir = tmp_path / "by hand"
    data_dir.mkdir()
    shutil.copy(small_cifar10.archive, data_dir)
    read = load_cifar10(data_dir)
    assert torch.equal(read.test_images, load_cifar10(small_cifar10.data_dir).test_images)
    names = sorted(path.name for path in data_dir.iterdir())
    assert names == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]  # and no half-unpacked folder


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
    assert list(data_dir.iterdir()) == [archive] and archive.read_bytes() == damaged


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

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def urls(self, *paths: str) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{self.server.server_port}{path}" for path in paths)


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
    monkeypatch.setattr(data, "MIRRORS", (refusing, *bad, *hosts.urls("/good", "/never-asked")))
    monkeypatch.setattr(data, "STALL_SECONDS", 0.3)
    data_dir = tmp_path / "new" / "folder"
    read = load_dataset("auto", data_dir)
    assert read.name == "cifar10"
    assert torch.equal(read.train_images, load_cifar10(small_cifar10.data_dir).train_images)
    assert hosts.requests == ["/missing", "/wrong", "/early", "/stall", "/good"]
    assert sorted(path.name for path in data_dir.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]

    load_dataset("auto", data_dir)
    assert len(hosts.requests) == 5  # what is there is not fetched again


@pytest.mark.parametrize(
    ("path", "reason"), [("/missing", "404"), ("/wrong", "MD5"), ("/early", "bytes"), ("/stall", "timed out")]
)
def test_a_bad_host_is_given_up_and_leaves_nothing_that_could_pass_for_data(
    hosts: Hosts, tmp_path: Path, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MIRRORS", hosts.urls(path))
    monkeypatch.setattr(data, "STALL_SECONDS", 0.3)
    with pytest.raises(DownloadError, match=reason):
        load_cifar10(tmp_path / "new")
    assert not [item for item in (tmp_path / "new").rglob("*") if item.is_file()]


def test_when_no_host_delivers_each_is_listed_with_its_reason(
    hosts: Hosts, tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = f"http://127.0.0.1:{closed_port}/"
    monkeypatch.setattr(data, "MIRRORS", (refusing, *hosts.urls("/missing", "/wrong")))
    with pytest.raises(DownloadError) as caught:
        load_dataset("cifar10", tmp_path / "new")
    message = str(caught.value)
    port = hosts.server.server_port
    assert f"127.0.0.1:{closed_port}: " in message and "refused" in message
    assert f"127.0.0.1:{port}: " in message and "404" in message and "MD5" in message
    assert f"put it into {tmp_path / 'new'}" in message and "cifar-10-python.tar.gz" in message
    assert "--dataset synthetic" in message and "\n" not in message


def test_auto_falls_back_to_drawn_images_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = load_dataset("auto", tmp_path)
    assert read.name == "synthetic" and "not CIFAR-10" in read.title
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "NOT CIFAR-10" in warning and "127.0.0.1" in warning


def test_synthetic_never_downloads(hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MIRRORS", hosts.urls("/good"))
    assert load_dataset("synthetic", tmp_path / "new").name == "synthetic"
    assert hosts.requests == [] and not (tmp_path / "new").exists()
