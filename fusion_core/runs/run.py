"""The engine: run a plan from its first node to its last, once for every seed; finished nodes are not run again."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.growth.noise import SELF_FUSION_NOISE
from fusion_core.lock import locked
from fusion_core.provenance import provenance
from fusion_core.runs.ahead import compile_ahead
from fusion_core.runs.auto import AutoGrowth
from fusion_core.runs.compare import compare_arms
from fusion_core.runs.context import NODES, RunContext, first_state, training_of
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import AutoGroup, Resolved, auto_groups, budget_flops, resolve, steps_within
from fusion_core.runs.growing import grown_state
from fusion_core.runs.law_cases import planned_by_law
from fusion_core.runs.measure import GREEDY, THEORY, measure_alone, measure_growth
from fusion_core.runs.node_files import MODEL
from fusion_core.runs.plan import FuseNode, Plan, TrainNode, plan_values
from fusion_core.sealed import read_sealed
from fusion_core.text.json_files import LARGE, read_json
from fusion_core.timings import Timings
from fusion_core.train import Metrics, Trainer
from fusion_core.train.devices import first_process
from fusion_core.train.training import METRICS

PLAN, RESULTS = "plan.json", "results.json"
_REMOVE = "remove it, and that folder's theory.jsonl: they are made again"


def run_plan(
    plan: Plan,
    folder: pathlib.Path,
    *,
    only: str | None = None,
    peak_flops: float | None = None,
    show: Callable[[dict[str, Any]], None] = lambda record: None,
    note: Callable[[str], None] = lambda line: None,
    begin: Callable[[str, int, int], None] = lambda name, step, until: None,
    trainers: dict[Any, Trainer] | None = None,
    timings: Timings | None = None,
) -> dict[str, Any] | None:
    """Run a plan in a folder, or resume it; the processes of a run all call this, with a folder that all can read.

    A plan with several seeds has a folder ``seed-N`` for each, with its nodes; the text is read once. The folder is locked
    (``fusion_core.lock``), with ``only`` that node of it, and what a killed process has left half written there is removed.

    Args:
      plan: to run.
      folder: of the run.
      only: run this node alone (an ``auto`` node with its group); its inputs must be finished and their folders there.
      peak_flops: FLOP/s of all devices together, for the MFU; if None, what is known of their kind.
      show: called with every record of the metrics.
      note: called with sentences for the user.
      begin: called when a node begins, with its name, its first step and its last.
      trainers: compiled steps of an earlier run in this process, to be used again.
      timings: of the parts of the run up to its first step; if None, they are not kept.

    Returns:
      The results (also in ``results.json``; ``fusion_core.runs.compare`` has their format); None if nodes are missing.

    Raises:
      InputError: the plan cannot run, its text is too short, the folder is of another run, or another process works in it.
      Interrupted, TrainingDiverged: as ``Training.to``.
    """
    nodes = {resolved.name: resolved for resolved in resolve(plan, jax.device_count())}
    if only is not None:
        plan.node(only)  # raises, and lists the nodes
    atomic.check_apart(folder, map(pathlib.Path, filter(None, [*plan.data.text, plan.data.tokenizer])))
    mine = _names_of(plan, only)
    with locked(folder, mine) if first_process() else contextlib.nullcontext():
        if first_process():
            for place in [place / NODES / name for place in _places(plan, folder).values() for name in mine] or [
                folder
            ]:
                atomic.sweep(place)
        return _run_locked(
            plan,
            folder,
            nodes,
            only,
            peak_flops,
            show,
            note,
            begin,
            {} if trainers is None else trainers,
            timings or Timings(),
        )


def _names_of(plan: Plan, only: str | None) -> tuple[str, ...]:
    """Return the nodes that are run with one of them, an ``auto`` node's group; none if all of the plan are run."""
    groups = [group.names for group in auto_groups(plan) if only in group.names]
    return () if only is None else groups[0] if groups else (only,)


def _places(plan: Plan, folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Return the folder of each seed."""
    return {seed: folder / f"seed-{seed}" for seed in plan.seeds} or {plan.seed: folder}


def _run_locked(
    plan: Plan,
    folder: pathlib.Path,
    nodes: dict[str, Resolved],
    only: str | None,
    peak_flops: float | None,
    show: Callable[[dict[str, Any]], None],
    note: Callable[[str], None],
    begin: Callable[[str, int, int], None],
    trainers: dict[Any, Trainer],
    timings: Timings,
) -> dict[str, Any] | None:
    """Run a plan in a folder that no other process works in."""
    _check_folder(plan, folder)
    data = RunData(plan.data, plan.seed, folder / "data", note, timings)
    data.check(resolved for name, resolved in nodes.items() if only in (None, name))
    for group in auto_groups(plan):
        planned_by_law(plan, nodes, group, data.digest)  # raises if the law is of other settings
    found: dict[int, dict[str, Any]] = {}
    for seed, place in _places(plan, folder).items():
        if len(plan.seeds) > 1:
            note(f"seed {seed}")
        context = RunContext(plan, seed, place, data, peak_flops, show, note, begin, trainers, timings)
        try:
            _run(context, nodes, only)
        finally:
            context.writer.wait()
        if all(context.done(name) is not None for name in nodes):
            found[seed] = collect(context, nodes)
    if len(found) < len(plan.seeds or (plan.seed,)):
        return None
    results = {
        "name": plan.name,
        "nodes": next(iter(found.values())),
        "seeds": {str(seed): nodes for seed, nodes in found.items()} if plan.seeds else {},
        "comparison": compare_arms(list(found.values()), budget_flops(plan, nodes)),
        "provenance": provenance(),
    }
    if first_process():
        atomic.write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _run(context: RunContext, nodes: dict[str, Resolved], only: str | None) -> None:
    """Run the nodes of one seed that are wanted and not finished."""
    groups = {name: group for group in auto_groups(context.plan) for name in group.names}
    for name, resolved in nodes.items():
        if isinstance(resolved.node, FuseNode) and resolved.node.never_parting and context.done(name) is None:
            twice = ", ".join(resolved.node.never_parting)
            context.note(
                f"{name}: with off_diagonal = 'zero' the copies of {twice} have equal gradients, and rounding alone parts "
                f"them; off_diagonal = 'antisymmetric' with noise = {SELF_FUSION_NOISE} keeps the function and parts them"
            )
    for name, resolved in nodes.items():
        wanted = only is None or only == name or (only in groups and groups[only] is groups.get(name))
        if not wanted or context.done(name) is not None:
            continue
        if name in groups:
            AutoGrowth(context, nodes, groups[name]).run()
            _measure(context, nodes, groups[name])
        elif isinstance(resolved.node, TrainNode):
            _train(context, nodes, resolved, only is None)
        else:
            sources = {n: nodes[n] for n in resolved.node.inputs}
            state = grown_state(context, resolved, sources, {n: context.result(r) for n, r in sources.items()})
            context.save_result(resolved, state)
            if context.plan.measure:
                measure_growth(context, resolved, sources)
            facts: dict[str, Any] = {"flops": resolved.flops} if resolved.flops else {}
            context.finish(resolved, state, **facts)
            context.note(f"{name}: from {', '.join(resolved.node.inputs)} at step {int(state.step)}")
    if context.plan.measure:
        growing = {name for r in nodes.values() if not isinstance(r.node, TrainNode) for name in r.node.inputs}
        for name, resolved in nodes.items():  # the sources of a growth are measured with it
            if isinstance(resolved.node, TrainNode) and name not in growing and context.done(name) is not None:
                measure_alone(context, resolved)


def _measure(context: RunContext, nodes: dict[str, Resolved], group: AutoGroup) -> None:
    if context.plan.measure:
        measure_growth(context, nodes[group.event.name], {node.name: nodes[node.name] for node in group.sources})


def _check_folder(plan: Plan, folder: pathlib.Path) -> None:
    """Write the plan into a new folder, and compare it with the one in an old folder."""
    said = json.dumps(plan_values(plan), indent=2) + "\n"
    file = folder / PLAN
    if not file.exists():
        if first_process():
            atomic.write_text(file, said)
        return
    old = read_json(file, "take another folder, or remove the file to go on with the same plan", longest=LARGE)
    differ = [key for key, value in json.loads(said).items() if old.get(key) != value]
    if differ:
        raise InputError(
            f"{folder} is of another plan: {', '.join(differ)} differ{'s' if len(differ) == 1 else ''}; give the plan that it "
            "was begun with, or another folder"
        )


def _spent(context: RunContext, nodes: Mapping[str, Resolved], inputs: tuple[str, ...]) -> dict[str, float]:
    """Return the FLOPs of finished nodes and of all their ancestors, each once."""
    spent: dict[str, float] = {}
    for name in dict.fromkeys(inputs):
        spent |= {**_spent(context, nodes, nodes[name].node.inputs), name: (context.done(name) or {}).get("flops", 0.0)}
    return spent


def _train(context: RunContext, nodes: dict[str, Resolved], resolved: Resolved, goes_on: bool) -> None:
    """Train a node; ``goes_on``: whether this process runs the nodes after it too."""
    node = resolved.node
    assert isinstance(node, TrainNode)
    source, position = None, None
    if node.source_node:
        before = nodes[node.source_node]
        source, position = (before, context.result(before)), context.position_after(before, node)
    start = first_state(context, resolved, source)
    first, seconds, steps = int(start.step), time.perf_counter(), resolved.steps
    if steps is None:
        spent, budget = math.fsum(_spent(context, nodes, node.inputs).values()), budget_flops(context.plan, nodes)
        dispatch = context.plan.steps_per_dispatch * resolved.step_flops
        left = budget is None or budget - spent >= dispatch
        steps = steps_within(context.plan, node, resolved.step_flops, budget, spent) if left else 0
    begun = lambda: compile_ahead(context, nodes, node.name) if goes_on else None
    training = training_of(context, resolved, start, steps, position=position, begun=begun, writer=context.writer)
    context.begin(node.name, first, first + steps)
    state = training.to(start, first + steps)
    if int(state.step) == first:
        context.save_result(resolved, state)
    context.finish(
        resolved,
        state,
        start=first,
        flops=(int(state.step) - first) * resolved.step_flops,
        seconds=time.perf_counter() - seconds,
    )


def collect(context: RunContext, nodes: Mapping[str, Resolved]) -> dict[str, Any]:
    """Return of every node its facts, its losses, and the FLOPs of all nodes before it."""
    found = {}
    for name, resolved in nodes.items():
        facts = context.done(name) or {}
        before = math.fsum(_spent(context, nodes, resolved.node.inputs).values())
        context.check_model(name)
        context.check_checkpoint(resolved)
        folder, metrics = context.folder_of(name), context.metrics(name)
        pick = lambda key, metrics=metrics: [(r["step"], r[key]) for r in metrics.records if key in r]
        validation = pick("validation_loss")
        found[name] = {
            **{key: value for key, value in facts.items() if key not in (METRICS, MODEL)},
            "arm": getattr(resolved.node, "arm", ""),
            "inputs": list(dict.fromkeys(resolved.node.inputs)),
            "d_model": resolved.config.d_model,
            "step_flops": resolved.step_flops,
            "before_flops": before,
            "total_flops": before + float(facts.get("flops", 0.0)),
            "loss": pick("loss"),
            "validation_loss": validation,
            "steps_per_second": pick("steps_per_second"),
            "tokens_per_second": pick("tokens_per_second"),
            "input_wait": pick("input_wait"),
            "final": validation[-1][1] if validation else None,
            "theory": Metrics(folder / THEORY).records,
            "greedy": read_sealed(folder / GREEDY, _REMOVE) if (folder / GREEDY).exists() else None,
        }
    return found
