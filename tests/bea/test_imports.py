"""Public names are imported when they are first used, so that formulas need no JAX, and names of methods no sympy."""

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

import bea
import bea.symbolic


@pytest.mark.parametrize(
    ("use", "slow"),
    [
        ("import bea, bea.symbolic", set()),
        ("from bea.symbolic.methods import METHODS", set()),
        ("import bea.symbolic; bea.symbolic.METHODS", set()),
        ("from bea.symbolic import *", {"sympy"}),
        ("import bea; bea.modified_loss", {"jax"}),
    ],
)
def test_nothing_slow_is_imported_before_it_is_used(use, slow):
    show = "import sys; print(*({'jax', 'sympy', 'diffrax', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{use}; {show}"], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == slow


@pytest.mark.parametrize("package", [bea, bea.symbolic])
def test_every_public_name_is_there_whatever_was_imported_before(package):
    """Importing a module puts its name on the package, where it must not hide a function."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    modules = {name for name in package.__all__ if isinstance(getattr(package, name), types.ModuleType)}
    assert modules == ({"pytrees", "symbolic", "trees", "words"} if package is bea else set())
    assert len(package.__all__) > 40
