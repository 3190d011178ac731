"""What files need to know of an architecture: another one is one entry more in ``ARCHITECTURES``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fusion_core.checkpoints.ranges import Entry
from fusion_core.errors import InputError
from fusion_core.models.decoder import files as decoder_files
from fusion_core.models.decoder.config import DecoderConfig, GPT2Config
from fusion_core.models.decoder.model import forward as decoder_forward
from fusion_core.models.decoder.model import parameter_shapes as decoder_shapes
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.files import UNUSED, config_from_json, config_to_json, flat_names
from fusion_core.models.t5.model import forward, parameter_shapes
from fusion_core.text.span_corruption import SpanCorruption
from fusion_core.text.tokenizer import EOS, Tokenizer

Batch = dict[str, Any]  # integer arrays by name, "targets" among them


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Functions of one architecture's configuration.

    Attributes:
      read_config: (values of config.json, where they come from) -> configuration. Raises InputError.
      write_config: configuration -> values of config.json.
      shapes: configuration -> nested dict of shapes; its dotted names are those of the files.
      aliases: configuration -> {name: the names under which files may have it instead, the first that is there counts}.
      copies: configuration -> {name: the tensor that it repeats}; files may have them, the fused ones do not.
      ignored: (configuration, name) -> whether files may have this tensor though the network does not read it.
      logits: (params, configuration, batch) -> logits [batch, target, vocabulary].
      probe: (configuration, seed) -> a small batch of random tokens.
      text: (texts, tokenizer, configuration, rows, seed) -> a batch of at most so many rows. Raises InputError.
    """

    read_config: Callable[[dict[str, Any], str], Any]
    write_config: Callable[[Any], dict[str, Any]]
    shapes: Callable[[Any], dict[str, Any]]
    aliases: Callable[[Any], Mapping[str, tuple[str, ...]]]
    copies: Callable[[Any], Mapping[str, str]]
    ignored: Callable[[Any, str], bool]
    logits: Callable[[Any, Any, Batch], Any]
    probe: Callable[[Any, int], Batch]
    text: Callable[[list[str], Tokenizer, Any, int, int], Batch]

    def resolve(self, config: Any, found: Mapping[str, Entry]) -> dict[str, Entry]:
        """The files' tensors under the network's names: an alias stands in where the tensor itself is absent."""
        used = dict(found)
        for name, others in self.aliases(config).items():
            for other in others:
                if name not in used and other in found:
                    used[name] = found[other]
        return used


HEAD = "lm_head.weight"
_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _t5_aliases(config: T5Config) -> dict[str, tuple[str, ...]]:
    embedding: dict[str, tuple[str, ...]] = {"shared.weight": _EMBEDDINGS}
    if config.tie_word_embeddings:
        return embedding
    # an unscaled head equal to the embedding is saved once
    return embedding | {HEAD: ("shared.weight", *_EMBEDDINGS)}


def _t5_copies(config: T5Config) -> dict[str, str]:
    return dict.fromkeys((*_EMBEDDINGS, *((HEAD,) if config.tie_word_embeddings else ())), "shared.weight")


def _check_pieces(tokenizer: Tokenizer, config: Any) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, but the network {config.vocab_size}; they do not belong "
            "together"
        )


def _shifted(config: T5Config, encoder_ids: np.ndarray, targets: np.ndarray) -> Batch:
    start = np.full_like(targets[:, :1], config.decoder_start_token_id)
    return {
        "encoder_ids": encoder_ids,
        "decoder_ids": np.concatenate([start, targets[:, :-1]], axis=1),
        "targets": targets,
    }


def _t5_probe(config: T5Config, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    return _shifted(config, *(rng.integers(0, config.vocab_size, (2, n), np.int32) for n in (16, 12)))


def _t5_text(texts: list[str], tokenizer: Tokenizer, config: T5Config, rows: int, seed: int) -> Batch:
    """Span-corrupted windows, as T5 is pre-trained."""
    last = tokenizer.backend.token_to_id("<extra_id_0>")
    if last is None:
        raise InputError("the tokenizer has no <extra_id_0>; T5's text is given with sentinels for the spans left out")
    _check_pieces(tokenizer, config)
    ids = tokenizer.encode(texts)
    documents = [x if len(x) and x[-1] == EOS else np.append(x, np.int32(EOS)) for x in ids]
    # short texts make short windows
    source = max(8, min(64, sum(map(len, documents)) // 2))
    data = SpanCorruption.from_documents(documents, tokenizer, source, seed)
    batch = dataclasses.replace(data, last_id=last).batch(0, min(rows, len(data.windows)))
    return _shifted(config, batch["encoder_ids"], batch["targets"])


def _t5_logits(params: Any, config: T5Config, batch: Batch) -> Any:
    return forward(params, config, jnp.asarray(batch["encoder_ids"]), jnp.asarray(batch["decoder_ids"]))


def _next_tokens(ids: np.ndarray) -> Batch:
    return {"ids": ids[:, :-1], "targets": ids[:, 1:]}


def _decoder_probe(config: DecoderConfig, seed: int) -> Batch:
    length = min(16, config.n_positions) if isinstance(config, GPT2Config) else 16
    return _next_tokens(np.random.default_rng(seed).integers(0, config.vocab_size, (2, length + 1), np.int32))


def _decoder_text(texts: list[str], tokenizer: Tokenizer, config: DecoderConfig, rows: int, seed: int) -> Batch:
    """Windows of the texts, one after the other, drawn with the seed."""
    _check_pieces(tokenizer, config)
    stream = np.concatenate(tokenizer.encode(texts)).astype(np.int32)
    length = min(64, len(stream) - 1, config.n_positions if isinstance(config, GPT2Config) else 64)
    if length < 1:
        raise InputError(f"the text has {len(stream)} tokens, but the next token of one is asked for; give more text")
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[::length]
    order = np.random.default_rng(seed).permutation(len(windows))[:rows]
    return _next_tokens(windows[order])


def _decoder_logits(params: Any, config: DecoderConfig, batch: Batch) -> Any:
    return decoder_forward(params, config, jnp.asarray(batch["ids"]))


def _decoder(prefix: str, embedding: str) -> Architecture:
    """Of decoder-only networks whose arrays, all but the head, are named ``prefix...``; the bare model's are not."""

    def aliases(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
        bare = {name: (name.removeprefix(prefix),) for name in flat_names(decoder_shapes(config))}
        return bare | ({embedding: (*bare[embedding], HEAD)} if config.tie_word_embeddings else {})

    def copies(config: DecoderConfig) -> dict[str, str]:
        return {HEAD: embedding} if config.tie_word_embeddings else {}

    return Architecture(
        read_config=decoder_files.config_from_json,
        write_config=decoder_files.config_to_json,
        shapes=decoder_shapes,
        aliases=aliases,
        copies=copies,
        ignored=lambda config, name: bool(decoder_files.UNUSED.search(name)) or name in copies(config),
        logits=_decoder_logits,
        probe=_decoder_probe,
        text=_decoder_text,
    )


# model_type in config.json -> the functions
ARCHITECTURES: dict[str, Architecture] = {
    "t5": Architecture(
        read_config=config_from_json,
        write_config=config_to_json,
        shapes=parameter_shapes,
        aliases=_t5_aliases,
        copies=_t5_copies,
        ignored=lambda config, name: name == UNUSED or name in _t5_copies(config),
        logits=_t5_logits,
        probe=_t5_probe,
        text=_t5_text,
    ),
    "llama": _decoder("model.", "model.embed_tokens.weight"),
    "gpt2": _decoder("transformer.", "transformer.wte.weight"),
}
