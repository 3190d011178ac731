"""Against Hugging Face's T5 in PyTorch, an independent implementation: ``pip install deepfusion[parity]``."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fusion_core as fc
from fusion_core.models.t5 import files, parameter_shapes
from fusion_core.models.t5.model import relative_buckets
from fusion_core.models.units import by_name
from fusion_core.text import train_tokenizer
from tests.strategies.networks import STYLES, batch_of, logits, mean_loss, random_t5, tiny
from tests.strategies.texts import sentences

WHY = "the reference implementation is an extra: pip install 'deepfusion[parity]'"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    torch = pytest.importorskip("torch", reason=WHY)
    transformers = pytest.importorskip("transformers", reason=WHY)
    from transformers import T5ForConditionalGeneration
    from transformers.models.t5.modeling_t5 import T5Attention

TOLERANCE = 2e-5  # float32, logits of scale one


pytestmark = pytest.mark.usefixtures("few_torch_threads")


def reference(folder):
    return T5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


def reference_logits(model, batch):
    ids = torch.tensor(batch["encoder_ids"]).long()
    with torch.no_grad():
        decoder_ids = torch.tensor(batch["targets"]).long()
        out = model(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=decoder_ids)
    return out.logits.numpy()


def our_logits(params, config, batch):
    return np.asarray(logits(params, config, batch["encoder_ids"], batch["targets"], batch["encoder_ids"] != 0))


@pytest.fixture(scope="module", params=sorted(STYLES))
def pair(request, tmp_path_factory):
    """(params, config, the reference's model read from our files)."""
    config = tiny(request.param)
    params = random_t5(config, 4)
    folder = tmp_path_factory.mktemp("parity") / "ours"
    fc.save_pretrained(folder, params, config)
    return params, config, reference(folder)


@pytest.mark.parametrize(("source", "target"), [(11, 7), (150, 130)], ids=["short", "beyond the buckets' range"])
def test_logits_equal_the_references(pair, source, target):
    params, config, model = pair
    batch = batch_of(config, 0, source=source, target=target)
    assert (batch["encoder_ids"] == 0).any()
    ours, theirs = our_logits(params, config, batch), reference_logits(model, batch)
    assert np.abs(theirs).mean() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_loss_and_gradients_equal_the_references(pair):
    params, config, model = pair
    batch = batch_of(config, 1)
    loss, grads = jax.jit(jax.value_and_grad(mean_loss(config)))(params, batch)
    ids = torch.tensor(batch["encoder_ids"]).long()
    labels = torch.tensor(np.where(batch["targets"] == 0, -100, batch["targets"])).long()
    model.zero_grad()
    result = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels)
    result.loss.backward()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    ours = by_name(grads)
    assert float(loss) == pytest.approx(result.loss.item(), abs=TOLERANCE)
    assert set(theirs) == set(ours)
    for name, gradient in ours.items():
        np.testing.assert_allclose(np.asarray(gradient), theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)
    assert min(np.abs(g).max() for g in theirs.values()) > 100 * TOLERANCE


def test_a_fused_checkpoint_loads_in_the_reference_and_gives_our_logits(pair, tmp_path):
    params, config, _ = pair
    other = random_t5(config, 5)
    fused, fused_config = fc.fuse([(params, config), (other, config)])
    fc.save_pretrained(tmp_path / "fused", fused, fused_config)
    batch = batch_of(config, 2)
    theirs = reference_logits(reference(tmp_path / "fused"), batch)
    np.testing.assert_allclose(our_logits(fused, fused_config, batch), theirs, rtol=0, atol=TOLERANCE)


def test_what_the_reference_saves_again_is_read_back(pair, tmp_path):
    """transformers 5 writes tie_word_embeddings = true whatever the model; the truth is in scale_decoder_outputs."""
    params, config, model = pair
    model.save_pretrained(tmp_path / "theirs")
    read, read_config = fc.load_pretrained(tmp_path / "theirs")
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_what_the_reference_saves_says_that_it_is_tied_whatever_it_is(pair, tmp_path):
    """If this fails, transformers has changed its mind and ``config_from_json`` may become simpler."""
    _, config, model = pair
    model.save_pretrained(tmp_path / "theirs")
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert values["tie_word_embeddings"] is True
    assert values["scale_decoder_outputs"] is config.tie_word_embeddings


def test_buckets_equal_the_references_for_many_lengths():
    for buckets, farthest in ((32, 128), (8, 20), (64, 300), (10, 77)):
        config = tiny(relative_attention_num_buckets=buckets, relative_attention_max_distance=farthest)
        for bidirectional in (True, False):
            for queries, keys in ((1, 1), (3, 9), (130, 130), (1, 1100), (700, 5)):
                distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
                theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, farthest)
                ours = relative_buckets(queries, keys, config, bidirectional=bidirectional)
                np.testing.assert_array_equal(ours, theirs.numpy(), err_msg=f"{buckets} {farthest} {queries} {keys}")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("t5-small", 60_506_624), ("t5-base", 222_903_552), ("t5-v1_1-small", 76_961_152), ("t5-v1_1-base", 247_577_856)],
)
def test_named_configurations_have_the_references_shapes(name, parameters):
    config = fc.T5Config.named(name)
    theirs = transformers.T5Config(**files.config_to_json(config))
    with torch.device("meta"):
        model = T5ForConditionalGeneration(theirs)
    tied = "embed_tokens|lm_head" if config.tie_word_embeddings else "embed_tokens"
    expected = {n: tuple(p.shape) for n, p in model.state_dict().items() if not re.search(tied, n)}
    ours = {name: struct.shape for name, struct in by_name(parameter_shapes(config)).items()}
    assert ours == expected
    assert sum(int(np.prod(shape)) for shape in ours.values()) == parameters


def test_our_tokenizer_gives_the_same_ids_in_the_reference(tmp_path):
    texts = sentences(seed=0, n=300)
    tokenizer = train_tokenizer(texts, 320)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    samples = [*texts[:5], "naïve Ωmega 漢字 🙂", "  two  spaces\nand a line ", "a <extra_id_0> b <extra_id_99>", ""]
    for sample, ids in zip(samples, tokenizer.encode(samples), strict=True):
        assert theirs(sample)["input_ids"] == ids.tolist(), sample
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == tokenizer.sentinel(0) == len(theirs) - 1


def test_a_gelu_that_is_not_approximated_would_show():
    """The tolerance tells the tanh approximation, which v1.1 uses, from the exact function."""
    x = jnp.linspace(-3, 3, 50)
    assert float(jnp.abs(jax.nn.gelu(x, approximate=True) - jax.nn.gelu(x, approximate=False)).max()) > 10 * TOLERANCE


def test_a_copy_of_the_embedding_may_stand_for_it(tmp_path):
    """Old files carry encoder.embed_tokens and decoder.embed_tokens beside shared, or instead of it."""
    config = tiny()
    params = random_t5(config, 0)
    fc.save_pretrained(tmp_path / "a", params, config)
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "model.safetensors")
    embedding = tensors.pop("shared.weight")
    tensors |= {f"{stack}.embed_tokens.weight": embedding for stack in ("encoder", "decoder")}
    safetensors.numpy.save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    read, read_config = fc.load_pretrained(tmp_path / "a")
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    batch = batch_of(config, 3)
    theirs = reference_logits(reference(tmp_path / "a"), batch)
    np.testing.assert_allclose(our_logits(read, config, batch), theirs, rtol=0, atol=TOLERANCE)
