"""A whole run, small enough to be killed and resumed many times; also one of several processes.

As a program: ``python -m tests.strategies.runs FOLDER STEPS [--noise] [--accumulate N] [--pause SECONDS]`` trains in FOLDER,
or goes on there, and prints the step of every record. Several processes find each other by the environment
(``fusion_core.train.distributed``).
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

import jax

from fusion_core.errors import InputError
from fusion_core.train import Cadence, Trainer, Training, initialize_distributed, t5_loss
from fusion_core.train.distributed import finish, leave
from tests.strategies import training

ROOT = pathlib.Path(__file__).parent.parent.parent
DISPATCH, EVERY = 5, 10


def noisy(loss):
    """The loss at embeddings with noise from the key, as dropout has it: a run that lost its keys would not be the same."""

    def with_noise(params, batch, key):
        if key is not None:
            weight = params["shared"]["weight"]
            params = params | {"shared": {"weight": weight + 0.1 * jax.random.normal(key, weight.shape)}}
        return loss(params, batch, key)

    return with_noise


class Stepped:
    """``training.batch`` as data."""

    def batches(self, size, state=None):
        steps = training.feed(training.batch, 0 if state is None else state["step"], size)
        return ((batch, {"source": "tests", "step": step}) for batch, step in steps)


def run_of(
    folder, *, noise=False, accumulate=1, show=lambda record: None, note=lambda line: None, **changes
) -> Training:
    """The run in a folder."""
    loss = t5_loss(training.CONFIG)
    loss = noisy(loss) if noise else loss
    trainer = Trainer(loss, training.OPTIMIZER, training.BATCH, DISPATCH, accumulate=accumulate, seed=7)

    def evaluate(state):
        found = trainer.scores(state.params, [training.batch(100, training.BATCH)], replicated=True)
        return {"validation_loss": found["loss"], "validation_accuracy": found["accuracy"]}

    settings = {
        "name": "tiny",
        "trainer": trainer,
        "data": Stepped(),
        "evaluate": evaluate,
        "folder": pathlib.Path(folder),
        "run": {"rate": training.RATE},
        "cadence": Cadence(log=5, evaluate=20, checkpoint=EVERY),
        "schedule": training.SCHEDULE,
        "step_tokens": training.BATCH * 19,
        "step_flops": 1e6,
        "show": show,
        "note": note,
    }
    return Training(**settings | changes)


def environment(devices=1, **more) -> dict[str, str]:
    """Return the environment of a process with this many virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    found = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return found | {name: str(value) for name, value in more.items()}


def begin(folder, steps, *options, **surroundings) -> subprocess.Popen:
    """The program, in the background."""
    command = [sys.executable, "-u", "-m", "tests.strategies.runs", str(folder), str(steps), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(**surroundings), **pipes)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("steps", type=int)
    parser.add_argument("--noise", action="store_true")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    asked = parser.parse_args()

    def show(record):
        print(record["step"], flush=True)
        time.sleep(asked.pause)

    try:
        initialize_distributed()
        run = run_of(asked.folder, noise=asked.noise, accumulate=asked.accumulate, show=show)
        run.to(training.fresh(), asked.steps)
        finish()
    except InputError as error:
        leave(str(error), 2)
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
