"""What a demo run is made of; saved with the run, so that it can be resumed."""

from __future__ import annotations

import dataclasses

from fusion_core.errors import InputError
from fusion_core.growth import fused_config
from fusion_core.models.t5 import T5Config, step_flops
from fusion_core.text.corpus import DEFAULT_PACKAGES
from fusion_core.text.span_corruption import target_length
from fusion_core.text.tokenizer import SENTINELS


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """Settings of a demo run.

    Attributes:
      seed: of everything that is random: split, tokenizer, initialisation, order of the data, masks.
      text: files or folders of text; empty: the documentation of the standard library and of ``packages``.
      packages: see ``text``.
      vocab: pieces of the tokenizer, without the sentinels.
      d_model, d_kv, layers: of a small network, d_ff = 4 d_model; the grown network is twice as wide.
      batch: sequences a step.
      source: tokens of a source sequence.
      budget: FLOPs of every arm, in steps of the large network.
      match_cross_attention: see ``fusion_core.models.t5.init``; it shortens the plateau on which small networks begin.
      small_rate, large_rate: learning rates (Adafactor's) of the small networks and of the large one from scratch.
      pairs: pairs of batches behind every measurement of the theory's terms.
      trial_share: of the budget, for the grown network in a trial of growing.
      trial_batches: fresh batches that a trial is judged on.
      cost_limit: share of the budget that lost trials may cost.
      validation_batches: batches of every evaluation.
      validation_share: share of the documents that are kept for validation.
    """

    seed: int = 0
    text: tuple[str, ...] = ()
    packages: tuple[str, ...] = DEFAULT_PACKAGES
    vocab: int = 4096
    d_model: int = 16
    d_kv: int = 8
    layers: int = 2
    batch: int = 16
    source: int = 128
    budget: int = 4000
    match_cross_attention: bool = True
    small_rate: float = 0.02
    large_rate: float = 0.02
    pairs: int = 4
    trial_share: float = 0.04
    trial_batches: int = 16
    cost_limit: float = 0.05
    validation_batches: int = 32
    validation_share: float = 0.05
    steps_per_dispatch: int = 10

    def __post_init__(self) -> None:
        # JSON has lists where these have tuples
        object.__setattr__(self, "text", tuple(self.text))
        object.__setattr__(self, "packages", tuple(self.packages))
        for name in ("vocab", "d_model", "d_kv", "layers", "batch", "source", "budget", "steps_per_dispatch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.d_model % self.d_kv:
            raise InputError(f"d_model is {self.d_model} and d_kv {self.d_kv}; d_kv must divide d_model")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; it must not be negative")
        least = self.smallest_budget
        if self.budget < least:
            raise InputError(f"a budget of {self.budget} large steps is too small for the arms; take at least {least}")

    @property
    def smallest_budget(self) -> int:
        return 10 * self.steps_per_dispatch

    @property
    def small(self) -> T5Config:
        """Configuration of a source."""
        return T5Config(
            vocab_size=self.vocab + SENTINELS,
            d_model=self.d_model,
            d_kv=self.d_kv,
            d_ff=4 * self.d_model,
            num_layers=self.layers,
            num_decoder_layers=self.layers,
            num_heads=self.d_model // self.d_kv,
        )

    @property
    def large(self) -> T5Config:
        """Configuration of two fused sources."""
        return fused_config([self.small, self.small])

    def flops(self, config: T5Config) -> float:
        """FLOPs of one training step."""
        return step_flops(config, self.batch, self.source, target_length(self.source))

    @property
    def total_flops(self) -> float:
        """FLOPs that every arm may use, its sources' included."""
        return self.budget * self.flops(self.large)


PRESETS = {
    "default": DemoSettings(),
    "smoke": DemoSettings(
        packages=(),
        vocab=512,
        d_model=16,
        d_kv=8,
        layers=1,
        batch=8,
        source=64,
        budget=150,
        pairs=2,
        # a trial takes two dispatches at least, and here they are an eighth of the budget
        trial_batches=4,
        cost_limit=0.2,
        validation_batches=4,
    ),
}
