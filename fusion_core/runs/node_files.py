"""The files that a finished node leaves: its network, and its facts, which are written last."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

from pydantic import Field

from fusion_core import atomic
from fusion_core.checked import checked
from fusion_core.checkpoints.pretrained import write_pretrained
from fusion_core.errors import InputError
from fusion_core.models.t5 import T5Config
from fusion_core.runs.settings import Whole
from fusion_core.sealed import read_sealed, write_sealed
from fusion_core.text import Tokenizer
from fusion_core.text.cache import file_sum
from fusion_core.train import Metrics
from fusion_core.train.training import METRICS

DONE, MODEL = "done.json", "model"


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """The facts of a finished node that are read again.

    Attributes:
      step: its last step.
      work: folder of its records and checkpoints within its own.
      start: its first step.
      parameters: their number.
      flops, lost_flops: of the node, and of lost trials among them.
      seconds: that it took.
    """

    step: Whole
    work: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]*|\.)$")]
    start: Whole = 0
    parameters: Whole = 0
    flops: float = 0.0
    lost_flops: float = 0.0
    seconds: float = 0.0


def read_facts(file: pathlib.Path, name: str, seed: int) -> dict[str, Any]:
    """Return the facts of a finished node.

    Args:
      file: that has them.
      name, seed: of the node, and of its run.

    Raises:
      InputError: the file is damaged, or of another node.
    """
    remedy = "remove it, the node is then finished again"
    facts = read_sealed(file, remedy)
    try:
        checked(
            NodeFacts,
            {field.name: facts[field.name] for field in dataclasses.fields(NodeFacts) if field.name in facts},
        )
    except ValueError as error:
        raise InputError(f"{file} holds no facts of a node ({error}); {remedy}") from None
    if (facts.pop("node", name), facts.pop("run_seed", seed)) != (name, seed):
        raise InputError(f"{file} is of another node; {remedy}")
    return facts


def write_node(
    folder: pathlib.Path, params: Any, config: T5Config, tokenizer: Tokenizer, facts: dict[str, Any]
) -> None:
    """Write a finished node's network as a Hugging Face folder with its tokenizer, then its facts and the sums of its files.

    Networks with grouped norms, which that format does not have, are left out.
    """
    if not config.norm_groups and not (folder / MODEL).exists():
        with atomic.new_folder(folder / MODEL) as temporary:
            write_pretrained(temporary, params, config)
            tokenizer.save(temporary)
    written = sorted((folder / MODEL).iterdir()) if (folder / MODEL).exists() else []
    sums = {METRICS: Metrics(folder / facts["work"] / METRICS).sum(), MODEL: {p.name: file_sum(p) for p in written}}
    write_sealed(folder / DONE, facts | sums)
