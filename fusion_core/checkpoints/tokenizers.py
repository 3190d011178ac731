"""The tokenizers beside checkpoints, compared by content and copied."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.models.registry import architecture
from fusion_core.text.tokenizer import Tokenizer

# files that determine the ids of a text
CONTENT = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt")
# further files that transformers reads
SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def _content(path: pathlib.Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); the file is damaged, copy it again") from None
    if path.name == "tokenizer.json" and isinstance(values, dict):
        # settings of truncation and padding do not change the ids
        return {name: value for name, value in values.items() if name not in ("truncation", "padding", "version")}
    return values


def _first_difference(a: Any, b: Any, where: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if key not in a or key not in b:
                return f"{where}{key} is in one only"
            if a[key] != b[key]:
                return _first_difference(a[key], b[key], f"{where}{key}.")
    if isinstance(a, list) and isinstance(b, list):
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            if x != y:
                return _first_difference(x, y, f"{where}{i}.")
        return f"{where.rstrip('.')} has {len(a)} and {len(b)} entries"
    if isinstance(a, bytes):
        return "their bytes"
    shown = [text if len(text := repr(value)) <= 40 else text[:37] + "..." for value in (a, b)]
    return f"{where.rstrip('.') or 'the content'} is {shown[0]} and {shown[1]}"


def check_same_tokenizer(folders: Sequence[pathlib.Path]) -> None:
    """Raise InputError unless the tokenizers give a text equal ids; a folder without a tokenizer agrees with any.

    Raises:
      InputError: two have different content, or a file is damaged; the message names the first difference.
    """
    for name in CONTENT:
        having = [folder for folder in folders if (folder / name).exists()]
        contents: list[tuple[pathlib.Path, Any]] = []
        for folder in having:
            if not any(folder.resolve() == other.resolve() for other, _ in contents):
                contents.append((folder, _content(folder / name)))
        for folder, content in contents[1:]:
            if content != contents[0][1]:
                raise InputError(
                    f"the tokenizers of {contents[0][0]} and {folder} differ ({name}: "
                    f"{_first_difference(contents[0][1], content)}); networks can be fused or compared only where equal "
                    "ids mean equal pieces of text"
                )


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
