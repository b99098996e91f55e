"""The table of the drawings of answers.md."""

from collections.abc import Callable
from functools import partial

from utils.answers import functions, ideas, networks

from matplotlib.figure import Figure

LAYERS = ["input", "hidden 1", "hidden 2", "output"]
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "fields": ideas.draw_fields,
    "bends": ideas.draw_bends,
    "network-numbers": partial(networks.draw_numbers_network, **networks.EXAMPLE, bent="ReLU"),
    "computational-graph": networks.draw_computational_graph,
    "activations": functions.draw_activations,
    "network-4-6-4-3": partial(networks.draw_network, [4, 6, 4, 3], LAYERS, "The network of question 5: 4-6-4-3"),
    "fits": functions.draw_fits,
    "descent": functions.draw_descent,
    "dropout": networks.draw_dropout,
    "loops-and-searches": ideas.draw_loops_and_searches,
    "three-paths": functions.draw_three_paths,
    "ravine": functions.draw_ravine,
    "residuals": functions.draw_residuals,
    "network-two-hidden": partial(networks.draw_network, [3, 4, 4, 1], LAYERS, "Two hidden layers: 3-4-4-1"),
    "network-3-4-1": partial(networks.draw_network, [3, 4, 1], [*LAYERS[:2], LAYERS[3]], "One hidden layer: 3-4-1"),
    "sigmoid-numbers": partial(networks.draw_numbers_network, **networks.SIGMOID_EXAMPLE, bent="sigmoid"),
}
