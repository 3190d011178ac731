"""Checks of an architecture's record by itself, and of its checkpoint files."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.checkpoints.fuse import write_recipe
from fusion_core.checkpoints.pretrained import load_pretrained, save_pretrained
from fusion_core.checkpoints.recipe import fusion_recipe, growth_recipe
from fusion_core.growth.fuse import fuse
from fusion_core.growth.operators import grow
from fusion_core.models.registry import init, initial, layouts, spaces
from fusion_core.models.units import Axis, Config, Params, by_name
from fusion_core.testing.case import Case
from fusion_core.testing.maps import assert_close

STREAMED = 1e-6  # in float32: a growth that scales may round once more than in memory


def table(case: Case) -> None:
    """Every array makes and reads units once, the fields count them, and ``init`` gives arrays of these shapes."""
    check_table(case.configs)


def check_table(configs: Sequence[Config]) -> None:
    """Raise AssertionError unless the tables of registered architectures' configurations agree with themselves; in float64.

    Every array makes and reads units once, the fields count them, and ``init`` gives arrays of these shapes.
    """
    for config in configs:
        known = spaces(config)
        for name, layout in layouts(config).items():
            axes = [axis for axis in layout.axes if isinstance(axis, Axis)]
            if len({axis.reads for axis in axes}) < len(axes):
                raise AssertionError(f"{name} makes or reads units along two axes: {layout.axes}")
            for axis in axes:
                if axis.space != known[axis.space.name]:
                    raise AssertionError(
                        f"two spaces are called {axis.space.name}: {axis.space}, {known[axis.space.name]}"
                    )
        for space in known.values():
            counted = getattr(config, space.field)
            counted = counted if space.position is None else counted[space.position]
            if space.size != counted:
                raise AssertionError(f"the space {space.name} has {space.size} units, but {space.field} is {counted}")
            for field, multiple in space.also:
                if getattr(config, field) != multiple * space.size:
                    raise AssertionError(
                        f"{field} is {getattr(config, field)}, not {multiple} for each of the {space.size} of {space.name}"
                    )
        _start(config)


def _start(config: Config) -> None:
    shapes = {name: layout.shape for name, layout in layouts(config).items()}
    for dtype in (jnp.float32, jnp.float64):
        first, again = (by_name(init(config, 0, dtype=dtype)) for _ in range(2))
        found = {name: leaf.shape for name, leaf in first.items()}
        if found != shapes:
            wrong = next(n for n in (*shapes, *found) if found.get(n) != shapes.get(n))
            raise AssertionError(
                f"init gives {wrong} the shape {found.get(wrong)}, but arrays says {shapes.get(wrong)}"
            )
        for name, leaf in first.items():
            if leaf.dtype != dtype:
                raise AssertionError(f"init gives {name} in {leaf.dtype}, though {jnp.dtype(dtype)} was asked for")
            if not np.isfinite(leaf).all():
                raise AssertionError(f"init gives {name} entries that are not finite")
            if not np.array_equal(leaf, again[name]):
                raise AssertionError(f"init gives {name} other entries the second time, with an equal seed")
            if not np.array_equal(leaf, initial(config, 0, name, dtype)):
                raise AssertionError(f"initial gives {name} other entries than init")


def files(case: Case) -> None:
    """A checkpoint is read as it was written; fused and grown by streaming it is what it is in memory."""
    single = lambda params: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    with tempfile.TemporaryDirectory() as name:
        folder, networks = pathlib.Path(name), []
        for i, config in enumerate(case.configs):
            params = single(case.params(config, i))
            save_pretrained(folder / f"{i}", params, config)
            read, found = load_pretrained(folder / f"{i}")
            if found != config:
                raise AssertionError(f"config.json of {config} is read as {found}; it holds {_text(folder / f'{i}')}")
            _equal(read, params, f"the checkpoint of {config} is not read as it was written")
            networks.append((params, config))
        weights = [(1 + i) / sum(range(1, 1 + len(networks))) for i in range(len(networks))]
        write_recipe(
            fusion_recipe([folder / f"{i}" for i in range(len(networks))], weights), folder / "fused", probe=False
        )
        read, found = load_pretrained(folder / "fused")
        params, config = fuse(networks, weights)
        if found != config:
            raise AssertionError(f"files fuse to {found}, but networks in memory to {config}")
        _equal(read, params, "files do not fuse as networks in memory")
        for operator in case.operators():
            write_recipe(
                growth_recipe(folder / "0", operator.name, factor=2, seed=1), folder / operator.name, probe=False
            )
            read, _ = load_pretrained(folder / operator.name)
            params, _ = grow(*networks[0], operator.name, factor=2, seed=1)
            assert_close(read, params, f"a file does not grow by {operator.name} as in memory", STREAMED)


def _text(folder: pathlib.Path) -> str:
    return json.dumps(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def _equal(found: Params, wanted: Params, what: str) -> None:
    assert_close(found, wanted, what, 0.0)
