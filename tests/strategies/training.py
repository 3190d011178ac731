"""A T5 that trains in a moment, and the run that one device and four must agree on.

As a program: ``python -m tests.strategies.training FILE`` trains on all devices and writes what came out to FILE.
"""

import pathlib
import re
import sys

import jax
import numpy as np

from fusion_core.models.t5 import init
from fusion_core.models.units import by_name
from fusion_core.train import Trainer, adafactor, init_state, t5_loss, t5_schedule
from fusion_core.train.devices import data_parallel, local_rows, replicate, shard, summed, unreplicate
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


def all_reduces(trained: Trainer) -> list[str]:
    """What each all-reduce of the compiled step gives: ``f32[5]``, say, or ``(f32[3], f32[2])`` if it adds two arrays."""
    rows = shard([batch(i, BATCH) for i in range(DISPATCH)], trained.devices)
    scales, seed = (replicate(x, trained.devices) for x in (np.ones(DISPATCH, np.float32), np.uint32(0)))
    compiled = trained._steps.lower(replicate(fresh(), trained.devices), rows, scales, seed).compile().as_text()
    return re.findall(r"= (\S+?)(?:\{\S*)? all-reduce(?:-start)?\(", compiled.replace(", ", ","))


def added() -> dict[str, np.ndarray]:
    """Arrays of three dtypes, a row a device, and their sums over the devices as each device has them."""
    rng, n = np.random.default_rng(0), len(jax.local_devices())
    drawn = {"a": (3, 2), "b": (), "c": (4,), "d": (2, 2)}
    dtypes = {"a": np.float32, "b": np.float32, "c": np.int32, "d": jax.numpy.bfloat16}
    given = {k: rng.integers(-9, 9, (n, *shape)).astype(dtypes[k]) for k, shape in drawn.items()}
    sums = data_parallel(summed)(given)
    assert {k: x.dtype for k, x in sums.items()} == dtypes
    return {f"{k}.{i}": np.asarray(x[k], np.float32) for k in drawn for i, x in (("given", given), ("sum", sums))}


if __name__ == "__main__":
    many = trainer()
    results = outcome(many, *advance(many, fresh(), batch, STEPS))
    np.savez(pathlib.Path(sys.argv[1]), devices=np.asarray(len(jax.local_devices())), **results)
    np.savez(pathlib.Path(sys.argv[1]).with_suffix(".added.npz"), all_reduces=all_reduces(many), **added())
