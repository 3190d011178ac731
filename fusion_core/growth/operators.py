"""The registry of growth operators, and the two functions that apply one: ``grow`` and ``growth_map``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fusion_core.errors import InputError
from fusion_core.growth import copying, depth, random
from fusion_core.growth.fuse import check_grown, check_params
from fusion_core.growth.maps import GrowthMap
from fusion_core.growth.options import Growth, Options
from fusion_core.models.registry import architecture, parameter_shapes
from fusion_core.models.units import Config, Params


@dataclasses.dataclass(frozen=True)
class Properties:
    """Properties of an operator on every architecture that it takes; the tests measure them (docs/growth_operators.md).

    Attributes:
      function_preserving: whether the grown network's outputs are the small one's, to rounding.
      breaks_symmetry: whether the copies of a unit get different gradients: of all units ("yes"), some ("in part"), none
        ("no"); or no unit is copied ("no copies").
      keeps_dynamics: whether the outputs keep their velocity under gradient descent: with unchanged learning rates
        ("yes"), with those of ``growth_rate_factors`` ("with factors"), or not ("no").
    """

    function_preserving: bool
    breaks_symmetry: Literal["yes", "in part", "no", "no copies"]
    keeps_dynamics: Literal["yes", "with factors", "no"]


@dataclasses.dataclass(frozen=True)
class GrowthOperator:
    """A way to grow a network.

    Attributes:
      name: name of the operator for ``grow``.
      summary: description in one line.
      source: source of the method.
      grows: whether width or depth becomes larger.
      takes: which of ``grow``'s factor, width and depth it takes.
      build: ``(config, options) -> Growth``, pure.
      properties: its properties without noise.
      networks: networks that it takes: all, those with a residual stream ("residual"), or those in which each layer reads
        only the one before it ("chain").
      noisy: its properties with noise; None if it takes none.
      random: whether it draws even without noise.
      refusal: for networks that it does not take, why, and what to use.
      rates: ``rates`` of a plan's ``grow`` node that gives none; if None, the node's own default.
      optimizer_state: ``optimizer_state`` of a plan's ``grow`` node that gives none; if None, the node's own default.
    """

    name: str
    summary: str
    source: str
    grows: Literal["width", "depth", "width or depth"]
    takes: tuple[str, ...]
    build: Callable[[Config, Options], Growth]
    properties: Properties
    networks: Literal["all", "residual", "chain"] = "all"
    noisy: Properties | None = None
    random: bool = False
    refusal: str = ""
    rates: str | None = None
    optimizer_state: str | None = None

    def takes_network(self, config: Config) -> bool:
        """Return whether the operator grows networks of this kind."""
        kind = "chain" if architecture(config).stream is None else "residual"
        return self.networks in ("all", kind)


_OPERATORS = (
    GrowthOperator(
        name="deep_fusion",
        summary="self-fusion: k copies side by side, zeros between them, the outputs averaged",
        source="Mazzawi et al. (2024)",
        grows="width",
        takes=("factor",),
        build=copying.deep_fusion,
        properties=Properties(True, "no", "with factors"),
        noisy=Properties(True, "yes", "no"),
    ),
    GrowthOperator(
        name="hypercloning",
        summary="every unit k times, every weight that reads copies divided by k",
        source="Samragh et al. (2024)",
        grows="width",
        takes=("factor",),
        build=copying.hypercloning,
        properties=Properties(True, "no", "with factors"),
        noisy=Properties(True, "yes", "no"),
    ),
    GrowthOperator(
        name="sparkling",
        summary="hypercloning's copies; plans begin the new half's optimizer state anew and warm its rates up (our reading)",
        source="Yu et al. (2026), SPARKLING",
        grows="width",
        takes=("factor",),
        build=copying.sparkling,
        properties=Properties(True, "no", "with factors"),
        rates="rewarm_new",
        optimizer_state="fresh_new",
    ),
    GrowthOperator(
        name="net2net_width",
        summary="new units are copies of random ones, outgoing weights divided by the number of copies",
        source="Chen, Goodfellow & Shlens (2016)",
        grows="width",
        takes=("factor", "width"),
        build=copying.net2net_width,
        properties=Properties(True, "no", "with factors"),
        noisy=Properties(False, "yes", "no"),
        random=True,
    ),
    GrowthOperator(
        name="aki",
        summary="advanced knowledge initialization: as hypercloning, but new units are made by the layer above",
        source="Chen et al. (2022), bert2BERT",
        grows="width",
        takes=("factor",),
        build=copying.aki,
        properties=Properties(False, "in part", "no"),
    ),
    GrowthOperator(
        name="random_off_diagonal",
        summary="self-fusion whose off-diagonal blocks are random as in a network from scratch",
        source="Mazzawi et al. (2024), as an initialization to compare with",
        grows="width",
        takes=("factor",),
        build=random.random_off_diagonal,
        properties=Properties(False, "yes", "no"),
        random=True,
    ),
    GrowthOperator(
        name="random_block",
        summary="fusion with k − 1 networks from scratch",
        source="a baseline",
        grows="width",
        takes=("factor",),
        build=random.random_block,
        properties=Properties(False, "no copies", "no"),
        random=True,
    ),
    GrowthOperator(
        name="shrink_perturb",
        summary="the large network from scratch plus 0.4 times the small one in the leading block of every array",
        source="Mallik et al. (2026)",
        grows="width",
        takes=("factor", "width"),
        build=random.shrink_perturb,
        properties=Properties(False, "no copies", "no"),
        random=True,
        rates="width",
        optimizer_state="fresh",
    ),
    GrowthOperator(
        name="random_init",
        summary="the large network from scratch",
        source="a baseline",
        grows="width or depth",
        takes=("factor", "width", "depth"),
        build=random.random_init,
        properties=Properties(False, "no copies", "no"),
        random=True,
    ),
    GrowthOperator(
        name="stacking",
        summary="copies of all layers on top of them",
        source="Gong et al. (2019), StackedBERT",
        grows="depth",
        takes=("factor", "depth"),
        build=depth.stacking,
        properties=Properties(False, "no copies", "no"),
    ),
    GrowthOperator(
        name="identity_layers",
        summary="copies of residual blocks with zero output projections, each after its source",
        source="Wu et al. (2024), LLaMA Pro; the idea is Net2Net's",
        grows="depth",
        networks="residual",
        takes=("factor", "depth"),
        build=depth.identity_layers,
        properties=Properties(True, "no copies", "no"),
        refusal="it has no residual blocks that could add nothing; use net2net_depth",
    ),
    GrowthOperator(
        name="net2net_depth",
        summary="identity layers between ReLU layers",
        source="Chen, Goodfellow & Shlens (2016)",
        grows="depth",
        networks="chain",
        takes=("factor", "depth"),
        build=depth.net2net_depth,
        properties=Properties(True, "no copies", "no"),
        refusal="its layers are residual blocks, and identity blocks are those that add nothing; use identity_layers",
    ),
)

GROWTH_OPERATORS: dict[str, GrowthOperator] = {operator.name: operator for operator in _OPERATORS}


def growth_of(config: Config, operator: str, options: Options) -> Growth:
    """Return the operator applied to a configuration, after all checks. Raises InputError as ``grow``."""
    known = GROWTH_OPERATORS.get(operator)
    if known is None:
        raise InputError(f"no growth operator is named {operator!r}; there are {', '.join(GROWTH_OPERATORS)}")
    if not known.takes_network(config):
        raise InputError(f"{operator} does not take a {type(config).__name__}: {known.refusal}")
    given = [name for name in ("factor", "width", "depth") if getattr(options, name) is not None]
    if len(given) != 1 or given[0] not in known.takes:
        raise InputError(
            f"{operator} got {' and '.join(given) or 'no size'}; give exactly one of {', '.join(known.takes)}"
        )
    noise = options.noise
    if noise and known.noisy is None:
        noisy = ", ".join(name for name, other in GROWTH_OPERATORS.items() if other.noisy)
        raise InputError(f"{operator} takes no noise, but noise is {noise!r}; leave it out, or use one of {noisy}")
    if options.seed is None and (known.random or noise):
        raise InputError(f"{operator} draws at random here, but seed is None; give an integer, such as seed=0")
    return known.build(config, options)


def grow(
    params: Params,
    config: Config,
    operator: str,
    *,
    factor: Any = None,
    width: Any = None,
    depth: Any = None,
    seed: Any = None,
    noise: Any = 0.0,
) -> tuple[Params, Config]:
    r"""Return one network grown by the named operator.

    .. math:: \Theta = J\,\theta + c

    with the operator's linear map J (``growth_map``) and its draws and constants c, which are zero for most operators.

    Args:
      params: parameters of the small network.
      config: its configuration, of any architecture of ``fusion_core.models.registry``.
      operator: a name in ``GROWTH_OPERATORS``.
      factor: an integer k ≥ 2. Width operators multiply all hidden widths by it (of a T5: d_model, d_ff and num_heads); depth
        operators the number of layers of each stack, or of hidden-to-hidden layers.
      width: in its place, the grown widths, by field: ``{"d_ff": 96}``; or all hidden ones of an MLP, ``(16, 16)``.
      depth: in its place, the grown number of layers of each stack, or of hidden-to-hidden layers; or, by field, of those
        stacks that grow: ``{"num_layers": 8}``.
      seed: seed of the draws; needed if the operator draws or there is noise.
      noise: standard deviation of noise that separates copies, in units of each array's root mean square; if 0, there is
        none. It keeps the function for ``deep_fusion`` and ``hypercloning`` (its sum over the copies is zero), and changes
        it for ``net2net_width``.

    Returns:
      ``(params, config)`` of the grown network, in the dtype of params.

    Raises:
      InputError: the operator is unknown or does not take this architecture; a size, the seed or the noise is not valid;
        the params do not fit the configuration, or are not finite, or the grown ones would not be in their dtype.
    Source: that of the operator, ``GROWTH_OPERATORS[operator].source``.
    """
    growth = growth_of(config, operator, Options(factor, width, depth, seed, noise))
    check_params(1, params, parameter_shapes(config))
    # floats of Python and NumPy arrays become arrays here, so that operators may index and update
    params = jax.tree.map(jnp.asarray, params)
    return check_grown(growth.apply(params)), growth.config


def growth_map(
    config: Config, operator: str, *, factor: Any = None, width: Any = None, depth: Any = None, seed: Any = None
) -> GrowthMap:
    """Return the linear map J of an operator, with its transpose and its pseudo-inverse, from the configuration alone.

    What is drawn on top of it (noise, random blocks, the identities of ``net2net_depth``) does not depend on the network and
    is no part of it.

    Args:
      config, operator, factor, width, depth, seed: as for ``grow``.

    Raises:
      InputError: as ``grow``; or the operator is ``random_init``, which keeps nothing of the network.
    """
    growth = growth_of(config, operator, Options(factor, width, depth, seed))
    if growth.mapping is None:
        raise InputError(f"{operator} has no linear map: the grown network does not depend on the small one")
    return growth.mapping


def copied_units(
    config: Config, operator: str, *, factor: Any = None, width: Any = None, depth: Any = None, seed: Any = None
) -> dict[str, Any]:
    """Return for each space of units (hidden layer, stream, heads) the small unit that each grown one copies.

    The result is empty if no unit is copied within its layer. Arguments and errors as for ``growth_map``.
    """
    return dict(growth_of(config, operator, Options(factor, width, depth, seed)).units)
