"""A T5 that trains in a moment, and the run that one device and four must agree on.

As a program: ``python -m tests.strategies.training FILE`` trains on all devices and writes what came out to FILE.
"""

import pathlib
import sys

import jax
import numpy as np

from fusion_core.models.t5 import init
from fusion_core.models.units import by_name
from fusion_core.train import Trainer, adafactor, init_state, t5_loss, t5_schedule
from fusion_core.train.devices import local_rows, unreplicate
from tests.strategies.networks import batch_of, tiny

CONFIG = tiny(vocab_size=40, num_layers=1, num_decoder_layers=1)
OPTIMIZER, SCHEDULE = adafactor(), t5_schedule(warmup=4)
BATCH, DISPATCH, STEPS, RATE = 8, 5, 20, 0.02


def batch(step: int, size: int):
    """Rows with very different numbers of tokens, so that a mean of the devices' means is not the batch's."""
    drawn = batch_of(CONFIG, step, batch=size, source=9, target=10, padded=False)
    for row in range(size):
        drawn["targets"][row, 1 + row * 9 // size :] = 0
        drawn["encoder_ids"][row, 9 - row % 5 :] = 0
    return drawn


def trainer() -> Trainer:
    return Trainer(t5_loss(CONFIG), OPTIMIZER, BATCH, DISPATCH)


def fresh():
    return init_state(init(CONFIG, 0), OPTIMIZER, RATE)


def feed(batch, start, size):
    """This process's rows of ``batch(step, size)`` from step ``start`` on, each with the next step."""
    while True:
        yield local_rows(batch(start, size)), start + 1
        start += 1


def advance(trained: Trainer, state, batch, until, schedule=SCHEDULE, on_dispatch=lambda step: None):
    """(state at ``until``, metrics of every step)."""
    measured = []
    for done in trained.dispatches(state, feed(batch, int(state.step), trained.batch_size), until, schedule):
        measured.append(done.metrics)
        on_dispatch(done.step)
        if done.replicated is not None:
            state = unreplicate(done.replicated)
    names = ("loss", "accuracy", "gradient_norm", "tokens")
    return state, {name: np.concatenate([np.zeros(0), *(m[name] for m in measured)]) for name in names}


def outcome(trained: Trainer, state, measured) -> dict[str, np.ndarray]:
    """Everything that a run gives, as flat arrays."""
    loss = trained.evaluate(state.params, [batch(100, BATCH), batch(101, BATCH)])
    found = {f"params.{name}": np.asarray(leaf) for name, leaf in by_name(state.params).items()}
    return found | measured | {"evaluation": np.asarray(loss)}


if __name__ == "__main__":
    many = trainer()
    results = outcome(many, *advance(many, fresh(), batch, STEPS))
    np.savez(pathlib.Path(sys.argv[1]), devices=np.asarray(len(jax.local_devices())), **results)
