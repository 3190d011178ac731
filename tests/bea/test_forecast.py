import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bea
from tests.strategies.problems import quadratic

H1, H2 = 0.3, 0.2  # step sizes of the two phases


def problem():
    """Two sources of 3 parameters each, quadratic losses; they grow into one network of 6 with its own quadratic."""
    grown, start = quadratic(6)
    small = [quadratic(3)[0], 0.5 * quadratic(3)[0]]
    losses = [lambda p, H=H: 0.5 * p @ H @ p for H in small]
    return losses, lambda p: 0.5 * p @ grown @ p, (start[:3], start[3:])


def descend(loss, params, step_size, steps):
    for _ in range(steps):
        params = params - step_size * jax.grad(loss)(params)
    return params


def test_on_quadratics_the_forecasts_are_the_final_losses_of_growing_now_and_later(x64):
    losses, grown_loss, sources = problem()
    settings = {"krylov": 6, "relinearisations": 3, "ratio": 1.5}
    found = jax.jit(
        lambda s: (
            bea.forecast_growth(
                losses,
                grown_loss,
                s,
                jnp.concatenate,
                step_sizes=(H1, H2),
                small_steps=[4, 3],
                grown_steps=[9, 7, 0],
                **settings,
            ).losses
        )
    )(sources)
    small, wanted = sources, []
    for stretch, left in ((0, 9), (4, 7), (3, 0)):
        small = tuple(descend(loss, p, H1, stretch) for loss, p in zip(losses, small, strict=True))
        wanted.append(grown_loss(descend(grown_loss, jnp.concatenate(small), H2, left)))
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert wanted[0] != pytest.approx(float(wanted[1]), rel=1e-3)


def test_the_metrics_and_the_loss_that_is_reported_are_used(x64):
    losses, grown_loss, sources = problem()
    forecast = lambda **more: bea.forecast_growth(
        losses,
        grown_loss,
        sources,
        jnp.concatenate,
        step_sizes=(H1, H2),
        small_steps=[4],
        grown_steps=[9, 7],
        krylov=6,
        **more,
    )
    halved = forecast(metrics=([jnp.full(3, 0.5)] * 2, jnp.full(6, 0.5)))
    wanted = bea.forecast_growth(
        losses,
        grown_loss,
        sources,
        jnp.concatenate,
        step_sizes=(H1 / 2, H2 / 2),
        small_steps=[4],
        grown_steps=[9, 7],
        krylov=6,
    )
    np.testing.assert_allclose(halved.losses, wanted.losses, rtol=1e-10)
    np.testing.assert_allclose(forecast(evaluate=lambda p: 3 * grown_loss(p)).losses, 3 * forecast().losses, rtol=1e-12)


def test_the_cost_is_that_of_its_look_aheads(x64):
    losses, grown_loss, sources = problem()
    found = bea.forecast_growth(
        losses,
        grown_loss,
        sources,
        jnp.concatenate,
        step_sizes=(H1, H2),
        small_steps=[4, 3],
        grown_steps=[9, 7, 5],
        krylov=3,
        relinearisations=4,
    )
    np.testing.assert_array_equal(found.after, [0, 4, 7])
    best = int(np.argmin(found.losses))
    assert ("no later growth looked at is below" in found.reason) == (best == 0)
    assert f"by {found.small_gradients} small and {found.grown_gradients} grown gradients" in found.reason
    assert found.grown_gradients == 3 * (4 * (2 + 2 * 3) + 1)
    # two stretches of two sources, each of half as many re-linearisations
    assert found.small_gradients == 2 * 2 * (2 * (2 + 2 * 3) + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grown_steps": [9, 7]}, "k stretches and k \\+ 1 rests"),
        ({"sources": ()}, "0 sources and 2 losses"),
        ({"metrics": ([None], None)}, "2 sources and 1 metrics"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    losses, grown_loss, sources = problem()
    arguments = {"sources": sources, "small_steps": [4, 3], "grown_steps": [9, 7, 5], "metrics": (None, None)} | change
    sources = arguments.pop("sources")
    with pytest.raises(ValueError, match=message):
        bea.forecast_growth(losses, grown_loss, sources, jnp.concatenate, step_sizes=(H1, H2), **arguments)


def test_a_forecast_that_blows_up_says_so():
    losses, grown_loss, sources = problem()
    found = bea.forecast_growth(
        losses, grown_loss, sources, jnp.concatenate, step_sizes=(H1, H2), small_steps=[4], grown_steps=[9, 7]
    )
    assert "not finite" in found._replace(losses=jnp.asarray([1.0, jnp.nan])).reason
    assert "2 small steps later" in found._replace(losses=jnp.asarray([2.0, 1.0]), after=jnp.asarray([0, 2])).reason
