"""Fixtures of the tests against the reference implementation, and of those of plans."""

import shutil

import pytest

from tests.strategies.plans import HEAD
from tests.strategies.texts import documents


@pytest.fixture(scope="module")
def few_torch_threads():
    """The sizes are tiny: more threads only wait for each other."""
    torch = pytest.importorskip(
        "torch", reason="the reference implementation is an extra: pip install 'deepfusion[parity]'"
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    return file


@pytest.fixture
def plan_of(text, tmp_path):
    """``plan_of(text of nodes)`` -> a file; ``head`` is what comes before them."""

    def write(nodes, head=HEAD):
        shutil.copy(text, tmp_path / "text.txt")
        file = tmp_path / "plan.toml"
        file.write_text(head + nodes, encoding="utf-8")
        return file

    return write
