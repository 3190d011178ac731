"""Results of runs that nobody has run, for the pages."""

import math

import numpy as np

from fusion_core.runs.compare import compare_arms

STEP = 1e9  # FLOPs of a step of a small network; of a grown one three times that
SENTENCE = "The trial at step 40 won."


def trained(rng, name, *, inputs=(), before=0.0, start=0, steps=100, size=1.0, level=3.0, **more):
    """Return a node that trains: a loss that falls as a power of the FLOPs, to about ``level``."""
    cost, at = STEP * size, range(start, start + steps + 1, 10)
    loss = [
        (step, level + 4 * math.exp(-(before + (step - start) * cost) / 3e10) + 0.01 * float(rng.normal()))
        for step in at
    ]
    return name, {
        "kind": "train", "inputs": list(inputs), "arm": "", "step": start + steps, "start": start,
        "flops": steps * cost, "before_flops": before, "total_flops": before + steps * cost, "step_flops": cost,
        "final": loss[-1][1], "parameters": int(20_000 * size), "seconds": steps * size / 50, "loss": loss,
        "validation_loss": loss, "steps_per_second": [(step, 50 / size) for step in at],
        "tokens_per_second": [(step, 5e3 / size) for step in at], "input_wait": [(step, 0.01) for step in at],
        "theory": [], "greedy": None, **more,
    }  # fmt: skip


def growth(name, inputs, *, step, before, kind="fuse", theory=False):
    """Return a node that fuses or grows."""
    names = [*(f"source_{i}" for i in range(len(inputs))), "fused"]
    terms = [
        f"{term}_{one}" for term in ("loss", "gradient_norm", "modified_loss", "decrease_per_flop") for one in names
    ]
    terms += ["small_rate", "grown_rate", "conflict"]
    records = [
        {"step": at} | {term: i + 10 / at for i, term in enumerate(terms)} | {f"{term}_se": 0.1 for term in terms}
        for at in (10, 20, 40)
    ]
    return name, {
        "kind": kind, "inputs": inputs, "arm": "", "step": step, "before_flops": before, "total_flops": before,
        "flops": 0.0, "step_flops": 0.0, "final": None, "parameters": 60_000, "loss": [], "validation_loss": [],
        "steps_per_second": [], "tokens_per_second": [], "input_wait": [], "theory": records if theory else [],
        "greedy": {"step": 20, "reason": "It would have grown at step 20."} if theory else None,
    }  # fmt: skip


def one_seed(seed, arms=("scratch", "grown", "one small"), *, theory=False):
    """Return the nodes of one seed: two sources that are fused, a large network, and a small one with the whole budget."""
    rng = np.random.default_rng(seed)
    nodes = [
        trained(rng, "a", steps=40, level=3.4),
        trained(rng, "b", steps=40, level=3.4),
        growth("fused", ["a", "b"], step=40, before=80 * STEP, theory=theory),
        trained(
            rng, "grown", inputs=["fused"], before=80 * STEP, start=40, steps=70, size=3, level=2.95,
            rule={"step": 40, "reason": SENTENCE, "lost_trials": 0, "lost_share": 0.0},
        ),
        trained(rng, "scratch", steps=100, size=3.0),
        trained(rng, "one small", inputs=["a"], before=40 * STEP, start=40, steps=250, level=3.3),
    ]  # fmt: skip
    nodes += [trained(rng, name, steps=100, size=3.0, level=3 + 0.01 * i) for i, name in enumerate(arms[3:])]
    return dict(nodes)


def results(seeds=1, extra=0, *, theory=False):
    """Return the results of a plan with these seeds, and further arms from a random start."""
    arms = ("scratch", "grown", "one small", *(f"another large network, number {i}" for i in range(extra)))
    found = [one_seed(seed, arms, theory=theory) for seed in range(seeds)]
    return {
        "name": "a plan",
        "nodes": found[0],
        "seeds": {str(seed): nodes for seed, nodes in enumerate(found)} if seeds > 1 else {},
        "comparison": compare_arms(found, 300 * STEP),
        "provenance": {"versions": {"jax": "1"}, "devices": ["cpu: cpu"], "commit": None, "created": "now"},
    }
