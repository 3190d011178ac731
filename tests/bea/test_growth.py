import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bea
from bea.pytrees import inner
from tests.bea.helpers import distance, euler, slope


def fusion_like(small):
    """Two networks a, b → block-diagonal hidden weights, halved and averaged last layer: has a kernel, in the bias."""
    a, b = small
    zeros = jnp.zeros((a["w"].shape[0], b["w"].shape[1]), a["w"].dtype)
    return {
        "w": jnp.block([[a["w"], zeros], [zeros.T, b["w"]]]),
        "out": jnp.concatenate([a["out"], b["out"]]) / 2,
        "bias": (a["bias"] + b["bias"]) / 2,
    }


def two_networks(seed=0):
    rng = np.random.default_rng(seed)
    one = lambda: {name: jnp.asarray(rng.standard_normal(s)) for name, s in (("w", (2, 2)), ("out", 2), ("bias", ()))}
    return one(), one()


def matrix_event(J):
    return bea.GrowthEvent.from_linear(lambda theta: J @ theta, jnp.zeros(J.shape[1]))


def invariant_growth(seed=0):
    """J and H such that the image of J is invariant under H: the gradient of L stays in the image."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    blocks = np.zeros((6, 6))
    for part in (slice(0, 3), slice(3, 6)):
        root = rng.standard_normal((3, 3))
        blocks[part, part] = root @ root.T + np.eye(3)
    return jnp.asarray(Q[:, :3] @ rng.standard_normal((3, 3))), jnp.asarray(Q @ blocks @ Q.T)


def generic_growth(seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((6, 6))
    return jnp.asarray(rng.standard_normal((6, 3))), jnp.asarray(root @ root.T / 6)


@pytest.mark.parametrize("make", [invariant_growth, generic_growth])
def test_conflict_of_function_preserving_growth_is_the_commutator_and_leaves_the_loss(x64, make):
    J, H = make()
    P, loss, event = J @ J.T, lambda p: 0.5 * p @ H @ p, matrix_event(J)
    grown = J @ jnp.asarray([0.5, -1.0, 2.0])
    g = H @ grown
    bracket = jax.jit(bea.lie_bracket(event.preserved_field(loss), bea.gradient_field(loss)))(grown)
    np.testing.assert_allclose(bracket, (H @ P - P @ H) @ g, rtol=1e-9, atol=1e-9)
    size = float(jnp.linalg.norm(g) * jnp.linalg.norm(bracket))
    assert size > 0.1
    assert abs(float(g @ bracket)) < 1e-12 * size


def test_pushed_small_phase_has_the_commutator_too_where_the_gradient_stays_in_the_image(x64):
    J, H = invariant_growth()
    P, event = J @ J.T, matrix_event(J)
    loss, small_loss = (lambda p: 0.5 * p @ H @ p), (lambda s: 0.5 * (J @ s) @ H @ (J @ s))
    fields = bea.gradient_field(small_loss), bea.gradient_field(loss)
    grown = J @ jnp.asarray([0.5, -1.0, 2.0])
    g = H @ grown
    conflict, effect = jax.jit(lambda x: (event.conflict(*fields)(x), event.loss_conflict(*fields, loss, 0.1, 0.2, x)))(
        grown
    )
    np.testing.assert_allclose(conflict, (H @ P - P @ H) @ g, rtol=1e-8, atol=1e-8)
    scale = 0.01 * float(jnp.linalg.norm(g) * jnp.linalg.norm((H @ P - P @ H) @ g))
    assert abs(float(effect)) < 1e-9 * scale


def test_pushed_small_phase_has_the_projection_where_the_gradient_leaves_the_image(x64):
    """[J f_s J⁺, −∇L] = H P g − P H Π g with Π = J J⁺: the continuation off the image matters."""
    J, H = generic_growth()
    P, projection, event = J @ J.T, J @ jnp.linalg.pinv(J), matrix_event(J)
    loss, small_loss = (lambda p: 0.5 * p @ H @ p), (lambda s: 0.5 * (J @ s) @ H @ (J @ s))
    grown = J @ jnp.asarray([0.5, -1.0, 2.0])
    g = H @ grown
    got = jax.jit(event.conflict(bea.gradient_field(small_loss), bea.gradient_field(loss)))(grown)
    np.testing.assert_allclose(got, H @ P @ g - P @ H @ projection @ g, rtol=1e-8, atol=1e-8)


def test_the_two_continuations_agree_on_the_image_and_both_predict_the_composite(x64):
    J, H = generic_growth()
    event, loss = matrix_event(J), lambda p: 0.5 * p @ H @ p
    small_field, grown_field = bea.gradient_field(lambda s: loss(J @ s)), bea.gradient_field(loss)
    small = jnp.asarray([0.5, -1.0, 2.0])
    pushed, preserved = event.push(small_field), event.preserved_field(loss)
    np.testing.assert_allclose(pushed(J @ small), preserved(J @ small), rtol=1e-9)

    for first in (pushed, preserved):

        def error(h, first=first):
            steps = euler(grown_field, J @ euler(small_field, small, h), h)
            log = bea.compose([bea.Phase(first, h), bea.Phase(grown_field, h)])
            # exp(F) by its Taylor series, to an order above the one measured
            predicted = euler(log, J @ small, 1.0) + 0.5 * bea.directional_derivative(log, J @ small, log(J @ small))
            return jnp.linalg.norm(predicted - steps)

        assert slope(error, largest=0.005) == pytest.approx(3, abs=0.15)


def test_loss_conflict_of_two_different_losses_is_the_formula(x64):
    """½ h_1 h_2 ⟨g_2, H_2 g_1 − H_1 g_2⟩ with J the identity."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((2, 4, 4))
    H1, H2 = (jnp.asarray(root @ root.T) for root in roots)
    loss1, loss2 = (lambda p: 0.5 * p @ H1 @ p), (lambda p: 0.5 * (p - 1) @ H2 @ (p - 1))
    p = jnp.asarray(rng.standard_normal(4))
    g1, g2 = H1 @ p, H2 @ (p - 1)
    event = bea.GrowthEvent(lambda x: x, lambda x: x, lambda x: x)
    got = event.loss_conflict(bea.gradient_field(loss1), bea.gradient_field(loss2), loss2, 0.1, 0.2, p)
    np.testing.assert_allclose(got, 0.5 * 0.1 * 0.2 * g2 @ (H2 @ g1 - H1 @ g2), rtol=1e-10)


def test_loss_conflict_is_half_the_loss_gap_between_the_two_orders(x64):
    """First f then g ends h² [f, g] ahead of first g then f: so the losses differ by twice the term."""
    f, loss = (lambda p: jnp.sin(p[::-1])), (lambda p: jnp.sum(p**4 + p))
    g, p, event = bea.gradient_field(loss), jnp.asarray([0.3, 0.8]), bea.GrowthEvent(*(lambda x: x,) * 3)

    def error(h):
        gap = loss(euler(g, euler(f, p, h), h)) - loss(euler(f, euler(g, p, h), h))
        second = gap - 2 * event.loss_conflict(f, g, loss, h, h, p)
        return jnp.abs(second)

    # The gap itself is O(h²); with the term taken away O(h³).
    assert slope(error, largest=0.005) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("precision", [32, 64])
def test_from_linear_derives_the_transpose_and_the_pseudo_inverse(precision):
    with jax.enable_x64(precision == 64):
        small = two_networks()
        event = bea.GrowthEvent.from_linear(fusion_like, small)
        flat, unravel = ravel_pytree(small)
        columns = jax.jit(jax.vmap(lambda v: ravel_pytree(fusion_like(unravel(v)))[0]))
        J = np.asarray(columns(jnp.eye(flat.size))).T
        rng = np.random.default_rng(1)
        grown = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape)), fusion_like(small))
        vector = np.asarray(ravel_pytree(grown)[0])
        close = lambda tree, expected: np.testing.assert_allclose(
            ravel_pytree(tree)[0], expected, atol=1e-5 if precision == 32 else 1e-12
        )
        transposed, solved, measured = jax.jit(lambda x: (event.transpose(x), event.pinv(x), event.metric(x)))(grown)
        close(transposed, J.T @ vector)
        close(solved, np.linalg.pinv(J.astype(np.float64)) @ vector)
        close(measured, J @ J.T @ vector)


def test_push_on_the_image_moves_as_the_small_phase_does(x64):
    small = two_networks()
    event = bea.GrowthEvent.from_linear(fusion_like, small)
    # The small phase must not see the kernel of J, here the difference of the biases.
    field = lambda s: jax.tree.map(lambda a, b: -a + 0.1 * b**2, s, event.pinv(fusion_like(s)))
    small = event.pinv(fusion_like(small))
    gap = jax.jit(lambda s: distance(event.push(field)(fusion_like(s)), fusion_like(field(s))))(small)
    assert float(gap) < 1e-12


def test_transpose_is_adjoint_to_embed(x64):
    small, other = two_networks(), fusion_like(two_networks(1))
    event = bea.GrowthEvent.from_linear(fusion_like, small)
    left, right = inner(event.embed(small), other), inner(small, event.transpose(other))
    np.testing.assert_allclose(left, right, rtol=1e-13)


def test_conflict_can_be_jitted_in_float32():
    small = two_networks()
    event = bea.GrowthEvent.from_linear(fusion_like, small)
    descend = bea.gradient_field(lambda tree: sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(tree)))
    bracket = jax.jit(event.conflict(descend, descend))(fusion_like(small))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bracket))


@pytest.mark.parametrize(
    "embed",
    [jnp.tanh, lambda x: x + 1, lambda x: x**2, lambda x: jnp.concatenate([x, jnp.ones(1)])],
    ids=["tanh", "shift", "square", "constant entries"],
)
def test_an_embed_that_is_not_linear_is_refused_with_its_misfit(embed):
    with pytest.raises(ValueError, match=r"embed is not linear: .* differs from .* by \d.*e[-+]\d\d of its size"):
        bea.GrowthEvent.from_linear(embed, jnp.ones(3))


def test_an_example_with_integers_is_refused():
    with pytest.raises(TypeError, match=r"example_small\['n'\] has dtype int32"):
        bea.GrowthEvent.from_linear(lambda p: p, {"n": jnp.arange(3)})


def test_loss_conflict_refuses_a_step_size_by_its_name():
    event = bea.GrowthEvent(*(lambda x: x,) * 3)
    with pytest.raises(ValueError, match=r"h2 is 0.0"):
        event.loss_conflict(lambda p: p, lambda p: p, jnp.sum, 0.1, 0.0, jnp.ones(2))
