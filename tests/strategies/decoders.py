"""Small Llamas and GPT-2s for the tests: every feature of the large ones, compiled in a second."""

import jax
import jax.numpy as jnp
import numpy as np

import fusion_core as fc
from fusion_core.models.decoder import model as decoder
from fusion_core.models.registry import parameter_shapes

# two sources of unequal widths each, whose fused sizes transformers takes
LLAMAS = (
    {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1},
    {"hidden_size": 16, "intermediate_size": 10, "num_attention_heads": 4, "num_key_value_heads": 2},
)
GPT2S = ({"n_embd": 8, "n_inner": 12, "n_head": 2}, {"n_embd": 12, "n_inner": 10, "n_head": 3})
KINDS = ("llama", "llama, tied", "qwen2", "gpt2", "gpt2, untied")

logits = jax.jit(decoder.forward, static_argnums=1)


def small(kind: str, i: int = 0, **changes):
    """Configuration ``i`` of the kind; the untied Llama has all biases, and few rotary turns."""
    common = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}
    if not kind.startswith("gpt2"):
        common |= {"num_hidden_layers": 1, "head_dim": 6, "rope_theta": 100.0, "tie_word_embeddings": "tied" in kind}
        if kind.startswith("qwen2"):
            return fc.Qwen2Config(**{**common, **LLAMAS[i], **changes})
        common |= {"attention_bias": kind == "llama", "mlp_bias": kind == "llama"}
        return fc.LlamaConfig(**{**common, **LLAMAS[i], **changes})
    common |= {"n_layer": 1, "n_positions": 20, "tie_word_embeddings": "untied" not in kind}
    return fc.GPT2Config(**{**common, **GPT2S[i], **changes})


def random_params(config, seed: int, dtype=jnp.float32):
    """Logits of scale one; norm scales and biases away from their starts, so that a lost one shows."""

    def drawn(path, struct):
        shape = struct.shape
        rng = np.random.default_rng((seed, len(jax.tree_util.keystr(path)), *shape))
        parent, name = path[-2].key, path[-1].key
        values = 0.4 * rng.standard_normal(shape)
        if name == "weight" and ("norm" in parent or parent.startswith("ln_")):
            values += 1
        return jnp.asarray(values, dtype)

    return jax.tree_util.tree_map_with_path(drawn, parameter_shapes(config))


def tokens(config, seed: int = 0, *, batch: int = 3, length: int = 11):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (batch, length)).astype(np.int32)
