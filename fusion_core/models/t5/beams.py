"""Beam search, with the rules of Hugging Face's ``generate``."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fusion_core.models.t5.cache import Layers, Memory, empty_cache, next_logits
from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import Params

EarlyStopping = bool | Literal["never"]
IMPOSSIBLE = -1e9  # score of a sequence that is no candidate


class _Beams(NamedTuple):
    position: Array
    running: Array  # [B, N, L], ids of the sequences that are continued
    running_scores: Array  # [B, N], summed log-probabilities, falling
    finished: Array  # [B, N, L], ids of the best sequences that have ended
    finished_scores: Array  # [B, N], summed log-probabilities / length^penalty, falling; IMPOSSIBLE if none has ended
    can_improve: Array  # [B], whether a running sequence may still overtake the finished ones
    all_ended: Array  # scalar, whether all candidates of the last round ended
    cache: Layers


def _pick(x: Array, which_BxM: Array) -> Array:
    """Return ``x[b, which[b, m]]`` for all b and m."""
    return jax.vmap(lambda row, index: row[index])(x, which_BxM)


def _worth_going_on(state: _Beams, beams: int, early_stopping: EarlyStopping) -> Array:
    full = jnp.all(state.finished_scores > IMPOSSIBLE / 2)
    stop = full if early_stopping is True else jnp.asarray(False)
    return jnp.any(state.can_improve) & ~stop & ~state.all_ended


def candidates(config: T5Config, beams: int) -> int:
    """Return how many continuations of a source are ranked in a round: enough that ``beams`` of them do not end."""
    return max(2, 1 + len(config.ends)) * beams


def beam_search(
    params: Params,
    config: T5Config,
    memory: Memory,
    *,
    length: int,
    beams: int,
    length_penalty: float,
    early_stopping: EarlyStopping,
) -> tuple[Int[Array, "batch beams length"], Float[Array, "batch beams"]]:
    r"""Return the sequences with the highest scores ``Σ log p / n^penalty`` that a beam search finds, best first.

    In every round the ``candidates`` best continuations of a source's running sequences are ranked. Those among the first
    ``beams`` that end (by an end token, or at the last position) compete for a place among the finished; the best ``beams``
    that do not end are continued. A source is done if no running sequence may overtake its worst finished
    one, scored with the present length (``early_stopping`` false or true), or, for ``"never"`` and a positive penalty,
    with the greatest length; if true, all sources are done as soon as each has ``beams`` finished ones.

    Args:
      params, config: the network.
      memory: the encoded sources (``remember``), for ``length`` positions.
      length: tokens of the longest sequence, the end token included.
      beams: number of sequences kept for each source.
      length_penalty: exponent of the length n in the score; above 0 it favours long sequences.
      early_stopping: False, True or ``"never"``, as above.

    Returns:
      Ids, padded after the end token, and scores.

    Source: the rules of transformers' ``GenerationMixin._beam_search``.
    """
    batch = memory.mask_BxS.shape[0]
    considered = candidates(config, beams)
    among_the_first = jnp.arange(considered) < beams
    empty = jnp.full((batch, beams, length), config.pad_token_id, jnp.int32)
    # the search begins with one sequence: equal ones would stay equal
    first = jnp.where(jnp.arange(beams) == 0, 0.0, IMPOSSIBLE) * jnp.ones((batch, 1))
    start = _Beams(
        position=jnp.zeros((), jnp.int32),
        running=empty,
        running_scores=first.astype(jnp.float32),
        finished=empty,
        finished_scores=jnp.full((batch, beams), IMPOSSIBLE, jnp.float32),
        can_improve=jnp.ones(batch, bool),
        all_ended=jnp.asarray(False),
        cache=empty_cache(params, config, batch, beams, length),
    )

    def one(state: _Beams) -> _Beams:
        t = state.position
        before = jax.lax.dynamic_index_in_dim(state.running, jnp.maximum(t - 1, 0), axis=2, keepdims=False)
        token = jnp.where(t == 0, config.decoder_start_token_id, before)
        logits, cache = next_logits(params, config, memory, state.cache, token, t)
        totals = jax.nn.log_softmax(logits.astype(jnp.float32)) + state.running_scores[:, :, None]
        scores, flat = jax.lax.top_k(totals.reshape(batch, -1), considered)
        parents, ids = flat // config.vocab_size, flat % config.vocab_size
        sequences = _pick(state.running, parents)
        sequences = jax.lax.dynamic_update_slice_in_dim(sequences, ids[:, :, None].astype(jnp.int32), t, axis=2)
        ends = jnp.isin(ids, jnp.asarray(config.ends)) | (t == length - 1)

        running_scores, which = jax.lax.top_k(scores + jnp.where(ends, IMPOSSIBLE, 0.0), beams)
        running, came_from = _pick(sequences, which), _pick(parents, which)
        cache = jax.tree.map(lambda x: _pick(x, came_from), cache)

        reached = (t + 1.0) ** length_penalty
        # with early stopping, a source that has all its finished sequences takes no more
        closed = ~state.can_improve
        if early_stopping is True:
            closed |= jnp.all(state.finished_scores > IMPOSSIBLE / 2, axis=1)
        eligible = ends & among_the_first & ~closed[:, None]
        ended_scores = jnp.where(eligible, scores / reached, IMPOSSIBLE)
        merged = jnp.concatenate([state.finished_scores, ended_scores], axis=1)
        finished_scores, which = jax.lax.top_k(merged, beams)
        finished = _pick(jnp.concatenate([state.finished, sequences], axis=1), which)

        never = early_stopping == "never" and length_penalty > 0
        best_length = float(length) ** length_penalty if never else reached
        hopes = running_scores[:, 0] / best_length > finished_scores[:, -1]
        return _Beams(
            position=t + 1,
            running=running,
            running_scores=running_scores,
            finished=finished,
            finished_scores=finished_scores,
            can_improve=state.can_improve & hopes,
            all_ended=jnp.all(ends),
            cache=cache,
        )

    def go_on(state: _Beams) -> Any:
        return (state.position < length) & _worth_going_on(state, beams, early_stopping)

    final = jax.lax.while_loop(go_on, one, start)
    return final.finished, final.finished_scores
