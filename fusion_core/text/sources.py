"""What a trainer reads, and the checks that all sources of batches share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
State = dict[str, Any]


@runtime_checkable
class DataSource(Protocol):
    """Batches without end, deterministic, that go on from any step."""

    def batches(self, size: int, state: State | None = None) -> Iterator[tuple[Batch, State]]:
        """This process's rows of the global batches of ``size``, each with the JSON-able state after it."""
        ...


def check_noise(noise_density: float, mean_span: float) -> None:
    """Raises InputError where either is out of range."""
    if not 0 < noise_density < 1 or not mean_span >= 1:
        raise InputError(
            f"a noise density of {noise_density} with spans of {mean_span}; they must lie between 0 and 1, and at 1 or above"
        )


def check_share(process_index: int, process_count: int) -> None:
    """Raises InputError where there is no such process."""
    if not 0 <= process_index < process_count:
        raise InputError(f"process {process_index} of {process_count}; count processes from 0")


def check_source(state: State, fingerprint: str) -> None:
    """Raises InputError where a state was made by a source of another fingerprint."""
    if state.get("source") != fingerprint:
        raise InputError(
            f"the state is of another text or other settings: {state.get('source')} instead of {fingerprint}; "
            "use the run's own, or begin anew"
        )


def last_sentinel(tokenizer: Tokenizer) -> int:
    """The id of ``<extra_id_0>``, from which sentinels count down. Raises InputError where the tokenizer has none."""
    last = tokenizer.backend.token_to_id("<extra_id_0>")
    if last is None:
        raise InputError("the tokenizer has no <extra_id_0>; span corruption needs one with T5's sentinels")
    return last
