"""Growth by the fusion operators themselves: neutral to second order where it preserves the function, else not."""

import jax
import jax.numpy as jnp
import pytest

import bea
import fusion_core.growth
from tests.bea.helpers import distance, slopes
from tests.strategies.networks import random_mlp
from toy_models import growth_event, mlp
from toy_models.teacher import teacher_task

SIZES = (3, 4, 4, 2)


@pytest.fixture
def loss(x64):
    return mlp.mse_loss(*teacher_task((3, 8, 2), seed=0, train=24, validation=1, dtype=jnp.float64).train)


def measured(growth, loss, largest):
    return slopes(lambda h: growth_event.gaps(growth, loss, h), largest=largest)


def test_self_fusion_conflicts_in_the_parameters_at_second_order_and_in_the_loss_at_third(loss):
    small = random_mlp(SIZES, 1, jnp.float64)
    growth = growth_event.self_fusion(loss, small, SIZES)
    assert abs(float(loss(growth.start) - loss(small))) < 1e-14  # the function is preserved
    found = measured(growth, loss, largest=0.02)
    assert found == pytest.approx({"params": 2, "loss": 3, "unexplained": 3}, abs=0.15)


def test_fusion_of_different_networks_conflicts_in_the_loss_at_second_order(loss):
    sources = tuple(random_mlp(SIZES, seed, jnp.float64) for seed in (1, 2))
    growth = growth_event.fusion_of_two(loss, sources, SIZES)
    found = measured(growth, loss, largest=0.01)
    assert found == pytest.approx({"params": 2, "loss": 2, "unexplained": 3}, abs=0.15)


def test_the_event_of_self_fusion_has_the_pseudo_inverse_of_its_map(x64):
    event = growth_event.self_event(SIZES)
    small, off_image = (random_mlp(sizes, 1, jnp.float64) for sizes in (SIZES, (3, 8, 8, 2)))
    assert distance(event.pinv(event.embed(small)), small) < 1e-14
    image = event.embed(event.pinv(off_image))
    # the normal equations: what the projection leaves is orthogonal to the image
    assert distance(event.transpose(image), event.transpose(off_image)) < 1e-13


def test_events_of_the_fusion_map_and_of_its_embed_alone_agree(x64):
    config = fusion_core.growth.MLPConfig(SIZES)
    fusion = fusion_core.growth.fusion_map([config, config])
    sources = tuple(random_mlp(SIZES, seed, jnp.float64) for seed in (1, 2))
    derived = bea.GrowthEvent.from_linear(fusion.embed, sources)
    grown = fusion.embed(sources)
    transposed, solved = jax.jit(lambda x: (derived.transpose(x), derived.pinv(x)))(grown)
    assert distance(transposed, fusion.transpose(grown)) < 1e-13
    assert distance(solved, fusion.pinv(grown)) < 1e-12
