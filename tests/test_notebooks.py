"""The notebooks run from nothing and show what the repository says they show, up to the rounding of another machine."""

import re
import sys

import pytest

from tests.strategies import notebooks

# name -> largest relative difference of a number that it prints
TOLERANCES = {
    "modified_loss": 0.06,
    "conflict_term": 0.06,
    "fuse_mlps": 0.06,
    "plan_a_growth": 0.2,
    "fuse_huggingface": 0.2,
    "test_your_rule": 0.06,
    "modified_equations": 1e-9,
    "when_to_grow": 0.12,
}
LOOSE = {"plan_a_growth": ("- ",)}  # the report of a run of toys
NEEDS = {"fuse_huggingface": ("torch", "transformers"), "modified_equations": ("IPython",)}
ALL = {path.stem for path in (notebooks.ROOT / "notebooks").glob("*.ipynb")}


def test_every_notebook_is_tested():
    assert set(TOLERANCES) == ALL


@pytest.mark.filterwarnings("ignore")  # other packages', while they are imported
@pytest.mark.parametrize("name", TOLERANCES)
def test_a_notebook_shows_what_it_says(name):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason="it is an extra: pip install 'deepfusion[docs,parity]'")
    notebook = notebooks.read(name)
    shown = notebooks.run(notebook)
    notebooks.assert_as_committed(notebook, shown, TOLERANCES[name], LOOSE.get(name, ()))
    printed = "".join(cell.printed for cell in shown)
    if name == "when_to_grow":
        end, best = re.search(r"it ends at (\S+); the best of the grid is (\S+)", printed).groups()
        assert float(end) < 1.15 * float(best)
    if name == "modified_equations":
        assert "before the event: " in printed


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_notebook_says_what_one_will_know_has_a_picture_and_installs_in_colab_alone(name, monkeypatch):
    notebook = notebooks.read(name)
    first, code = "".join(notebook["cells"][0]["source"]), notebooks.code_of(notebook)
    assert first.startswith("# ")
    assert "**At the end you will know**" in first
    assert sum(pictures for _, pictures in notebooks.committed(notebook)) >= 1
    installs = [cell for cell in code if "google.colab" in cell]
    assert installs == [code[0]]
    calls = []
    monkeypatch.setattr("subprocess.run", lambda command, check: calls.append(command))
    exec(code[0], {})
    assert calls == []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    exec(code[0], {})
    assert calls[0][:4] == [sys.executable, "-m", "pip", "install"]
    assert not any(out["output_type"] == "error" for cell in notebook["cells"] for out in cell.get("outputs", []))


def test_a_notebook_that_shows_something_else_is_found():
    notebook = notebooks.read("modified_loss")
    shown = [notebooks.Shown(text, None, [None] * pictures) for text, pictures in notebooks.committed(notebook)]
    notebooks.assert_as_committed(notebook, shown, 0.01)
    (i,) = [i for i, cell in enumerate(shown) if "slopes" in cell.printed]
    for wrong in (shown[i].printed.replace("2.0", "1.0"), shown[i].printed.replace("without", "with")):
        changed = [*shown[:i], notebooks.Shown(wrong, None, shown[i].figures), *shown[i + 1 :]]
        with pytest.raises(AssertionError):
            notebooks.assert_as_committed(notebook, changed, 0.01)
