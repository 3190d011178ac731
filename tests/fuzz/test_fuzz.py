"""A few cases of every target, drawn by hypothesis, always the same ones; and that what a case may not do is noticed."""

import contextlib
import importlib.util
import json
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusion_core.errors import InputError
from tests.fuzz import mutations
from tests.fuzz.cases import Cases, run_cases, shrunk
from tests.fuzz.guard import MEMORY, OURS, ROOT, tried
from tests.fuzz.table import BEGIN, END
from tests.fuzz.targets import TARGETS

MANY, FEW = 12, 3  # cases of a target; of one that takes longer


@pytest.fixture(autouse=True)
def own_signals():
    """The command line sets a handler of SIGTERM; it is taken back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_promise(tmp_path, name):
    cases = Cases(TARGETS[name], tmp_path)
    for outcome in cases.warm():
        assert outcome.kind == "read", f"a valid input: {outcome.what}\n{outcome.trace}"
    shown = settings(
        max_examples=FEW if cases.target.slow else MANY, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip

    @shown
    @given(rng=st.randoms(use_true_random=False))
    def holds(rng):
        data = cases.drawn(rng)
        outcome = cases.outcome(data)
        assert not outcome.bad, f"{outcome.kind}: {outcome.what} at {outcome.where} by {data!r:.1000}\n{outcome.trace}"

    holds()


def test_the_table_has_ten_thousand_cases_of_every_target_none_of_which_broke_a_promise():
    written = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.splitlines() if line.startswith("|")][
        2:
    ]
    assert sorted(name for row in rows for name in row[0].split(", ")) == sorted(TARGETS)
    assert {(int(row[1].replace(",", "")) >= 10_000, row[4]) for row in rows} == {(True, "0")}


@pytest.mark.parametrize("name", ["config", "formula", "safetensors", "text.txt.gz"])
def test_mutations_reach_what_is_read_and_what_is_refused_in_several_places(tmp_path, name):
    cases = Cases(TARGETS[name], tmp_path)
    cases.warm()
    tally = run_cases(cases, 0, range(60), lambda *_: None, lambda *_: None, lambda *_: None)
    assert tally.kinds["refused"] >= 10
    assert tally.kinds["read"] >= 3
    assert len(cases.seen) >= 5
    again = Cases(TARGETS[name], tmp_path)
    run_cases(again, 0, range(60), lambda *_: None, lambda *_: None, lambda *_: None)
    assert again.kept == cases.kept


# what a case does -> how its outcome is called
def _reads_outside(data):
    pathlib.Path(os.devnull).read_bytes()
    with contextlib.suppress(OSError):
        open("/etc/passwd").close()


def _writes_outside(data):
    with contextlib.suppress(OSError):
        os.mkdir(ROOT / "tests" / "fuzz")


def _runs(data):
    eval(compile("1 + 1", "<case>", "eval"))


def _other_process(data):
    subprocess.run(["true"], check=True)


def _hangs(data):
    while True:
        with contextlib.suppress(Exception):
            random.random()


def _waits(data):
    signal.pause()


def _large(data):
    assert len(b"x" * (MEMORY + (64 << 20)))


def _raises(data):
    raise KeyError(data)


def _recurses(data):
    _recurses(data)


class _Unbounded(InputError):
    def __str__(self):
        return "x" * 20_000


def _long_message(data):
    raise _Unbounded("it says more than InputError lets it")


class _Evil:
    def __reduce__(self):
        return (os.path.basename, ("x",))


def _pickle(data, text=pickle.dumps(_Evil())):
    pickle.loads(text)


BROKEN = {
    _reads_outside: "outside", _writes_outside: "outside", _other_process: "outside", _pickle: "outside", _hangs: "hang",
    _waits: "hang", _raises: "crash", _recurses: "crash", _long_message: "crash",
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_case_may_not_do_is_noticed(tmp_path, case, monkeypatch):
    monkeypatch.setattr("tests.fuzz.guard.WAITS", 1)
    outcome = tried(case, b"", (tmp_path,), (InputError,), seconds=0.2)
    assert (outcome.kind, outcome.bad) == (BROKEN[case], True), outcome


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="a peak is measured on Linux alone")
def test_memory_is_noticed(tmp_path):
    assert tried(_large, b"", (tmp_path,), ()).kind == "memory"


def test_code_that_our_packages_run_is_noticed(tmp_path):
    code = compile("def run(data):\n    eval('1 + 1')", f"{OURS[0]}nowhere.py", "exec")
    names = {}
    exec(code, names)
    assert tried(names["run"], b"", (tmp_path,), ()).kind == "outside"
    assert tried(_runs, b"", (tmp_path,), ()).kind == "read"  # of other packages, such as dataclasses


def test_what_is_allowed_is_no_fault(tmp_path):
    def good(data):
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "a").rename(tmp_path / "b")
        raise InputError("no")

    outcome = tried(good, b"x", (tmp_path,), (InputError,))
    assert (outcome.kind, outcome.what) == ("refused", "InputError: no")


def test_a_case_is_made_as_small_as_it_can_be():
    assert shrunk(b"aaaa(bbb(ccc)dd", lambda data: b"(" in data and b")" in data) == b"()"


@pytest.mark.parametrize("mutate", [
    mutations.flipped, mutations.json_file, mutations.json_lines, mutations.safetensors_file, mutations.toml_file,
    mutations.table_file, mutations.text_file, mutations.protocol_buffer, mutations.formula,
    mutations.arguments(["--a"]), mutations.packed(mutations.text_file, "gz"),
])  # fmt: skip
@given(data=st.binary(max_size=60), rng=st.randoms(use_true_random=False))
@settings(max_examples=10, derandomize=True, database=None, deadline=None)
def test_every_mutation_takes_any_bytes(mutate, data, rng):
    assert len(mutate(rng, data)) <= 2_000_000


def long_mode(tmp_path, *words):
    """Run the long mode on one target; its numbers."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--target",
        "metrics_jsonl",
        "--cases",
        "40",
        "--json",
        "out.json",
        *words,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    return done, json.loads((tmp_path / "out.json").read_text())["targets"]["metrics_jsonl"]


@pytest.mark.parametrize("words", [(), ("--guided",)])
def test_the_long_mode_counts_its_cases(tmp_path, words):
    if words and importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    done, facts = long_mode(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert facts["cases"] == sum(facts["kinds"].values()) == 40
    assert set(facts["kinds"]) == {"read", "refused"}
    assert facts["found"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
