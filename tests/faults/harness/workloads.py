"""The commands that faults happen to: what each needs, how it goes on, and what it leaves undisturbed."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from tests.faults.harness import checks
from tests.faults.harness.processes import Outcome, Started, Warm, forked
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents, sentences

PLAN = f"""
name = "small"{HEAD.replace("evaluate = 10, checkpoint = 10", "evaluate = 5, checkpoint = 5")}
[node.a]
model = {MODEL}
steps = 10
[node.fused]
sources = ["a", "a"]
[node.b]
from = "a"
steps = 5
"""
FIRST = f"""
name = "small"{HEAD}
[node.a]
model = {MODEL}
steps = 10
[node.b]
model = {MODEL}
steps = 10
seed = 1
"""
Arguments = list[Any]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command on a folder of its own, in which its inputs are and where it writes ``out``.

    Attributes:
      name: of the command.
      begin: folder -> arguments.
      go_on: folder -> arguments of the command that follows when one was stopped.
      begun: the file by which ``go_on`` goes on; without it, ``begin`` is repeated.
      once: whether the output appears at once, and the command is then not repeated.
      wholes: folders in the output that appear at once.
    """

    name: str
    begin: Callable[[pathlib.Path], Arguments]
    go_on: Callable[[pathlib.Path], Arguments]
    begun: str = ""
    once: bool = False
    wholes: tuple[str, ...] = ()

    def next(self, case: pathlib.Path) -> Arguments | None:
        """Return the arguments of the command that follows; None if there is nothing left to do."""
        out = case / "out"
        if self.once and out.exists():
            return None
        begun = not self.begun or (out / self.begun).exists()
        return self.go_on(case) if begun else self.begin(case)


def _train(case: pathlib.Path) -> Arguments:
    return ["train", case / "plan.toml", "--out", case / "out"]


def _fuse(case: pathlib.Path) -> Arguments:
    return ["fuse", case / "a", case / "b", "--out", case / "out"]


def _grow(case: pathlib.Path) -> Arguments:
    return ["grow", case / "a", "--operator", "hypercloning", "--factor", 2, "--out", case / "out"]


def _figures(case: pathlib.Path) -> Arguments:
    return ["figures", "growth_law", "--preset", "smoke", "--out", case / "out"]  # a second of work


def _finetune(case: pathlib.Path) -> Arguments:
    files = ["--train", case / "rows.tsv", "--validation", case / "rows.tsv", "--out", case / "out"]
    sizes = ["--steps", 4, "--every", 2, "--batch", 4, "--source-length", 16, "--target-length", 4]
    return ["finetune", case / "a", "--task", "custom", "--input-column", "q", "--target-column", "a", *files, *sizes]


def _demo(case: pathlib.Path) -> Arguments:
    return ["demo", "--preset", "smoke", "--text", case / "text.txt", "--budget", 100, "--out", case / "out"]


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            _train,
            lambda case: [*_train(case), "--resume"],
            wholes=("nodes/a/model", "nodes/b/model", "nodes/fused/model"),
        ),
        Command("fuse", _fuse, _fuse, once=True, wholes=(".",)),
        Command("grow", _grow, _grow, once=True, wholes=(".",)),
        Command("figures", _figures, _figures),
        Command(
            "finetune",
            _finetune,
            lambda case: ["finetune", "--resume", case / "out"],
            "settings.json",
            wholes=("checkpoint",),
        ),
        Command("demo", _demo, lambda case: ["demo", "--resume", case / "out"], "settings.json"),
    )
}


class Bench:
    """Inputs, undisturbed results, and a folder for every fault.

    Args:
      root: a folder for all of it.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root, self.inputs, self.output = root, root / "inputs", root / "output"
        self.output.mkdir(parents=True, exist_ok=True)
        os.environ["DEEPFUSION_CACHE"] = str(root / "cache")
        self.wanted: dict[str, dict[str, Any]] = {}
        self.undisturbed: dict[str, Outcome] = {}
        self.warm = Warm(self.output)
        self._known: set[tuple[str, str]] = set()
        if not (self.inputs / "a").exists():
            self._write_inputs()

    def _write_inputs(self) -> None:
        shutil.rmtree(self.inputs, ignore_errors=True)
        self.inputs.mkdir()
        (self.inputs / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
        (self.inputs / "first.toml").write_text(FIRST, encoding="utf-8")
        (self.inputs / "plan.toml").write_text(PLAN, encoding="utf-8")
        streamed = PLAN.replace("[data]", "[data]\nstream = true")
        (self.inputs / "streamed.toml").write_text(streamed, encoding="utf-8")
        rows = [f"{line}\t{line.split()[0]}" for line in sentences(3, 12)]
        (self.inputs / "rows.tsv").write_text("\n".join(["q\ta", *rows]) + "\n", encoding="utf-8")
        done = self.warm(["train", self.inputs / "first.toml", "--out", self.root / "first"], self.root)
        assert done.code == 0, done.stderr
        for name in ("b", "a"):
            shutil.copytree(self.root / "first" / "nodes" / name / "model", self.inputs / name)

    def case(self, name: str = "case") -> pathlib.Path:
        """Return a new folder, of the same name each time, with the inputs and with files that are not the command's."""
        case = self.root / name
        subprocess.run(["chattr", "-R", "-i", case], capture_output=True, check=False) if case.exists() else None
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(self.inputs, case)
        (case / ".other.0123456789ab").write_text("a neighbour's")
        (case / "link").symlink_to("text.txt")
        return case

    def begun(self, name: str) -> tuple[Command, pathlib.Path, dict[str, Any]]:
        """Return a command, a new case, and what is around its output; its undisturbed result is known then."""
        self.result_of(name)
        case = self.case()
        return COMMANDS[name], case, checks.surroundings(case, "out")

    def foreign(self) -> pathlib.Path:
        """Return the output of a run of another seed."""
        kept = self.root / "foreign"
        if not kept.exists():
            case = self.case()
            plan = case / "plan.toml"
            plan.write_text(f"seed = 7\n{plan.read_text(encoding='utf-8')}", encoding="utf-8")
            done = self.warm(COMMANDS["train"].begin(case), case)
            assert done.code == 0, done.stderr
            shutil.copytree(case / "out", kept)
        return kept

    @staticmethod
    def weights(result: dict[str, Any]) -> dict[str, Any]:
        """Return the sums of the tensors in a result, without what depends on the place."""
        return {name: content[0] for name, content in result.items() if name.endswith(".safetensors")}

    def calls(self, name: str) -> int:
        """Return the number of calls of an undisturbed command that change files."""
        self.result_of(name)
        return self.undisturbed[name].calls

    def started(self, arguments: Arguments, case: pathlib.Path) -> Started:
        """Start a command beside this process."""
        return Started(arguments, self.root / "output-first")

    def immutable(self, path: pathlib.Path, on: bool) -> bool:
        """Set or clear the flag of a folder by which not even root can change it; return whether that works here."""
        command = ["chattr", "+i" if on else "-i", str(path)]
        return shutil.which("chattr") is not None and not subprocess.run(command, capture_output=True).returncode

    def keep(self) -> pathlib.Path:
        """Move the case aside, where something was lost, to be looked at; return where it is."""
        kept = self.root / "lost"
        kept.mkdir(exist_ok=True)
        kept = kept / f"{len(list(kept.iterdir())):03}"
        shutil.copytree(self.root / "case", kept, symlinks=True)
        return kept

    def result_of(self, name: str) -> dict[str, Any]:
        """Return what a command leaves that nothing disturbs."""
        if name not in self.wanted:
            case = self.case()
            forked(COMMANDS[name].begin(case), self.output, case)  # compiles
            shutil.rmtree(case / "out")
            done = forked(COMMANDS[name].begin(case), self.output, case)
            assert done.code == 0, done.stderr
            self.undisturbed[name] = done
            self.wanted[name] = checks.result(case / "out")
            shutil.rmtree(self.root / f"undisturbed-{name}", ignore_errors=True)
            shutil.copytree(case / "out", self.root / f"undisturbed-{name}", symlinks=True)  # to be looked at
        return self.wanted[name]

    def wholes(self, command: Command) -> dict[str, set[str]]:
        """Return folders that appear at once -> the names in them."""
        wanted = self.result_of(command.name)
        prefix = lambda folder: "" if folder == "." else f"{folder}/"
        inside = lambda folder: {n.removeprefix(prefix(folder)) for n in wanted if n.startswith(prefix(folder))}
        return {folder: {name for name in inside(folder) if "/" not in name} for folder in command.wholes}

    def looked_at(self, command: Command, case: pathlib.Path, before: dict[str, Any], done: Outcome) -> str:
        """Return what is wrong after a fault, in words: half-written files, things outside, the message; empty: nothing."""
        out = case / "out"
        if done.code not in (0, 2, 143, -9, -15):
            return f"exit code {done.code}: {(done.stderr.rstrip().splitlines() or [''])[-1]}"
        return (
            checks.message(done, interrupted=done.code == 143)
            or (out.exists() and checks.half_written(out, self.wholes(command)))
            or self.around(case, before)
            or (not done.code and checks.differences(checks.result(out), self.result_of(command.name)))
            or ""
        )

    def around(self, case: pathlib.Path, before: dict[str, Any]) -> str:
        now = checks.surroundings(case, "out")
        changed = [name for name in sorted(now.keys() | before.keys()) if now.get(name) != before.get(name)]
        return f"outside of its folder it changed {', '.join(changed[:3])}" if changed else ""

    def gone_on(self, command: Command, case: pathlib.Path, before: dict[str, Any], *, warm: bool = True) -> str:
        """Go on after a fault; return what is wrong with the end, in words. Of equal states one is gone on from."""
        state = checks.state(case / "out")
        if (command.name, state) not in self._known:
            wrong = self._gone_on(command, case, before, warm)
            if wrong:
                return wrong
            self._known.add((command.name, state))
        return ""

    def _gone_on(self, command: Command, case: pathlib.Path, before: dict[str, Any], warm: bool) -> str:
        arguments = command.next(case)
        if arguments is not None:
            done = self.warm(arguments, case) if warm else forked(arguments, self.output, case)
            if done.code:
                return f"it does not go on: exit code {done.code}: {(done.stderr.rstrip().splitlines() or [''])[-1]}"
        found = checks.differences(checks.result(case / "out"), self.result_of(command.name))
        if found:
            return f"after going on {found}"
        left = checks.temporaries(case / "out")
        beside = [p.name for p in case.iterdir() if checks.TEMPORARY.fullmatch(p.name) and p.name.startswith(".out.")]
        return f"temporaries are left: {left or beside}" if left or beside else self.around(case, before)
