"""Runs that are killed, that lose a peer, whose disk is full: as processes of their own."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from fusion_core.train import Metrics
from fusion_core.train.distributed import EXIT_CODE, PATIENCE
from tests.strategies import runs

STEPS = 60


def finished(process, seconds=240):
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_for(process, step):
    """Until it has printed a step as late as this, or has ended."""
    for line in process.stdout:  # gloo prints there too
        if line.strip().isdigit() and int(line) >= step:
            break


def weights(folder, steps):
    return safetensors.numpy.load_file(folder / "checkpoints" / f"step-{steps}.safetensors")


def curve(folder):
    """What a run measured, without what depends on the clock."""
    names = ("step", "loss", "accuracy", "gradient_norm", "validation_loss", "validation_accuracy")
    return [{k: r[k] for k in names if k in r} for r in Metrics(folder / "metrics.jsonl").records]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """steps -> the folder of a run that nobody has killed."""
    found = {}

    def of(steps):
        if steps not in found:
            found[steps] = tmp_path_factory.mktemp("whole") / "run"
            code, _, err = finished(runs.begin(found[steps], steps, "--noise"))
            assert code == 0, err
        return found[steps]

    return of


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(undisturbed, tmp_path, kills):
    rng, steps = random.Random(kills), 20 * kills
    done = 0
    for i in range(kills):
        process = runs.begin(tmp_path / "run", steps, "--noise")
        # somewhere on the way to its share of the steps: while it computes, evaluates, or writes a checkpoint
        goal = rng.randrange(steps * i // kills, steps * (i + 1) // kills)
        wait_for(process, goal)
        time.sleep(0.02 * rng.random())
        process.send_signal(signal.SIGKILL)
        code, _, err = finished(process)
        done += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), err
    assert done >= kills - 1, "the run was over before it was killed"
    code, _, err = finished(runs.begin(tmp_path / "run", steps, "--noise"))
    assert code == 0, err
    whole, killed = weights(undisturbed(steps), steps), weights(tmp_path / "run", steps)
    assert whole.keys() == killed.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(killed[name], array, err_msg=name)
    assert curve(tmp_path / "run") == curve(undisturbed(steps))


def peers(folder, steps, *options, devices=2):
    """Two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"DEEPFUSION_COORDINATOR": f"127.0.0.1:{port}", "DEEPFUSION_PROCESSES": 2}
    return [runs.begin(folder, steps, *options, devices=devices, DEEPFUSION_PROCESS=i, **found) for i in (0, 1)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The run of one process with one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    code, _, err = finished(runs.begin(folder, STEPS))
    assert code == 0, err
    return folder


def test_the_comparison_of_killed_runs_sees_lost_noise(undisturbed, one_process):
    """A run without the keys of dropout is another one."""
    whole, other = weights(undisturbed(STEPS), STEPS), weights(one_process, STEPS)
    assert any(not np.array_equal(whole[name], other[name]) for name in whole)


def same_curves(found, wanted, tolerance):
    assert [r["step"] for r in found] == [r["step"] for r in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, ours["step"])


def test_two_processes_of_two_devices_train_as_one_process_does(one_process, tmp_path):
    for process in (both := peers(tmp_path / "run", STEPS)):
        code, _, err = finished(process)
        assert code == 0, err
    assert len(both) == 2
    same_curves(curve(tmp_path / "run"), curve(one_process), 1e-5)
    for name, array in weights(one_process, STEPS).items():
        np.testing.assert_allclose(weights(tmp_path / "run", STEPS)[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_run_goes_on_correctly_on_another_number_of_devices_and_in_parts(one_process, tmp_path):
    for steps, devices, options in ((20, 4, ("--accumulate", "2")), (STEPS, 1, ())):
        code, _, err = finished(runs.begin(tmp_path / "run", steps, *options, devices=devices))
        assert code == 0, err
    same_curves(curve(tmp_path / "run"), curve(one_process), 1e-5)


@pytest.mark.parametrize(("victim", "sign"), [(1, signal.SIGKILL), (0, signal.SIGKILL)])
def test_a_dead_peer_stops_the_others_with_the_reason(tmp_path, victim, sign):
    both = peers(tmp_path / "run", 100_000, "--pause", "0.05")
    wait_for(both[0], 20)
    both[victim].send_signal(sign)
    killed = time.monotonic()
    code, _, err = finished(both[1 - victim], seconds=60)
    took = time.monotonic() - killed
    print(f"process {1 - victim} stopped {took:.1f} s after the other")
    finished(both[victim])
    assert took < PATIENCE + 30
    if victim == 1:
        assert code == EXIT_CODE, err
        assert "Error: process 1 has not answered for" in err
        assert "Start all processes again, to resume the run" in err
    else:  # the coordinator's end is noticed by JAX itself, at once
        assert code != 0
        assert "another task died" in err or "process 0, which coordinates the run, does not answer" in err
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0


def test_a_full_disk_is_said_clearly_and_the_checkpoints_before_it_are_kept(one_process, tmp_path):
    command = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    command += "from tests.strategies import runs; sys.argv = ['runs', sys.argv[1], '80']; sys.exit(runs.main())"
    shutil.copytree(one_process, tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    size = os.path.getsize(tmp_path / "run" / "checkpoints" / f"step-{STEPS}.safetensors")
    assert size > 20_000
    done = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path / "run")],
        cwd=runs.ROOT,
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stderr
    assert "there is no room for the checkpoint" in done.stderr
    assert "those before it are intact" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == kept
