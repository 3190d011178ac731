"""docs/theory.md and the code point at each other: formula to function and test, docstring to formula."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
TAG = re.compile(r"\\tag\{([\d.]+)\}")
LINK = re.compile(r"\[`[^`]+`\]\(\.\./([\w/]+\.py)#([\w.]+)\)")


def formulas():
    """Return number -> (the functions, the tests), each as (file, dotted name), of every numbered formula."""
    found = {}
    for match in TAG.finditer(TEXT):
        line = TEXT[match.end() :].split("$$\n", 1)[1].split("\n", 1)[0]
        code, _, test = line.partition(" Test: ")
        assert line.startswith("Code: "), f"after formula ({match[1]}): {line}"
        assert test, f"formula ({match[1]}) names no test"
        found[match[1]] = (LINK.findall(code), LINK.findall(test))
    return found


@functools.cache
def tree_of(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def definition(file, name):
    node = tree_of(file)
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == part), None)
        assert node is not None, f"{file} has no {name}"
    return node


def sources():
    """Return formula number -> the (file, dotted name) of all docstrings whose Source names it."""
    found = {}
    for package in ("bea", "fusion_core", "toy_models"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for name, node in definitions(tree_of(file)):
                _, source, rest = (ast.get_docstring(node) or "").partition("Source: theory.md, ")
                numbers = re.match(r"(?:\([\d.]+\)(?:,\s+| and )?)*", rest)[0] if source else ""
                for number in re.findall(r"\(([\d.]+)\)", numbers):
                    found.setdefault(number, set()).add((file, name))
    return found


def definitions(node, prefix=""):
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from definitions(child, f"{prefix}{child.name}.")


def test_every_displayed_formula_has_a_number_of_its_own_in_order():
    numbers = TAG.findall(TEXT)
    assert len(numbers) == TEXT.count("\n$$\n") / 2 >= 25
    assert numbers == sorted(set(numbers), key=lambda number: [int(part) for part in number.split(".")])
    for number in numbers:
        section = re.findall(r"^## (\d)", TEXT[: TEXT.index(f"\\tag{{{number}}}")], flags=re.MULTILINE)[-1]
        assert number.startswith(f"{section}.")


def test_every_formula_names_functions_and_tests_that_exist():
    for number, (code, tests) in formulas().items():
        assert code, number
        assert tests, number
        for file, name in code:
            definition(file, name)
        for file, name in tests:
            assert name.startswith("test_"), name
            definition(file, name)


def test_functions_and_formulas_name_each_other():
    named = {number: set(code) for number, (code, _) in formulas().items()}
    assert sources() == named
