"""Finished runs without training: a plan whose nodes have the losses of a law, in the folders that a law is fitted to."""

import json

from fusion_core.runs import read_plan, resolve
from fusion_core.runs.plan import TrainNode, plan_values
from tests.strategies.plans import HEAD, MODEL
from tests.strategies.texts import documents

LARGE = MODEL.replace("8", "16").replace("d_ff = 16", "d_ff = 32").replace("heads = 2", "heads = 4")
SCHEDULED = HEAD.replace("[defaults]", '[defaults]\nschedule = { kind = "constant", warmup = 0 }')
SHORT = f"""
[node.large]
model = {LARGE}
steps = 600
[node.small]
model = {MODEL}
steps = 1800
"""
GROWN = """
[node.source_{steps}]
model = {model}
steps = {steps}
[node.twice_{steps}]
sources = ["source_{steps}", "source_{steps}"]
noise = 0.3
[node.grown_{steps}]
from = "twice_{steps}"
steps = 400
"""


def law(n1, n2):
    """Return the loss after the FLOPs of n1 large steps on the small network and n2 large steps."""
    return 2.0 + 8.0 * (n2 + 20.0 * n1**0.6) ** -0.3 if n1 + n2 else 7.0


def write_plan(folder, body, name="plan.toml", head=SCHEDULED):
    """Write a plan and its text; return its path."""
    (folder / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    (folder / name).write_text(head + body, encoding="utf-8")
    return folder / name


def short_plan(folder, *steps, **options):
    """Write a plan with scratch, the small network and one grown after each of some numbers of steps."""
    return write_plan(folder, SHORT + "".join(GROWN.format(model=MODEL, steps=n) for n in steps), **options)


def pretend_run(plan_file, folder):
    """Write the files of a finished run of the plan, over two seeds, with the losses of the law."""
    plan = read_plan(plan_file)
    nodes = {node.name: node for node in resolve(plan)}
    unit = nodes["large"].step_flops
    seeds = {}
    for seed in range(2):
        found = {}
        for name, node in nodes.items():
            before = 0.0 if not node.node.inputs else sum(nodes[node.node.inputs[0]].spent.values()) / unit
            cost, steps = node.step_flops / unit, node.steps
            grown = bool(node.node.inputs)
            at = lambda n: law(before, n * cost) if grown or node.config == nodes["large"].config else law(n * cost, 0)  # noqa: B023
            trains = isinstance(node.node, TrainNode)
            losses = [[node.start + n, (1 + 0.002 * seed) * at(n)] for n in range(0, steps + 1, 20)] if trains else []
            found[name] = {
                "kind": "train" if trains else "fuse", "inputs": list(dict.fromkeys(node.node.inputs)), "start": node.start,
                "step": node.start + steps, "step_flops": node.step_flops, "flops": node.flops, "validation_loss": losses,
            }  # fmt: skip
        seeds[str(seed)] = found
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(plan_values(plan)), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps({"nodes": seeds["0"], "seeds": seeds}), encoding="utf-8")
    return folder
