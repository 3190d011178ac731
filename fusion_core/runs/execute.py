"""A plan from its first node to its last; whatever is finished is not done again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.provenance import provenance
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import Auto, Resolved, auto_groups, resolve
from fusion_core.runs.nodes import Workshop, first_state, fused_state, identity, save_result, state_shapes, training_of
from fusion_core.runs.schema import FuseNode, Plan, TrainNode
from fusion_core.schedule import Trial, TrialRule, follow_rule, stops_of
from fusion_core.train import Metrics, TrainState
from fusion_core.train.run import CHECKPOINTS, METRICS, Training
from fusion_core.train.store import Checkpoints

PLAN, RESULTS, RULE = "plan.json", "results.json", "online.json"
TRIAL_BATCHES = 16  # fresh ones that a trial of growing is judged on


def run_plan(
    plan: Plan,
    folder: pathlib.Path,
    *,
    only: str | None = None,
    peak_flops: float | None = None,
    show: Callable[[dict[str, Any]], None] = lambda record: None,
    note: Callable[[str], None] = lambda line: None,
    begin: Callable[[str, int, int], None] = lambda name, step, until: None,
) -> dict[str, Any] | None:
    """Runs a plan in a folder, or goes on with it; the processes of a run all call this, with a folder that all see.

    Args:
      plan: to run.
      folder: of the run.
      only: this node alone (``auto`` nodes: with their group); its inputs must be finished and their folders there.
      peak_flops: of all devices together, a second, for the MFU; None: not known.
      show, note, begin: are told of every record, of what a user should read, and that a node begins at a step.

    Returns:
      What the report is written from, also in ``results.json``; None where nodes are missing.

    Raises:
      InputError: the plan cannot run, its text is too short, or the folder is of another run.
      Interrupted, TrainingDiverged: as ``Training.to``.
    """
    nodes = {resolved.name: resolved for resolved in resolve(plan, jax.device_count())}
    if only is not None:
        plan.node(only)  # says which there are
    groups = {name: group for group in auto_groups(plan) for name in group.names}
    _check_folder(plan, folder)
    data = RunData(plan.data, plan.seed, folder / "data", note)
    shop = Workshop(plan, folder, data, peak_flops, show, note, begin)
    for name, resolved in nodes.items():
        wanted = only is None or only == name or (only in groups and groups[only] is groups.get(name))
        if not wanted or shop.done(name) is not None:
            continue
        if name in groups:
            _Group(shop, nodes, groups[name]).run()
        elif isinstance(resolved.node, FuseNode):
            sources = {n: nodes[n] for n in resolved.node.sources}
            state = fused_state(shop, resolved, sources, {n: shop.result(r) for n, r in sources.items()})
            save_result(shop, resolved, state)
            shop.finish(resolved, state, **_facts(resolved, state))
            note(f"{name}: fused from {', '.join(resolved.node.sources)} at step {int(state.step)}")
        else:
            _train(shop, nodes, resolved)
    if any(shop.done(name) is None for name in nodes):
        return None
    results = collect(shop, nodes)
    if jax.process_index() == 0:
        atomic.write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _check_folder(plan: Plan, folder: pathlib.Path) -> None:
    """Writes what the plan says into a new folder, and compares it with what is in an old one."""
    said = json.dumps(dataclasses.asdict(plan), indent=2) + "\n"
    file = folder / PLAN
    if not file.exists():
        if jax.process_index() == 0:
            atomic.write_text(file, said)
    elif file.read_text(encoding="utf-8") != said:
        old, new = (json.loads(text) for text in (file.read_text(encoding="utf-8"), said))
        differ = [key for key in new if old.get(key) != new[key]]
        raise InputError(
            f"{folder} is of another plan: {', '.join(differ)} differ{'s' if len(differ) == 1 else ''}; give the plan that it "
            "was begun with, or another folder"
        )


def _facts(resolved: Resolved, state: TrainState, **more: Any) -> dict[str, Any]:
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    return {"parameters": parameters, "kind": "fuse" if isinstance(resolved.node, FuseNode) else "train", **more}


def _train(shop: Workshop, nodes: dict[str, Resolved], resolved: Resolved) -> None:
    node = resolved.node
    assert isinstance(node, TrainNode)
    assert node.steps is not None
    source = None
    if node.source_node:
        before = nodes[node.source_node]
        source = before, shop.result(before)
    start = first_state(shop, resolved, source)
    first, seconds = int(start.step), time.perf_counter()
    training = training_of(shop, resolved, start, node.steps)
    shop.begin(node.name, first, first + node.steps)
    state = training.to(start, first + node.steps)
    seconds = time.perf_counter() - seconds
    shop.finish(
        resolved, state, **_facts(resolved, state, start=first, flops=node.steps * resolved.step_flops, seconds=seconds)
    )


class _Group:
    """Sources, their fusion and the grown network, at the steps that the online rule decides."""

    def __init__(self, shop: Workshop, nodes: dict[str, Resolved], group: Auto) -> None:
        self.shop, self.nodes, self.group = shop, nodes, group
        self.fuse, self.grown = nodes[group.fuse.name], nodes[group.grown.name]
        self.sources = {node.name: nodes[node.name] for node in group.sources}
        self.file = shop.folder_of(self.grown.name) / RULE
        small = sum(source.step_flops for source in self.sources.values()) / len(self.sources)
        assert group.grown.budget is not None
        self.growth = (
            TrialRule.load(self.file)
            if self.file.exists()
            else TrialRule.start(
                sources=len(self.sources),
                small_flops=small,
                grown_flops=self.grown.step_flops,
                total_flops=group.grown.budget * self.grown.step_flops,
                batches=TRIAL_BATCHES,
                dispatch=shop.plan.steps_per_dispatch,
                cost_limit=group.grown.cost_limit,
            )
        )

    def _save(self, growth: TrialRule) -> None:
        if jax.process_index() == 0:
            growth.save(self.file)
        self.growth = growth

    def _training(self, name: str) -> tuple[Training, TrainState]:
        start = first_state(self.shop, self.sources[name], None)
        steps = self.growth.state.last_step
        return training_of(self.shop, self.sources[name], start, steps, pinned=stops_of(self.growth)), start

    def train_sources(self, until: int) -> None:
        """All sources to a step; a source that has been there is left alone."""
        for name in self.sources:
            training, start = self._training(name)
            at = [step for step in training.checkpoints.steps() if step >= until]
            if not at:
                self.shop.begin(name, max(training.checkpoints.steps(), default=0), until)
                training.to(start, until)
        self.shop.together(f"the sources stand at {until}")

    def source_at(self, name: str, step: int) -> TrainState:
        """A source as it was at a step."""
        source = self.sources[name]
        store = Checkpoints(self.shop.folder_of(name) / CHECKPOINTS, identity(self.shop, source))
        found = store.restore(state_shapes(source.config, source.optimizer), step)
        assert found is not None
        return found[0]

    def fused_at(self, step: int) -> TrainState:
        """What is fused from the sources as they were at a step."""
        states = {name: self.source_at(name, step) for name in self.sources}
        return fused_state(self.shop, self.fuse, self.sources, states)

    def _losses(self, training: Training, state: TrainState, trial: Trial) -> list[float]:
        grown = self.group.grown
        batches = self.shop.data.fresh(grown.length, grown.batch, trial.step, TRIAL_BATCHES)
        return [training.trainer.evaluate(state.params, [batch]) for batch in batches]

    def source_losses(self, trial: Trial, step: int) -> list[list[float]]:
        """See ``follow_rule``."""
        return [self._losses(self._training(name)[0], self.source_at(name, step), trial) for name in self.sources]

    def _grown(self, step: int, until: int, work: str, pinned: tuple[int, ...] = ()) -> tuple[Training, TrainState]:
        start = first_state(self.shop, self.grown, (self.fuse, self.fused_at(step)))
        folder = self.shop.folder_of(self.grown.name) / work
        return training_of(self.shop, self.grown, start, until - step, pinned=pinned, folder=folder), start

    def grown_losses(self, trial: Trial) -> np.ndarray:
        """See ``follow_rule``."""
        stops = (trial.grown_half, trial.grown_end)
        training, start = self._grown(trial.step, trial.grown_end, _work(trial.step), stops)
        losses = []
        for stop in stops:
            if stop not in training.checkpoints.steps():
                self.shop.begin(self.grown.name, trial.step, stop)
                training.to(start, stop)
            self.shop.together(f"the trial stands at {stop}")
            found = training.checkpoints.restore(start, stop)
            assert found is not None
            losses.append(self._losses(training, found[0], trial))
        return np.asarray(losses)

    def run(self) -> None:
        """Decides, fuses, and trains the grown network for the rest of the budget."""
        seconds = time.perf_counter()
        follow_rule(
            self.growth,
            train_sources=self.train_sources,
            source_losses=self.source_losses,
            grown_losses=self.grown_losses,
            save=self._save,
        )
        growth, grown = self.growth, self.grown
        step = growth.state.last_step if growth.step is None else growth.step
        self.train_sources(step)
        reason = growth.reason
        self.shop.note(f"{grown.name}: {reason}")
        for name, source in self.sources.items():
            state = self.source_at(name, step)
            self.shop.finish(source, state, **_facts(source, state, start=0, flops=step * source.step_flops))
        state = self.fused_at(step)
        save_result(self.shop, self.fuse, state)
        self.shop.finish(self.fuse, state, **_facts(self.fuse, state))
        small = step * sum(source.step_flops for source in self.sources.values())
        chunk = self.shop.plan.steps_per_dispatch
        left = max(0.0, growth.total_flops - growth.lost_flops - small)
        until = step + int(left / grown.step_flops) // chunk * chunk
        work = "." if growth.kept is None else _work(step)  # a trial that has won is gone on with
        training, start = self._grown(step, until, work)
        self.shop.begin(grown.name, step, until)
        state = training.to(start, until)
        if until == step:
            save_result(self.shop, grown, state)
        self.shop.finish(
            grown,
            state,
            work,
            **_facts(
                grown,
                state,
                start=step,
                flops=growth.lost_flops + (until - step) * grown.step_flops,
                seconds=time.perf_counter() - seconds,
                rule={
                    "step": growth.step,
                    "reason": reason,
                    "lost_trials": len(growth.lost_trials),
                    "lost_share": growth.lost_flops / growth.total_flops,
                },
            ),
        )


def _work(step: int) -> str:
    """The folder, within the grown node's, of the trial at a step."""
    return f"trial-{step}"


def collect(shop: Workshop, nodes: dict[str, Resolved]) -> dict[str, Any]:
    """Of every node: what it left, its losses, and the FLOPs of all nodes before it."""
    found = {}
    spent: dict[str, dict[str, float]] = {}  # node -> the FLOPs of itself and each of its ancestors, each once
    for name, resolved in nodes.items():
        facts = shop.done(name) or {}
        own = {name: float(facts.get("flops", 0.0))}
        for before in resolved.node.inputs:
            own |= spent[before]
        spent[name] = own
        metrics = Metrics(shop.folder_of(name) / facts.get("work", ".") / METRICS)
        pick = lambda key, metrics=metrics: [(r["step"], r[key]) for r in metrics.records if key in r]
        validation = pick("validation_loss")
        found[name] = {
            **facts,
            "inputs": list(dict.fromkeys(resolved.node.inputs)),
            "d_model": resolved.config.d_model,
            "step_flops": resolved.step_flops,
            "before_flops": sum(own.values()) - own[name],
            "total_flops": sum(own.values()),
            "loss": pick("loss"),
            "validation_loss": validation,
            "tokens_per_second": pick("tokens_per_second"),
            "input_wait": pick("input_wait"),
            "final": validation[-1][1] if validation else None,
        }
    return {"name": shop.plan.name, "nodes": found, "provenance": provenance()}
