"""The benchmarks run in their smallest size and print what they measured."""

import json

import jax

from benchmarks import bea_cost, order_scores


def test_the_cost_benchmark_counts_in_gradients_and_shows_the_growth_with_the_order(capsys, tmp_path):
    path = tmp_path / "cost.json"
    assert bea_cost.main(["--smoke", "--problems", "mlp", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [row["what"] for row in result["costs"]] == list(bea_cost.LIMITS)
    operations = {row["what"]: row["operations"] for row in result["costs"]}
    assert operations["gradient of the modified loss"] <= 3.0
    assert operations["conflict vector of two losses"] <= 6.0
    assert operations["modified field, order 3"] <= 8
    assert operations["modified field, order 4"] <= 20
    last = result["orders"][-1]
    assert last["order"] == 4
    assert last["nested"]["operations"] > last["taylor"]["operations"] > last["used"]["operations"]
    assert "| modified field, order 4 |" in capsys.readouterr().out


def test_the_small_t5_has_a_field_of_order_three():
    problem = bea_cost.t5_problem(smoke=True)
    work = bea_cost.works(problem.loss_of)["modified field, order 3"]
    executable, counted = bea_cost.compiled(work, problem.params)
    assert problem.title.startswith("T5, d = 16")
    assert bea_cost.run(executable, problem.params) > 0
    assert counted["flops"] > 0


def test_rematerialised_blocks_leave_less_memory_to_a_t5s_gradient_on_a_cpu_too():
    lean, plain = bea_cost.lean_t5_problem(smoke=True), bea_cost.t5_problem(smoke=True)
    assert lean.title.endswith("rematerialised")
    temporary = [
        bea_cost.compiled(jax.grad(problem.loss_of(1)), problem.params, problem.options)[1]["temporary"]
        for problem in (lean, plain)
    ]
    assert temporary[0] < 0.9 * temporary[1]


def test_the_order_benchmark_predicts_most_pairs_of_single_steps(capsys):
    assert order_scores.main(["--smoke"]) == 0
    result = order_scores.compute(problems=2, tasks=3, samples=32)
    single, many = result["rows"]
    assert (single["steps"], many["steps"], single["pairs"]) == (1, 20, 6)
    assert single["right"] > 0.8
    assert "| 1 | 6 | " in capsys.readouterr().out
