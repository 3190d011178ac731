import jax
import pytest


@pytest.fixture
def x64():
    """float64 inside the test, and nowhere else."""
    with jax.enable_x64(True):
        yield
