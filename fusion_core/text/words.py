"""T5's way from a text to words, and encoding by it: every word that occurs is encoded once, however often it does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers.models import Unigram

# what Python takes for white space and the library for characters
_UNLIKE = re.compile("[\x1c-\x1f]")


def t5_pipeline(backend: tokenizers.Tokenizer, end: str, end_id: int) -> None:
    """Let a tokenizer make words from white space, each with ▁ before it, and write an end token after each text."""
    metaspace: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    backend.decoder = decoders.Metaspace(**metaspace)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, end_id)]
    )


class _Numbers(dict[str, int]):
    """Number words in the order in which they first come."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


@dataclasses.dataclass(frozen=True)
class WordByWord:
    """Encoding of texts by a tokenizer whose words do not depend on each other, as ``t5_pipeline`` makes them.

    Attributes:
      backend: the tokenizer.
      special: finds the names of special tokens; a text with one is encoded by the library.
      end: ids that are written after each text.
    """

    backend: tokenizers.Tokenizer
    special: re.Pattern[str]
    end: tuple[int, ...]

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> WordByWord | None:
        """Return the encoding; None if the tokenizer has another way to words than ``t5_pipeline``, or changes the text."""
        facts = json.loads(backend.to_str())
        end = backend.encode("").ids
        if len(end) != 1:
            return None
        plain = tokenizers.Tokenizer(Unigram([("", 0.0)], unk_id=0))
        t5_pipeline(plain, str(backend.id_to_token(end[0])), end[0])
        expected = json.loads(plain.to_str())
        names = ("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding")
        if any(facts.get(name) != expected[name] for name in names) or facts["model"].get("type") != "Unigram":
            return None
        special = sorted(token["content"] for token in facts["added_tokens"])
        return cls(backend, re.compile("|".join(map(re.escape, special)) or "(?!)"), tuple(end))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, equal to the library's; raises what it raises."""
        numbers = _Numbers()
        words = [
            None
            if self.special.search(text) or _UNLIKE.search(text)
            else np.fromiter(map(numbers.__getitem__, text.split()), np.int32)
            for text in texts
        ]  # fmt: skip
        pieces = [found.ids for found in self.backend.encode_batch_fast(list(numbers), add_special_tokens=False)]
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        flat = np.fromiter(itertools.chain.from_iterable(pieces), np.int32, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        others = iter(self.backend.encode_batch_fast([t for t, w in zip(texts, words, strict=True) if w is None]))
        return [
            np.asarray(next(others).ids, np.int32)
            if w is None
            else np.append(_joined(flat, starts[w], lengths[w]), self._end)
            for w in words
        ]

    @property
    def _end(self) -> np.ndarray:
        return np.asarray(self.end, np.int32)


def _joined(flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the parts of ``flat`` that begin at ``starts`` and have these lengths, one after the other."""
    ends = np.cumsum(lengths)
    return flat[np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)]
