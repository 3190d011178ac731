"""Pages that are written from the records."""

import dataclasses
import pathlib
import re

import pytest

from fusion_core.errors import InputError
from paper_figures.cache import COMPUTED, committed_path
from paper_figures.experiments import page
from paper_figures.experiments.__main__ import main
from paper_figures.results import Results
from website import results

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    page._results.cache_clear()
    yield
    page._results.cache_clear()


def test_the_page_has_what_the_committed_records_say():
    text = (ROOT / "docs" / "growing.md").read_text(encoding="utf-8")
    assert page.renewed(text)[0] == text, "run: python -m paper_figures.experiments --write docs/growing.md"
    assert text.count("<!-- end -->") == len(page.BLOCK.findall(text)) >= 10


def test_the_readme_has_what_the_committed_numbers_say():
    text = results.README.read_text(encoding="utf-8")
    assert results.renewed(text) == text, "run: python -m website.results --write"
    assert re.findall(r"<!-- (\w+)", text) == ["predicted", "end", "short", "end"]


def test_a_number_of_the_readme_that_is_not_the_committed_one_is_found(monkeypatch, tmp_path):
    text = results.README.read_text(encoding="utf-8")
    assert results.renewed(text.replace("slope 1.98 ± 0.01", "slope 1.99 ± 0.01")) == text
    known = Results.load(committed_path("order_of_accuracy"))
    slopes = {name: values + 1 for name, values in known.arrays.items() if name.endswith("slopes")}
    dataclasses.replace(known, arrays=known.arrays | slopes).save(tmp_path / "order_of_accuracy.json")
    monkeypatch.setattr("paper_figures.cache.COMPUTED", tmp_path)
    assert results.predicted().count("\n") == 4
    assert "slope 2.98 ± 0.01" in results.predicted()


def test_every_figure_of_committed_numbers_is_in_the_table():
    rows = set(re.findall(r"`deepfusion figures (\w+)`", results.predicted()))
    assert {path.stem for path in COMPUTED.glob("*.json")} == rows


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
