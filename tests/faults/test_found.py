"""The smallest case of each kind of fault that the harness has found something by."""

import errno
import io
import json
import os
import shutil
import types

import numpy as np
import pytest
import safetensors.numpy

from deepfusion import options, plain
from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.lock import locked
from fusion_core.sealed import read_sealed, write_sealed
from fusion_core.tensor_file import write_tensors
from fusion_core.train import Metrics
from fusion_core.train.state_files import _read, save_state
from tests.strategies.checkpoints import saved_t5
from tests.strategies.texts import tokenizer


def test_any_error_of_the_disk_under_weights_is_the_systems_own_and_leaves_nothing(monkeypatch, tmp_path):
    """safetensors' own writer had temporaries of names of its own, and errors that are no OSErrors."""

    def write(path, tensors, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("fusion_core.train.state_files.write_tensors", write)
    with pytest.raises(OSError, match="Input/output"):
        save_state(tmp_path / "s", {"a": np.zeros(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "int64", "float16", "bfloat16", "float32", "float64"])
def test_tensors_are_read_by_the_library_as_they_were_written_and_the_same_give_the_same_file(tmp_path, dtype):
    import ml_dtypes  # noqa: F401 (knows bfloat16)

    arrays = {"b": np.arange(6).reshape(2, 3).astype(dtype), "a": np.ones((), dtype), "c": np.zeros((0, 2), np.float64)}
    for name in ("1", "2"):
        write_tensors(tmp_path / name, arrays, {"x": "1", "y": "2"})
    found = safetensors.numpy.load_file(tmp_path / "1")
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def one_bit(file, word):
    """Flip a bit in a file, in the value that follows the word."""
    data = bytearray(file.read_bytes())
    place = data.index(word.encode()) + len(word)
    place += next(i for i, byte in enumerate(data[place:]) if chr(byte) in "12345678")
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nodes/a/done.json", '"flops":'),
        ("nodes/a/metrics.jsonl", '"loss":'),
        ("data/files.json", "text.txt"),
        ("plan.json", '"vocab":'),
        ("nodes/a/model/config.json", '"d_ff":'),
    ],
)
def test_a_bit_that_flips_in_a_finished_run_is_noticed_and_its_file_named(refused, copy, name, word):
    one_bit(copy[1] / name, word)
    said = str(copy[1]) if name == "plan.json" else str(copy[1] / name)
    refused(said, "train", copy[0], "--out", copy[1], "--resume")


def test_a_checkpoint_of_a_finished_run_that_was_damaged_or_is_of_another_seed_is_noticed(refused, copy):
    file = copy[1] / "nodes" / "a" / "checkpoints" / "step-20.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(f"the checkpoint {file} cannot be read", "train", copy[0], "--out", copy[1], "--resume")
    file.write_bytes(whole)
    tensors, facts = _read(file)
    save_state(file, tensors, **facts | {"run": facts["run"] | {"seed": 7}})
    refused(f"the checkpoint {file} is of another run: its seed", "train", copy[0], "--out", copy[1], "--resume")


def test_a_bit_that_flips_in_the_metrics_of_a_stopped_run_is_noticed(refused, copy):
    node = copy[1] / "nodes" / "a"
    (node / "done.json").unlink()
    (node / "checkpoints" / "step-20.safetensors").unlink()
    one_bit(node / "metrics.jsonl", '"loss":')
    refused(f"{node / 'metrics.jsonl'} does not hold the records", "train", copy[0], "--out", copy[1], "--resume")


def test_facts_of_another_node_or_seed_are_refused(refused, copy):
    file = copy[1] / "nodes" / "a" / "done.json"
    for name, value in (("node", "b"), ("run_seed", 7)):
        facts = read_sealed(file, "")
        write_sealed(file, facts | {name: value})
        refused(f"{file} is of another node", "train", copy[0], "--out", copy[1], "--resume")
        write_sealed(file, facts)


def test_a_sealed_file_is_read_as_written_by_hand_too_and_no_bit_of_it_flips_unnoticed(tmp_path):
    write_sealed(tmp_path / "f", {"a": [1.5, None], "b": {"c": "ä"}})
    assert read_sealed(tmp_path / "f", "") == {"a": [1.5, None], "b": {"c": "ä"}}
    data = (tmp_path / "f").read_bytes()
    changed = 0
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "f").write_bytes(flipped)
        try:
            found = read_sealed(tmp_path / "f", "")
        except InputError:
            changed += 1
        else:  # in a space, or in the name of the sum
            assert {name: value for name, value in found.items() if name in "ab"} == {"a": [1.5, None], "b": {"c": "ä"}}
    assert changed > 6 * len(data)
    (tmp_path / "f").write_text('{"a": 1}')
    assert read_sealed(tmp_path / "f", "") == {"a": 1}


@pytest.mark.parametrize("streamed", [False, True])
def test_text_that_was_replaced_is_refused_by_its_name(run, refused, plan, streamed):
    text = plan.parent / "text.txt"
    plan.write_text(plan.read_text().replace("[data]", f"[data]\nstream = {str(streamed).lower()}"))
    out = plan.parent / "run"
    code, _, err = run("train", plan, "--out", out)
    assert code == 0, err
    text.write_text(text.read_text().replace(".", ";"))
    refused(
        f"{text} has another content than the text that the run was begun with", "train", plan, "--out", out, "--resume"
    )


def test_a_fine_tuning_that_is_killed_before_its_first_step_is_resumed_by_its_settings_alone(monkeypatch, tmp_path):
    from fusion_core.runs.finetune import FILES, SETTINGS, FinetuneSettings, Finetuning

    order = []

    class Stopped(Exception):
        pass

    def write(path, values):
        order.append(path.name)
        if len(order) == 2:
            raise Stopped

    run = Finetuning.__new__(Finetuning)
    run.folder, run.files = tmp_path, {}
    run.settings = FinetuneSettings("c", "t", "v", "cola")
    monkeypatch.setattr("fusion_core.runs.finetune.write_sealed", write)
    with pytest.raises(Stopped):
        run.run()
    assert order == [SETTINGS, FILES]


def test_a_network_of_a_fine_tuning_that_was_damaged_is_noticed_when_it_would_be_written_again(tmp_path):
    from fusion_core.checkpoints.pretrained import load_pretrained
    from fusion_core.runs.finetune import CHECKPOINT, FinetuneSettings, Finetuning

    params, config = load_pretrained(saved_t5(tmp_path / "a"))
    run = Finetuning.__new__(Finetuning)
    run.folder, run.network = tmp_path / "run", types.SimpleNamespace(config=config)
    run.settings = FinetuneSettings(str(tmp_path / "a"), "t", "v", "cola")
    for _ in range(2):
        run._write_checkpoint(params)
    for file in (run.folder / CHECKPOINT).iterdir():
        whole = file.read_bytes()
        for damaged in (whole[:-1], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{file} is not what the run has written; remove {file.parent}"):
                run._write_checkpoint(params)
        file.write_bytes(whole)
    run._write_checkpoint(params)
    assert [path.name for path in run.folder.iterdir()] == [CHECKPOINT]


def test_a_folder_that_is_moved_while_it_is_used_is_not_begun_anew(tmp_path):
    with locked(tmp_path / "run"):
        atomic.check_held()
        (tmp_path / "run").rename(tmp_path / "moved")
        for write in (
            lambda: save_state(tmp_path / "run" / "nodes" / "s", {"a": np.zeros(2)}),
            lambda: atomic.write_text(tmp_path / "run" / "done.json", "{}"),
            lambda: atomic.new_folder(tmp_path / "run" / "model").__enter__(),
            lambda: Metrics(tmp_path / "run" / "metrics.jsonl").write({"step": 1}),
        ):
            with pytest.raises(InputError, match="was moved or removed"):
                write()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    atomic.check_held()


def test_what_a_killed_process_has_left_of_a_file_is_swept_by_the_next_that_writes_it_and_a_living_ones_is_not(
    tmp_path,
):
    dead, other = tmp_path / ".f.json.0123456789ab", tmp_path / ".g.json.0123456789ab"
    dead.touch()
    other.touch()
    with atomic.new_file(tmp_path / "f.json") as living:
        atomic.write_text(tmp_path / "f.json", "{}")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([living.name, other.name, "f.json"])


def test_an_output_inside_of_an_input_is_refused(refused, plan, tmp_path):
    folder = saved_t5(tmp_path / "a")
    refused(f"is in {folder}, which is read", "fuse", folder, folder, "--noise", 0.1, "--out", folder / "out")
    plan.write_text(plan.read_text().replace('"text.txt"', '"texts"'))
    (tmp_path / "texts").mkdir()
    shutil.copy(tmp_path / "text.txt", tmp_path / "texts")
    refused("which is read", "train", plan, "--out", tmp_path / "texts" / "run")
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["text.txt"]
    assert not (folder / "out").exists()


def test_an_output_that_is_a_link_to_an_empty_folder_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    with atomic.new_folder(tmp_path / "link") as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]
    assert (tmp_path / "there" / "a").exists()


def test_a_name_with_a_newline_or_an_escape_is_one_line_and_drives_no_terminal(refused, tmp_path):
    err = refused(r"a\n\x1b[2Jb", "info", tmp_path / "a\n\x1b[2Jb")
    assert "\x1b" not in err
    assert plain.visible("wrong:\n  one\n  two") == "wrong:\n  one\n  two"
    assert json.loads(f'"{plain.visible(chr(9))}"') == "\t"


@pytest.fixture
def piped(monkeypatch):
    """Gives standard input these bytes."""

    def give(data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


def test_a_dash_reads_a_pipe_within_the_bound_of_other_text(refused, run, piped, monkeypatch, plan, tmp_path):
    folder = saved_t5(tmp_path / "a")
    tokenizer(300).save(folder)
    piped(b"")
    refused("--text - has given nothing", "demo", "--text", "-", "--preset", "smoke", "--out", tmp_path / "demo")
    monkeypatch.setattr("fusion_core.text.corpus.MOST_TEXT", 1000)
    piped(b"a b " * 300)
    refused("--text - gives more than 1,000 bytes", "diff", folder, folder, "--text", "-")
    assert not (tmp_path / "demo").exists()


def test_a_pipe_is_kept_for_the_run_that_reads_it(piped, monkeypatch, tmp_path):
    from deepfusion.commands import demo

    piped(b"the text")
    seen = []
    monkeypatch.setattr(demo, "_run", lambda settings, *_, piped, **__: seen.append((settings.text, piped)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo.demo(None, text=[demo.STDIN], preset="smoke", out=tmp_path / "run", seed=0)
    assert seen == [((str(tmp_path / "run" / demo.PIPED),), True)]
    options.read_piped(tmp_path / "run" / demo.PIPED, "--text")
    assert (tmp_path / "run" / demo.PIPED).read_bytes() == b"the text"
    piped(b"the text")
    assert options.documents_of([demo.STDIN], "--text") == ["the text"]
    assert options.documents_of(None, "--text") is None
