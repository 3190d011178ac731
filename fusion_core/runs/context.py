"""The nodes of a run: where each begins, the files that it leaves, and how the next one finds them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth import rate_factors
from fusion_core.models.t5 import Compute, T5Config, peak_flops
from fusion_core.models.t5.model import init, parameter_shapes
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import Resolved
from fusion_core.runs.node_files import DONE, MODEL, read_facts, write_node
from fusion_core.runs.plan import FuseNode, GrowNode, Node, Plan, TrainNode
from fusion_core.runs.settings import OptimizerSettings
from fusion_core.seeds import node_seed
from fusion_core.text.cache import file_sum
from fusion_core.text.span_corruption import target_length
from fusion_core.timings import Timings
from fusion_core.train import Metrics, Ramp, Record, Trainer, TrainState, init_state, t5_loss
from fusion_core.train.devices import barrier, first_process, processes
from fusion_core.train.metrics import NOT_OURS
from fusion_core.train.store import Checkpoints
from fusion_core.train.training import CHECKPOINTS, METRICS, Training
from fusion_core.train.writer import Writer

NODES = "nodes"


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
      timings: of the parts of the run up to its first step.
      mine: names of the nodes that this process has finished.
      states: last states of nodes, in the host's memory, until those that go on from them are finished.
      coming: facts of finished nodes whose files are not all written yet.
      writer: of the files of nodes, in the order in which these are finished, while the next ones train.
      growths: what growths need that follows from the plan alone, as far as it was prepared ahead.
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
    timings: Timings = dataclasses.field(default_factory=Timings)
    mine: set[str] = dataclasses.field(default_factory=set)
    states: dict[str, TrainState] = dataclasses.field(default_factory=dict)
    growths: dict[str, Future[Any]] = dataclasses.field(default_factory=dict)
    coming: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    writer: Writer = dataclasses.field(default_factory=Writer)

    def folder_of(self, name: str) -> pathlib.Path:
        """Return the folder of a node."""
        return self.folder / NODES / name

    def done(self, name: str) -> dict[str, Any] | None:
        """Return the facts of a finished node; None if it is not finished.

        Raises:
          InputError: the file is damaged.
        """
        coming = self.coming.get(name)
        if coming is not None:
            return dict(coming)
        file = self.folder_of(name) / DONE
        if not file.exists():
            return None
        return read_facts(file, name, self.seed)

    def finished(self, name: str) -> bool:
        """Return whether a node is finished, by whether there is its file, or will be."""
        return name in self.coming or (self.folder_of(name) / DONE).exists()

    def metrics(self, name: str) -> Metrics:
        """Return the records of a finished node.

        Raises:
          InputError: the file is damaged, or it is not the one that the node was finished with.
        """
        facts, folder = self.done(name) or {}, self.folder_of(name)
        found = Metrics(folder / facts.get("work", ".") / METRICS)
        if facts.get(METRICS, found.sum()) != found.sum():
            raise InputError(f"{found.path} {NOT_OURS}, or remove {folder}: the node is then trained again")
        return found

    def check_model(self, name: str) -> None:
        """Raise InputError if a finished node's network is not the one that was written; one that was removed is not missed."""
        folder = self.folder_of(name)
        for file, expected in (self.done(name) or {}).get(MODEL, {}).items():
            path = folder / MODEL / file
            if path.parent.exists() and (not path.is_file() or file_sum(path) != expected):
                raise InputError(
                    f"{path} is not what the node was finished with; remove {folder / MODEL} and {folder / DONE}: they are "
                    "written again"
                )

    def check_checkpoint(self, resolved: Resolved) -> None:
        """Raise InputError if the last checkpoint of a node that was finished before this process is not the node's.

        Nodes that go on from it may be added to the plan. One that was removed is not missed.
        """
        facts = None if resolved.name in self.mine else self.done(resolved.name)
        if facts and self.store(resolved, facts["work"]).path(facts["step"]).exists():
            self.state_at(resolved, facts["step"], facts["work"])

    def seed_of(self, node: Node) -> int:
        """Return the seed of a node in this run."""
        return node_seed(self.seed, node.seed)

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
        held = self.states.get(source.name)
        if held is not None and int(held.step) == facts["step"]:
            return jax.tree.map(jnp.asarray, held)
        return self.state_at(source, facts["step"], facts["work"])

    def store(self, resolved: Resolved, work: str = ".", pinned: Collection[int] = ()) -> Checkpoints:
        """Return the checkpoints of a node."""
        folder = self.folder_of(resolved.name) / work / CHECKPOINTS
        return Checkpoints(folder, self.identity(resolved), pinned=pinned, writer=self.writer)

    def state_at(self, resolved: Resolved, step: int, work: str = ".") -> TrainState:
        """Return the checkpoint of a node at a step.

        Raises:
          InputError: it is missing, damaged or of another plan.
        """
        self.writer.wait()
        like = state_shapes(resolved.config, resolved.optimizer, resolved.ramp)
        found = self.store(resolved, work).restore(like, step)
        assert found is not None  # a missing one is an error
        return found[0]

    def position_after(self, source: Resolved, node: TrainNode) -> Any:
        """Return the position in the data with which a node goes on from another; None, its beginning, if the data differ.

        With the seed, batch and length of its source a node sees the batches that its source would have seen: a network that
        is trained in pieces is the one that is trained at once, bit for bit.
        """
        before = source.node
        data = lambda n: (n.seed, n.batch, n.length)
        if not isinstance(before, TrainNode) or data(before) != data(node):
            return None
        self.writer.wait()
        facts = self.done(source.name) or {}
        like = state_shapes(source.config, source.optimizer, source.ramp)
        found = self.store(source, facts["work"]).restore(like, facts["step"])
        return None if found is None else found[1]["position"]

    def save_result(self, resolved: Resolved, state: TrainState) -> None:
        """Begin to write the state of a node that does not train."""
        if first_process():
            store = self.store(resolved, pinned=[int(state.step)])
            store.save(on_host(state), position=None)

    def finish(self, resolved: Resolved, state: TrainState, work: str = ".", **facts: Any) -> None:
        """Begin to write the network as a Hugging Face folder with its tokenizer, then the facts of the finished node.

        ``writer`` has both, after the node's checkpoint; several processes wait for them.
        """
        name = resolved.name
        if first_process():
            if resolved.config.norm_groups:
                self.note(f"node {name}: grouped norms have no Hugging Face format; its checkpoint is all there is")
            kind = {TrainNode: "train", FuseNode: "fuse", GrowNode: "grow"}[type(resolved.node)]
            parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params))
            done = {"step": int(state.step), "work": work, "parameters": parameters, "kind": kind, **facts}
            self.coming[name] = json.loads(json.dumps(done))

            def write() -> None:
                facts = {**done, "node": name, "run_seed": self.seed}
                write_node(self.folder_of(name), state.params, resolved.config, self.data.tokenizer, facts)
                del self.coming[name]

            self.writer.begin(write)
        self.mine.add(name)
        self._hold(name, state)
        self.growths.pop(name, None)
        if processes()[1] > 1:
            self.writer.wait()
        barrier(f"node {name} is finished")

    def _hold(self, name: str, state: TrainState) -> None:
        """Keep the state of a finished node for those that go on from it; forget what no node waits for any more."""
        self.states[name] = on_host(state)
        waiting = {source for node in self.plan.nodes if not self.finished(node.name) for source in node.inputs}
        for held in set(self.states) - waiting:
            del self.states[held]

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
        options = node.compute.compiler_options()
        trainers[kind] = Trainer(
            loss, optimizer.build(), node.batch, chunk, accumulate=node.accumulate, compiler_options=options
        )
    return trainers[kind]


def on_host(state: TrainState) -> TrainState:
    """Return a state that takes no device's memory; where the host is the device it may be computed still."""
    return state if jax.default_backend() == "cpu" else jax.tree.map(np.asarray, state)


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
    return state._replace(rates=scaled(state.rates, node.optimizer.first_rate))


def scaled(rates: Any, top: float) -> Any:
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
    position: Any = None,
    begun: Callable[[], None] = lambda: None,
    writer: Writer | None = None,
) -> Training:
    """Return the training of a node that begins at ``start`` and has this many steps.

    Args:
      context: of the run.
      resolved: the node.
      start: its first state.
      steps: of training.
      pinned: steps whose checkpoints are kept.
      work: folder of metrics and checkpoints, within the node's.
      position: in the data, where it begins; if None, the data's beginning.
      begun: called after the first dispatch.
      writer: of the checkpoints; if None, they are written when the training ends.
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
        position=position,
        timings=context.timings,
        begun=begun,
        writer=writer,
    )


def _peak(compute: Compute) -> float | None:
    """Return the FLOP/s of all devices together; None if not known."""
    one = peak_flops(jax.devices()[0].device_kind, compute.dtype)
    return None if one is None else one * jax.device_count()
