"""Results from which figures are drawn: plain arrays and scalars with their origin, in one JSON file."""

import dataclasses
import json
import math
import operator
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusion_core.atomic import write_text
from fusion_core.errors import InputError
from fusion_core.provenance import provenance
from fusion_core.text.json_files import LARGE, read_json, short

FORMAT = 1

Claim = tuple[str, str, str]
"""A claim, what was predicted, and what was measured, as the README has them."""


class ResultsError(ValueError):
    """A results file that cannot be used; the message has the reason and the remedy."""


@dataclasses.dataclass(frozen=True)
class Results:
    """One computation of one figure.

    Attributes:
      figure: the figure's name in the registry.
      preset: the preset of the computation.
      seed: the seed of all random numbers.
      config: settings of the preset, plain scalars and lists.
      arrays: name → numbers, as float64 arrays of any shape (a scalar has shape ``()``).
      seconds: wall time of the computation.
      created: time of the computation, UTC, in ISO 8601.
      versions: versions of Python and of the numerical packages.
      device: device of the computation.
      commit: commit of this software, with "-dirty" for local changes; None if it is not known.
    """

    figure: str
    preset: str
    seed: int
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    seconds: float
    created: str
    versions: dict[str, str]
    device: str
    commit: str | None

    @classmethod
    def of(
        cls, figure: str, preset: str, seed: int, config: Mapping[str, Any], arrays: Mapping[str, Any], started: float
    ) -> "Results":
        """Return results with their circumstances filled in.

        Args:
          figure, preset, seed, config: see the attributes; give a dataclass as ``dataclasses.asdict(config)``.
          arrays: name → numbers in any form that numpy converts to real arrays.
          started: ``time.perf_counter()`` when the computation began.
        """
        origin = provenance()
        return cls(
            figure=figure,
            preset=preset,
            seed=seed,
            config=json.loads(json.dumps(dict(config))),
            arrays={name: np.asarray(values, np.float64) for name, values in arrays.items()},
            seconds=round(time.perf_counter() - started, 3),
            created=origin["created"],
            versions=origin["versions"],
            device=", ".join(origin["devices"]),
            commit=origin["commit"],
        )

    def save(self, path: pathlib.Path) -> None:
        """Write the file whole or not at all (temporary name, then renamed)."""
        record = dataclasses.asdict(self)
        record["arrays"] = {name: _encode(array) for name, array in self.arrays.items()}
        write_text(path, json.dumps({"format": FORMAT} | record, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> "Results":
        """Read what ``save`` wrote.

        Raises:
          ResultsError: the file is missing, is not JSON, has another format, or lacks or garbles a field.
        """
        remedy = "delete it and draw the figure again, or pass --force"
        try:
            record = read_json(path, remedy, longest=LARGE)
        except FileNotFoundError:
            raise ResultsError(f"{path} does not exist: draw the figure first") from None
        except InputError as error:
            raise ResultsError(str(error)) from None
        if (found := record.get("format")) != FORMAT:
            raise ResultsError(f"{path} has results format {short(found)}, but this version reads {FORMAT}: {remedy}")
        fields = {}
        for field in dataclasses.fields(cls):
            if field.name not in record:
                raise ResultsError(f"{path} has no {field.name!r}: {remedy}")
            value, expected = record[field.name], _JSON_TYPES[field.name]
            if not isinstance(value, expected) or isinstance(value, bool):
                raise ResultsError(f"{path} has {short(value)} for {field.name!r}, which cannot be: {remedy}")
            fields[field.name] = value
        try:
            fields["arrays"] = {name: _decode(array) for name, array in fields["arrays"].items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"{path} has a garbled array ({error}): {remedy}") from None
        return cls(**fields)


def spread(values: np.ndarray) -> str:
    """Return mean and standard deviation over independent runs, in words."""
    return f"{values.mean():.2f}" + (f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else "")


_JSON_TYPES: dict[str, Any] = {
    "figure": str,
    "preset": str,
    "seed": int,
    "config": dict,
    "arrays": dict,
    "seconds": int | float,
    "created": str,
    "versions": dict,
    "device": str,
    "commit": str | None,
}


def _encode(array: np.ndarray) -> dict[str, Any]:
    """Return shape and flat values; values without a JSON number (NaN, infinity) are texts that ``float`` reads."""
    flat = [float(v) if math.isfinite(v) else str(float(v)) for v in array.ravel()]
    return {"shape": list(array.shape), "values": flat}


NO_NUMBERS = ("nan", "inf", "-inf")


def _refuse(value: Any) -> float:
    raise ValueError(f"{short(value)} is no number")


def _decode(record: dict[str, Any]) -> np.ndarray:
    values = [float(v) if isinstance(v, int | float) or v in NO_NUMBERS else _refuse(v) for v in record["values"]]
    return np.array(values, np.float64).reshape([operator.index(length) for length in record["shape"]])
