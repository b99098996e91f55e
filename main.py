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

from utils.checkpoint import Progress, load_results, resume_training, save_checkpoints
from utils.command_line import OneLineParser, folder_path, number, run_command, uninterrupted
from utils.data import ImageDataset, batches, load_dataset, split_dataset, training_batches
from utils.device import DEVICES, device_name, place, set_up_device
from utils.files import output_folder
from utils.model import build_model
from utils.optimizer import make_optimizer
from utils.report import Run, describe_run, print_epoch, print_files, print_header, print_test, save_metrics
from utils.schedule import Schedule
from utils.training import Evaluation, evaluate, train_one_epoch
from utils.visualize import plot_confusion, plot_curves, plot_mistakes, plot_predictions

# The critical choices. Change them here, or for one run on the command line: python main.py --epochs 12 --lr 0.3
# The networks are in utils/model.py.
RECIPES = {
    "convnet": {
        "width": 1.0,  # factor on the number of filters
        "epochs": 7,  # passes over the training images
        "batch_size": 128,  # images per step: more give a steadier gradient, fewer give more steps
        "lr": 0.2,  # learning rate at its peak
        "weight_decay": 5e-4,  # pull of the weights towards zero, against overfitting
        "label_smoothing": 0.1,  # share of the label spread over all classes, against overconfidence
    },
    "convnet-large": {
        "width": 1.0,
        "epochs": 10,
        "batch_size": 128,
        "lr": 0.2,
        "weight_decay": 5e-4,
        "label_smoothing": 0.2,
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
EXAMPLES = 1000  # training images that the network may look at before the first step


def main(arguments: list[str]) -> None:
    """Do the homework: load the images, build a network, train it, test it, draw the figures."""
    started = time.perf_counter()
    options = parse_options(arguments)
    # 1. Data
    data = load_dataset(options.dataset, options.data_dir)
    images = split_dataset(data, options.batch_size, one_batch=options.dry_run)
    with output_folder(options.out_dir / ("dry-run" if options.dry_run else data.name)) as folder:
        # 2. Model
        examples, labels = next(iter(batches(images.training, EXAMPLES)))
        torch.manual_seed(options.seed)
        model = build_model(options.model, len(data.class_names), options.width, examples)
        device, precision = set_up_device(options.device, options.precision, model, examples, labels)
        model, images = place(model, device), images.to(device)
        optimizer = make_optimizer(model, options.weight_decay)
        schedule = Schedule.for_model(model, options.epochs, options.batch_size, options.lr, options.seed)
        progress = Progress(settings_of(options, data.name), len(images.training), started)
        if options.resume:
            resume_training(folder / "last.pt", progress, model, optimizer)
        elif options.test_only:
            load_results(folder / "last.pt", progress, model)
        epochs = [] if options.test_only else range(len(progress.history) + 1, options.epochs + 1)
        run = describe_run(folder, data, images, model, device, precision)
        print_header(run, progress, epochs)

        # 3. Training
        for epoch in epochs:
            plan = schedule.plan(epoch, progress.image_losses)  # which images, how large, at which learning rates
            losses = train_one_epoch(
                model, training_batches(images.training, plan), optimizer, plan, options.label_smoothing, precision
            )
            training = evaluate(model, batches(images.training_sample), precision)
            validation = evaluate(model, batches(images.validation), precision)
            progress.add_epoch(plan, losses, training, validation, model)
            with uninterrupted():  # the files of an epoch belong together
                save_checkpoints(folder, progress, model, optimizer)
                save_metrics(run, progress)
                plot_curves(progress.history, progress.best_epoch, run.title, folder / "curves.png")
            print_epoch(progress)

        # 4. Test: once, with the weights of the best epoch
        model.load_state_dict(progress.best_weights)
        test = evaluate(model, batches(images.test), precision, getattr(model, "test_views", 1))
        print_test(run, test, progress.best_epoch)

        # 5. Figures
        draw_figures(run, progress, images.test, test)
        save_metrics(run, progress, test)
        print_files(run, options.show)


def draw_figures(run: Run, progress: Progress, images: ImageDataset, test: Evaluation) -> None:
    """Draw the curves, ten predictions, the ten most confident mistakes and the confusion matrix."""
    plot_curves(progress.history, progress.best_epoch, run.title, run.folder / "curves.png")
    title = f"{run.title}: {100 * test.accuracy:.1f} % of {len(test.labels):,} test images right"
    answers = (images.images.cpu().numpy(), test.probabilities.numpy(), test.labels.numpy(), run.class_names)
    plot_predictions(*answers, title, run.folder / "predictions.png")
    plot_mistakes(*answers, f"{title}\nThe most confident mistakes", run.folder / "mistakes.png")
    plot_confusion(test.confusion_matrix.numpy(), run.class_names, title, run.folder / "confusion.png")


def settings_of(options: argparse.Namespace, dataset: str) -> dict[str, str | float]:
    """Return the options that decide the result, as they are saved, compared and printed."""
    names = ("model", *RECIPES[options.model], "seed", "dry_run")
    return {"dataset": dataset} | {name: getattr(options, name) for name in names}


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; what it leaves open is in the recipe of the model."""
    parser = OneLineParser(__doc__.splitlines()[0])
    recipe = parser.add_argument_group("recipe")
    add = parser.add_argument
    add("--dataset", choices=["auto", "cifar10", "synthetic"], default="auto", help="auto: drawn images if need be")
    add("--data-dir", type=folder_path, default=HERE / "data", help="where CIFAR-10 is, or will be downloaded to")
    add("--out-dir", type=folder_path, default=HERE / "outputs", help="for figures, metrics.json and checkpoints")
    add("--model", choices=list(RECIPES), default="convnet", help="the networks are in utils/model.py")
    add_recipe_option(recipe, "--width", number(float, 0.05, 8), "factor on the filters or hidden units")
    add_recipe_option(recipe, "--epochs", number(int, 1, 10_000), "passes over the training images")
    add_recipe_option(recipe, "--batch-size", number(int, 1, 50_000), "images per step")
    add_recipe_option(recipe, "--lr", number(float, 1e-9, 1e6), "learning rate at its peak")
    add_recipe_option(recipe, "--weight-decay", number(float, 0, 1), "pull of the weights towards zero")
    add_recipe_option(recipe, "--label-smoothing", number(float, 0, 0.99), "share of the label spread over all classes")
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
    one_epoch = {"epochs": 1} if given.dry_run else {}
    return argparse.Namespace(**{**RECIPES[given.model], **vars(given), **one_epoch})


def add_recipe_option(
    group: argparse._ArgumentGroup, option: str, convert: Callable[[str], float], meaning: str
) -> None:
    """Add an option whose default depends on the model."""
    name = option.removeprefix("--").replace("-", "_")
    values = ", ".join(f"{recipe[name]} for {model}" for model, recipe in RECIPES.items())
    group.add_argument(option, type=convert, default=argparse.SUPPRESS, help=f"{meaning} (default: {values})")


if __name__ == "__main__":
    when_stopped = "finished epochs are kept; go on after them with the same options and --resume"
    sys.exit(run_command(main, sys.argv[1:], when_stopped))
