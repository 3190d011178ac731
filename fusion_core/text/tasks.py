"""Tasks as text to text: the encoder's sources, the decoder's targets, the scores of answers.

GLUE's nine tasks have the words of T5's own preprocessing: ``mnli hypothesis: ... premise: ...`` → ``entailment``.
Source: the ``glue`` and ``stsb`` preprocessors and ``glue_utils`` of T5's code; Raffel et al. (2020), appendix D.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.scores import METRICS, NO_LABEL
from fusion_core.text.tables import read_rows

Kind = Literal["label", "number", "text"]
UNLABELLED = ("-1", "-1.0", "-", "hidden")  # for a label that is not given, or on which MNLI's annotators did not agree


@dataclasses.dataclass(frozen=True)
class Example:
    """One example of a task.

    Attributes:
      source: text for the encoder.
      target: text that the decoder should write.
      origin: "FILE, line N".
    """

    source: str
    target: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A text-to-text task.

    Attributes:
      name: first word of every source; may be empty.
      fields: (T5's name, columns that may hold it), in T5's order; a field with an empty name is its text alone.
      target: columns that may hold the target.
      kind: of the targets: one of ``labels``, a number from 0 to 5 (rounded to 0.2), or any text.
      labels: words of the classes, in the order of their numbers in GLUE's files.
      metrics: names in ``fusion_core.text.scores.METRICS``, the main one first.
      no_header: columns of a file without a first line of names (CoLA's); if empty, files must have one.
      blemished: whether rows are left out that GLUE's own files are known to have: of another number of columns, with an
        empty field, or without a label (-1, or MNLI's "-"); otherwise they are refused.
    """

    name: str
    fields: tuple[tuple[str, tuple[str, ...]], ...]
    target: tuple[str, ...] = ("label",)
    kind: Kind = "label"
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    no_header: tuple[str, ...] = ()
    blemished: bool = False

    def source(self, texts: Sequence[str]) -> str:
        """Return the text for the encoder: the task's name, and every field after its own name."""
        parts = [f"{name}: {text}" if name else text for (name, _), text in zip(self.fields, texts, strict=True)]
        return " ".join(([self.name] if self.name else []) + parts)

    def write(self, value: Any, origin: str) -> str:
        """Return the target's text for a value in a file.

        Raises:
          InputError: the value is no label or number of the task; the message begins with ``origin``.
        """
        if self.kind == "text":
            return str(value)
        if self.kind == "number":
            number = _number(value)
            if not 0 <= number <= 5:
                raise InputError(f"{origin}: the target is {value!r}; {self.name} has numbers from 0 to 5")
            # in float32, halves to even, as T5 does: numbers on a boundary depend on it
            return f"{np.round(np.float32(number) * np.float32(5)) / np.float32(5):.1f}"
        text = str(value).strip()
        if text in self.labels:
            return text
        if text.isdecimal() and int(text) < len(self.labels):
            return self.labels[int(text)]
        numbers = f"0 to {len(self.labels) - 1}"
        raise InputError(f"{origin}: the label is {value!r}; {self.name} has {', '.join(self.labels)} (or {numbers})")

    def read(self, text: str) -> int | float | str:
        """Return the class of an answer (``NO_LABEL`` if it is none), its number (−1 if it is none), or its text."""
        text = text.strip()
        if self.kind == "text":
            return text
        if self.kind == "number":
            number = _number(text)
            return number if math.isfinite(number) else -1.0
        return self.labels.index(text) if text in self.labels else NO_LABEL

    def scores(self, targets: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
        """Return every metric, from 0 to 1; one that is undefined is not a number."""
        expected, said = ([self.read(text) for text in texts] for texts in (targets, answers))
        return {name: METRICS[name](expected, said) for name in self.metrics}

    def examples(self, path: pathlib.Path) -> list[Example]:
        """Return the first part of ``examples_and_blemishes``."""
        return self.examples_and_blemishes(path)[0]

    def examples_and_blemishes(self, path: pathlib.Path) -> tuple[list[Example], list[str]]:
        """Read all examples of a TSV or JSONL file, and a sentence on every row that was left out (``blemished``).

        Raises:
          InputError: the file is missing, empty or damaged, a column is missing, no row is left, or a target is none of the
            task's; the message has file, line and remedy.
        """
        left_out: list[str] = []
        rows = read_rows(path, self.no_header, left_out if self.blemished else None)
        wanted = [columns for _, columns in self.fields] + [self.target]
        found = []
        for row in rows:
            texts: list[Any] = []
            try:
                texts = [row.value(columns) for columns in wanted]
                label = self.write(texts[-1], row.origin)
            except InputError as error:
                unlabelled = len(texts) == len(wanted) and str(texts[-1]).strip() in UNLABELLED
                if not self.blemished or not (unlabelled or any(map(row.lacks, wanted))):
                    raise
                left_out.append(str(error))
                continue
            found.append(Example(self.source([str(text) for text in texts[:-1]]), label, row.origin))
        if not found:
            raise InputError(f"{left_out[0]} (no row is left; a test file of GLUE has no labels)")
        return found, left_out


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def custom_task(input_column: str, target_column: str, prefix: str = "") -> Task:
    """Return a task of any text to any text, scored by the share of answers that equal their target.

    Args:
      input_column, target_column: columns of the TSV or JSONL file.
      prefix: words before every source ("translate English to German:").

    Raises:
      InputError: both columns are one.
    """
    if input_column == target_column:
        raise InputError(f"input and target are both the column {input_column!r}; give two")
    return Task(prefix.strip(), (("", (input_column,)),), (target_column,), kind="text")


def _glue(
    name: str, fields: str, labels: str, columns: Mapping[str, tuple[str, ...]] = MappingProxyType({}), **facts: Any
) -> tuple[str, Task]:
    """Return a task by its name; ``columns`` are other columns that may hold a field."""
    pairs = tuple((field, (field, *columns.get(field, ()))) for field in fields.split())
    return name, Task(name, pairs, labels=tuple(labels.split()), blemished=True, **facts)


# GLUE's own files have other columns than T5 for MRPC's sentences, and for MNLI's premise and hypothesis
_STRINGS = {"sentence1": ("#1 String",), "sentence2": ("#2 String",)}
_SENTENCES = {"hypothesis": ("sentence2",), "premise": ("sentence1",)}
_BOTH = ("f1", "accuracy")

TASKS = dict([
    _glue("cola", "sentence", "unacceptable acceptable", metrics=("matthews",),
          no_header=("source", "label", "star", "sentence")),
    _glue("sst2", "sentence", "negative positive"),
    _glue("mrpc", "sentence1 sentence2", "not_equivalent equivalent", _STRINGS, target=("Quality", "label"),
          metrics=_BOTH),
    _glue("stsb", "sentence1 sentence2", "", kind="number", target=("score", "label"), metrics=("pearson", "spearman")),
    _glue("qqp", "question1 question2", "not_duplicate duplicate", target=("is_duplicate", "label"), metrics=_BOTH),
    # matched and mismatched differ in the validation file alone
    _glue("mnli", "hypothesis premise", "entailment neutral contradiction", _SENTENCES, target=("gold_label", "label")),
    _glue("qnli", "question sentence", "entailment not_entailment"),
    _glue("rte", "sentence1 sentence2", "entailment not_entailment"),
    # the plain form in T5's code; T5's paper leaves WNLI out and trains on the Winograd schemas themselves
    _glue("wnli", "sentence1 sentence2", "not_entailment entailment"),
])  # fmt: skip


def named_task(name: str) -> Task:
    """Return one of GLUE's nine tasks. Raise InputError if there is none of this name."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; there are {', '.join(TASKS)}, and custom")
    return TASKS[name]
