"""sentencepiece's ``.model`` files: a unigram model's pieces, scores and normalizer.

Pieces, scores and special ids are the library's. It does not give the kinds of the pieces and the settings of the normalizer;
they are read from the file, one protocol buffer, without the package ``protobuf``. Source: sentencepiece_model.proto.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import sentencepiece

from fusion_core.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # kinds of pieces
UNIGRAM = 1  # kind of model


@dataclasses.dataclass(frozen=True)
class Model:
    """The content of a ``.model`` file.

    Attributes:
      pieces: ``(piece, score, kind)`` by id.
      byte_fallback: whether unknown characters become bytes.
      special: ids of pad, end and unknown; -1 is none.
      charsmap: the normalizer's compiled map of characters, empty if there is none.
    """

    pieces: tuple[tuple[str, float, int], ...]
    byte_fallback: bool
    special: tuple[int, int, int]
    charsmap: bytes


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a number at byte {at} does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message, in order: numbers, and bytes as they are."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _messages(data: bytes, number: int) -> list[dict[int, int | bytes]]:
    """Return the messages in a field; of their fields the last value, as protocol buffers have it."""
    return [dict(_fields(value)) for field, value in _fields(data) if field == number and isinstance(value, bytes)]


def read_model(path: pathlib.Path) -> Model:
    """Read a unigram model.

    Raises:
      InputError: the file is missing or damaged, not a unigram model, or one that treats white space unlike T5's.
    """
    try:
        data = path.read_bytes()
        library = sentencepiece.SentencePieceProcessor(model_proto=data)
        if not library.vocab_size():
            raise ValueError("it has no pieces")
        kinds = [piece.get(3, NORMAL) for piece in _messages(data, 1)]
        trainer, normalizer = ({k: v for part in _messages(data, n) for k, v in part.items()} for n in (2, 3))
        charsmap = normalizer.get(2, b"")
        numbers = all(isinstance(kind, int) for kind in kinds)
        if not numbers or len(kinds) != library.vocab_size() or not isinstance(charsmap, bytes):
            raise ValueError("its fields are not those of a model")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a sentencepiece model ({error}); copy it again") from None
    if trainer.get(3, UNIGRAM) != UNIGRAM:
        raise InputError(
            f"{path} is not a unigram model, as T5's are; use its tokenizer.json (transformers' AutoTokenizer writes one)"
        )
    # dummy prefix, extra white space removed, white space escaped, and not put at the end of words
    if [normalizer.get(field, 1) for field in (3, 4, 5)] != [1, 1, 1] or trainer.get(24, 0):
        raise InputError(f"{path} treats white space unlike T5's tokenizers; use its tokenizer.json")
    pieces = [(library.id_to_piece(i), library.get_score(i), int(kind)) for i, kind in enumerate(kinds)]
    special = library.pad_id(), library.eos_id(), library.unk_id()
    return Model(tuple(pieces), bool(trainer.get(35, 0)), special, charsmap)
