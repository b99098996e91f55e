"""inzva Deep Learning Study Group, Homework 1: train, test and draw a network on CIFAR-10.

python main.py             train, test and draw
python main.py --dry-run   one batch of each phase, to see that everything works
python main.py --help      all options
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils.command_line import OneLineParser, folder_path, number, plain_options, run_command, uninterrupted
from utils.data import ImageData, load_dataset, make_loaders, normalize, serve_epoch, unnormalize
from utils.device import DEVICES, TRIAL_IMAGES, choose_device, choose_precision, device_name, limit_threads, place
from utils.files import output_folder
from utils.model import WHITENING_IMAGES, build_model
from utils.report import (
    describe_run,
    describe_test,
    print_epoch,
    print_files,
    print_header,
    print_test,
    save_progress,
    save_test_figures,
    show_figures,
)
from utils.training import (
    Progress,
    cut_size,
    evaluate,
    image_size,
    images_to_train_on,
    load_checkpoint,
    make_optimizer,
    one_cycle,
    save_checkpoints,
    seed_epoch,
    train_one_epoch,
)

# The critical choices. Change them here, or for one run on the command line: python main.py --epochs 12 --lr 0.3
# The architectures stand in utils/model.py.
RECIPES = {
    "convnet": {
        "width": 1.0,  # multiplies the filters of each layer, and from 2 on adds layers: time grows with its square
        "epochs": 6,  # passes over the training images, some of which later passes skip
        "batch_size": 128,  # images per step: enough for a steady gradient, and fewer would use the CPU badly
        "lr": 0.2,  # learning rate at its peak, of which filters take 0.15 (Muon, in utils/training.py)
        "weight_decay": 5e-4,  # pulls the weights towards zero, against overfitting
        "label_smoothing": 0.2,  # asks for 82 % certainty of the label, not 100 %, against overconfidence
    },
    "mlp": {
        "width": 1.0,
        "epochs": 15,
        "batch_size": 128,
        "lr": 0.05,  # without batch normalization, a larger rate diverges
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
    },
}
HERE = Path(__file__).resolve().parent
# A checkpoint can be tested, or trained further, only by a run that has the same value of each of these options.
TEST_OPTIONS = ("dataset", "model", "width")
TRAINING_OPTIONS = (*TEST_OPTIONS, *RECIPES["convnet"], "seed", "dry_run")


def main(arguments: list[str]) -> None:
    """Walk through the homework: options, data, model, training, test, figures."""
    options = parse_options(arguments)
    limit_threads()
    data = load_dataset(options.dataset, options.data_dir)
    options.dataset = data.name
    folder = options.out_dir / data.name
    with output_folder(folder):  # no second run may write there
        run(options, arguments, data, folder)
    if options.show:
        show_figures(folder)


def run(options: argparse.Namespace, arguments: list[str], data: ImageData, folder: Path) -> None:
    started = time.perf_counter()

    # 1. Data
    loaders = make_loaders(data, options.batch_size, options.batch_size if options.dry_run else None)

    # 2. Model
    torch.manual_seed(options.seed)
    examples, labels = loaders.training.dataset.images[:WHITENING_IMAGES], loaders.training.dataset.labels
    examples = normalize(examples)
    model = build_model(options.model, options.width, len(data.class_names), examples)
    device = choose_device(options.device, model, examples[:TRIAL_IMAGES], labels[:TRIAL_IMAGES])
    precision = choose_precision(options.precision, device)
    model = place(model, device)
    for loader in loaders:
        loader.dataset.to(device)
    optimizer = make_optimizer(model, options.weight_decay)
    progress = Progress(plain_options(options), torch.full((len(loaders.training.dataset),), torch.inf))
    progress = restore_progress(options, folder, progress, model, optimizer)
    run = describe_run(data, loaders, model, device, precision)
    print_header(run, arguments, folder)

    # 3. Training: an epoch shows every training image once, but may skip some of those already known
    last_epoch = 0 if options.test_only else options.epochs
    for epoch in range(len(progress.history) + 1, last_epoch + 1):
        epoch_started = time.perf_counter()
        seed_epoch(options.seed, epoch)
        images = images_to_train_on(progress.image_losses, model.skipped_share, epoch, options.epochs)
        size = image_size(model.image_sizes, epoch, options.epochs)
        loader = serve_epoch(loaders.training, images, epoch, size, cut_size(epoch, options.epochs))
        rates = one_cycle(options.lr, epoch, options.epochs, len(loader))
        train_losses, train_accuracy = train_one_epoch(
            model, loader, optimizer, rates, options.label_smoothing, precision, f"epoch {epoch}"
        )
        progress.image_losses[images] = train_losses
        validation = evaluate(model, loaders.validation, precision, f"validation after epoch {epoch}")
        scores = (train_losses.mean().item(), train_accuracy, validation.loss, validation.accuracy)
        progress.add_epoch((epoch, max(rates), *scores, time.perf_counter() - epoch_started), model)
        with uninterrupted():  # the checkpoints, numbers and curves of an epoch belong together
            save_checkpoints(folder, progress, model, optimizer)
            save_progress(folder, run, progress, time.perf_counter() - started)
        print_epoch(progress)

    # 4. Test: once, with the weights of the best epoch
    model.load_state_dict(progress.best_weights)
    test = evaluate(model, loaders.test, precision, "test")
    result = describe_test(test, data.class_names)
    print_test(result, len(test.labels), progress.best_epoch)

    # 5. Figures
    first_images, _ = next(iter(loaders.test))
    save_test_figures(folder, run, unnormalize(first_images[:10]), test, data.class_names)
    save_progress(folder, run, progress, time.perf_counter() - started, result)
    print_files(folder)


def restore_progress(
    options: argparse.Namespace, folder: Path, new: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Return what an earlier run has done, if the options ask for it, with its weights in the model, or else `new`."""
    if options.resume:
        return load_checkpoint(folder / "last.pt", new, TRAINING_OPTIONS, model, optimizer)
    if options.test_only:
        return load_checkpoint(folder / "best.pt", new, TEST_OPTIONS, model)
    return new


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; what it leaves open is in the recipe of the model."""
    parser = OneLineParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", choices=["auto", "cifar10", "synthetic"], default="auto", help="auto: drawn images if need be")
    add("--data-dir", type=folder_path, default=HERE / "data", help="where CIFAR-10 is, or will be downloaded to")
    add("--out-dir", type=folder_path, default=HERE / "outputs", help="for figures, metrics.json and checkpoints")
    add("--model", choices=list(RECIPES), default="convnet", help="the networks are in utils/model.py")
    add_recipe_option(parser, "--width", number(float, 0.05, 8), "factor on the filters or hidden units")
    add_recipe_option(parser, "--epochs", number(int, 1, 10_000), "passes over the training images")
    add_recipe_option(parser, "--batch-size", number(int, 1, 50_000), "images per step")
    add_recipe_option(parser, "--lr", number(float, 1e-9, 1e6), "learning rate at its peak")
    add_recipe_option(parser, "--weight-decay", number(float, 0, 1), "pull of the weights towards zero")
    add_recipe_option(parser, "--label-smoothing", number(float, 0, 0.99), "share of the label spread over all classes")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of first weights, order and augmentation")
    add("--device", type=device_name, choices=["auto", *DEVICES], default="auto", help="auto: a GPU if there is one")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: the faster one here")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--resume", action="store_true", help="go on after the last finished epoch")
    add("--test-only", action="store_true", help="do not train, test the weights of the best epoch")
    add = parser.add_argument
    add("--dry-run", action="store_true", help="one batch of each phase, to see that everything works")
    add("--show", action="store_true", help="open the figures at the end, where there is a display")
    given = parser.parse_args(arguments)
    options = argparse.Namespace(**{**RECIPES[given.model], **vars(given)})
    if options.dry_run:
        options.epochs = 1
    return options


def add_recipe_option(parser: OneLineParser, option: str, convert: Callable[[str], float], meaning: str) -> None:
    """Add an option whose default depends on the model."""
    name = option.removeprefix("--").replace("-", "_")
    values = ", ".join(f"{recipe[name]} for {model}" for model, recipe in RECIPES.items())
    parser.add_argument(option, type=convert, default=argparse.SUPPRESS, help=f"{meaning} (default: {values})")


if __name__ == "__main__":
    when_stopped = "finished epochs are kept; go on after them with the same options and --resume"
    sys.exit(run_command(main, sys.argv[1:], when_stopped))
