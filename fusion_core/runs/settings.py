"""The settings of a plan's nodes: text, optimizer, schedule; and the types of checked values."""

from __future__ import annotations

from typing import Annotated, Literal

import optax
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from fusion_core.errors import InputError
from fusion_core.seeds import check_seed
from fusion_core.text.corpus import DEFAULT_PACKAGES
from fusion_core.text.tokenizer import SMALLEST
from fusion_core.train.learning_rate import Schedule, constant_schedule, cosine_schedule, t5_schedule
from fusion_core.train.optimizer import adafactor, adamw, clipped

LARGEST = 10**12  # of a count: more is a mistake, and some would be worked off one by one
Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Seed = Annotated[int, Field(strict=True), AfterValidator(check_seed)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Word = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]

FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=FORBID)
class DataSettings:
    """The text of a plan, shared by all nodes, and its tokenizer.

    Attributes:
      text: files or folders; if empty, the documentation of the standard library and of ``packages``.
      packages: see ``text``.
      documentation: read that documentation beside ``text`` too.
      tokenizer: folder with a ``tokenizer.json``; if empty, a tokenizer of ``vocab`` pieces is trained on the text.
      vocab: number of its pieces, without the sentinels.
      tokenizer_sample: characters of lines, drawn from the text, on which it is trained; 0: all of the text.
      validation_share: share of the documents that are kept for validation.
      validation_batches: batches of every evaluation.
      stream: read the text as it is needed and never hold it whole; a trained tokenizer sees the beginning only.
      packed: with ``stream``, rows hold many documents that do not attend to each other.
    """

    text: tuple[Word, ...] = ()
    packages: tuple[Word, ...] = DEFAULT_PACKAGES
    documentation: Flag = False
    tokenizer: Word = ""
    vocab: Annotated[int, Field(strict=True, ge=SMALLEST, le=LARGEST)] = 4096
    tokenizer_sample: Whole = 0
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
    rate: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None
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
