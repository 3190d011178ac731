"""What must be imported before our packages, so that their branches are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

PACKAGES = ["bea", "deepfusion", "fusion_core", "paper_figures"]


@contextlib.contextmanager
def instrumented() -> Iterator[None]:
    """Count the branches of our packages' modules that are imported inside."""
    import atheris

    with atheris.instrument_imports(include=PACKAGES, enable_loader_override=False):
        yield
