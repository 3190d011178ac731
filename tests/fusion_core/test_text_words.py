"""Encoding word by word gives the library's ids; documentation read by several processes is that read by one."""

import ast
import inspect
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fusion_core as fc
from fusion_core.text import docstrings
from fusion_core.text.words import WordByWord
from tests.strategies.texts import tokenizer

quick = settings(max_examples=60, derandomize=True, deadline=None)
SPACES = [chr(i) for i in range(0x3001) if chr(i).isspace()] + ["\u200b", "\ufeff", "\u180e"]
PARTS = ["ba", "bo", "▁", "▁ba", "é", "\x00", "😀", "</s>", "<pad>", "<unk>", "<extra_id_0>", "<0x41>", *SPACES]


def library(texts):
    return [found.ids for found in tokenizer().backend.encode_batch_fast(texts)]


@quick
@example(SPACES)
@given(st.lists(st.sampled_from(PARTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=12))
def test_any_texts_have_the_ids_of_the_library(parts):
    texts = ["".join(parts), "", " ".join(parts), *(f"a{part}b" for part in parts)]
    words = WordByWord.of(tokenizer().backend)
    found = words.encode(texts)
    assert [ids.tolist() for ids in found] == library(texts)
    assert {ids.dtype for ids in found} == {np.dtype(np.int32)}


def test_a_word_is_encoded_once_however_often_it_comes():
    words, seen = WordByWord.of(tokenizer().backend), []
    backend = words.backend

    class Backend:
        def encode_batch_fast(self, texts, **options):
            seen.extend(texts)
            return backend.encode_batch_fast(texts, **options)

    object.__setattr__(words, "backend", Backend())
    words.encode(["ba bo ba", "ba  bo\nbe"])
    assert seen == ["ba", "bo", "be"]


def test_half_of_a_character_is_refused_as_before():
    with pytest.raises(fc.InputError, match=r"text 2, .*half of a character \(\\ud800, after 3 characters\)"):
        tokenizer().encode(["ba", "ba \ud800"])


@pytest.mark.parametrize("name", ["normalizer", "pre_tokenizer", "post_processor"])
def test_a_tokenizer_with_another_way_to_words_is_left_to_the_library(name):
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

    other = {
        "normalizer": normalizers.Lowercase(),
        "pre_tokenizer": pre_tokenizers.Whitespace(),
        "post_processor": processors.TemplateProcessing(single="$A </s> </s>", special_tokens=[("</s>", 1)]),
    }
    backend = Tokenizer.from_str(tokenizer().backend.to_str())
    assert WordByWord.of(backend) is not None
    setattr(backend, name, other[name])
    assert WordByWord.of(backend) is None


SOURCE = '''
"""Module."""
class A:
    """Class."""
    async def b(self):
        "In one line."
        if x:
            def c():
                """Within if."""
        else:
            def d(): "Within else."
        try:
            class E: """Within try."""
        except* OSError:
            def f(): """Within except."""
        finally:
            def g(): """Within finally."""
        match x:
            case 1:
                def h(): """Within match."""
        while x:
            def i(): """Within while."""
        else:
            with x:
                def j(): """Within with."""
        x = lambda: """no"""
        """no"""
'''


def walked(source):
    """Docstrings by the standard library's walk over all nodes."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    found = [(getattr(n, "lineno", 0), inspect.cleandoc(t)) for n in nodes if (t := ast.get_docstring(n, clean=False))]
    return "\n\n".join(text for _, text in sorted(found))


def test_docstrings_are_those_of_all_nodes():
    found = docstrings.docstrings(SOURCE)
    assert found == walked(SOURCE)
    assert "no" not in found.split()
    assert found.count("Within") == 8
    file = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text(encoding="utf-8")
    assert docstrings.docstrings(file) == walked(file) != ""
    assert docstrings.docstrings("def f(:") == ""


@pytest.mark.parametrize("program", [sys.executable, "/bin/false", "/no/such/program", ""])
def test_several_processes_read_what_one_reads_and_where_they_fail_one_does(tmp_path, monkeypatch, program):
    for i in range(7):
        (tmp_path / f"{i}.py").write_text(f'"""Module {i}, größer."""\n', encoding="utf-8")
    (tmp_path / "7.rst").write_bytes(b"\xff")
    paths = [tmp_path / f"{i}.py" for i in range(7)] + [tmp_path / "7.rst", tmp_path / "missing.py"]
    monkeypatch.setattr(docstrings, "SMALL", 0)
    monkeypatch.setattr(docstrings.sys, "executable", program)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    expected = [*(f"Module {i}, größer." for i in range(7)), None, None]
    assert docstrings.documentation_of(paths) == expected
