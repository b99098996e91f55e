"""inzva Deep Learning Study Group, Homework 1: train, test and draw a network on CIFAR-10.

python main.py             train, test and draw
python main.py --dry-run   one batch of each phase, to see that everything works
python main.py --help      all options
"""

import sys
import time
from functools import partial
from pathlib import Path

from utils.checkpoint import Progress, restore, run_folder, save_checkpoints
from utils.data import ImageDataset, batches, load_dataset, split_dataset, training_batches
from utils.device import autocast, choose_device, limit_threads, to_device
from utils.evaluation import Evaluation, check_finite, evaluate
from utils.files import progress_bar, run_command
from utils.model import build_model, check_crops
from utils.optimizer import make_optimizer, set_learning_rate
from utils.recipe import Recipe, parse_options
from utils.report import Run, describe_run, print_epoch, print_files, print_header, print_test, save_metrics
from utils.schedule import EpochPlan, plan_epoch
from utils.visualize import plot_confusion, plot_curves, plot_predictions

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

# The critical choices; the first recipe is the default. Change them here, or for one run on the command line:
# python main.py --epochs 12 --lr 0.3. What a recipe leaves out is in utils/recipe.py, the networks in utils/model.py.
RECIPES = [
    Recipe(
        model="convnet",
        epochs=8,  # passes over the training images
        batch_size=128,  # images per step: more give a steadier gradient, fewer give more steps
        optimizer="sgd",  # stochastic gradient descent, with Nesterov momentum
        lr=0.5,  # learning rate at its peak
        momentum=0.9,  # how much of its direction a step keeps from the steps before
        weight_decay=5e-4,  # pull of the weights towards zero, against overfitting
        label_smoothing=0.1,  # share of the label spread over all classes, against overconfidence
        warm_up=0.2,  # share of the run in which the learning rate rises
        # 18 is the smallest size for which the last feature maps are 2 x 2 (17, 8, 4, 2), 26 the smallest for which
        # they are 3 x 3, as they are for 32 (31, 15, 7, 3).
        crop_sizes=(18, 26, 32),  # pixels: small parts of the images are fast to learn from
        skipped_share=0.9,  # of the well-known images: the others teach more in the same time
        test_views=3,  # of each test image: as it is, moved and mirrored, moved; their logits are averaged
    ),
    Recipe(
        model="convnet-large",
        epochs=10,
        optimizer="muon",  # SGD with steps that go equally far in all directions
        lr=0.2,
        label_smoothing=0.2,
        crop_sizes=(18, 26, 32),
        skipped_share=0.9,
        cut_size=8,  # pixels: squares that are cut out make it harder to learn the images by heart
        test_views=6,
    ),
    Recipe(
        model="mlp",
        epochs=15,
        lr=0.05,  # without batch normalization, a larger rate diverges
        label_smoothing=0.1,
    ),
]
HERE = Path(__file__).resolve().parent
EXAMPLES = 1000  # training images that the network may look at before the first step


def main(arguments: list[str]) -> None:
    """Do the homework: load the images, build a network, train it, test it, draw the figures."""
    started = time.perf_counter()
    options, recipe = parse_options(arguments, __doc__.splitlines()[0], RECIPES, HERE)
    limit_threads(options.threads)
    # 1. Data
    data = load_dataset(options.dataset, options.data_dir)
    images = split_dataset(data, recipe.batch_size, one_batch=options.dry_run)
    with run_folder(options, recipe, data.name) as folder:
        # 2. Model
        examples, labels = next(iter(batches(images.training, EXAMPLES)))
        torch.manual_seed(recipe.seed)
        model = build_model(recipe.model, len(data.class_names), recipe.width, examples)
        check_crops(model, examples, recipe.crop_sizes, len(data.class_names))
        crops = examples[:, :, : recipe.crop_sizes[0], : recipe.crop_sizes[0]]
        device, precision = choose_device(
            options.device, options.precision, model, partial(make_optimizer, recipe), crops, labels
        )
        model, images = to_device(model, device), images.to(device)
        optimizer = make_optimizer(recipe, model, precision)
        progress = Progress(recipe, data.name, len(images.training), started)
        if options.resume or options.test_only:
            restore(folder, progress, model, optimizer if options.resume else None)
        epochs = [] if options.test_only else range(len(progress.history) + 1, recipe.epochs + 1)
        run = describe_run(folder, data, images, model, precision, progress.recipe)
        print_header(run, progress, RECIPES, epochs)

        # 3. Training
        for epoch in epochs:
            plan = plan_epoch(recipe, epoch, progress.image_losses)  # which images, how large, at which learning rates
            losses = train_one_epoch(
                model, training_batches(images.training, plan), optimizer, plan, recipe.label_smoothing, precision
            )
            training = evaluate(model, batches(images.training_sample), precision)
            validation = evaluate(model, batches(images.validation), precision)
            progress.add_epoch(plan, losses, training, validation, model)
            save_checkpoints(folder, progress, model, optimizer)
            save_metrics(run, progress)
            plot_curves(progress.history, progress.best_epoch, run.title, folder / "curves.png")
            print_epoch(progress)

        # 4. Test: once, with the weights of the best epoch
        model.load_state_dict(progress.best_weights)
        test = evaluate(model, batches(images.test), precision, recipe.test_views)
        print_test(run, test, progress.best_epoch)

        # 5. Figures
        draw_figures(run, progress, images.test, test)
        save_metrics(run, progress, test)
        print_files(run, options.show)


def train_one_epoch(
    model: nn.Module,
    batches: DataLoader,
    optimizer: torch.optim.Optimizer,
    plan: EpochPlan,
    label_smoothing: float = 0.0,
    precision: str = "float32",
) -> torch.Tensor:
    """Train on each batch once, and return the loss of each image (N,), without label smoothing, in their order.

    Raises RunError if the loss becomes NaN or infinite.
    """
    model.train()
    losses = []  # kept on the device: a copy from it has to wait for all that it is computing
    for step, (images, labels) in enumerate(progress_bar(batches, desc=f"epoch {plan.epoch}")):
        set_learning_rate(optimizer, plan.learning_rates[step])
        with autocast(images.device, precision):
            logits = model(images)
        logits = logits.float()  # the loss would be too coarse in bfloat16
        loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(cross_entropy(logits.detach(), labels, reduction="none"))
        check_finite(losses[-1].mean().item(), f"in step {step + 1} of epoch {plan.epoch}: try a lower --lr")
    return torch.cat(losses).cpu()


def draw_figures(run: Run, progress: Progress, images: ImageDataset, test: Evaluation) -> None:
    """Draw the curves, ten predictions, the ten most confident mistakes and the confusion matrix."""
    plot_curves(progress.history, progress.best_epoch, run.title, run.folder / "curves.png")
    title = f"{run.title}: {100 * test.accuracy:.1f} % of {len(test.labels):,} test images right"
    first, worst = torch.arange(min(10, len(images))), test.worst_mistakes(10)
    for name, title_of, chosen in (
        ("predictions.png", title, first),
        ("mistakes.png", f"{title}\nThe most confident mistakes", worst),
    ):
        pixels, probabilities, labels = images.pixels.cpu()[chosen], test.probabilities[chosen], test.labels[chosen]
        plot_predictions(
            pixels.numpy(), probabilities.numpy(), labels.numpy(), run.class_names, title_of, run.folder / name
        )
    plot_confusion(test.confusion_matrix.numpy(), run.class_names, title, run.folder / "confusion.png")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
