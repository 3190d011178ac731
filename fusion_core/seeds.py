"""Seeds: any whole number from 0 on, also where a library takes 32 bits; derived ones are SHA-256's."""

from __future__ import annotations

import hashlib

from fusion_core.errors import InputError

DIGITS = 100  # of the longest seed: it is in names of folders
LIMIT = 10**DIGITS
_LINEAR = 10**9  # below, seeds of nodes are as they have always been: 1000 · run + node


def check_seed(seed: int, name: str = "seed") -> int:
    """Return the seed. Raise InputError, with its name, if it is negative or too long."""
    if not 0 <= seed < LIMIT:
        shown = str(seed) if -LIMIT < seed < LIMIT else "longer"
        raise InputError(f"{name} is {shown}; it must be a whole number from 0 on, of at most {DIGITS} digits")
    return seed


def node_seed(run: int, node: int) -> int:
    """Return the seed of a node in a run: another one for every pair.

    It is 1000 · run + node where that is below 10⁹ and the node's below 1000; otherwise 64 bits drawn from both, of which the
    highest is set.
    """
    linear = 1000 * run + node
    if node < 1000 and linear < _LINEAR:
        return linear
    return 1 << 63 | _drawn(f"{run} {node}") >> 1


def seed32(seed: int) -> int:
    """Return the seed in 32 bits: itself if it fits, otherwise drawn from it."""
    return seed if seed < 1 << 32 else _drawn(str(seed)) >> 32


def _drawn(text: str) -> int:
    """Return 64 bits that depend on all of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
