"""The plan: networks that are trained, fused and grown, as frozen dataclasses. The file's syntax is in docs/train.md."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import optax
from pydantic import ConfigDict, Field, InstanceOf, field_validator
from pydantic.dataclasses import dataclass

from fusion_core.errors import InputError
from fusion_core.growth import GROWTH_OPERATORS
from fusion_core.growth.options import Options
from fusion_core.models.t5 import Compute, T5Config
from fusion_core.text.corpus import DEFAULT_PACKAGES
from fusion_core.train.learning_rate import Schedule, constant_schedule, cosine_schedule, t5_schedule
from fusion_core.train.optimizer import adafactor, adamw, clipped
from fusion_core.train.training import Cadence

Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Word = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]

FORBID = ConfigDict(extra="forbid")
SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True, config=FORBID)
class DataSettings:
    """The text of a plan, shared by all nodes, and its tokenizer.

    Attributes:
      text: files or folders; if empty, the documentation of the standard library and of ``packages``.
      packages: see ``text``.
      documentation: read that documentation beside ``text`` too.
      tokenizer: folder with a ``tokenizer.json``; if empty, a tokenizer of ``vocab`` pieces is trained on the text.
      vocab: number of its pieces, without the sentinels.
      validation_share: share of the documents that are kept for validation.
      validation_batches: batches of every evaluation.
      stream: read the text as it is needed and never hold it whole; a trained tokenizer sees the beginning only.
      packed: with ``stream``, rows hold many documents that do not attend to each other.
    """

    text: tuple[Word, ...] = ()
    packages: tuple[Word, ...] = DEFAULT_PACKAGES
    documentation: Flag = False
    tokenizer: Word = ""
    vocab: Count = 4096
    validation_share: Annotated[float, Field(strict=True, ge=0, le=0.5)] = 0.05
    validation_batches: Count = 16
    stream: Flag = False
    packed: Flag = False

    def __post_init__(self) -> None:
        if self.stream and not self.text:
            raise InputError("data.stream is for text of yours; give data.text, or leave it out")
        if self.stream and self.documentation:
            raise InputError("data.documentation is for text that is held in memory; leave it or data.stream out")
        if self.packed and not self.stream:
            raise InputError("data.packed needs data.stream = true")


@dataclass(frozen=True, config=FORBID)
class OptimizerSettings:
    """An optimizer and its learning rate.

    Attributes:
      name: of the optimizer.
      rate: the peak learning rate; if None, that of the state the node goes on from, or 0.01 (Adafactor's relative unit) or
        0.001 (AdamW).
      clip: global norm that gradients are cut to; 0: none.
      weight_decay, b1, b2: of AdamW.
    """

    name: Literal["adafactor", "adamw"] = "adafactor"
    rate: Number | None = None
    clip: Number = 0.0
    weight_decay: Number = 0.0
    b1: Share = 0.9
    b2: Share = 0.999

    def __post_init__(self) -> None:
        if self.name == "adafactor" and self.weight_decay:
            raise InputError("optimizer.weight_decay is for adamw; leave it out, or take adamw")

    @property
    def first_rate(self) -> float:
        """Learning rate of a network from a random start."""
        default = 0.01 if self.name == "adafactor" else 0.001
        return default if self.rate is None else float(self.rate)

    @property
    def rule(self) -> str:
        """Name of the optimizer in ``fusion_core.rate_factors``."""
        return {"adafactor": "adafactor", "adamw": "adam"}[self.name]

    def build(self) -> optax.GradientTransformation:
        """Return the optimizer at learning rate 1, after clipping."""
        decay = {"b1": self.b1, "b2": self.b2, "weight_decay": self.weight_decay}
        return clipped(adafactor() if self.name == "adafactor" else adamw(**decay), self.clip or None)


@dataclass(frozen=True, config=FORBID)
class ScheduleSettings:
    """A factor of peak 1 on the learning rate.

    Attributes:
      kind: ``"rsqrt"`` is T5's.
      warmup: steps before which it is constant (rsqrt) or rises (the others).
      end: share of the peak at which the cosine ends.
      restart: count from this node's first step, so that after a growth the rate jumps, and warms up anew; if false, the
        schedule goes on as if there had been no growth.
      factor: on the schedule, at a restart.
    """

    kind: Literal["rsqrt", "cosine", "constant"] = "rsqrt"
    warmup: Whole = 10_000
    end: Share = 0.0
    restart: Flag = False
    factor: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0

    def __post_init__(self) -> None:
        if self.factor != 1.0 and not self.restart:
            raise InputError("schedule.factor is for a restart; set restart = true, or leave it out")

    def function(self, start: int, steps: int) -> Schedule:
        """Return the schedule, of the run's step, of a node that trains ``steps`` from step ``start`` on.

        Raises:
          InputError: the warm-up does not fit into the steps.
        """
        end = steps if self.restart else start + steps
        if self.kind == "rsqrt":
            schedule = t5_schedule(self.warmup)
        elif self.kind == "cosine":
            schedule = cosine_schedule(end, self.warmup, self.end)
        else:
            schedule = constant_schedule(self.warmup)
        return (lambda n: self.factor * schedule(n - start)) if self.restart else schedule


@dataclass(frozen=True, config=FORBID)
class TrainNode:
    """A network that is trained.

    Attributes:
      name: of the node.
      model: configuration of a network from a random start; if None, the node goes on from ``source_node``.
      source_node: the node (``from`` in the file) whose network it goes on with.
      steps: of training: a number; ``"35%"``, as many as cost this share of the plan's budget; ``"rest"``, as many as the
        budget has left after all nodes before this one; ``"auto"``, as the online rule decides.
      budget: of an ``auto`` node after a growth, in its own steps, its sources' included; if None, the plan's budget.
      cost_limit: share of that budget that lost trials of growing may cost.
      until_loss: end early, at the first evaluation whose validation loss is not above it.
      arm: name under which the comparison lists the path that ends here; if empty, a node without successors is an arm of
        its own name.
      batch: sequences in a global batch.
      accumulate: parts in which a device takes its share of the batch.
      length: tokens of a source sequence.
      seed: of initialisation, order of the data, masks and dropout.
      match_cross_attention: see ``fusion_core.models.t5.init``.
      compute: precision, memory and speed, see ``fusion_core.models.t5.Compute``.
      optimizer, schedule, cadence: see there.
    """

    name: Word
    steps: int | str
    model: InstanceOf[T5Config] | None = None
    source_node: Word = ""
    budget: Count | None = None
    cost_limit: Share = 0.05
    until_loss: Number | None = None
    arm: Word = ""
    batch: Count = 128
    accumulate: Count = 1
    length: Count = 512
    seed: Whole = 0
    match_cross_attention: Flag = False
    compute: InstanceOf[Compute] = Field(default_factory=Compute)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    cadence: Cadence = Field(default_factory=Cadence)

    @field_validator("steps", mode="before")
    @classmethod
    def _steps(cls, value: Any) -> Any:
        share = SHARE.fullmatch(value) if isinstance(value, str) else None
        if (type(value) is int and value >= 1) or value in ("auto", "rest") or (share and 0 < float(share[1]) <= 100):
            return value
        raise InputError(
            f"steps is {value!r}; it must be a whole number, at least 1, or a share of the budget such as '35%', 'rest' or "
            "'auto'"
        )

    def __post_init__(self) -> None:
        if (self.model is None) == (not self.source_node):
            raise InputError("give either a model, for a random start, or from = NODE, to go on with its network")
        if self.budget is not None and self.steps != "auto":
            raise InputError("a budget is for steps = 'auto'; leave one of the two out")

    @property
    def auto(self) -> bool:
        """Whether the online rule decides the steps."""
        return self.steps == "auto"

    @property
    def share(self) -> float | None:
        """Share of the plan's budget that the steps cost; None if they are given otherwise."""
        return float(SHARE.fullmatch(self.steps)[1]) / 100 if str(self.steps).endswith("%") else None  # type: ignore

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.source_node,) if self.source_node else ()


@dataclass(frozen=True, config=FORBID)
class FuseNode:
    """Networks that are fused into one.

    Attributes:
      name: of the node.
      sources: nodes, at least two; a node that is named twice is fused with itself.
      weights: of the sources in the mean; if empty, equal ones.
      norm, off_diagonal, noise, seed: as in ``fusion_core.fuse``.
      rates: ``"velocity"``: learning rates times ``fusion_core.rate_factors``; ``"keep"``: unchanged.
      optimizer_state: ``"fuse"``: moments by the map of the gradients; ``"fresh"``: none.
    """

    name: Word
    sources: tuple[Word, ...]
    weights: tuple[Number, ...] = ()
    norm: Literal["plain", "grouped"] = "plain"
    off_diagonal: Literal["zero", "random", "antisymmetric"] = "zero"
    noise: Number = 0.0
    seed: Whole = 0
    rates: Literal["velocity", "keep"] = "velocity"
    optimizer_state: Literal["fuse", "fresh"] = "fuse"

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise InputError("a fusion has at least two sources; name one twice to fuse it with itself")
        if (self.off_diagonal == "zero") != (self.noise == 0):
            raise InputError(f"noise is {self.noise} with off_diagonal = {self.off_diagonal!r}; give both or none")
        if self.off_diagonal == "antisymmetric" and len(set(self.sources)) > 1:
            raise InputError("antisymmetric noise is for copies of one source; take off_diagonal = 'random'")

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.sources


@dataclass(frozen=True, config=FORBID)
class GrowNode:
    """A network that is grown by an operator.

    Attributes:
      name: of the node.
      source_node: the node (``from`` in the file) whose network is grown.
      operator: a name in ``fusion_core.GROWTH_OPERATORS``.
      factor, width, depth, noise: as in ``fusion_core.grow``.
      seed: of what is drawn.
      rates: ``"velocity"``: learning rates times ``fusion_core.growth_rate_factors``; ``"keep"``: unchanged; if None, the
        first where the operator has such factors.
      optimizer_state: ``"grow"``: moments by the map of the gradients; ``"fresh"``: none.
    """

    name: Word
    source_node: Word
    operator: Word
    factor: Count | None = None
    width: Any = None
    depth: Any = None
    noise: Number = 0.0
    seed: Whole = 0
    rates: Literal["velocity", "keep"] | None = None
    optimizer_state: Literal["grow", "fresh"] = "grow"

    def __post_init__(self) -> None:
        known = GROWTH_OPERATORS.get(self.operator)
        if known is None:
            raise InputError(f"operator is {self.operator!r}; there are {', '.join(GROWTH_OPERATORS)}")
        if self.rates == "velocity" and known.properties.keeps_dynamics != "with factors":
            raise InputError(f"{self.operator} has no factors that keep the velocity; take rates = 'keep'")
        if self.operator == "random_init" and self.optimizer_state != "fresh":
            raise InputError("random_init keeps nothing of the network; take optimizer_state = 'fresh'")

    @property
    def velocity(self) -> bool:
        """Whether learning rates are multiplied with the operator's factors."""
        factors = GROWTH_OPERATORS[self.operator].properties.keeps_dynamics == "with factors"
        return self.rates == "velocity" or (self.rates is None and factors)

    def options(self, seed: int) -> Options:
        """Return the options of the operator, with the seed of the run."""
        return Options(self.factor, self.width, self.depth, seed, self.noise)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.source_node,)


GrowthNode = FuseNode | GrowNode
Node = TrainNode | FuseNode | GrowNode


@dataclass(frozen=True, config=FORBID)
class Budget:
    """What every arm of a plan may cost, its sources included: FLOPs, or steps of a node.

    Attributes:
      flops: model FLOPs of training.
      node: the node whose steps are counted.
      steps: their number.
    """

    flops: Number | None = None
    node: Word = ""
    steps: Count | None = None

    def __post_init__(self) -> None:
        if (self.flops is None) != bool(self.node and self.steps) or bool(self.node) != (self.steps is not None):
            raise InputError("the budget is a number of FLOPs, or { node = NAME, steps = NUMBER }; give one of the two")


@dataclass(frozen=True, config=FORBID)
class Plan:
    """A run as a graph of nodes.

    Attributes:
      name: of the run.
      nodes: in the file's order.
      data: of all of them.
      seed: of the split of the text and of its tokenizer; added to the nodes' own.
      seeds: the plan is run once for each, in the place of ``seed`` in the nodes; the text stays the same.
      steps_per_dispatch: training steps in one dispatch; all steps are multiples of it.
      budget: of every arm; shares and rests of it are steps of nodes.
      measure: estimate the theory's terms at every checkpoint.
    """

    name: Word
    nodes: tuple[Node, ...]
    data: DataSettings = Field(default_factory=DataSettings)
    seed: Whole = 0
    seeds: tuple[Whole, ...] = ()
    steps_per_dispatch: Count = 10
    budget: Budget | None = None
    measure: Flag = False

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InputError("the plan has no nodes; it needs at least one table [node.NAME]")
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds is {list(self.seeds)}; each must be there once")

    def node(self, name: str) -> Node:
        """Return the node of that name.

        Raises:
          InputError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise InputError(f"there is no node {name!r}; there are {', '.join(node.name for node in self.nodes)}")
