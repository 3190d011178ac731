"""The README's Python blocks print what the README says they print."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n+prints\n+```\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_readme_is_short():
    assert TEXT.count("\n") <= 120


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 1
    assert TEXT.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_a_readme_example_prints_what_it_says(code, printed):
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == printed


@pytest.mark.parametrize("name", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_a_file_that_the_readme_names_exists(name):
    assert (ROOT / name).exists()
