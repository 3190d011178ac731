"""Targets that read plans, laws, the files of runs, formulas and arguments of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from unittest import mock

import numpy as np

from fusion_core.errors import InputError
from tests.fuzz import bases, mutations
from tests.fuzz.frame import case, folders, placed, target, unpacked

# plans, laws and the files of runs


@target("plan", lambda: [plan.encode() for plan in bases.PLANS], mutations.toml_file)
def plan(data: bytes) -> None:
    from fusion_core.runs import arm_flops, costs, read_plan, resolve

    path = placed("plan.toml", data)
    (path.parent / "text.txt").write_bytes(bases.TEXT)
    read = read_plan(path)
    nodes = resolve(read)
    costs(nodes, 1, 1e12)
    arm_flops(read, nodes)
    json.dumps(dataclasses.asdict(read), allow_nan=False)


@target("growth_json", lambda: [bases.growth_file()], mutations.json_file)
def growth_json(data: bytes) -> None:
    from fusion_core.checkpoints import read_growth

    record = read_growth(placed("growth.json", data))
    record.factors("adam")
    record.mapping()
    json.dumps(record.json(), allow_nan=False)


@target("law_json", lambda: bases.laws(), mutations.json_file)
def law_json(data: bytes) -> None:
    from fusion_core.schedule import SavedLaw

    law = SavedLaw.load(placed("law.json", data))
    said = law.forecast(10 * law.unit, facts=law.facts)
    law.plan(10 * law.unit, law.unit / 3, 10, facts=law.facts)
    assert said.why
    law.save(case() / "again.json")


@target("law_runs", lambda: _run_files(), mutations.one_file([mutations.json_file] * 2), slow=True)
def law_runs(data: bytes) -> None:
    """``plan.json`` and ``results.json`` of a run that a law is fitted to."""
    from fusion_core.runs import fit_runs, read_plan

    written, files = bases.run_files()
    path = placed("plan.toml", written)
    (path.parent / "text.txt").write_bytes(bases.TEXT)
    files = files | {sorted(files)[data[0] % len(files) if data else 0]: data[1:]}
    here = str(path.parent).encode()
    folder = bases.written(path.parent / "run", {name: file.replace(bases.HERE, here) for name, file in files.items()})
    with mock.patch("fusion_core.runs.law.text_of", return_value="text"):
        fit_runs(read_plan(path), [folder], draws=1)


def _run_files() -> list[bytes]:
    return [bytes([i]) + content for i, (_, content) in enumerate(sorted(bases.run_files()[1].items()))]


DECISION = {"step": 10, "learning_rate": 0.1, "factors": {"q": 0.5}, "reason": "it pays", "rule": "online"}


@target("decision_json", lambda: [json.dumps(DECISION).encode()], mutations.json_file)
def decision_json(data: bytes) -> None:
    from fusion_core.schedule import GrowthDecision

    found = GrowthDecision.load(placed("decision.json", data))
    assert found.step is None or found.step >= 0
    assert found.step is None or found.learning_rate > 0
    assert isinstance(found.reason, str)
    assert all(factor > 0 for factor in found.factors.values())


@target("trials_json", lambda: bases.trials(), mutations.json_file)
def trials_json(data: bytes) -> None:
    from fusion_core.schedule import TrialRule

    rule = TrialRule.load(placed("rule.json", data))
    _ = rule.next_decision, rule.trial, rule.step, rule.kept
    rule.decision(0.1, {"q": {"w": 0.5}})
    rule.save(case() / "again.json")


RECORDS = b'{"step": 10, "loss": 2.5}\n{"step": 20, "loss": 2.0, "validation_loss": 2.1}\n'


@target("metrics_jsonl", lambda: [RECORDS], mutations.json_lines)
def metrics_jsonl(data: bytes) -> None:
    from fusion_core.train import Metrics

    metrics = Metrics(placed("metrics.jsonl", data))
    metrics.keep(lambda record: record["step"] <= 15)
    assert all(isinstance(record["step"], int) for record in metrics.records)


STATE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.asarray(3)}


@target("training_state", lambda: bases.states(STATE), mutations.safetensors_file, slow=True)
def training_state(data: bytes) -> None:
    from fusion_core.train.state_files import load_state

    load_state(placed("state.safetensors", data), STATE)


@target("tokens_npz", lambda: bases.tokens(), mutations.flipped)
def tokens_npz(data: bytes) -> None:
    from fusion_core.text.prepared import read_tokens

    assert read_tokens(placed("tokens.npz", data).parent)


SETTINGS = {"checkpoint": "a", "task": "sst2", "train": "a.tsv", "validation": "b.tsv"}


@target("finetune_settings", lambda: bases.finetune_settings(SETTINGS), mutations.json_file)
def finetune_settings(data: bytes) -> None:
    from fusion_core.runs.finetune import load_settings

    load_settings(placed("settings.json", data).parent)


@target("demo_settings", lambda: bases.demo_settings(), mutations.json_file)
def demo_settings(data: bytes) -> None:
    from deepfusion.commands.demo import load_settings

    load_settings(placed("settings.json", data).parent)


@target("record_json", lambda: [json.dumps(bases.RECORD).encode()], mutations.json_file)
def record_json(data: bytes) -> None:
    from paper_figures.experiments.record import read_record

    read_record(placed("record.json", data))


@target("figure_json", lambda: bases.figures(), mutations.json_file)
def figure_json(data: bytes) -> None:
    from paper_figures.results import Results, ResultsError

    try:
        Results.load(placed("results.json", data))
    except ResultsError as error:
        raise InputError(str(error)) from None


# formulas and the command line


@target("formula", lambda: [b"(x*y-1)**2/2", b"exp(x)*log(1+y**2)"], mutations.formula, allowed=(ValueError,))
def formula(data: bytes) -> None:
    from bea.symbolic.parse import FormulaError, parse_formula

    text = data.decode("utf-8", "surrogateescape")
    try:
        parse_formula(text)
    except FormulaError:
        raise
    except ValueError as error:  # only that one is documented
        raise AssertionError(repr(error)) from error


def command(*words: str) -> str:
    """Run the command line in this process, and return what it printed; an exit with 2 is an InputError of its one line."""
    from deepfusion import cli

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["deepfusion", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
    said = [line for line in err.getvalue().splitlines() if line.startswith("Error: ")]
    assert code in (0, 2), (code, err.getvalue()[-500:])
    assert len(said) == (code == 2), err.getvalue()[-500:]
    assert "Traceback" not in err.getvalue()
    if code:
        raise InputError(said[0])
    return out.getvalue()


def _words(data: bytes) -> list[str]:
    return [word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")]


def _joined(*lists: str) -> Callable[[], list[bytes]]:
    return lambda: ["\0".join(words.split()).encode() for words in lists]


DERIVE = (
    "--loss",
    "--order",
    "--phases",
    "--field",
    "--where",
    "--symbols",
    "--step",
    "--momentum",
    "--method",
    "--trees",
)
DERIVE += ("--json", "--latex", "--lo", "-h")


@target("derive", _joined(
    "--loss (x*y-1)**2/2 --order 2", "--loss x**2*y --momentum b", "--phases E1:h1,E2:h2 --order 3 --latex",
    "--phases E1:h1:n,E2:h2 --where E1=x**2*y --where E2=y**2/2 --order 2", "--field y,-sin(x) --symbols x,y --order 3",
    "--method rk4 --order 5 --json",
), mutations.arguments(DERIVE), slow=True)  # fmt: skip
def derive(data: bytes) -> None:
    command("derive", *_words(data))


@target("derive_loss", lambda: [b"(x*y-1)**2/2", b"exp(x*y)+x**3", b"tanh(x*y)**2"], mutations.formula, slow=True)
def derive_loss(data: bytes) -> None:
    command("derive", "--loss", data.decode("utf-8", "surrogateescape"))


@target("arguments", _joined(
    "fuse a b --out c --weights 0.3,0.7 --noise 0.1", "train p.toml --out r --seeds 0,1", "plan p.toml --tflops 1 --devices 8",
    "grow a --operator net2net_width --out b", "diff a b --rows 3", "info a --json", "law p.toml r --out law.json",
    "generate a text --seed 3", "demo --preset smoke --text a b", "finetune a --task sst2 --train a.tsv", "figures --help",
), mutations.arguments((
    "--out", "--seed", "--seeds", "--json", "--rows", "--text", "--noise", "--weights", "--dtype", "--max-shard", "--resume",
    "--help", "--dry-run", "--preset", "--tflops", "--devices", "--no-probe", "--version", "fuse", "demo", "grow", "finetune",
)))  # fmt: skip
def arguments(data: bytes) -> None:
    """Arguments of every command, as far as they are parsed: the commands are not run."""
    from deepfusion import cli

    words = cli.repeat_option(_words(data), "--text")
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            group = cli.typer.main.get_command(cli.app)
            with group.make_context("deepfusion", list(words), resilient_parsing=not words) as context:
                name, command, rest = group.resolve_command(context, words)
                command.make_context(name, rest, parent=context)
        except cli.USAGE_ERROR as error:
            raise InputError(error.format_message()) from None
        except cli.typer.Exit:
            return


PLAN_OPTIONS = ("--devices", "--tflops", "--mfu", "--law", "--now", "--json", "plan.toml", "law.json")


@target("plan_command", _joined(
    "plan.toml --tflops 1", "plan.toml --tflops 989 --mfu 0.45 --devices 4 --json", "plan.toml --tflops 1 --law law.json"
), mutations.arguments(PLAN_OPTIONS), slow=True)  # fmt: skip
def plan_command(data: bytes) -> None:
    folder = bases.written(
        case(), {"plan.toml": bases.run_files()[0], "text.txt": bases.TEXT, "law.json": bases.laws()[0]}
    )
    with contextlib.chdir(folder), mock.patch("deepfusion.foretold.text_of", return_value="text"):
        command("plan", *_words(data))


def _of_folder(name: str, *words: str, slow: bool = True) -> None:
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    names = ("T5",)

    def run(data: bytes) -> None:
        folder = case()
        bases.written(folder / "b", bases.checkpoint("T5"))
        (folder / "a").mkdir()
        unpacked(data, names, files, folder / "a")
        with contextlib.chdir(folder):
            command(*words)
        assert {path.name for path in folder.iterdir()} == {"a", "b"}

    kinds = [mutations.json_file, mutations.safetensors_file, mutations.json_file, mutations.json_file]
    target(name, lambda: folders(names, files), mutations.one_file(kinds), slow=slow)(run)


_of_folder("info", "info", "a", slow=False)
_of_folder("fuse_dry_run", "fuse", "a", "b", "--out", "c", "--dry-run")
_of_folder("grow_dry_run", "grow", "a", "--operator", "hypercloning", "--factor", "2", "--out", "c", "--dry-run")
_of_folder("diff", "diff", "a", "b", "--rows", "1", "--json")
