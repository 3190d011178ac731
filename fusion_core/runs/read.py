"""A plan from its TOML file; every unknown field and every wrong value is found, not only the first."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
import tomllib
from collections.abc import Iterable
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.t5 import Compute, T5Config
from fusion_core.runs.schema import (
    DataSettings,
    FuseNode,
    Node,
    OptimizerSettings,
    Plan,
    ScheduleSettings,
    TrainNode,
)
from fusion_core.text.tokenizer import SENTINELS, Tokenizer
from fusion_core.train.run import Cadence

# words of the file -> fields of the dataclass, where they differ
SPELLED = {"from": "source_node"}
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def read_plan(path: pathlib.Path) -> Plan:
    """Reads a plan file.

    Raises:
      InputError: the file is missing, no TOML, or says something that a plan cannot; the message lists all errors.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no plan {path}; examples are in examples/plans") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read as TOML: {error}") from None
    return plan_from(values, path)


def plan_from(values: dict[str, Any], path: pathlib.Path) -> Plan:
    """A plan from the file's values; paths in it are relative to the file. Raises InputError with all errors."""
    reader = _Reader(path.parent)
    unknown = reader.unknown("the plan", values, ("name", "seed", "steps_per_dispatch", "data", "defaults", "node"))
    data = reader.data(values.get("data", {}))
    vocabulary = reader.vocabulary(data)
    nodes = []
    tables = values.get("node", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise InputError(f"{path}: nodes are tables, [node.NAME]")
    for name, table in tables.items():
        if (node := reader.node(name, table, values.get("defaults", {}), vocabulary)) is not None:
            nodes.append(node)
    if len(nodes) == len(tables) and not unknown:
        rest: dict[str, Any] = {k: values[k] for k in ("seed", "steps_per_dispatch") if k in values}
        plan = reader.make(
            Plan, "", {"name": values.get("name", path.stem), "nodes": tuple(nodes), "data": data, **rest}
        )
    if reader.errors:
        raise InputError(f"{path} is no plan that can be run:\n  " + "\n  ".join(reader.errors))
    return plan


def _wanted(kind: str, value: Any) -> str | None:
    """What a field of this type must be, where the value is not such; None: it is, or the class itself looks at it."""
    if kind.startswith("tuple[str"):
        return None if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) else "a list of names"
    if kind.startswith("tuple[float"):
        return None if isinstance(value, list) and all(type(v) in (int, float) for v in value) else "a list of numbers"
    if kind == "bool":
        return None if isinstance(value, bool) else "true or false"
    if kind == "str" or kind.endswith("| str"):
        return None if isinstance(value, str) else "a word in quotes"
    if "int" in kind:
        return None if value is None or isinstance(value, int) else "a whole number"
    if "float" in kind:
        return None if value is None or type(value) in (int, float) else "a number"
    return None


def _converted(kind: str, value: Any) -> Any:
    """Lists as tuples, whole numbers as floats where the field is one."""
    if isinstance(value, list):
        return tuple(float(v) if kind.startswith("tuple[float") else v for v in value)
    return float(value) if type(value) is int and kind.startswith("float") else value


class _Reader:
    """Makes the parts and remembers what was wrong."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.errors: list[str] = []

    def unknown(self, owner: str, values: dict[str, Any], known: Iterable[str]) -> bool:
        known = list(known)
        odd = [name for name in values if name not in known]
        for name in odd:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            self.errors.append(f"{owner} has an unknown field {name!r}; {hint}")
        return bool(odd)

    def make(self, kind: type, owner: str, values: dict[str, Any]) -> Any:
        """An object of the dataclass, or its defaults where that fails."""
        types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
        for name, value in values.items():
            if (wanted := _wanted(types[name], value)) is not None:
                self.errors.append(f"{owner}{name} is {value!r}; it must be {wanted}")
                return None
        try:
            return kind(**{name: _converted(types[name], value) for name, value in values.items()})
        except InputError as error:
            message = str(error)
        self.errors.append(message if message.startswith(owner) else f"{owner}{message}")
        return None

    def table(self, kind: type, owner: str, values: Any) -> Any:
        """A nested table as an object of the dataclass."""
        if not isinstance(values, dict):
            self.errors.append(f"{owner} is {values!r}; it must be a table")
            return kind()
        if self.unknown(owner, values, [f.name for f in dataclasses.fields(kind)]):
            return kind()
        made = self.make(kind, f"{owner.rpartition(' ')[0]} ".lstrip(), values)
        return kind() if made is None else made

    def data(self, values: Any) -> DataSettings:
        data = self.table(DataSettings, "data", values)
        from_here = lambda name: str((self.folder / name).resolve())
        missing = [name for name in (*data.text, *filter(None, [data.tokenizer])) if not (self.folder / name).exists()]
        self.errors += [f"data: there is no file or folder {name}" for name in missing]
        text = tuple(map(from_here, data.text))
        return dataclasses.replace(data, text=text, tokenizer=data.tokenizer and from_here(data.tokenizer))

    def vocabulary(self, data: DataSettings) -> int:
        """Rows of the embedding that the tokenizer needs."""
        if data.tokenizer and pathlib.Path(data.tokenizer).exists():
            try:
                return Tokenizer.load(data.tokenizer).vocab_size
            except InputError as error:
                self.errors.append(str(error))
        return data.vocab + SENTINELS

    def node(self, name: str, table: dict[str, Any], defaults: dict[str, Any], vocabulary: int) -> Node | None:
        owner, before = f"node {name}", len(self.errors)
        if not NAMES.fullmatch(name):
            self.errors.append(f"{owner}: a name has letters, digits, '.', '-' and '_', for it is a folder's too")
        values = dict(table)
        kind = values.pop("kind", "fuse" if "sources" in table else "train")
        if kind == "fuse":
            self.unknown(owner, values, [f.name for f in dataclasses.fields(FuseNode) if f.name != "name"])
            return self.make(FuseNode, owner + ": ", {"name": name, **values}) if len(self.errors) == before else None
        if kind != "train":
            self.errors.append(f"{owner} is of kind {kind!r}; there are train and fuse")
            return None
        # a node's own tables are laid over the defaults', field by field
        for field, value in defaults.items():
            if isinstance(value, dict) and isinstance(values.get(field), dict):
                values[field] = {**value, **values[field]}
            else:
                values.setdefault(field, value)
        if "from" in table:
            values.pop("model", None) if "model" not in table else None
        fields = [f.name for f in dataclasses.fields(TrainNode) if f.name not in ("name", "source_node")]
        if self.unknown(owner, values, [*fields, "from"]):
            return None
        values = {SPELLED.get(field, field): value for field, value in values.items()}
        if "model" in values:
            values["model"] = self.model(owner, values["model"], vocabulary)
        for field, dataclass in (
            ("optimizer", OptimizerSettings),
            ("schedule", ScheduleSettings),
            ("compute", Compute),
            ("cadence", Cadence),
        ):
            if field in values:
                values[field] = self.table(dataclass, f"{owner}: {field}", values[field])
        if "steps" not in values:
            self.errors.append(f"{owner}: how many steps? give a number, or 'auto'")
        elif values["steps"] == "auto":
            values["steps"] = None
        return self.make(TrainNode, owner + ": ", {"name": name, **values}) if len(self.errors) == before else None

    def model(self, owner: str, value: Any, vocabulary: int) -> T5Config | None:
        """A configuration from a name, or a table of its fields, which may have a name too."""
        fields: dict[str, Any] = {"name": value} if isinstance(value, str) else value
        if not isinstance(fields, dict):
            self.errors.append(f"{owner}: model is {value!r}; it must be a name or a table")
            return None
        known = [f.name for f in dataclasses.fields(T5Config)]
        if self.unknown(f"{owner}: model", fields, [*known, "name"]):
            return None
        try:
            own = {"vocab_size": vocabulary, **fields}
            config = T5Config.named(**fields) if "name" in fields else T5Config(**own)
        except InputError as error:
            self.errors.append(f"{owner}: {error}")
            return None
        if config.vocab_size < vocabulary:
            self.errors.append(
                f"{owner}: the model's vocab_size is {config.vocab_size}, but the tokenizer has {vocabulary} pieces; take "
                "at least as many"
            )
        return config
