"""Growth by the fusion operators themselves: neutral to second order where it preserves the function, else not."""

import jax
import jax.numpy as jnp
import pytest

import bea
import fusion_core.fusion
from bea.pytrees import subtract
from tests.bea.helpers import distance, euler, slopes
from tests.strategies.networks import random_mlp
from toy_models import mlp
from toy_models.teacher import teacher_task

SIZES = (3, 4, 4, 2)


def problem():
    """(loss, the map of two such networks)."""
    train = teacher_task((3, 8, 2), seed=0, train=24, validation=1, dtype=jnp.float64).train
    config = fusion_core.fusion.MLPConfig(SIZES)
    return mlp.mse_loss(*train), fusion_core.fusion.fusion_map([config, config])


def gaps(first, second, loss, start):
    """``h -> {|Δθ|, |ΔL|}`` between the two orders of one step of each field."""

    def gap(h):
        one, other = euler(second, euler(first, start, h), h), euler(first, euler(second, start, h), h)
        return {"params": distance(one, other), "loss": jnp.abs(loss(one) - loss(other))}

    return gap


def test_self_fusion_conflicts_in_the_parameters_at_second_order_and_in_the_loss_at_third(x64):
    loss, fusion = problem()
    small = random_mlp(SIZES, 1, jnp.float64)
    event = bea.GrowthEvent.from_linear(lambda theta: fusion.embed((theta, theta)), small)
    start = event.embed(small)
    assert abs(float(loss(start) - loss(small))) < 1e-14  # the function is preserved
    measured = slopes(gaps(event.preserved_field(loss), bea.gradient_field(loss), loss, start), largest=0.02)
    assert measured == pytest.approx({"params": 2, "loss": 3}, abs=0.15)


def test_fusion_of_different_networks_conflicts_in_the_loss_at_second_order(x64):
    loss, fusion = problem()
    sources = tuple(random_mlp(SIZES, seed, jnp.float64) for seed in (1, 2))
    event = bea.GrowthEvent(fusion.embed, fusion.transpose, fusion.pinv)
    both = bea.gradient_field(lambda pair: loss(pair[0]) + loss(pair[1]))
    first, second, start = event.push(both), bea.gradient_field(loss), event.embed(sources)

    def errors(h):
        gap = gaps(first, second, loss, start)(h)
        swap = subtract(euler(second, euler(first, start, h), h), euler(first, euler(second, start, h), h))
        change = bea.pytrees.inner(jax.grad(loss)(start), swap)
        predicted = 2 * event.loss_conflict(both, second, loss, h, h, start)
        return gap | {"loss without the conflict": jnp.abs(change - predicted)}

    measured = slopes(errors, largest=0.01)
    assert measured == pytest.approx({"params": 2, "loss": 2, "loss without the conflict": 3}, abs=0.15)


def test_events_of_the_fusion_map_and_of_its_embed_alone_agree(x64):
    _, fusion = problem()
    sources = tuple(random_mlp(SIZES, seed, jnp.float64) for seed in (1, 2))
    derived = bea.GrowthEvent.from_linear(fusion.embed, sources)
    grown = fusion.embed(sources)
    transposed, solved = jax.jit(lambda x: (derived.transpose(x), derived.pinv(x)))(grown)
    assert distance(transposed, fusion.transpose(grown)) < 1e-13
    assert distance(solved, fusion.pinv(grown)) < 1e-12
