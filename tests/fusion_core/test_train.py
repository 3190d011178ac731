import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.models.t5 import Compute, init
from fusion_core.train import (
    Interrupted,
    Metrics,
    Trainer,
    TrainingDiverged,
    init_state,
    load_state,
    save_state,
    t5_loss,
)
from fusion_core.train.ahead import Ahead
from fusion_core.train.loop import graceful_interrupt
from fusion_core.train.writer import Writer
from tests.strategies import training
from tests.strategies.networks import mean_loss, tiny

ROOT = pathlib.Path(__file__).parent.parent.parent


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# One device and four


@pytest.fixture(scope="module")
def trainer():
    return training.trainer()


@pytest.fixture(scope="module")
def whole(trainer):
    """The run of all steps at once: (state, what was measured)."""
    return training.advance(trainer, training.fresh(), training.batch, training.STEPS)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
    """The same run by a process with four virtual devices, and what it says of its all-reduces."""
    file = tmp_path_factory.mktemp("devices") / "four.npz"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.strategies.training", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays, np.load(file.with_suffix(".added.npz")) as sums:
        return dict(arrays), dict(sums)


def test_four_devices_train_as_one_does(trainer, whole, on_four):
    """Equal global batches, means over tokens: 20 steps of rounding apart."""
    four = on_four[0]
    assert four.pop("devices") == 4
    one = training.outcome(trainer, *whole)
    assert set(one) == set(four)
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_devices_add_all_of_a_dtype_as_one_array(on_four):
    """Each array in an all-reduce of its own took two processes eight times as long."""
    sums, size = on_four[1], sum(leaf.size for leaf in jax.tree.leaves(init(training.CONFIG, 0)))
    assert sums["all_reduces"].tolist() == [f"f32[{size + 3}]"]  # with the tokens, their loss and those that are right
    for name in "abcd":
        given, found = sums[f"{name}.given"], sums[f"{name}.sum"]
        np.testing.assert_array_equal(found, np.broadcast_to(given.sum(0), given.shape), err_msg=name)


def test_the_loss_of_a_step_is_the_mean_over_tokens_and_not_over_rows(whole):
    """The test of devices could not fail if rows had equally many tokens."""
    first = training.batch(0, training.BATCH)
    params = init(training.CONFIG, 0)
    mean = jax.jit(mean_loss(training.CONFIG))
    rows = [float(mean(params, jax.tree.map(lambda x, i=i: x[i : i + 1], first))) for i in range(training.BATCH)]
    counts = (first["targets"] != 0).sum(axis=1)
    losses = whole[1]["loss"]
    assert losses[0] == pytest.approx(np.average(rows, weights=counts), rel=1e-5)
    assert abs(np.mean(rows) - losses[0]) > 1e-3


def test_training_lowers_the_loss(whole):
    assert whole[1]["loss"].shape == whole[1]["gradient_norm"].shape == (training.STEPS,)
    assert whole[1]["loss"][-5:].mean() < whole[1]["loss"][:5].mean() - 0.1


# The loop


def test_a_run_that_is_saved_and_resumed_is_the_same_bit_for_bit(trainer, whole, tmp_path):
    half, first = training.advance(trainer, training.fresh(), training.batch, training.STEPS // 2)
    save_state(tmp_path / "half.safetensors", half, note="resume")
    read, facts = load_state(tmp_path / "half.safetensors", training.fresh())
    assert facts == {"note": "resume"}
    assert int(read.step) == training.STEPS // 2
    end, second = training.advance(trainer, read, training.batch, training.STEPS)
    assert_identical(end, whole[0])
    np.testing.assert_array_equal(np.concatenate([first["loss"], second["loss"]]), whole[1]["loss"])


def test_a_step_whose_blocks_are_computed_again_holds_less_memory_on_a_cpu_too():
    config, batch, sgd = tiny(vocab_size=40, num_layers=3, num_decoder_layers=1), training.batch(0, 64), optax.sgd(1.0)
    state = jax.eval_shape(lambda: init_state(init(config, 0), sgd, training.RATE))
    held = []
    for compute in (Compute(), Compute(remat=True)):
        options = compute.compiler_options()
        trainer = Trainer(t5_loss(config, compute), sgd, 64, 1, compiler_options=options)
        step = trainer.compile_ahead(state, [batch])[1].result()
        held.append(step.memory_analysis().temp_size_in_bytes)
    assert held[1] < 0.7 * held[0]


def test_a_program_that_needs_options_has_them_whether_it_is_compiled_ahead_or_not():
    seen = []

    class Lowered:
        def compile(self, compiler_options):
            seen.append(compiler_options)
            return lambda x: x + 1

    class Function:
        def lower(self, *shapes):
            return Lowered()

        def __call__(self, *arguments):
            raise AssertionError("called without its options")

    x, options = np.zeros(3), {"an": "option"}
    assert (Ahead(Function(), options)(x) == 1).all()
    ahead = Ahead(Function(), options)
    ahead.compile(jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert (ahead(x) == 1).all()
    assert seen == [options, options]


def test_what_a_writer_has_begun_is_done_in_order_and_not_after_a_failure():
    writer, done, go = Writer(), [], threading.Event()

    def late():
        assert go.wait(60)
        done.append(1)

    def fails():
        raise OSError("no")

    writer.begin(late)
    writer.begin(lambda: done.append(2))
    assert done == []
    go.set()
    writer.wait()
    assert done == [1, 2]
    go.clear()
    writer.begin(late)
    writer.begin(fails)
    writer.begin(lambda: done.append(3))
    go.set()
    with pytest.raises(OSError, match="no"):
        writer.wait()
    assert done == [1, 2, 1]
    writer.begin(lambda: done.append(4))
    writer.wait()
    assert done[-1] == 4


def test_advance_does_not_consume_the_state_that_it_is_given(trainer):
    state = training.fresh()
    before = jax.tree.map(lambda x: np.array(x, copy=True), state)
    training.advance(trainer, state, training.batch, training.DISPATCH)
    assert_identical(jax.tree.map(np.asarray, state), before)


def test_advance_by_no_steps_gives_the_state_back(trainer):
    state, measured = training.advance(trainer, training.fresh(), training.batch, 0)
    assert_identical(state, training.fresh())
    assert measured["loss"].shape == (0,)


@pytest.mark.parametrize("until", [-5, 3, 12])
def test_an_end_that_is_not_a_whole_number_of_dispatches_away_is_refused(trainer, until):
    with pytest.raises(fc.InputError, match=f"from step 0 to {until}: it is not a multiple of 5 steps away"):
        training.advance(trainer, training.fresh(), training.batch, until)


def test_every_dispatch_is_yielded_once(trainer):
    done = []
    training.advance(trainer, training.fresh(), training.batch, 15, on_dispatch=done.append)
    assert done == [5, 10, 15]


def toy_trainer(batch_size=4):
    """Descent on ``Σ (w − x)²``: compiled in no time."""

    def loss(params, batch, key):
        total, rows = jnp.sum((params["w"] - batch["x"]) ** 2), jnp.asarray(1.0 * batch["x"].shape[0])
        return total, {"tokens": rows, "nll": total, "correct": jnp.zeros(())}

    return Trainer(loss, optax.sgd(1.0), batch_size, steps_per_dispatch=5)


def toy_state():
    return init_state({"w": jnp.zeros(3)}, optax.sgd(1.0), 0.1)


@pytest.mark.parametrize(("bad", "value"), [(0, math.nan), (13, math.nan), (24, math.inf)])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(bad, value):
    def batch(step, size):
        return {"x": np.full((size, 3), value if step == bad else 1.0, np.float32)}

    with pytest.raises(TrainingDiverged, match=f"the loss of step {bad} is {value}; lower the learning rate"):
        training.advance(toy_trainer(), toy_state(), batch, 25)


def test_ctrl_c_stops_between_dispatches_with_a_state_that_goes_on_as_if_nothing_had_been():
    batch = lambda step, size: {"x": np.full((size, 3), float(step), np.float32)}
    trainer = toy_trainer()
    whole, _ = training.advance(trainer, toy_state(), batch, 30)
    noted = []

    def interrupt(steps):
        if not noted:
            signal.raise_signal(signal.SIGINT)

    with graceful_interrupt(lambda: noted.append("note")), pytest.raises(Interrupted) as caught:
        training.advance(trainer, toy_state(), batch, 30, on_dispatch=interrupt)
    assert noted == ["note"]
    stopped = caught.value.state
    assert 0 < int(stopped.step) < 30
    assert int(stopped.step) % 5 == 0
    assert str(caught.value) == f"interrupted at step {int(stopped.step)}"
    assert_identical(training.advance(trainer, stopped, batch, 30)[0], whole)


def test_a_second_ctrl_c_ends_at_once_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with graceful_interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_may_train_without_handling_signals():
    found = []

    def work():
        with graceful_interrupt():
            found.append("ran")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["ran"]


def test_a_batch_that_the_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 4)
    with pytest.raises(fc.InputError, match="a batch of 6 cannot be shared evenly by 4 devices; take a multiple of 4"):
        toy_trainer(batch_size=6)


# States in files


def some_state():
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.asarray(3, jnp.int32), jnp.asarray([True, False]))}


def test_a_state_is_read_back_with_its_facts(tmp_path):
    save_state(tmp_path / "deep" / "s.safetensors", some_state(), arm="grown", loss=0.5)
    read, facts = load_state(tmp_path / "deep" / "s.safetensors", some_state())
    assert_identical(read, some_state())
    assert read["b"][0].shape == ()
    assert facts == {"arm": "grown", "loss": 0.5}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.safetensors"]


def test_a_state_may_be_described_by_shapes_alone(tmp_path):
    save_state(tmp_path / "s", some_state())
    assert_identical(load_state(tmp_path / "s", jax.eval_shape(some_state))[0], some_state())


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(fc.InputError, match=r"there is no checkpoint .*s\.safetensors"):
        load_state(tmp_path / "s.safetensors", some_state())


@pytest.mark.parametrize("kept", [0, 5, 60])
def test_a_damaged_checkpoint_is_refused(tmp_path, kept):
    save_state(tmp_path / "s", some_state())
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:kept])
    with pytest.raises(fc.InputError, match=r"cannot be read .*; it is damaged, remove it"):
        load_state(tmp_path / "s", some_state())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"a": jnp.zeros((2, 4)), "b": some_state()["b"]},
            r"a should be float32\[2, 4\], but there is float32\[2, 3\]",
        ),
        ({"a": jnp.zeros((2, 3), jnp.int32)}, r"a should be int32\[2, 3\], but there is float32\[2, 3\]"),
        ({"c": jnp.zeros(1)}, r"c should be float32\[1\], but there is nothing"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other, message):
    save_state(tmp_path / "s", some_state())
    with pytest.raises(fc.InputError, match=f"is of another run: {message}"):
        load_state(tmp_path / "s", other)


def test_a_failure_while_saving_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save_state(tmp_path / "s", some_state())
    before = (tmp_path / "s").read_bytes()

    def fail(path, tensors, metadata):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("fusion_core.train.state_files.write_tensors", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path / "s", some_state())
    assert (tmp_path / "s").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


# Metrics


def test_records_are_kept_in_order_and_found_by_their_fields(tmp_path):
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl")
    for step in range(3):
        metrics.write({"arm": "ab"[step % 2], "step": step})
    again = Metrics(tmp_path / "run" / "metrics.jsonl")
    assert again.records == metrics.records
    assert again.of(arm="a") == [{"arm": "a", "step": 0}, {"arm": "a", "step": 2}]
    assert again.of(arm="a", step=1) == []


def test_a_last_line_that_was_cut_off_is_dropped_and_writing_goes_on(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    metrics = Metrics(file)
    assert metrics.records == [{"step": 1}, {"step": 2}]
    metrics.write({"step": 3})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert Metrics(file).records == metrics.records


def test_a_last_line_without_its_end_is_whole_only_if_it_is_a_record(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}')
    metrics = Metrics(file)
    metrics.write({"step": 3})
    assert Metrics(file).records == metrics.records == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_records_that_are_not_wanted_are_dropped_from_the_file_too(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(4):
        metrics.write({"step": step})
    metrics.keep(lambda record: record["step"] < 2)
    assert metrics.records == Metrics(tmp_path / "metrics.jsonl").records == [{"step": 0}, {"step": 1}]
