"""What a fusion of checkpoint folders will write, from configurations and headers alone."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from fusion_core.checkpoints.checkpoint import Checkpoint, open_checkpoint, same_network
from fusion_core.checkpoints.comparison import moments_of, text_batch
from fusion_core.checkpoints.ranges import Reader
from fusion_core.checkpoints.stream import FusedTensor, Noise
from fusion_core.checkpoints.tokenizers import check_same_tokenizer
from fusion_core.checkpoints.write import plan_shards
from fusion_core.errors import InputError
from fusion_core.growth import fused_config, fusion_map
from fusion_core.growth.agreement import NORM_MODES
from fusion_core.growth.networks import calibrated_map
from fusion_core.models.units import by_name

DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
SHARD = 5_000_000_000  # bytes
CALIBRATION_ROWS = 16  # windows of text, of at most 64 tokens each


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
      noise: standard deviation of the noise in units of each weight's root mean square; 0: none.
      seed: of the noise.
      calibrated_on: tokens that the norms' scales were fitted to; 0: plain norms.
    """

    sources: tuple[Checkpoint, ...]
    weights: tuple[float, ...]
    config: Any
    tensors: tuple[FusedTensor, ...]
    shards: dict[str, list[FusedTensor]]
    equal: bool
    noise: float
    seed: int
    calibrated_on: int = 0

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
            + (
                f", which is undone on average by factors fitted to {self.calibrated_on} tokens"
                if self.calibrated_on
                else ""
            )
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
    norm: str = "plain",
    calibration: Sequence[str] | None = None,
    noise: float | int = 0.0,
    seed: int = 0,
    largest_shard: int = SHARD,
) -> FusionPlan:
    """Opens the checkpoints, checks that they can be fused, and says what would be written.

    Args:
      folders: of the sources, two or more; the same one twice is a self-fusion.
      weights: of the sources in the mean; None: equal ones.
      dtype: ``"bf16"``, ``"f16"`` or ``"f32"``; None: of each tensor what the sources have in common.
      norm: ``"plain"`` or ``"calibrated"`` (``fusion_core.calibrate``); grouped norms have no place in these files.
      calibration: texts that calibrated norms are fitted to, with the tokenizer of the sources; 16 windows are taken.
      noise: standard deviation of function-preserving noise on every weight that reads a source's activations, in units of
        each weight's root mean square: ``fuse(off_diagonal="antisymmetric")``. For equal sources only.
      seed: of the noise, and of the windows of the calibration.
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
    if norm not in NORM_MODES:
        raise InputError(f"the norm mode is {norm!r}; it can be plain or calibrated")
    if norm == "grouped":
        raise InputError(
            "grouped norms cannot be written: Hugging Face's format has one norm over the whole width; take plain or "
            "calibrated, or fuse in Python with fusion_core.fuse(networks, norm='grouped')"
        )
    if (norm == "calibrated") != (calibration is not None):
        raise InputError(
            "calibrated norms are fitted to text: give some"
            if calibration is None
            else f"a text for calibration was given, but the norms are {norm}; leave it out, or ask for calibrated norms"
        )
    # one folder given twice is opened once
    opened = {pathlib.Path(folder): open_checkpoint(folder) for folder in dict.fromkeys(folders)}
    sources = tuple(opened[pathlib.Path(folder)] for folder in folders)
    configs = [source.config for source in sources]
    mapping = fusion_map(configs, weights)
    check_same_tokenizer([source.folder for source in sources])
    with Reader() as reader:
        equal = all(same_network(reader, sources[0], source) for source in sources[1:])
    if noise and not equal:
        raise InputError(
            "noise keeps the function only where the sources are one network: fuse a checkpoint with itself, or leave "
            "the noise out"
        )
    calibrated_on = 0
    if calibration is not None:
        batch = text_batch(sources, calibration, CALIBRATION_ROWS, seed)
        calibrated_on = int(batch["targets"].size)
        watched = {source.folder: moments_of(source, batch) for source in opened.values()}
        mapping = calibrated_map(configs, [watched[source.folder] for source in sources], weights)
    tensors = []
    for array, (name, rule) in enumerate(by_name(mapping.rules).items()):
        entries = tuple(source.tensors[name] for source in sources)
        code = DTYPES[dtype] if dtype else _common_dtype([entry.dtype for entry in entries])
        added = Noise(float(noise), seed, array) if noise and rule.reads is not None else None
        tensors.append(FusedTensor(name, rule, entries, code, added))
    return FusionPlan(
        sources=sources,
        weights=mapping.weights,
        config=fused_config(configs),
        tensors=tuple(tensors),
        shards=plan_shards(tensors, largest_shard),
        equal=equal,
        noise=float(noise),
        seed=seed,
        calibrated_on=calibrated_on,
    )
