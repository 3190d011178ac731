import json

import pytest

from benchmarks import processes


def test_bandwidth_and_latency_are_found_from_times_that_follow_the_model():
    rows = [{"bytes": b, "reduce": b / 2e9 + 2 * 3e-6} for b in (4, 4096, 1 << 20)]
    assert processes.fitted(rows) == pytest.approx((2e9, 3e-6))


def test_ratios_are_of_one_round_and_the_model_adds_the_all_reduce_to_half_of_the_batch(monkeypatch):
    def launch(module, arguments, count, devices, cores):
        assert len(cores) == count
        if "--entries" in arguments:
            size = 4 * int(arguments[1])
            return [{"reduce": size / 2e9 + 6e-6, "gather": 1.0}] * count
        seconds = 0.1 * count * devices * (4 if "--apart" in arguments else 1) / (2 if "--rows" in arguments else 1)
        return [{"seconds": seconds, "processor_seconds": seconds}] * count

    monkeypatch.setattr(processes, "launch", launch)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {0, 1})
    found = processes.compute(3, (1, 1024))
    paces = {name: row["seconds"] for name, row in found["ratios"].items()}
    assert paces == pytest.approx({processes.TWO: 0.5, processes.APART: 0.125, processes.VIRTUAL: 0.5})
    assert found["ratios"][processes.TWO]["processor_seconds"] == pytest.approx(0.25)  # of both processes
    assert found["model"]["predicted"] == pytest.approx(0.05 + found["model"]["gradient_bytes"] / 2e9 + 6e-6)
    assert "| two processes, a core each | 200.00 | 0.50 | 400.00 | 0.25 |" in processes.markdown(found)


def test_a_process_times_its_collectives(capsys):
    assert processes.main(["--entries", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"reduce", "gather"}
    assert min(found.values()) > 0


def test_a_process_times_its_steps_of_the_whole_network(capsys):
    assert processes.main(["--worker", "--rows", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 2 * (64 + 16)
    assert found["seconds"] > 0
    assert found["processor_seconds"] > 0
