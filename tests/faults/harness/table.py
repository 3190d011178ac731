"""What was tried, in a file that is gone on from, and as the table of SECURITY.md."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from tests.faults.harness.kinds import KINDS
from tests.faults.harness.places import PLACES

ALL_KINDS = KINDS + PLACES
BEGIN, END = "<!-- faults: written by python -m tests.faults.harness --write SECURITY.md -->", "<!-- end of faults -->"


@dataclasses.dataclass
class Table:
    """All faults that were tried.

    Attributes:
      file: of them; if None, there is none.
      commit: of the code now.
      faults: key -> kind, command, what was lost, where it happened, seconds, commit.
    """

    file: pathlib.Path | None
    commit: str
    faults: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, file: pathlib.Path | None, root: pathlib.Path, others: Sequence[pathlib.Path] = ()) -> Table:
        """Return the table in a file, or an empty one, with the faults of other files in it."""
        describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=8", "--match="]
        commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
        faults: dict[str, dict[str, Any]] = {}
        for path in [*others, *([file] if file is not None and file.exists() else [])]:
            found = json.loads(path.read_text(encoding="utf-8"))
            faults |= {key: {"commit": found.get("commit", "")} | fault for key, fault in found["faults"].items()}
        return cls(file, commit, faults)

    def add(self, key: str, kind: str, command: str, lost: str, where: str, seconds: float) -> None:
        """Note a fault."""
        values = {"kind": kind, "command": command, "lost": lost, "where": where, "seconds": seconds}
        self.faults[key] = values | {"commit": self.commit}
        if self.file is not None:
            part = self.file.with_suffix(".part")
            part.write_text(json.dumps({"faults": self.faults}, indent=1) + "\n", encoding="utf-8")
            part.replace(self.file)

    def losses(self) -> list[str]:
        """Return the keys of the faults by which something was lost."""
        return [key for key, fault in self.faults.items() if fault["lost"]]

    def markdown(self) -> str:
        """Return the table: for each kind the commands, the faults tried, those that happened in time, and what was lost."""
        rows = collections.defaultdict(list)
        for fault in self.faults.values():
            rows[fault["kind"]].append(fault)
        lines = ["| fault | of | tried | happened in time | survived |", "|---|---|--:|--:|--:|"]
        for kind in ALL_KINDS:
            found = rows.get(kind.name, [])
            hit = sum(bool(fault["where"]) for fault in found)
            good = sum(not fault["lost"] for fault in found)
            counts = collections.Counter(fault["command"] for fault in found)
            of = ", ".join(f"{name} {count}" for name, count in counts.most_common())
            lines.append(f"| {kind.name} | {of or 'none yet'} | {len(found)} | {hit} | {good} |")
        lost = len(self.losses())
        commits = collections.Counter(fault["commit"] for fault in self.faults.values())
        at = ", ".join(f"{count} at commit {commit}" for commit, count in commits.items())
        lines += ["", f"{len(self.faults)} faults, {at}; {lost or 'none'} of them lost or spoilt anything."]
        return "\n".join(lines)

    def write(self, page: pathlib.Path) -> None:
        """Write the table between the two markers of a page."""
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{self.markdown()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
