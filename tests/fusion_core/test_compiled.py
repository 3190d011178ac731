"""Compiled programs kept between processes: taken again, bounded, whole, and the user's alone."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from fusion_core.text.cache import VARIABLE
from fusion_core.train import compiled
from fusion_core.train.compiled import FOLDER, bound, machine

ROOT = pathlib.Path(__file__).parent.parent.parent
PROGRAM = """
import os, signal, sys
import jax
from fusion_core.train.compiled import keep_compiled
notes, hits = [], []
jax.monitoring.register_event_listener(lambda event, **facts: hits.append(event) if event.endswith("cache_hits") else None)
kept = keep_compiled(notes.append)
print(kept, float(jax.jit(lambda x: x * 3)(2.0)), float(jax.jit(lambda x: x + 1)(2.0)), len(hits), *notes, flush=True)
if sys.argv[1:]:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run(cache, *arguments, **variables):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    environment = kept | {VARIABLE: str(cache), "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.split(maxsplit=4) or done.stderr


def test_a_second_process_compiles_nothing_and_a_killed_one_leaves_nothing_half_written(tmp_path):
    assert run(tmp_path) == ["True", "6.0", "3.0", "0"]
    folder = tmp_path / FOLDER / machine()
    entries = sorted(folder.iterdir())
    assert len(entries) >= 2
    assert all(path.is_file() for path in entries)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run(tmp_path, "kill")[3] == str(len(entries))
    assert len(list(folder.iterdir())) == len(entries) + 1  # the folder of the killed process
    assert run(tmp_path)[3] == str(len(entries))
    assert sorted(folder.iterdir()) == entries


@pytest.fixture
def without_a_cache(monkeypatch, tmp_path):
    """JAX as in a process where nobody has given it a cache."""
    config = types.SimpleNamespace(jax_compilation_cache_dir=None, jax_enable_compilation_cache=True)
    monkeypatch.setattr(compiled, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return config


@pytest.mark.parametrize(("name", "value"), [("cache_dir", "own"), ("enable", False), ("users", "")])
def test_it_can_be_turned_off(without_a_cache, monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(VARIABLE, "" if name == "users" else str(tmp_path))
    without_a_cache.jax_compilation_cache_dir = value if name == "cache_dir" else None
    without_a_cache.jax_enable_compilation_cache = value if name == "enable" else True
    assert not compiled.keep_compiled()
    assert not (tmp_path / FOLDER).exists()


def test_a_folder_in_which_others_may_write_is_not_used(without_a_cache, tmp_path):
    folder, notes = tmp_path / FOLDER / machine(), []
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert not compiled.keep_compiled(notes.append)
    assert [note.partition(",")[0] for note in notes] == [f"others may write in {folder}"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("bytes_", "entries", "left"), [(25, 99, ["c", "d"]), (99, 3, ["b", "c", "d"]), (99, 99, "abcd")]
)
def test_what_was_used_longest_ago_goes_first(tmp_path, bytes_, entries, left):
    for i, name in enumerate("abcd"):
        (tmp_path / f"{name}-cache").write_bytes(b"0123456789")
        os.utime(tmp_path / f"{name}-cache", (1000 + i, 500))
    (tmp_path / "other").write_bytes(b"0" * 100)
    kept = bound(tmp_path, bytes_, entries)
    assert sorted(path.name[0] for path in kept) == list(left)
    assert sorted(path.name[0] for path in tmp_path.glob("*-cache")) == list(left)
    assert (tmp_path / "other").exists()
