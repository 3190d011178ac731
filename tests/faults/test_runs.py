"""Runs under hostile conditions: two on one folder, stopped by SIGTERM, killed while they write, with damaged files."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from fusion_core import atomic, checkpoints
from fusion_core.checkpoints import fuse as fusing
from fusion_core.errors import InputError
from fusion_core.lock import NAME, locked
from fusion_core.train import Metrics
from tests.strategies.checkpoints import saved_t5

HOLD = """
import pathlib, sys, time
from fusion_core.lock import locked
with locked(pathlib.Path(sys.argv[1]), sys.argv[2:]):
    print("held", flush=True)
    time.sleep(100)
"""


def holder(folder, *parts):
    """Another process that holds a folder, or parts of it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *parts], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def leftovers(folder):
    return [path.name for path in folder.rglob(".*")]


def test_a_second_process_is_refused_with_the_name_of_the_first_until_that_is_killed(tmp_path):
    process = holder(tmp_path)
    try:
        with (
            pytest.raises(InputError, match=f"is in use: process {process.pid} on .*, since 20.*; wait"),
            locked(tmp_path),
        ):
            pass
        with pytest.raises(InputError, match=f"process {process.pid}"), locked(tmp_path, ["a"]):
            pass
    finally:
        process.kill()
        process.communicate()
    assert leftovers(tmp_path) == [NAME]  # it was killed
    with locked(tmp_path), locked(tmp_path):
        pass
    assert leftovers(tmp_path) == []


def test_nodes_are_run_beside_each_other_but_no_node_twice_and_no_whole_run(tmp_path):
    process = holder(tmp_path, "a")
    try:
        with locked(tmp_path, ["b"]):
            pass
        for parts in (["a"], []):
            with pytest.raises(InputError, match=f"process {process.pid}"), locked(tmp_path, parts):
                pass
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_two_runs_on_one_folder_the_second_is_refused(refused, plan, copy, tmp_path, options):
    folder = copy[1] if options else tmp_path / "new"
    process = holder(folder)
    before = sorted(path for path in folder.rglob("*"))
    try:
        refused(f"process {process.pid}", "train", copy[0] if options else plan, "--out", folder, *options)
    finally:
        process.kill()
        process.communicate()
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_run_that_was_killed_in_its_first_second_begins_by_the_same_line(run, plan, monkeypatch):
    begun = []
    monkeypatch.setattr("fusion_core.runs.run._run_locked", lambda *_: begun.append(leftovers(out)))
    out = plan.parent / "run"
    for options in ((), ("--resume",)):
        out.mkdir()
        for left in (NAME, ".plan.json.0123456789ab"):
            (out / left).write_text("{")
        code, _, err = run("train", plan, "--out", out, *options)
        assert code == 0, err
        shutil.rmtree(out)
    assert begun == [[NAME], [NAME]]  # its own


def test_sigterm_stops_a_run_between_two_steps_and_it_is_resumed_to_the_same_end(run, finished, monkeypatch, tmp_path):
    plan, whole = finished
    write = Metrics.write

    def stop(self, record):
        write(self, record)
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", stop)
        code, _, err = run("train", plan, "--out", tmp_path / "run")
    assert code == 143
    assert "Interrupted; go on with" in err
    assert not leftovers(tmp_path / "run")
    code, _, err = run("train", plan, "--out", tmp_path / "run", "--resume")
    assert code == 0, err
    last = "nodes/a/checkpoints/step-20.safetensors"
    assert (tmp_path / "run" / last).read_bytes()[-1000:] == (whole / last).read_bytes()[-1000:]


def test_sigterm_in_a_fusion_leaves_nothing(run, monkeypatch, tmp_path):
    saved_t5(tmp_path / "a")
    stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(fusing, "write_growth", stop)
    code, out, err = run("fuse", tmp_path / "a", tmp_path / "a", "--noise", 0.1, "--out", tmp_path / "out")
    assert (code, out) == (143, "")
    assert err.splitlines()[-1] == "Interrupted."
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_fusion_has_left_is_swept_by_the_next_and_a_living_ones_is_not(tmp_path):
    saved_t5(tmp_path / "a")
    dead, living, other = (tmp_path / f".{name}.{12 * '0'}" for name in ("out", "out", "other"))
    living = living.with_name(f".out.{12 * '1'}")
    for folder in (dead, living, other):
        folder.mkdir()
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    recipe = checkpoints.fusion_recipe([tmp_path / "a"] * 2, noise=0.1)
    checkpoints.write_recipe(recipe, tmp_path / "out", probe=False)
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, living.name, "a", "out"]


def test_of_two_fusions_into_one_folder_the_second_leaves_the_firsts(tmp_path):
    first = atomic.new_folder(tmp_path / "out")
    second = atomic.new_folder(tmp_path / "out")
    for fusion in (first, second):
        (fusion.__enter__() / str(fusion is first)).touch()
    first.__exit__(None, None, None)
    with pytest.raises(FileExistsError, match="exists"):
        second.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "True"]


def test_what_was_moved_aside_is_kept_until_the_new_folder_has_its_name(tmp_path):
    (tmp_path / ".out.0123456789ab.old").mkdir()
    atomic.sweep(tmp_path)
    atomic.sweep_beside(tmp_path / "out")
    assert list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    atomic.sweep_beside(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


NESTED = b"[" * 100_000
DAMAGED = {
    "list": b"[]\n",
    "cut short": b'{\n  "name": "sma',
    "not UTF-8": b'{"step": 1, "n": "\xff\xfe"}\n{}\n',
    "nested": NESTED + b"\n" + NESTED,
    "long number": b'{"step": ' + b"1" * 5000 + b"}\n{}\n",
    "empty": b"",
}


@pytest.mark.parametrize("name", ["plan.json", "nodes/a/done.json", "nodes/a/metrics.jsonl"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_of_a_run_is_one_line(run, copy, name, damage):
    plan, folder = copy
    (folder / name).write_bytes(DAMAGED[damage])
    code, _, err = run("train", plan, "--out", folder, "--resume")
    assert "Traceback" not in err
    line = err.rstrip().splitlines()[-1]
    assert code == 2, err
    assert str(folder / name) in line
    assert "remove" in line


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_of_settings_is_one_line(refused, tmp_path, damage):
    (tmp_path / "settings.json").write_bytes(DAMAGED[damage])
    for command in ("demo", "finetune"):
        refused("start a new run", command, "--resume", tmp_path)


@pytest.mark.parametrize("name", ["data/tokens.npz", "data/tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut short", "not UTF-8", "nested", "empty"])
def test_damaged_data_of_a_run_are_one_line(refused, copy, name, damage):
    (copy[1] / name).write_bytes(DAMAGED[damage])
    (copy[1] / "nodes" / "a" / "done.json").unlink()
    refused(str(copy[1] / "data"), "train", copy[0], "--out", copy[1], "--resume")


def test_a_line_in_the_middle_of_the_metrics_is_never_dropped_with_all_after_it(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2 is no record"):
        Metrics(file)
    assert '"step": 3' in file.read_text()
    file.write_text('{"step": 1}\n{"step": 3')
    assert Metrics(file).records == [{"step": 1}]
    assert json.loads(file.read_text()) == {"step": 1}
