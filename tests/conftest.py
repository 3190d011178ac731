"""For all tests."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Compiled programs stay in memory as long as JAX remembers them, gigabytes by the end of a run."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """float64 inside the test, and nowhere else."""
    with jax.enable_x64(True):
        yield
