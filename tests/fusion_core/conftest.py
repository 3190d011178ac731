"""For the tests against the reference implementation."""

import pytest


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
