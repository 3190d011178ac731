"""Text for the tests: sentences of made-up words, so that a tokenizer has something to learn."""

import functools
import random

from fusion_core.text import Tokenizer, train_tokenizer


def sentences(seed: int, n: int) -> list[str]:
    """n sentences of 8 to 16 words from a vocabulary of 400; equal seeds give equal sentences."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    return [" ".join(rng.choices(words, k=rng.randint(8, 16))).capitalize() + "." for _ in range(n)]


def documents(seed: int, n: int, length: int = 12) -> list[str]:
    """n documents of ``length`` sentences, a sentence a line."""
    drawn = sentences(seed, n * length)
    return ["\n".join(drawn[i : i + length]) for i in range(0, len(drawn), length)]


@functools.cache
def tokenizer(pieces: int = 320) -> Tokenizer:
    """A tokenizer of 300 sentences."""
    return train_tokenizer(sentences(seed=0, n=300), pieces)


def rebuilt(source, target, first: int) -> list[int]:
    """The tokens that a corrupted source and its target were made of; ids from ``first`` on are sentinels."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token >= first:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    tokens = [t for token in source[:-1].tolist() for t in (spans.pop(token) if token >= first else [token])]
    assert not any(spans.values())
    return tokens
