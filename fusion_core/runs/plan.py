"""The plan: networks that are trained, fused and grown, as frozen dataclasses. The file's syntax is in docs/train.md."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, InstanceOf, field_validator
from pydantic.dataclasses import dataclass

from fusion_core.errors import InputError
from fusion_core.growth import GROWTH_OPERATORS
from fusion_core.growth.noise import SELF_FUSION_NOISE
from fusion_core.growth.options import Options
from fusion_core.models.t5 import Compute, T5Config
from fusion_core.runs.settings import (
    FORBID,
    Count,
    DataSettings,
    Flag,
    Number,
    OptimizerSettings,
    ScheduleSettings,
    Seed,
    Share,
    Word,
)
from fusion_core.train.training import Cadence

Rates = Literal["velocity", "keep", "rewarm", "rewarm_new", "relax"]
RAMPS: dict[str, str] = {"rewarm": "array", "rewarm_new": "entry", "relax": "array"}  # what has a factor of its own
# tokens of a source: one that is noise, its sentinel, and the end; as many as T5 counts in float32
SHORTEST, LONGEST = 3, 2**24
MOST_NODES, LONGEST_NAME = 500, 100  # of a plan; letters, for a name is a folder's
MOST_SOURCES = 100  # of a fusion
REWARM = 200  # steps in which rates go to their final values, if a node does not say how many
SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


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
      base_width: learning rates of a random start are times ``fusion_core.rate_factors`` for ``d_model / base_width`` copies:
        those of a network of this width carried over (width-aware rates); if None, all arrays have one rate.
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
    length: Annotated[int, Field(strict=True, ge=SHORTEST, le=LONGEST)] = 512
    seed: Seed = 0
    match_cross_attention: Flag = False
    compute: InstanceOf[Compute] = Field(default_factory=Compute)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    cadence: Cadence = Field(default_factory=Cadence)
    base_width: Count | None = None

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
        if self.base_width is not None:
            if self.model is None:
                raise InputError(
                    "base_width is for a random start; leave it out, this node goes on with its source's rates"
                )
            if self.model.d_model % self.base_width or self.model.d_model < 2 * self.base_width:
                raise InputError(
                    f"base_width is {self.base_width}, but d_model is {self.model.d_model}; take a width of which it is a "
                    "multiple, at least twice it"
                )

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


class Recipe(NamedTuple):
    """What a growth does with copies, learning rates and optimizer state: what the node says, or the defaults.

    Attributes:
      off_diagonal: blocks between the sources; empty if the node has an operator.
      noise: see ``fusion_core.fuse`` and ``fusion_core.grow``.
      rates: see ``FuseNode``.
      rewarm: steps of the ramp; 0 if the rates have none.
      optimizer_state: ``"fuse"`` or ``"grow"``, ``"fresh"``, ``"fresh_new"``.
    """

    off_diagonal: str
    noise: float
    rates: str
    rewarm: int
    optimizer_state: str

    @property
    def ramp(self) -> str:
        """What has a factor of its own in the ramp: ``"array"`` or ``"entry"``; empty if there is no ramp."""
        return RAMPS.get(self.rates, "")

    @property
    def velocity(self) -> bool:
        """Whether the rates have the factors that keep the velocity, for good or at first."""
        return self.rates in ("velocity", "relax")


def _ramp_steps(rates: str, rewarm: int | None) -> int:
    if rewarm is not None and rates not in RAMPS:
        raise InputError(f"rewarm is {rewarm} with rates = {rates!r}, which change at once; take {', '.join(RAMPS)}")
    return 0 if rates not in RAMPS else REWARM if rewarm is None else rewarm


@dataclass(frozen=True, config=FORBID)
class FuseNode:
    """Networks that are fused into one.

    Attributes:
      name: of the node.
      sources: nodes, at least two; a node that is named twice is fused with itself.
      weights: of the sources in the mean; if empty, equal ones.
      norm, seed: as in ``fusion_core.fuse``.
      off_diagonal, noise: as in ``fusion_core.fuse``; if None, ``"antisymmetric"`` with ``SELF_FUSION_NOISE`` for copies of one
        source, else ``"zero"``. Copies with zeros between them have equal gradients, and rounding alone parts them.
        ``"separating"``: copies are pushed apart along the directions in which they part fastest
        (``fusion_core.schedule.separation``), on antisymmetric noise of ``noise`` if that is given. What finding them costs
        counts as FLOPs of the node.
        A noise of ``"auto"``, between copies, is as large as training's step takes (``fusion_core.schedule.choose_noise``);
        its measurements count as FLOPs of the node.
      push: of ``"separating"``: the norm of the push, as that of antisymmetric noise of this size; if None, the one that
        lowers the loss on a few batches most.
      rates: ``"velocity"``: learning rates times ``fusion_core.rate_factors``; ``"keep"``: unchanged; ``"rewarm"``: unchanged
        after they have risen from 0; ``"rewarm_new"``: the same, but of new entries alone, those outside the first
        source's own blocks; ``"relax"``: at first as ``"velocity"``, then going to ``"keep"``.
      rewarm: steps in which the last three go there, linearly; if None, 200.
      optimizer_state: ``"fuse"``: moments by the map of the gradients; ``"fresh"``: none; ``"fresh_new"``: as ``"fuse"``, but
        those of new entries begin anew (``fusion_core.train.grow_optimizer_state``).
    """

    name: Word
    sources: tuple[Word, ...]
    weights: tuple[Number, ...] = ()
    norm: Literal["plain", "grouped"] = "plain"
    off_diagonal: Literal["zero", "random", "antisymmetric", "separating"] | None = None
    noise: Number | Literal["auto"] | None = None
    push: Number | None = None
    seed: Seed = 0
    rates: Rates = "velocity"
    rewarm: Count | None = None
    optimizer_state: Literal["fuse", "fresh", "fresh_new"] = "fuse"

    def __post_init__(self) -> None:
        if len(self.sources) < 2:
            raise InputError("a fusion has at least two sources; name one twice to fuse it with itself")
        if len(self.sources) > MOST_SOURCES:
            raise InputError(f"a fusion has at most {MOST_SOURCES} sources, here {len(self.sources):,}; fuse in steps")
        blocks, noise = self.recipe[:2]
        if self.push is not None and (blocks != "separating" or self.push == 0):
            raise InputError(
                f"push is {self.push} with off_diagonal = {blocks!r}; it is above 0, and of 'separating' alone"
            )
        if self.noise == "auto" and blocks != "antisymmetric":
            raise InputError(
                f"noise = 'auto' is between copies of one source; give a number with off_diagonal = {blocks!r}"
            )
        if blocks != "separating" and (blocks == "zero") != (noise == 0):
            raise InputError(f"noise is {noise} with off_diagonal = {blocks!r}; give both or none")
        if self.off_diagonal in ("antisymmetric", "separating") and len(set(self.sources)) > 1:
            what = "antisymmetric noise is" if self.off_diagonal == "antisymmetric" else "'separating' is"
            raise InputError(f"{what} for copies of one source; take off_diagonal = 'random'")

    @property
    def recipe(self) -> Recipe:
        """What the growth does, with the defaults in place."""
        blocks = self.off_diagonal or ("antisymmetric" if len(set(self.sources)) == 1 else "zero")
        default = SELF_FUSION_NOISE if blocks == "antisymmetric" else 0.0
        noise = default if self.noise is None or self.noise == "auto" else float(self.noise)
        return Recipe(blocks, noise, self.rates, _ramp_steps(self.rates, self.rewarm), self.optimizer_state)

    @property
    def never_parting(self) -> tuple[str, ...]:
        """Sources whose copies have equal gradients: they are named twice and nothing is between them."""
        twice = (name for name in dict.fromkeys(self.sources) if self.sources.count(name) > 1)
        return tuple(twice) if self.recipe.off_diagonal == "zero" else ()

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
      rates, rewarm: as of a ``FuseNode``, with ``fusion_core.growth_rate_factors``; new entries are those of later copies and
        of new layers. Or ``"width"``: times ``fusion_core.rate_factors`` of so many copies as the grown ``d_model`` is times
        the small one, also where the new units are no copies (width-aware rates). If None, the operator's own, else
        ``"velocity"`` where it has such factors, else ``"keep"``.
      optimizer_state: ``"grow"``: moments by the map of the gradients; ``"fresh"``, ``"fresh_new"``: as of a ``FuseNode``. If
        None, the operator's own, else ``"grow"``.
    """

    name: Word
    source_node: Word
    operator: Word
    factor: Count | None = None
    width: Any = None
    depth: Any = None
    noise: Number = 0.0
    seed: Seed = 0
    rates: Rates | Literal["width"] | None = None
    rewarm: Count | None = None
    optimizer_state: Literal["grow", "fresh", "fresh_new"] | None = None

    def __post_init__(self) -> None:
        known = GROWTH_OPERATORS.get(self.operator)
        if known is None:
            raise InputError(f"operator is {self.operator!r}; there are {', '.join(GROWTH_OPERATORS)}")
        if self.recipe.velocity and known.properties.keeps_dynamics != "with factors":
            raise InputError(f"{self.operator} has no factors that keep the velocity; take rates = 'keep'")
        if self.operator == "random_init" and self.recipe.optimizer_state != "fresh":
            raise InputError("random_init keeps nothing of the network; take optimizer_state = 'fresh'")

    @property
    def recipe(self) -> Recipe:
        """What the growth does, with the operator's and the node's defaults in place."""
        operator = GROWTH_OPERATORS[self.operator]
        own = operator.rates or ("velocity" if operator.properties.keeps_dynamics == "with factors" else "keep")
        rates, state = self.rates or own, self.optimizer_state or operator.optimizer_state or "grow"
        return Recipe("", float(self.noise), rates, _ramp_steps(rates, self.rewarm), state)

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
class RuleSettings:
    """What decides ``steps = "auto"``.

    Attributes:
      law: file of a law of growth that was fitted before (``fusion_core.schedule.SavedLaw``). It decides if it is sure enough;
        else the online rule does.
    """

    law: Word


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
      rule: what decides ``steps = "auto"``; if None, the online rule.
      measure: estimate the theory's terms at every checkpoint.
    """

    name: Word
    nodes: tuple[Node, ...]
    data: DataSettings = Field(default_factory=DataSettings)
    seed: Seed = 0
    seeds: tuple[Seed, ...] = ()
    steps_per_dispatch: Count = 10
    budget: Budget | None = None
    rule: RuleSettings | None = None
    measure: Flag = False

    def __post_init__(self) -> None:
        if len(self.nodes) > MOST_NODES:
            raise InputError(
                f"the plan has {len(self.nodes):,} nodes; at most {MOST_NODES} can be in one, make several plans"
            )
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


def plan_values(plan: Plan) -> dict[str, Any]:
    """Return a plan in JSON's types, as ``plan.json`` has it: a sample of all text is left out, as earlier versions had it."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    if not values["data"]["tokenizer_sample"]:
        del values["data"]["tokenizer_sample"]
    return values
