"""Growth operators on the networks of the benchmark that measures them, and an independent forward pass."""

import jax
import numpy as np

from benchmarks import growth_operators as benchmark
from fusion_core.models.registry import parameter_shapes
from tests.strategies.networks import shape_tree

CASES = benchmark.cases()


def label(case):
    operator, noise, network = case
    return f"{operator}{'-noisy' if noise else ''}-{network}"


def shapes_of(config):
    return shape_tree(parameter_shapes(config))


def relu_output(params, x, activation=lambda x: np.maximum(x, 0)):
    """The MLP in NumPy: an independent forward pass, and nothing to compile."""
    *hidden, last = jax.tree.map(np.asarray, params)["layers"]
    for layer in hidden:
        x = activation(x @ layer["weight"].T + layer["bias"])
    return x @ last["weight"].T + last["bias"]
