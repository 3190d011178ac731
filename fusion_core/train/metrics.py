"""Metrics as JSON lines, one record a line."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.text.json_files import parse

Record = dict[str, Any]
NOT_OURS = "does not hold the records that the run has written (their sum is known); put the file back"


class Metrics:
    """The records of a run, in memory and in ``metrics.jsonl``; a last line cut off by an interruption is dropped.

    Raises:
      InputError: another line is damaged.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.records: list[Record] = []
        if path.exists():
            data = path.read_bytes()
            lines = data.split(b"\n")
            for number, line in enumerate(lines, start=1):
                try:
                    record = parse(line, finite=False) if line else {}
                except ValueError:
                    record = None
                if isinstance(record, dict) and (not line or type(record.get("step")) is int):
                    self.records += [record] if line else []
                elif number < len(lines):
                    raise InputError(
                        f"{path}, line {number} is no record: the file is damaged; remove the line, or the file with its "
                        "folder's checkpoints"
                    )
            if data != self._text().encode():
                atomic.write_text(path, self._text())  # the next record begins a line of its own

    def write(self, record: Record) -> None:
        """Append a record. Raise InputError if the run's folder was moved meanwhile."""
        atomic.check_held()
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def keep(self, wanted: Callable[[Record], bool]) -> None:
        """Drop all other records, such as those after the checkpoint that a run resumes from."""
        kept = [record for record in self.records if wanted(record)]
        self.records = kept
        if self.path.exists():
            atomic.write_text(self.path, self._text())

    def sum(self) -> str:
        """Return the sum of all records: 16 hexadecimal digits of the SHA-256 of the file."""
        return hashlib.sha256(self._text().encode()).hexdigest()[:16]

    def _text(self) -> str:
        return "".join(json.dumps(record) + "\n" for record in self.records)

    def of(self, **facts: Any) -> list[Record]:
        """Return the records whose fields equal ``facts``, in order."""
        return [r for r in self.records if all(r.get(key) == value for key, value in facts.items())]


class TensorBoard:
    """A writer of the same records as scalars for TensorBoard.

    Raises:
      InputError: tensorboardX is not installed.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError(
                "TensorBoard's files need tensorboardX, which is not installed: pip install 'deepfusion[tensorboard]', or "
                "do without: metrics.jsonl holds the same numbers"
            ) from None
        self._open, self._writers, self._folder = SummaryWriter, dict[str, Any](), folder

    def write(self, record: Record) -> None:
        """Write every number of the record but its step, under its node."""
        node = str(record.get("node", "run"))
        if node not in self._writers:
            # records of an earlier process beyond the checkpoint are purged from the first record's step on
            self._writers[node] = self._open(str(self._folder / node), purge_step=record["step"])
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writers[node].add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is still in a queue."""
        for writer in self._writers.values():
            writer.close()
