"""Every block of code of the documentation runs in a test; of commands of hours or of several machines the words are parsed."""

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import pathlib
import re
import shlex
import sys
import tomllib
import warnings

import pytest
import typer

from deepfusion import cli
from fusion_core.runs.plan_file import read_plan
from tests.site.test_pages import ELSEWHERE, FOLDERS, PAGES, THERE
from website.examples import blocks

ROOT = pathlib.Path(__file__).parents[2]
FILES = ["README.md", "CONTRIBUTING.md", *(f.relative_to(ROOT).as_posix() for f in sorted(ROOT.glob("docs/**/*.md")))]
# page -> the test that runs its blocks
RUN = {f"docs/{place}": "tests/site/test_pages.py" for place in (*PAGES, *THERE)} | {
    "README.md": "tests/test_readme.py",
    "docs/fuse_checkpoints.md": "tests/deepfusion/test_fuse_example.py",
    "docs/pytorch.md": "tests/deepfusion/test_fuse_example.py",
    "docs/testing.md": "tests/fusion_core/test_testing.py",
}
# blocks of these pages that no test of them runs
PARSED = [("README.md", "sh"), *ELSEWHERE]
START = re.compile(r"(?:\$ |machine \d: |srun |\.venv/bin/|gcloud .*\")*(?=deepfusion [a-z-]|python -m |make [a-z])")
FENCE = re.compile(r"^```(\w*).*?\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
# a word of prose between the names of commands or for what is left out, such as `deepfusion a | b`
NOT_WORDS = re.compile(r"[|→…]|\.\.\.")
EXTERNAL = ("pytest", "mkdocs", "pip", "venv", "build")


class Parsed(Exception):
    """The words were accepted."""


def text_of(file):
    return (ROOT / file).read_text(encoding="utf-8")


def commands(file):
    """The lines of a page's blocks, fenced or indented, that begin a command of ours."""
    text = text_of(file)
    parts = [code for kind, code in FENCE.findall(text) if kind != "python"]
    parts += re.findall(r"(?:^    .*\n)+", FENCE.sub("", text), flags=re.MULTILINE)
    lines = [line.strip() for part in parts for line in part.replace("\\\n", " ").splitlines()]
    return [line[m.end() :].rstrip('"' if m[0].endswith('"') else "") for line in lines if (m := START.match(line))]


def mentioned(file):
    """The commands in the running text of a page."""
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", FENCE.sub("", text_of(file)))
    spans = [re.sub(r"\s+", " ", span) for span in spans]
    return [span[m.end() :] for span in spans if (m := START.match(span)) and not NOT_WORDS.search(span)]


@functools.cache
def problem(line, whole=True):
    """What is wrong with a command, without running it; ``whole`` if its required arguments must be there."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        return "" if re.search(rf"^{words[1]}:", text_of("Makefile"), flags=re.MULTILINE) else "no such target"
    if words[0] == "python":
        return "" if words[2] in EXTERNAL else of_module(words[2], words[3:], whole)
    if "--help" in words:
        return "" if words[1] in (*cli.COMMANDS, "--help") else "no such command"
    group = typer.main.get_command(cli.app)
    if (found := group.get_command(None, words[1])) is None:
        return "no such command"
    try:
        found.make_context(words[1], cli.repeat_option(words[2:], "--text"))
    except cli.USAGE_ERROR as error:
        said = error.format_message()
        return "" if not whole and re.search("^Missing|requires an argument", said) else said
    return ""


def of_module(name, words, whole):
    """What is wrong with the words of ``python -m name``: they are given to its own parser, and nothing else runs."""
    if (spec := importlib.util.find_spec(name)) is None:
        return "no such module"
    module = importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)
    parse, said = argparse.ArgumentParser.parse_args, io.StringIO()

    def only_parsed(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parsed)
        patch.setattr(sys, "argv", [name, *words])
        assert "parse_args" in inspect.getsource(module), f"{name} parses nothing: it would run"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module.main()
            except Parsed:
                return ""
            except SystemExit as left:
                said.write(f"exit {left.code}")
    words = said.getvalue()
    if words.endswith("exit 0") or (not whole and "are required" in words):
        return ""
    return words


@pytest.mark.parametrize("file", FILES)
def test_every_command_that_a_page_shows_is_one_that_is_accepted(file):
    found = {line: problem(line) for line in commands(file)} | {line: problem(line, False) for line in mentioned(file)}
    assert {line: what for line, what in found.items() if what} == {}


def test_commands_are_found_and_mistakes_in_them_are_noticed():
    assert len(commands("docs/commands.md")) == 15
    assert "deepfusion train plan.toml --out /shared/run --resume --distributed" in commands("docs/distributed.md")
    everywhere = "deepfusion train plan.toml --out /mnt/shared/run --resume --distributed"
    assert everywhere in commands("docs/distributed.md")
    assert sum(len(commands(file)) + len(mentioned(file)) for file in FILES) > 150
    for line, what in {
        "deepfusion train plan.toml --ot run": "No such option: --ot",
        "deepfusion fuze a b": "no such command",
        "deepfusion train plan.toml --out run --processes two": "valid integer",
        "deepfusion diff a": "Missing argument",
        "python -m benchmarks.growing_pauze": "no such module",
        "python -m benchmarks.growing_pause --nope": "unrecognized arguments: --nope",
        "make coffee": "no such target",
    }.items():
        assert what in problem(line), line
    assert problem("deepfusion diff", False) == ""


def test_no_block_of_python_or_of_a_shell_is_left_out():
    left = []
    for file in FILES:
        found = [block for block in blocks(text_of(file)) if block.kind != "toml"]
        assert len(found) == len(re.findall(r"^```(?:python|sh)\b", text_of(file), flags=re.MULTILINE)), file
        if file in RUN:
            assert pathlib.Path(file).name in text_of(RUN[file]) or file.removeprefix("docs/").startswith(FOLDERS), file
            found = [block for block in found if (file.removeprefix("docs/"), block.kind) in PARSED]
        shown = commands(file)
        for block in found:
            lines = [line for line in block.code.replace("\\\n", " ").splitlines() if line.strip()]
            if block.kind == "python" or not all(line.strip() in shown for line in lines):
                left.append(f"{file}: {block.code[:60]}")
    assert left == []


def test_python_that_is_shown_as_text_compiles_and_what_it_imports_is_there():
    found = [
        (file, code)
        for file in FILES
        for kind, code in FENCE.findall(text_of(file))
        if kind in ("", "text") and re.match(r"(import|from) \w", code)
    ]
    assert [file for file, _ in found] == ["docs/pytorch.md"]
    for file, code in found:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                pytest.importorskip(node.module.split(".")[-1] if node.module == "torch" else "torch")
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), file


def test_the_plan_of_the_page_is_one_that_can_be_read(tmp_path):
    whole, *fragments = [code for kind, code in FENCE.findall(text_of("docs/train.md")) if kind == "toml"]
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("a book", encoding="utf-8")
    (tmp_path / "plan.toml").write_text(whole, encoding="utf-8")
    assert [node.name for node in read_plan(tmp_path / "plan.toml").nodes][-1] == "m"
    assert len(fragments) == 2
    (tmp_path / "plan.toml").write_text(whole + fragments[0].replace('"small"', '"s1"'), encoding="utf-8")
    assert [node.name for node in read_plan(tmp_path / "plan.toml").nodes][-1] == "wide"
    assert tomllib.loads(fragments[1]) == {"rule": {"law": "law.json"}}
