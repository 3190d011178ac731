"""The tokenizers beside checkpoints, compared by content and copied."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.registry import architecture
from fusion_core.text.encoding import check_pointer
from fusion_core.text.sameness import difference, meaning, tokenizer_file
from fusion_core.text.tokenizer import Tokenizer

# files that determine the ids of a text
CONTENT = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt")
ADDING = ("added_tokens.json", "tokenizer_config.json")  # that add tokens to a vocabulary
# further files that transformers reads
SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def check_same_tokenizer(folders: Sequence[pathlib.Path]) -> None:
    """Raise InputError unless the tokenizers give a text equal ids; a folder without a tokenizer agrees with any.

    Raises:
      InputError: two compute different ids, or a file is damaged; the message names the first difference.
    """
    files: dict[str, pathlib.Path] = {}
    for folder in folders:
        for name in (*CONTENT, *SETTINGS):
            if (folder / name).exists():
                check_pointer(folder / name)  # it is copied
        if (file := tokenizer_file(folder)) is not None:
            beside = [path for name in (*CONTENT, *ADDING) if (path := folder / name).is_file()]
            files.setdefault(_digest([file, *beside] if file.name == "vocab.json" else [file]), file)
    if len(files) < 2:
        return
    first, *others = map(meaning, files.values())
    for other in others:
        if said := difference(first, other):
            raise InputError(
                f"the tokenizers of {first.path.parent} and {other.path.parent} differ ({first.path.name}, {other.path.name}: "
                f"{said}); networks can be fused or compared only where equal ids mean equal pieces of text"
            )


def _digest(files: Sequence[pathlib.Path]) -> str:
    return " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def check_fits(tokenizer: Tokenizer, config: Any, owner: str) -> None:
    """Raise InputError if the network lacks ids of the tokenizer or, being one of text to text, has other special ids.

    Args:
      tokenizer: of the network.
      config: of the network.
      owner: first words of the message.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{owner}: the tokenizer has {tokenizer.vocab_size} pieces, but the network has {config.vocab_size} tokens; "
            "take the tokenizer that the network was trained with"
        )
    files = architecture(config).files
    if files is None or not files.spans:
        return
    special = tokenizer.special
    for piece, what, found, expected in (
        (tokenizer.pad, "pad", special.pad, (config.pad_token_id,)),
        (tokenizer.end, "end", special.end, config.ends),
    ):
        if found not in expected:
            raise InputError(
                f"{owner}: the tokenizer's {piece} has the id {found}, but the configuration says that the {what} token is "
                f"{' or '.join(map(str, expected))}; take the tokenizer that the network was trained with"
            )


def copy_tokenizer(folders: Sequence[pathlib.Path], target: pathlib.Path) -> list[str]:
    """Copy the tokenizer and its settings from the first folder that has one; return the names of the files."""
    first = next((folder for folder in folders if any((folder / name).exists() for name in CONTENT)), folders[0])
    names = [name for name in (*CONTENT, *SETTINGS) if (first / name).exists()]
    for name in names:
        shutil.copyfile(first / name, target / name)
    return names
