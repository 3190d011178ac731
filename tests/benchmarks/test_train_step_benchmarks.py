"""The benchmarks of the training step in their smallest size."""

import importlib
import importlib.util
import json
import re
import types

import jax
import pytest

from benchmarks import allreduce_cost, gpu_step, gpu_train_step, train_step

HAS_REFERENCE = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")


def test_the_step_benchmark_compares_every_contender(capsys, tmp_path):
    path = tmp_path / "step.json"
    assert train_step.main(["--smoke", "--json", str(path)]) == 0
    (size,) = json.loads(path.read_text())["sizes"]
    rows = {row["name"]: row for row in size["rows"]}
    assert {"ours, Adafactor", "ours, SGD", "naive JAX, Adafactor", "ours, layers scanned"} <= set(rows)
    assert all(len(row["seconds"]) == 2 and row["least"] > 0 for row in rows.values())
    assert ("ratio" in rows["ours, SGD"]) == bool(HAS_REFERENCE)
    assert "| ours, Adafactor |" in capsys.readouterr().out


@pytest.mark.skipif(not HAS_REFERENCE, reason="the reference implementation is an extra: deepfusion[parity]")
def test_the_gpu_benchmark_checks_parity_then_measures(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(  # in this process: to start four costs more than they do
        gpu_train_step, "in_a_process",
        lambda name, words, limit: gpu_train_step.part(name, arguments),
    )  # fmt: skip
    arguments = gpu_train_step.parsed(["--smoke"])
    path = tmp_path / "gpu.json"
    assert gpu_train_step.main(["--smoke", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["parity"]["equal"] is True
    assert 0 < result["parity"]["t5-v1_1-base"]["gradient_difference"] < 1e-3
    for name in gpu_train_step.PARTS[1:]:
        assert result[name]["rows"][0]["tokens_per_second"] > 0, name
    assert 0 <= result["base"]["rows"][0]["idle_for_input"] <= 1
    assert result["base"]["rows"][0]["utilisation"] is None  # of a CPU
    assert result["ratio"] > 0
    assert "Tokens a second, the best of ours over the best of the reference's" in capsys.readouterr().out


def test_nothing_is_measured_where_the_parity_fails(capsys, monkeypatch):
    monkeypatch.setattr(gpu_train_step, "in_a_process", lambda name, words, limit: {"equal": False, "asked": name})
    assert gpu_train_step.main(["--smoke"]) == 1
    assert "| base: not run |" in capsys.readouterr().out


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_train_step.main(["--batch", "10", "--microbatch", "4"])
    assert "--microbatch 4 does not divide the batch of 10" in capsys.readouterr().err


def test_the_all_reduce_table_follows_its_formula(capsys):
    ring = allreduce_cost.ring_seconds(payload=1e9, devices=8, bandwidth=100e9, latency=1e-6)
    assert ring == pytest.approx(2 * 7 / 8 * 1e9 / 100e9 + 14e-6)
    assert allreduce_cost.ring_seconds(1e9, 1, 100e9, 1e-6) == 0
    assert allreduce_cost.main(["--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["devices"] for row in rows} == {8, 16, 32, 64, 128, 256, 512, 1024}
    for row in rows:
        assert row["seconds"] <= row["flat"] + 1e-12 or row["devices"] == 8
        assert 0 < row["efficiency"] < 1


ALL_FLAGS = ["--smoke", "--remat", "--layers", "scanned", "--loss-chunk", "8", "--attention", "chunked"]


@pytest.fixture
def cuda_without_a_gpu(monkeypatch):
    """Let JAX lower cuDNN's attention here; its checks of the device are answered as an H100 would."""
    fused = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("words", [["--smoke"], ["--smoke", "--attention", "plain"], ALL_FLAGS])
def test_the_step_for_a_gpu_is_lowered_for_cuda_without_one(words, cuda_without_a_gpu):
    arguments, config = gpu_train_step.parsed(words), gpu_step.SMOKE_GATED
    (way,) = gpu_step.ways_of(arguments, "base")
    step, optimizer = gpu_step.our_step(config, gpu_step.compute_of(arguments, way), 2)
    params = gpu_step.init(config, 0)
    batch = gpu_step.random_batch(config, 0, 4, 15, 7)
    text = step.trace((params, optimizer.init(params)), batch).lower(lowering_platforms=("cuda",)).as_text()
    assert "bf16" in text
    assert not re.findall(r"custom_call @\S*(?:cpu|lapack|onednn)\S*", text)
    assert bool(re.findall(r"custom_call @__cudnn\S*Backward", text)) == (words == ["--smoke"])


def test_all_flags_of_the_step_for_a_gpu_run_together():
    (row,) = gpu_train_step.ours("small", gpu_train_step.parsed(ALL_FLAGS))["rows"]
    assert row["median"] > 0


def test_a_way_that_fails_is_said_and_the_others_are_measured(capsys):
    found = gpu_train_step.ours("base", gpu_train_step.parsed(["--smoke", "--microbatch", "8", "2"]))
    assert found["rows"][0]["error"].startswith("TypeError: cannot reshape")
    assert found["rows"][1]["median"] > 0
    table = gpu_train_step.markdown({"parity": {}, "base": found, "small": {"error": "out of memory"}})
    assert "| TypeError: cannot reshape" in table
    assert "| small: out of memory |" in table


def test_a_part_that_fails_is_said_and_the_others_run(monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="Traceback\nRuntimeError: out of memory\n", stdout="")
    monkeypatch.setattr(gpu_train_step.subprocess, "run", lambda *a, **k: failed)
    assert gpu_train_step.in_a_process("base", []) == {"error": "RuntimeError: out of memory"}


def test_a_part_that_never_ends_is_said():
    assert gpu_train_step.in_a_process("base", ["--smoke"], 0.01) == {"error": "not measured in 0 s (--timeout)"}
