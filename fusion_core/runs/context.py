"""The nodes of a run: where each begins, the files that it leaves, and how the next one finds them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core import atomic
from fusion_core.checkpoints.pretrained import write_pretrained
from fusion_core.errors import InputError
from fusion_core.growth import GrowthMap, fuse, fusion_map, grow, growth_rate_factors, rate_factors
from fusion_core.growth.operators import growth_of
from fusion_core.models.t5 import Compute, T5Config, peak_flops
from fusion_core.models.t5.model import init, parameter_shapes
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import Resolved, times_wider
from fusion_core.runs.plan import FuseNode, GrowNode, GrowthNode, Node, Plan, Recipe, TrainNode
from fusion_core.runs.separating import choose_noise_in_run, push_apart_in_run
from fusion_core.runs.settings import OptimizerSettings
from fusion_core.text.span_corruption import target_length
from fusion_core.train import Ramp, Record, Trainer, TrainState, grow_states, init_state, rates_at, t5_loss
from fusion_core.train.devices import barrier, first_process
from fusion_core.train.store import Checkpoints
from fusion_core.train.training import CHECKPOINTS, Training

DONE, MODEL = "done.json", "model"


@dataclasses.dataclass(frozen=True)
class RunContext:
    """What all nodes of a run share.

    Attributes:
      plan: of the run.
      seed: of the run; added to the nodes' own.
      folder: of the run.
      data: its text.
      peak_flops: FLOP/s of all devices together; if None, what is known of their kind.
      show: called with every record of the metrics.
      note: called with sentences for the user.
      begin: called when a node begins, with its name, its first step and its last.
      trainers: compiled steps, one for all nodes of one shape.
    """

    plan: Plan
    seed: int
    folder: pathlib.Path
    data: RunData
    peak_flops: float | None
    show: Callable[[dict[str, Any]], None]
    note: Callable[[str], None]
    begin: Callable[[str, int, int], None]
    trainers: dict[Any, Trainer] = dataclasses.field(default_factory=dict)

    def folder_of(self, name: str) -> pathlib.Path:
        """Return the folder of a node."""
        return self.folder / "nodes" / name

    def done(self, name: str) -> dict[str, Any] | None:
        """Return the facts of a finished node; None if it is not finished.

        Raises:
          InputError: the file is damaged.
        """
        file = self.folder_of(name) / DONE
        if not file.exists():
            return None
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{file} cannot be read ({error}); remove it, the node is then finished again") from None
        if not isinstance(facts, dict) or not isinstance(facts.get("step"), int):
            raise InputError(f"{file} holds no facts of a node; remove it, the node is then finished again")
        return facts

    def seed_of(self, node: Node) -> int:
        """Return the seed of a node in this run."""
        return 1000 * self.seed + node.seed

    def result(self, source: Resolved) -> TrainState:
        """Return the state that a finished node has left.

        Raises:
          InputError: it is not finished, or its checkpoint is missing, damaged or of another plan.
        """
        facts = self.done(source.name)
        if facts is None:
            raise InputError(
                f"node {source.name} is not finished: {self.folder_of(source.name) / DONE} is missing; run it first, or "
                "copy its folder from the machine that has trained it"
            )
        return self.state_at(source, facts["step"], facts["work"])

    def store(self, resolved: Resolved, work: str = ".", pinned: Collection[int] = ()) -> Checkpoints:
        """Return the checkpoints of a node."""
        return Checkpoints(self.folder_of(resolved.name) / work / CHECKPOINTS, self.identity(resolved), pinned=pinned)

    def state_at(self, resolved: Resolved, step: int, work: str = ".") -> TrainState:
        """Return the checkpoint of a node at a step.

        Raises:
          InputError: it is missing, damaged or of another plan.
        """
        like = state_shapes(resolved.config, resolved.optimizer, resolved.ramp)
        found = self.store(resolved, work).restore(like, step)
        assert found is not None  # a missing one is an error
        return found[0]

    def save_result(self, resolved: Resolved, state: TrainState) -> None:
        """Write the state of a node that does not train."""
        if first_process():
            store = self.store(resolved, pinned=[int(state.step)])
            store.save(jax.tree.map(np.asarray, state), position=None)
            store.wait()

    def finish(self, resolved: Resolved, state: TrainState, work: str = ".", **facts: Any) -> None:
        """Write the network as a Hugging Face folder with its tokenizer, then the facts of the finished node."""
        if first_process():
            folder = self.folder_of(resolved.name)
            if resolved.config.norm_groups:
                self.note(
                    f"node {resolved.name}: grouped norms have no Hugging Face format; its checkpoint is all there is"
                )
            elif not (folder / MODEL).exists():
                with atomic.new_folder(folder / MODEL) as temporary:
                    write_pretrained(temporary, state.params, resolved.config)
                    self.data.tokenizer.save(temporary)
            kind = {TrainNode: "train", FuseNode: "fuse", GrowNode: "grow"}[type(resolved.node)]
            parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
            done = {"step": int(state.step), "work": work, "parameters": parameters, "kind": kind, **facts}
            atomic.write_text(folder / DONE, json.dumps(done, indent=2) + "\n")
        barrier(f"node {resolved.name} is finished")

    def identity(self, resolved: Resolved) -> dict[str, Any]:
        """Return what decides the numbers of a node's checkpoints, in JSON's types."""
        settings = dataclasses.asdict(resolved.node)
        for name in ("cadence", "arm"):
            settings.pop(name, None)
        if not isinstance(resolved.node, TrainNode):
            settings |= resolved.node.recipe._asdict()
        settings |= {
            "run_seed": self.seed,
            "steps": resolved.steps,
            "config": dataclasses.asdict(resolved.config),
            "text": self.data.digest,
        }
        return json.loads(json.dumps(settings))

    def trainer(self, config: T5Config, node: TrainNode) -> Trainer:
        """Return the compiled step of a node, the same for all nodes of one shape."""
        return trainer_of(self.plan, config, node, self.trainers).with_seed(self.seed_of(node))


def trainer_of(plan: Plan, config: T5Config, node: TrainNode, trainers: dict[Any, Trainer]) -> Trainer:
    """Return the compiled step of a node's shape from ``trainers``, after adding it if it is not there."""
    optimizer = dataclasses.replace(node.optimizer, rate=None)  # the rate is in the state
    kind = (config, node.compute, optimizer, node.batch, node.accumulate, plan.steps_per_dispatch)
    if kind not in trainers:
        loss, chunk = t5_loss(config, node.compute), plan.steps_per_dispatch
        trainers[kind] = Trainer(loss, optimizer.build(), node.batch, chunk, accumulate=node.accumulate)
    return trainers[kind]


def state_shapes(config: T5Config, optimizer: OptimizerSettings | None, ramp: str = "") -> TrainState:
    """Return the shapes of a node's training state; without an optimizer it has no optimizer state.

    Args:
      config: of its network.
      optimizer: whose state it has.
      ramp: what has a factor in the ramp of its rates, as ``Resolved.ramp``.
    """
    shapes = parameter_shapes(config)
    built = (optimizer or OptimizerSettings()).build()
    state = jax.eval_shape(lambda p: init_state(p, built, 1.0), shapes)
    if ramp:
        first = state.rates if ramp == "array" else jax.tree.map(lambda s: s.update(dtype=jnp.float32), shapes)
        state = state._replace(ramp=Ramp(first, state.step, state.step))
    return state if optimizer is not None else state._replace(opt_state=())


def first_state(context: RunContext, resolved: Resolved, source: tuple[Resolved, TrainState] | None) -> TrainState:
    """Return the state in which a ``train`` node begins: a random start, or the state of the node before it."""
    node = resolved.node
    assert isinstance(node, TrainNode)
    optimizer = node.optimizer.build()
    if source is None:
        params = init(resolved.config, context.seed_of(node), match_cross_attention=node.match_cross_attention)
        state = init_state(params, optimizer, node.optimizer.first_rate)
        if node.base_width is None:
            return state
        copies = resolved.config.d_model // node.base_width
        factors = rate_factors(params, resolved.config, copies, node.optimizer.rule)
        return state._replace(rates=jax.tree.map(jnp.multiply, state.rates, factors))
    before, state = source
    if before.optimizer is None:
        state = state._replace(opt_state=optimizer.init(state.params))
    elif node.optimizer.rate is None:
        return state
    return state._replace(rates=_scaled(state.rates, node.optimizer.first_rate))


def _scaled(rates: Any, top: float) -> Any:
    """Return the rates times the factor that makes the largest of them ``top``."""
    scale = top / max(float(rate) for rate in jax.tree.leaves(rates))
    return jax.tree.map(lambda rate: (scale * rate).astype(rate.dtype), rates)


def training_of(
    context: RunContext,
    resolved: Resolved,
    start: TrainState,
    steps: int,
    *,
    pinned: Collection[int] = (),
    work: str = ".",
) -> Training:
    """Return the training of a node that begins at ``start`` and has this many steps.

    Args:
      context: of the run.
      resolved: the node.
      start: its first state.
      steps: of training.
      pinned: steps whose checkpoints are kept.
      work: folder of metrics and checkpoints, within the node's.
    """
    node = resolved.node
    assert isinstance(node, TrainNode)
    trainer = context.trainer(resolved.config, node)
    data = context.data.training(node.length, node.batch, context.seed_of(node))
    validation = context.data.validation(node.length, node.batch)

    def evaluate(state: TrainState) -> Record:
        found = trainer.scores(state.params, validation, replicated=True)
        return {"validation_loss": found["loss"], "validation_accuracy": found["accuracy"]}

    cadence = node.cadence
    if context.plan.measure:  # the terms are estimated at every checkpoint, after the sources are finished
        cadence = dataclasses.replace(cadence, keep_every=cadence.checkpoint)
    return Training(
        name=node.name,
        trainer=trainer,
        data=data,
        folder=context.folder_of(node.name) / work,
        run=context.identity(resolved),
        cadence=cadence,
        schedule=node.schedule.function(int(start.step), steps),
        step_tokens=node.batch * (node.length + target_length(node.length)),
        step_flops=resolved.step_flops,
        evaluate=evaluate,
        stop=lambda record: node.until_loss is not None and record["validation_loss"] <= node.until_loss,
        peak_flops=context.peak_flops or _peak(node.compute),
        show=context.show,
        note=context.note,
        pinned=pinned,
    )


def _peak(compute: Compute) -> float | None:
    """Return the FLOP/s of all devices together; None if not known."""
    one = peak_flops(jax.devices()[0].device_kind, compute.dtype)
    return None if one is None else one * jax.device_count()


@dataclasses.dataclass(frozen=True)
class Event:
    """A growth as functions of its sources' states.

    Attributes:
      mapping: the linear map J.
      factors: on the learning rates, one number an array.
      first: the ramp's factors, an array each or one number an array; None if there is no ramp.
      params: returns the grown parameters, given those of the sources in order.
      copies: whether all sources are one network.
    """

    mapping: Any
    factors: Any
    first: Any
    params: Callable[[tuple[Any, ...]], Any]
    copies: bool


def event_of(context: RunContext, node: GrowthNode, sources: Mapping[str, Resolved]) -> Event:
    """Return the growth of a node, from the configurations of its sources."""
    seed, config = context.seed_of(node), sources[node.inputs[0]].config
    optimizer = sources[node.inputs[0]].optimizer
    recipe = node.recipe
    if isinstance(node, GrowNode):
        options = node.options(seed)
        growth, sizes = growth_of(config, node.operator, options), dataclasses.asdict(options)
        noise = sizes.pop("noise")
        factors = jax.tree.map(lambda _: 1.0, parameter_shapes(growth.config))
        if recipe.velocity and optimizer is not None:
            anything = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), parameter_shapes(config))
            exact = growth_rate_factors(anything, config, node.operator, optimizer.rule, **sizes)
            # one number an array: exact if all units have equally many copies
            factors = jax.tree.map(lambda f: float(np.mean(f)), exact)
        if recipe.rates == "width" and optimizer is not None:
            factors = rate_factors(factors, growth.config, times_wider(config, growth.config), optimizer.rule)
        make = lambda params: grow(params[0], config, node.operator, noise=noise, **sizes)[0]
        return Event(growth.mapping, *_rates(recipe, factors, growth.mapping), make, False)
    configs = [sources[name].config for name in node.sources]
    factors = jax.tree.map(lambda _: 1.0, parameter_shapes(config))
    if recipe.velocity and optimizer is not None:
        factors = rate_factors(factors, config, len(configs), optimizer.rule)
    choices: dict[str, Any] = {
        "norm": node.norm,
        "off_diagonal": _blocks(recipe),
        "noise": recipe.noise,
        "seed": seed,
    }
    weights = node.weights or None
    mapping = fusion_map(configs, weights)
    return Event(
        mapping,
        *_rates(recipe, factors, mapping),
        lambda params: fuse(list(zip(params, configs, strict=True)), weights, **choices)[0],
        len(set(node.sources)) == 1,
    )


def _blocks(recipe: Recipe) -> str:
    """Return the blocks that ``fuse`` makes; a push apart comes after it."""
    if recipe.off_diagonal != "separating":
        return recipe.off_diagonal
    return "antisymmetric" if recipe.noise else "zero"


def _rates(recipe: Recipe, factors: Any, mapping: GrowthMap | None) -> tuple[Any, Any]:
    """Return the factors on the rates, and those of the ramp; None if there is no ramp.

    Args:
      recipe: of the growth.
      factors: those that keep the velocity if the recipe has them at all, else ones.
      mapping: J; None if all entries are new.
    """
    if not recipe.ramp:
        return factors, None
    ones, zeros = (jax.tree.map(lambda _, value=value: value, factors) for value in (1.0, 0.0))
    if recipe.rates == "relax":
        return ones, factors
    if recipe.rates == "rewarm":
        return ones, zeros
    if mapping is None:
        raise InputError("nothing of the network is kept, so that all entries are new; take rates = 'rewarm'")
    return ones, jax.tree.map(lambda rule: jnp.where(rule.new_entries(), 0.0, 1.0), mapping.rules)


def grown_state(
    context: RunContext, resolved: Resolved, sources: Mapping[str, Resolved], states: Mapping[str, TrainState]
) -> TrainState:
    """Return the state after a growth of the sources' states (by name)."""
    node = resolved.node
    assert not isinstance(node, TrainNode)
    event = event_of(context, node, sources)
    parts = tuple(states[name] for name in node.inputs)
    made = lambda event: event.params(tuple(part.params for part in parts))
    measure = (context.plan, context.data, resolved, sources[node.inputs[0]], event, parts)
    cost = f"; that cost {resolved.flops:.3g} FLOPs"
    if node.noise == "auto":
        noisy = lambda size: made(event_of(context, dataclasses.replace(node, noise=size), sources))
        choice = choose_noise_in_run(*measure, noisy)
        context.note(f"node {node.name}: {choice.reason}{cost}")
        params = noisy(choice.noise)
    else:
        params = made(event)
    if node.recipe.off_diagonal == "separating":
        push = push_apart_in_run(*measure, params)
        context.note(f"node {node.name}: {push.reason}{cost}")
        params = push.params
    step = parts[0].step
    ramp: Ramp | tuple[()] = ()
    if event.first is not None:
        first = jax.tree.map(lambda f: jnp.asarray(f, jnp.float32), event.first)
        ramp = Ramp(first, step, jnp.asarray(node.recipe.rewarm, jnp.int32))
    if resolved.optimizer is not None and event.mapping is not None:
        choices = {"copies": event.copies, "fresh_new": node.recipe.optimizer_state == "fresh_new"}
        carried = jax.jit(lambda s: grow_states(event.mapping, s, event.factors, **choices))(parts)
        return carried._replace(params=params, ramp=ramp)
    # the node that goes on sets a fresh optimizer's rate, so that only the ratios of the rates matter here
    rates = jax.tree.map(lambda factor: jnp.asarray(factor, jnp.float32), event.factors)
    found: object = jax.tree.structure(rates)
    if found == jax.tree.structure(parts[0].rates):
        rates = jax.tree.map(jnp.multiply, rates, _scaled(rates_at(parts[0], means=True), 1.0))
    return TrainState(params, (), step, rates, ramp)
