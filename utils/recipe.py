"""Recipe: every choice that decides a result, with its meaning and bounds; and the options, which are made from it."""

import argparse
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import NoReturn

from utils.files import InputError, say

Value = str | float | tuple[float, ...]


def between(default: Value, low: float, high: float, meaning: str) -> Field:
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


def one_of(default: str, words: tuple[str, ...], meaning: str) -> Field:
    return field(default=default, metadata={"words": words, "meaning": meaning})


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides the result of a run; as it stands here, without any trick.

    Raises InputError if a value is out of its bounds.
    """

    model: str = one_of("convnet", (), "network, one of utils/model.py")
    width: float = between(1.0, 0.05, 8, "factor on the filters or hidden units")
    epochs: int = between(10, 1, 10_000, "passes over the training images")
    batch_size: int = between(128, 1, 50_000, "images per step")
    optimizer: str = one_of("sgd", ("sgd", "muon", "adam"), "rates that work: sgd 0.5, muon 0.2, adam 0.005")
    lr: float = between(0.1, 1e-9, 1e6, "learning rate at its peak")
    momentum: float = between(0.9, 0, 0.999, "share of the last step's direction that is kept")
    weight_decay: float = between(5e-4, 0, 1, "pull of the weights towards zero")
    label_smoothing: float = between(0.0, 0, 0.99, "share of the label spread over all classes")
    warm_up: float = between(0.2, 0, 0.9, "share of the run in which the learning rate rises")
    parts: tuple[float, float] = between((0.2, 0.65), 0, 1, "shares of the run at which its 2nd and 3rd part begin")
    crop_sizes: tuple[int, int, int] = between((32, 32, 32), 1, 32, "pixels shown of each side, in the three parts")
    padding: int = between(2, 0, 16, "pixels by which a whole image may be moved")
    skipped_share: float = between(0.0, 0, 1, "from the second part on, how much of the better known half is skipped")
    cut_size: int = between(0, 0, 32, "pixels of the square that is cut out, from the second part on")
    test_views: int = between(1, 1, 6, "views of each test image, over which the logits are averaged")
    seed: int = between(0, 0, 2**32 - 1, "of first weights, order and augmentation")

    def __post_init__(self) -> None:
        for choice in fields(self):
            check_bounds(choice, getattr(self, choice.name))

    def options(self, other: "Recipe") -> list[str]:
        """Return the options that make `other` this recipe, for instance ["--lr 0.3"]."""
        pairs = ((choice.name, getattr(self, choice.name), getattr(other, choice.name)) for choice in fields(self))
        return [f"{option_name(name)} {as_text(value)}" for name, value, others in pairs if value != others]


def check_bounds(choice: Field, value: Value) -> None:
    words = choice.metadata.get("words")
    if words is None:
        low, high = choice.metadata["low"], choice.metadata["high"]
        values = value if isinstance(choice.default, tuple) else (value,)
        if not all(low <= each <= high for each in values):
            raise InputError(f"{option_name(choice.name)}: {as_text(value)} is not from {low:,} to {high:,}")
    elif words and value not in words:
        raise InputError(f"{option_name(choice.name)}: {value} is none of {', '.join(words)}")


def option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def as_text(value: Value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line, without the usage text, and takes no abbreviated options."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def print_help(self, file: object = None) -> None:
        say(self.format_help())


def folder_path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder")
    try:
        return Path(text).expanduser().absolute()  # --data-dir=~/x: a shell expands only a ~ that begins a word
    except RuntimeError:  # no such user
        return Path(text).absolute()


def parse_options(
    arguments: list[str], description: str, recipes: Sequence[Recipe], home: Path
) -> tuple[argparse.Namespace, Recipe]:
    """Read the command line. Returns the options, and the chosen recipe with what the options change in it.

    Raises InputError for a wrong option.
    """
    by_name = {recipe.model: recipe for recipe in recipes}
    if len(by_name) < len(recipes):
        raise InputError(f"RECIPES in main.py: two recipes name one model, of {', '.join(by_name)}")
    parser = OneLineParser(description)
    add_recipe_options(parser, by_name)
    add = parser.add_argument
    add("--dataset", choices=["auto", "cifar10", "synthetic"], default="auto", help="auto: synthetic ones if need be")
    add("--data-dir", type=folder_path, default=home / "data", help="where CIFAR-10 is or will be (%(default)s)")
    add("--out-dir", type=folder_path, default=home / "outputs", help="each run makes a folder in it (%(default)s)")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="auto: a GPU if there is one")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: the faster one here")
    add("--threads", type=int, help="default: as many as allowed; fewer are faster while other programs compute")
    add("--show", action="store_true", help="open the figures at the end, where there is a display")
    add = parser.add_mutually_exclusive_group().add_argument
    newest = {"nargs": "?", "metavar": "FOLDER", "type": folder_path, "const": True}
    add("--resume", **newest, help="go on after the last finished epoch of FOLDER, or of the newest run of this recipe")
    add("--test-only", **newest, help="do not train, test the best weights of FOLDER, or of the newest such run")
    add("--dry-run", action="store_true", help="one batch of each phase, to see that everything works")
    options = parser.parse_args(arguments)
    if options.threads is not None and options.threads < 1:
        raise InputError(f"--threads: {options.threads} is not a number of threads")
    names = {choice.name for choice in fields(Recipe)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(options).items()}
    recipe = replace(by_name[options.model], **{name: value for name, value in given.items() if name in names})
    return options, replace(recipe, epochs=1) if options.dry_run else recipe


def add_recipe_options(parser: argparse.ArgumentParser, recipes: dict[str, Recipe]) -> None:
    """Add an option for each field; what is not given stays as it is in the recipe that --model names."""
    group = parser.add_argument_group("recipe")
    for choice in fields(Recipe):
        help_text = choice.metadata["meaning"]
        if choice.name == "model":
            group.add_argument("--model", choices=list(recipes), default=next(iter(recipes)), help=help_text)
            continue
        values = {name: as_text(getattr(recipe, choice.name)) for name, recipe in recipes.items()}
        is_the_same = len(set(values.values())) == 1
        default = ", ".join(f"{value} for {name}" for name, value in values.items())
        is_tuple = isinstance(choice.default, tuple)
        group.add_argument(
            option_name(choice.name),
            type=type(choice.default[0] if is_tuple else choice.default),
            nargs=len(choice.default) if is_tuple else None,
            choices=choice.metadata.get("words"),
            default=argparse.SUPPRESS,
            help=f"{help_text} (default: {next(iter(values.values())) if is_the_same else default})",
        )
