r"""What a linear map J of parameters must be, with its transpose and its pseudo-inverse.

.. math::
    J(a u + b v) = a J u + b J v, \qquad \langle J u, w\rangle = \langle u, J^\top w\rangle, \qquad
    J J^+ J = J, \qquad J^+ J J^+ = J^+, \qquad (J J^+)^\top = J J^+, \qquad (J^+ J)^\top = J^+ J

The last four are Penrose's, and hold for the pseudo-inverse alone. Source: theory.md, section 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.growth.maps import GrowthMap
from fusion_core.models.registry import layouts
from fusion_core.models.units import Params, by_name

Map = Callable[[Params], Params]
TOLERANCE = 1e-10  # in float64, of the largest entry: sums of some hundred products, each exact to 1e-16


def random_like(shapes: Params, seed: int) -> Params:
    """Return a tree of normal numbers, in NumPy's float64. A seed and the shapes give the same numbers everywhere."""
    rng = np.random.default_rng((seed, zlib.crc32(str(len(jax.tree.leaves(shapes))).encode())))
    return jax.tree.map(lambda struct: rng.standard_normal(struct.shape), shapes)


def inner(a: Params, b: Params) -> float:
    """Return the inner product of two trees."""
    return sum(float(np.vdot(x, y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_close(found: Params, wanted: Params, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise AssertionError, with the array that is off most, if two trees differ.

    Args:
      found, wanted: the trees.
      what: the beginning of the message.
      tolerance: largest difference, as a share of the largest entry of ``wanted``.
    """
    ours, theirs = by_name(found), by_name(wanted)
    shapes = [{name: np.shape(leaf) for name, leaf in tree.items()} for tree in (ours, theirs)]
    if shapes[0] != shapes[1]:
        name = next(n for n in (*shapes[1], *shapes[0]) if shapes[0].get(n) != shapes[1].get(n))
        raise AssertionError(f"{what}: {name} has shape {shapes[0].get(name)}, not {shapes[1].get(name)}")
    scale = max((float(np.abs(np.asarray(leaf)).max(initial=0)) for leaf in theirs.values()), default=0.0)
    off = {name: float(np.abs(np.asarray(ours[name]) - np.asarray(theirs[name])).max(initial=0)) for name in theirs}
    worst = max(off, key=lambda name: np.nan_to_num(off[name], nan=np.inf))
    if not off[worst] <= tolerance * scale:
        where = f" in {worst}" if worst else ""
        raise AssertionError(f"{what}: off by {off[worst]:.2g}{where}, where the largest entry is {scale:.2g}")


def check_linear_map(
    embed: Map, transpose: Map, pinv: Map, small: Params, grown: Params, *, seed: int = 0, tolerance: float = TOLERANCE
) -> None:
    """Raise AssertionError, with the identity, unless the map is linear with this transpose and this pseudo-inverse.

    Args:
      embed: J, from trees like ``small`` to trees like ``grown``.
      transpose: its transpose, the other way.
      pinv: its pseudo-inverse, the other way.
      small, grown: trees of arrays, or of ``jax.ShapeDtypeStruct``.
      seed: seed of the trees that they are tried on.
      tolerance: as in ``assert_close``; the check is in float64.
    """
    combine = lambda x, y: jax.tree.map(lambda a, b: 2 * a - 3 * b, x, y)
    with jax.enable_x64(True):
        u, v = (jax.tree.map(jnp.asarray, random_like(small, seed + i)) for i in range(2))
        w, z = (jax.tree.map(jnp.asarray, random_like(grown, seed + 2 + i)) for i in range(2))
        Ju, Jv, back = embed(u), embed(v), pinv(w)
        close = lambda a, b, what: assert_close(a, b, what, tolerance)
        close(embed(combine(u, v)), combine(Ju, Jv), "the map is not linear")
        _equal(inner(Ju, w), inner(u, transpose(w)), Ju, w, "the transpose is not the adjoint", tolerance)
        fitted, kept = embed(back), pinv(Ju)
        close(embed(kept), Ju, "J J⁺ J is not J")
        close(pinv(fitted), back, "J⁺ J J⁺ is not J⁺")
        _equal(inner(fitted, z), inner(w, embed(pinv(z))), w, z, "J J⁺ is not symmetric", tolerance)
        _equal(inner(kept, v), inner(u, pinv(Jv)), u, v, "J⁺ J is not symmetric", tolerance)


def _equal(a: float, b: float, left: Params, right: Params, what: str, tolerance: float) -> None:
    """Raise AssertionError if two inner products of ``left`` and ``right`` differ."""
    scale = (inner(left, left) * inner(right, right)) ** 0.5
    if not abs(a - b) <= tolerance * scale:
        raise AssertionError(f"{what}: the two inner products are {a:.6g} and {b:.6g}")


def check_map(mapping: GrowthMap, *, seed: int = 0, tolerance: float = TOLERANCE) -> None:
    """Raise AssertionError, with the identity, unless a growth's map J is right (``check_linear_map``).

    Its image must also have the shapes of the grown configuration, and J⁺ J must be 1 but in arrays that J adds up, as the
    averaged biases of a fusion.

    Args:
      mapping: map of a fusion or of an operator.
      seed, tolerance: as in ``check_linear_map``.
    """
    image = jax.eval_shape(mapping.embed, mapping.shapes)
    found = {name: leaf.shape for name, leaf in by_name(image).items()}
    wanted = {name: layout.shape for name, layout in layouts(mapping.config).items()}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise AssertionError(
                f"the map gives {name} the shape {found.get(name)}, but the grown configuration says {wanted.get(name)}"
            )
    check_linear_map(
        mapping.embed, mapping.transpose, mapping.pinv, mapping.shapes, image, seed=seed, tolerance=tolerance
    )
    added = {b.name for rule in jax.tree.leaves(mapping.rules) if _adds(rule) for b in rule.blocks}
    with jax.enable_x64(True):
        u = jax.tree.map(jnp.asarray, random_like(mapping.shapes, seed))
        back = mapping.pinv(mapping.embed(u))
    for before, after in zip(*((t if mapping.several else (t,)) for t in (u, back)), strict=True):
        keep = lambda tree: {name: leaf for name, leaf in by_name(tree).items() if name not in added}
        assert_close(keep(after), keep(before), "J⁺ J is not 1", tolerance)


def _adds(rule: Any) -> bool:
    """Return whether a rule adds its parts up."""
    return len(rule.blocks) > 1 and not rule.own
