"""Every way to compute a T5 gives the same loss; packing, precision, z-loss, memory. The reference: test_t5_reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import jet

import fusion_core as fc
from fusion_core.models.t5 import Compute, batch_loss, init, parameter_shapes, token_loss
from fusion_core.models.t5.layers import broadcast_over, position_bias, relative_buckets, self_bias
from fusion_core.models.t5.products import product, reverse_product
from tests.strategies.networks import batch_of, logits, once, random_t5, tiny
from tests.strategies.packing import packed, pairs, rows

COMPUTES = {
    "scanned": Compute(scan=True),
    "rematerialised": Compute(remat=True),
    "reverse mode only": Compute(reverse_only=True),
    "loss in chunks": Compute(loss_chunk=4),
    "attention in chunks": Compute(attention="chunked"),
    "all of them": Compute(scan=True, remat=True, reverse_only=True, loss_chunk=4, attention="chunked"),
}
CONFIG = tiny("v1.1", norm_groups=(10, 6), num_decoder_layers=1)  # grouped norms, gated units, an untied head
TEXTS = pairs(CONFIG, 3, [(9, 4), (5, 7), (11, 3), (4, 6)])
PACKED = packed([TEXTS[:2], TEXTS[2:]])


@functools.cache
def loss_and_gradient(config, compute):
    return once(jax.value_and_grad(lambda p, batch, key: batch_loss(p, config, batch, compute, key), has_aux=True))


def gradients(config, params, batch, compute, key=None):
    return loss_and_gradient(config, compute)(params, batch, key)


@pytest.fixture(scope="module")
def plain():
    params = random_t5(CONFIG, 1)
    return params, gradients(CONFIG, params, PACKED, Compute())


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr("fusion_core.models.t5.attention.QUERY_CHUNK", 4)


@pytest.mark.parametrize("name", COMPUTES)
def test_every_path_gives_the_plain_loss_and_gradient(plain, name):
    params, ((total, sums), expected) = plain
    (found, found_sums), found_gradients = gradients(CONFIG, params, PACKED, COMPUTES[name])
    assert float(found) == pytest.approx(float(total), rel=1e-5)
    for part in ("tokens", "nll", "correct"):
        assert found_sums[part].dtype == jnp.float32
        assert float(found_sums[part]) == pytest.approx(float(sums[part]), rel=1e-5), part
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), found_gradients, expected)
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected)) > 1e-3


def test_packed_documents_have_the_loss_that_they_have_apart(plain):
    params, ((total, sums), _) = plain
    apart, apart_sums = once(lambda p: batch_loss(p, CONFIG, rows(TEXTS)))(params)
    assert float(apart) == pytest.approx(float(total), rel=1e-5)
    assert int(sums["tokens"]) == int(apart_sums["tokens"]) == sum(len(target) for _, target in TEXTS)


def test_a_changed_document_changes_no_other_exactly():
    config, params = CONFIG, random_t5(CONFIG, 1)
    run = once(
        lambda ids, shifted, *segments: fc.forward(
            params,
            config,
            ids,
            shifted,
            **dict(zip(("encoder_segments", "decoder_segments"), segments, strict=False)),
        )
    )
    ids, targets = jnp.asarray(PACKED["encoder_ids"]), jnp.asarray(PACKED["targets"])
    segments = [jnp.asarray(PACKED[name]) for name in ("encoder_segments", "target_segments")]
    for changed, other in ((1, 2), (2, 1)):
        new = (
            jnp.where(segments[0] == changed, 2 + ids[:, ::-1] % 50, ids),
            jnp.where(segments[1] == changed, 3, targets),
        )
        kept = np.asarray(segments[1] == other)
        before, after = (np.asarray(run(*x, *segments)) for x in ((ids, targets), new))
        np.testing.assert_array_equal(after[kept], before[kept])
        assert np.abs(after - before)[np.asarray(segments[1] == changed)].max() > 0.1
        blind_before, blind_after = (np.asarray(run(*x)) for x in ((ids, targets), new))
        assert np.abs(blind_after - blind_before)[kept].max() > 1e-2


def test_what_padding_holds_changes_no_loss_of_a_packed_batch(plain):
    params, ((total, _), _) = plain
    garbage = {
        n: np.where(PACKED[f"{s}_segments"] == 0, 7, PACKED[n])
        for n, s in (("encoder_ids", "encoder"), ("targets", "target"))
    }
    (found, sums), _ = gradients(CONFIG, params, PACKED | garbage, Compute())
    assert float(found) == pytest.approx(float(total), rel=1e-6)
    assert int(sums["tokens"]) == sum(len(target) for _, target in TEXTS)


def test_every_document_begins_with_the_start_token():
    config = tiny(decoder_start_token_id=5)
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    shifted = fc.models.t5.model.shifted_right(jnp.array([[10, 11, 12, 20, 21, 0]]), config, jnp.asarray(segments))
    np.testing.assert_array_equal(shifted, [[5, 10, 11, 5, 20, 5]])


@pytest.mark.parametrize("missing", ["encoder_segments", "target_segments"])
def test_a_batch_packed_on_one_side_is_refused(missing):
    batch = {name: ids for name, ids in PACKED.items() if name != missing}
    with pytest.raises(fc.InputError, match=r"has segments, but the .* has none; a packed batch needs both"):
        batch_loss(random_t5(CONFIG, 1), CONFIG, batch)


def test_the_sums_are_those_of_the_logits_and_z_loss_is_its_formula():
    config = tiny("v1.0")
    params, batch = random_t5(config, 0), batch_of(config, 3)
    shifted = np.pad(batch["targets"][:, :-1], ((0, 0), (1, 0)))
    mask = batch["encoder_ids"] != 0
    out = np.asarray(logits(params, config, batch["encoder_ids"], shifted, mask), np.float64)
    counts = batch["targets"] != 0
    log_z = np.log(np.exp(out).sum(-1))
    nll = ((log_z - np.take_along_axis(out, batch["targets"][..., None], -1)[..., 0]) * counts).sum()
    for chunk in (None, 4):
        total, sums = once(lambda p, c=chunk: batch_loss(p, config, batch, Compute(z_loss=0.3, loss_chunk=c)))(params)
        assert float(sums["nll"]) == pytest.approx(nll, rel=1e-5)
        assert float(total) == pytest.approx(nll + 0.3 * (log_z**2 * counts).sum(), rel=1e-5)
        assert float(sums["correct"]) == ((out.argmax(-1) == batch["targets"]) & counts).sum()
        assert float(sums["tokens"]) == counts.sum()


def test_half_precision_is_close_and_its_gradient_is_float32(plain):
    params, ((total, _), expected) = plain
    (found, sums), found_gradients = gradients(CONFIG, params, PACKED, Compute(dtype="bfloat16"))
    assert found.dtype == sums["nll"].dtype == jnp.float32
    assert 0 < abs(float(found - total)) < 0.02 * float(total)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(found_gradients))
    distance = optax.tree.norm(jax.tree.map(jnp.subtract, found_gradients, expected))
    assert 0 < float(distance) < 0.05 * float(optax.tree.norm(expected))


def test_the_default_loss_has_all_modes_of_differentiation():
    """jvp, Hessian-vector product and Taylor series of the gradient, which bea uses, against central differences."""
    config = tiny("v1.0", num_layers=1, num_decoder_layers=1)
    params, batch = random_t5(config, 0), batch_of(config, 0, batch=2, source=5, target=4)

    def loss(p):
        total, count = token_loss(p, config, jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["targets"]))
        return total / count

    @once
    def all_modes(params, direction):
        def along(t):
            return loss(jax.tree.map(lambda p, d: p + t * d, params, direction))

        slope = jax.jvp(loss, (params,), (direction,))[1]
        forward = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
        curvature = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (forward, direction)), strict=True))
        series = jet.jet(jax.grad(along), (0.0,), ([1.0],))
        return slope, curvature, series, jax.lax.map(along, jnp.array([-1e-5, 0.0, 1e-5]))

    with jax.enable_x64(True):
        wide = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), p) for p in (params, random_t5(config, 9)))
        slope, curvature, (first, (second,)), line = jax.device_get(all_modes(*wide))
    assert slope == pytest.approx((line[2] - line[0]) / 2e-5, rel=1e-3)
    assert curvature == pytest.approx((line[2] - 2 * line[1] + line[0]) / 1e-10, rel=1e-2)
    np.testing.assert_allclose((first, second), (slope, curvature), rtol=1e-6)


def test_one_batch_is_learnt_by_heart():
    config = tiny("v1.1")
    batch = {name: jnp.asarray(ids) for name, ids in batch_of(config, 0).items()}
    optimizer = optax.adam(3e-2)

    def step(carry, _):
        params, state = carry
        (total, sums), gradient = jax.value_and_grad(lambda p: batch_loss(p, config, batch), has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), (total / sums["tokens"], sums["correct"] / sums["tokens"])

    params = init(config, 0)
    _, (losses, accuracies) = once(lambda c: jax.lax.scan(step, c, length=150))((params, optimizer.init(params)))
    assert losses[0] > 3
    assert losses[-1] < 1e-2
    assert accuracies[-1] == 1


# Fused attention, and the ways of other devices than a CPU


BIASED = tiny("v1.1", num_decoder_layers=1)


def padded(last=True, source=8, target=6):
    """A batch with padding, in the middle of a row unless it is to come last."""
    batch = batch_of(BIASED, 3, batch=3, source=source, target=target)
    ids = np.asarray(batch["encoder_ids"]).copy()
    ids[1, 5:] = BIASED.pad_token_id
    if not last:
        ids[2, 3] = BIASED.pad_token_id
    return batch | {"encoder_ids": jnp.asarray(ids)}


def relative(found, expected):
    """The norm of the difference over the norm."""
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (found, expected)]
    return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])


@pytest.mark.parametrize(("source", "target", "scan"), [(8, 6, False), (9, 5, True)])
def test_fused_attention_is_as_near_to_float32_as_the_plain_one(source, target, scan):
    params, batch = random_t5(BIASED, 1), padded(source=source, target=target)
    (exact, _), exact_gradient = gradients(BIASED, params, batch, Compute())
    error, gradient_error = {}, {}
    for attention in ("plain", "fused"):
        way = Compute(dtype="bfloat16", attention=attention, scan=scan)
        (total, _), gradient = gradients(BIASED, params, batch, way)
        error[attention] = abs(float(total) / float(exact) - 1)
        gradient_error[attention] = relative(gradient, exact_gradient)
    assert error["fused"] < 5e-3
    assert gradient_error["fused"] < 1.5 * gradient_error["plain"] < 0.1


@pytest.mark.parametrize(
    ("batch", "config", "key", "message"),
    [
        (PACKED, CONFIG, None, "takes no packed rows; use 'chunked'"),
        (padded(), tiny("v1.1", dropout_rate=0.1), jax.random.key(0), "dropout_rate is 0.1; use 'chunked'"),
    ],
)
def test_what_fused_attention_does_not_do_is_refused(batch, config, key, message):
    with pytest.raises(fc.InputError, match=message):
        batch_loss(random_t5(config, 0), config, batch, Compute(dtype="bfloat16", attention="fused"), key)


def test_the_fused_loss_of_padding_that_does_not_come_last_is_nan():
    way = Compute(dtype="bfloat16", attention="fused")
    (total, _), _ = gradients(BIASED, random_t5(BIASED, 1), padded(last=False), way)
    assert np.isnan(float(total))


def test_the_ways_of_a_gpu_give_the_loss_and_gradient_of_a_cpu(monkeypatch):
    params, batch = random_t5(BIASED, 1), padded(last=False)
    expected = gradients(BIASED, params, batch, Compute())
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compute = Compute(z_loss=0.0)
    found = jax.value_and_grad(lambda p: batch_loss(p, BIASED, batch, compute), has_aux=True)(params)
    assert float(found[0][0]) == pytest.approx(float(expected[0][0]), rel=1e-6)
    assert relative(found[1], expected[1]) < 1e-5


# Memory: what the compiler lays out, nothing runs


def temporaries(config, batch, source, target, compute):
    """Bytes of the largest set of temporary arrays of loss and gradient."""
    shapes = parameter_shapes(config)
    ids = {n: jax.ShapeDtypeStruct((batch, k), jnp.int32) for n, k in (("encoder_ids", source), ("targets", target))}
    step = once(jax.grad(lambda p, b: batch_loss(p, config, b, compute)[0]))
    return step.lower(shapes, ids).compile().memory_analysis().temp_size_in_bytes


def test_the_logits_of_a_large_vocabulary_are_never_held_whole():
    config = tiny("v1.1", vocab_size=32128, d_model=8, num_layers=1, num_decoder_layers=1)
    whole = 4 * 4 * 64 * 32128  # bytes of all logits
    assert temporaries(config, 4, 8, 64, Compute()) > whole
    assert temporaries(config, 4, 8, 64, Compute(loss_chunk=16)) < whole / 3


def test_all_pairs_of_positions_are_never_held_whole(monkeypatch):
    monkeypatch.setattr("fusion_core.models.t5.attention.QUERY_CHUNK", 32)
    config = tiny("v1.0", num_heads=4, num_layers=1, num_decoder_layers=1)
    whole = 4 * 32 * 4 * 384 * 384  # bytes of the encoder's pairs
    assert temporaries(config, 32, 384, 8, Compute()) > whole
    assert temporaries(config, 32, 384, 8, Compute(attention="chunked")) < whole / 2


def test_blocks_computed_again_hold_less():
    config = tiny("v1.0", d_ff=256, num_layers=6, num_decoder_layers=1)
    again = temporaries(config, 8, 128, 8, Compute(scan=True, remat=True))
    assert again < temporaries(config, 8, 128, 8, Compute(scan=True)) / 2


# Parts


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_of_a_sequence_is_that_of_all_its_pairs(bidirectional):
    config = tiny()
    weight = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)), jnp.float32)
    for length in (1, 2, 30):
        pairs = position_bias(weight, relative_buckets(length, length, config, bidirectional=bidirectional))
        np.testing.assert_array_equal(self_bias(weight, length, config, bidirectional=bidirectional), pairs)


def test_a_broadcast_is_the_same_on_every_backend(monkeypatch):
    x = jnp.arange(6.0).reshape(2, 3)
    here = broadcast_over(4, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(broadcast_over(4, x), here)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "Compute.dtype is 'float16'; it must be 'float32' or 'bfloat16'"),
        ({"attention": "flash"}, "Compute.attention is 'flash'; it must be 'plain' or 'chunked' or 'fused'"),
        ({"attention": "fused"}, "which needs dtype 'bfloat16'; use 'chunked' with 'float32'"),
        ({"loss_chunk": 0}, "Compute.loss_chunk is 0; it must be a positive number of tokens, or None"),
        ({"z_loss": -1.0}, "Compute.z_loss is -1.0; it must be zero or positive"),
    ],
)
def test_ways_to_compute_that_are_none_are_refused(changes, message):
    with pytest.raises(fc.InputError, match=message):
        Compute(**changes)


# Dropout


def test_without_a_rate_or_without_a_key_nothing_drops():
    config, dropping = tiny("v1.0"), tiny("v1.0", dropout_rate=0.5)
    params, batch = random_t5(config, 0), batch_of(config, 0)

    @once
    def losses(seeds):
        plain, rateless, keyless = (
            batch_loss(params, c, batch, Compute(), k)[0]
            for c, k in ((config, None), (config, jax.random.key(0)), (dropping, None))
        )
        dropped = jax.lax.map(lambda s: batch_loss(params, dropping, batch, Compute(), jax.random.key(s))[0], seeds)
        return plain, rateless, keyless, dropped

    plain, rateless, keyless, dropped = jax.device_get(losses(jnp.array([0, 0, 1])))
    assert plain == rateless == keyless
    assert dropped[0] == dropped[1] != dropped[2]
    assert abs(dropped[0] - plain) > 1e-3


def test_dropped_entries_are_zero_and_the_mean_is_kept():
    x = jnp.full((200, 500), 3.0)
    for rate in (0.1, 0.5, 0.9):
        dropped = np.asarray(fc.models.t5.layers.dropout(x, rate, jax.random.key(1)))
        share = (dropped == 0).mean()
        deviation = (rate * (1 - rate) / x.size) ** 0.5
        assert abs(share - rate) < 5 * deviation
        assert np.unique(dropped).size == 2
        assert abs(dropped.mean() - 3) < 5 * 3 * deviation / (1 - rate)


def test_scanned_and_rematerialised_layers_drop_the_same_units(plain):
    params, _ = plain
    config, key = tiny("v1.1", norm_groups=(10, 6), num_decoder_layers=1, dropout_rate=0.3), jax.random.key(4)

    @once
    def losses():
        ways = (Compute(), Compute(scan=True, remat=True))
        return [batch_loss(params, config, PACKED, way, key)[0] for way in ways]

    expected, found = losses()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# The product for training


def test_the_product_for_training_has_the_gradient_and_curvature_of_the_plain_one_but_no_forward_mode():
    rng = np.random.default_rng(0)
    # wide: the smaller factor goes left; narrow: it does not
    for outputs, inputs in ((40, 3), (3, 40)):
        arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 5, inputs), (outputs, inputs))]
        found = []
        for multiply in (product, reverse_product):
            loss = lambda x, w, f=multiply: jnp.sum(jnp.sin(f(x, w)))
            gradient = jax.grad(loss, (0, 1))
            found.append((gradient(*arrays), jax.jvp(gradient, arrays, arrays)[1]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), *found)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(reverse_product, arrays, arrays)
