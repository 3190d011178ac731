r"""``growth.json`` beside grown weights: what was done, to which sources, and every tensor's factors on the learning rate.

The factors keep the velocity of the function across the growth (``fusion_core.growth.rates``; theory.md, section 5):

.. math:: r = \frac{1}{N a \cdot a^p \rho^q}

The file holds all that a training run needs to go on elsewhere (``fusion_core.torch``): the event and the sources'
configurations, from which its linear map J is made again, and the scales of each tensor's parts, which calibrated norms
change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import jax
import numpy as np
from pydantic import Field

from fusion_core.checked import checked
from fusion_core.checkpoints.checkpoint import Checkpoint
from fusion_core.errors import InputError
from fusion_core.growth import GROWTH_OPERATORS, GrowthMap, Rule, fusion_map, growth_map
from fusion_core.growth.operators import growth_of
from fusion_core.growth.options import MOST_UNITS, Options
from fusion_core.growth.rates import UPDATES, rate_terms
from fusion_core.models.registry import architecture, check_depth, config_from_json, layouts
from fusion_core.models.units import Config, by_name
from fusion_core.provenance import versions
from fusion_core.text.json_files import LARGE, read_json, short

GROWTH = "growth.json"
FORMAT = 1
EQUATION = "r = 1 / (N a · a^p · rho^q)"
PAGE = "docs/theory.md, section 5; docs/pytorch.md"


@dataclasses.dataclass(frozen=True)
class Event:
    """What was done to the sources.

    Attributes:
      operator: name of the growth operator; None for a fusion.
      weights: weights of the sources in the mean.
      equal: whether all sources are one network, bit for bit.
      norm: norm mode of a fusion.
      noise: standard deviation of the noise in units of each array's root mean square; 0 if there is none.
      seed: seed of all draws; None if none was given.
      factor, width, depth: sizes of the growth by an operator.
    """

    operator: str | None = None
    weights: tuple[float, ...] = (1.0,)
    equal: bool = True
    norm: str = "plain"
    noise: float = 0.0
    seed: int | None = None
    factor: int | None = None
    width: Any = None
    depth: Any = None

    @property
    def sizes(self) -> dict[str, Any]:
        """The operator's arguments for ``fusion_core.growth_map``."""
        return {"factor": self.factor, "width": self.width, "depth": self.depth, "seed": self.seed}

    @property
    def has_factors(self) -> bool:
        """Whether there are factors that keep the velocity."""
        return self.operator is None or GROWTH_OPERATORS[self.operator].properties.keeps_dynamics == "with factors"

    def mapping(self, configs: Sequence[Config]) -> GrowthMap:
        """Return the linear map J. Raises InputError if the operator has none."""
        if self.operator is None:
            return fusion_map(configs, self.weights)
        return growth_map(configs[0], self.operator, **self.sizes)


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Size = Annotated[int, Field(ge=1, le=MOST_UNITS)]


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """The types of what a file says of a tensor (``GrowthRecord.tensors``)."""

    shape: tuple[_Size, ...]
    scales: tuple[float, ...]
    factors: dict[str, _Positive]
    N: _Positive | None = None
    a: _Positive | None = None
    rho: _Positive | None = None


@dataclasses.dataclass(frozen=True)
class _Source:
    """The types of what a file says of a source (``GrowthRecord.sources``)."""

    name: str
    config: dict[str, Any]
    sha256: dict[str, str]


@dataclasses.dataclass(frozen=True)
class GrowthRecord:
    """The contents of a ``growth.json``.

    Attributes:
      event: what was done.
      sources: for each source its ``name``, ``config`` (values of config.json) and ``sha256`` (weights file -> digest).
      kept: how far the factors keep the velocity, in words.
      tensors: name -> ``shape``, ``scales`` (of its parts), the equation's ``N``, ``a`` and ``rho`` (None where units have
        different numbers of copies), and ``factors`` (optimizer -> factor on the learning rate).
    """

    event: Event
    sources: tuple[dict[str, Any], ...]
    kept: str
    tensors: dict[str, dict[str, Any]]

    def json(self) -> dict[str, Any]:
        """Return the file's contents."""
        return {
            "format": FORMAT,
            "deepfusion": versions()["deepfusion"],
            "event": dataclasses.asdict(self.event),
            "sources": list(self.sources),
            "rates": {
                "equation": EQUATION,
                "p, q": {name: list(exponents) for name, exponents in UPDATES.items()},
                "page": PAGE,
                "kept": self.kept,
            },
            "tensors": self.tensors,
        }

    def factors(self, update: str) -> dict[str, float]:
        """Return name -> factor on the learning rate under ``"sgd"``, ``"adam"`` or ``"adafactor"``."""
        return {name: facts["factors"][update] for name, facts in self.tensors.items()}

    def mapping(self) -> GrowthMap:
        """Return the growth's linear map J, calibrated norms included. Raises InputError if the operator has none."""
        configs = [config_from_json(dict(source["config"]), GROWTH) for source in self.sources]
        held = sum(math.prod(facts["shape"]) for facts in self.tensors.values())
        for config in configs:
            check_depth(config, len(self.tensors), GROWTH)
            parameters = sum(math.prod(layout.shape) for layout in layouts(config).values())
            if parameters > held:
                why = f"a source has {parameters:,} parameters, but what grew from it has {held:,}"
                raise InputError(f"{GROWTH}: {why}; grow the sources again")
        mapping = self.event.mapping(configs)
        named = by_name(mapping.rules)
        if named.keys() != self.tensors.keys():
            odd = sorted(named.keys() ^ self.tensors.keys())[0]
            raise InputError(f"{GROWTH}: {odd} is not a tensor of both the event and the list; grow the sources again")

        def scaled(rule: Rule, name: str) -> Rule:
            scales = self.tensors[name]["scales"]
            if len(scales) != len(rule.blocks):
                why = f"{name} has {len(scales)} scales, but {len(rule.blocks)} parts"
                raise InputError(f"{GROWTH}: {why}; grow the sources again")
            pairs = zip(rule.blocks, scales, strict=True)
            return dataclasses.replace(rule, blocks=tuple(block._replace(scale=scale) for block, scale in pairs))

        rules = [scaled(rule, name) for name, rule in named.items()]
        return dataclasses.replace(mapping, rules=jax.tree.unflatten(jax.tree.structure(mapping.rules), rules))


def growth_record(
    sources: Sequence[Checkpoint], event: Event, scales: Mapping[str, Sequence[float]] | None = None
) -> GrowthRecord:
    """Return what ``growth.json`` says of a growth of checkpoints. The sources' files are read, for their digests.

    Args:
      sources: the checkpoints; one for an operator.
      event: what is done to them.
      scales: name of a tensor -> factors of its parts, where calibrated norms change those of the map.
    """
    configs = [source.config for source in sources]
    if event.operator is None:
        mapping: GrowthMap | None = event.mapping(configs)
        config = configs[0]
        # the factors of k equal copies: of different sources they hold on average
        rated = by_name(fusion_map([config] * len(configs)).rules)
    else:
        growth = growth_of(configs[0], event.operator, Options(**event.sizes))
        mapping, config = growth.mapping, growth.config
        rated = by_name(mapping.rules) if mapping is not None and event.has_factors else {}
    rules: dict[str, Rule] = {} if mapping is None else by_name(mapping.rules)
    shapes = {name: rule.shape for name, rule in rules.items()} or {
        name: layout.shape for name, layout in layouts(config).items()
    }
    tensors, equal = {}, True
    for name, shape in shapes.items():
        terms = rate_terms(rated[name]) if rated else None
        equal = equal and (terms is None or terms.equal)
        numbers: tuple[float | None, ...] = (None,) * 3
        if terms is not None and terms.equal:
            numbers = tuple(float(np.mean(value)) for value in terms)
        factors = {update: 1.0 if terms is None else float(np.mean(terms.factor(update))) for update in UPDATES}
        own = list(rules[name].scales) if name in rules else []
        tensors[name] = {
            "shape": list(shape),
            "scales": list((scales or {}).get(name, own)),
            **dict(zip(("N", "a", "rho"), numbers, strict=True)),
            "factors": factors,
        }
    return GrowthRecord(event, tuple(_described(sources)), _kept(event, equal), tensors)


def _kept(event: Event, equal: bool) -> str:
    """Return in words how far the factors keep the velocity."""
    if not event.has_factors:
        return "no: new entries move the function on their own; the factors are 1"
    why = []
    if not event.equal:
        why.append("the sources differ")
    if not math.isclose(max(event.weights), min(event.weights)):
        why.append("the weights differ")
    if event.noise:
        why.append("noise parts the copies")
    if not equal:
        why.append("units have different numbers of copies, and the factors are the means over an array")
    return f"on average: {', '.join(why)}" if why else "yes: exactly, to first order in the learning rate"


def _described(sources: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    """Return name, configuration and digests of each source; a file of several sources is read once."""
    files = {source.folder: sorted({entry.path for entry in source.tensors.values()}) for source in sources}
    paths = list(dict.fromkeys(path for found in files.values() for path in found))
    with ThreadPoolExecutor(4) as pool:
        digests = dict(zip(paths, pool.map(_digest, paths), strict=True))
    described = []
    for source in sources:
        record = architecture(source.config).files
        assert record is not None
        described.append(
            {
                "name": source.folder.resolve().name,
                "config": record.write_config(source.config),
                "sha256": {path.name: digests[path] for path in files[source.folder]},
            }
        )
    return described


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_growth(folder: pathlib.Path, record: GrowthRecord) -> None:
    """Write ``growth.json`` into an existing folder."""
    (folder / GROWTH).write_text(json.dumps(record.json(), indent=1) + "\n", encoding="utf-8")


def read_growth(path: str | pathlib.Path) -> GrowthRecord:
    """Read the ``growth.json`` of a folder that ``fuse`` or ``grow`` wrote.

    Args:
      path: the folder, or the file itself.

    Raises:
      InputError: there is no such file, or it is not of this format.
    """
    file = pathlib.Path(path)
    file = file / GROWTH if file.is_dir() else file
    if not file.is_file():
        raise InputError(
            f"there is no {file}: it is written beside the weights when checkpoints are fused or grown; give that folder, or "
            "grow the sources again"
        )
    values = read_json(file, "copy it again, or grow the sources again", longest=LARGE)
    if values.get("format") != FORMAT:
        raise InputError(
            f"{file} has the format {values.get('format')!r}; {FORMAT} can be read, grow the sources again"
        )
    try:
        event, tensors = checked(Event, values["event"]), values["tensors"]
        if event.operator is not None and event.operator not in GROWTH_OPERATORS:
            raise ValueError(f"there is no operator {short(event.operator)}")
        checked(list[_Source], values["sources"])
        for name, facts in checked(dict[str, _Tensor], tensors).items():
            if facts.factors.keys() != UPDATES.keys():
                raise ValueError(f"the factors of {name} are of {', '.join(facts.factors)}")
        return GrowthRecord(event, tuple(values["sources"]), checked(str, values["rates"]["kept"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file} is damaged ({error!r}); copy it again, or grow the sources again") from None
