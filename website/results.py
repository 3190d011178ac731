"""``python -m website.results --write``: the page of results and the README's tables, from the committed records alone."""

import argparse
import json
import pathlib
import re
import sys
from typing import Any

from fusion_core import atomic
from paper_figures.cache import committed_path
from paper_figures.experiments import page
from paper_figures.registry import FIGURES
from paper_figures.results import Results

ROOT = pathlib.Path(__file__).parent.parent
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
BLOCK = re.compile(r"<!-- (?:json (\w+)|predicted) -->\n.*?<!-- end -->", re.DOTALL)


def _toys(found: dict[str, Any]) -> str:
    """Return the tables of rules, of the head start that is kept, and of where flows fail."""
    from toy_models.when_to_grow import flow_failure, law_head_start, law_tables

    kept = [problem["kept"] for problems in found["problems"].values() for problem in problems]
    parts = [law_tables.markdown(result, kind, kind != "tuning") for kind, result in found["regret"].items()]
    return "\n\n".join(
        [*parts, law_head_start.markdown(kept + found["head_start"]), flow_failure.markdown(found["flows"])]
    )


def _pytorch(found: dict[str, Any]) -> str:
    from benchmarks import pytorch_growth

    return pytorch_growth.markdown(found)


# record of a benchmark -> its tables
TABLES = {"pytorch_growth": _pytorch, "growth_law_toys": _toys}


def predicted() -> str:
    """Return the table of what was predicted and what was measured, of all figures with committed numbers."""
    lines = ["| claim | predicted | measured | by |", "|---|---|---|---|"]
    for name, module in FIGURES.items():
        if not hasattr(module, "predicted") or not committed_path(name).exists():
            continue
        by = f"`deepfusion figures {name}`"
        for claim in module.predicted(Results.load(committed_path(name))):
            lines.append(f"| {' | '.join((*claim, by))} |")
            by = "the same"
    return "\n".join(lines)


def renewed(text: str) -> str:
    """Return a page with all blocks renewed."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return f"<!-- predicted -->\n{predicted()}\n<!-- end -->"
        found = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- json {name} -->\n{TABLES[name](found)}\n<!-- end -->"

    return BLOCK.sub(block, page.renewed(text)[0])


def main(arguments: list[str] | None = None) -> int:
    """Renew the pages; without ``--write`` print them."""
    parser = argparse.ArgumentParser(prog="python -m website.results", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results.md and README.md")
    chosen = parser.parse_args(arguments)
    for file in (PAGE, README):
        text = renewed(file.read_text(encoding="utf-8"))
        if chosen.write:
            atomic.write_text(file, text)
        else:
            print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
