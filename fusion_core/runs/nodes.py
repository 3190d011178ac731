"""Nodes at work: how each begins, what it leaves in its folder, and how the next one finds it."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from fusion_core import atomic
from fusion_core.checkpoints.pretrained import write_pretrained
from fusion_core.errors import InputError
from fusion_core.growth import fuse, fusion_map, rate_factors
from fusion_core.models.t5 import Compute, T5Config, peak_flops
from fusion_core.models.t5.model import init
from fusion_core.runs.cost import shapes_of
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import Resolved
from fusion_core.runs.optimizers import optimizer_of, schedule_of
from fusion_core.runs.schema import FuseNode, OptimizerSettings, Plan, TrainNode
from fusion_core.text.span_corruption import target_length
from fusion_core.train import Trainer, TrainState, grow_states, init_state, t5_loss
from fusion_core.train.learning_rate import Schedule
from fusion_core.train.run import CHECKPOINTS, Training
from fusion_core.train.store import Checkpoints

DONE, MODEL = "done.json", "model"
# the names that ``rate_factors`` has for the optimizers
RATE_RULE = {"adafactor": "adafactor", "adamw": "adam"}


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What all nodes of a run share.

    Attributes:
      plan, folder: of the run.
      data: its text.
      peak_flops: of all devices, a second; None: what is known of their kind.
      show, note, begin: see ``fusion_core.train.run``.
    """

    plan: Plan
    folder: pathlib.Path
    data: RunData
    peak_flops: float | None
    show: Callable[[dict[str, Any]], None]
    note: Callable[[str], None]
    begin: Callable[[str, int, int], None]
    trainers: dict[Any, Trainer] = dataclasses.field(default_factory=dict)  # compiled once for all nodes of one kind

    def folder_of(self, name: str) -> pathlib.Path:
        return self.folder / "nodes" / name

    def done(self, name: str) -> dict[str, Any] | None:
        """What a finished node says of itself; None: it is not finished."""
        file = self.folder_of(name) / DONE
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{file} cannot be read ({error}); remove it, the node is then finished again") from None

    def seed(self, node: TrainNode | FuseNode) -> int:
        return 1000 * self.plan.seed + node.seed

    def result(self, source: Resolved) -> TrainState:
        """The state that a finished node has left.

        Raises:
          InputError: it is not finished, or its checkpoint is missing, damaged or of another plan.
        """
        facts = self.done(source.name)
        folder = self.folder_of(source.name)
        if facts is None:
            raise InputError(
                f"node {source.name} is not finished: {folder / DONE} is missing; run it first, or copy its folder from the "
                "machine that has trained it"
            )
        store = Checkpoints(folder / facts["work"] / CHECKPOINTS, identity(self, source))
        found = store.restore(state_shapes(source.config, source.optimizer), facts["step"])
        assert found is not None  # a missing one is an error
        return found[0]

    def finish(self, resolved: Resolved, state: TrainState, work: str = ".", **facts: Any) -> None:
        """Writes the network as a Hugging Face folder with its tokenizer, then that the node is finished."""
        if jax.process_index() == 0:
            folder = self.folder_of(resolved.name)
            if not (folder / MODEL).exists() and not resolved.config.norm_groups:
                with atomic.new_folder(folder / MODEL) as temporary:
                    write_pretrained(temporary, state.params, resolved.config)
                    self.data.tokenizer.save(temporary)
            elif resolved.config.norm_groups:
                self.note(
                    f"node {resolved.name}: grouped norms have no Hugging Face format; its checkpoint is all there is"
                )
            done = {"step": int(state.step), "work": work, **facts}
            atomic.write_text(folder / DONE, json.dumps(done, indent=2) + "\n")
        self.together(f"node {resolved.name} is finished")

    def together(self, what: str) -> None:
        """All processes wait for each other."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(what)


def identity(shop: Workshop, resolved: Resolved) -> dict[str, Any]:
    """What a checkpoint of the node belongs to: all that decides its numbers, in JSON's types."""
    settings = dataclasses.asdict(resolved.node)
    settings.pop("cadence", None)
    settings |= {
        "run_seed": shop.plan.seed,
        "config": dataclasses.asdict(resolved.config),
        "tokenizer": shop.data.digest,
    }
    return json.loads(json.dumps(settings))


def state_shapes(config: T5Config, optimizer: OptimizerSettings | None) -> TrainState:
    """Shapes of a node's training state; without an optimizer it has none of its state."""
    shapes = shapes_of(config)
    if optimizer is None:
        bare = jax.eval_shape(lambda p: init_state(p, optimizer_of(OptimizerSettings(), lambda n: n), 1.0), shapes)
        return bare._replace(opt_state=())
    return jax.eval_shape(lambda p: init_state(p, optimizer_of(optimizer, lambda n: n), 1.0), shapes)


def first_state(shop: Workshop, resolved: Resolved, source: tuple[Resolved, TrainState] | None) -> TrainState:
    """Where a ``train`` node begins: a random start, or the state of the node before it."""
    node = resolved.node
    assert isinstance(node, TrainNode)
    optimizer = optimizer_of(node.optimizer, lambda n: n)  # only its state's shape matters here
    if source is None:
        params = init(resolved.config, shop.seed(node), match_cross_attention=node.match_cross_attention)
        return init_state(params, optimizer, node.optimizer.first_rate)
    before, state = source
    if before.optimizer is None:
        state = state._replace(opt_state=optimizer.init(state.params))
    elif node.optimizer.rate is None:
        return state
    top = max(float(rate) for rate in jax.tree.leaves(state.rates))
    scale = node.optimizer.first_rate / top
    return state._replace(rates=jax.tree.map(lambda rate: (scale * rate).astype(rate.dtype), state.rates))


def training_of(
    shop: Workshop,
    resolved: Resolved,
    start: TrainState,
    steps: int,
    *,
    pinned: Collection[int] = (),
    folder: pathlib.Path | None = None,
) -> Training:
    """The training of a node that begins at ``start`` and has this many steps."""
    node = resolved.node
    assert isinstance(node, TrainNode)
    begin = int(start.step)
    schedule = schedule_of(node.schedule, begin, steps)
    # a fresh optimizer counts from zero, wherever the run stands
    offset = begin - _count(start.opt_state)
    own: Schedule = (lambda n: schedule(n + offset)) if offset else schedule
    seed = shop.seed(node)
    counted = (begin, steps) if node.schedule.restart or node.schedule.kind == "cosine" else ()
    optimizer = dataclasses.replace(node.optimizer, rate=None)  # the rate is in the state
    kind = (resolved.config, node.compute, optimizer, node.schedule, counted, offset, node.batch, node.accumulate)
    if kind not in shop.trainers:
        shop.trainers[kind] = Trainer(
            t5_loss(resolved.config, node.compute),
            optimizer_of(node.optimizer, own),
            node.batch,
            shop.plan.steps_per_dispatch,
            accumulate=node.accumulate,
        )
    return Training(
        name=node.name,
        trainer=shop.trainers[kind].with_seed(seed),
        data=shop.data.training(node.length, node.batch, seed),
        validation=shop.data.validation(node.length, node.batch),
        folder=folder or shop.folder_of(node.name),
        run=identity(shop, resolved),
        cadence=node.cadence,
        schedule=schedule,
        step_tokens=node.batch * (node.length + target_length(node.length)),
        step_flops=resolved.step_flops,
        peak_flops=shop.peak_flops or _peak(node.compute),
        show=shop.show,
        note=shop.note,
        pinned=pinned,
    )


def _peak(compute: Compute) -> float | None:
    """Of all devices together, where it is known."""
    one = peak_flops(jax.devices()[0].device_kind, compute.dtype)
    return None if one is None else one * jax.device_count()


def _count(opt_state: Any) -> int:
    """Updates that an optimizer has made."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        if getattr(path[-1], "name", None) == "count":
            return int(leaf)
    return 0


def fused_state(
    shop: Workshop, resolved: Resolved, sources: dict[str, Resolved], states: dict[str, TrainState]
) -> TrainState:
    """The state after a fusion of the sources' states (by name)."""
    node = resolved.node
    assert isinstance(node, FuseNode)
    configs = [sources[name].config for name in node.sources]
    parts = [states[name] for name in node.sources]
    mapping = fusion_map(configs, node.weights or None)
    params, _ = fuse(
        [(state.params, config) for state, config in zip(parts, configs, strict=True)],
        node.weights or None,
        norm=node.norm,  # type: ignore[arg-type]
        off_diagonal=node.off_diagonal,  # type: ignore[arg-type]
        noise=float(node.noise),
        seed=shop.seed(node),
    )
    first = sources[node.sources[0]].optimizer
    factors = jax.tree.map(lambda _: 1.0, parts[0].params)
    if node.rates == "velocity" and first is not None:
        factors = rate_factors(parts[0].params, configs[0], len(parts), RATE_RULE[first.name])
    if resolved.optimizer is None:
        top = max(float(rate) for rate in jax.tree.leaves(parts[0].rates))
        rates = jax.tree.map(lambda f, rate: (f * rate / top).astype(rate.dtype), factors, parts[0].rates)
        return TrainState(params, (), parts[0].step, rates)
    copies = len(set(node.sources)) == 1
    return jax.jit(lambda s: grow_states(mapping, s, factors, copies=copies))(parts)._replace(params=params)


def save_result(shop: Workshop, resolved: Resolved, state: TrainState) -> None:
    """Writes the state of a node that does not train."""
    if jax.process_index() == 0:
        store = Checkpoints(
            shop.folder_of(resolved.name) / CHECKPOINTS, identity(shop, resolved), pinned=[int(state.step)]
        )
        store.save(jax.tree.map(np.asarray, state), position=None)
        store.wait()
