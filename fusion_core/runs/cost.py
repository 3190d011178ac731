"""What a plan costs before anything runs: FLOPs, memory, device-hours. The formulas are in docs/train.md."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import parameter_shapes
from fusion_core.runs.graph import Resolved
from fusion_core.runs.optimizers import optimizer_of
from fusion_core.runs.schema import TrainNode
from fusion_core.text.span_corruption import target_length

FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a node. Memory is of one device, in bytes.

    Attributes:
      name, kind: of the node.
      parameters: how many.
      steps: of training; None: the online rule decides.
      flops: of the whole node; an ``auto`` group's are all with its grown network.
      hours: device-hours at the rate that was assumed.
      parameter_bytes, optimizer_bytes, gradient_bytes: exact, from the shapes.
      activation_bytes: an estimate.
    """

    name: str
    kind: str
    parameters: int
    steps: int | None
    flops: float
    hours: float
    parameter_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    activation_bytes: int

    @property
    def memory(self) -> int:
        return self.parameter_bytes + self.optimizer_bytes + self.gradient_bytes + self.activation_bytes


def shapes_of(config: T5Config) -> Any:
    """The parameters' shapes and types."""
    return parameter_shapes(config)


def tree_bytes(tree: Any) -> int:
    """Of all arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def activation_bytes(config: T5Config, rows: int, source: int, target: int) -> int:
    """Estimate of what the forward pass keeps for the backward one, in float32 and without rematerialisation.

    For each token of a layer its stream before and after the norms, q, k, v and what attention gives, and the feed-forward's
    inner width three times, gated six; for each pair of tokens of each head, attention's logits and weights; for each
    target token its logits and their softmax. What XLA reserves on a CPU is 0.98 to 1.09 of this, over widths 64 to 256.
    """
    d, inner, heads = config.d_model, config.inner_dim, config.num_heads
    ff = (6 if config.gated else 3) * config.d_ff
    encoder = source * (4 * d + 4 * inner + ff) + 2 * heads * source * source
    decoder = target * (6 * d + 6 * inner + ff) + 2 * source * inner + 2 * heads * target * (target + source)
    logits = 2 * target * config.vocab_size
    return FLOAT * rows * (config.num_layers * encoder + config.num_decoder_layers * decoder + logits)


def cost_of(resolved: Resolved, devices: int, flops_per_second: float) -> Cost:
    """The cost of one node on ``devices`` devices that each do ``flops_per_second`` of the model's own FLOPs."""
    shapes = shapes_of(resolved.config)
    bytes_of_params = tree_bytes(shapes)
    node = resolved.node
    common = (resolved.name, "train" if isinstance(node, TrainNode) else "fuse", bytes_of_params // FLOAT)
    if not isinstance(node, TrainNode):
        # the sources' states and the fused one's, which is as large as four of two equal sources'
        return Cost(*common, None, 0.0, 0.0, 2 * bytes_of_params, 0, 0, 0)
    state = jax.eval_shape(optimizer_of(node.optimizer, lambda n: n).init, shapes)
    rows = max(1, node.batch // (devices * node.accumulate))
    return Cost(
        *common,
        node.steps,
        resolved.flops,
        resolved.flops / flops_per_second / 3600,
        bytes_of_params,
        tree_bytes(state),
        bytes_of_params * (1 if node.accumulate == 1 else 2),
        activation_bytes(resolved.config, rows, node.length, target_length(node.length)),
    )


def costs(nodes: Sequence[Resolved], devices: int, flops_per_second: float) -> list[Cost]:
    """Of all nodes."""
    return [cost_of(node, devices, flops_per_second) for node in nodes]
