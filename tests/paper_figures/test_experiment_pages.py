"""Pages that are written from the records."""

import pathlib
import re

import pytest

from fusion_core.errors import InputError
from paper_figures.experiments import page
from paper_figures.experiments.__main__ import main
from website import results

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    page._results.cache_clear()
    yield
    page._results.cache_clear()


@pytest.mark.parametrize(("name", "blocks"), [("docs/growing.md", 10), ("README.md", 1)])
def test_the_page_has_what_the_committed_records_say(name, blocks):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert page.renewed(text)[0] == text, f"run: python -m paper_figures.experiments --write {name}"
    assert text.count("<!-- end -->") == len(page.BLOCK.findall(text)) >= blocks


def test_the_page_of_results_has_what_every_committed_record_says():
    text = results.PAGE.read_text(encoding="utf-8")
    assert results.renewed(text) == text, "run: python -m website.results --write"
    shown = set(re.findall(r"<!-- (?:table|json) (\w+) -->", text))
    folders = (ROOT / "paper_figures" / "experiments", ROOT / "benchmarks")
    assert {file.stem for folder in folders for file in folder.glob("*.json")} <= shown


def test_blocks_are_renewed_and_nothing_else(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(page, "table_of", lambda name: f"| {name} |")
    monkeypatch.setattr(page, "finding_of", lambda name: f"{name} saves.")
    file = tmp_path / "page.md"
    text = "a\n<!-- table x -->\nold\n<!-- end -->\nb\n<!-- finding y -->\n<!-- end -->\n"
    file.write_text(text)
    assert main(["--write", str(file)]) == 0
    renewed = "a\n<!-- table x -->\n| x |\n<!-- end -->\nb\n<!-- finding y -->\ny saves.\n<!-- end -->\n"
    assert file.read_text() == renewed
    assert main(["--write", str(file)]) == 0
    assert file.read_text() == renewed
    assert capsys.readouterr().out.split() == [str(file)] * 2


def test_what_has_no_record_names_its_command_and_other_errors_are_not_hidden(monkeypatch):
    def missing(name):
        raise InputError(
            f"there is no record of {name} (/a b/{name}.json); make it with: python -m x {name} --out runs"
        )

    monkeypatch.setattr(page, "table_of", missing)
    text, names = page.renewed("<!-- table t -->\n<!-- end -->")
    assert text == "<!-- table t -->\nNot measured yet: `python -m x t --out runs` makes the record of t.\n<!-- end -->"
    assert names == ["t"]

    def wrong(name):
        raise InputError("two texts")

    monkeypatch.setattr(page, "table_of", wrong)
    with pytest.raises(InputError, match="two texts"):
        page.renewed("<!-- table t -->\n<!-- end -->")
