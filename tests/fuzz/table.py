"""The table of cases in SECURITY.md: ``python -m tests.fuzz.table SECURITY.md a.json b.json``; files of ``--json``.

A later result of a target takes the place of an earlier one of the same seed; those of different seeds are added up.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

BEGIN, END = "<!-- cases: written by python -m tests.fuzz.table -->", "<!-- end of cases -->"
SECONDS, MEMORY = 0.5, 50  # of a processor, and MiB: targets whose cases all take less stand together


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the lines of the table; targets whose cases took the most of a processor or of memory stand alone."""
    quick = [name for name, facts in results.items() if facts["slowest"] < SECONDS and facts["memory_mib"] < MEMORY]
    fewest = min((results[name]["cases"] for name in quick), default=0)
    rows = [
        (
            ", ".join(sorted(quick)),
            f"{fewest:,}",
            f"below {SECONDS}",
            f"below {MEMORY}",
            sum(_bad(results[n]) for n in quick),
        )
    ]
    for name in sorted(results.keys() - set(quick)):
        facts = results[name]
        rows.append((name, f"{facts['cases']:,}", f"{facts['slowest']:.1f}", f"{facts['memory_mib']:,}", _bad(facts)))
    cases = sum(facts["cases"] for facts in results.values())
    head = (
        "| targets | cases of each, at least | slowest case, s of a processor | largest memory, MiB | promises broken |"
    )
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|---|--:|--:|--:|--:|", *lines, "", f"{cases:,} cases of {len(results)} targets."])


def _bad(facts: Mapping[str, Any]) -> int:
    return sum(number for kind, number in facts["kinds"].items() if kind not in ("read", "refused"))


def write(path: pathlib.Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the table between its marks in a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Write the table of the results that the arguments name."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for file in sys.argv[2:]:
        read = json.loads(pathlib.Path(file).read_text(encoding="utf-8"))
        for name, facts in read["targets"].items():
            found.setdefault(name, {})[read["seed"]] = facts
    write(pathlib.Path(sys.argv[1]), {name: added(list(seeds.values())) for name, seeds in found.items()})


def added(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the results of a target together."""
    return {
        "cases": sum(facts["cases"] for facts in results),
        "kinds": sum((Counter(facts["kinds"]) for facts in results), Counter()),
        "slowest": max(facts["slowest"] for facts in results),
        "memory_mib": max(facts["memory_mib"] for facts in results),
    }


if __name__ == "__main__":
    main()
