"""Where arrays lie: the one place that knows of devices, of processes and of ``pmap``.

Everything is data parallel: each device of each process holds a whole copy of the training state and its share of the
batch. Arrays handed to ``data_parallel`` functions have a leading axis of this process's devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from fusion_core.errors import InputError

Batch = Any
Tree = TypeVar("Tree")

AXIS = "devices"


def data_parallel(f: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """``f`` on every device of every process at once; within it ``psum`` over ``AXIS`` adds over all of them."""
    return jax.pmap(f, axis_name=AXIS, donate_argnums=donate)


def devices_for(batch_size: int, accumulate: int = 1) -> list[jax.Device]:
    """All local devices.

    Raises:
      InputError: the devices of all processes cannot share a batch of this size evenly, in ``accumulate`` parts each, or
        the processes have different numbers of devices.
    """
    devices, processes = jax.local_devices(), jax.process_count()
    if processes > 1:
        owners = [device.process_index for device in jax.devices()]
        counts = sorted({owners.count(process) for process in range(processes)})
        if len(counts) > 1:
            raise InputError(
                f"the processes have {' and '.join(map(str, counts))} devices; give every process the same number"
            )
    check_share(batch_size, accumulate, len(devices) * processes)
    return devices


def check_share(batch_size: int, accumulate: int, devices: int) -> None:
    """Raises InputError where this many devices cannot share a batch evenly, in ``accumulate`` parts each."""
    if batch_size < 1 or accumulate < 1:
        raise InputError(f"the batch is {batch_size} and accumulate {accumulate}; both must be at least 1")
    share = devices * accumulate
    if batch_size % share:
        owners = f"{devices} device{'s' if devices > 1 else ''}"
        parts = f" in {accumulate} parts each" if accumulate > 1 else ""
        raise InputError(
            f"a batch of {batch_size} cannot be shared evenly by {owners}{parts}; take a multiple of {share}"
        )


def local_rows(batch: Batch) -> Batch:
    """This process's rows of a global batch."""
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return batch
    return jax.tree.map(lambda x: x[index * len(x) // count : (index + 1) * len(x) // count], batch)


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


def host_copy(tree: Tree) -> Tree:
    """The first device's copy of a replicated tree as NumPy arrays of their own: it outlives the donation of the tree."""
    parts = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    for part in jax.tree.leaves(parts):
        part.copy_to_host_async()  # all transfers at once, where the device is not the host
    # a copy even on the host, whose arrays NumPy would otherwise look into
    return jax.tree.map(lambda part: np.array(part[0], copy=True), parts)


def shard(batches: list[Batch], devices: list[jax.Device]) -> Batch:
    """Stacks this process's batches and splits each over its devices: leaves [devices, batches, rows of a device, ...]."""

    def split(*leaves: np.ndarray) -> Array:
        stacked = np.stack(leaves)
        split = stacked.reshape(len(leaves), len(devices), -1, *stacked.shape[2:])
        return jax.device_put(np.ascontiguousarray(np.swapaxes(split, 0, 1)), sharding)

    sharding = _sharding(devices)
    return jax.tree.map(split, *batches)
