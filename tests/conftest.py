"""For all tests."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Tokenized texts are kept in a folder of this session, and the user's cache is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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
