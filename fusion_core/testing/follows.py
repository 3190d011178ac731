"""Checks of what follows from an architecture's record, against its forward pass."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from fusion_core.growth.copying import replication
from fusion_core.growth.fuse import fuse, fusion_map
from fusion_core.growth.maps import GrowthMap
from fusion_core.growth.operators import GROWTH_OPERATORS, grow, growth_map
from fusion_core.growth.properties import measure
from fusion_core.growth.rates import growth_rate_factors, rate_factors
from fusion_core.models.registry import layouts, spaces
from fusion_core.models.units import Config, Params, by_name
from fusion_core.testing.case import Case
from fusion_core.testing.maps import assert_close, check_map
from fusion_core.testing.strategies import Network, Sources, library, networks, sources, tried, weights
from fusion_core.train.optimizer import adafactor, grow_optimizer_state

NOISE = 0.3
DIFFER = 1e-6  # share of the outputs by which sources must differ, so that their mean is a test
CARRIED = 1e-6  # of optimizer states, which hold squares: share of an array's largest entry
KEPT = 1e-6  # of velocities: relative difference


def _reordered(params: Params, config: Config, shifts: dict[str, int]) -> Params:
    """Return the same network with the units of some spaces moved on by so many places."""
    found = spaces(config)
    units = {name: np.roll(np.arange(space.size), shifts.get(name, 0)) for name, space in found.items()}
    return replication(config, units).embed(params)


def units(case: Case) -> None:
    """Units of each space, in another order, give the same outputs."""

    def body(drawn: tuple[Network, int]) -> None:
        network, shift = drawn
        params, config = network.params, network.config
        before = case.of(params, config)
        for name, space in spaces(config).items():
            if space.size > 1:
                moved = _reordered(params, config, {name: 1 + shift % (space.size - 1)})
                what = f"the units of {name} in another order change the outputs of {network}: an axis of some array is wrong"
                case.same(case.of(moved, config), before, what)

    st = library().strategies
    tried(st.tuples(networks(case.configs, case.params), st.integers(0, 5)), body, case.examples)


def maps(case: Case) -> None:
    """Fusion and the operators have linear maps with their transposes and pseudo-inverses, and grow the shapes they say."""

    def body(drawn: Sources) -> None:
        configs = [member.config for member in drawn.members]
        _named(f"fusion of {configs}", lambda: check_map(fusion_map(configs, drawn.weights)))

    tried(sources(case.configs, case.params), body, 2)
    for operator in case.operators():
        if operator.name != "random_init":
            build = lambda name=operator.name: growth_map(case.configs[0], name, factor=2, seed=3)
            _named(operator.name, lambda build=build: check_map(build()))


def _named(what: str, check: Any) -> None:
    """Call a check, and put what it is of before its message."""
    try:
        check()
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def self_fusion(case: Case) -> None:
    """A network fused with itself has its outputs: any weights, two or three copies, with noise, every kind of norm."""

    def body(drawn: tuple[Network, tuple[float, ...]]) -> None:
        network, shares = drawn
        source = (network.params, network.config)
        before = case.of(*source)
        options: list[dict[str, Any]] = [{}, {"off_diagonal": "antisymmetric", "noise": NOISE}]
        if case.record.stream is not None and len(shares) == 2:
            options += [{"norm": "grouped"}] if case.grouped else []
            if case.record.run is not None and case.batch is not None and not case.record.cannot_run(network.config):
                options += [{"norm": "calibrated", "calibration": case.batch}]
        for option in options:
            fused = fuse([source] * len(shares), list(shares), **option)
            said = f" with {', '.join(f'{k}={v!r}' for k, v in option.items() if k != 'calibration')}" if option else ""
            case.same(
                case.of(*fused), before, f"{network} fused with itself{said} and weights {shares} has other outputs"
            )

    st = library().strategies
    copies = st.integers(2, 3).flatmap(weights)
    tried(st.tuples(networks(case.configs, case.params), copies), body, case.examples)


def mean(case: Case) -> None:
    """Different sources give the weighted mean of their outputs; under one norm over all of them, if its statistics agree."""
    seen = []

    def exact(given: list[tuple[Params, Config]], shares: tuple[float, ...], what: str, **options: Any) -> None:
        own = [case.of(*network) for network in given]
        wanted = sum(w * out for w, out in zip(shares, own, strict=True))
        seen.append(max(float(np.abs(out - own[0]).max()) for out in own) / float(np.abs(wanted).max()))
        case.same(case.of(*fuse(given, list(shares), **options)), np.asarray(wanted), what)

    def body(drawn: Sources) -> None:
        what = f"the outputs of fused sources are not the weighted mean of theirs, for {drawn}"
        if case.record.stream is None:
            exact(drawn.networks, drawn.weights, what)
            return
        first = drawn.members[0]
        params, config = first.params, first.config
        moved = _reordered(params, config, {n: 1 for n, space in spaces(config).items() if space.size > 1})
        others = [_with_last(case, moved, config, member.seed) for member in drawn.members[1:]]
        if not case.record.caveat:
            exact(
                [(params, config), *((p, config) for p in others)],
                drawn.weights,
                f"{what}, with one first layer to last",
            )
            if case.grouped:
                exact(drawn.networks, drawn.weights, f"{what}, with grouped norms", norm="grouped")

    tried(sources(case.configs, case.params), body, case.examples)
    if seen and not max(seen) > DIFFER:
        raise AssertionError("the outputs of all sources agree, so that their mean is no test; give other parameters")


def _with_last(case: Case, params: Params, config: Config, seed: int) -> Params:
    """Return the network with another head, or another norm before a tied one: the statistics of its norms stay."""
    last = case.record.tied(config) or [name for name, layout in layouts(config).items() if layout.is_head]
    other = by_name(case.params(config, seed + 1000))
    leaves = [other[name] if name in last else leaf for name, leaf in by_name(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def operators(case: Case) -> None:
    """Operators that preserve the function do, with their noise too, and the grown arrays have the grown shapes."""

    def body(drawn: tuple[Network, int]) -> None:
        network, seed = drawn
        params, config = network.params, network.config
        before = case.of(params, config)
        for operator in case.operators():
            for noise, claimed in ((0.0, operator.properties), (NOISE, operator.noisy)):
                if claimed is None:
                    continue
                grown, larger = _grown(params, config, operator.name, seed, noise)
                said = f"{network} grown by {operator.name}" + (f" with noise {noise}" if noise else "")
                wanted = {name: layout.shape for name, layout in layouts(larger).items()}
                if {name: leaf.shape for name, leaf in by_name(grown).items()} != wanted:
                    raise AssertionError(f"{said} has arrays of other shapes than its configuration, {larger}")
                if claimed.function_preserving:
                    case.same(case.of(grown, larger), before, f"{said} has other outputs")

    st = library().strategies
    tried(st.tuples(networks(case.configs[:1], case.params), st.integers(0, 9)), body, max(1, case.examples // 3))


def _grown(params: Params, config: Config, operator: str, seed: int, noise: float) -> tuple[Params, Config]:
    """Return the network grown by an operator, compiled in one piece."""
    found = []

    def run(params: Params) -> Params:
        grown, larger = grow(params, config, operator, factor=2, seed=seed, noise=noise)
        found.append(larger)
        return grown

    return jax.jit(run)(params), found[0]


def rates(case: Case) -> None:
    """With the factors on the learning rates the outputs keep their velocity, for gradient descent and for Adam."""
    config = case.configs[0]
    params = case.network(config).params
    for operator in case.operators():
        if operator.properties.keeps_dynamics != "with factors":
            continue
        found = measure(params, config, operator.name, case.outputs, case.loss, factor=2, seed=0)
        for name, velocity in found.with_factors.items():
            if not (abs(velocity.ratio - 1) < KEPT and abs(velocity.cosine - 1) < KEPT):
                raise AssertionError(
                    f"{operator.name}, {name}: with the rate factors the outputs move at {velocity.ratio:.4g} times their "
                    f"velocity, cosine {velocity.cosine:.4g}; a factor of an array is wrong"
                )
    for name in ("sgd", "adam", "adafactor"):
        grown = growth_rate_factors(params, config, "deep_fusion", name, factor=2)
        assert_close(
            grown, rate_factors(params, config, 2, name), f"fusion's and deep_fusion's factors for {name}", 1e-6
        )


def moments(case: Case) -> None:
    """The state of an optimizer, carried across a fusion of equal copies or a growth, is what the grown network gathers."""
    gradient = jax.jit(jax.grad(lambda p, c: case.loss(case.outputs(p, c))), static_argnums=1)
    optimizers = {"Adam": optax.adam(1.0), "Adafactor": adafactor()}
    config = case.configs[0]
    params = case.network(config).params
    grown = [(f"fusion of {k} copies", fusion_map([config] * k), k) for k in (2, 3)]
    grown += [
        (name, growth_map(config, name, factor=2, seed=0), 1)
        for name in ("hypercloning", "net2net_width")
        if name not in case.without and GROWTH_OPERATORS[name].takes_network(config)
    ]
    for what, mapping, copies in grown:
        large = _at(mapping, params, copies)
        grads = [gradient(params, config), gradient(large, mapping.config)]
        for name, optimizer in optimizers.items():
            small, wanted = (
                optimizer.update(g, optimizer.init(p), p)[1] for g, p in zip(grads, (params, large), strict=True)
            )
            found = grow_optimizer_state(mapping, [small] * copies, copies=True)
            assert_close(found, wanted, f"{name}'s state across {what}", CARRIED)


def _at(mapping: GrowthMap, params: Params, copies: int) -> Params:
    """Return the grown parameters."""
    return mapping.grown(tuple([params] * copies) if mapping.several else params)
