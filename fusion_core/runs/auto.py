"""Groups with ``steps = "auto"``: follow a law or the online rule, grow at its step, train on for the rest of the budget."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from fusion_core.runs.ahead import compile_ahead
from fusion_core.runs.context import RunContext, first_state, training_of
from fusion_core.runs.graph import AutoGroup, Resolved
from fusion_core.runs.growing import grown_state
from fusion_core.runs.law_cases import planned_by_law
from fusion_core.schedule import Trial, TrialRule, follow_rule, stops_of
from fusion_core.train import TrainState
from fusion_core.train.devices import barrier, first_process
from fusion_core.train.training import Training

RULE = "online.json"
TRIAL_BATCHES = 16  # fresh ones on which a trial of growing is judged


class AutoGrowth:
    """Sources, their growth and the grown network, at the steps that the online rule decides."""

    def __init__(self, context: RunContext, nodes: Mapping[str, Resolved], group: AutoGroup) -> None:
        self.context, self.nodes, self.group = context, nodes, group
        self.event, self.grown = nodes[group.event.name], nodes[group.grown.name]
        self.sources = {node.name: nodes[node.name] for node in group.sources}
        self.file = context.folder_of(self.grown.name) / RULE
        small = sum(source.step_flops for source in self.sources.values()) / len(self.sources)
        assert self.grown.flops is not None
        if self.file.exists():
            self.rule = TrialRule.load(self.file)
            return
        rule = TrialRule.start(
            sources=len(self.sources),
            small_flops=small,
            grown_flops=self.grown.step_flops,
            total_flops=self.grown.flops,
            batches=TRIAL_BATCHES,
            dispatch=context.plan.steps_per_dispatch,
            cost_limit=group.grown.cost_limit,
        )
        law = planned_by_law(context.plan, nodes, group, context.data.digest)
        if law is not None and law.holds:
            self._save(rule.settled(law.step, law.reason))
        elif law is not None:
            self._save(dataclasses.replace(rule, before=f"{law.reason} The online rule decides."))
        else:
            self.rule = rule

    def _save(self, rule: TrialRule) -> None:
        if first_process():
            rule.save(self.file)
        self.rule = rule

    def _training(self, name: str) -> tuple[Training, TrainState]:
        start = first_state(self.context, self.sources[name], None)
        steps = self.rule.state.last_step
        begun = lambda: compile_ahead(self.context, self.nodes, name)
        return training_of(
            self.context, self.sources[name], start, steps, pinned=stops_of(self.rule), begun=begun
        ), start

    def train_sources(self, until: int) -> None:
        """Train all sources to a step; one that has been there is left alone."""
        for name in self.sources:
            training, start = self._training(name)
            if not any(step >= until for step in training.checkpoints.steps()):
                self.context.begin(name, max(training.checkpoints.steps(), default=0), until)
                training.to(start, until)
        barrier(f"the sources stand at {until}")

    def grown_at(self, step: int) -> TrainState:
        """Return the state after growing the sources as they were at a step."""
        states = {name: self.context.state_at(source, step) for name, source in self.sources.items()}
        return grown_state(self.context, self.event, self.sources, states)

    def _losses(self, training: Training, state: TrainState, trial: Trial) -> list[float]:
        grown = self.group.grown
        batches = self.context.data.fresh(grown.length, grown.batch, trial.step, TRIAL_BATCHES)
        return [training.trainer.scores(state.params, [batch])["loss"] for batch in batches]

    def source_losses(self, trial: Trial, step: int) -> list[list[float]]:
        """Return each source's losses on the trial's fresh batches, at a step of it."""
        return [
            self._losses(self._training(name)[0], self.context.state_at(source, step), trial)
            for name, source in self.sources.items()
        ]

    def _grown(self, step: int, until: int, work: str, pinned: tuple[int, ...] = ()) -> tuple[Training, TrainState]:
        start = first_state(self.context, self.grown, (self.event, self.grown_at(step)))
        return training_of(self.context, self.grown, start, until - step, pinned=pinned, work=work), start

    def grown_losses(self, trial: Trial) -> np.ndarray:
        """Return the grown network's losses at a trial's half and end, [2, batches]."""
        stops = (trial.grown_half, trial.grown_end)
        training, start = self._grown(trial.step, trial.grown_end, _work(trial.step), stops)
        losses = []
        for stop in stops:
            if stop not in training.checkpoints.steps():
                self.context.begin(self.grown.name, trial.step, stop)
                training.to(start, stop)
            barrier(f"the trial stands at {stop}")
            found = training.checkpoints.restore(start, stop)
            assert found is not None
            losses.append(self._losses(training, found[0], trial))
        return np.asarray(losses)

    def run(self) -> None:
        """Decide, grow, and train the grown network for the rest of the budget."""
        seconds = time.perf_counter()
        follow_rule(
            self.rule,
            train_sources=self.train_sources,
            source_losses=self.source_losses,
            grown_losses=self.grown_losses,
            save=self._save,
        )
        rule, grown, context = self.rule, self.grown, self.context
        step = rule.state.last_step if rule.step is None else rule.step
        self.train_sources(step)
        reason = rule.reason
        context.note(f"{grown.name}: {reason}")
        for source in self.sources.values():
            context.finish(source, context.state_at(source, step), start=0, flops=step * source.step_flops)
        state = self.grown_at(step)
        context.save_result(self.event, state)
        context.finish(self.event, state)
        context.writer.wait()
        small = step * sum(source.step_flops for source in self.sources.values())
        chunk = context.plan.steps_per_dispatch
        left = max(0.0, rule.total_flops - rule.lost_flops - small)
        until = step + int(left / grown.step_flops) // chunk * chunk
        work = "." if rule.kept is None else _work(step)  # a trial that has won is continued
        training, start = self._grown(step, until, work)
        context.begin(grown.name, step, until)
        state = training.to(start, until)
        if until == step:
            context.save_result(grown, state)
        decision = {
            "rule": "law" if rule.by_other else "online",
            "step": rule.step,
            "reason": reason,
            "lost_trials": len(rule.lost_trials),
            "lost_share": rule.lost_flops / rule.total_flops,
        }
        context.finish(
            grown,
            state,
            work,
            start=step,
            flops=rule.lost_flops + (until - step) * grown.step_flops,
            lost_flops=rule.lost_flops,
            seconds=time.perf_counter() - seconds,
            rule=decision,
        )


def _work(step: int) -> str:
    """Return the folder, within the grown node's, of the trial at a step."""
    return f"trial-{step}"
