"""A dozen faults of the harness, in a process of their own; that it sees what it is to see; and its table."""

import json
import os
import pathlib
import random
import re
import subprocess
import sys

import pytest

from tests.faults.harness import checks, shim
from tests.faults.harness.processes import Outcome
from tests.faults.harness.table import ALL_KINDS, BEGIN, END, Table

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.skipif(shim.compiler() is None, reason="needs a C compiler")
def test_a_dozen_faults_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.faults.harness", "--faults", "12", "--commands", "fuse,grow"]
    command += ["--out", tmp_path / "t.json", "--folder", tmp_path / "bench"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = json.loads((tmp_path / "t.json").read_text())["faults"].values()
    assert len(faults) == 12
    assert sum(bool(fault["where"]) for fault in faults) >= 8


def test_the_table_in_security_md_is_the_harness_s(tmp_path):
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    inside = text.split(BEGIN)[1].split(END)[0]
    assert [line.split("|")[1].strip() for line in inside.splitlines() if line.startswith("|")][2:] == [
        kind.name for kind in ALL_KINDS
    ]
    assert len({kind.name for kind in ALL_KINDS}) == len(ALL_KINDS)
    assert re.search(r"\d+ faults, \d+ at commit [0-9a-f]+", inside)
    table = Table(None, "abc", {})
    table.add("k", ALL_KINDS[0].name, "train", "", "here", 1.0)
    table.add("l", ALL_KINDS[0].name, "train", "all of it", "", 1.0)
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}\nthe table before\n{END}\nafter\n", encoding="utf-8")
    other = {"commit": "def", "faults": {"m": table.faults["k"] | {"lost": ""}}}
    del other["faults"]["m"]["commit"]
    (tmp_path / "other.json").write_text(json.dumps(other))
    table.faults |= Table.of(None, ROOT, [tmp_path / "other.json"]).faults
    table.write(tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "| 3 | 2 | 2 |" in page
    assert "3 faults, 2 at commit abc, 1 at commit def; 1 of them" in page
    assert "the table before" not in page
    assert "1 of them lost" in page


def small(folder):
    """What a command might have left."""
    (folder / "sub").mkdir(parents=True)
    (folder / "a.json").write_text('{"x": 1, "seconds": 2.5}')
    (folder / "m.jsonl").write_text('{"step": 1, "loss": 2.0, "mfu": 0.1}\n{"st')
    (folder / "sub" / "b.txt").write_text("b")
    return folder


def test_the_harness_sees_changes_cuts_leftovers_and_what_is_outside(tmp_path):
    case = tmp_path / "case"
    out = small(case / "out")
    assert checks.half_written(out, {"sub": {"b.txt"}}) == ""  # the last line of a log may be cut
    assert checks.half_written(out, {"sub": {"b.txt", "c"}}) == "sub lacks c"
    (out / "a.json").write_text('{"x": 1, "secon')
    assert checks.half_written(out, {}) == "a.json is half written"
    (out / "a.json").write_text('{"x": 1, "seconds": 7.5}')
    (out / "m.jsonl").write_text('{"step": 1, "loss": 2.0, "mfu": 0.9}\n')
    wanted = checks.result(out)
    (out / "a.json").write_text('{"x": 2, "seconds": 7.5}')
    (out / "more").touch()
    assert checks.differences(checks.result(out), wanted) == "a.json differs, more is too many"
    (out / ".a.json.0123456789ab").touch()
    (out / ".lock").touch()
    assert ".lock" in checks.temporaries(out)
    assert ".a.json.0123456789ab" in checks.temporaries(out)
    before = checks.surroundings(case, "out")
    (case / ".out.0123456789ab").mkdir()
    assert checks.surroundings(case, "out") == before
    (case / "other").touch()
    assert checks.surroundings(case, "out") != before


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (Outcome(2, "", "Error: no; do that\n"), ""),
        (Outcome(2, "", "Error: no\nError: no\n"), "2 lines of error"),
        (Outcome(2, "", "Error: no\nmore\n"), "1 lines of error"),
        (Outcome(1, "", "Traceback (most recent call last)\nOSError: x\n"), "Traceback in its output: OSError: x"),
        (Outcome(143, "", "\nInterrupted; go on\n"), ""),
        (Outcome(143, "", "\n"), "does not say"),
    ],
)
def test_the_harness_judges_messages(outcome, wrong):
    found = checks.message(outcome, interrupted=outcome.code == 143)
    assert wrong in found
    assert bool(wrong) == bool(found)


@pytest.mark.skipif(shim.compiler() is None, reason="needs a C compiler")
def test_the_shim_sees_the_calls_of_any_library_and_fails_the_one_that_is_named(tmp_path):
    program = """
import os, pathlib, sys, time
sys.path.insert(0, os.getcwd())
from tests.faults.harness import shim
shim.preload()
import numpy as np, safetensors.numpy
from tests.faults.harness.shim import Fault
folder = pathlib.Path(sys.argv[-1])
shim.arm(folder, Fault())
safetensors.numpy.save_file({"a": np.zeros(3)}, folder / "a")  # in Rust
count, _ = shim.disarm()
found = []
for number in range(1, count + 1):
    shim.arm(folder, Fault(number, number, 28))
    try:
        safetensors.numpy.save_file({"a": np.zeros(3)}, folder / "a")
    except Exception as error:
        found.append("No space left" in str(error))
    assert shim.disarm()[1]
shim.arm(folder, Fault(1, 1, shim.CLOCK, seconds=1000))
wall, steady = time.time(), time.monotonic()
(folder / "b").touch()
print(count > 2, all(found), len(found) == count, time.time() - wall > 999, time.monotonic() - steady < 100)
"""
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "data").mkdir()
    command = [sys.executable, tmp_path / "program.py", tmp_path / "data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ | {"X": "1"})
    assert done.stdout.split() == ["True"] * 5, done.stderr


def test_trials_are_the_same_for_a_seed_and_each_kind_comes_at_least_once():
    import argparse

    from tests.faults.harness.__main__ import trials

    asked = argparse.Namespace(only=None, commands=None, faults=300, seed=3)
    found = [(kind.name, name) for kind, name, *_ in trials(asked)]
    assert found == [(kind.name, name) for kind, name, *_ in trials(asked)]
    assert len(found) == 300
    assert {kind for kind, _ in found} == {kind.name for kind in ALL_KINDS}
    assert random.Random("k").random() == random.Random("k").random()
