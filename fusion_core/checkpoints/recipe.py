"""Recipes for fusing or growing checkpoint folders, from configurations and headers alone."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fusion_core.checkpoints.checkpoint import Checkpoint, open_checkpoint, same_network
from fusion_core.checkpoints.comparison import check_runs, moments_of, text_batch
from fusion_core.checkpoints.growth_file import Event
from fusion_core.checkpoints.ranges import Reader
from fusion_core.checkpoints.stream import DrawnTensor, GrownTensor, Noise
from fusion_core.checkpoints.tokenizers import check_same_tokenizer
from fusion_core.checkpoints.write import split_into_shards
from fusion_core.errors import InputError
from fusion_core.growth import GROWTH_OPERATORS, NORM_MODES, GrowthMap, fused_config, fusion_map
from fusion_core.growth.agreement import Kept, with_first
from fusion_core.growth.maps import Block, Rule
from fusion_core.growth.norms import calibrated
from fusion_core.growth.operators import growth_of
from fusion_core.growth.options import Growth, Options
from fusion_core.models.registry import architecture, layouts
from fusion_core.models.units import by_name

DTYPES = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
SHARD = 5_000_000_000  # bytes
CALIBRATION_ROWS = 16  # windows of text, of at most 64 tokens each


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe of a fusion of checkpoints, or of a growth of one, made from configurations and headers alone.

    Attributes:
      sources: the checkpoints.
      weights: their weights in the mean.
      config: configuration of the grown network.
      tensors: tensors of the grown network, in the order of its table.
      shards: file name -> its tensors.
      equal: whether all sources are one network, bit for bit.
      operator: the growth operator's name; None for a fusion.
      sizes: the operator's ``factor``, ``width``, ``depth`` and ``seed``.
      noise: standard deviation of the noise in units of each weight's root mean square; 0 if there is none.
      seed: seed of the noise.
      calibrated_on: number of tokens that the norms' scales were fitted to; 0 for plain norms.
      kept: fields in which the sources differ, and whose value is the first one's.
    """

    sources: tuple[Checkpoint, ...]
    weights: tuple[float, ...]
    config: Any
    tensors: tuple[GrownTensor, ...]
    shards: dict[str, list[GrownTensor]]
    equal: bool
    noise: float
    seed: int
    calibrated_on: int = 0
    kept: tuple[Kept, ...] = ()
    operator: str | None = None
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def event(self) -> Event:
        """What is done to the sources, for ``growth.json``."""
        if self.operator is not None:
            return Event(self.operator, noise=self.noise, **self.sizes)
        norm = "calibrated" if self.calibrated_on else "plain"
        return Event(None, self.weights, self.equal, norm, self.noise, self.seed)

    @property
    def agreeing(self) -> list[Checkpoint]:
        """The sources with the first one's values of the fields in which they differ."""
        configs, _ = with_first([source.config for source in self.sources], [kept.field for kept in self.kept])
        return [dataclasses.replace(source, config=c) for source, c in zip(self.sources, configs, strict=True)]

    @property
    def kept_values(self) -> list[str]:
        """For each field in which the sources differ a sentence that says whose value is kept."""
        names = [source.folder.resolve().name for source in self.sources]

        def sentence(field: str, values: tuple[Any, ...]) -> str:
            others = [f"{v!r} in {name}" for name, v in zip(names[1:], values[1:], strict=True) if v != values[0]]
            return f"{field} is {values[0]!r}, kept from {names[0]} ({', '.join(others)})"

        return [sentence(*kept) for kept in self.kept]

    @property
    def parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors by dtype, the most frequent first."""
        names = [tensor.dtype for tensor in self.tensors]
        return dict(sorted(((name, names.count(name)) for name in set(names)), key=lambda pair: -pair[1]))

    @property
    def cannot_run(self) -> str:
        """Why there is no forward pass here with which a deviation could be measured; "" if there is one."""
        return architecture(self.config).cannot_run(self.config)

    @property
    def keeps(self) -> bool:
        """Whether the grown network is to output what the sources do: their mean, at least nearly, or the one's function."""
        if self.operator is None:
            return True
        known = GROWTH_OPERATORS[self.operator]
        return (known.noisy if self.noise and known.noisy else known.properties).function_preserving

    @property
    def unmeasured(self) -> str:
        """Why no deviation from what the sources output can be measured; "" if one can."""
        return self.cannot_run or ("" if self.keeps else "the operator changes the function")

    @property
    def exactness(self) -> str:
        """A sentence on how far the grown network's outputs are the mean of the sources'."""
        rounded = {t.dtype for t in self.tensors} - {"F32", "F64"}
        rounding = f", up to rounding in {'/'.join(sorted(rounded)).lower()}" if rounded else ", up to rounding"
        if self.operator is not None:
            return f"kept{rounding}" if self.keeps else "not kept: the operator changes it"
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
            + (f"; {caveat}" if (caveat := architecture(self.config).caveat) else "")
        )


def _common_dtype(codes: Sequence[str]) -> str:
    """Return the common dtype of arrays: float32 for bfloat16 with float16, as in JAX."""
    if len(set(codes)) == 1:
        return codes[0]
    return "F64" if "F64" in codes else "F32"


def fusion_recipe(
    folders: Sequence[str | pathlib.Path],
    weights: Sequence[float] | None = None,
    *,
    allow_different: Sequence[str] = (),
    dtype: str | None = None,
    norm: str = "plain",
    calibration: Sequence[str] | None = None,
    noise: float | int = 0.0,
    seed: int = 0,
    largest_shard: int = SHARD,
) -> Recipe:
    """Return the recipe of a fusion of checkpoints, after all checks.

    Args:
      folders: folders of the sources, two or more; the same one twice is a self-fusion.
      weights: weights of the sources in the mean; if None, equal ones.
      allow_different: fields that need not agree, by name or by a short one (``fusion_core.growth.agreement.SHORT``); the
        first source's values are kept (``Recipe.kept``).
      dtype: ``"bf16"``, ``"f16"`` or ``"f32"``; if None, the common dtype of the sources, tensor by tensor.
      norm: ``"plain"`` or ``"calibrated"`` (``fusion_core.calibrate``); these files cannot hold grouped norms.
      calibration: texts that calibrated norms are fitted to, with the tokenizer of the sources; 16 windows are taken.
      noise: standard deviation of function-preserving noise on every weight that reads a source's activations, in units of
        each weight's root mean square: ``fuse(off_diagonal="antisymmetric")``. For equal sources only.
      seed: seed of the noise, and of the windows of the calibration.
      largest_shard: largest size of the tensors in one file, in bytes.

    Raises:
      InputError: a checkpoint is damaged, the networks or their tokenizers do not fit together, or an option is unknown.
    """
    _check_format(dtype, largest_shard)
    if not math.isfinite(noise) or noise < 0:
        raise InputError(f"the noise is {noise}; it must be finite and not negative")
    if seed < 0:
        raise InputError(f"the seed is {seed}; it must not be negative")
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
    configs, kept = with_first([source.config for source in sources], allow_different)
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
        for source in sources:
            check_runs(source, "the norms' calibration")
        batch = text_batch(sources, calibration, CALIBRATION_ROWS, seed)
        calibrated_on = int(batch["targets"].size)
        watched = {source.folder: moments_of(source, batch) for source in opened.values()}
        mapping = calibrated(mapping, configs, [watched[source.folder] for source in sources])
    tensors = _tensors(mapping, sources, dtype)
    if noise:
        tensors = _noisy(tensors, Noise(float(noise), seed, 0))
    return Recipe(
        sources=sources,
        weights=mapping.weights,
        config=fused_config(configs),
        tensors=tuple(tensors),
        shards=split_into_shards(tensors, largest_shard),
        equal=equal,
        noise=float(noise),
        seed=seed,
        calibrated_on=calibrated_on,
        kept=tuple(kept),
    )


def growth_recipe(
    folder: str | pathlib.Path,
    operator: str,
    *,
    factor: Any = None,
    width: Any = None,
    depth: Any = None,
    seed: Any = None,
    noise: Any = 0.0,
    dtype: str | None = None,
    largest_shard: int = SHARD,
) -> Recipe:
    """Return the recipe of the growth of one checkpoint by an operator, after all checks.

    Copies, and noise that cancels over them, are streamed by rows; tensors with other draws are computed whole, one by one.

    Args:
      folder: folder of the checkpoint.
      operator: a name in ``fusion_core.GROWTH_OPERATORS``.
      factor, width, depth, seed, noise: as for ``fusion_core.grow``.
      dtype, largest_shard: as for ``fusion_recipe``.

    Raises:
      InputError: as ``fusion_core.grow``; or the checkpoint is damaged.
    """
    _check_format(dtype, largest_shard)
    source = open_checkpoint(folder)
    sizes = {"factor": factor, "width": width, "depth": depth, "seed": seed}
    growth = growth_of(source.config, operator, Options(**sizes, noise=noise))
    if growth.mapping is None:
        tensors = _from_scratch(growth, source, dtype)
    else:
        tensors = _tensors(growth.mapping, (source,), dtype)
        if growth.cancels:
            tensors = _noisy(tensors, Noise(float(noise), seed, 0))
        elif growth.draw is not None:
            fields = [{f.name: getattr(t, f.name) for f in dataclasses.fields(t)} for t in tensors]
            tensors = [DrawnTensor(**values, draw=growth.draw) for values in fields]
    shards = split_into_shards(tensors, largest_shard)
    found = (source,), (1.0,), growth.config, tuple(tensors), shards
    return Recipe(*found, True, float(noise), seed or 0, operator=operator, sizes=sizes)


def _noisy(tensors: Sequence[GrownTensor], noise: Noise) -> list[GrownTensor]:
    """Return the tensors with noise in those that read copies."""
    return [
        tensor
        if tensor.rule.axis(reads=True) is None
        else dataclasses.replace(tensor, noise=noise._replace(array=array))
        for array, tensor in enumerate(tensors)
    ]


def _from_scratch(growth: Growth, source: Checkpoint, dtype: str | None) -> list[GrownTensor]:
    """Return the tensors of a network of which all is drawn, in the source's most frequent dtype."""
    codes = [entry.dtype for entry in source.tensors.values()]
    code = DTYPES[dtype] if dtype else max(codes, key=codes.count)
    rule = lambda name, layout: Rule((Block(None, name),), (None,) * len(layout.shape), layout.shape)
    assert growth.draw is not None
    return [
        DrawnTensor(name, rule(name, layout), (), code, draw=growth.draw, kept=False)
        for name, layout in layouts(growth.config).items()
    ]


def _tensors(mapping: GrowthMap, sources: Sequence[Checkpoint], dtype: str | None) -> list[GrownTensor]:
    found = []
    for name, rule in by_name(mapping.rules).items():
        entries = tuple(sources[block.network or 0].tensors[block.name] for block in rule.blocks)
        code = DTYPES[dtype] if dtype else _common_dtype([entry.dtype for entry in entries])
        found.append(GrownTensor(name, rule, entries, code))
    return found


def _check_format(dtype: str | None, largest_shard: int) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"the dtype is {dtype!r}; it can be {', '.join(DTYPES)}")
    if largest_shard < 1:
        raise InputError(f"the largest shard is {largest_shard} bytes; it must be at least 1")
