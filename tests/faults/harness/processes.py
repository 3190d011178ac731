"""Commands as processes that cost little: forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from tests.faults.harness import shim
from tests.faults.harness.shim import Fault

LONGEST = 900.0  # seconds of a command, on a machine that is busy


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a command: its exit code, negative for the signal that ended it; its output; and of the fault."""

    code: int
    stdout: str
    stderr: str
    calls: int = 0
    where: str = ""
    seconds: float = 0.0


def import_all() -> None:
    """Import what commands import when they run, so that their processes have it."""
    import deepfusion.cli
    from deepfusion.cli import COMMANDS

    for name in COMMANDS:
        importlib.import_module(f"deepfusion.commands.{name}")
    for name in ("fusion_core.runs.finetune", "fusion_core.checkpoints", "fusion_core.train.distributed"):
        importlib.import_module(name)
    for name in ("deepfusion.view", "deepfusion.pages.report", "matplotlib.pyplot", "fusion_core.growth", "optax"):
        importlib.import_module(name)
    for name in ("paper_figures.builder", "fusion_core.schedule", "fusion_core.runs", "sentencepiece", "tokenizers"):
        importlib.import_module(name)
    assert deepfusion.cli


def _call(arguments: Sequence[Any]) -> int:
    """The command line in this process; its exit code."""
    from deepfusion import cli

    sys.argv = ["deepfusion", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _redirected(folder: pathlib.Path) -> Any:
    """Standard output and error in files of the folder."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    kept = [os.dup(i) for i in (1, 2)]
    for i, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(folder / name, flags, 0o666)
        os.dup2(handle, i)
        os.close(handle)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for i, old in enumerate(kept, start=1):
            os.dup2(old, i)
            os.close(old)


def _texts(folder: pathlib.Path) -> tuple[str, str]:
    return tuple((folder / name).read_text("utf-8", "replace") for name in ("stdout", "stderr"))  # type: ignore[return-value]


def forked(
    arguments: Sequence[Any],
    output: pathlib.Path,
    folder: pathlib.Path,
    fault: Fault = Fault(),
    *,
    after: float | None = None,
    sign: int = signal.SIGKILL,
    before: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a command in a process of its own.

    Args:
      arguments: of the command line.
      output: a folder, for what it prints.
      folder: whose files the fault happens to.
      fault: that happens.
      after: seconds after which it gets ``sign``; if None, it does not.
      sign: that signal.
      before: called in the process before the command.
    """
    begun = time.monotonic()
    shim.arm(folder, fault)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            with _redirected(output):
                before()
                code = _call(arguments)
            os._exit(code)
        os._exit(99)
    sent, code = after is None, None
    while code is None:
        found, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - begun
        if found:
            code = os.waitstatus_to_exitcode(status)
        elif after is not None and not sent and passed >= after:
            os.kill(child, sign)
            sent = True
        elif passed > LONGEST:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            (output / "stderr").open("a").write(f"\nTraceback: killed after {LONGEST} s\n")
        else:
            time.sleep(0.002)
    calls, where = shim.disarm()
    return Outcome(code, *_texts(output), calls, where, time.monotonic() - begun)


class Warm:
    """A process that runs commands one after the other and keeps what it has compiled; for faults that end none."""

    def __init__(self, output: pathlib.Path) -> None:
        self.output = output
        asked, asking = os.pipe()
        answered, answering = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(asking)
            os.close(answered)
            with contextlib.suppress(BaseException):
                _serve(os.fdopen(asked, "rb"), os.fdopen(answering, "wb"), output)
            os._exit(0)
        os.close(asked)
        os.close(answering)
        self._to, self._from = os.fdopen(asking, "wb"), os.fdopen(answered, "rb")

    def __call__(self, arguments: Sequence[Any], folder: pathlib.Path, fault: Fault = Fault()) -> Outcome:
        """Run a command; see ``forked``."""
        pickle.dump((list(map(str, arguments)), folder, fault), self._to)
        self._to.flush()
        return pickle.load(self._from)

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._from.close()
        os.waitpid(self._child, 0)


def _serve(asked: Any, answering: Any, output: pathlib.Path) -> None:
    from deepfusion import view
    from fusion_core.text import documents

    run_plan, trainers = view.run_plan, dict[Any, Any]()
    view.run_plan = lambda *given, **named: run_plan(*given, **named | {"trainers": trainers})  # type: ignore[assignment]
    while True:
        arguments, folder, fault = pickle.load(asked)
        documents._sum.cache_clear()
        begun = time.monotonic()
        with _redirected(output):
            shim.arm(folder, fault)
            code = _call(arguments)
            calls, where = shim.disarm()
        pickle.dump(Outcome(code, *_texts(output), calls, where, time.monotonic() - begun), answering)
        answering.flush()


class Started:
    """A command in a process of its own, not waited for.

    Attributes:
      pid: of the process.
    """

    def __init__(self, arguments: Sequence[Any], output: pathlib.Path) -> None:
        self._begun, self._output = time.monotonic(), output
        output.mkdir(exist_ok=True)
        self.pid = os.fork()
        if not self.pid:
            with contextlib.suppress(BaseException):
                with _redirected(output):
                    code = _call(arguments)
                os._exit(code)
            os._exit(99)
        self._code: int | None = None

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def _ended(self, options: int) -> bool:
        if self._code is None:
            found, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code is not None

    def running(self) -> bool:
        """Return whether it has not ended."""
        return not self._ended(os.WNOHANG)

    def wait_for(self, condition: Callable[[], Any], every: float = 0.002) -> bool:
        """Wait until the condition holds, looking every so many seconds; return False if the process has ended before."""
        while not condition():
            if self._ended(os.WNOHANG) or self.passed > LONGEST:
                return bool(condition())
            time.sleep(every)
        return True

    def end(self) -> Outcome:
        """Wait for the end."""
        self._ended(0)
        return Outcome(self._code or 0, *_texts(self._output), seconds=self.passed)

    def stop(self) -> None:
        """End it, unless it has ended."""
        if not self._ended(os.WNOHANG):
            os.kill(self.pid, signal.SIGKILL)
            self._ended(0)
