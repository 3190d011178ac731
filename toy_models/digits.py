"""A small real data set: 1,797 handwritten digits of 8 × 8 pixels (scikit-learn's, of the extra ``data``)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int


class Labelled(NamedTuple):
    """Images with their classes."""

    inputs: Float[Array, "samples pixels"]
    labels: Int[Array, " samples"]


class DigitsTask(NamedTuple):
    """Training and validation samples, disjoint."""

    train: Labelled
    validation: Labelled


def digits_task(*, train: int, seed: int, dtype: DTypeLike = jnp.float32) -> DigitsTask:
    """Return the digits, shuffled and split. The images come with scikit-learn; nothing is downloaded.

    Args:
      train: number of training samples, below 1,797; the others are for validation.
      seed: seed of the shuffle.
      dtype: dtype of the images, whose pixels are shifted and scaled to mean 0 and variance 1 over the training samples.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: train leaves no sample on one of the sides.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            f"the digits come with scikit-learn, which cannot be imported ({error}): pip install 'deepfusion[data]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    if not 0 < train < len(labels):
        raise ValueError(f"train is {train}, but there are {len(labels)} digits, and validation needs some: try 1200")
    order = np.random.default_rng(seed).permutation(len(labels))
    first, rest = order[:train], order[train:]
    images = (images - images[first].mean()) / images[first].std()
    take = lambda where: Labelled(jnp.asarray(images[where], dtype), jnp.asarray(labels[where], jnp.int32))
    return DigitsTask(take(first), take(rest))
