"""The networks, and the table of their names.

A network takes normalized images (B, 3, H, W) and returns logits (B, classes). How it is trained and tested is in its
recipe, in main.py.
"""

from collections.abc import Callable, Iterable

from utils.files import InputError

import torch
from torch import nn
from torch.nn.functional import conv2d

SIZE = 32  # pixels on each side of a whole image
MLP_HIDDEN = (1024, 512, 256, 128, 64)
WHITENING_FILTERS = 8  # 4 with both signs: a 2 x 2 patch has 6 symmetric directions, of which 2 are mostly noise


class ConvNet(nn.Module):
    """A small convolutional network: whitening, then three groups, each of which halves the resolution.

    The layout is that of airbench94, with fewer filters, for a CPU (Jordan 2024, arXiv:2404.00498).
    """

    filters = (24, 48, 96)  # each is there mirrored too: twice as many channels
    is_deep = False

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = scaled(self.filters, width)
        self.whitening = nn.Conv2d(3, 2 * WHITENING_FILTERS, kernel_size=2, bias=False)
        self.groups = nn.Sequential(
            ConvGroup(WHITENING_FILTERS, first, self.is_deep),
            ConvGroup(first, second, self.is_deep),
            ConvGroup(second, third, self.is_deep),
        )
        self.head = nn.Linear(third, classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.whitening(images).relu()  # (B, 16, 31, 31)
        features = self.groups(features)  # (B, channels, 3, 3)
        features = features.amax(dim=(2, 3))  # (B, channels)
        features = features.unflatten(1, (2, -1)).amax(dim=1)  # (B, channels // 2): of each filter and its mirror image
        return self.head(features) / 9  # small logits at the start keep the first steps steady


class LargeConvNet(ConvNet):
    """About as wide as airbench94, and with three convolutions in each group, as airbench96."""

    filters = (40, 160, 160)
    is_deep = True


class ConvGroup(nn.Sequential):
    """Two convolutions, or three; (B, 2 filters_in, H, W) becomes (B, 2 filters_out, H // 2, W // 2).

    SiLU (Elfwing et al. 2017, arXiv:1702.03118) makes an epoch little longer than ReLU, and teaches more.
    """

    def __init__(self, filters_in: int, filters_out: int, deep: bool = False) -> None:
        halving = [
            MirroredConv2d(filters_in, filters_out),
            nn.MaxPool2d(2),  # first of all: what follows then costs a quarter
            nn.BatchNorm2d(2 * filters_out),
            nn.SiLU(),
        ]
        refining = [MirroredConv2d(filters_out, filters_out), nn.BatchNorm2d(2 * filters_out)]
        if deep:
            refining += [nn.SiLU(), MirroredConv2d(filters_out, filters_out), nn.BatchNorm2d(2 * filters_out)]
            refining = [Residual(*refining)]
        super().__init__(*halving, *refining, nn.SiLU())


class MirroredConv2d(nn.Conv2d):
    """3 x 3 filters and their mirror images; (B, 2 filters_in, H, W) becomes (B, 2 filters_out, H, W).

    What the first half of the channels finds in an image, the second half finds in its mirror image, so that each image
    teaches both. A group convolution (Cohen and Welling 2016, arXiv:1602.07576). Where pooling drops the last of an odd
    number of columns, this is not exact.
    """

    def __init__(self, filters_in: int, filters_out: int) -> None:
        super().__init__(2 * filters_in, filters_out, kernel_size=3, padding=1, bias=False)
        # At first, filters pass on the features of the layer below; those left over, if any, stay random. What a layer
        # has to learn is then only what it adds (Zagoruyko and Komodakis 2017, arXiv:1706.00388).
        nn.init.dirac_(self.weight.data[:filters_in])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        of_image, of_mirror_image = self.weight.chunk(2, dim=1)
        mirrored = torch.cat([of_mirror_image, of_image], dim=1).flip(3)
        return conv2d(features, torch.cat([self.weight, mirrored]), padding=self.padding)


class Residual(nn.Sequential):
    """Adds to its input what its layers make of it: they need not pass it on (He et al. 2015, arXiv:1512.03385)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + super().forward(features)


class MLP(nn.Module):
    """The assignment's base architecture: six linear layers with ReLU between them, on the flattened image."""

    def __init__(self, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        sizes = (3 * SIZE * SIZE, *scaled(MLP_HIDDEN, width), classes)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True))
        for layer in self.layers[:-1]:
            # Keeps activations and gradients of the same size from layer to layer under ReLU (He et al. 2015).
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        activations = images.flatten(1)  # (B, 3072)
        for layer in self.layers[:-1]:
            activations = layer(activations).relu()
        return self.layers[-1](activations)  # no activation: cross-entropy wants logits


MODELS: dict[str, Callable[..., nn.Module]] = {"convnet": ConvNet, "convnet-large": LargeConvNet, "mlp": MLP}


def build_model(name: str, classes: int, width: float, examples: torch.Tensor) -> nn.Module:
    """Return the network that the table calls `name`, its filters or hidden units multiplied by `width`.

    `examples` are some normalized training images (N, 3, 32, 32), for the whitening.
    Raises InputError if there is no such network.
    """
    if name not in MODELS:
        raise InputError(f"--model: there is no {name} among {', '.join(MODELS)} (MODELS in utils/model.py)")
    model = MODELS[name](classes=classes, width=width)
    if isinstance(model, ConvNet):
        set_whitening(model.whitening, examples)
    return model


def check_crops(model: nn.Module, examples: torch.Tensor, crop_sizes: Iterable[int], classes: int) -> None:
    """Show the network two images of each size: a lazy layer gets its shape by the whole ones, which come first.

    Raises InputError if it does not take them, or does not return logits (B, classes).
    """
    model.eval()
    for size in sorted({SIZE, *crop_sizes}, reverse=True):
        try:
            with torch.no_grad():
                logits = model(examples[:2, :, :size, :size])
        except RuntimeError as error:
            if size == SIZE:
                raise
            problem = f"the network takes no images of {size} x {size} pixels ({' '.join(str(error).split())[:100]})"
            raise InputError(f"--crop-sizes: {problem}: try --crop-sizes 32 32 32") from None
        if logits.shape != (2, classes):
            raise InputError(f"--model: it returns {tuple(logits.shape)} for two images, not logits (2, {classes})")


def scaled(sizes: tuple[int, ...], width: float) -> tuple[int, ...]:
    return tuple(max(1, round(width * size)) for size in sizes)


def set_whitening(layer: nn.Conv2d, images: torch.Tensor) -> None:
    """Make the outputs of `layer` uncorrelated, with variance 1, on patches of images and mirror images, and freeze it.

    Each filter is there with both signs, so that a rectifier loses nothing (Page 2018; tysam-code/hlb-CIFAR10 2023).
    The second half of the filters are the mirror images of the first half.
    """
    size = layer.kernel_size[0]
    images = images.cpu()  # MPS had no eigh (pytorch/pytorch#151874)
    patches = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, 3, 31, 31, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # (N * 961, 3, 2, 2)
    symmetric, antisymmetric = (patches + patches.flip(3)) / 2**0.5, (patches - patches.flip(3)) / 2**0.5
    # The mirror image of a sum of a symmetric and an antisymmetric filter is their difference.
    filters = whitening_filters(symmetric) + whitening_filters(antisymmetric)
    filters = filters[: layer.out_channels // 4]
    filters = torch.cat([filters, -filters])
    layer.weight.data = torch.cat([filters, filters.flip(3)])
    layer.weight.requires_grad = False


def whitening_filters(patches: torch.Tensor) -> torch.Tensor:
    """Return the principal directions of patches (N, C, H, W), largest variance first, scaled to variance 1."""
    flat = patches.flatten(1)
    variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
    # The small constant keeps the faintest of them, which are mostly noise, below that.
    filters = directions.T.flip(0) / (variances.flip(0)[:, None] + 1e-3).sqrt()
    return filters.view(-1, *patches.shape[1:])
