"""The gallery of the site has every figure, its picture, and the words that its numbers give now."""

import inspect
import pathlib
import re

import pytest
from PIL import Image

from paper_figures import FIGURES
from paper_figures.builder import left_out
from paper_figures.cache import committed_path, results_of
from paper_figures.gallery import headline
from website import gallery

TEXT = gallery.PAGE.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## [^\n]* \{#(\w+)\}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE))
# those whose numbers are read, not computed; growth_law fits anew
READ = [n for n in FIGURES if committed_path(n).exists() or (hasattr(FIGURES[n], "RECORDS") and n != "growth_law")]


def test_the_page_has_exactly_the_figures_in_their_order():
    assert list(SECTIONS) == list(FIGURES)
    assert re.findall(r"^\| \[.*\]\(#(\w+)\) \| ", TEXT, flags=re.MULTILINE) == list(FIGURES)
    for name, module in FIGURES.items():
        assert f"## {headline(module).removesuffix('.')} {{#{name}}}\n" in TEXT
        assert gallery.words(module) in SECTIONS[name]


def test_every_figure_that_can_be_drawn_has_a_picture_and_no_other_is_there():
    drawn = [name for name in FIGURES if not left_out(name)]
    assert sorted(file.name for file in gallery.PICTURES.iterdir()) == sorted(f"{name}.png" for name in drawn)
    assert sum(file.stat().st_size for file in gallery.PICTURES.iterdir()) < 1.5e6
    for name in drawn:
        assert f"](images/gallery/{name}.png)" in SECTIONS[name]
        assert f"`deepfusion figures {name}" in SECTIONS[name]
        with Image.open(gallery.PICTURES / f"{name}.png") as picture:
            assert min(picture.size) > 200
    for name in set(FIGURES) - set(drawn):
        assert f"**Not drawn here:** {left_out(name)}.\n" in SECTIONS[name]


def test_every_picture_is_of_what_is_committed_now():
    assert gallery.stale() == [], "run: python -m website.gallery --write"


@pytest.mark.parametrize("what", ["numbers", "record", "code", "style"])
def test_a_picture_of_other_numbers_or_other_code_is_stale(what, monkeypatch, tmp_path):
    name = "growth_saves" if what == "record" else "order_of_accuracy"
    if what == "numbers":
        (tmp_path / f"{name}.json").write_bytes(committed_path(name).read_bytes() + b"\n")
        monkeypatch.setattr(gallery, "committed_path", lambda name: tmp_path / f"{name}.json")
    elif what == "record":
        monkeypatch.setattr(FIGURES[name], "RECORDS", FIGURES[name].RECORDS[1:])
    elif what == "code":
        source = inspect.getsource(FIGURES[name])
        monkeypatch.setattr(inspect, "getsource", lambda module: source.replace("networks", "nets", 1))
    else:
        monkeypatch.setattr(gallery, "STYLE_SHEET", pathlib.Path(__file__))
    assert name in gallery.stale()


def test_a_caption_is_not_drawn(monkeypatch):
    module = FIGURES["order_of_accuracy"]
    before, source = gallery.drawn_from("order_of_accuracy", module), inspect.getsource(module)
    monkeypatch.setattr(
        inspect, "getsource", lambda module: f'"""Another."""\n# and a comment\n{source.split(chr(34) * 3, 2)[2]}'
    )
    assert gallery.drawn_from("order_of_accuracy", module) == before


def test_a_picture_says_what_it_was_drawn_from(tmp_path):
    module = FIGURES["order_of_accuracy"]
    png = gallery.picture(module, results_of(tmp_path, "order_of_accuracy", module, "full"), "these numbers")
    (tmp_path / "a.png").write_bytes(png)
    assert gallery.said_of(tmp_path / "a.png") == "these numbers"
    assert gallery.said_of(tmp_path / "b.png") == ""
    assert len(png) < 150_000


@pytest.mark.parametrize("name", READ)
def test_the_page_says_what_the_committed_numbers_say_now(name, tmp_path):
    results = results_of(tmp_path, name, FIGURES[name], "full")
    assert gallery.section(name, FIGURES[name], results).split("\n", 1)[1].strip() == SECTIONS[name].strip()


def test_a_figure_without_numbers_says_why():
    text = gallery.section("order_of_accuracy", FIGURES["order_of_accuracy"], None, "its numbers take an hour")
    assert "**Not drawn here:** its numbers take an hour." in text
    assert "![" not in text
