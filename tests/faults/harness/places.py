"""Kinds of faults of files and folders: damaged, replaced, misnamed, in one another, linked; and peers that are missing."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from tests.faults.harness import checks, shim
from tests.faults.harness.kinds import Kind, Tried
from tests.faults.harness.processes import Outcome, forked
from tests.faults.harness.shim import Fault
from tests.faults.harness.workloads import COMMANDS, Bench

NOT_READ = (".html", "results.json", "predictions.tsv", "predictions.jsonl", "scores.json")  # written again


def _stopped(bench: Bench, name: str, rng: random.Random) -> tuple[pathlib.Path, dict]:
    """Return the case of a run that is finished, or was killed at a call in its second half."""
    command, case, before = bench.begun(name)
    if rng.random() < 0.5:
        bench.warm(command.begin(case), case)
    else:
        calls = bench.calls(name)
        forked(command.begin(case), bench.output, case, Fault(*[rng.randint(calls // 3, calls)] * 2, shim.KILL))
    return case, before


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(NOT_READ)]
    return [path for path in found if path.stat().st_size and not path.name.startswith(".")]


def cut_short(file: pathlib.Path, rng: random.Random, bench: Bench) -> None:
    """Leave a part of it."""
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def flip_a_bit(file: pathlib.Path, rng: random.Random, bench: Bench) -> None:
    """Change one bit anywhere in it."""
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def put_foreign(file: pathlib.Path, rng: random.Random, bench: Bench) -> None:
    """Put the file of this name of a run of another seed in its place."""
    shutil.copyfile(bench.foreign() / file.relative_to(bench.root / "case" / "out"), file)


def swap(file: pathlib.Path, rng: random.Random, bench: Bench) -> None:
    """Exchange it with another of its kind."""
    others = [path for path in _files(bench.root / "case" / "out") if path.suffix == file.suffix and path != file]
    other = rng.choice(others or [file])
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)


def damaged(
    damage: Callable[[pathlib.Path, random.Random, Bench], None],
) -> Callable[[Bench, str, random.Random], Tried]:
    """A damaged file of a run: it goes on right, or is refused by a line that names a file, and goes on when it is put back."""

    def tried(bench: Bench, name: str, rng: random.Random) -> Tried:
        if damage is put_foreign:
            bench.foreign()
        command = COMMANDS[name]
        case, before = _stopped(bench, name, rng)
        out = case / "out"
        files = _files(out)
        if damage is put_foreign:
            files = [file for file in files if (bench.foreign() / file.relative_to(out)).exists()]
        if not files:
            return Tried("", "")
        shutil.rmtree(bench.root / "kept", ignore_errors=True)
        shutil.copytree(out, bench.root / "kept", symlinks=True)
        file = rng.choice(files)
        damage(file, rng, bench)
        arguments = command.next(case)
        assert arguments is not None
        done = bench.warm(arguments, case)
        where = str(file.relative_to(out))
        if done.code == 2:
            line = done.stderr.rstrip().splitlines()[-1]
            named = str(case) in line
            lost = checks.message(done) or ("" if named else f"{where}: no file is named: {line[:150]}")
            shutil.rmtree(out)
            shutil.copytree(bench.root / "kept", out, symlinks=True)
            if lost:
                return Tried(lost, where)
            done = Outcome(0, "", "")
            lost = bench.gone_on(command, case, before)
            return Tried(lost, where)
        for aside in out.rglob("*.damaged"):
            aside.unlink()
        lost = bench.looked_at(command, case, before, done)
        return Tried(lost and f"{where}: {lost}", where)

    return tried


ODD = (
    "with a space",
    "it's",
    'a "quote"',
    "a\nnewline",
    "-dash",
    "üñï 漢字",
    "tab\there",
    "a;b&c|d$(e)`f`",
    "\x1b[31mred",
)


def misnamed(bench: Bench, name: str, rng: random.Random) -> Tried:
    """Folders with spaces, quotes, newlines and control characters in their names; weights as in others."""
    command = COMMANDS[name]
    wanted = bench.weights(bench.result_of(name))
    odd = rng.choice(ODD)
    case = bench.case(odd)
    before = checks.surroundings(case, "out")
    done = bench.warm(command.begin(case), case)
    lost = checks.message(done) or ("" if done.code == 0 else f"exit code {done.code}: {done.stderr[-200:]}")
    lost = lost or bench.around(case, before)
    if not lost and bench.weights(checks.result(case / "out")) != wanted:
        lost = "other weights than under a plain name"
    again = bench.warm(command.begin(case), case)  # refused, by one line
    lost = lost or (checks.message(again) if again.code else "")
    shutil.rmtree(case)
    return Tried(lost and f"{odd!r}: {lost}", repr(odd))


def in_an_input(bench: Bench, name: str, rng: random.Random) -> Tried:
    """An output inside of an input, or an input in the output: refused, and nothing is written."""
    command, case, before = bench.begun(name)
    reverse = rng.random() < 0.5
    if reverse:
        (case / "out").mkdir()
        for path in list(case.iterdir()):
            if path.name != "out":
                path.rename(case / "out" / path.name)
        inside = case / "out"
        arguments = [case / "out" if a == inside / "out" else a for a in command.begin(inside)]
        before = checks.surroundings(case, "none")
    elif name == "train":
        (case / "texts").mkdir()
        (case / "text.txt").rename(case / "texts" / "text.txt")
        plan = case / "plan.toml"
        plan.write_text(plan.read_text().replace('"text.txt"', '"texts"'))
        arguments = ["train", plan, "--out", case / "texts" / "run"]
        before = checks.surroundings(case, "none")
    else:
        arguments = [case / "a" / "inner" if a == case / "out" else a for a in command.begin(case)]
        before = checks.surroundings(case, "none")
    done = bench.warm(arguments, case)
    now = checks.surroundings(case, "none")
    lost = checks.message(done) or ("" if done.code == 2 else f"exit code {done.code}, not refused")
    changed = [path for path in sorted(now.keys() | before.keys()) if now.get(path) != before.get(path)]
    return Tried(
        lost or (f"it changed {changed[:3]}" if changed else ""), "input in output" if reverse else "output in input"
    )


def linked(bench: Bench, name: str, rng: random.Random) -> Tried:
    """An output that is a link to an empty folder elsewhere: written there, the link stays."""
    command, case, _before = bench.begun(name)
    (case / "there").mkdir()
    (case / "out").symlink_to("there")
    done = bench.warm(command.begin(case), case)
    if done.code == 2 and not list((case / "there").iterdir()):
        return Tried(checks.message(done), "refused")
    lost = checks.message(done) or ("" if (case / "out").is_symlink() else "the link is gone")
    found = checks.differences(checks.result(case / "there"), bench.result_of(name))
    return Tried(lost or found, "link")


def replaced(bench: Bench, name: str, rng: random.Random) -> Tried:
    """Text that was replaced before a run is resumed, held in memory or streamed: refused by its name."""
    _command, case, _before = bench.begun(name)
    plan = case / ("streamed.toml" if rng.random() < 0.5 else "plan.toml")
    arguments = ["train", plan, "--out", case / "out"]
    number = rng.randint(60, 120)
    forked(arguments, bench.output, case, Fault(number, number, shim.KILL))
    text = case / "text.txt"
    kept = text.read_text(encoding="utf-8")
    changed = kept.split(" ")
    place = rng.randrange(len(changed))
    changed[place] = "another"
    text.write_text(" ".join(changed), encoding="utf-8")
    done = bench.warm([*arguments, "--resume"], case)
    line = (done.stderr.rstrip().splitlines() or [""])[-1]
    lost = checks.message(done) or ("" if done.code == 2 and str(text) in line else f"code {done.code}: {line[:150]}")
    text.write_text(kept, encoding="utf-8")
    again = bench.warm([*arguments, "--resume"], case)
    return Tried(lost or ("" if again.code == 0 else f"put back, it does not go on: {again.stderr[-150:]}"), plan.stem)


def _peers(bench: Bench, case: pathlib.Path, count: int, port: int, timeout: float) -> list[subprocess.Popen]:
    """``count`` of two processes of one run."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    found = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "LD_PRELOAD": ""}
    found |= {"DEEPFUSION_COORDINATOR": f"127.0.0.1:{port}", "DEEPFUSION_PROCESSES": "2"}
    command = [sys.executable, "-m", "deepfusion", "train", case / "plan.toml", "--out", case / "out", "--resume"]
    command += ["--start-timeout", str(timeout)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=found | {"DEEPFUSION_PROCESS": str(i)}, **pipes) for i in range(count)]


def peers(how: str) -> Callable[[Bench, str, random.Random], Tried]:
    """Two processes of one run, of which the second never comes, dies, or hangs: the first says so, and one alone goes on."""

    def tried(bench: Bench, name: str, rng: random.Random) -> Tried:
        _command, case, before = bench.begun(name)
        plan = case / "plan.toml"
        plan.write_text(plan.read_text().replace("steps = 10", "steps = 100000"))  # it does not end by itself
        before = checks.surroundings(case, "out")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        both = _peers(bench, case, 1 if how == "never comes" else 2, port, 5 if how == "never comes" else 240)
        if len(both) == 2:
            metrics = case / "out" / "nodes" / "a" / "metrics.jsonl"
            until = time.monotonic() + 240
            while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 3) and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(rng.random())
            both[1].send_signal(signal.SIGSTOP if how == "hangs" else signal.SIGKILL)
        _, err = both[0].communicate(timeout=300)
        for other in both[1:]:
            other.kill()
            other.communicate()
        wanted = "has not found the others" if len(both) == 1 else "process 1 has not answered"
        code = 2 if len(both) == 1 else 75
        done = Outcome(both[0].returncode, "", err)
        lost = "" if done.code == code and wanted in err else f"exit code {done.code}: {err[-200:]}"
        out = case / "out"
        lost = lost or (checks.half_written(out, {}) if out.exists() else "") or bench.around(case, before)
        return Tried(lost or checks.message(done), how)

    return tried


PLACES: tuple[Kind, ...] = (
    Kind("a file of a run cut short", damaged(cut_short), ("train", "finetune"), 2),
    Kind("one bit flipped in a file of a run", damaged(flip_a_bit), ("train", "finetune"), 3),
    Kind("two files of a run exchanged", damaged(swap), ("train",), 2),
    Kind("a file of another run in the place of one", damaged(put_foreign), ("train",), 2),
    Kind("text replaced before a run is resumed", replaced, ("train",), 1),
    Kind("names with spaces, quotes, newlines, escapes", misnamed, ("train", "fuse", "grow", "finetune"), 1.5),
    Kind("the output in an input, an input in the output", in_an_input, ("train", "fuse", "grow", "finetune"), 1),
    Kind("an output that is a link", linked, ("train", "fuse", "grow"), 0.6),
    *(Kind(f"a peer that {how}", peers(how), ("train",), 0.15) for how in ("never comes", "dies", "hangs")),
)
