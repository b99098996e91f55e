"""utils/model.py: logits of the right shape, a first loss that is a guess's, mirrored filters, whitening."""

import math

import main
from utils.data import LabelledImages, normalize
from utils.files import InputError
from utils.model import MLP, MODELS, ConvGroup, build_model, check_crops
from utils.recipe import Recipe
from utils.synthetic import draw_images

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, unfold

EXAMPLES = 1000  # as in main.py
every_network = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Normalized images (200, 3, 32, 32)."""
    return normalize(torch.from_numpy(draw_images(200, seed=1)[0]))


@every_network
def test_logits_are_one_number_per_image_and_class_and_the_seed_decides_them(images: torch.Tensor, name: str) -> None:
    logits = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        logits.append(build_model(name, 7, 0.3, images)(images[:4]))
    assert logits[0].shape == (4, 7) and logits[0].dtype == torch.float32
    assert logits[0].min() < 0 < logits[0].max()  # neither probabilities nor behind a ReLU
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize("recipe", main.RECIPES, ids=lambda recipe: recipe.model)
def test_a_network_takes_the_crops_of_its_recipe(images: torch.Tensor, recipe: Recipe) -> None:
    check_crops(build_model(recipe.model, 10, 0.3, images), images, recipe.crop_sizes, 10)
    assert recipe.crop_sizes[-1] == images.shape[-1]  # the last epochs see what is tested


def test_a_network_that_does_not_fit_is_one_line(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="--model: there is no resnet among convnet, convnet-large, mlp"):
        build_model("resnet", 10, 1.0, images)
    with pytest.raises(InputError, match=r"--crop-sizes: the network takes no images of 4 x 4 pixels .*32 32 32"):
        check_crops(build_model("convnet", 10, 0.1, images), images, (4, 26, 32), 10)
    with pytest.raises(InputError, match=r"--model: it returns \(2, 3072\) for two images, not logits \(2, 10\)"):
        check_crops(nn.Flatten(), images, (32, 32, 32), 10)
    with pytest.raises(RuntimeError):  # a fault of the network itself
        check_crops(nn.Linear(5, 10), images, (32, 32, 32), 10)


def test_a_network_of_ones_own_needs_nothing_else(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy layer gets its shape by whole images; nothing else changes before the training."""
    layers = (nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(10))
    monkeypatch.setitem(MODELS, "small", lambda classes, width: nn.Sequential(*layers))
    model = build_model("small", 10, 1.0, images)
    with pytest.raises(InputError, match="no images of 26 x 26"):
        check_crops(model, images, (18, 26, 32), 10)
    assert model[3].in_features == 2 * 30 * 30
    assert model[1].running_mean.tolist() == [0, 0]


@every_network
def test_the_first_loss_is_that_of_a_guess_and_reaches_every_layer(images: torch.Tensor, name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, 10, 1.0 if name == "mlp" else 0.3, images)
    losses = [cross_entropy(model.train(training)(images), torch.arange(200) % 10) for training in (True, False)]
    assert [loss.item() for loss in losses] == pytest.approx([math.log(10)] * 2, rel=0.1)
    losses[0].backward()
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == (set() if name == "mlp" else {"whitening.weight"})
    for parameter_name, parameter in model.named_parameters():
        assert parameter_name in frozen or parameter.grad.abs().max() > 0, parameter_name


@every_network
def test_width_scales_a_network_and_nothing_else(images: torch.Tensor, name: str) -> None:
    models = [build_model(name, 10, width, images[:50]) for width in (0.05, 0.5, 1.0, 3.0)]
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert counts[0] < counts[1] and counts[2] > 1.8 * counts[1] and counts[3] > 1.8 * counts[2]
    assert models[0](images[:2]).isfinite().all()
    shapes = [[type(layer) for layer in model.modules()] for model in models]
    assert all(shape == shapes[0] for shape in shapes)


def test_the_mlp_is_that_of_the_handout_and_keeps_the_size_of_activations() -> None:
    torch.manual_seed(0)
    layers = [layer for layer in MLP().modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == 6 and layers[0].in_features == 3072 and layers[-1].out_features == 10
    activations = torch.randn(500, 3072)
    for layer in layers[:-1]:
        activations = layer(activations).relu()
        # Kaiming initialization: the mean square is 2 where half of it will be cut off by ReLU, and 1 after that.
        assert 0.7 < activations.square().mean() < 1.4


def test_a_new_group_passes_its_features_on() -> None:
    features = torch.randn(2, 8, 8, 8)  # of 4 filters and their mirror images
    first, second = (layer for layer in ConvGroup(4, 6) if isinstance(layer, nn.Conv2d))
    passed_on = first(features)
    for one, other in zip(passed_on.chunk(2, dim=1), features.chunk(2, dim=1), strict=True):
        torch.testing.assert_close(one[:, :4], other)
        assert (one[:, 4:].std(dim=(0, 2, 3)) > 0.1).all()
    torch.testing.assert_close(second(passed_on), passed_on)


def mirrored(features: torch.Tensor) -> torch.Tensor:
    """What mirrored filters find in the mirror image: their halves of the channels change places."""
    return features.flip(3).roll(features.shape[1] // 2, dims=1)


@pytest.mark.parametrize("name", ["convnet", "convnet-large"])
def test_a_layer_and_the_logits_know_mirror_images(images: torch.Tensor, name: str) -> None:
    """The logits where pooling drops no column."""
    torch.manual_seed(0)
    model = build_model(name, 10, 0.3, images)
    for parameter in model.groups.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * (parameter.ndim == 4)
    layer, features = model.groups[0][0], torch.randn(2, 16, 7, 7)
    torch.testing.assert_close(layer(mirrored(features)), mirrored(layer(features)))
    assert not torch.allclose(mirrored(layer(features)), layer(features))
    images = nn.functional.pad(images[:20], (0, 1, 0, 1), mode="reflect")  # 33 pixels: 32, 16, 8, 4 after each layer
    torch.testing.assert_close(model(images.flip(3)), model(images), rtol=0, atol=1e-4)
    assert not torch.allclose(model(images.flip(2)), model(images), rtol=0, atol=1e-2)


def test_a_group_of_the_large_network_adds_to_its_first_features(images: torch.Tensor) -> None:
    features = torch.randn(2, 16, 8, 8)
    group = build_model("convnet-large", 10, 0.1, images).groups[0]
    *_, last = (layer for layer in group.modules() if isinstance(layer, nn.BatchNorm2d))
    passed_on = group(features)
    nn.init.zeros_(last.weight)  # what the second and third convolution add
    without_them = group(features)
    torch.testing.assert_close(without_them, nn.Sequential(*list(group)[:4], nn.SiLU())(features))
    assert not torch.allclose(passed_on, without_them)


def assert_whitens(images: torch.Tensor) -> None:
    layer = build_model("convnet", 10, 1.0, images).whitening
    with torch.no_grad():
        outputs = torch.cat([layer(images), layer(images.flip(3))])  # (images, filters, 31, 31)
    outputs = outputs.transpose(0, 1).flatten(1).double()  # (filters, positions)
    positive, negative = outputs.unflatten(0, (2, 2, -1)).transpose(0, 1).flatten(1, 2)
    torch.testing.assert_close(negative, -positive)
    of_image, of_mirror_image = positive.chunk(2)
    responses = torch.cat([of_image + of_mirror_image, of_image - of_mirror_image]) / 2**0.5
    covariance = responses @ responses.T / responses.shape[1]
    correlation = covariance / covariance.diag().sqrt().outer(covariance.diag().sqrt())
    assert (correlation - torch.eye(len(covariance))).abs().max() < 0.02
    # A small constant keeps the faintest directions, which are mostly noise, below a variance of 1.
    assert covariance.diag().max() < 1.01 and covariance.diag()[0] > 0.99 and covariance.diag().median() > 0.9
    # The second half of the filters are the mirror images of the first half.
    weights = layer.weight
    torch.testing.assert_close(mirrored(weights.transpose(0, 1)).transpose(0, 1), weights)
    # A filter is as long as its directions are faint: of the symmetric ones and of those that a mirror turns into their
    # opposite, those with the most variance were taken.
    patches = unfold(images, layer.kernel_size).transpose(1, 2).reshape(-1, 3, 2, 2)
    count = len(weights) // 4
    for sign in (1, -1):
        directions = (weights + sign * weights.flip(3))[:count].flatten(1) / 2
        parts = (patches + sign * patches.flip(3)).flatten(1) / 2
        variances = torch.linalg.eigvalsh(parts.T @ parts / len(parts)).flip(0)[:count]
        torch.testing.assert_close(1 / directions.norm(dim=1), (2 * variances + 1e-3).sqrt())


def test_the_first_layer_whitens_the_training_patches(images: torch.Tensor) -> None:
    assert_whitens(images)


def test_the_first_layer_whitens_real_patches(real_cifar10: LabelledImages) -> None:
    assert_whitens(normalize(real_cifar10.training[0][:EXAMPLES]))
