"""Kinds of faults of disk, clock and signals; each a function of bench, command and random numbers that says what was lost."""

from __future__ import annotations

import dataclasses
import errno
import pathlib
import random
import signal
from collections.abc import Callable
from typing import Any

from tests.faults.harness import checks, shim
from tests.faults.harness.processes import Outcome, forked
from tests.faults.harness.shim import Fault
from tests.faults.harness.workloads import COMMANDS, Bench

ALL = tuple(COMMANDS)
QUICK = ("train", "fuse", "grow", "figures", "finetune")
FULL = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
YEARS = 10 * 365 * 86400


@dataclasses.dataclass(frozen=True)
class Tried:
    """A fault that was tried.

    Attributes:
      lost: what was lost, half written or said wrongly, in words; empty if nothing was.
      where: it happened; empty if the command had ended before.
    """

    lost: str
    where: str


Try = Callable[[Bench, str, random.Random], Tried]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault: a row of the table.

    Attributes:
      name: in the table.
      tried: tries one.
      commands: that it happens to.
      share: of all faults, relative to the other kinds'.
      calls: whether it has a form for every call of the command (``at_call``).
    """

    name: str
    tried: Try
    commands: tuple[str, ...]
    share: float = 1.0
    action: int = 0
    last: int | None = None

    def at_call(self, bench: Bench, name: str, number: int) -> Tried:
        """Try the fault at a call of the command, counted from 1."""
        return at_a_call(bench, name, number, self.action, self.last)


def at_a_moment(sign: int) -> Try:
    """A signal after a random share of the time that the command takes undisturbed."""

    def tried(bench: Bench, name: str, rng: random.Random) -> Tried:
        command, case, before = bench.begun(name)
        after = rng.random() * bench.undisturbed[name].seconds
        done = forked(command.begin(case), bench.output, case, after=after, sign=sign)
        return judged(bench, name, case, before, done, f"after {after:.2f} s" if done.code else "")

    return tried


def at_a_call(bench: Bench, name: str, number: int, action: int, last: int | None = None, seconds: int = 0) -> Tried:
    """A fault at a call of the command that changes files, counted from 1; at all calls until ``last`` if it is given."""
    command, case, before = bench.begun(name)
    fault = Fault(number, number if last is None else last, action, seconds=seconds)
    ends = action in (shim.KILL, shim.TERMINATE)
    arguments = command.begin(case)
    done = forked(arguments, bench.output, case, fault) if ends else bench.warm(arguments, case, fault)
    return judged(bench, name, case, before, done, done.where)


def judged(bench: Bench, name: str, case: pathlib.Path, before: dict[str, Any], done: Outcome, where: str) -> Tried:
    """What is wrong after the fault, or after going on."""
    command = COMMANDS[name]
    lost = bench.looked_at(command, case, before, done) or bench.gone_on(command, case, before, warm=name != "demo")
    return Tried(lost, where)


def at_some_call(action: int, *, forever: bool = False, seconds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """The fields of a kind of fault at a random call."""
    last = shim.FOREVER if forever else None

    def tried(bench: Bench, name: str, rng: random.Random) -> Tried:
        number = rng.randint(1, bench.calls(name))
        return at_a_call(bench, name, number, action, last, rng.choice(seconds))

    return {"tried": tried, "action": action, "last": last}


def while_reading(bench: Bench, name: str, rng: random.Random) -> Tried:
    """A read that fails while a stopped run is resumed."""
    command, case, before = bench.begun(name)
    forked(command.begin(case), bench.output, case, Fault(*[rng.randint(1, bench.calls(name))] * 2, shim.KILL))
    arguments = command.next(case)
    assert arguments is not None
    done = bench.warm(arguments, case, Fault(*[rng.randint(1, 40)] * 2, errno.EIO, shim.READ))
    return judged(bench, name, case, before, done, done.where)


def not_writable(bench: Bench, name: str, rng: random.Random) -> Tried:
    """A folder, or what is around it, that cannot be written: made immutable, which stops root too."""
    command, case, before = bench.begun(name)
    stopped = rng.random() < 0.5 and not command.once
    if stopped:
        forked(command.begin(case), bench.output, case, Fault(*[rng.randint(1, bench.calls(name))] * 2, shim.KILL))
    folder = case / "out" if stopped and (case / "out").exists() else case
    if not bench.immutable(folder, True):  # a file system without the flag
        fault = Fault(1, shim.FOREVER, errno.EROFS)
        done = bench.warm(command.next(case) or command.begin(case), folder, fault)
    else:
        done = bench.warm(command.next(case) or command.begin(case), folder)
        bench.immutable(folder, False)
    lost = "" if done.code == 2 else f"exit code {done.code} although {folder} cannot be written"
    return Tried(lost or judged(bench, name, case, before, done, "").lost, str(folder))


def at_once(bench: Bench, name: str, rng: random.Random) -> Tried:
    """Two processes on one folder at the same time: the second is refused with the name of the first."""
    command, case, before = bench.begun(name)
    first = bench.started(command.begin(case), case)
    if not first.wait_for(lambda: (case / "out" / ".lock").exists() and (case / "out" / ".lock").read_text()):
        first.end()
        return Tried("no lock was seen", "")
    second = forked(command.next(case) or [], bench.output, case)
    done = first.end()
    words = f"in use: process {first.pid} on"
    lost = "" if second.code == 2 and words in second.stderr else f"the second: {second.code}, {second.stderr[-150:]}"
    lost = lost or checks.message(second) or ("" if done.code == 0 else f"the first: {done.stderr[-150:]}")
    return Tried(lost or judged(bench, name, case, before, done, "").lost, "two processes")


def moved(bench: Bench, name: str, rng: random.Random) -> Tried:
    """A folder that is moved while a run works in it: the run stops, nothing is begun anew in the old place."""
    command, case, before = bench.begun(name)
    first = bench.started(command.begin(case), case)
    share = rng.random() * bench.undisturbed[name].seconds
    first.wait_for(lambda: (case / "out").exists())
    first.wait_for(lambda: first.passed > share)
    (case / "out").rename(case / "moved")
    done = first.end()
    stray = sorted(path.name for path in (case / "out").rglob("*")) if (case / "out").exists() else []
    if stray:
        return Tried(f"begun anew where the folder was: {stray[:4]}", "moved")
    (case / "moved").rename(case / "out")
    return Tried(judged(bench, name, case, before, done, "").lost, f"after {share:.2f} s")


KINDS: tuple[Kind, ...] = (
    Kind("kill -9 at a random moment", at_a_moment(signal.SIGKILL), ALL, 6),
    Kind("SIGTERM at a random moment", at_a_moment(signal.SIGTERM), ALL, 4),
    Kind(
        "kill -9 in the middle of a write, or at another call that changes files",
        commands=QUICK,
        share=4,
        **at_some_call(shim.KILL),
    ),
    Kind("SIGTERM at such a call", commands=QUICK, share=3, **at_some_call(shim.TERMINATE)),
    *(
        Kind(f"{shim.name_of(error)} at one such call", commands=QUICK, share=2, **at_some_call(error))
        for error in FULL
    ),
    Kind(
        "a disk that is full from such a call on", commands=QUICK, share=2, **at_some_call(errno.ENOSPC, forever=True)
    ),
    Kind("half of a write", commands=QUICK, share=1, **at_some_call(shim.SHORT)),
    Kind("EIO at a read while resuming", while_reading, ("train", "finetune"), 1.5),
    Kind("a folder that cannot be written", not_writable, QUICK, 1),
    Kind(
        "a clock that jumps ten years on or back",
        commands=("train",),
        share=1,
        **at_some_call(shim.CLOCK, seconds=(YEARS, -YEARS)),
    ),
    Kind("two processes on one folder", at_once, ("train", "finetune"), 0.6),
    Kind("a folder that is moved while it is used", moved, ("train",), 0.6),
)
