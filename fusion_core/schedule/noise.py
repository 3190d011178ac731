r"""How much noise between the copies of one network: as much as training's own step takes.

Antisymmetric noise of size σ keeps the function, and the more of it the sooner copies are different networks. But it changes
what a step does. An array that reads k copies gets ``√(1 + kσ²)`` times the norm, and Adafactor's step is in units of that;
and a matrix ``[[W + N₁, −N₁], [−N₂, W + N₂]]`` multiplies a difference of its copies, ``(x, −x)``, by about ``√(1 + 4σ²)``,
again in every layer, so that the curvature along antisymmetric directions grows faster than any power of σ. On a T5 of width 64
it was 5 times that without noise at σ = 0.5, 20 times at 0.7, 300 to 500 times at 1, a million times at 2. The noise is too
large once a step of the present length no longer lowers the loss as it does without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from fusion_core.schedule.greedy import MeanLoss
from fusion_core.schedule.separation import mean_over
from fusion_core.train.step import Batch, TrainState, displacement

Params = Any

NOISES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
ENOUGH = 0.9  # share of the decrease without noise
BATCHES = 2


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
      noise: the largest of ``NOISES`` up to which every size keeps ``ENOUGH`` of the decrease; the smallest if none does.
      decreases: of the loss by one step, for every size.
      without: the decrease without noise.
    """

    noise: float
    decreases: dict[float, float]
    without: float

    @property
    def reason(self) -> str:
        """One sentence with the numbers."""
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
    chosen = NOISES[0]
    for size in NOISES:
        if not decreases[size] >= ENOUGH * without:
            break
        chosen = size
    return NoiseChoice(chosen, decreases, without)
