"""The data-parallel step: the one place that knows how devices are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from fusion_core.errors import InputError

Params = Any
Batch = Any
# (params, batch) -> (sum of the tokens' losses, number of tokens)
SummedLoss = Callable[[Params, Batch], tuple[Array, Array]]

AXIS = "devices"


class TrainState(NamedTuple):
    """What a step reads and writes. Every leaf is an array."""

    params: Params
    opt_state: optax.OptState
    step: Array  # int32, steps taken
    # factors on the optimizer's updates, a scalar an array: learning rates, if the schedule's peak is 1; they jump at growth
    rates: Params


def init_state(params: Params, optimizer: optax.GradientTransformation, rate: float) -> TrainState:
    """The state before the first step, with the learning rate ``rate`` for all arrays."""
    rates = jax.tree.map(lambda _: jnp.asarray(rate, jnp.float32), params)
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), rates)


def displacement(
    optimizer: optax.GradientTransformation, grads: Params, state: TrainState
) -> tuple[Params, optax.OptState]:
    """The update Δθ of a step with these gradients, learning rate included, and the optimizer's next state."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return jax.tree.map(lambda rate, u: (rate * u).astype(u.dtype), state.rates, updates), opt_state


def devices_for(batch_size: int) -> list[jax.Device]:
    """All local devices. Raises InputError where they cannot share a batch of this size evenly."""
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise InputError(
            f"a batch of {batch_size} cannot be shared evenly by {len(devices)} devices; "
            f"take a multiple of {len(devices)}"
        )
    return devices


def _sharding(devices: list[jax.Device]) -> jax.sharding.Sharding:
    # Inputs placed like this from the start: otherwise the first call, with arrays that lie anywhere, and the second,
    # with the first's outputs, are compiled apart.
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.asarray(devices), (AXIS,)), jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """The tree with a leading device axis, one copy a device."""
    n = len(devices)
    sharding = _sharding(devices)
    return jax.tree.map(lambda x: jax.device_put(np.broadcast_to(x, (n, *np.shape(x))), sharding), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy."""
    return jax.tree.map(lambda x: x[0], tree)


def shard(batches: list[Batch], devices: list[jax.Device]) -> Batch:
    """Stacks batches and splits each over the devices: leaves [devices, number of batches, batch / devices, ...]."""

    def split(*leaves: np.ndarray) -> Array:
        stacked = np.stack(leaves)
        split = stacked.reshape(len(leaves), len(devices), -1, *stacked.shape[2:])
        return jax.device_put(np.ascontiguousarray(np.swapaxes(split, 0, 1)), sharding)

    sharding = _sharding(devices)
    return jax.tree.map(split, *batches)


def train_steps(
    loss: SummedLoss, optimizer: optax.GradientTransformation, devices: list[jax.Device]
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Several training steps in one dispatch, data-parallel over ``devices``.

    The returned function takes a replicated state (which it consumes) and sharded batches (``shard``), and returns the
    new state and, for each step, ``loss`` (mean over the global batch's tokens, nats) and ``gradient_norm``. Sums and
    counts are added over devices before they are divided, so the result does not depend on the number of devices.
    """

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        (total, count), grads = jax.value_and_grad(lambda p: loss(p, batch), has_aux=True)(state.params)
        total, count, grads = jax.lax.psum((total, count, grads), AXIS)
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = displacement(optimizer, grads, state)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": total / count, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(params, opt_state, state.step + 1, state.rates), metrics

    # A scan, since every dispatch allocates its temporaries anew, which on a CPU costs as much as a fifth of a step.
    return jax.pmap(
        lambda state, batches: jax.lax.scan(one, state, batches), axis_name=AXIS, devices=devices, donate_argnums=(0,)
    )


def evaluate_step(loss: SummedLoss, devices: list[jax.Device]) -> Callable[[Params, Batch], Array]:
    """Mean loss of replicated params over all tokens of sharded batches; one value a device, all equal."""

    def evaluate(params: Params, batches: Batch) -> Array:
        totals, counts = jax.lax.map(lambda batch: loss(params, batch), batches)
        total, count = jax.lax.psum((jnp.sum(totals), jnp.sum(counts)), AXIS)
        return total / count

    return jax.pmap(evaluate, axis_name=AXIS, devices=devices)
