"""The teacher task: learn a random network from its answers."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from toy_models import mlp


class Samples(NamedTuple):
    """Inputs with their targets."""

    inputs: Float[Array, "samples in"]
    targets: Float[Array, "samples out"]


class TeacherTask(NamedTuple):
    """A task with its training and its validation samples, and the teacher that answered."""

    train: Samples
    validation: Samples
    teacher: mlp.Params


def teacher_task(
    sizes: Sequence[int],
    *,
    seed: int,
    train: int,
    validation: int,
    exponent: float = 0.0,
    noise: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> TeacherTask:
    r"""Return Gaussian inputs, answered by a random tanh network whose features have power-law weights.

    .. math:: y = \sum_i i^{-p}\, a_i\, \phi_i(x) + \sigma \varepsilon, \qquad x, \varepsilon \sim N(0, 1)

    with the last hidden features φ_i. The targets are scaled and shifted to mean 0 and variance 1 over the training
    samples (noise on top of that), so that losses of different tasks compare: answering 0 costs 1.

    Args:
      sizes: the teacher's widths (in, hidden, ..., out).
      seed: seed of the teacher, the inputs and the noise.
      train, validation: numbers of samples, drawn independently; at least 2 and 1.
      exponent: p ≥ 0; with 0 all features count alike, with 1 a student finds the task ever harder.
      noise: σ ≥ 0, in units of the targets' standard deviation; on both sets.
      dtype: dtype of all arrays; float64 needs ``jax.enable_x64``.

    Raises:
      ValueError: too few samples, or a negative exponent or noise.
    """
    if train < 2 or validation < 1:
        raise ValueError(f"train is {train} and validation is {validation}: a task needs at least 2 and 1 samples")
    if exponent < 0 or noise < 0:
        raise ValueError(f"exponent is {exponent} and noise is {noise}, but both have to be 0 or more")
    teacher = mlp.init(sizes, seed=seed, dtype=dtype)
    last = teacher["layers"][-1]
    last["weight"] = last["weight"] * jnp.arange(1, last["weight"].shape[1] + 1, dtype=dtype) ** -exponent
    key_inputs, key_noise = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    inputs = jax.random.normal(key_inputs, (train + validation, sizes[0]), jnp.float32).astype(dtype)
    answers = mlp.forward(teacher, inputs)
    mean, deviation = answers[:train].mean(axis=0), answers[:train].std(axis=0)
    last["weight"], last["bias"] = last["weight"] / deviation[:, None], (last["bias"] - mean) / deviation
    targets = (answers - mean) / deviation
    targets = targets + noise * jax.random.normal(key_noise, targets.shape, jnp.float32).astype(dtype)
    return TeacherTask(Samples(inputs[:train], targets[:train]), Samples(inputs[train:], targets[train:]), teacher)
