"""Small T5s whose answers vary: random ones repeat themselves, tied ones their start token."""

import functools

import jax
import numpy as np

from fusion_core.models.t5.decoding import generate
from tests.strategies.networks import batch_of, random_t5, tiny

LENGTH = 9


def lively(config, seed: int):
    """Parameters of ``random_t5``; with tied embeddings the layers' outputs outweigh the token itself."""
    params = random_t5(config, seed)
    if config.tie_word_embeddings:
        params = jax.tree.map(lambda x: x, params)
        params["shared"] = {"weight": 0.2 * params["shared"]["weight"]}
        norm = params["decoder"]["final_layer_norm"]
        params["decoder"]["final_layer_norm"] = {"weight": 10 * norm["weight"]}
    return params


@functools.cache
def talkative(style: str):
    """(params, config, 24 sources) whose greedy answers end early, late and not at all.

    The end token is one that the network likes to write after a while.
    """
    shape = {"num_layers": 1, "num_decoder_layers": 1}
    free = tiny(style, eos_token_id=59, **shape)
    params, ids = lively(free, 4), batch_of(free, 0, batch=24)["encoder_ids"]
    answers = generate(params, free, ids, max_length=LENGTH)
    # written by about as many rows as not
    shares = np.asarray([(answers == token).any(axis=1).mean() for token in range(free.vocab_size)])
    shares[free.pad_token_id] = 0
    return params, tiny(style, eos_token_id=int(np.abs(shares - 0.5).argmin()), **shape), ids


def ends(answers: np.ndarray, eos: int) -> set:
    """Places of the end token; None: an answer without."""
    return {int(np.argmax(row == eos)) if (row == eos).any() else None for row in answers}
