"""What a plan says: frozen dataclasses, each checked where it is made. The file's syntax is in docs/train.md."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from fusion_core.errors import InputError
from fusion_core.growth import NORM_MODES
from fusion_core.growth.noise import OFF_DIAGONAL
from fusion_core.models.t5 import Compute, T5Config
from fusion_core.text.corpus import DEFAULT_PACKAGES
from fusion_core.train.learning_rate import Schedule, constant_schedule, cosine_schedule, t5_schedule
from fusion_core.train.run import Cadence

OPTIMIZERS = ("adafactor", "adamw")
SCHEDULES = ("rsqrt", "cosine", "constant")


def _whole(owner: str, least: int = 1, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{owner}{name} is {value!r}; it must be a whole number, at least {least}")


def _number(owner: str, low: float, high: float = math.inf, **values: Any) -> None:
    for name, value in values.items():
        good = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
        if not (good and low <= value <= high):
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InputError(f"{owner}{name} is {value!r}; it must be a number, {bounds}")


def _choice(owner: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{owner}{name} is {value!r}; there are {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The text of a plan, the same for all nodes, and its tokenizer.

    Attributes:
      text: files or folders; empty: the documentation of the standard library and of ``packages``.
      packages: see ``text``.
      tokenizer: folder with a ``tokenizer.json``; empty: one of ``vocab`` pieces is trained on the text.
      vocab: its pieces, without the sentinels.
      validation_share: of the documents, for validation.
      validation_batches: of every evaluation.
      stream: read the text as it is needed, never hold it whole; the tokenizer, if it is trained, sees its beginning.
      packed: with ``stream``: rows hold many documents that do not see each other.
    """

    text: tuple[str, ...] = ()
    packages: tuple[str, ...] = DEFAULT_PACKAGES
    tokenizer: str = ""
    vocab: int = 4096
    validation_share: float = 0.05
    validation_batches: int = 16
    stream: bool = False
    packed: bool = False

    def __post_init__(self) -> None:
        _whole("data.", vocab=self.vocab, validation_batches=self.validation_batches)
        _number("data.", 0.0, 0.5, validation_share=self.validation_share)
        if self.stream and not self.text:
            raise InputError("data.stream is for text of yours; give data.text, or leave it out")
        if self.packed and not self.stream:
            raise InputError("data.packed needs data.stream = true")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Adafactor or AdamW.

    Attributes:
      name: ``"adafactor"`` or ``"adamw"``.
      rate: the peak learning rate; None: that of the state it goes on from, or 0.01 (Adafactor's relative unit) or 0.001.
      clip: global norm that gradients are cut to; 0: none.
      weight_decay, b1, b2: AdamW's.
    """

    name: Literal["adafactor", "adamw"] | str = "adafactor"
    rate: float | None = None
    clip: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self) -> None:
        _choice("optimizer.", "name", self.name, OPTIMIZERS)
        _number("optimizer.", 0.0, clip=self.clip, weight_decay=self.weight_decay)
        _number("optimizer.", 0.0, 1.0, b1=self.b1, b2=self.b2)
        if self.rate is not None:
            _number("optimizer.", 0.0, rate=self.rate)
        if self.name == "adafactor" and self.weight_decay:
            raise InputError("optimizer.weight_decay is for adamw; leave it out, or take adamw")

    @property
    def first_rate(self) -> float:
        """The rate of a network from a random start."""
        default = 0.01 if self.name == "adafactor" else 0.001
        return default if self.rate is None else float(self.rate)


@dataclasses.dataclass(frozen=True)
class ScheduleSettings:
    """A factor of peak 1 on the learning rate.

    Attributes:
      kind: ``"rsqrt"`` (T5's), ``"cosine"`` or ``"constant"``.
      warmup: steps: constant before them (rsqrt) or rising (the others).
      end: where the cosine ends, as a share of the peak.
      restart: count from this node's first step: after a growth the rate jumps, and warms up anew. False: the schedule
        goes on as if there had been no growth.
      factor: on it, at a restart.
    """

    kind: Literal["rsqrt", "cosine", "constant"] | str = "rsqrt"
    warmup: int = 10_000
    end: float = 0.0
    restart: bool = False
    factor: float = 1.0

    def __post_init__(self) -> None:
        _choice("schedule.", "kind", self.kind, SCHEDULES)
        _whole("schedule.", 0, warmup=self.warmup)
        _number("schedule.", 0.0, factor=self.factor)
        _number("schedule.", 0.0, 1.0, end=self.end)
        if self.factor != 1.0 and not self.restart:
            raise InputError("schedule.factor is for a restart; set restart = true, or leave it out")

    def function(self, steps: int) -> Schedule:
        """The schedule over this many steps. Raises InputError where the warm-up does not fit into them."""
        if self.kind == "rsqrt":
            return t5_schedule(self.warmup)
        return (
            cosine_schedule(steps, self.warmup, self.end) if self.kind == "cosine" else constant_schedule(self.warmup)
        )


@dataclasses.dataclass(frozen=True)
class TrainNode:
    """A network that is trained.

    Attributes:
      name: of the node.
      model: its configuration, for a random start; None: it goes on from ``source_node``.
      source_node: the node (``from`` in the file) whose network it goes on with.
      steps: of training; None (``"auto"`` in the file): decided by the online rule, see ``budget``.
      budget: of an ``auto`` node after a fusion: everything that it and its sources may cost, in its own steps.
      cost_limit: share of the budget that lost trials of growing may cost.
      batch: sequences in a global batch.
      accumulate: parts in which a device takes its share of the batch.
      length: tokens of a source sequence.
      seed: of initialisation, order of the data, masks and dropout.
      match_cross_attention: see ``fusion_core.models.t5.init``.
      compute: precision, memory and speed, see ``fusion_core.models.t5.Compute``.
      optimizer, schedule, cadence: see there.
    """

    name: str
    model: T5Config | None = None
    source_node: str = ""
    steps: int | None = None
    budget: int | None = None
    cost_limit: float = 0.05
    batch: int = 128
    accumulate: int = 1
    length: int = 512
    seed: int = 0
    match_cross_attention: bool = False
    compute: Compute = dataclasses.field(default_factory=Compute)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = dataclasses.field(default_factory=ScheduleSettings)
    cadence: Cadence = dataclasses.field(default_factory=Cadence)

    def __post_init__(self) -> None:
        owner = f"node {self.name}: "
        if (self.model is None) == (not self.source_node):
            raise InputError(
                f"{owner}give either a model, for a random start, or from = NODE, to go on with its network"
            )
        if self.steps is not None:
            _whole(owner, steps=self.steps)
        if self.budget is not None:
            _whole(owner, budget=self.budget)
            if self.steps is not None:
                raise InputError(f"{owner}a budget is for steps = 'auto'; leave one of the two out")
        _whole(owner, batch=self.batch, accumulate=self.accumulate, length=self.length)
        _whole(owner, 0, seed=self.seed)
        _number(owner, 0.0, 1.0, cost_limit=self.cost_limit)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.source_node,) if self.source_node else ()


@dataclasses.dataclass(frozen=True)
class FuseNode:
    """Networks that become one.

    Attributes:
      name: of the node.
      sources: nodes, at least two; one that is named twice is fused with itself.
      weights: of the sources in the mean; empty: equal.
      norm, off_diagonal, noise, seed: as in ``fusion_core.fuse``.
      rates: ``"velocity"``: learning rates times ``fusion_core.rate_factors``; ``"keep"``: as they were.
      optimizer_state: ``"fuse"``: moments by the gradients' map; ``"fresh"``: none.
    """

    name: str
    sources: tuple[str, ...]
    weights: tuple[float, ...] = ()
    norm: str = "plain"
    off_diagonal: str = "zero"
    noise: float = 0.0
    seed: int = 0
    rates: str = "velocity"
    optimizer_state: str = "fuse"

    def __post_init__(self) -> None:
        owner = f"node {self.name}: "
        if len(self.sources) < 2:
            raise InputError(f"{owner}a fusion has at least two sources; name one twice to fuse it with itself")
        known = tuple(mode for mode in NORM_MODES if mode != "calibrated")
        _choice(owner, "norm", self.norm, known)
        _choice(owner, "off_diagonal", self.off_diagonal, tuple(OFF_DIAGONAL))
        _choice(owner, "rates", self.rates, ("velocity", "keep"))
        _choice(owner, "optimizer_state", self.optimizer_state, ("fuse", "fresh"))
        _number(owner, 0.0, noise=self.noise)
        _whole(owner, 0, seed=self.seed)
        if (self.off_diagonal == "zero") != (self.noise == 0):
            raise InputError(
                f"{owner}noise is {self.noise} with off_diagonal = {self.off_diagonal!r}; give both or none"
            )
        if self.off_diagonal == "antisymmetric" and len(set(self.sources)) > 1:
            raise InputError(f"{owner}antisymmetric noise is for copies of one source; take off_diagonal = 'random'")

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.sources


Node = TrainNode | FuseNode


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run: a graph of nodes.

    Attributes:
      name: of the run.
      nodes: in the file's order.
      data: of all of them.
      seed: of the split of the text and of its tokenizer; also added to the nodes' own.
      steps_per_dispatch: training steps in one dispatch; all steps are multiples of it.
    """

    name: str
    nodes: tuple[Node, ...]
    data: DataSettings = DataSettings()
    seed: int = 0
    steps_per_dispatch: int = 10

    def __post_init__(self) -> None:
        _whole("", 0, seed=self.seed)
        _whole("", steps_per_dispatch=self.steps_per_dispatch)
        if not self.nodes:
            raise InputError("the plan has no nodes; it needs at least one table [node.NAME]")

    def node(self, name: str) -> Node:
        """The node of that name. Raises InputError where there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise InputError(f"there is no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")
