"""Numbers under stress: every dtype, tiny and huge steps, flat and indefinite Hessians, nothing and 10,000 arrays.

The answer is that of a closed form, to the rounding of the dtype, or an error that names what is wrong.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
import fusion_core as fc
from bea.pytrees import axpy, inner, norm
from fusion_core.models.mlp import MLPConfig, init

pytestmark = pytest.mark.usefixtures("x64")

DTYPES = ("bfloat16", "float16", "float32", "float64")
HESSIANS = {"flat": [0.0, 0.0, 0.0], "indefinite": [2.0, -3.0, 0.0], "one-wide": [2.0]}
POINT = np.array([1.0, 0.5, -2.0])


def rounding(dtype):
    return 20 * float(jnp.finfo(dtype).eps)


def quadratic(name, dtype, scale=1.0):
    """The loss ``½ xᵀAx``, its point, and in float64 the diagonal of A and x."""
    a = np.array(HESSIANS[name])
    x = POINT[: len(a)]
    loss = lambda params: 0.5 * jnp.vdot(params["x"], jnp.asarray(a, dtype) * params["x"])
    return loss, {"x": jnp.asarray(scale * x, dtype)}, a, scale * x


def close(found, expected, dtype):
    tolerance = rounding(dtype)
    size = float(np.max(np.abs(expected), initial=0.0))
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", HESSIANS)
def test_predictions_on_quadratics_are_their_closed_forms(name, dtype):
    loss, params, a, x = quadratic(name, dtype)
    g, h = a * x, 0.125
    minus = lambda factor: {"x": jnp.asarray(-factor * g, dtype)}
    close(bea.predicted_decrease(loss, params, minus(h)), h * g @ g - 0.5 * h**2 * g @ (a * g), dtype)
    along = g @ (a * g)
    best = 0.0 if not g.any() else g @ g / along if along > 0 else np.inf
    close(bea.best_step_size(loss, params, minus(1.0)), best, dtype) if np.isfinite(best) else None
    assert np.isinf(float(bea.best_step_size(loss, params, minus(1.0)))) == np.isinf(best)
    close(bea.modified_loss(loss, h)(params), 0.5 * x @ (a * x) + h / 4 * g @ g, dtype)
    field = bea.modified_field(bea.gradient_field(loss), h, 2)(params)["x"]
    assert field.dtype == dtype
    close(field, -g - h / 2 * a * g, dtype)
    found = bea.largest_eigenvalue(loss, params, steps=len(a))
    close(found.value, a.max(), dtype)
    assert float(found.uncertainty) <= rounding(dtype) * max(1.0, np.abs(a).max())
    if name != "indefinite":
        return
    step = lambda p: jax.tree.map(lambda v, d: v + jnp.asarray(h, dtype) * d, p, bea.gradient_field(loss)(p))
    close(bea.log_map(step, params, 1)["x"], -h * g, dtype)
    defect = bea.integrability_defect(bea.gradient_field(loss), params, probes=4, key=jax.random.key(0))
    assert float(defect.value) <= rounding(dtype)
    close(defect.jacobian, np.sqrt(a @ a), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("h", [1e-320, 1e-45, 1e4, 1e30, 1e300])
def test_tiny_and_huge_steps_are_right_or_named(dtype, h):
    loss, params, a, x = quadratic("indefinite", dtype)
    g = a * x
    with np.errstate(over="ignore"):
        bent = g @ g * (h / 4)
    for found, expected in (
        (lambda: bea.modified_loss(loss, h)(params), 0.5 * x @ (a * x) + bent),
        (lambda: bea.modified_field(bea.gradient_field(loss), h, 2)(params)["x"], -g - h / 2 * a * g),
    ):
        if h / 4 > float(jnp.finfo(dtype).max):
            with pytest.raises(ValueError, match=f"is more than {dtype} holds"):
                found()
        elif np.max(np.abs(expected)) < 0.9 * float(jnp.finfo(dtype).max):
            close(found(), expected, dtype)
        else:
            assert np.isinf(np.asarray(found(), np.float64)).any()  # as the number itself would be


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_adams_field_is_its_closed_form_or_its_eps_is_named(dtype, scale):
    loss, params, a, x = quadratic("indefinite", dtype, scale)
    options = {"b1": 0.5, "b2": 0.75}
    if dtype == "float16":
        with pytest.raises(ValueError, match=r"eps is 1e-08 and eps_root is 0.0, which are 0 in float16"):
            bea.adam_modified_field(loss, 0.125, eps=1e-8, **options)(params)
    eps, h = 0.25, 0.125
    g = a * x
    r = np.abs(g) + eps
    bent = np.abs(g) / r**2
    expected = -g / r - h / 2 * (3 / r - 7 * bent) * (a * g / r)
    close(bea.adam_modified_field(loss, h, eps=eps, **options)(params)["x"], expected, dtype)


def test_nothing_is_no_point_and_arrays_without_entries_are():
    loss = lambda params: sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), start=jnp.zeros(()))
    uses = (
        lambda p: bea.modified_loss(loss, 0.1)(p),
        lambda p: bea.modified_field(bea.gradient_field(loss), 0.1)(p),
        lambda p: bea.predicted_decrease(loss, p, p),
        lambda p: bea.largest_eigenvalue(loss, p),
        lambda p: bea.flow(bea.gradient_field(loss), p, 1.0, rtol=1e-3, atol=1e-3),
        lambda p: bea.integrability_defect(bea.gradient_field(loss), p, probes=2, key=jax.random.key(0)),
        lambda p: bea.GrowthEvent.from_linear(lambda x: x, p),
    )
    for use in uses:
        for nothing in ({}, [], {"a": None}):
            with pytest.raises(ValueError, match="a tree without arrays"):
                use(nothing)
        with pytest.raises(TypeError, match="floating"):
            use({"a": jnp.arange(3)})
    empty = {"a": jnp.zeros((0,)), "b": jnp.ones(2)}
    assert float(bea.modified_loss(loss, 0.1)(empty)) == pytest.approx(2.0 + 0.1 / 4 * 2)
    assert float(bea.predicted_decrease(loss, empty, empty)) == -2.0
    assert float(bea.largest_eigenvalue(loss, empty).value) == 0.0


def test_ten_thousand_arrays_are_one_vector():
    params = list(jnp.arange(10_000.0) / 1e4)
    x = np.array(params)
    assert float(norm(params)) == pytest.approx(np.sqrt(x @ x))
    moved = axpy(-0.25, params, params)
    assert float(inner(moved, params)) == pytest.approx(0.75 * x @ x)


# growth


def network(sizes, dtype, seed, scale=1.0):
    config = MLPConfig(sizes)
    params = init(config, seed)
    random = np.random.default_rng(seed)
    full = lambda leaf: jnp.asarray(scale * (np.asarray(leaf) + random.normal(size=leaf.shape)), dtype)
    return jax.tree.map(full, params), config


def outputs(params, x):
    """The network with ReLUs, in float64."""
    *hidden, last = (jax.tree.map(lambda v: np.asarray(v, np.float64), layer) for layer in params["layers"])
    for layer in hidden:
        x = np.maximum(x @ layer["weight"].T + layer["bias"], 0)
    return x @ last["weight"].T + last["bias"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_sources_one_wide_are_their_mean(dtype):
    networks = [network((2, 1, 1, 3), dtype, seed) for seed in range(20)]
    weights = np.arange(1, 21) / 210
    fused, config = fc.fuse(networks, list(weights))
    assert config.sizes == (2, 20, 20, 3)
    x = np.random.default_rng(0).normal(size=(50, 2))
    each = np.stack([outputs(params, x) for params, _ in networks])
    size = np.abs(each).max()
    found = outputs(fused, x)
    assert np.abs(found - np.einsum("s,sbo->bo", weights, each)).max() <= 4 * float(jnp.finfo(dtype).eps) * size
    assert {leaf.dtype for leaf in jax.tree.leaves(fused)} == {jnp.dtype(dtype)}
    bias = np.asarray(fused["layers"][-1]["bias"], np.float64)
    exact = sum(
        w * np.asarray(p["layers"][-1]["bias"], np.float64) for w, (p, _) in zip(weights, networks, strict=True)
    )
    np.testing.assert_allclose(bias, exact, atol=2 * float(jnp.finfo(dtype).eps) * np.abs(exact).max())


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
@pytest.mark.parametrize("way", ["fuse", "hypercloning", "net2net_width"])
def test_noise_is_in_units_of_arrays_of_any_size(scale, way):
    def grown(scale):
        params, config = network((3, 2, 2), "float32", 0, scale)
        if way == "fuse":
            return fc.fuse([(params, config)] * 2, off_diagonal="antisymmetric", noise=0.5)[0]
        return fc.grow(params, config, way, factor=2, noise=0.5, seed=0)[0]

    for ordinary, other in zip(jax.tree.leaves(grown(1.0)), jax.tree.leaves(grown(scale)), strict=True):
        np.testing.assert_array_equal(np.asarray(other), np.float32(scale) * np.asarray(ordinary))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_numbers_are_kept_by_a_fusion_or_are_zero(dtype):
    least = float(jnp.finfo(dtype).tiny)
    params, config = network((2, 2, 1), dtype, 0)
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 4 * least), params)
    fused, _ = fc.fuse([(params, config)] * 2)
    assert all(np.isfinite(np.asarray(leaf, np.float64)).all() for leaf in jax.tree.leaves(fused))
    np.testing.assert_array_equal(np.asarray(fused["layers"][0]["bias"], np.float64), 4 * least)


def test_what_overflows_in_a_growth_is_named():
    params, config = network((3, 2, 2), "float16", 0)
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 6e4), params)
    with pytest.raises(
        fc.InputError, match=r"layers\.\d\.weight of the grown network has entries that float16 cannot hold"
    ):
        fc.grow(params, config, "net2net_width", factor=2, noise=1.0, seed=0)
    with pytest.raises(
        fc.InputError, match=r"layers\.\d\.weight of the grown network has entries that float16 cannot hold"
    ):
        fc.fuse([(params, config)] * 2, off_diagonal="antisymmetric", noise=1.0)
