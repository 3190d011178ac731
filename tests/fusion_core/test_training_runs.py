"""The run of one network: schedules, clipping, accumulation, checkpoints and their policy, divergence."""

import math
import pathlib
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fusion_core as fc
from fusion_core.models.t5 import init
from fusion_core.train import (
    Cadence,
    Checkpoints,
    Interrupted,
    Metrics,
    Trainer,
    TrainingDiverged,
    adamw,
    clipped,
    constant_schedule,
    cosine_schedule,
    displacement,
    init_state,
    initialize_distributed,
    save_state,
    t5_loss,
)
from fusion_core.train.devices import devices_for
from fusion_core.train.distributed import COORDINATOR, PROCESS, PROCESSES
from fusion_core.train.loop import graceful_interrupt
from fusion_core.train.metrics import TensorBoard
from fusion_core.train.state_files import DamagedCheckpoint, load_state
from fusion_core.train.step import summed_gradients
from tests.strategies import runs, training
from tests.strategies.networks import batch_of, tiny

# Schedules and optimizers


def at(schedule, *steps):
    return [float(schedule(n)) for n in steps]


def test_schedules_have_peak_one_and_the_shapes_that_their_names_say():
    assert at(constant_schedule(4), 0, 1, 3, 100) == pytest.approx([0.25, 0.5, 1, 1])
    assert at(constant_schedule(), 0, 9) == [1, 1]
    assert at(cosine_schedule(20, 10, end=0.2), 0, 9, 10, 15, 20, 30) == pytest.approx([0.1, 1, 1, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant_schedule(-1), "warmup is -1 steps"),
        (lambda: cosine_schedule(10, 10), "warmup of 10 steps must be below its 10 steps"),
        (lambda: cosine_schedule(10, 1, 2.0), "ends at 2.0 of its peak"),
        (lambda: clipped(optax.sgd(1.0), 0.0), "clipping norm is 0.0"),
    ],
)
def test_an_impossible_schedule_or_norm_is_refused(make, message):
    with pytest.raises(fc.InputError, match=message):
        make()


def test_adamw_with_clipping_is_the_papers():
    """Loshchilov and Hutter (2019), algorithm 2, in NumPy, on gradients cut to a global norm."""
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((3, 2)), "b": rng.standard_normal(4)}
    rate, decay, norm = 0.1, 0.05, 1.5
    optimizer = clipped(adamw(b1=0.8, b2=0.9, weight_decay=decay), norm)
    state = init_state(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), optimizer, rate)
    mean, square = ({k: np.zeros_like(v) for k, v in params.items()} for _ in range(2))
    for t in range(1, 4):
        grads = {k: 3 * rng.standard_normal(v.shape) for k, v in params.items()}
        narrow = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
        update, opt_state = displacement(optimizer, narrow, state, constant_schedule(2)(t - 1))
        state = state._replace(params=optax.apply_updates(state.params, update), opt_state=opt_state)
        total = math.sqrt(sum(float(np.sum(g**2)) for g in grads.values()))
        assert total > norm
        for k in params:
            cut = grads[k] * norm / total
            mean[k], square[k] = 0.8 * mean[k] + 0.2 * cut, 0.9 * square[k] + 0.1 * cut**2
            step = mean[k] / (1 - 0.8**t) / (np.sqrt(square[k] / (1 - 0.9**t)) + 1e-8)
            params[k] = params[k] - rate * min(1.0, t / 2) * (step + decay * params[k])
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6), state.params, params
    )


# Loss paths


def test_gradients_in_parts_are_the_whole_batchs():
    loss, params = t5_loss(training.CONFIG), init(training.CONFIG, 0)
    key, batch = jax.random.key(0), training.batch(3, 8)
    whole, sums = jax.jit(lambda p, b: summed_gradients(loss, p, b, key, 1))(params, batch)
    parts, part_sums = jax.jit(lambda p, b: summed_gradients(loss, p, b, key, 4))(params, batch)
    for name, value in sums.items():
        assert float(part_sums[name]) == pytest.approx(float(value), rel=1e-6)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), parts, whole)


@pytest.mark.parametrize(
    ("batch", "accumulate", "message"),
    [
        (6, 1, "shared evenly by 4 devices; take a multiple of 4"),
        (8, 4, "4 devices in 4 parts each; take a multiple of 16"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_before_anything_is_compiled(monkeypatch, batch, accumulate, message):
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 4)
    with pytest.raises(fc.InputError, match=message):
        devices_for(batch, accumulate)


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch):
    device = lambda process: type("Device", (), {"process_index": process})()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "devices", lambda: [device(0), device(0), device(1)])
    with pytest.raises(fc.InputError, match="the processes have 1 and 2 devices; give every process the same number"):
        devices_for(4)


# The run


@pytest.fixture(scope="module")
def compiled():
    """One trainer for all runs of this file."""
    return runs.run_of(pathlib.Path("unused")).trainer


def run_in(folder, compiled, **changes):
    return runs.run_of(folder, **{"trainer": compiled} | changes)


def test_a_run_records_what_it_measured_and_ends_in_a_checkpoint(compiled, tmp_path):
    shown = []
    run = run_in(tmp_path, compiled, show=shown.append, peak_flops=1e9)
    state = run.to(training.fresh(), 20)
    records = Metrics(tmp_path / "metrics.jsonl").records
    assert shown == records
    assert [r["step"] for r in records] == [0, 5, 10, 15, 20, 20]  # the first and the last are evaluations
    last, evaluation = records[-2:]
    assert evaluation.keys() == {"node", "step", "flops", "validation_loss", "validation_accuracy"}
    assert {
        "loss",
        "accuracy",
        "gradient_norm",
        "tokens_per_second",
        "flops_per_second",
        "mfu",
        "input_wait",
    } < last.keys()
    assert last["mfu"] == pytest.approx(last["flops_per_second"] / 1e9)
    assert last["learning_rate"] == pytest.approx(training.RATE * math.sqrt(4 / 19))
    assert 0 <= last["accuracy"] <= 1
    assert run.checkpoints.steps() == [10, 20]
    read, facts = load_state(run.checkpoints.path(20), training.fresh())
    assert facts["position"]["step"] == 20
    jax.tree.map(np.testing.assert_array_equal, read, state)
    # nothing is done twice
    again = run_in(tmp_path, compiled, show=shown.append)
    jax.tree.map(np.testing.assert_array_equal, again.to(training.fresh(), 20), state)
    assert len(shown) == 6


def test_a_run_ends_early_at_the_first_evaluation_that_says_so_and_stays_there(compiled, tmp_path):
    cadence = Cadence(log=5, evaluate=5, checkpoint=100)
    whole = run_in(tmp_path / "whole", compiled, cadence=cadence)
    whole.to(training.fresh(), 20)
    losses = {r["step"]: r["validation_loss"] for r in whole.metrics.records if "validation_loss" in r}
    stop = lambda record: record["validation_loss"] <= losses[10]
    for _ in range(2):  # the second process finds what the first one has written
        early = run_in(tmp_path / "early", compiled, cadence=cadence, stop=stop)
        assert int(early.to(training.fresh(), 20).step) == 10
        assert early.checkpoints.steps() == [10]


def test_a_stop_between_two_records_leaves_the_next_one_as_it_is(compiled, tmp_path):
    """Found by an hour of stops: the next record was the mean of the steps after the stop alone."""
    cadence = Cadence(log=20, evaluate=40, checkpoint=40)
    whole = run_in(tmp_path / "whole", compiled, cadence=cadence)
    whole.to(training.fresh(), 40)
    stopped = run_in(tmp_path / "stopped", compiled, cadence=cadence, begun=lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted), graceful_interrupt():
        stopped.to(training.fresh(), 40)
    assert stopped.checkpoints.steps()[-1] in (5, 10, 15)
    again = run_in(tmp_path / "stopped", compiled, cadence=cadence)
    again.to(training.fresh(), 40)
    lasting = lambda run: [{k: v for k, v in r.items() if "second" not in k and k != "input_wait"} for r in run]
    assert lasting(again.metrics.records) == lasting(whole.metrics.records)


def test_one_batch_is_learnt_by_heart(tmp_path):
    config = tiny(vocab_size=20, num_layers=1, num_decoder_layers=1)
    batch = batch_of(config, 0, batch=2, source=6, target=5, padded=False)
    optimizer = adamw()
    trainer = Trainer(t5_loss(config), optimizer, 2, 50)
    state, measured = training.advance(
        trainer, init_state(init(config, 0), optimizer, 0.01), lambda step, size: batch, 300, constant_schedule()
    )
    assert measured["loss"][0] > 1
    assert measured["loss"][-1] < 0.01
    assert measured["accuracy"][-1] == 1
    assert trainer.scores(state.params, [batch])["accuracy"] == 1


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint_and_names_the_step(tmp_path):
    class Poisoned:
        def batches(self, size, state=None):
            for step in range(100):
                yield {"x": np.full((size, 3), math.nan if step == 23 else 1.0, np.float32)}, {"step": step + 1}

    def loss(params, batch, key):
        total, rows = jnp.sum((params["w"] - batch["x"]) ** 2), jnp.asarray(1.0 * batch["x"].shape[0])
        return total, {"tokens": rows, "nll": total, "correct": jnp.zeros(())}

    trainer = Trainer(loss, optax.sgd(1.0), 4, 5)
    run = run_in(tmp_path, trainer, data=Poisoned(), evaluate=None)
    start = init_state({"w": jnp.zeros(3)}, optax.sgd(1.0), 0.01)
    with pytest.raises(
        TrainingDiverged, match=r"tiny: the loss of step 23 is nan; .* The last good checkpoint is of step 20"
    ):
        run.to(start, 60)
    assert run.checkpoints.steps() == [10, 20]
    kept, _ = run.checkpoints.restore(start)
    assert np.isfinite(np.asarray(kept.params["w"])).all()


def test_parameters_that_are_not_finite_are_never_written(tmp_path):
    store = Checkpoints(tmp_path, {})
    state = jax.tree.map(np.asarray, init_state({"w": jnp.asarray([1.0, jnp.nan])}, optax.sgd(1.0), 0.1))
    store.save(state)
    with pytest.raises(TrainingDiverged, match="w is not finite after step -1"):
        store.wait()
    assert store.steps() == []


@pytest.mark.parametrize("name", ["log", "evaluate", "checkpoint"])
def test_a_cadence_that_is_no_whole_number_of_dispatches_is_refused(compiled, tmp_path, name):
    with pytest.raises(fc.InputError, match=f"{name} is every 7 steps, but a dispatch has 5"):
        run_in(tmp_path, compiled, cadence=Cadence(**{"log": 5, "evaluate": 5, "checkpoint": 5, name: 7}))


def test_a_cadence_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"log\n.*greater than or equal to 1"):
        Cadence(log=0)


# Checkpoints


def state_at(step):
    optimizer = optax.sgd(1.0, momentum=0.5)
    state = init_state({"w": jnp.arange(3.0)}, optimizer, 0.1)
    return jax.tree.map(np.asarray, state._replace(step=jnp.asarray(step, jnp.int32)))


def test_the_policy_keeps_the_last_ones_every_nth_and_the_pinned(tmp_path):
    store = Checkpoints(tmp_path, {}, keep_last=2, keep_every=30, pinned=[20])
    for step in range(10, 100, 10):
        store.save(state_at(step))
    store.wait()
    assert store.steps() == [20, 30, 60, 80, 90]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_newest_checkpoint_is_put_aside_with_a_warning_and_the_one_before_is_taken(tmp_path, damage):
    store, warnings = Checkpoints(tmp_path, {"a": 1}), []
    for step in (10, 20):
        store.save(state_at(step), position=step)
    store.wait()
    newest = store.path(20)
    content = bytearray(newest.read_bytes())
    if damage == "flipped":  # one bit of a weight: the header is whole
        content[-3] ^= 1
    newest.write_bytes(content if damage == "flipped" else content[:-5])
    state, facts = store.restore(state_at(0), warn=warnings.append)
    assert (int(state.step), facts["position"]) == (10, 10)
    assert len(warnings) == 1
    assert re.search(
        r"step-20.* cannot be read .*it is damaged.*step-20\.damaged, and the one before is taken", warnings[0]
    )
    assert store.steps() == [10]
    newest.with_suffix(".damaged").rename(newest)
    with pytest.raises(DamagedCheckpoint):
        load_state(newest, state_at(0))


def test_a_checkpoint_of_another_run_is_refused_and_not_passed_over(tmp_path):
    store = Checkpoints(tmp_path, {"batch": 16, "seed": 1})
    store.save(state_at(10))
    store.wait()
    with pytest.raises(fc.InputError, match="is of another run: its batch is 16, this run's 32"):
        Checkpoints(tmp_path, {"batch": 32, "seed": 1}).restore(state_at(0))


def test_a_file_of_other_software_is_refused(tmp_path):
    import safetensors.numpy

    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "step-10.safetensors")
    with pytest.raises(fc.InputError, match="is not a training state of this software"):
        Checkpoints(tmp_path, {}).restore(state_at(0))


def test_what_fails_in_the_writer_is_raised_in_the_run(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path, {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fusion_core.train.state_files.write_tensors", full)
    store.save(state_at(10))
    with pytest.raises(fc.InputError, match=r"there is no room for the checkpoint .*step-10.* make room, then resume"):
        store.save(state_at(20))
    assert store.steps() == []


def test_facts_are_under_the_checksum_too(tmp_path):
    save_state(tmp_path / "s", {"a": np.zeros(2)}, position=12345)
    content = (tmp_path / "s").read_bytes()
    assert content.count(b"12345") == 1
    (tmp_path / "s").write_bytes(content.replace(b"12345", b"12346"))
    with pytest.raises(DamagedCheckpoint, match="its checksum is wrong"):
        load_state(tmp_path / "s", {"a": np.zeros(2)})


@pytest.mark.parametrize("changes", [{"keep_last": 0}, {"keep_every": -1}])
def test_an_impossible_policy_is_refused(tmp_path, changes):
    with pytest.raises(fc.InputError, match="keep_last is"):
        Checkpoints(tmp_path, {}, **changes)


# Several processes: what is wrong is said before anything waits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, 0), r"a coordinator \(host:port\) is missing"),
        (("host:1", 2, None), "this process's number is missing"),
        (("host:1", 2, 2), "process 2 of 2: numbers go from 0"),
        (("host", 2, 0), "coordinator is 'host'; it must be host:port"),
    ],
)
def test_incomplete_processes_are_refused(given, message):
    with pytest.raises(fc.InputError, match=message):
        initialize_distributed(*given)


def test_one_process_needs_nothing(monkeypatch):
    for name in (COORDINATOR, PROCESSES, PROCESS):
        monkeypatch.delenv(name, raising=False)
    assert not initialize_distributed()
    assert not initialize_distributed("localhost:1", 1, 0)
    monkeypatch.setenv(PROCESSES, "two")
    with pytest.raises(fc.InputError, match="DEEPFUSION_PROCESSES is 'two'; it must be a number"):
        initialize_distributed()


# TensorBoard


def test_tensorboard_is_an_extra_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(
        fc.InputError, match=r"tensorboardX, which is not installed: pip install 'deepfusion\[tensorboard\]'"
    ):
        TensorBoard(tmp_path)


def test_tensorboards_files_hold_the_records(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the extra: pip install 'deepfusion[tensorboard]'")
    board = TensorBoard(tmp_path)
    board.write({"node": "a", "step": 5, "loss": 1.5})
    board.close()
    (file,) = (tmp_path / "a").iterdir()
    assert b"loss" in file.read_bytes()
