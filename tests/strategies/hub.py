"""Tiny random networks of transformers, of every architecture that can be fused: as people have them, made in a second."""

import functools
import json
import pathlib
import warnings

import numpy as np
import pytest

WHY = "the reference implementation is an extra: pip install 'deepfusion[parity]'"
_DECODER = {
    **{"vocab_size": 30, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
_T5 = {
    **{
        "vocab_size": 30,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 12,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16},
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16}
_GPT2 = {"vocab_size": 30, "n_embd": 16, "n_inner": 12, "n_layer": 2, "n_head": 4, "n_positions": 64}
_NO_GROUPS = {name: value for name, value in _DECODER.items() if name != "num_key_value_heads"}

# name -> (model_type, configuration): windows shorter than the texts, caps that matter, heads of other widths than d / H
ARCHITECTURES = {
    "T5": ("t5", _T5),
    "T5 v1.1, flan-T5": ("t5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "T5, gated-silu": ("t5", _T5 | {"feed_forward_proj": "gated-silu"}),
    "ByT5": ("t5", _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1}),
    "mT5": ("mt5", _T5),
    "umT5": ("umt5", _T5),
    "Llama": ("llama", _DECODER | {"attention_bias": True, "head_dim": 6}),
    "Llama, yarn": ("llama", _DECODER | {"rope_parameters": _YARN, "mlp_bias": True}),
    "Mistral": ("mistral", _DECODER | {"sliding_window": 8}),
    "Qwen2": ("qwen2", _DECODER | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "Qwen3": ("qwen3", _DECODER | {"head_dim": 6}),
    "Gemma 2": (
        "gemma2",
        _DECODER
        | {"head_dim": 6, "query_pre_attn_scalar": 5, "sliding_window": 4}
        | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 1.5},
    ),
    "Phi-3": ("phi3", _DECODER),
    "GPT-NeoX": ("gpt_neox", _NO_GROUPS),
    "GPT-2": ("gpt2", _GPT2),
}


@functools.cache
def transformers():
    """The library, with torch on one thread: the sizes are tiny, more threads only wait for each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
        torch = pytest.importorskip("torch", reason=WHY)
        found = pytest.importorskip("transformers", reason=WHY)
    torch.set_num_threads(1)
    found.utils.logging.set_verbosity_error()
    found.utils.logging.disable_progress_bar()
    return found


def _auto(name_or_type):
    library, t5 = transformers(), name_or_type in ("t5", "mt5", "umt5")
    return library.AutoModelForSeq2SeqLM if t5 else library.AutoModelForCausalLM


def made(name, seed=0, dtype="float32", **changes):
    """A random network, its norms and biases away from their starts, so that a lost one shows."""
    import torch

    kind, values = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = transformers().AutoConfig.for_model(kind, **{**values, **changes})
    model = _auto(kind).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.to(getattr(torch, dtype))


def saved(folder, name, seed=0, **changes):
    """A random network in a folder, as ``save_pretrained`` writes it."""
    made(name, seed, **changes).save_pretrained(folder)
    return pathlib.Path(folder)


def loaded(folder, dtype="float32"):
    """The network of a folder, as transformers loads it."""
    import torch

    kind = transformers().AutoConfig.from_pretrained(folder).model_type
    return _auto(kind).from_pretrained(folder, attn_implementation="eager", dtype=getattr(torch, dtype)).eval()


def tokens():
    """Fixed tokens: (of a decoder or an encoder, of an encoder's decoder)."""
    ids = np.random.default_rng(0).integers(3, 30, (2, 12))
    return ids, ids[:, :7]


def logits(folder_or_model):
    """The logits on ``tokens``, computed in float32 from the weights as they are."""
    import torch

    model = loaded(folder_or_model) if isinstance(folder_or_model, str | pathlib.Path) else folder_or_model.float()
    ids, targets = map(torch.tensor, tokens())
    given = {"decoder_input_ids": targets} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **given).logits.numpy()


OLD_ROPE = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
DROPOUTS = ("attention_dropout", "hidden_dropout")  # zero, which older files leave out
PREFIXES = ("model.", "transformer.", "gpt_neox.")


def in_older_layout(values, tensors):
    """The same checkpoint as transformers 4 and before left it: settings' older names, no prefix, buffers, copies."""
    import torch

    kind = values["model_type"]
    rope = values.pop("rope_parameters", None)
    if rope is not None:
        theta, turned = OLD_ROPE.get(kind, ("rope_theta", "partial_rotary_factor"))
        named = {"rope_theta": theta, "partial_rotary_factor": turned}
        values |= {named[name]: rope[name] for name in named if name in rope}
        if rope["rope_type"] != "default":
            values["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    values["torch_dtype"] = values.pop("dtype")
    if kind == "gemma2":
        values |= {"hidden_act": values["hidden_activation"], "cache_implementation": "hybrid"}
    for name in (
        "layer_types",
        "dense_act_fn",
        "is_gated_act",
        "transformers_version",
        "classifier_dropout",
        *DROPOUTS,
    ):
        values.pop(name, None)
    if values.get("is_encoder_decoder"):
        if kind == "t5":
            values["tie_word_embeddings"] = values.pop("scale_decoder_outputs")
        copies = [f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
        return values, tensors | {name: tensors["shared.weight"].clone() for name in copies}
    bare = {}
    for name, tensor in tensors.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        bare[name.removeprefix(prefix)] = tensor
    buffers = {"gpt2": "h.0.attn.bias", "llama": "layers.0.self_attn.rotary_emb.inv_freq"}
    if kind in buffers:
        bare[buffers[kind]] = torch.ones(1, 1, 4, 4)
    return values, bare


def laid_out(folder, name, *, dtype, tied, sharded, old):
    """A random network in a folder in one of the layouts that people have."""
    import safetensors.torch
    import torch

    folder, seq2seq = pathlib.Path(folder), ARCHITECTURES[name][0] in ("t5", "mt5", "umt5")
    changes = {} if ARCHITECTURES[name][0] in ("mt5", "umt5") else {"tie_word_embeddings": tied}
    made(name, dtype=dtype, **changes).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    if seq2seq and not tied:
        tensors["lm_head.weight"] = torch.randn(tensors["shared.weight"].shape).to(tensors["shared.weight"].dtype)
    if old:
        values, tensors = in_older_layout(values, tensors)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "model.safetensors").unlink()
    parts = [sorted(tensors)] if not sharded else [sorted(tensors)[i::3] for i in range(3)]
    files = ["model.safetensors"] if not sharded else [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    for file, part in zip(files, parts, strict=True):
        safetensors.torch.save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    if sharded:
        weight_map = {n: file for file, part in zip(files, parts, strict=True) for n in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
