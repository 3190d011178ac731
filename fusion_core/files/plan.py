"""What a fusion of checkpoint folders will write, from configurations and headers alone."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.files.checkpoint import Checkpoint, open_checkpoint, same_network
from fusion_core.files.ranges import Reader
from fusion_core.files.stream import FusedTensor, Noise
from fusion_core.files.tokenizers import check_same_tokenizer
from fusion_core.files.write import plan_shards
from fusion_core.fusion import fused_config, fusion_map
from fusion_core.t5.files import flat_names

DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
SHARD = 5_000_000_000  # bytes


@dataclasses.dataclass(frozen=True)
class FusionPlan:
    """What a fusion of checkpoints will write; nothing is read but configurations and headers.

    Attributes:
      sources: the checkpoints.
      weights: of their mean.
      config: of the fused network.
      tensors: of the fused network, in the order of its table.
      shards: file name -> its tensors.
      equal: whether all sources are one network, bit for bit.
      noise: standard deviation of the noise in units of each weight's mean absolute entry; 0: none.
      seed: of the noise.
    """

    sources: tuple[Checkpoint, ...]
    weights: tuple[float, ...]
    config: Any
    tensors: tuple[FusedTensor, ...]
    shards: dict[str, list[FusedTensor]]
    equal: bool
    noise: float
    seed: int

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bytes_read(self) -> int:
        return sum(entry.nbytes for tensor in self.tensors for entry in tensor.entries)

    @property
    def dtypes(self) -> dict[str, int]:
        """dtype -> number of tensors, the most frequent first."""
        names = [tensor.dtype for tensor in self.tensors]
        return dict(sorted(((name, names.count(name)) for name in set(names)), key=lambda pair: -pair[1]))

    @property
    def exactness(self) -> str:
        """In a sentence: how far the fused network's outputs are the mean of the sources'."""
        rounded = {t.dtype for t in self.tensors} - {"F32", "F64"}
        rounding = f", up to rounding in {'/'.join(sorted(rounded)).lower()}" if rounded else ", up to rounding"
        if self.equal:
            noise = ", and the noise cancels over the copies" if self.noise else ""
            return f"exact: the sources are one network, so that the norms' statistics agree{noise}{rounding}"
        return (
            "not exact: every block computes what its source computes, but the norms see the mean square of all sources "
            "together and rescale each of them"
        )


def _common_dtype(codes: Sequence[str]) -> str:
    """Of arrays that meet: bfloat16 and float16 meet in float32, as in JAX."""
    if len(set(codes)) == 1:
        return codes[0]
    return "F64" if "F64" in codes else "F32"


def plan_fusion(
    folders: Sequence[str | pathlib.Path],
    weights: Sequence[float] | None = None,
    *,
    dtype: str | None = None,
    noise: float | int = 0.0,
    seed: int = 0,
    largest_shard: int = SHARD,
) -> FusionPlan:
    """Opens the checkpoints, checks that they can be fused, and says what would be written.

    Args:
      folders: of the sources, two or more; the same one twice is a self-fusion.
      weights: of the sources in the mean; None: equal ones.
      dtype: ``"bf16"``, ``"f16"`` or ``"f32"``; None: of each tensor what the sources have in common.
      noise: standard deviation of function-preserving noise on the block-diagonal weights, in units of each weight's
        mean absolute entry. For equal sources only.
      seed: of the noise.
      largest_shard: bytes of tensors in one file.

    Raises:
      InputError: a checkpoint is damaged, the networks or their tokenizers do not fit together, or an option is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"the dtype is {dtype!r}; it can be {', '.join(DTYPES)}")
    if not math.isfinite(noise) or noise < 0:
        raise InputError(f"the noise is {noise}; it must be finite and not negative")
    if seed < 0:
        raise InputError(f"the seed is {seed}; it must not be negative")
    if largest_shard < 1:
        raise InputError(f"the largest shard is {largest_shard} bytes; it must be at least 1")
    # one folder given twice is opened once
    opened = {pathlib.Path(folder): open_checkpoint(folder) for folder in dict.fromkeys(folders)}
    sources = tuple(opened[pathlib.Path(folder)] for folder in folders)
    mapping = fusion_map([source.config for source in sources], weights)
    check_same_tokenizer([source.folder for source in sources])
    with Reader() as reader:
        equal = all(same_network(reader, sources[0], source) for source in sources[1:])
    if noise and not equal:
        raise InputError(
            "noise keeps the function only where the sources are one network: fuse a checkpoint with itself, or leave "
            "the noise out"
        )
    architecture = sources[0].architecture
    tensors = []
    for name, rule in flat_names(mapping.rules).items():
        entries = tuple(source.tensors[name] for source in sources)
        code = DTYPES[dtype] if dtype else _common_dtype([entry.dtype for entry in entries])
        added = Noise(float(noise), seed) if noise and architecture.input_axis(name) is not None else None
        tensors.append(FusedTensor(name, rule, entries, code, added))
    return FusionPlan(
        sources=sources,
        weights=mapping.weights,
        config=fused_config([source.config for source in sources]),
        tensors=tuple(tensors),
        shards=plan_shards(tensors, largest_shard),
        equal=equal,
        noise=float(noise),
        seed=seed,
    )
