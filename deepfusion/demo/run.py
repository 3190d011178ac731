"""The arms of a demo run: what is trained, in which order, from which state; every arm ends at the same FLOPs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from deepfusion.demo.data import TOKENIZER, DemoData
from deepfusion.demo.settings import DemoSettings
from deepfusion.progress import progress_bars
from fusion_core import atomic
from fusion_core.checkpoints.pretrained import write_pretrained
from fusion_core.errors import InputError
from fusion_core.growth import fusion_map, rate_factors
from fusion_core.models.t5 import T5Config, init, parameter_shapes, token_loss
from fusion_core.provenance import provenance
from fusion_core.schedule import (
    GrowthDecision,
    GrowthMeter,
    TrainedNetwork,
    Trial,
    TrialRule,
    factors_by_name,
    follow_rule,
    greedy_decision,
    stops_of,
)
from fusion_core.text import Tokenizer
from fusion_core.train import (
    Interrupted,
    Metrics,
    Trainer,
    TrainState,
    adafactor,
    grow_states,
    init_state,
    load_state,
    save_state,
    t5_loss,
    t5_schedule,
)
from fusion_core.train.loop import graceful_interrupt

SETTINGS, METRICS, RESULTS, CHECKPOINT = "settings.json", "metrics.jsonl", "results.json", "checkpoint"
ONLINE, PLAN = "online.json", "plan.json"

# Where the rule answers "not within this budget", the growth that is shown all the same: the share of the budget after
# which growing did best among fixed shares (theory.md, section 6).
FALLBACK_SHARE = 0.2
# A seed of its own for every purpose; the training streams have the seeds of their networks.
SEEDS = {"a": 0, "b": 1, "scratch": 2, "grown": 3, "updates": 4, "probes": 5, "trial": 6}

ARMS = {
    "grown": "grown by the online rule",
    "greedy": "grown by the greedy rule",
    "late": "grown later, at most at twice the step",
    "scratch": "large from scratch",
    "never": "two small ones, fused at the end",
    "one_small": "one small one, the whole budget",
}
GROWN = ("grown", "greedy", "late")


def stops(total: int, chunk: int) -> list[int]:
    """Steps at which a run of ``total`` steps is evaluated: 2, 3, 4, 6, 8, 12, ... dispatches, then the end."""
    grid = {chunk * base << power for power in range(40) for base in (2, 3)}
    return sorted({s for s in grid if s < total} | {total})


class DemoRun:
    """One run in its folder. Everything that is finished is found there again by a resumed run."""

    def __init__(self, settings: DemoSettings, folder: pathlib.Path, progress: Progress) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        self.metrics = Metrics(folder / METRICS)
        self.data = DemoData(settings, folder, progress)
        self.mapping = fusion_map([settings.small, settings.small])
        small, large, total = settings.flops(settings.small), settings.flops(settings.large), settings.total_flops
        self.small_flops, self.large_flops = small, large
        self.optimizer = adafactor(t5_schedule())
        self.small, self.large = self._trainer(settings.small), self._trainer(settings.large)
        self.factors = rate_factors(parameter_shapes(settings.small), settings.small, 2, "adafactor")
        self.meter = GrowthMeter(
            TrainedNetwork(_mean_loss(settings.small), self.optimizer, small),
            TrainedNetwork(_mean_loss(settings.large), self.optimizer, large),
            self.mapping,
            self.factors,
        )
        self.grow_states = jax.jit(lambda states: grow_states(self.mapping, states, self.factors))
        chunk = settings.steps_per_dispatch
        self.source_steps = int(total / (2 * small)) // chunk * chunk
        self.one_small_steps = int(total / small) // chunk * chunk
        self.online = self._load_online()

    # What is trained, and how.

    def _trainer(self, config: T5Config) -> Trainer:
        return Trainer(t5_loss(config), self.optimizer, self.settings.batch, self.settings.steps_per_dispatch)

    def _fresh(self, config: T5Config, name: str, rate: float) -> TrainState:
        params = init(config, self._seed(name), match_cross_attention=self.settings.match_cross_attention)
        return init_state(params, self.optimizer, rate)

    def _fresh_sources(self) -> tuple[TrainState, ...]:
        return tuple(self._fresh(self.settings.small, name, self.settings.small_rate) for name in "ab")

    def _seed(self, name: str) -> int:
        return self.settings.seed * 100 + SEEDS[name]

    def _stream(self, name: str) -> Any:
        return self.data.train.with_seed(self._seed(name)).batch

    def _arm_file(self, arm: str) -> pathlib.Path:
        return self.folder / "states" / f"{arm}.safetensors"

    def _bar(self, name: str, total: int, done: int) -> Any:
        return self.progress.add_task(name, total=total, completed=done)

    def _train_arm(
        self,
        arm: str,
        trainer: Trainer,
        start: TrainState,
        stream: str,
        total: int,
        flops: Any,
        *,
        first: int | None = None,
        further: Sequence[int] = (),
        besides: Any = None,
    ) -> TrainState:
        """Trains one network from ``start`` to step ``total``, evaluated at the stops on the way.

        Args:
          arm, trainer, start, stream, total: see above.
          flops: of a step: what the arm has cost when its network stands there, sources included.
          first: the step from which the stops are counted; None: start's.
          further: stops.
          besides: of a state: what else to record at every stop.
        """
        file = self._arm_file(arm)
        state = load_state(file, start)[0] if file.exists() else start
        self.metrics.keep(lambda r: r["arm"] != arm or r["step"] <= int(state.step))
        seen = {r["step"] for r in self.metrics.of(arm=arm)}
        first = int(start.step) if first is None else first
        name = f"grown at step {first}" if arm in GROWN else ARMS.get(arm, arm)
        bar = self._bar(name, total - first, int(state.step) - first)
        relative = stops(total - first, self.settings.steps_per_dispatch) if total > first else []
        try:
            for stop in sorted({first, *further, *(first + s for s in relative)}):
                if stop < int(state.step) or stop in seen:
                    continue
                state, _ = trainer.advance(
                    state, self._stream(stream), stop, on_dispatch=lambda n: self.progress.advance(bar, n)
                )
                loss = trainer.evaluate(state.params, self.data.validation)
                record = {"arm": arm, "step": stop, "flops": flops(stop), "loss": loss}
                if besides is not None:
                    record |= besides(state)
                save_state(file, state)
                self.metrics.write(record)
        except Interrupted as stopped:
            save_state(file, stopped.state)
            raise
        return state

    # The sources, and what theory says along them.

    def _source_file(self, step: int | None) -> pathlib.Path:
        return self.folder / "states" / ("sources.safetensors" if step is None else f"sources-{step}.safetensors")

    def _source_stops(self) -> list[int]:
        """Where the sources are evaluated and kept: the stops, what the online rule asks for, and where "late" grows."""
        online, wanted = self.online, {0, *stops(self.source_steps, self.settings.steps_per_dispatch)}
        wanted |= stops_of(online)
        if online.step is not None:
            wanted.add(self.later(online.step))
        return sorted(wanted)

    def later(self, step: int) -> int:
        """Twice the step, at most half-way to the end."""
        chunk = self.settings.steps_per_dispatch
        return min(2 * step, (step + self.source_steps) // 2) // chunk * chunk

    def train_sources(self, until: int) -> tuple[TrainState, ...]:
        """Trains the two sources side by side, to step ``until``, one of their stops."""
        states = self._fresh_sources()
        if self._source_file(None).exists():
            states = load_state(self._source_file(None), states)[0]
        done = min(int(state.step) for state in states)
        self.metrics.keep(lambda r: r["arm"] != "sources" or r["step"] <= done)
        bar = self._bar("the two sources", 2 * self.source_steps, sum(int(s.step) for s in states))
        try:
            for stop in self._source_stops():
                if stop > until:
                    break
                if stop < done or self.metrics.of(arm="sources", step=stop):
                    continue
                for i, name in enumerate("ab"):
                    if int(states[i].step) < stop:
                        try:
                            state, _ = self.small.advance(
                                states[i], self._stream(name), stop, lambda n: self.progress.advance(bar, n)
                            )
                        except Interrupted as stopped:
                            states = (*states[:i], stopped.state, *states[i + 1 :])
                            raise Interrupted(stopped.state) from None
                        states = (*states[:i], state, *states[i + 1 :])
                fused = self.grow_states(states)
                record = {"arm": "sources", "step": stop, "flops": stop * 2 * self.small_flops}
                for name, params in (("a", states[0].params), ("b", states[1].params)):
                    record[f"validation_{name}"] = self.small.evaluate(params, self.data.validation)
                record["validation_fused"] = self.large.evaluate(fused.params, self.data.validation)
                if stop:
                    # before the first step Adafactor has no statistics to freeze
                    record |= self._measure(states, stop)
                save_state(self._source_file(stop), states)
                save_state(self._source_file(None), states)
                self.metrics.write(record)
        except Interrupted:
            save_state(self._source_file(None), states)
            raise
        return states

    def _measure(self, states: Sequence[TrainState], step: int) -> dict[str, float]:
        pairs, size = range(self.settings.pairs), self.settings.batch
        # training text, in another order than any network's: neither the updates' batches nor the validation's
        updates = [self._stream("updates")(step * len(pairs) + i, size) for i in pairs]
        probes = [self._stream("probes")(step * len(pairs) + i, size) for i in pairs]
        return self.meter.measure(states, updates, probes)

    def theory(self) -> list[dict[str, Any]]:
        """The records with theory's terms, in order."""
        return [r for r in self.metrics.of(arm="sources") if "small_rate" in r]

    def greedy(self) -> GrowthDecision:
        """What the greedy rule says of the records so far."""
        records = self.theory()
        if not records:
            return GrowthDecision(None, None, {}, "Nothing is measured yet.", "greedy")
        return greedy_decision(records, self.settings.small_rate, self.factors)

    # The online rule, and its trials.

    def _load_online(self) -> TrialRule:
        if (self.folder / ONLINE).exists():
            return TrialRule.load(self.folder / ONLINE)
        return TrialRule.start(
            sources=2,
            small_flops=self.small_flops,
            grown_flops=self.large_flops,
            total_flops=self.settings.total_flops,
            batches=self.settings.trial_batches,
            dispatch=self.settings.steps_per_dispatch,
            trial_share=self.settings.trial_share,
            cost_limit=self.settings.cost_limit,
        )

    def decide(self) -> GrowthDecision:
        """Trains the sources, with trials of growing, until the online rule has decided."""

        def save(online: TrialRule) -> None:
            online.save(self.folder / ONLINE)
            self.online = online

        follow_rule(
            self.online,
            train_sources=self.train_sources,
            source_losses=self._source_losses,
            grown_losses=self._try,
            save=save,
        )
        return self.online.decision(self.settings.small_rate, self.factors)

    def _trial_losses(self, trainer: Trainer, state: TrainState, trial: Trial) -> list[float]:
        """Mean losses on fresh batches: training text in another order than any network's, the same for all of a trial."""
        count, size = self.settings.trial_batches, self.settings.batch
        batches = [self._stream("trial")(trial.step * count + i, size) for i in range(count)]
        return [trainer.evaluate(state.params, [batch]) for batch in batches]

    def _sources_at(self, step: int) -> tuple[TrainState, ...]:
        return load_state(self._source_file(step), self._fresh_sources())[0]

    def _source_losses(self, trial: Trial, step: int) -> list[list[float]]:
        return [self._trial_losses(self.small, state, trial) for state in self._sources_at(step)]

    def _try(self, trial: Trial) -> np.ndarray:
        """The grown network's losses on the fresh batches at the trial's half and its end, [2, batches]."""
        arm = trial_arm(trial.step)
        cost = self._growth_cost(trial.step, self.online.lost_flops)
        besides = lambda state: {"fresh": self._trial_losses(self.large, state, trial)}
        start, half, end = self.grow_states(self._sources_at(trial.step)), trial.grown_half, trial.grown_end
        self._train_arm(arm, self.large, start, "grown", end, cost, further=(half,), besides=besides)
        return np.asarray([self.metrics.of(arm=arm, step=at)[0]["fresh"] for at in (half, end)])

    # Growth and the baselines.

    def _growth_cost(self, step: int, lost: float) -> Any:
        """Of a step: FLOPs of a network grown at ``step``, its sources' and those of trials lost before included."""
        return lambda s: lost + step * 2 * self.small_flops + (s - step) * self.large_flops

    def grow(self, arm: str, step: int) -> TrainState:
        """Fuses the sources as they were at ``step`` and trains on for the rest of the budget.

        The arm of the online rule goes on from the trial that it has won, and pays for the ones that it has lost.
        """
        follows = arm == "grown" and step == self.online.step
        cost = self._growth_cost(step, self.online.lost_flops if follows else 0.0)
        chunk = self.settings.steps_per_dispatch
        steps = max(0, int((self.settings.total_flops - cost(step)) / self.large_flops)) // chunk * chunk
        start = self.grow_states(self._sources_at(step))
        if follows and self.online.kept is not None:
            start = load_state(self._arm_file(trial_arm(step)), start)[0]
        return self._train_arm(arm, self.large, start, "grown", step + steps, cost, first=step)

    def scratch(self, rate: float | None = None, arm: str = "scratch") -> TrainState:
        """The large network from a random start, with its own tuned learning rate (unless ``rate`` is given)."""
        settings = self.settings
        start = self._fresh(settings.large, "scratch", settings.large_rate if rate is None else rate)
        total = settings.budget // settings.steps_per_dispatch * settings.steps_per_dispatch
        return self._train_arm(arm, self.large, start, "scratch", total, lambda s: s * self.large_flops)

    def one_small(self, sources: tuple[TrainState, ...]) -> TrainState:
        """Source A alone with the whole budget."""
        cost = lambda s: s * self.small_flops
        return self._train_arm("one_small", self.small, sources[0], "a", self.one_small_steps, cost)

    def small_from_scratch(self, rate: float, arm: str) -> TrainState:
        """A small network from a random start with the whole budget and the learning rate ``rate``."""
        start = self._fresh(self.settings.small, "a", rate)
        cost = lambda s: s * self.small_flops
        return self._train_arm(arm, self.small, start, "a", self.one_small_steps, cost)


def _mean_loss(config: T5Config) -> Any:
    def mean(params: Any, batch: Any) -> jax.Array:
        total, count = token_loss(params, config, batch["encoder_ids"], batch["targets"])
        return total / count

    return mean


def trial_arm(step: int) -> str:
    """The arm of the metrics that is a trial of growing at this step."""
    return f"trial at step {step}"


def _events(run: DemoRun, greedy: GrowthDecision) -> dict[str, int]:
    """Growth steps of the arms: the online rule's (or the fallback), the greedy rule's if it grows, and a later one."""
    grid = [r["step"] for r in run.metrics.of(arm="sources") if r["step"]]
    nearest = lambda wanted: min(grid, key=lambda s: abs(s - wanted))
    online = nearest(FALLBACK_SHARE * run.source_steps) if run.online.step is None else run.online.step
    steps = {"grown": online, "late": nearest(run.later(online))}
    return steps if greedy.step is None else steps | {"greedy": greedy.step}


def run_demo(settings: DemoSettings, folder: pathlib.Path, console: Console) -> dict[str, Any]:
    """Runs or resumes a demo in ``folder``; writes metrics, results, the fused checkpoint; returns the results.

    Raises:
      InputError: text, settings or the folder's content are at fault.
      Interrupted: Ctrl-C; the folder holds what a resumed run needs.
    """
    started = time.perf_counter()
    saved = folder / SETTINGS
    if saved.exists():
        settings = load_settings(folder)
    else:
        atomic.write_text(saved, json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    note = lambda: console.print("Stopping at the next step; press Ctrl-C again to stop at once.")
    with contextlib.ExitStack() as stack:
        run = DemoRun(settings, folder, stack.enter_context(progress_bars(console)))
        stack.enter_context(graceful_interrupt(note))
        plan = run.decide()
        plan.save(folder / PLAN)
        console.print(f"[bold]The online rule says:[/bold] {plan.reason}")

        def grow(arm: str, step: int) -> TrainState:
            console.print(f"Growing at step {step}.")
            return run.grow(arm, step)

        grown = None
        if plan.step is not None:  # it is grown before anything is known of what comes after
            grown = grow("grown", plan.step)
        sources = run.train_sources(run.source_steps)
        greedy = run.greedy()
        steps = _events(run, greedy)
        if grown is None:
            share = steps["grown"] / run.source_steps
            console.print(f"The rule does not grow within this budget; for comparison: growth at {share:.0%} of it.")
            grown = grow("grown", steps["grown"])
        for arm in ("greedy", "late"):
            if arm in steps:
                grow(arm, steps[arm])
        run.scratch()
        run.one_small(sources)

    results = collect(run, plan, greedy, steps)
    results["seconds"] = round(time.perf_counter() - started, 1)
    atomic.write_text(folder / RESULTS, json.dumps(results, indent=2) + "\n")
    if not (folder / CHECKPOINT).exists():
        with atomic.new_folder(folder / CHECKPOINT) as temporary:
            write_pretrained(temporary, grown.params, settings.large)
            Tokenizer.load(folder / TOKENIZER).save(temporary)
    return results


def collect(run: DemoRun, plan: GrowthDecision, greedy: GrowthDecision, steps: dict[str, int]) -> dict[str, Any]:
    """Everything that the report is written from."""
    sources, online = run.metrics.of(arm="sources"), run.online
    curve = lambda arm: [(r["flops"], r["loss"]) for r in run.metrics.of(arm=arm)]
    curves: dict[str, list[tuple[float, float]]] = {arm: curve(arm) for arm in ARMS}
    if online.kept is not None:
        begun = curve(trial_arm(online.kept.step))
        curves["grown"] = begun + [point for point in curves["grown"] if point[0] > begun[-1][0]]
    curves["never"] = [(r["flops"], r["validation_fused"]) for r in sources]
    if greedy.step is None:
        curves["greedy"] = curves["never"]
    alone = [(r["step"] * run.small_flops, r["validation_a"]) for r in sources]
    curves["one_small"] = alone + [c for c in curves["one_small"] if c[0] > alone[-1][0]]
    return {
        "settings": dataclasses.asdict(run.settings),
        "provenance": provenance(),
        "text": run.data.facts,
        "flops": {"budget": run.settings.total_flops, "small_step": run.small_flops, "large_step": run.large_flops},
        "parameters": {
            name: sum(math.prod(struct.shape) for struct in jax.tree.leaves(parameter_shapes(c)))
            for name, c in (("small", run.settings.small), ("large", run.settings.large))
        },
        "plan": dataclasses.asdict(plan),
        "greedy": dataclasses.asdict(greedy),
        "lost_trials": {
            "flops": online.lost_flops,
            "curves": {str(step): curve(trial_arm(step)) for step in online.lost_trials},
        },
        "growth_steps": steps,
        "source_steps": run.source_steps,
        "rate_factors": factors_by_name(run.factors),
        "curves": curves,
        "final": {arm: curves[arm][-1][1] for arm in ARMS},
        "theory": run.theory(),
        "validation_batches": len(run.data.validation),
    }


def load_settings(folder: pathlib.Path) -> DemoSettings:
    """The settings of an existing run. Raises InputError where the folder holds no run."""
    file = folder / SETTINGS
    try:
        return DemoSettings(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no demo run (no {SETTINGS}); give the folder that the run printed") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}); start a new run") from None
