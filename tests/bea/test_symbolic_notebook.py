"""The notebook runs from nothing, and what it shows in the repository is what it prints."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "notebooks" / "modified_equations.ipynb"


def shown(notebook):
    """What each code cell prints or displays, without counters and addresses."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join("".join(out.get("text") or out["data"]["text/plain"]) for out in cell["outputs"]) for cell in cells]


def test_the_notebook_prints_the_modified_loss_across_a_growth_event_as_committed(tmp_path):
    pytest.importorskip("nbconvert", reason="nbconvert is not installed: pip install 'deepfusion[docs]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'deepfusion[docs]'")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable,
        "-m",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        "--output-dir",
        str(tmp_path),
        str(NOTEBOOK),
    ]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = json.loads((tmp_path / NOTEBOOK.name).read_text(encoding="utf-8"))
    committed = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert shown(executed) == shown(committed)
    assert "before the event: " in "".join(shown(executed))
