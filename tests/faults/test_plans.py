"""Plans that nobody would write: refused in a line, before any work is done in proportion to their numbers."""

import pytest

from fusion_core.errors import InputError
from fusion_core.runs import read_plan, resolve
from fusion_core.seeds import DIGITS, node_seed, seed32
from fusion_core.text import train_tokenizer
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents

NODE = f"[node.a]\nmodel = {MODEL}\nsteps = 10\n"
CHAIN = lambda n: NODE + "".join(f'[node.a{i}]\nfrom = "a{i - 1 if i else ""}"\nsteps = 10\n' for i in range(n))
BAD = {
    "lists nested deep": (HEAD + "deep = " + "[" * 100_000, "nested too deep"),
    "lists nested": (HEAD + "deep = " + "[" * 50 + "]" * 50 + "\n" + NODE, "nested more than 20 deep"),
    "tables nested deep": (HEAD + "[" + ".".join("a" * 5000) + "]\nx = 1\n" + NODE, "nested more than 20 deep"),
    "a number of 100,000 digits": (HEAD.replace("vocab = 300", "vocab = " + "9" * 100_000) + NODE, "digits"),
    "a number of 400 digits": (HEAD.replace("vocab = 300", "vocab = " + "9" * 400) + NODE, "data.vocab is"),
    "steps of 400 digits": (HEAD + NODE.replace("steps = 10", "steps = " + "9" * 400), "steps is"),
    "a rate of 400 digits": (HEAD.replace("rate = 0.02", "rate = " + "9" * 400) + NODE, "rate is"),
    "10,000 nodes": (HEAD + CHAIN(10_000), "the plan has 10,001 nodes; at most 500"),
    "a long name": (HEAD + NODE.replace("[node.a]", f"[node.{'a' * 300}]"), "at most 100 of them"),
    "vocab = 1": (HEAD.replace("vocab = 300", "vocab = 1") + NODE, "data.vocab is 1; it must be at least 260"),
    "length = 1": (HEAD.replace("length = 16", "length = 1") + NODE, "length is 1; it must be at least 3"),
    "a rate of 0": (HEAD.replace("rate = 0.02", "rate = 0") + NODE, "optimizer.rate is 0; it must be above 0"),
    "an infinite rate": (HEAD.replace("rate = 0.02", "rate = inf") + NODE, "it must be a finite number"),
    "10⁸ layers": (HEAD + NODE.replace("num_layers = 1", "num_layers = 100000000"), "num_layers is 100000000; it must be"),
    "10³⁰ units": (HEAD + NODE.replace("d_ff = 16", "d_ff = 1" + "0" * 30), f"d_ff is {10**30}; it must be"),
    "a factor of 10⁹": (HEAD + NODE + '[node.g]\nfrom = "a"\noperator = "hypercloning"\nfactor = 1000000000', "above 1,000"),
    "a depth of 10⁹": (HEAD + NODE + '[node.g]\nfrom = "a"\noperator = "identity_layers"\ndepth = 1000000000', "above 1,000"),
    "a width of 10⁹": (HEAD + NODE + '[node.g]\nfrom = "a"\noperator = "net2net_width"\nwidth = {d_ff=1000000000}', "above 16"),
    "a seed of 400 digits": (HEAD + NODE + "seed = " + "9" * 400, f"of at most {DIGITS} digits"),
    "a negative seed": ("seed = -1" + HEAD + NODE, "seed is -1; it must be a whole number from 0"),
    "a million sources": (HEAD + NODE + "[node.f]\nsources = [" + '"a",' * 100_000 + "]", "at most 100 sources"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_plan_that_nobody_would_write_is_refused_before_any_work(plan, case):
    text, message = BAD[case]
    plan.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        resolve(read_plan(plan))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("command", ["plan", "train"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_a_speed_that_is_no_number_is_refused(run, plan, command, value):
    code, out, err = run(
        command, plan, "--tflops", value, *(["--out", plan.parent / "run"] if command == "train" else [])
    )
    assert (code, out) == (2, "")
    assert "--tflops" in err.splitlines()[-1]
    assert not (plan.parent / "run").exists()


def test_a_chain_as_long_as_a_plan_may_be_is_answered(plan):
    plan.write_text(HEAD + CHAIN(499), encoding="utf-8")
    assert len(resolve(read_plan(plan))) == 500


def test_any_whole_number_is_a_seed_and_small_ones_are_what_they_were():
    assert [node_seed(run, node) for run, node in ((0, 0), (2, 7), (999, 999))] == [0, 2007, 999_999]
    pairs = [
        (0, 1000),
        (1, 0),
        (10**6, 0),
        (20261125, 1),
        (20261125, 2),
        (1, 20261125),
        (5 * 10**9, 0),
        (10**99, 10**99),
    ]
    seeds = [node_seed(*pair) for pair in pairs]
    assert len(set(seeds)) == len(pairs)
    assert all(1 << 63 <= seed < 1 << 64 for seed in seeds if seed >= 10**9)
    assert seed32(2**32 - 1) == 2**32 - 1
    assert len({seed32(2**32 + i) for i in range(100)} | {0, 1}) == 102
    assert all(0 <= seed32(seed) < 2**32 for seed in (2**32, 10**99))


def test_a_date_and_larger_numbers_are_seeds_of_runs(run, plan):
    plan.write_text("seed = 20261125" + HEAD + NODE + "seed = 5000000000\n", encoding="utf-8")
    code, _, err = run("train", plan, "--out", plan.parent / "run", "--seeds", f"5000000000,{10**99}")
    assert code == 0, err


def test_a_tokenizer_takes_any_seed():
    train_tokenizer(documents(0, 20), 300, 5 * 10**9)


@pytest.mark.parametrize("seed", ["-1", "9" * 400])
@pytest.mark.parametrize("command", ["demo", "diff", "finetune", "fuse", "generate", "grow"])
def test_a_seed_of_a_command_is_checked_with_the_options(refused, command, seed):
    places = {"diff": ["a", "b"], "fuse": ["a", "b", "--out", "c"], "generate": ["a", "text"]}
    refused(f"of at most {DIGITS} digits", command, *places.get(command, []), "--seed", seed)


@pytest.mark.parametrize("size", ["9" * 400 + "GB", "0", "-1", "1e3", "inf"])
def test_a_size_of_400_digits_is_refused(refused, size):
    refused("--max-shard is", "fuse", "a", "b", "--out", "c", "--max-shard", size)
