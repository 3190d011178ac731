"""The data-parallel step: gradients of microbatches, sums over devices, the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from fusion_core.train.devices import AXIS, Batch, data_parallel, summed

Params = Any
# (params, batch, key) -> (what is minimized, summed over tokens; the sums "tokens", "nll" (nats), "correct").
# The key is for dropout; None: no dropout, as in an evaluation.
Loss = Callable[[Params, Batch, Array | None], tuple[Array, dict[str, Array]]]


class Ramp(NamedTuple):
    r"""Learning rates that go linearly to the state's within a number of steps after a growth; ``rates_at`` has the equation.

    Attributes:
      first: factors f on the state's rates at the growth, one for each array (a scalar, or an array of its shape): 0 warms
        up anew.
      start: int32, the step of the growth.
      steps: int32, the number of steps.
    """

    first: Params
    start: Array
    steps: Array


class TrainState(NamedTuple):
    """The training state. Every leaf is an array.

    Attributes:
      params: of the network.
      opt_state: the optimizer's moments; they hold no learning rate.
      step: int32, the number of steps taken.
      rates: learning rates, one for each array of ``params`` (a scalar, or an array of its shape). They change at growth.
      ramp: how the rates used go to ``rates`` after a growth; ``()`` if they are ``rates``.
    """

    params: Params
    opt_state: optax.OptState
    step: Array
    rates: Params
    ramp: Ramp | tuple[()] = ()


def init_state(params: Params, optimizer: optax.GradientTransformation, rate: float) -> TrainState:
    """Return the state before the first step, with the learning rate ``rate`` for all arrays."""
    rates = jax.tree.map(lambda _: jnp.asarray(rate, jnp.float32), params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), rates)


def rates_at(state: TrainState, *, means: bool = False) -> Params:
    r"""Return the learning rates of the state's next step, without the schedule's factor.

    .. math:: r \left(1 - (1 - f) \max\left(0, 1 - \frac{n - n_0 + 1}{N}\right)\right)

    with the state's rates r and step n, and the ramp's factors f, start n₀ and steps N: ``r (f + (1 − f) / N)`` in the first
    step, exactly r from the N-th on.

    Args:
      state: with or without a ramp.
      means: whether to take the mean over an array's entries where its rate r is one number.
    """
    if not isinstance(state.ramp, Ramp):
        return state.rates
    left = jnp.maximum(0, 1 - (state.step - state.ramp.start + 1) / state.ramp.steps)

    def rate(r: Array, f: Array) -> Array:
        f = jnp.mean(f) if means and jnp.ndim(r) == 0 else f
        return (r * (1 - (1 - f) * left)).astype(r.dtype)

    return jax.tree.map(rate, state.rates, state.ramp.first)


def displacement(
    optimizer: optax.GradientTransformation, grads: Params, state: TrainState, scale: Array | float = 1.0
) -> tuple[Params, optax.OptState]:
    r"""Return the update of a step and the optimizer's next state.

    .. math:: \Delta\theta = s \; r \; u(g)

    with the optimizer's update u at rate 1, the learning rates r of the state's step (``rates_at``) and the schedule's
    factor s. The learning rate is applied here and nowhere else.

    Args:
      optimizer: whose updates have the learning rate 1.
      grads: g.
      state: with the rates r.
      scale: s, the schedule's value at ``state.step``.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return jax.tree.map(lambda rate, u: (scale * rate * u).astype(u.dtype), rates_at(state), updates), opt_state


def summed_gradients(
    loss: Loss, params: Params, batch: Batch, key: Array, accumulate: int
) -> tuple[Params, dict[str, Array]]:
    """Return the gradient of the summed loss, and the sums, of a batch taken in ``accumulate`` parts one after the other.

    Activations take the memory of one part; the result is that of the whole batch up to rounding.
    """
    derivative = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        return derivative(params, batch, key)
    parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
    keys = jax.random.split(key, accumulate)

    def add(sums: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, derivative(params, *part)), None

    first = jax.tree.map(lambda x: x[0], (parts, keys))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(derivative, params, *first))
    return jax.lax.scan(add, zeros, (parts, keys))[0]


def train_steps(
    loss: Loss, optimizer: optax.GradientTransformation, *, accumulate: int = 1
) -> Callable[[TrainState, Batch, Array, Array], tuple[TrainState, dict[str, Array]]]:
    """Compile several training steps as one dispatch, data-parallel over the devices of all processes.

    The returned function takes a replicated state (which it consumes), sharded batches (``devices.shard``), the schedule's
    factor of each step (float32 [steps], replicated) and a replicated seed of dropout. It returns the new state and, for
    each step, ``loss`` (mean over the global batch's tokens, nats), ``accuracy`` (share of tokens whose largest logit is the
    right one), ``gradient_norm`` and ``tokens``. Sums and counts are added over devices before they are divided, so the
    result does not depend on the number of devices.

    The schedule is data and not code, so that runs of one shape share one compilation whatever their schedules. The key of
    dropout is a function of (seed, step, device) alone, so that a run can be resumed anywhere.
    """

    def one(state: TrainState, batch: Batch, scale: Array, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), state.step), jax.lax.axis_index(AXIS))
        grads, sums = summed(summed_gradients(loss, state.params, batch, key, accumulate))
        tokens = sums["tokens"]
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = displacement(optimizer, grads, state, scale)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums["nll"] / tokens,
            "accuracy": sums["correct"] / tokens,
            "gradient_norm": optax.tree.norm(grads),
            "tokens": tokens,
        }
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), metrics

    # A scan, since every dispatch allocates its temporaries anew, which on a CPU costs as much as a fifth of a step.
    def many(state: TrainState, batches: Batch, scales: Array, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        return jax.lax.scan(lambda s, drawn: one(s, *drawn, seed), state, (batches, scales))

    return data_parallel(many, donate=(0,))


def evaluate_step(loss: Loss) -> Callable[[Params, Batch], dict[str, Array]]:
    """Compile ``loss``, ``accuracy`` and ``tokens`` of replicated params over sharded batches, without dropout."""

    def evaluate(params: Params, batches: Batch) -> dict[str, Array]:
        each = jax.lax.map(lambda batch: loss(params, batch, None)[1], batches)
        sums = summed(jax.tree.map(jnp.sum, each))
        tokens = sums["tokens"]
        return {"loss": sums["nll"] / tokens, "accuracy": sums["correct"] / tokens, "tokens": tokens}

    return data_parallel(evaluate)
