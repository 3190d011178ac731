"""The speed of this machine, measured by products of matrices of a network's size."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fusion_core.runs.graph import Resolved
from fusion_core.runs.plan import TrainNode

SMALLEST, LONGEST = 1e8, 0.02  # FLOPs of the first product, seconds of the last
SECONDS = 0.3


def product_speed(nodes: Sequence[Resolved]) -> float:
    """Return the FLOP/s of one device on the feed-forward product of the largest node that trains.

    The product is [rows, d_model] @ [d_model, d_ff] in the node's own precision. It begins with few rows and gets more
    until it takes 20 ms or has as many as the node's batch has tokens. It takes about a second, compiling included.
    """
    trained = [node for node in nodes if isinstance(node.node, TrainNode)]
    largest = max(trained, key=lambda node: node.step_flops)
    assert isinstance(largest.node, TrainNode)
    width, inner = largest.config.d_model, largest.config.d_ff
    tokens = largest.node.batch * largest.node.length
    rows = min(tokens, max(8, int(SMALLEST / (2 * width * inner))))
    while True:
        seconds = _seconds_of(rows, width, inner, largest.node.compute.dtype)
        if rows == tokens or seconds > LONGEST:
            return 2 * rows * width * inner / seconds
        rows = min(tokens, 4 * rows)


def _seconds_of(rows: int, width: int, inner: int, dtype: str) -> float:
    """Return the shortest of the times that repeated products took."""
    product = jax.jit(jnp.matmul)
    left, right = jnp.ones((rows, width), dtype), jnp.ones((width, inner), dtype)
    product(left, right).block_until_ready()
    times: list[float] = []
    while not times or sum(times) < SECONDS / 10:
        start = time.perf_counter()
        product(left, right).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
