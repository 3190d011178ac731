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
# page -> what is there before its first block, where that is not on the page
THERE = {
    "checkpoints.md": """
import json, pathlib
import fusion_core as fc
from tests.strategies import decoders

for seed, name in enumerate(("base", "instruct", "small")):
    config = decoders.small("llama", num_hidden_layers=2)
    fc.save_pretrained(name, decoders.random_params(config, seed), config)
file = pathlib.Path("instruct/config.json")
others = {"pad_token_id": 0, "eos_token_id": 3, "max_position_embeddings": 4096}
file.write_text(json.dumps(json.loads(file.read_text()) | others))
""",
    "data.md": """
import pathlib
from fusion_core.text import train_tokenizer
from tests.strategies.texts import sentences

texts = sentences(seed=0, n=200)
for folder in ("corpus", "checkpoint"):
    pathlib.Path(folder).mkdir()
pathlib.Path("corpus/a.txt").write_text("\\n\\n\\n".join(texts))
train_tokenizer(texts, 300).save(pathlib.Path("checkpoint"))
""",
    "finetune.md": "",
    "fusion.md": """
from fusion_core.models.units import Layout, Space

vocab_size, d_kv = 100, 8
heads, stream = Space("heads", 4, "heads"), Space("stream", 32, "stream")
""",
    "growth_operators.md": "",
    "t5.md": "",
}

# blocks that take long: these commands run in tests/deepfusion/test_finetune.py, their words are parsed in test_blocks.py
ELSEWHERE = [("finetune.md", "sh")]


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


@pytest.mark.parametrize("place", [*PAGES, *THERE])
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
        exec(THERE.get(place, ""), session)
        for block in found:
            if (place, block.kind) in ELSEWHERE:
                continue
            printed = run(block, session, place)
            if block.printed or block.kind == "python":
                assert printed == block.printed, f"{place}, {block.heading}"
    finally:
        jax.config.update("jax_enable_x64", wide)


@pytest.mark.parametrize("package", pages.API)
def test_a_page_of_the_api_begins_with_its_public_names_and_has_each(package):
    begin, *sections = pages.api_page(package).split("\n## ")
    for name, thing in pages.public_names(package).items():
        assert f"](#{name})" in begin, name
        itself = f"{thing}.{thing.rsplit('.', 1)[1]}" if pages.is_module(thing, thing) else name
        assert pages.is_module(name, thing) or f"\n::: {itself}\n" in "\n".join(sections), name


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
    assert without == []
