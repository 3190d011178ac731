r"""A growth event of an MLP in numbers: does the order of the phases matter, and does the function's velocity jump?

.. math:: \Delta\theta = \Phi_2 \Phi_1 \Theta - \Phi_1 \Phi_2 \Theta = h^2 [f_1, f_2] + O(h^3)

with one Euler step Φ of each phase, the small one seen in the grown space. The loss then differs by h² ⟨∇L, [f_1, f_2]⟩,
which is zero where growth keeps the function. Source: theory.md, sections 3 and 5.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

import bea
from bea.pytrees import Field, Loss, Number, axpy, norm, subtract
from fusion_core import growth as fc
from toy_models import mlp, teacher

Params = Any


class EventPhases(NamedTuple):
    """Two phases around an event, both as fields on the grown space.

    Attributes:
      first: f₁, the small phase.
      second: f₂, the grown phase.
      start: Θ = Jθ, just after the event.
      conflict: ``h -> predicted`` difference of the loss between the two orders, to second order.
    """

    first: Field
    second: Field
    start: Params
    conflict: Callable[[Number], Array]


def self_event(sizes: Sequence[int]) -> bea.GrowthEvent:
    """Return the event of a network of these widths fused with itself, in closed form."""
    config = fc.MLPConfig(tuple(sizes))
    mapping = fc.fusion_map([config, config])
    add: Callable[[Params, Params], Params] = lambda a, b: jax.tree.map(jnp.add, a, b)
    return bea.GrowthEvent(
        embed=lambda theta: mapping.embed((theta, theta)),
        transpose=lambda grown: add(*mapping.transpose(grown)),
        pinv=lambda grown: jax.tree.map(lambda v: v / 2, add(*mapping.pinv(grown))),
    )


def self_fusion(loss: Loss, source: Params, sizes: Sequence[int]) -> EventPhases:
    """Return the fusion of a network with itself: it keeps the function, so that the loss conflict is zero."""
    event = self_event(sizes)
    zero: Callable[[Number], Array] = lambda h: jnp.zeros_like(jnp.asarray(h))
    return EventPhases(event.preserved_field(loss), bea.gradient_field(loss), event.embed(source), zero)


def fusion_of_two(loss: Loss, sources: tuple[Params, Params], sizes: Sequence[int]) -> EventPhases:
    """Return the fusion of two different networks of the same widths, both trained in the small phase."""
    config = fc.MLPConfig(tuple(sizes))
    mapping = fc.fusion_map([config, config])
    event = bea.GrowthEvent.of(mapping)
    both = bea.gradient_field(lambda pair: loss(pair[0]) + loss(pair[1]))
    second, start = bea.gradient_field(loss), event.embed(sources)
    # loss_conflict is half of what a swap changes
    conflict = lambda h: 2 * event.loss_conflict(both, second, loss, h, h, start)
    return EventPhases(event.push(both), second, start, conflict)


def gaps(growth: EventPhases, loss: Loss, h: Number) -> dict[str, Array]:
    """Return how far apart one step of each phase and the same in the other order end.

    Args:
      h: step size of both, traced or not.

    Returns:
      "params": norm of the difference of the parameters; "loss": size of the loss's; "unexplained": of what is left of the
      loss's after the predicted conflict.
    """
    step = lambda field, point: axpy(h, field(point), point)
    one = step(growth.second, step(growth.first, growth.start))
    other = step(growth.first, step(growth.second, growth.start))
    change = loss(one) - loss(other)
    return {
        "params": norm(subtract(one, other)),
        "loss": jnp.abs(change),
        "unexplained": jnp.abs(change - growth.conflict(h)),
    }


GAPS = {
    "self, parameters": 2,
    "self, loss": 3,
    "two, parameters": 2,
    "two, loss": 2,
    "two, loss without the conflict": 3,
}
"""The differences of ``neutrality``, with the powers of h that theory predicts."""


def neutrality(sizes: Sequence[int], samples: int, seeds: Sequence[int], step_sizes: Sequence[float]) -> dict[str, Any]:
    """Return the differences ``GAPS`` for every seed and step size, in float64.

    Args:
      sizes: widths of the small networks.
      samples: number of samples of the teacher task.
      seeds: one task with its two sources each.
      step_sizes: at least three.

    Returns:
      name of ``GAPS`` → {"errors": seeds × step sizes, "slopes": seeds}.
    """
    sizes = tuple(sizes)

    @jax.jit
    def measured(sources: tuple[Params, Params], task: teacher.Samples, h: Array) -> dict[str, Array]:
        loss = mlp.mse_loss(*task)
        own = gaps(self_fusion(loss, sources[0], sizes), loss, h)
        two = gaps(fusion_of_two(loss, sources, sizes), loss, h)
        values = own["params"], own["loss"], two["params"], two["loss"], two["unexplained"]
        return dict(zip(GAPS, values, strict=True))

    with jax.enable_x64(True):
        tables = []
        for seed in seeds:
            sources = network(sizes, 2 * seed), network(sizes, 2 * seed + 1)
            found = [measured(sources, _task(sizes, samples, seed), jnp.asarray(h)) for h in step_sizes]
            tables.append({name: [float(row[name]) for row in found] for name in GAPS})
    slope = lambda errors: bea.measured_order(dict(zip(step_sizes, errors, strict=True)).__getitem__, step_sizes).slope
    return {name: {"errors": [t[name] for t in tables], "slopes": [slope(t[name]) for t in tables]} for name in GAPS}


def network(sizes: Sequence[int], seed: int) -> mlp.Params:
    """Return random float64 params with biases of scale ½: Adafactor, which scales by an array's RMS, does not move zeros."""
    params, rng = mlp.init(sizes, seed=seed, dtype=jnp.float64), np.random.default_rng(seed)
    for layer in params["layers"]:
        layer["bias"] = jnp.asarray(0.5 * rng.standard_normal(layer["bias"].shape))
    return params


def _task(sizes: Sequence[int], samples: int, seed: int) -> teacher.Samples:
    shape = (sizes[0], 8, sizes[-1])
    return teacher.teacher_task(shape, seed=seed, train=samples, validation=1, dtype=jnp.float64).train


def _factored(gradient: Array) -> Array:
    """Return the second moments as Adafactor estimates them from one gradient."""
    square = gradient * gradient
    if gradient.ndim < 2:
        return square
    return jnp.outer(square.mean(axis=1), square.mean(axis=0)) / square.mean()


UPDATES: dict[str, Callable[[Array, Array], Array]] = {
    "sgd": lambda g, p: -g,
    "adam": lambda g, p: -g / jnp.sqrt(g * g + 1e-60),
    "adafactor": lambda g, p: -g / jnp.sqrt(_factored(g)) * jnp.sqrt(jnp.mean(p * p)),
}
"""(gradient, parameter) → one update of rate 1, from moments of this gradient; the names are ``rate_factors``'."""


def changes_of_function(
    params: mlp.Params,
    factors: Any,
    optimizer: str,
    inputs: Float[Array, "samples in"],
    targets: Float[Array, "samples out"],
) -> Float[Array, "arrays samples out"]:
    """Return the velocity of the outputs along the update of each array alone; their sum is the function's.

    Args:
      params: params of a tanh network.
      factors: on the rate, a tree like params.
      optimizer: a name of ``UPDATES``.
      inputs, targets: samples of the mean squared error that is descended.
    """
    loss, update = mlp.mse_loss(inputs, targets), UPDATES[optimizer]
    moved = jax.tree.map(lambda f, g, p: f * update(g, p), factors, jax.grad(loss)(params), params)
    leaves: list[Array] = jax.tree.leaves(moved)
    tree: Any = jax.tree.structure(moved)
    predict = lambda p: mlp.forward(p, inputs)

    def along(i: int) -> Array:
        alone = [leaf if j == i else jnp.zeros_like(leaf) for j, leaf in enumerate(leaves)]
        return jax.jvp(predict, (params,), (tree.unflatten(alone),))[1]

    return jnp.stack([along(i) for i in range(len(leaves))])


KINDS = ("first weights", "hidden weights", "last weights", "hidden biases", "last bias")
ALL = "all arrays"


def velocity_jumps(
    sizes: Sequence[int], samples: int, seeds: Sequence[int], copies: Sequence[int] = (2, 3)
) -> list[dict[str, Any]]:
    r"""Return how far the function's velocity jumps if a network is fused with itself, with the rate factors r and without.

    .. math:: \text{jump} = \|\dot y_{grown} - \dot y_{small}\| \,/\, \|\dot y_{small}\|, \qquad
              \text{without } r: \ |1/r - 1| \text{ for one array}

    Args:
      sizes: widths of the small network, at least one hidden layer between the first and the last.
      samples: number of samples of the teacher task.
      seeds: one task with its network each.
      copies: k.

    Returns:
      A row for each optimizer, k and kind of array, and for all arrays together: its factor (nan for all together),
      "predicted" jump without factors (from the small network alone), the measured jumps "without" and "with". Lists over
      seeds; of the arrays of a kind the one that jumps most. float64.
    """
    sizes = tuple(sizes)
    if len(sizes) < 4:
        raise ValueError(
            f"sizes is {sizes}: no matrix lies between the first and the last; pass (3, 8, 8, 1) or deeper"
        )
    rows: list[dict[str, Any]] = []
    with jax.enable_x64(True):
        cases = [(network(sizes, seed), _task(sizes, samples, seed)) for seed in seeds]
        for optimizer, k in itertools.product(UPDATES, copies):
            factors = fc.rate_factors(cases[0][0], fc.MLPConfig(sizes), k, optimizer)
            jumps = jax.jit(functools.partial(_jumps, optimizer, k, factors))
            found = [jax.device_get(jumps(*case)) for case in cases]
            kinds, r = _kinds(factors), jax.tree.leaves(factors)
            for kind in (*KINDS, ALL):
                at = [i for i, one in enumerate(kinds) if one == kind] or [len(kinds)]
                row = {"optimizer": optimizer, "copies": k, "kind": kind}
                row |= {"factor": r[at[0]] if kind != ALL else float("nan")}
                rows.append(row | {name: [float(one[name][at].max()) for one in found] for name in found[0]})
    return rows


def _jumps(optimizer: str, copies: int, factors: Any, params: mlp.Params, task: teacher.Samples) -> dict[str, Array]:
    """Return the jump of every array, and of all together last: "with" and "without" the factors, and "predicted" without."""
    config = fc.MLPConfig((task.inputs.shape[1], *(layer["weight"].shape[0] for layer in params["layers"])))
    ones, r = jax.tree.map(lambda _: 1.0, factors), jnp.asarray(jax.tree.leaves(factors))
    grown = fc.fusion_map([config] * copies).embed((params,) * copies)
    size = lambda v: jnp.sqrt((v * v).sum(axis=(1, 2)))

    def with_sum(changes: Array) -> Array:
        return jnp.concatenate([changes, changes.sum(axis=0, keepdims=True)])

    small = changes_of_function(params, ones, optimizer, *task)
    jump = lambda changes: size(with_sum(changes) - with_sum(small)) / size(with_sum(small))
    return {
        "with": jump(changes_of_function(grown, factors, optimizer, *task)),
        "without": jump(changes_of_function(grown, ones, optimizer, *task)),
        "predicted": jump(small / r[:, None, None]),
    }


def _kinds(tree: Any) -> list[str]:
    """Return the kind of every leaf."""
    last = len(tree["layers"]) - 1

    def kind(path: Any) -> str:
        layer, name = path[-2].idx, path[-1].key
        if name == "bias":
            return KINDS[4] if layer == last else KINDS[3]
        return KINDS[0] if layer == 0 else KINDS[2] if layer == last else KINDS[1]

    return [kind(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
