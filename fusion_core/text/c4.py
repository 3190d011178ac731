"""Corpora of the ``datasets`` library, C4 above all, streamed: an optional extra (``pip install 'deepfusion[c4]'``)."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.text.documents import content_sums


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "reading through the datasets library needs the package datasets; pip install 'deepfusion[c4]'"
        ) from None
    return datasets


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A streamed dataset as documents; positions are the library's own states, so that no shard is read again.

    Attributes:
      name: of the dataset, for messages and for the fingerprint.
      load: returns a ``datasets.IterableDataset``, the same at every call.
      column: of the text.
      sums: of its files, if they are local (``content_sums``); it is then known by them and not by its name.
    """

    name: str
    load: Callable[[], Any]
    column: str = "text"
    sums: tuple[str, ...] = ()

    def read(self, seed: int, epoch: int, position: Any = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents in the dataset's order, the same in every epoch, each with the position after it.

        Raises:
          InputError: it cannot be loaded or read, or has no such column of strings.
        """
        library = _library()
        number = 0
        try:
            dataset = self.load()
            if position is not None:
                dataset.load_state_dict(position)
            for example in dataset:
                text = example.get(self.column)
                if not isinstance(text, str):
                    raise InputError(
                        f"{self.name} has no text in column {self.column} (an example's columns: {', '.join(example)}); "
                        "name the column that has it"
                    )
                yield text, dataset.state_dict()
                number += 1
        except InputError:
            raise
        except (OSError, EOFError, ValueError, TypeError, library.exceptions.DatasetsError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise InputError(
                f"{self.name} cannot be read after {number} documents from here ({reason}); check the files, or the network "
                "and the name"
            ) from None

    def fingerprint(self) -> str:
        """See ``Documents``."""
        return hashlib.sha256(f"{self.sums or self.name} {self.column}".encode()).hexdigest()[:12]


def c4(split: str = "train", config: str = "en", files: Sequence[str | pathlib.Path] | None = None) -> Streamed:
    """Return C4, the corpus of T5: ``allenai/c4`` streamed from the Hugging Face hub, or its files.

    Args:
      split: ``train`` or ``validation``.
      config: ``en``, or another of the repository's.
      files: local ``c4-*.json.gz``, instead of the network.

    Raises:
      InputError: the library is not installed, or a file is missing.
    """
    datasets = _library()
    if files is None:
        return Streamed(
            f"allenai/c4 {config} {split}",
            lambda: datasets.load_dataset("allenai/c4", config, split=split, streaming=True).select_columns("text"),
        )
    paths = [pathlib.Path(file) for file in files]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise InputError(f"there is no file {missing[0] if missing else ''}; give C4's c4-*.json.gz")
    named = " ".join(f"{path.name}:{path.stat().st_size}" for path in paths)
    names, sums = [str(path) for path in paths], content_sums(paths)
    return Streamed(
        f"c4 of {named}",
        lambda: datasets.load_dataset("json", data_files=names, split="train", streaming=True).select_columns("text"),
        sums=sums,
    )
