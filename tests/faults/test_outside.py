"""What is outside of a command: disks, rights, pipes and terminals."""

import errno
import io
import os
import subprocess
import sys

import pytest

from deepfusion import cli, plain
from fusion_core.checkpoints import fuse as fusing
from tests.strategies.checkpoints import saved_t5


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


@pytest.mark.parametrize("where", ["fusion_core.text.prepared.write_tokens", "fusion_core.atomic.write_text"])
def test_a_disk_that_fills_anywhere_in_a_run_is_one_line(refused, plan, monkeypatch, where):
    monkeypatch.setenv("DEEPFUSION_CACHE", "")
    monkeypatch.setattr(where, full)
    err = refused("somewhere: No space left on device; make room", "train", plan, "--out", plan.parent / "run")
    assert len([line for line in err.splitlines() if "space" in line]) == 1


def test_a_folder_that_cannot_be_written_is_one_line(refused, plan):
    (plan.parent / "file").touch()
    refused(f"{plan.parent}/file", "train", plan, "--out", plan.parent / "file" / "run")


@pytest.mark.parametrize("number", range(6))
def test_a_disk_that_fills_at_any_write_of_a_fusion_leaves_nothing(refused, monkeypatch, tmp_path, number):
    saved_t5(tmp_path / "a")
    names = ("write_shards", "copy_tokenizer", "growth_record", "write_growth", "model_card", "open_checkpoint")
    monkeypatch.setattr(fusing, names[number], full)
    refused("space", "fuse", tmp_path / "a", tmp_path / "a", "--noise", 0.1, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def of_process(stdout, *arguments, **surroundings):
    """Exit code and stderr of the command line as a process."""
    code = "import sys; sys.argv[0] = 'deepfusion'; from deepfusion.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | surroundings,
        timeout=120,
    )
    return done.returncode, done.stderr.decode("ascii")


def test_a_closed_pipe_ends_a_command_quietly_as_the_shells_tools():
    read, write = os.pipe()
    os.close(read)
    assert of_process(write, "derive", "--method", "rk4") == (cli.PIPE, "")
    os.close(write)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_under_standard_output_is_one_line():
    with open("/dev/full", "w") as device:
        code, err = of_process(device, "derive", "--method", "rk4")
    assert (code, err.splitlines()) == (2, ["Error: No space left on device; make room, or choose another place"])


@pytest.mark.parametrize("arguments", [("plan", "--help"), ("grow", "--list"), ("derive", "--method", "wrong ∇")])
def test_a_terminal_without_utf8_gets_plain_characters(arguments):
    read, write = os.pipe()
    code, err = of_process(write, *arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    os.close(write)
    with open(read, encoding="ascii") as pipe:
        out = pipe.read()
    assert code == (2 if "wrong ∇" in arguments else 0), err
    assert ("grad" if code else "10" if "plan" in arguments else "keeps") in out + err


def test_symbols_have_stand_ins_and_names_of_files_keep_their_bytes():
    plain.prepare_streams()
    assert plain.plain("∇E → 3·10¹² ≤ λ, Äpfel ▁█ 漢") == "gradE -> 3*1012 <= lambda, Apfel _@ ?"
    for encoding, shown in (("ascii", b"-> \xff"), ("utf-8", "→ ".encode() + b"\xff"), ("latin-1", b"-> \xff")):
        stream = io.TextIOWrapper(buffer := io.BytesIO(), encoding, errors=plain.ERRORS)
        stream.write("→ \udcff")
        stream.flush()
        assert buffer.getvalue() == shown
