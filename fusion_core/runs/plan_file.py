"""Reading a plan from its TOML file: all errors at once, each with its line."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fusion_core.checked import explained
from fusion_core.errors import InputError
from fusion_core.models.t5 import Compute, T5Config
from fusion_core.runs.graph import check_size
from fusion_core.runs.plan import (
    LONGEST_NAME,
    MOST_NODES,
    Budget,
    FuseNode,
    GrowNode,
    Node,
    Plan,
    RuleSettings,
    TrainNode,
)
from fusion_core.runs.settings import DataSettings, OptimizerSettings, ScheduleSettings
from fusion_core.text.encoding import read_text
from fusion_core.text.tokenizer import EOS, PAD, SENTINELS, Tokenizer
from fusion_core.train.training import Cadence

LONGEST, DEEPEST = 10_000_000, 20  # bytes of a plan file, and how deep its values are nested
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
KINDS = {"train": TrainNode, "fuse": FuseNode, "grow": GrowNode}
TABLES = {"optimizer": OptimizerSettings, "schedule": ScheduleSettings, "cadence": Cadence, "compute": Compute}
TOP = ("name", "seed", "seeds", "steps_per_dispatch", "measure", "budget", "rule", "data", "defaults", "node")
Place = tuple[str, ...]


def read_plan(path: pathlib.Path) -> Plan:
    """Read a plan file; paths in it are relative to the file.

    Raises:
      InputError: the file is missing, no TOML, or not a plan that can be run; the message lists all errors with their lines.
    """
    return plan_from(path)


def plan_from(path: pathlib.Path, change: Callable[[dict[str, Any]], None] = lambda values: None) -> Plan:
    """Read a plan file whose values are changed before they are checked.

    Args:
      path: of the file.
      change: changes the file's values in place.

    Raises:
      InputError: the file is missing, no TOML, or not a plan that can be run; the message lists all errors with their lines.
    """
    if not path.exists():
        raise InputError(f"there is no plan {path}; examples are in examples/plans")
    text = read_text(path, LONGEST)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} cannot be read as TOML: {said}") from None
    if deepest(values) > DEEPEST:
        raise InputError(f"{path}: its values are nested more than {DEEPEST} deep; no plan is")
    change(values)
    reader = _Reader(path.parent, lines_of(text))
    plan = reader.plan(values, path.stem)
    if plan is None:
        raise InputError(f"{path} is no plan that can be run:\n  " + "\n  ".join(reader.errors))
    return plan


def deepest(values: Any) -> int:
    """Return how deep tables and lists are nested."""
    depth, level = 0, [values]
    while level := [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, dict | list)]:
        depth += 1
    return depth


def lines_of(text: str) -> dict[Place, int]:
    """Return the line of every table and key of a TOML file, by its place, such as ``("node", "a", "steps")``.

    Keys inside an inline table have the line of the key that holds the table.
    """
    part = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
    dotted = rf"{part}(?:\s*\.\s*{part})*"
    split = lambda key: tuple(p.strip("\"'") for p in re.findall(part, key))
    found: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(rf"\s*\[\s*({dotted})\s*\]", line):
            table = split(header[1])
            found.setdefault(table, number)
        elif key := re.match(rf"\s*({dotted})\s*=", line):
            found.setdefault((*table, *split(key[1])), number)
    return found


class _Reader:
    """The parts of a plan, and the errors that were found on the way."""

    def __init__(self, folder: pathlib.Path, lines: Mapping[Place, int]) -> None:
        self.folder, self.lines = folder, lines
        self.errors: list[str] = []

    def error(self, place: Place, message: str) -> None:
        """Add an error at the line of the place, or of the nearest table around it."""
        around = (place[:n] for n in range(len(place), 0, -1))
        line = next((self.lines[p] for p in around if p in self.lines), None)
        where = f"node {place[1]}: " if place[:1] == ("node",) and len(place) > 1 else ""
        message = message if message.startswith(where.rstrip(": ") or " ") else where + message
        self.errors.append(f"line {line}: {message}" if line else message)

    def unknown(self, place: Place, owner: str, values: Mapping[str, Any], known: list[str]) -> None:
        """Add an error for every field that is not known."""
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
                self.error((*place, name), f"{owner} has an unknown field {name!r}; {hint}")

    def make(self, kind: Any, place: Place, values: Mapping[str, Any], prefix: str = "") -> Any:
        """Return an object of a checked dataclass; None, after adding its errors, if the values are not such."""
        try:
            return TypeAdapter(kind).validate_python(dict(values))
        except ValidationError as error:
            seen = set()
            for one in error.errors():
                loc = tuple(str(part) for part in one["loc"] if not str(part).startswith(("constrained", "function")))
                fields = tuple(part for part in loc if not part.isdigit())
                if (fields, one["type"]) not in seen:
                    seen.add((fields, one["type"]))
                    self.error((*place, *fields), explained(one, prefix + ".".join(fields)))
        except InputError as error:
            self.error(place, str(error))
        return None

    def table(self, kind: Any, place: Place, owner: str, values: Any) -> Any:
        """Return a nested table as an object of the dataclass."""
        name = place[-1]
        if not isinstance(values, dict):
            self.error(place, f"{name} is {values!r}; it must be a table")
            return None
        before = len(self.errors)
        self.unknown(place, owner, values, [field.name for field in dataclasses.fields(kind)])
        return None if len(self.errors) > before else self.make(kind, place, values, f"{name}.")

    def plan(self, values: dict[str, Any], name: str) -> Plan | None:
        self.unknown((), "the plan", values, list(TOP))
        data = self.data(values.get("data", {}))
        tokens = self.tokens(data)
        tables = values.get("node", {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            self.error(("node",), "nodes are tables, [node.NAME]")
            return None
        if len(tables) > MOST_NODES:
            self.error(
                ("node",), f"the plan has {len(tables):,} nodes; at most {MOST_NODES} can be in one, make several plans"
            )
            return None
        nodes = [self.node(node, table, values.get("defaults", {}), tokens) for node, table in tables.items()]
        rest: dict[str, Any] = {key: values[key] for key in TOP[:5] if key in values}
        if (budget := values.get("budget")) is not None:
            table = {"flops": budget} if isinstance(budget, int | float) else budget
            rest["budget"] = self.table(Budget, ("budget",), "budget", table)
        if (rule := values.get("rule")) is not None:
            rest["rule"] = self.rule(rule)
        if self.errors:
            # what is wrong with the plan's own values is said too, with a node in the place of those that failed
            stand_in = FuseNode(name="?", sources=("?", "?"))
            self.make(Plan, (), {"name": name, "nodes": (stand_in,), **rest, "budget": None, "rule": None})
            return None
        plan = self.make(Plan, (), {"name": name, **rest, "nodes": tuple(nodes), "data": data})
        return None if self.errors else plan

    def data(self, values: Any) -> DataSettings:
        data = self.table(DataSettings, ("data",), "data", values) or DataSettings()
        from_here = lambda name: str((self.folder / name).resolve())
        for name in (*data.text, *filter(None, [data.tokenizer])):
            if not (self.folder / name).exists():
                self.error(("data", "text"), f"data: there is no file or folder {name}")
        text = tuple(map(from_here, data.text))
        return dataclasses.replace(data, text=text, tokenizer=data.tokenizer and from_here(data.tokenizer))

    def rule(self, values: Any) -> RuleSettings | None:
        rule = self.table(RuleSettings, ("rule",), "rule", values)
        if rule is None:
            return None
        if not (self.folder / rule.law).is_file():
            self.error(("rule", "law"), f"rule.law: there is no file {rule.law}; fit a law first, or leave rule out")
        return RuleSettings(str((self.folder / rule.law).resolve()))

    def tokens(self, data: DataSettings) -> dict[str, int]:
        """Return what the tokenizer says of a model: the rows of its embedding, and its special ids."""
        if data.tokenizer and pathlib.Path(data.tokenizer).exists():
            try:
                tokenizer = Tokenizer.load(data.tokenizer)
                special = tokenizer.special
                special.check_sentinels()
                ids = {"pad_token_id": special.pad, "eos_token_id": special.end, "decoder_start_token_id": special.pad}
                return {"vocab_size": tokenizer.vocab_size, **ids}
            except InputError as error:
                self.error(("data", "tokenizer"), str(error))
        return {"vocab_size": data.vocab + SENTINELS, "pad_token_id": PAD, "eos_token_id": EOS}

    def node(self, name: str, table: dict[str, Any], defaults: dict[str, Any], tokens: dict[str, int]) -> Node | None:
        place, owner, before = ("node", name), f"node {name}", len(self.errors)
        if not NAMES.fullmatch(name) or len(name) > LONGEST_NAME:
            self.error(
                place,
                f"node {name[:LONGEST_NAME]}: a name has letters, digits, '.', '-' and '_', at most {LONGEST_NAME} of them, "
                "for it is a folder's too",
            )
        values = dict(table)
        kind = values.pop("kind", "fuse" if "sources" in table else "grow" if "operator" in table else "train")
        if not isinstance(kind, str) or kind not in KINDS:
            self.error((*place, "kind"), f"{owner} is of kind {kind!r}; there are {', '.join(KINDS)}")
            return None
        if kind == "train":
            values = _over(defaults, values)
        cls = KINDS[kind]
        spelled = {"source_node": "from"}
        names = [field.name for field in dataclasses.fields(cls) if field.name != "name"]
        self.unknown(place, owner, values, [spelled.get(field, field) for field in names])
        if "from" in values:
            values["source_node"] = values.pop("from")
        if "model" in values:
            values["model"] = self.model(place, values["model"], tokens)
        for field in TABLES.keys() & values.keys():
            values[field] = self.table(TABLES[field], (*place, field), f"{owner}: {field}", values[field])
        if kind == "train" and "steps" not in values:
            self.error(place, f"{owner}: how many steps? give a number, a share of the budget, 'rest' or 'auto'")
        if kind == "grow" and "source_node" not in values:
            self.error(place, f"{owner}: from is missing; give the node whose network is grown")
        if len(self.errors) > before:
            # the other fields are checked all the same; a stand-in takes the place of what failed
            kept = {field: value for field, value in values.items() if field in names and value is not None}
            missing = {"steps": 1, "model": T5Config(), "source_node": ""} if kind == "train" else {"source_node": "?"}
            self.make(cls, place, {"name": name, **({} if kind == "fuse" else missing), **kept})
            return None
        return self.make(cls, place, {"name": name, **values})

    def model(self, place: Place, value: Any, tokens: dict[str, int]) -> T5Config | None:
        """Return a configuration from a name, or from a table of its fields, which may have a name too."""
        place = (*place, "model")
        fields: dict[str, Any] = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, dict):
            self.error(place, f"model is {value!r}; it must be a name or a table")
            return None
        before = len(self.errors)
        known = [field.name for field in dataclasses.fields(T5Config)]
        self.unknown(place, f"node {place[1]}: model", fields, [*known, "name"])
        if len(self.errors) > before:
            return None
        try:
            taken = tokens if "name" not in fields else {k: v for k, v in tokens.items() if k != "vocab_size"}
            config = (T5Config.named if "name" in fields else T5Config)(**{**taken, **fields})
            check_size(config)
        except InputError as error:
            self.error(place, str(error))
            return None
        if config.vocab_size < tokens["vocab_size"]:
            self.error(
                place,
                f"the model's vocab_size is {config.vocab_size}, but the tokenizer has {tokens['vocab_size']} pieces; take at "
                "least as many",
            )
        for name in ("pad_token_id", "eos_token_id"):
            if tokens[name] not in (config.ends if name == "eos_token_id" else (config.pad_token_id,)):
                self.error(
                    place,
                    f"the model's {name} is {getattr(config, name)}, but the tokenizer's {tokens[name]}; leave it out",
                )
        return config


def _over(defaults: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults with a node's own values laid over them; its tables are laid over theirs field by field."""
    values = dict(table)
    for field, value in defaults.items():
        if isinstance(value, dict) and isinstance(values.get(field), dict):
            values[field] = {**value, **values[field]}
        else:
            values.setdefault(field, value)
    if "from" in table and "model" not in table:
        values.pop("model", None)
        if "base_width" not in table:
            values.pop("base_width", None)
    return values
