"""The blocks of the site's pages do and print what the pages say, in one session a page."""

import contextlib
import functools
import io
import os
import pathlib
import shlex
import sys
import warnings

import jax
import pytest

from deepfusion import cli
from website import pages
from website.examples import Block, blocks, used

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = ("tutorials", "howto", "examples")
PAGES = [place for place in pages.example_pages() if place.startswith(FOLDERS)]


# public names without an example: both run experiments of minutes, `deepfusion figures growth_event`
WITHOUT = ["toy_models.growth_event.neutrality", "toy_models.growth_event.velocity_jumps"]


def command(line):
    """Run one ``deepfusion`` command of a page in this process."""
    words = shlex.split(line, comments=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert not left.value.code, line


def run(block: Block, session: dict, place: str) -> str:
    """Run one block, and return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        if block.kind == "toml":
            pathlib.Path(block.file).write_text(block.code, encoding="utf-8")
        elif block.kind == "python":
            exec(compile(block.code, f"docs/{place}", "exec"), session)
        else:
            for line in filter(None, block.code.replace("\\\n", " ").splitlines()):
                command(line)
    return out.getvalue()


@pytest.mark.parametrize("place", PAGES)
def test_a_page_does_what_it_says(place, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "COLUMNS", "100")
    if "transformers" in (text := (ROOT / "docs" / place).read_text(encoding="utf-8")):
        torch = pytest.importorskip("torch", reason="the page trains in PyTorch")
        pytest.importorskip("transformers", reason="the page's checkpoints are written by transformers")
        request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(1)
    found = blocks(text)
    assert found, f"{place} has no block that runs"
    session, wide = {"__name__": "page"}, jax.config.read("jax_enable_x64")
    try:
        for block in found:
            printed = run(block, session, place)
            if block.printed or block.kind == "python":
                assert printed == block.printed, f"{place}, {block.heading}"
    finally:
        jax.config.update("jax_enable_x64", wide)


def test_every_public_name_has_an_example_that_runs():
    shown = set()
    for place in PAGES:
        found = [block for block in blocks(pages.example_pages()[place]) if block.kind == "python"]
        shown |= used("\n".join(block.code for block in found))
    without = [
        name
        for package in pages.API
        for name, thing in pages.public_names(package).items()
        if not any(name == one or one.startswith(f"{name}.") for one in shown) and thing not in shown
    ]
    assert without == WITHOUT
