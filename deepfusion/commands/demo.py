"""``deepfusion demo``: growth on real text, in as many minutes as there are."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import pathlib
import shlex
import shutil
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepfusion.options import STDIN, Json, check_only_resume, read_piped, seed_option
from deepfusion.terminal import notes, working
from fusion_core import atomic
from fusion_core.checked import checked
from fusion_core.errors import InputError, Interrupted, exit_code
from fusion_core.lock import check_free, lock_names, locked

if TYPE_CHECKING:
    from fusion_core.runs import Plan

SETTINGS, PIPED = "settings.json", "data/piped.txt"
PRESETS = {"default": "demo.toml", "smoke": "demo-smoke.toml"}
EVALUATIONS = 20  # of an arm
SMALLEST_BUDGET = 100  # steps of the large network: less makes no arms
# How the time is spent, in steps of the large network for each of its steps in the budget: from scratch, grown at the rule's
# first trial (30 %), a trial that is lost (4 %); the small network has the rest of one budget.
LARGE, SMALL = 1.74, 1.0
RESERVE = 0.85  # share of the time left that is planned with; checkpoints and the report take the rest


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """What a demo run is made from, written into its folder.

    Attributes:
      preset: name of the plan file.
      text: files or folders; if empty, the preset's.
      seed: of everything that is random.
      vocab: pieces of the tokenizer; if None, the preset's.
      batch: sequences in a global batch; if None, the preset's.
      budget: FLOPs of every arm, in steps of the large network; if None, the preset's.

    Raises:
      InputError: a number is too small.
    """

    preset: str = "default"
    text: tuple[str, ...] = ()
    seed: int = 0
    vocab: int | None = None
    batch: int | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("vocab", 260), ("batch", 1), ("budget", SMALLEST_BUDGET)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} is {value}; it must be at least {least}")

    def plan(self) -> Plan:
        """Return the preset's plan with these settings in it.

        Raises:
          InputError: a setting is out of range, or there is no such preset.
        """
        from fusion_core.runs.plan_file import plan_from

        if self.preset not in PRESETS:
            raise InputError(f"there is no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        file = pathlib.Path(__file__).parent.parent / "plans" / PRESETS[self.preset]

        def change(values: dict[str, Any]) -> None:
            values["seed"] = self.seed
            if self.text:
                values["data"]["text"] = list(self.text)
            for table, name, value in (("data", "vocab", self.vocab), ("defaults", "batch", self.batch)):
                if value is not None:
                    values[table][name] = value
            if self.budget is not None:
                values["budget"]["steps"] = self.budget
                chunk = values["steps_per_dispatch"]
                every = max(1, round(self.budget / EVALUATIONS / chunk)) * chunk
                values["defaults"]["cadence"] = {"log": chunk, "evaluate": every, "checkpoint": 5 * every}

        return plan_from(file, change)


def demo(
    context: typer.Context,
    minutes: Annotated[
        float, typer.Option(help="Time for everything; the budget is set to fit, from the machine's measured speed.")
    ] = 5.0,
    budget: Annotated[
        int | None, typer.Option(help="FLOPs of every arm, in steps of the large network, in the place of --minutes.")
    ] = None,
    preset: Annotated[str, typer.Option(help="'default', or 'smoke' (under a minute, to see that it works).")] = "default",
    text: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Files or folders of UTF-8 text, .gz or .jsonl ({\"text\": ...}); -: a pipe. "
                     "Default: the documentation of the installed scientific stack."),
    ] = None,
    seed: Annotated[int, seed_option("Decides everything that is random.")] = 0,
    vocab: Annotated[int | None, typer.Option(help="Pieces of the tokenizer; less text supports fewer.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences in a global batch, shared by all devices.")] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder of the run. Default: runs/demo-DATE-TIME.")] = None,
    resume: Annotated[pathlib.Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Grow a T5 on real text, and compare it at equal FLOPs.

    Three arms: from scratch; grown from a small network when the online rule says so; one small network. It runs the plan
    file plans/demo.toml of the package; what it writes is what deepfusion train writes: report.html, results.json, and
    every network in Hugging Face's layout in nodes/NAME/model.

    \b
    deepfusion demo                                  on installed documentation, 5 minutes
    deepfusion demo --minutes 30                     a larger budget
    deepfusion demo --text books/ notes.txt          on your own text
    deepfusion demo --seed 1 --budget 1500           a run that can be repeated bit for bit
    deepfusion demo --resume runs/demo-...           after Ctrl-C or a crash
    """
    begun = time.perf_counter()
    if resume is not None:
        check_only_resume(context)
        settings, folder = load_settings(resume), resume
    else:
        if not minutes > 0:
            raise InputError(f"--minutes is {minutes}; it must be positive")
        missing = [path for path in text or () if path != STDIN and not path.exists()]
        if missing:
            raise InputError(f"there is no file or folder {missing[0]}; check the path given to --text")
        from fusion_core.text.encoding import check_pointer

        for path in text or ():  # the steps are compiled and timed before it is read
            if path != STDIN and not path.is_dir():
                check_pointer(path)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = out or pathlib.Path("runs") / f"demo-{stamp}"
        paths = tuple(str((folder / PIPED if path == STDIN else path).resolve()) for path in text or ())
        settings = DemoSettings(preset, paths, seed, vocab, batch, budget)
        check_free(folder)
        atomic.check_new(folder, f"choose another, or use --resume {folder}", besides=(*lock_names(folder), "data"))
    seconds = 60 * minutes if resume is None and budget is None and preset == "default" else None
    fresh = not folder.exists()
    with working("loading JAX", quiet=as_json):
        from fusion_core.train.compiled import keep_compiled

        keep_compiled(notes)
    with locked(folder):
        piped = STDIN in (text or ())
        results = _run(settings, folder, seconds, begun, resumed=resume is not None, fresh=fresh, piped=piped)
    from deepfusion.pages.report import lines, write_report

    report = write_report(results, folder)
    if as_json:
        print(json.dumps({"folder": str(folder), "report": str(report), "comparison": results["comparison"]}))
        return
    print("\n".join(lines(results)))
    print(f"\nReport:      {report}\nCheckpoint:  {folder / 'nodes' / 'grown' / 'model'}")


def _run(
    settings: DemoSettings,
    folder: pathlib.Path,
    seconds: float | None,
    begun: float,
    *,
    resumed: bool,
    fresh: bool,
    piped: bool,
) -> dict[str, Any]:
    """Run the demo in its folder, which no other process works in; ``seconds`` are those that its budget is to fit."""
    from deepfusion.view import run_shown
    from fusion_core.runs import resolve
    from fusion_core.sealed import write_sealed

    trainers: dict[Any, Any] = {}
    try:
        if piped:
            read_piped(folder / PIPED, "--text")
        plan = settings.plan()
        resolve(plan)
        if seconds is not None:
            settings = dataclasses.replace(settings, budget=fitting(plan, folder, seconds, begun, trainers))
            plan = settings.plan()
            notes(f"Budget: {settings.budget} steps of the large network (--budget {settings.budget} repeats the run).")
        if not resumed:
            write_sealed(folder / SETTINGS, dataclasses.asdict(settings))
        results = run_shown(plan, folder, trainers=trainers)
    except (Interrupted, KeyboardInterrupt) as error:
        begin = (
            "nothing is lost. Go on with"
            if (folder / SETTINGS).exists()
            else "nothing is trained yet. Begin again with"
        )
        option = "--resume" if (folder / SETTINGS).exists() else "--out"
        notes(f"\nInterrupted; {begin}:  deepfusion demo {option} {shlex.quote(str(folder))}")
        raise typer.Exit(exit_code(error)) from None
    except InputError:
        if not resumed and not (folder / "nodes").exists():
            shutil.rmtree(folder, ignore_errors=True)  # a run that never began leaves nothing behind
            if not fresh:
                folder.mkdir()
        raise
    assert results is not None  # all nodes are run
    return results


def load_settings(folder: pathlib.Path) -> DemoSettings:
    """Return the settings of an existing run.

    Raises:
      InputError: the folder holds no run.
    """
    from fusion_core.sealed import read_sealed

    file = folder / SETTINGS
    try:
        values = read_sealed(file, "start a new run")
    except FileNotFoundError:
        raise InputError(f"{folder} holds no demo run (no {SETTINGS}); give the folder that the run printed") from None
    try:
        return checked(DemoSettings, values)
    except ValueError as error:
        raise InputError(f"{file} cannot be read ({error}); start a new run") from None


def fitting(plan: Plan, folder: pathlib.Path, seconds: float, begun: float, trainers: dict[Any, Any]) -> int:
    """Return the budget, in steps of the large network, that the time allows.

    The steps of both shapes are compiled and timed on random tokens, which the run uses again; then the text is read.

    Args:
      plan: of the demo.
      folder: of the run; the text is put there.
      seconds: for everything, from ``begun`` on.
      begun: ``time.perf_counter()`` at the start.
      trainers: is filled with the compiled steps.
    """
    from fusion_core.runs import TrainNode, resolve
    from fusion_core.runs.data import RunData

    nodes = {node.name: node for node in resolve(plan) if isinstance(node.node, TrainNode)}
    paces, evaluations = {}, {}
    for name in ("small", "large"):
        with working(f"compiling the {name} network's step and timing it"):
            paces[name], evaluations[name] = pace(plan, nodes[name], trainers)
    RunData(plan.data, plan.seed, folder / "data", notes)
    left = RESERVE * (seconds - (time.perf_counter() - begun))
    ratio = nodes["large"].step_flops / nodes["small"].step_flops
    left -= EVALUATIONS * (2 * evaluations["large"] + ratio * evaluations["small"])
    chunk = plan.steps_per_dispatch
    steps = int(left / (LARGE * paces["large"] + SMALL * ratio * paces["small"])) // (5 * chunk) * (5 * chunk)
    least = 10 * chunk
    if steps < least:
        notes(f"{seconds / 60:g} minutes are too few here for a budget of {least} steps; it will take longer.")
    notes(f"A step takes {paces['large'] * 1e3:.0f} ms, the small network's {paces['small'] * 1e3:.0f} ms.")
    return max(least, steps)


def pace(plan: Plan, resolved: Any, trainers: dict[Any, Any]) -> tuple[float, float]:
    """Return the seconds of a training step and of an evaluation of a node."""
    import numpy as np

    from fusion_core.models.t5 import init
    from fusion_core.runs.context import trainer_of
    from fusion_core.text.span_corruption import target_length
    from fusion_core.train import init_state

    node, chunk = resolved.node, plan.steps_per_dispatch
    trainer = trainer_of(plan, resolved.config, node, trainers)
    rng = np.random.default_rng(0)
    drawn = lambda length: rng.integers(3, resolved.config.vocab_size, (node.batch, length), np.int32)
    batch = {"encoder_ids": drawn(node.length), "targets": drawn(target_length(node.length))}
    state = init_state(init(resolved.config, 0), trainer.optimizer, 1e-6)
    marks = []
    for _ in trainer.dispatches(state, itertools.repeat((batch, None)), 3 * chunk, pause=lambda step: True):
        marks.append(time.perf_counter())
    held_out = [batch] * plan.data.validation_batches
    trainer.scores(state.params, held_out)
    before = time.perf_counter()
    trainer.scores(state.params, held_out)
    return (marks[-1] - marks[0]) / (len(marks) - 1) / chunk, time.perf_counter() - before
