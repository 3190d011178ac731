"""Operators that deepen: stacking, residual blocks that add nothing, identity layers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth.linear import Params
from fusion_core.growth.maps import Growth, Request
from fusion_core.growth.units import Config
from fusion_core.models.mlp import MLPConfig
from fusion_core.models.t5.config import T5Config

STACKS = {"encoder": "num_layers", "decoder": "num_decoder_layers"}


def grown_depths(config: Config, request: Request, depths: dict[str, int], *, multiple: bool = False) -> dict[str, int]:
    """The grown depth of every part, checked: above the present one, and a multiple of it where that is needed."""
    wanted = request.depth
    if isinstance(wanted, dict):
        if not wanted or not wanted.keys() <= depths.keys() or isinstance(config, MLPConfig):
            raise InputError(
                f"depth is {wanted!r}; give a number of layers, or for a T5 the fields that grow, of "
                f"{', '.join(STACKS.values())}: {{'num_layers': 8}}"
            )
        grown = depths | wanted
    else:
        grown = {name: wanted or (request.factor or 1) * depth for name, depth in depths.items()}
        wanted = grown
    for name, depth in depths.items():
        if name in wanted and grown[name] <= depth:
            raise InputError(f"depth is {grown[name]}, but {name} is {depth} already; give a larger one")
        if multiple and grown[name] % depth:
            raise InputError(
                f"stacking cannot grow {name} from {depth} to {grown[name]}: whole copies of the stack are put on top of it; "
                f"give a multiple of {depth}, or use identity_layers"
            )
    return grown


def _t5_blocks(config: T5Config, sources: dict[str, np.ndarray], silent: dict[str, np.ndarray]) -> Growth:
    """Grown block i is a copy of block ``sources[stack][i]``; the ``silent`` ones add nothing to the stream."""

    def block(params: Params, stack: str, i: int) -> Params:
        copied = jax.tree.map(lambda x: x, params[stack]["block"][str(sources[stack][i])])
        for layer in copied["layer"].values():
            for name, part in layer.items():
                if i > 0 and isinstance(part, dict):
                    # the first block's position bias is used by all blocks of the stack
                    part.pop("relative_attention_bias", None)
                for last in ("o", "wo"):
                    if silent[stack][i] and last in part:
                        layer[name][last] = {"weight": jnp.zeros_like(part[last]["weight"])}
        return copied

    def embed(params: Params) -> Params:
        grown = dict(params)
        for stack in STACKS:
            blocks = {str(i): block(params, stack, i) for i in range(len(sources[stack]))}
            grown[stack] = {**params[stack], "block": blocks}
        return grown

    encoder, decoder = (len(sources[stack]) for stack in STACKS)
    return Growth(dataclasses.replace(config, num_layers=encoder, num_decoder_layers=decoder), embed)


def stacking(config: Config, request: Request) -> Growth:
    """Copies of all layers on top of them."""
    if isinstance(config, MLPConfig):
        hidden = config.sizes[1:-1]
        if len(hidden) < 2 or len(set(hidden)) > 1:
            raise InputError(
                f"stacking copies the layers between equal hidden widths, but the hidden widths are {hidden}; give an MLP of "
                "at least two hidden layers, all of one width, or use net2net_depth"
            )
        depth = len(hidden) - 1
        grown = grown_depths(config, request, {"the number of hidden-to-hidden layers": depth}, multiple=True)
        copies = next(iter(grown.values())) // depth

        def embed(params: Params) -> Params:
            first, *middle, last = params["layers"]
            return {"layers": [first, *middle * copies, last]}

        return Growth(MLPConfig((config.sizes[0], hidden[0], *hidden[1:] * copies, config.sizes[-1])), embed)
    depths = {name: getattr(config, name) for name in STACKS.values()}
    grown = grown_depths(config, request, depths, multiple=True)
    sources = {stack: np.arange(grown[name]) % depths[name] for stack, name in STACKS.items()}
    return _t5_blocks(config, sources, {stack: np.zeros(len(index), bool) for stack, index in sources.items()})


def _spread(small: int, grown: int) -> tuple[np.ndarray, np.ndarray]:
    """(source of every grown layer, whether it is new): each layer is followed by its new ones, as evenly as may be."""
    sources = np.arange(grown) * small // grown
    return sources, np.concatenate([[False], np.diff(sources) == 0])


def identity_layers(config: Config, request: Request) -> Growth:
    """Copies of blocks whose output projections are zero, each after its source."""
    depths = {name: getattr(config, name) for name in STACKS.values()}
    grown = grown_depths(config, request, depths)
    spread = {stack: _spread(depths[name], grown[name]) for stack, name in STACKS.items()}
    return _t5_blocks(
        config, {s: index for s, (index, _) in spread.items()}, {s: new for s, (_, new) in spread.items()}
    )


def net2net_depth(config: Config, request: Request) -> Growth:
    """Identity layers after hidden ones; the identity is a constant, so it is no part of the linear map."""
    hidden = config.sizes[1:-1]
    if request.factor is not None and len(hidden) < 2:
        raise InputError(
            "factor multiplies the number of hidden-to-hidden layers, of which this MLP has none; give depth"
        )
    grown = grown_depths(config, request, {"the number of hidden-to-hidden layers": len(hidden) - 1})
    sources, new = _spread(len(hidden), next(iter(grown.values())) + 1)
    widths = [hidden[i] for i in sources]

    def identity(width: int, layer: Params, scale: float) -> Params:
        dtype = layer["weight"].dtype
        return {"weight": jnp.eye(width, dtype=dtype) * jnp.asarray(scale, dtype), "bias": jnp.zeros(width, dtype)}

    def embed(params: Params) -> Params:
        *layers, last = params["layers"]
        return {
            "layers": [
                identity(width, last, 0.0) if is_new else layers[i]
                for i, is_new, width in zip(sources, new, widths, strict=True)
            ]
            + [last]
        }

    def finish(params: Params) -> Params:
        *layers, last = params["layers"]
        return {
            "layers": [
                identity(width, layer, 1.0) if is_new else layer
                for layer, is_new, width in zip(layers, new, widths, strict=True)
            ]
            + [last]
        }

    return Growth(MLPConfig((config.sizes[0], *widths, config.sizes[-1])), embed, finish)
