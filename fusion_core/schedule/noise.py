r"""How much noise between the copies of one network: as much as training's own step takes.

Antisymmetric noise of size σ keeps the function, and the more of it the sooner copies are different networks. But it changes
what a step does. An array that reads k copies gets ``√(1 + kσ²)`` times the norm, and Adafactor's step is in units of that;
and a matrix ``[[W + N₁, −N₁], [−N₂, W + N₂]]`` multiplies a difference of its copies, ``(x, −x)``, by about ``√(1 + 4σ²)``,
again in every layer, so that the curvature along antisymmetric directions grows faster than any power of σ: on two T5s of width
64 (docs/theory.md, section 8) it was 2 to 5 times that without noise at σ = 0.5, 60 to 700 times at 1. The noise is too
large once a step of the present length no longer lowers the loss as it does without.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fusion_core.checkpoints.checkpoint import open_checkpoint
from fusion_core.checkpoints.comparison import text_batch
from fusion_core.checkpoints.pretrained import load_pretrained
from fusion_core.growth import fuse, fusion_map
from fusion_core.growth.noise import SELF_FUSION_NOISE
from fusion_core.models.registry import architecture
from fusion_core.schedule.greedy import MeanLoss
from fusion_core.schedule.separation import mean_over
from fusion_core.train.optimizer import adafactor
from fusion_core.train.step import Batch, TrainState, displacement, init_state

Params = Any

NOISES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
ENOUGH = 0.9  # share of the decrease without noise
BATCHES = 2
FIRST_RATE, ROWS = 0.01, 16  # Adafactor's rate of a checkpoint's first step; windows of its text, of at most 64 tokens


def choice_flops(step_flops: float, *, batches: int = BATCHES) -> float:
    """Return the FLOPs of ``choose_noise``: for every size and for none a gradient and a loss of each batch.

    Args:
      step_flops: FLOPs of a training step of the grown network on one batch, which are those of a gradient.
      batches: their number.
    """
    return batches * (len(NOISES) + 1) * (4 / 3) * step_flops


@dataclasses.dataclass(frozen=True)
class NoiseChoice:
    """A size of noise, and what decided.

    Attributes:
      noise: the largest of ``NOISES`` up to which every size keeps ``ENOUGH`` of the decrease, the smallest if none does;
        ``SELF_FUSION_NOISE`` if a step lowers no loss without noise either.
      decreases: of the loss by one step, for every size.
      without: the decrease without noise.
    """

    noise: float
    decreases: dict[float, float]
    without: float

    @property
    def reason(self) -> str:
        """One sentence with the numbers."""
        if not self.without > 0:
            raised = f"a step raises the loss by {-self.without:.3g} without noise"
            return f"noise {self.noise:g} between the copies, the default: {raised}"
        above = next((size for size in NOISES if size > self.noise), None)
        more = f", {self.decreases[above]:.3g} from {above:g}" if above is not None else ""
        return (
            f"noise {self.noise:g} between the copies: a step from there lowers the loss by {self.decreases[self.noise]:.3g}"
            f"{more}, and by {self.without:.3g} without noise"
        )


def choose_noise(
    loss: MeanLoss,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    noisy: Callable[[float], Params],
    batches: Sequence[Batch],
    scale: Any = 1.0,
) -> NoiseChoice:
    """Return the largest noise from which a training step lowers the loss of its batches about as much as without noise.

    Args:
      loss: of the grown network.
      optimizer: of its steps.
      state: after the growth, without noise: its parameters, moments and learning rates.
      noisy: returns the grown parameters with noise of a size.
      batches: equal in shape; one step on all of them.
      scale: the schedule's factor.
    """
    total = mean_over(loss, batches)

    @jax.jit
    def decrease(params: Params) -> jax.Array:
        before, grads = jax.value_and_grad(total)(params)
        move, _ = displacement(optimizer, grads, state._replace(params=params), scale)
        return before - total(optax.apply_updates(params, move))

    without = float(decrease(state.params))
    decreases = {size: float(decrease(noisy(size))) for size in NOISES}
    chosen = NOISES[0] if without > 0 else SELF_FUSION_NOISE
    for size in NOISES if without > 0 else ():
        if not decreases[size] >= ENOUGH * without:
            break
        chosen = size
    return NoiseChoice(chosen, decreases, without)


def choose_noise_on_text(
    folder: pathlib.Path, texts: Sequence[str], *, copies: int = 2, rate: float = FIRST_RATE, seed: int = 0
) -> NoiseChoice:
    """Return the noise for a checkpoint that is to be fused with itself, on windows of text.

    A checkpoint has no optimizer state: the step is the first one of Adafactor, from a fresh state. The network is loaded
    whole, and so are its copies.

    Args:
      folder: of the checkpoint, with its tokenizer.
      texts: documents.
      copies: number of copies.
      rate: Adafactor's learning rate.
      seed: of the windows, and of the noise.

    Raises:
      InputError: the folder is no checkpoint, its tokenizer is missing or not its own, or there is too little text.
    """
    batch = jax.tree.map(jnp.asarray, text_batch([open_checkpoint(folder)], texts, ROWS, seed))
    params, config = load_pretrained(folder)
    mapping, logits = fusion_map([config] * copies), architecture(config).logits
    assert logits is not None

    def loss(params: Params, batch: Batch) -> jax.Array:
        wide = logits(params, mapping.config, batch).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(wide, batch["targets"]))

    optimizer = adafactor()
    state = init_state(mapping.grown((params,) * copies), optimizer, rate)
    pairs = [(params, config)] * copies
    noisy = lambda size: fuse(pairs, off_diagonal="antisymmetric", noise=size, seed=seed)[0]
    return choose_noise(loss, optimizer, state, noisy, [batch])
