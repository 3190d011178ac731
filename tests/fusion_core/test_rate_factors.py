"""Rate factors against the published table, and against what they are for: the velocity of the function at the event."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.models.t5 import init, token_loss
from fusion_core.train import adafactor, displacement, grow_states, init_state, t5_schedule

SHAPE = {
    "vocab_size": 60,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
TIED = fc.T5Config(**SHAPE)
UNTIED = fc.T5Config(**SHAPE, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
HIDDEN = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")


def published(name, stack, tied, k, optimizer):
    """The table of docs/t5_fusion.md."""
    if name in HIDDEN:
        return {"sgd": 1, "adam": 1 / k, "adafactor": k**-0.5}[optimizer]
    if name == "lm_head":
        return {"sgd": 1 / k, "adam": 1 / k, "adafactor": 1}[optimizer]
    if name == "final_layer_norm" and stack == "decoder" and tied:
        return {"sgd": 1, "adam": k**-0.5, "adafactor": 1}[optimizer]
    return {"sgd": k, "adam": 1, "adafactor": 1}[optimizer]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adafactor"])
@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_the_derived_factors_of_t5_are_the_published_ones(config, optimizer, k):
    factors = fc.rate_factors(init(config, 0), config, k, optimizer)
    for path, factor in jax.tree_util.tree_flatten_with_path(factors)[0]:
        wanted = published(path[-2].key, path[0].key, config.tie_word_embeddings, k, optimizer)
        assert factor == pytest.approx(wanted), jax.tree_util.keystr(path)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_adafactor_moves_the_logits_of_a_fused_t5_as_the_sources_with_the_factors_only(config):
    k, rate = 2, 1e-4
    optimizer = adafactor(t5_schedule())
    rng = np.random.default_rng(0)
    source, target = (jnp.asarray(rng.integers(3, 60, (4, n)), jnp.int32) for n in (12, 6))
    loss = lambda params, config: token_loss(params, config, source, target)[0] / target.size
    logits = lambda params, config: fc.forward(params, config, source, target)

    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), init(config, 0))
        state = init_state(params, optimizer, rate)
        # moments of the gradient that the step then takes: the second step of a constant gradient
        _, opt_state = displacement(optimizer, jax.grad(loss)(params, config), state)
        state = state._replace(opt_state=opt_state)
        mapping, grown = fc.fusion_map([config] * k), fc.growth.fused_config([config] * k)

        def velocity(state, config):
            move, _ = displacement(optimizer, jax.grad(loss)(state.params, config), state)
            after = optax.apply_updates(state.params, move)
            return logits(after, config) - logits(state.params, config)

        small = velocity(state, config)
        factors = fc.rate_factors(params, config, k, "adafactor")
        ones = jax.tree.map(lambda _: 1.0, factors)
        errors = [
            float(
                jnp.linalg.norm(velocity(grow_states(mapping, [state] * k, f), grown) - small) / jnp.linalg.norm(small)
            )
            for f in (factors, ones)
        ]
    # to first order in the rate
    assert errors[0] < 0.01
    assert errors[1] > 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": 1}, "copies is 1; fusion takes at least two copies"),
        ({"optimizer": "lion"}, "no rate factors for the optimizer 'lion'"),
        ({"params": {"w": 1.0}}, "the configuration's is"),
    ],
)
def test_impossible_factors_are_refused(change, message):
    arguments = {"params": init(TIED, 0), "config": TIED, "copies": 2, "optimizer": "adam"} | change
    with pytest.raises(fc.InputError, match=message):
        fc.rate_factors(**arguments)
