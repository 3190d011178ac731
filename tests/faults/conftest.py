"""The command line, as ``tests/deepfusion`` calls it, and the smallest plan."""

import shutil
import signal

import pytest

from tests.deepfusion.conftest import refused, run  # noqa: F401
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents

PLAN = f"""
name = "small"{HEAD}
[node.a]
model = {MODEL}
steps = 20
"""


@pytest.fixture(autouse=True)
def own_signals():
    """The command line sets a handler of SIGTERM; it is taken back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")
    return tmp_path / "plan.toml"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(plan file, folder) of a finished run; to be copied before it is damaged."""
    from fusion_core.runs import read_plan, run_plan

    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
    run_plan(read_plan(folder / "plan.toml"), folder / "run")
    return folder / "plan.toml", folder / "run"


@pytest.fixture
def copy(finished, tmp_path):
    """(plan file, a copy of the finished run)."""
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"
