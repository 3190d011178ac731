"""Whether two tokenizers are one, decided by what they compute: their pieces, what ranks them, and the ids of many texts.

Files of one tokenizer differ: libraries spell settings and merges in other ways from version to version, and a network may come
with a ``tokenizer.json`` or with the sentencepiece model that it was made from.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

from fusion_core.errors import InputError
from fusion_core.text.encoding import check_pointer, read_text
from fusion_core.text.json_files import LARGE, read_json, short
from fusion_core.text.tokenizer import Tokenizer

# files that say what the ids of a text are; the first that a folder has counts, as in transformers
FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")
# what no piece shows: white space, forms of letters that a normalizer changes, characters that are in no vocabulary
SPELLINGS = (
    *(
        "",
        " ",
        "a",
        " a",
        "a ",
        "  a  b ",
        "\ta\n\nb\r\n",
        "a\u00a0b\u200bc\u3000d",
        "don't we'll I'm",
        "12345 3.14 1e-9",
    ),
    *(
        "Ａｂｃ ﬁ ½ ①",
        "é e\u0301 ÀÉÎ",
        "straße STRASSE İi",
        "日本語 中文 한국어",
        "🙂👨‍👩‍👧",
        "русский العربية",
        "<a> & [b] {c}",
    ),
)
TOGETHER = 12  # pieces that are joined into one text
UNFIT = -1  # in the place of the ids of a text that the tokenizer cannot encode
MOST = 200_000  # texts about the order of merges


class Meaning(NamedTuple):
    """A tokenizer as far as its file says it.

    Attributes:
      path: of the file.
      pieces: piece -> id, added ones too.
      ranks: what decides between ways to cut a text: pair -> number of its merge, or piece -> score; empty if it is not read.
      encode: (texts, whether with begin and end) -> ids; None if the file alone does not say it.
      ends: whether ``encode`` knows begin and end of a text.
      spell: pieces -> their text.
    """

    path: pathlib.Path
    pieces: dict[str, int]
    ranks: dict[Any, Any]
    encode: Callable[[list[str], bool], list[list[int]]] | None
    ends: bool
    spell: Callable[[list[str]], str]


def tokenizer_file(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the file of a folder's tokenizer; None if it has none. Raises InputError if it is no regular file."""
    found = next((folder / name for name in FILES if (folder / name).exists()), None)
    if found is not None:
        check_pointer(found)
    return found


def _ids(path: pathlib.Path) -> dict[str, int]:
    """Return the ids of pieces in a file of JSON."""
    found = read_json(path, longest=LARGE)
    for piece, number in found.items():
        if type(number) is not int or number < 0:
            raise InputError(f"{path}: the id of {short(piece)} is {short(number)}; the file is damaged, copy it again")
    return found


def _merges(merges: Sequence[Any]) -> dict[Any, Any]:
    pairs = (tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in merges)
    return {pair: number for number, pair in enumerate(pairs)}


def _of_backend(path: pathlib.Path) -> Meaning:
    backend = Tokenizer.load(path).backend
    model = json.loads(backend.to_str())["model"]
    ranks: dict[Any, Any] = _merges(model.get("merges", ()))
    if isinstance(model.get("vocab"), list):
        ranks = dict(model["vocab"])

    def encode(texts: list[str], ends: bool) -> list[list[int]]:
        try:
            return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=ends)]
        except Exception:  # the library raises bare Exception, such as for a character that has no piece
            return [[UNFIT] if len(texts) == 1 else encode([text], ends)[0] for text in texts]

    spell = backend.decoder.decode if backend.decoder is not None else "".join
    return Meaning(path, backend.get_vocab(with_added_tokens=True), ranks, encode, True, spell)


def _added(folder: pathlib.Path) -> dict[str, int]:
    """Return the tokens that files beside the vocabulary add to it."""
    found: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        found |= _ids(folder / "added_tokens.json")
    if (file := folder / "tokenizer_config.json").is_file():
        try:
            for number, token in (read_json(file, longest=LARGE).get("added_tokens_decoder") or {}).items():
                found[token["content"]] = int(number)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{file}: added_tokens_decoder is none ({error!r}); the file is damaged, copy it again"
            ) from None
    return found


def _of_library(path: pathlib.Path) -> Meaning:
    """Return a model of sentencepiece that is not one of T5's, as the library has it."""
    try:
        library = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read as a sentencepiece model ({error}); copy it again") from None
    pieces = {library.id_to_piece(i): i for i in range(library.vocab_size())} | _added(path.parent)
    return Meaning(path, pieces, {}, lambda texts, ends: library.encode(texts), False, library.decode_pieces)


def meaning(path: pathlib.Path) -> Meaning:
    """Read a tokenizer's file. Raises InputError if it is damaged."""
    check_pointer(path)
    if path.suffix == ".model":
        try:
            return _of_backend(path)
        except InputError:
            return _of_library(path)
    if path.name != "vocab.json":
        return _of_backend(path)
    file, ranks = path.parent / "merges.txt", {}
    if file.is_file():
        lines = read_text(file, LARGE).split("\n")
        ranks = _merges([line for line in lines if line.strip() and not line.startswith("#version")])
    return Meaning(path, _ids(path) | _added(path.parent), ranks, None, False, "".join)


def probes(found: Meaning) -> list[str]:
    """Return texts with every piece alone, and joined with others, with and without a space between them."""
    pieces = sorted(found.pieces, key=found.pieces.__getitem__)
    plain = [piece.replace("▁", " ").replace("Ġ", " ") for piece in pieces]
    spelled = [found.spell([piece]) for piece in pieces]
    mixed = [spelled[i] for i in np.random.default_rng(0).permutation(len(spelled))]
    joined = [between.join(mixed[i : i + TOGETHER]) for between in ("", " ") for i in range(0, len(mixed), TOGETHER)]
    marks = [piece for piece in plain if len(piece) > 2 and piece[0] + piece[-1] in ("<>", "[]")]
    beside = [text for mark in marks for text in (f"a{mark}b", f"a {mark} b", mark.upper())]
    return list(dict.fromkeys([*SPELLINGS, *plain, *spelled, *beside, *joined]))


def contested(a: Meaning, b: Meaning) -> list[str]:
    """Return texts of three parts of which the two merge different ones first, if each has both merges."""
    rank = lambda found, pair: found.ranks.get(pair, math.inf)
    after: dict[str, list[tuple[str, str]]] = {}
    for pair in dict.fromkeys([*a.ranks, *b.ranks]):
        after.setdefault(pair[0], []).append(pair)
    differ = (
        (left, middle, right)
        for left, middle in dict.fromkeys([*a.ranks, *b.ranks])
        for _, right in after.get(middle, ())
        if (rank(a, (left, middle)) < rank(a, (middle, right))) != (rank(b, (left, middle)) < rank(b, (middle, right)))
    )
    return [a.spell(list(parts)) for parts in itertools.islice(differ, MOST)]


def difference(a: Meaning, b: Meaning) -> str | None:
    """Return in words the first difference between what two tokenizers compute; None if they are one."""
    if a.pieces != b.pieces:
        piece = min(
            (piece for piece in a.pieces.keys() | b.pieces.keys() if a.pieces.get(piece) != b.pieces.get(piece)),
            key=lambda piece: (min(found.pieces.get(piece, len(found.pieces)) for found in (a, b)), piece),
        )
        ids = [str(found.pieces.get(piece, "not a piece")) for found in (a, b)]
        return f"{piece!r} is {ids[0]} and {ids[1]}"
    if a.encode is None or b.encode is None:
        pair = next((x for x, y in zip(a.ranks, b.ranks, strict=False) if x != y), None)
        return None if pair is None and len(a.ranks) == len(b.ranks) else f"their merges, from {pair} on"
    scored = [all(isinstance(key, str) for key in found.ranks) and bool(found.ranks) for found in (a, b)]
    if all(scored):
        for piece, score in a.ranks.items():
            if not math.isclose(score, b.ranks.get(piece, score), rel_tol=1e-5, abs_tol=1e-6):
                return f"the score of {piece!r} is {score:g} and {b.ranks[piece]:g}"
    texts = probes(a)
    if not any(scored) and a.ranks and b.ranks and list(a.ranks) != list(b.ranks):
        texts += contested(a, b)
    ends = a.ends and b.ends
    for text, one, other in zip(texts, a.encode(texts, ends), b.encode(texts, ends), strict=True):
        if one != other:
            where = next(
                (i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other))
            )
            shown = [f"{'... ' if where else ''}{ids[where : where + 6]}" for ids in (one, other)]
            return f"{text[:40]!r} is {shown[0]} and {shown[1]}"
    return None
