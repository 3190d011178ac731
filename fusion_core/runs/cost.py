"""The cost of a plan before it runs: FLOPs, memory, device-hours. The formulas are in docs/train.md."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax

from fusion_core.models.t5.config import T5Config
from fusion_core.models.t5.model import parameter_shapes
from fusion_core.runs.graph import Resolved, budget_flops
from fusion_core.runs.plan import FuseNode, Plan, TrainNode
from fusion_core.runs.settings import OptimizerSettings
from fusion_core.text.span_corruption import target_length

FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a node. Memory is that of one device, in bytes.

    Attributes:
      name, kind: of the node.
      parameters: their number.
      steps: of training; None if they are decided while the plan runs.
      flops: of the whole node; those of an ``auto`` group are all with its grown network. None if not known.
      hours: device-hours at the rate that was assumed.
      parameter_bytes, optimizer_bytes, gradient_bytes: exact, from the shapes; the optimizer's with a ramp of every entry.
      activation_bytes: an estimate.
    """

    name: str
    kind: str
    parameters: int
    steps: int | None
    flops: float | None
    hours: float | None
    parameter_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    activation_bytes: int

    @property
    def memory(self) -> int:
        return self.parameter_bytes + self.optimizer_bytes + self.gradient_bytes + self.activation_bytes


def tree_bytes(tree: Any) -> int:
    """Return the bytes of all arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def activation_bytes(config: T5Config, rows: int, source: int, target: int) -> int:
    """Estimate the memory that the forward pass keeps for the backward one, in float32 and without rematerialisation.

    For each token of a layer: its stream before and after the norms, q, k, v and what attention gives, and the feed-forward's
    inner width three times, gated six; for each pair of tokens of each head, attention's logits and weights; for each
    target token its logits and their softmax. What XLA reserves on a CPU is 0.98 to 1.09 of this, over widths 64 to 256.
    """
    d, inner, heads = config.d_model, config.inner_dim, config.num_heads
    ff = (6 if config.gated else 3) * config.d_ff
    encoder = source * (4 * d + 4 * inner + ff) + 2 * heads * source * source
    decoder = target * (6 * d + 6 * inner + ff) + 2 * source * inner + 2 * heads * target * (target + source)
    logits = 2 * target * config.vocab_size
    return FLOAT * rows * (config.num_layers * encoder + config.num_decoder_layers * decoder + logits)


@functools.lru_cache(maxsize=64)
def _state_bytes(optimizer: OptimizerSettings, config: T5Config) -> int:
    """Return the bytes of an optimizer's state: shapes alone are traced, once for all nodes of a kind."""
    return tree_bytes(jax.eval_shape(optimizer.build().init, parameter_shapes(config)))


def cost_of(resolved: Resolved, devices: int, flops_per_second: float) -> Cost:
    """Return the cost of one node on ``devices`` devices that each do ``flops_per_second`` of the model's own FLOPs."""
    shapes = parameter_shapes(resolved.config)
    bytes_of_params = tree_bytes(shapes)
    node = resolved.node
    kind = "train" if isinstance(node, TrainNode) else "fuse" if isinstance(node, FuseNode) else "grow"
    common = (resolved.name, kind, bytes_of_params // FLOAT)
    if not isinstance(node, TrainNode):
        # sources plus result; fusing two equal networks about quadruples the hidden weights
        spent = resolved.flops or 0.0
        return Cost(*common, None, spent, spent / flops_per_second / 3600, 2 * bytes_of_params, 0, 0, 0)
    rows = max(1, node.batch // (devices * node.accumulate))
    return Cost(
        *common,
        resolved.steps,
        resolved.flops,
        None if resolved.flops is None else resolved.flops / flops_per_second / 3600,
        bytes_of_params,
        _state_bytes(node.optimizer, resolved.config) + (bytes_of_params if resolved.ramp == "entry" else 0),
        bytes_of_params * (1 if node.accumulate == 1 else 2),
        activation_bytes(resolved.config, rows, node.length, target_length(node.length)),
    )


def costs(nodes: Sequence[Resolved], devices: int, flops_per_second: float) -> list[Cost]:
    """Return the costs of all nodes."""
    return [cost_of(node, devices, flops_per_second) for node in nodes]


def arm_flops(plan: Plan, nodes: Sequence[Resolved]) -> dict[str, float | None]:
    """Return what every arm of a plan costs, its sources included, in FLOPs: arm -> FLOPs, None if not known beforehand.

    Arms are the nodes that the plan names as such and those without successors.
    """
    used = {name for node in nodes for name in node.node.inputs}
    named = {node.name: node for node in nodes}
    found: dict[str, float | None] = {}
    for node in nodes:
        if isinstance(node.node, TrainNode) and (node.node.arm or node.name not in used):
            total = None if node.spent is None else math.fsum(node.spent.values())
            if total is None and node.node.auto:
                total = node.flops
            elif total is None and node.node.steps == "rest":
                total = budget_flops(plan, named)
            found[node.node.arm or node.name] = total
    return found
