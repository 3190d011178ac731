import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# MkDocs, in a process in which our packages' requirements cannot be imported: what the site says is read, not run
BUILD = "import sys; sys.modules |= dict.fromkeys(('jax', 'torch', 'sympy')); from mkdocs.__main__ import cli; cli()"


@pytest.fixture(scope="package")
def site(tmp_path_factory):
    """The site, built with warnings as errors, without JAX."""
    pytest.importorskip("mkdocs", reason="the site is built by MkDocs: pip install 'deepfusion[docs]'")
    folder = tmp_path_factory.mktemp("site") / "site"
    result = subprocess.run(
        [sys.executable, "-c", BUILD, "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return folder
