"""What a target is, and the folder in which it reads its cases."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

from fusion_core.errors import InputError
from tests.fuzz import bases, mutations
from tests.fuzz.guard import SECONDS, emptied

Run = Callable[[bytes], None]


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser and how to make inputs for it.

    Attributes:
      name: of the target.
      run: reads one input.
      valid: valid inputs.
      mutate: changes one.
      allowed: documented errors.
      seconds: that a case may take.
      slow: whether it begins JAX or takes more than some milliseconds; such targets have few cases in the suite.
    """

    name: str
    run: Run
    valid: Callable[[], Sequence[bytes]]
    mutate: mutations.Mutation
    allowed: tuple[type[BaseException], ...]
    seconds: float
    slow: bool


TARGETS: dict[str, Target] = {}
_folder: list[pathlib.Path] = []


def target(
    name: str,
    valid: Callable[[], Sequence[bytes]],
    mutate: mutations.Mutation,
    *,
    allowed: tuple[type[BaseException], ...] = (InputError,),
    seconds: float = SECONDS,
    slow: bool = False,
) -> Callable[[Run], Run]:
    """Enter the decorated function into ``TARGETS``."""

    def entered(run: Run) -> Run:
        TARGETS[name] = Target(name, run, valid, mutate, allowed, seconds, slow)
        return run

    return entered


@contextlib.contextmanager
def cases_in(folder: pathlib.Path) -> Iterator[None]:
    """Let targets use a folder; it is emptied for every case. Caches and temporary files are inside it too."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder / "temporary")
    wanted = {"DEEPFUSION_CACHE": str(folder / "case" / "cache"), "COLUMNS": "100"}
    outer = {name: os.environ.get(name) for name in wanted}
    _folder.append(folder / "case")
    for place in (folder / "case", folder / "temporary"):
        place.mkdir(exist_ok=True)
    (folder / "outside.safetensors").write_bytes(b"nobody may read this")
    try:
        os.environ.update(wanted)
        yield
    finally:
        for name, value in outer.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        tempfile.tempdir = before
        _folder.pop()


def case() -> pathlib.Path:
    """Return the folder of the case, which is empty."""
    return emptied(_folder[-1])


def placed(name: str, data: bytes) -> pathlib.Path:
    """Write a file into the empty folder of the case."""
    path = case() / name
    path.write_bytes(data)
    return path


def folders(names: Sequence[str], files: Sequence[str]) -> list[bytes]:
    """Return the inputs that are the valid folders: a byte that says which file of which folder, and its content."""
    pairs = [(name, file) for name in names for file in files]
    return [bytes([i]) + bases.checkpoint(name)[file] for i, (name, file) in enumerate(pairs)]


def unpacked(data: bytes, names: Sequence[str], files: Sequence[str], folder: pathlib.Path) -> pathlib.Path:
    """Write the folder of an input of ``folders``."""
    which = data[0] % (len(names) * len(files)) if data else 0
    bases.written(folder, bases.checkpoint(names[which // len(files)]))
    (folder / files[which % len(files)]).write_bytes(data[1:])
    return folder
