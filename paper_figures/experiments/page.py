"""Pages whose tables and sentences are written from the records.

A page has blocks that begin with a line ``<!-- table NAME -->``, ``<!-- short NAME -->`` or ``<!-- finding NAME -->``
and end with ``<!-- end -->``; what is between them is renewed. A short table has what the README shows of a figure's own.
"""

from __future__ import annotations

import functools
import pathlib
import re
import textwrap

from fusion_core import atomic
from fusion_core.errors import InputError
from paper_figures.experiments import event_terms
from paper_figures.experiments.tables import markdown
from paper_figures.results import Results

BLOCK = re.compile(r"<!-- (table|short|finding) (\w+) -->\n.*?<!-- end -->", re.DOTALL)
MISSING = re.compile(r"there is no (?:record|plan) of (\w+) .*; make it with: (.+)")
COLUMNS = 124


@functools.cache
def _results(name: str) -> Results:
    from paper_figures.registry import FIGURES  # the figures import this package

    return FIGURES[name].compute("full")


def table_of(name: str) -> str:
    """Return the Markdown tables of a figure that has some of its own, or of an experiment's record.

    Raises:
      InputError: there is no record.
    """
    from paper_figures.registry import FIGURES

    if name == event_terms.NAME:
        return event_terms.table()
    module = FIGURES.get(name)
    if module is not None and hasattr(module, "table"):
        return module.table(_results(name))
    return markdown(name, getattr(module, "LABELS", None))


def short_of(name: str) -> str:
    """Return the short Markdown table of a figure that has one."""
    from paper_figures.registry import FIGURES

    return FIGURES[name].short_table(_results(name))


def finding_of(name: str) -> str:
    """Return what a figure's numbers say, in lines."""
    from paper_figures.registry import FIGURES

    return textwrap.fill(FIGURES[name].finding(_results(name)), COLUMNS, break_long_words=False, break_on_hyphens=False)


def renewed(text: str) -> tuple[str, list[str]]:
    """Return a page's text with its blocks renewed, and the names of the experiments that have no record yet."""
    missing: list[str] = []

    def block(match: re.Match[str]) -> str:
        kind, name = match.groups()
        try:
            content = {"table": table_of, "short": short_of, "finding": finding_of}[kind](name)
        except InputError as error:
            found = MISSING.match(str(error))
            if found is None:
                raise
            content = f"Not measured yet: `{found[2]}` makes the record of {found[1]}."
            missing.append(name)
        return f"<!-- {kind} {name} -->\n{content}\n<!-- end -->"

    return BLOCK.sub(block, text), list(dict.fromkeys(missing))


def write(file: pathlib.Path) -> list[str]:
    """Renew a page; return lines that say what was done and what is missing."""
    text, missing = renewed(file.read_text(encoding="utf-8"))
    atomic.write_text(file, text)
    return [str(file), *(f"no record for {name}" for name in missing)]
