"""Devices and processes: the one module that uses ``pmap`` and asks JAX which process this is.

Everything is data parallel: each device of each process holds a whole copy of the training state and its share of the
batch. Arrays handed to ``data_parallel`` functions have a leading axis of this process's devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from fusion_core.errors import InputError

Batch = Any
Tree = TypeVar("Tree")

AXIS = "devices"


def data_parallel(f: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Return ``f`` run on every device of every process at once; within it ``summed`` adds over all of them."""
    return jax.pmap(f, axis_name=AXIS, donate_argnums=donate)


def summed(tree: Tree) -> Tree:
    """Return the sum over all devices, within a ``data_parallel`` function.

    CPUs add each all-reduce apart, and one of a few numbers waits as long as one of thousands: there the leaves of a dtype go
    as one flat array. Other devices get them one by one, so that XLA combines them as it pleases and overlaps them with
    the computation.
    """
    if jax.lax.axis_size(AXIS) == 1 or jax.default_backend() != "cpu":
        return jax.lax.psum(tree, AXIS)
    leaves, structure = jax.tree.flatten(tree)
    sums: list[Array | None] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        mine = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = jax.lax.psum(jnp.concatenate([leaves[i].ravel() for i in mine]), AXIS)
        parts = jnp.split(flat, np.cumsum([leaves[i].size for i in mine])[:-1])
        for i, part in zip(mine, parts, strict=True):
            sums[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, sums)


def first_process() -> bool:
    """Return whether this is process 0, the one that writes the run's files."""
    return jax.process_index() == 0


def processes() -> tuple[int, int]:
    """Return this process's index and the number of processes."""
    return jax.process_index(), jax.process_count()


def barrier(name: str) -> None:
    """Wait until all processes have come here; ``name`` is the same in all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast(value: int) -> int:
    """Return process 0's value on all processes."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def gather(text: bytes) -> list[bytes]:
    """Return the texts of all processes, on each of them."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text, np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([own.size], np.int32))).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: own.size] = own
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def devices_for(batch_size: int, accumulate: int = 1) -> list[jax.Device]:
    """Return all local devices.

    Raises:
      InputError: the devices of all processes cannot share a batch of this size evenly, in ``accumulate`` parts each, or
        the processes have different numbers of devices.
    """
    devices, count = jax.local_devices(), jax.process_count()
    if count > 1:
        owners = [device.process_index for device in jax.devices()]
        counts = sorted({owners.count(process) for process in range(count)})
        if len(counts) > 1:
            raise InputError(
                f"the processes have {' and '.join(map(str, counts))} devices; give every process the same number"
            )
    check_share(batch_size, accumulate, len(devices) * count)
    return devices


def check_share(batch_size: int, accumulate: int, devices: int) -> None:
    """Raise InputError if this many devices cannot share a batch evenly, in ``accumulate`` parts each."""
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
    """Return this process's rows of a global batch."""
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        return batch
    return jax.tree.map(lambda x: x[index * len(x) // count : (index + 1) * len(x) // count], batch)


def _sharding(devices: list[jax.Device]) -> jax.sharding.Sharding:
    # Inputs placed like this from the start: otherwise the first call, with arrays that lie anywhere, and the second,
    # with the first's outputs, are compiled apart.
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.asarray(devices), (AXIS,)), jax.sharding.PartitionSpec(AXIS))


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Return the tree with a leading device axis, one copy a device."""
    n = len(devices)
    sharding = _sharding(devices)
    return jax.tree.map(lambda x: jax.device_put(np.broadcast_to(x, (n, *np.shape(x))), sharding), tree)


def laid_out(shapes: Any, devices: list[jax.Device]) -> Any:
    """Return shapes, ``jax.ShapeDtypeStruct`` leaves with a leading device axis, as of arrays that lie on the devices."""
    sharding = _sharding(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def unreplicate(tree: Any) -> Any:
    """Return the first device's copy of a replicated tree."""
    return jax.tree.map(lambda x: x[0], tree)


def host_copy(tree: Tree) -> Tree:
    """Return the first device's copy of a replicated tree as NumPy arrays, which outlive the donation of the tree."""
    parts = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    for part in jax.tree.leaves(parts):
        part.copy_to_host_async()  # all transfers at once, where the device is not the host
    # a copy even on the host, whose arrays NumPy would otherwise look into; sliced by NumPy, which compiles nothing
    return jax.tree.map(lambda part: np.array(np.asarray(part)[0], copy=True), parts)


def shard(batches: list[Batch], devices: list[jax.Device]) -> Batch:
    """Stack this process's batches and split each over its devices: leaves [devices, batches, rows of a device, ...]."""

    def split(*leaves: np.ndarray) -> Array:
        stacked = np.stack(leaves)
        split = stacked.reshape(len(leaves), len(devices), -1, *stacked.shape[2:])
        return jax.device_put(np.ascontiguousarray(np.swapaxes(split, 0, 1)), sharding)

    sharding = _sharding(devices)
    return jax.tree.map(split, *batches)
