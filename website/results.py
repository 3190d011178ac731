"""``python -m website.results --write``: the page of results, from the committed records alone."""

import argparse
import json
import pathlib
import re
import sys
from typing import Any

from fusion_core import atomic
from paper_figures.experiments import page

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
BLOCK = re.compile(r"<!-- json (\w+) -->\n.*?<!-- end -->", re.DOTALL)


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


def renewed(text: str) -> str:
    """Return the page with all blocks renewed."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        found = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- json {name} -->\n{TABLES[name](found)}\n<!-- end -->"

    return BLOCK.sub(block, page.renewed(text)[0])


def main(arguments: list[str] | None = None) -> int:
    """Renew the page; without ``--write`` print it."""
    parser = argparse.ArgumentParser(prog="python -m website.results", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results.md")
    chosen = parser.parse_args(arguments)
    text = renewed(PAGE.read_text(encoding="utf-8"))
    if chosen.write:
        atomic.write_text(PAGE, text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
