"""Every way to compute the loss, in float64, against Hugging Face's T5 with its norm's variance in float64 too."""

import warnings

import jax
import numpy as np
import pytest

import fusion_core as fc
from fusion_core.models.t5 import Compute, batch_loss
from fusion_core.models.units import by_name
from tests.strategies.networks import STYLES, once, random_t5, tiny
from tests.strategies.packing import packed, pairs, rows

WHY = "the reference implementation is an extra: pip install 'deepfusion[parity]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    torch = pytest.importorskip("torch", reason=WHY)
    pytest.importorskip("transformers", reason=WHY)
    from transformers import T5ForConditionalGeneration
    from transformers.models.t5.modeling_t5 import T5LayerNorm

TOLERANCE = 1e-9
Z_LOSS = 1e-2
COMPUTES = {
    "plain": Compute(),
    "scanned": Compute(scan=True),
    "rematerialised": Compute(remat=True),
    "reverse mode only": Compute(reverse_only=True),
    "loss in chunks": Compute(loss_chunk=5),
    "attention in chunks": Compute(attention="chunked"),
    "z-loss": Compute(z_loss=Z_LOSS),
    "packed": Compute(),
    "packed, and all of them": Compute(
        scan=True, remat=True, reverse_only=True, loss_chunk=5, attention="chunked", z_loss=Z_LOSS
    ),
}


def norm_in_float64(self, hidden):
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.fixture(scope="module", params=sorted(STYLES))
def case(request, tmp_path_factory):
    """(params, config, documents, z-loss -> (the reference's loss, logits of the documents in rows, gradients))."""
    config = tiny(request.param, num_layers=1, num_decoder_layers=1)  # test_t5_paths and test_parity have more
    params = random_t5(config, 4)
    folder = tmp_path_factory.mktemp("reference") / "ours"
    fc.save_pretrained(folder, params, config)
    model = T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval().double()
    texts = pairs(config, 3, [(9, 4), (5, 7), (11, 3), (4, 6), (7, 5)])
    batch = {name: torch.tensor(ids).long() for name, ids in rows(texts).items()}
    before, threads = T5LayerNorm.forward, torch.get_num_threads()
    T5LayerNorm.forward = norm_in_float64
    torch.set_num_threads(1)
    results = {}
    try:
        for z_loss in (0.0, Z_LOSS):
            model.zero_grad()
            ids, targets = batch["encoder_ids"], batch["targets"]
            shifted = torch.nn.functional.pad(targets[:, :-1], (1, 0))
            out = model(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=shifted).logits
            log_z = torch.logsumexp(out, -1)
            losses = log_z - out.gather(-1, targets[..., None])[..., 0] + z_loss * log_z**2
            loss = (losses * (targets != 0)).sum()
            loss.backward()
            gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
            results[z_loss] = loss.item(), out.detach().numpy(), gradients
    finally:
        T5LayerNorm.forward = before
        torch.set_num_threads(threads)
    return params, config, texts, results


@pytest.mark.parametrize("name", COMPUTES)
def test_loss_and_gradients_equal_the_references(case, name, monkeypatch):
    monkeypatch.setattr("fusion_core.models.t5.attention.QUERY_CHUNK", 4)
    params, config, texts, results = case
    batch = packed([texts[:2], texts[2:]]) if "packed" in name else rows(texts)
    expected, _, theirs = results[COMPUTES[name].z_loss]
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda w: jax.numpy.asarray(w, jax.numpy.float64), params)
        loss = once(jax.value_and_grad(lambda p: batch_loss(p, config, batch, COMPUTES[name]), has_aux=True))
        (total, sums), gradients = loss(wide)
        ours = {n: np.asarray(g) for n, g in by_name(gradients).items()}
    assert float(total) == pytest.approx(expected, abs=TOLERANCE * len(texts))
    assert int(sums["tokens"]) == sum(len(target) for _, target in texts)
    assert set(ours) == set(theirs)
    for tensor, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[tensor], rtol=0, atol=TOLERANCE, err_msg=tensor)
    assert min(np.abs(g).max() for g in theirs.values()) > 1e6 * TOLERANCE


def test_logits_equal_the_references(case):
    params, config, texts, results = case
    batch = rows(texts)
    shifted = np.pad(batch["targets"][:, :-1], ((0, 0), (1, 0)))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda w: jax.numpy.asarray(w, jax.numpy.float64), params)
        ours = once(fc.forward, static_argnums=1)(
            wide, config, batch["encoder_ids"], shifted, batch["encoder_ids"] != 0
        )
        np.testing.assert_allclose(np.asarray(ours), results[0.0][1], rtol=0, atol=TOLERANCE)


def test_a_document_that_sees_another_would_show(case):
    """Without its segments the packed batch has another loss."""
    params, config, texts, results = case
    batch = packed([texts[:2], texts[2:]])
    blind = {name: batch[name] for name in ("encoder_ids", "targets")}
    loss = once(lambda p, b: batch_loss(p, config, b)[0])
    assert abs(float(loss(params, batch)) - results[0.0][0]) < 1e-3
    assert abs(float(loss(params, blind)) - results[0.0][0]) > 0.1
