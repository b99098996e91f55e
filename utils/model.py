"""The two networks. Both take normalized images (B, 3, 32, 32) and return logits (B, classes)."""

from collections.abc import Callable

import torch
from torch import nn

CONVNET_CHANNELS = (48, 96, 192)
DEEP_WIDTH = 2.0  # from this width on, a third convolution in each group pays better than still more channels
MLP_HIDDEN = (1024, 512, 256, 128, 64)

WHITENING_FILTERS = 16  # of the 12 directions of a 2 x 2 patch, the 4 with the least variance are mostly noise
WHITENING_IMAGES = 1000  # they hold a million patches: enough for the statistics of 12 numbers


class ConvNet(nn.Module):
    """A small convolutional network: whitening, then three groups, each of which halves the resolution.

    The layout follows airbench94, made narrower for a CPU; if deep, airbench96 (Jordan 2024, arXiv:2404.00498).
    """

    # Pixels on each side of the images in the three parts of a run. 18 is the smallest size for which the last feature
    # maps are 2 x 2 (17, 8, 4, 2), 26 the smallest for which they are 3 x 3, as they are for 32 (31, 15, 7, 3).
    image_sizes = (18, 26, 32)
    skipped_share = 0.9  # of the half of the images that it knows best: the others teach it more in the same time

    def __init__(
        self, channels: tuple[int, int, int] = CONVNET_CHANNELS, classes: int = 10, deep: bool = False
    ) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, WHITENING_FILTERS, kernel_size=2, bias=False)
        self.groups = nn.Sequential(
            ConvGroup(WHITENING_FILTERS, channels[0], deep),
            ConvGroup(channels[0], channels[1], deep),
            ConvGroup(channels[1], channels[2], deep),
        )
        self.head = nn.Linear(channels[2], classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.whitening(images).relu()  # (B, 16, 31, 31)
        features = self.groups(features)  # (B, channels, 3, 3)
        features = features.amax(dim=(2, 3))  # (B, channels)
        return self.head(features) / 9  # small logits at the start keep the first steps steady


class ConvGroup(nn.Sequential):
    """Two convolutions, or three; (B, channels_in, H, W) becomes (B, channels_out, H // 2, W // 2)."""

    def __init__(self, channels_in: int, channels_out: int, deep: bool = False) -> None:
        halving = [
            convolution(channels_in, channels_out),
            nn.MaxPool2d(2),  # first of all: what follows then costs a quarter
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
        refining = [convolution(channels_out, channels_out), nn.BatchNorm2d(channels_out)]
        if deep:
            refining += [nn.ReLU(), convolution(channels_out, channels_out), nn.BatchNorm2d(channels_out)]
            refining = [Residual(*refining)]
        super().__init__(*halving, *refining, nn.ReLU())


class Residual(nn.Sequential):
    """Adds to its input what its layers make of it: they need not pass it on (He et al. 2015, arXiv:1512.03385)."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + super().forward(features)


def convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    """Return a convolution with 3 x 3 filters, of which each at first passes on a feature of the layer below.

    Those left over, if any, stay random. What a layer has to learn is then only what it adds (Zagoruyko and Komodakis
    2017, arXiv:1706.00388).
    """
    layer = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    nn.init.dirac_(layer.weight.data[:channels_in])
    return layer


class MLP(nn.Module):
    """The handout's base architecture: six linear layers with ReLU between them, on the flattened image.

    utils/experiments.py varies the sizes, the activation function and the dropout.
    """

    image_sizes = (32, 32, 32)
    skipped_share = 0.0  # it is far from knowing its images by heart, and worse if it skips some

    def __init__(
        self,
        hidden: tuple[int, ...] = MLP_HIDDEN,
        classes: int = 10,
        activation: Callable[[torch.Tensor], torch.Tensor] = torch.relu,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (3 * 32 * 32, *hidden, classes)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True))
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        for layer in self.layers[:-1]:
            # Keeps activations and gradients of the same size from layer to layer under ReLU (He et al. 2015).
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        activations = images.flatten(1)  # (B, 3072)
        for layer in self.layers[:-1]:
            activations = self.dropout(self.activation(layer(activations)))
        return self.layers[-1](activations)  # no activation: cross-entropy wants logits


def build_model(name: str, width: float, classes: int, training_images: torch.Tensor) -> nn.Module:
    """Return the ConvNet ("convnet") or the MLP ("mlp") with its channels or hidden units multiplied by `width`.

    From DEEP_WIDTH on, a ConvNet is deeper too. `training_images` (N, 3, 32, 32), normalized, give its whitening.
    """
    if name == "mlp":
        return MLP(scaled(MLP_HIDDEN, width), classes)
    model = ConvNet(scaled(CONVNET_CHANNELS, width), classes, deep=width >= DEEP_WIDTH)
    set_whitening_from_training_patches(model.whitening, training_images)
    return model.to(memory_format=torch.channels_last)


def scaled(sizes: tuple[int, ...], width: float) -> tuple[int, ...]:
    return tuple(max(1, round(width * size)) for size in sizes)


def set_whitening_from_training_patches(layer: nn.Conv2d, images: torch.Tensor) -> None:
    """Make the filters of `layer` the first principal directions of patches, scaled to variance 1, and freeze them.

    Each direction is there with both signs, so that a rectifier loses nothing (Page 2018; tysam-code/hlb-CIFAR10 2023).
    """
    size = layer.kernel_size[0]
    patches = images.unfold(2, size, 1).unfold(3, size, 1)  # (N, 3, 31, 31, 2, 2)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * size * size)  # (N * 961, 12)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = directions.T.flip(0) / (variances.flip(0)[:, None] + 5e-4).sqrt()  # largest variance first
    filters = filters[: layer.out_channels // 2]
    filters = torch.cat([filters, -filters]).view(-1, 3, size, size)
    layer.weight.data = filters
    layer.weight.requires_grad = False
