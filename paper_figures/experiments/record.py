"""Records: what the runs of a plan gave, small enough to be committed.

A record is JSON::

    format      1
    name        of the experiment
    plan        the text of its plan file
    seeds       {seed: {node: facts}}
    text        sum of tokens and tokenizer, or None if it is not known
    provenance  versions, devices, commit, created; a list, one entry for each run that was merged
    scores      of fine-tuned networks, if there are some (``finetuning.scores_in``)

Facts of a node are those of ``results.json`` (``fusion_core.runs.compare``) that take little room: the validation losses stay a
curve, the pace is one entry, the median over the run, of the theory's terms the last record stays; a node that was trained has
its device. Numbers have 5 significant
digits. ``fusion_core.runs.compare_arms`` reads the nodes of a record as it reads those of a run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_core import atomic
from fusion_core.checked import checked
from fusion_core.errors import InputError
from fusion_core.runs.compare import arms_of
from fusion_core.runs.data import RunData
from fusion_core.runs.plan import Plan, TrainNode, plan_values
from fusion_core.runs.plan_file import read_plan
from fusion_core.runs.results import REMEDY, check_results, of_seeds
from fusion_core.runs.run import PLAN
from fusion_core.text.json_files import LARGE, read_json

FORMAT = 1
HERE = pathlib.Path(__file__).parent
DIGITS = 5
SMOKE = "smoke"  # the plan that the figures draw at the preset of that name
# facts of a node that take much room, or that say where the run kept its files
LEFT_OUT = ("loss", "tokens_per_second", "input_wait", "work")
NOT_COMPARED = ("name", "seeds", "seed")  # of the plans of runs that are merged

Nodes = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Record:
    """What the runs of a plan gave.

    Attributes:
      name: of the experiment.
      plan: the text of its plan file.
      seeds: seed -> node -> facts.
      text: sum of tokens and tokenizer; None if it is not known.
      provenance: of each run that was merged.
      scores: of fine-tuned networks; may be empty.
    """

    name: str
    plan: str
    seeds: dict[str, Nodes]
    text: str | None
    provenance: tuple[dict[str, Any], ...]
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The plan's values."""
        return tomllib.loads(self.plan)

    def scored(self) -> dict[str, Any]:
        """Return the scores. Raise InputError, with the command that makes them, if there are none."""
        if not self.scores:
            raise InputError(
                f"the record of {self.name} has no scores; make them with: {command_of(self.name)} --glue FOLDER"
            )
        return self.scores

    def save(self, path: pathlib.Path) -> None:
        """Write the file whole or not at all, a node a line."""
        lines = lambda nodes: ",\n".join(f"   {json.dumps(name)}: {_line(node)}" for name, node in nodes.items())
        seeds = ",\n".join(f"  {json.dumps(seed)}: {{\n{lines(nodes)}\n  }}" for seed, nodes in self.seeds.items())
        head = {"format": FORMAT, "name": self.name, "plan": self.plan, "text": self.text}
        fields = [f" {json.dumps(key)}: {_line(value)}" for key, value in head.items()]
        origin = ",\n".join(f"  {_line(one)}" for one in self.provenance)
        fields += [f' "scores": {_line(self.scores)}'] if self.scores else []
        body = ",\n".join([*fields, f' "provenance": [\n{origin}\n ]', f' "seeds": {{\n{seeds}\n }}'])
        atomic.write_text(path, f"{{\n{body}\n}}\n")


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def path_of(name: str, kind: str) -> pathlib.Path:
    """Return the path of an experiment's plan (``kind`` ``"toml"``) or record (``"json"``)."""
    return HERE / f"{name}.{kind}"


def names() -> list[str]:
    """Return the names of the experiments that have a plan."""
    return sorted(file.stem for file in HERE.glob("*.toml") if file.stem != SMOKE)


def command_of(name: str) -> str:
    """Return the command that makes an experiment's record."""
    return f"python -m paper_figures.experiments {name} --out runs/{name} --seeds 0,1,2"


def load_record(name: str) -> Record:
    """Return the committed record of an experiment.

    Raises:
      InputError: it is missing, with the command that makes it, or it is no record.
    """
    path = path_of(name, "json")
    if not path.exists():
        raise InputError(f"there is no record of {name} ({path}); make it with: {command_of(name)}")
    return read_record(path)


def read_record(path: pathlib.Path) -> Record:
    """Read what ``Record.save`` wrote.

    Raises:
      InputError: the file is missing or is no record.
    """
    values = _read(path)
    if values.get("format") != FORMAT:
        raise InputError(
            f"{path} has the record format {values.get('format')!r}, but this version reads {FORMAT}; make it again"
        )
    missing = [key for key in ("name", "plan", "seeds", "text", "provenance") if key not in values]
    if missing or not values["seeds"]:
        raise InputError(f"{path} is no record: it has no {', '.join(missing or ['seeds'])}; make it again")
    check_results(values, path, "make it again", whole=False)
    try:
        return checked(Record, {key: value for key, value in values.items() if key != "format"})
    except ValueError as error:
        raise InputError(f"{path} is no record ({error}); make it again") from None


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_json(path, REMEDY, longest=LARGE, finite=False)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; {REMEDY}") from None


def record_of(name: str, plan_file: pathlib.Path, files: Sequence[pathlib.Path]) -> Record:
    """Return the record of runs of one plan: of different seeds, or of different nodes.

    A run may lack nodes, such as those of another run. A node that leads to none of the arms that are there is left out.

    Args:
      name: of the experiment.
      plan_file: that the runs are of.
      files: ``results.json`` of the runs, or records.

    Raises:
      InputError: a file cannot be read, is of another plan or text, or has other losses of a node than one before it.
    """
    plan, text = read_plan(plan_file), plan_file.read_text(encoding="utf-8-sig")
    seeds: dict[str, Nodes] = {}
    origins: list[dict[str, Any]] = []
    texts: set[str] = set()
    for file in files:
        found, digest, origin = _contents(file, plan, text)
        for seed, nodes in found.items():
            known = seeds.setdefault(seed, {})
            for node, facts in nodes.items():
                kept = facts_of(facts)
                if len(origin) == 1 and kept["kind"] == "train":
                    kept.setdefault("device", ", ".join(origin[0].get("devices", [])))
                if known.setdefault(node, kept)["validation_loss"] != kept["validation_loss"]:
                    raise InputError(
                        f"{file} has {node} of seed {seed} with other losses than a file before it; give one of them"
                    )
        origins += [one for one in origin if one not in origins]
        texts |= {digest} if digest else set()
    if len(texts) > 1:
        raise InputError(f"the runs are of different texts ({', '.join(sorted(texts))}); merge runs of one text")
    ordered = {seed: _needed(seeds[seed], plan) for seed in sorted(seeds, key=int)}
    return Record(name, text, ordered, next(iter(texts), None), tuple(origins))


def _needed(nodes: Nodes, plan: Plan) -> Nodes:
    """Return, in the plan's order, the nodes that lead to an arm of the plan, or to a growth that was measured."""
    graph = {n.name: {"inputs": n.inputs, "kind": _kind(n), "arm": getattr(n, "arm", "")} for n in plan.nodes}
    waiting = [last for last in arms_of(graph).values() if last in nodes]
    waiting += [name for name, facts in nodes.items() if facts.get("greedy") or facts.get("theory")]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            if name not in nodes:
                raise InputError(
                    f"a run has nodes that go on from {name}, but not {name} itself; give the run that has it"
                )
            waiting += graph[name]["inputs"]
    if not needed:
        raise InputError(
            f"the runs have no arm of {plan.name} that is finished; its arms are {', '.join(arms_of(graph))}"
        )
    return {name: nodes[name] for name in graph if name in needed}


def _kind(node: Any) -> str:
    return "train" if isinstance(node, TrainNode) else "growth"


def _contents(file: pathlib.Path, plan: Plan, text: str) -> tuple[dict[str, Any], str | None, list[dict[str, Any]]]:
    """Return the nodes of each seed, the text's sum and the origin of a results file or a record, both of this plan."""
    values = _read(file)
    wrong = f"{file} is of another plan: "
    record = read_record(file) if "format" in values else None
    if record is None and "nodes" not in values:
        raise InputError(f"{file} has no nodes; {REMEDY}")
    if record is None:
        check_results(values, file, whole=False)
    found = record.seeds if record else of_seeds(values, plan.seed)
    names = {name for nodes in found.values() for name in nodes}
    if unknown := sorted(names - {node.name for node in plan.nodes}):
        raise InputError(f"{wrong}the plan has no {', '.join(unknown)}; give the plan file that it was begun with")
    if record is not None:
        if differ := _other_settings(record.settings, tomllib.loads(text), names):
            raise InputError(f"{wrong}{', '.join(differ)} differ; give runs of one plan")
        return found, record.text, list(record.provenance)
    folder = file.parent
    if (folder / PLAN).exists():
        differ = _differences(read_json(folder / PLAN, longest=LARGE), plan)
        if differ:
            raise InputError(f"{wrong}{', '.join(differ)} differ; give the plan file that it was begun with")
    data, digest = folder / "data", values.get("text")
    if digest is None and data.exists():
        digest = RunData(plan.data, plan.seed, data, lambda line: None).digest
    return found, digest, [values["provenance"]]


def _other_settings(one: Mapping[str, Any], other: Mapping[str, Any], names: set[str]) -> list[str]:
    """Return in what two plans differ, of the data, the defaults and these nodes."""
    found = [key for key in ("data", "defaults", "steps_per_dispatch", "budget") if one.get(key) != other.get(key)]
    return found + [f"node {name}" for name in sorted(names) if one["node"].get(name) != other["node"].get(name)]


def _differences(ran: Mapping[str, Any], plan: Plan) -> list[str]:
    """Return the fields in which the plan of a run differs from one; where files are does not count."""
    wanted = plan_values(plan)
    for values in (ran, wanted):
        for key in ("text", "tokenizer"):
            values.get("data", {}).pop(key, None)
    return [key for key, value in wanted.items() if key not in NOT_COMPARED and ran.get(key) != value]


def facts_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a node that a record keeps; facts of a record stay as they are."""
    kept = {key: value for key, value in node.items() if key not in LEFT_OUT}
    paces = [value for _, value in node.get("steps_per_second") or [] if value > 0]
    paces = paces[1:] or paces  # the first includes the compilation
    kept["steps_per_second"] = [[node["step"], statistics.median(paces)]] if paces else []
    theory = node.get("theory")
    kept["theory"] = theory[-1] if isinstance(theory, list) and theory else theory or None
    return {key: rounded(value) for key, value in kept.items() if value is not None or key == "final"}


def rounded(value: Any) -> Any:
    """Return JSON values with floats of 5 significant digits; numbers that JSON lacks are None."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{DIGITS - 1}e}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value
