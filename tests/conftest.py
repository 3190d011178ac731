"""For all tests: how XLA compiles them, and caches of their own.

Most of the suite's time is compiling, of networks so small that the compiled code hardly runs. XLA therefore optimizes
nothing here, which halves the time, and each test process keeps what it has compiled for its later files and for the
processes that they start, in a folder that goes away with it.
"""

import atexit
import os
import shutil
import tempfile

# before JAX is imported
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
_compiled = tempfile.mkdtemp(prefix="deepfusion-compiled-")
atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": _compiled,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

import jax  # noqa: E402
import pytest  # noqa: E402

# files that take longest, begun first so that no worker is left with one of them at the end
LONG = ("test_runs_killed", "test_growth_operators", "test_demo", "test_runs", "test_rates", "test_symbolic_equation")


def pytest_collection_modifyitems(items):
    """Move the files that take longest to the front."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


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
