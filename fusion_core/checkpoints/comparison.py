"""Two checkpoints compared: their logits, losses and tensors side by side, one tensor in memory at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.checkpoints.batches import probe, text_windows
from fusion_core.checkpoints.checkpoint import Checkpoint, LazyParams
from fusion_core.checkpoints.ranges import FLOATS, Entry, Reader
from fusion_core.checkpoints.tokenizers import check_same_tokenizer
from fusion_core.errors import InputError
from fusion_core.growth.norms import Moments, Path, norm_moments, with_paths
from fusion_core.models.registry import Batch
from fusion_core.models.units import nested
from fusion_core.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Deviation:
    """The deviation of one network's logits from the weighted mean of others'.

    Attributes:
      largest, mean: largest and mean absolute difference, over all logits of the batch.
      spread: standard deviation of the mean's logits, to compare with.
      tokens: number of compared positions.
    """

    largest: float
    mean: float
    spread: float
    tokens: int

    @property
    def says_nothing(self) -> str:
        """Why the deviation, though it may be 0, is no proof of anything; "" if it is."""
        return "" if self.spread else "all its logits are equal on random tokens"


SMALL = 1_000_000  # parameters; below, compiling the network whole is faster than compiling its operations one by one


@functools.cache
def _compiled(logits: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(logits, static_argnums=1)


def check_runs(checkpoint: Checkpoint, what: str) -> None:
    """Raise InputError, with the reason, if there is no forward pass of a checkpoint's network here."""
    if reason := checkpoint.architecture.cannot_run(checkpoint.config):
        raise InputError(f"{checkpoint.folder}: {what} cannot be computed: {reason}; run it in transformers")


def logits_of(checkpoint: Checkpoint, batch: Batch, small: int = SMALL) -> np.ndarray:
    """Return the logits [batch, target, vocabulary] in float32.

    Networks of ``small`` parameters and more are computed outside jit, with one tensor in memory at a time.
    """
    check_runs(checkpoint, "its logits")
    logits = checkpoint.architecture.logits
    assert logits is not None
    with Reader() as reader:
        if checkpoint.parameters < small:
            tensors = {name: reader.whole(entry).astype(np.float32) for name, entry in checkpoint.tensors.items()}
            return np.asarray(_compiled(logits)(nested(tensors), checkpoint.config, batch))
        return np.asarray(logits(LazyParams(reader, checkpoint.tensors), checkpoint.config, batch))


def moments_of(checkpoint: Checkpoint, batch: Batch, small: int = SMALL) -> dict[Path, Moments]:
    """Return ``fusion_core.growth.norms.norm_moments`` of a checkpoint on the batch, in the memory that ``logits_of`` needs."""
    check_runs(checkpoint, "the norms' calibration")
    with Reader() as reader:
        tokens = jax.tree.map(jnp.asarray, batch)
        if checkpoint.parameters < small:
            params = nested(
                {name: reader.whole(entry).astype(np.float32) for name, entry in checkpoint.tensors.items()}
            )
            return jax.jit(lambda p, b: norm_moments(with_paths(p), checkpoint.config, b))(params, tokens)
        return norm_moments(LazyParams(reader, checkpoint.tensors), checkpoint.config, tokens)


def text_batch(checkpoints: Sequence[Checkpoint], texts: Sequence[str], rows: int, seed: int) -> Batch:
    """Return windows of text for the first checkpoint's network, with the tokenizer of the first that has one."""
    having = [c.folder for c in checkpoints if (c.folder / "tokenizer.json").exists()]
    tokenizer = Tokenizer.load((having or [checkpoints[0].folder])[0])
    return text_windows(texts, tokenizer, checkpoints[0].config, rows, seed)


def deviation_from_mean(
    sources: Sequence[Checkpoint], weights: Sequence[float], fused: Checkpoint, seed: int = 0
) -> Deviation:
    """Return the maximum and the mean of ``|f(x) − Σ wᵢ fᵢ(x)|`` on a small batch of random tokens, drawn with the seed.

    Raises:
      InputError: logits are not finite.
    """
    batch = probe(fused.config, seed)
    found: dict[object, np.ndarray] = {}  # one checkpoint given twice is run once
    mean = np.zeros((), np.float64)
    for source, weight in zip(sources, weights, strict=True):
        if source.folder not in found:
            found[source.folder] = logits_of(source, batch)
        mean = mean + weight * found[source.folder]
    logits = logits_of(fused, batch)
    for name, values in (*found.items(), (f"the {'fused' if len(sources) > 1 else 'grown'} network", logits)):
        _check_finite(values, name, "and so would be any network made of it; mend it, or leave out the probe")
    difference = np.abs(logits - mean)
    spread = 0.0 if _all_equal(mean) else float(mean.std())
    return Deviation(float(difference.max()), float(difference.mean()), spread, int(batch["targets"].size))


def _check_finite(logits: np.ndarray, name: object, remedy: str) -> None:
    if not np.isfinite(logits).all():
        raise InputError(f"the logits of {name} are not finite: its settings or weights are wrong, {remedy}")


def _all_equal(logits: np.ndarray) -> bool:
    return bool(logits.min() == logits.max())


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the log-softmax over the last axis, in float64, in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Difference:
    """The differences of two checkpoints on the same tokens, and of their tensors.

    Attributes:
      text: whether the tokens are of a text; else they are random, and the losses mean little.
      tokens: number of compared positions.
      logits_largest, logits_mean: largest and mean absolute difference of the logits.
      log_probabilities_largest, log_probabilities_mean: the same of the log-probabilities, in nats.
      agreement: share of positions at which both give the same token the largest logit.
      constant: for each checkpoint whether all its logits are equal: then agreeing with it proves nothing.
      losses: mean cross-entropy of the targets for each checkpoint, in nats a token.
      equal: number of tensors of equal name, shape and values.
      different: name -> largest absolute difference of values, for tensors of equal shape.
      reshaped: name -> the two shapes, for tensors of different shapes.
      only: names of the tensors that only the first, and that only the second has.
    """

    text: bool
    tokens: int
    logits_largest: float
    logits_mean: float
    log_probabilities_largest: float
    log_probabilities_mean: float
    agreement: float
    constant: tuple[bool, bool]
    losses: tuple[float, float]
    equal: int
    different: dict[str, float]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    only: tuple[tuple[str, ...], tuple[str, ...]]


def _largest_difference(reader: Reader, a: Entry, b: Entry, chunk: int = 1 << 20) -> float:
    largest = 0.0
    for first in range(0, a.size, chunk):
        count = min(chunk, a.size - first)
        left, right = (np.empty(count, FLOATS[entry.dtype]) for entry in (a, b))
        reader.into(a, first, left)
        reader.into(b, first, right)
        largest = max(largest, float(np.abs(left.astype(np.float64) - right.astype(np.float64)).max()))
    return largest


def compare(
    a: Checkpoint, b: Checkpoint, texts: Sequence[str] | None = None, rows: int = 16, seed: int = 0
) -> Difference:
    """Compare the functions of two checkpoints, and their tensors by name.

    Args:
      a, b: the checkpoints, possibly of different sizes, but of the same vocabulary.
      texts: documents to run them on, with the tokenizer of either folder; if None, a small batch of random tokens.
      rows: largest number of windows of text.
      seed: seed of the windows, of their corrupted spans, and of random tokens.

    Raises:
      InputError: logits are not finite, vocabularies or tokenizers differ, there is no tokenizer for the text, or the text
        is too short.
    """
    check_same_tokenizer([a.folder, b.folder])
    if a.architecture is not b.architecture or a.config.vocab_size != b.config.vocab_size:
        raise InputError(
            f"{a.folder} and {b.folder} cannot be compared: their kinds or vocabularies differ ({a.config.vocab_size} and "
            f"{b.config.vocab_size} pieces)"
        )
    batch = probe(a.config, seed) if texts is None else text_batch([a, b], texts, rows, seed)
    ours, theirs = logits_of(a, batch), logits_of(b, batch)
    for checkpoint, logits in ((a, ours), (b, theirs)):
        _check_finite(logits, checkpoint.folder, "or the network has diverged; compare others")
    logs = [log_probabilities(logits) for logits in (ours, theirs)]
    first, second = (
        float(-np.take_along_axis(log, batch["targets"][..., None].astype(np.int64), axis=-1).mean()) for log in logs
    )
    different, reshaped, equal = {}, {}, 0
    with Reader() as reader:
        for name in a.tensors.keys() & b.tensors.keys():
            left, right = a.tensors[name], b.tensors[name]
            if left.shape != right.shape:
                reshaped[name] = (left.shape, right.shape)
            elif largest := _largest_difference(reader, left, right):
                different[name] = largest
            else:
                equal += 1
    off, log_off = np.abs(ours.astype(np.float64) - theirs), np.abs(logs[0] - logs[1])
    return Difference(
        text=texts is not None,
        tokens=int(batch["targets"].size),
        logits_largest=float(off.max()),
        logits_mean=float(off.mean()),
        log_probabilities_largest=float(log_off.max()),
        log_probabilities_mean=float(log_off.mean()),
        agreement=float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean()),
        constant=(_all_equal(ours), _all_equal(theirs)),
        losses=(first, second),
        equal=equal,
        different=dict(sorted(different.items(), key=lambda pair: -pair[1])),
        reshaped=dict(sorted(reshaped.items())),
        only=(
            tuple(name for name in a.tensors if name not in b.tensors),
            tuple(name for name in b.tensors if name not in a.tensors),
        ),
    )
