"""sentencepiece's ``.model`` files: a unigram model's pieces, scores and normalizer, read and written.

The file is one protocol buffer; the few fields that matter are read and written here, so that the package ``protobuf`` is
not needed. Source: sentencepiece_model.proto of sentencepiece.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pathlib
import struct
import tempfile
from collections.abc import Iterator

import sentencepiece

from fusion_core import atomic
from fusion_core.errors import InputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM = 1
# what tokenizers' WhitespaceSplit splits at: Unicode's White_Space
WHITE_SPACE = (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)


@dataclasses.dataclass(frozen=True)
class Model:
    """What a ``.model`` file says.

    Attributes:
      pieces: ``(piece, score, kind)`` by id.
      byte_fallback: unknown characters become bytes.
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
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, in order: numbers, and bytes as they are."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                size, at = _varint(data, at)
            elif not size:
                raise ValueError(f"a field of kind {wire}")
            value, at = data[at : at + size], at + size
            if len(value) < size:
                raise IndexError("the end of the file")
        yield field, value


def _message(data: bytes) -> dict[int, int | bytes]:
    """The last value of each field, as protocol buffers have it."""
    return dict(_fields(data))


def _signed(value: int | bytes | None, default: int) -> int:
    if not isinstance(value, int):
        return default
    return value - (1 << 64) if value >= 1 << 63 else value


def read_model(path: pathlib.Path) -> Model:
    """Reads a unigram model.

    Raises:
      InputError: the file is missing or damaged, not a unigram model, or one that treats white space unlike T5's.
    """
    try:
        data = path.read_bytes()
        sentencepiece.SentencePieceProcessor(model_proto=data)
        fields = list(_fields(data))
        pieces = []
        for value in (value for field, value in fields if field == 1 and isinstance(value, bytes)):
            piece = _message(value)
            text, score = piece.get(1, b""), piece.get(2, bytes(4))
            assert isinstance(text, bytes)
            assert isinstance(score, bytes)
            pieces.append((text.decode("utf-8"), struct.unpack("<f", score)[0], _signed(piece.get(3), NORMAL)))
        if not pieces:
            raise ValueError("it has no pieces")
        trainer, normalizer = (
            _message(b"".join(v for field, v in fields if field == number and isinstance(v, bytes)))
            for number in (2, 3)
        )
    except (OSError, RuntimeError, ValueError, IndexError, AssertionError, struct.error) as error:
        raise InputError(f"{path} cannot be read as a sentencepiece model ({error}); copy it again") from None
    if trainer.get(3, UNIGRAM) != UNIGRAM:
        raise InputError(
            f"{path} is not a unigram model, as T5's are; use its tokenizer.json (transformers' AutoTokenizer writes one)"
        )
    # dummy prefix, extra white space removed, white space escaped, and not put at the end of words
    if [normalizer.get(field, 1) for field in (3, 4, 5)] != [1, 1, 1] or trainer.get(24, 0):
        raise InputError(f"{path} treats white space unlike T5's tokenizers; use its tokenizer.json")
    charsmap = normalizer.get(2, b"")
    return Model(
        tuple(pieces),
        bool(trainer.get(35, 0)),
        (_signed(trainer.get(43), -1), _signed(trainer.get(42), 2), _signed(trainer.get(40), 0)),
        charsmap if isinstance(charsmap, bytes) else b"",
    )


def _number(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(field: int, value: int | bytes | float) -> bytes:
    if isinstance(value, bytes):
        return _number(field << 3 | 2) + _number(len(value)) + value
    if isinstance(value, float):
        return _number(field << 3 | 5) + struct.pack("<f", value)
    return _number(field << 3) + _number(value)


def write_model(path: pathlib.Path, model: Model) -> None:
    """Writes a unigram model, whole or not at all; sentencepiece and transformers' T5Tokenizer read it."""
    pieces = [
        _field(1, text.encode()) + _field(2, float(score)) + _field(3, kind) for text, score, kind in model.pieces
    ]
    pad, end, unknown = model.special
    names = [model.pieces[i][0] if i >= 0 else "" for i in model.special]
    trainer = _field(3, UNIGRAM) + _field(4, len(pieces)) + _field(35, int(model.byte_fallback))
    trainer += _field(40, unknown) + _field(41, -1) + _field(42, end) + _field(43, pad)
    for field, name in zip((48, 47, 45), names, strict=True):
        trainer += _field(field, name.encode()) if name else b""
    normalizer = _field(1, b"identity" if not model.charsmap else b"user_defined") + _field(2, model.charsmap)
    data = b"".join(_field(1, piece) for piece in pieces) + _field(2, trainer) + _field(3, normalizer)
    with atomic.new_file(path) as temporary:
        temporary.write_bytes(data)


@functools.cache
def white_space_map() -> bytes:
    """The compiled map that makes every white space a space; sentencepiece compiles it when it trains a model."""
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{code:X}\t20\n" for code in WHITE_SPACE if code != 32), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d"]),
            model_writer=model,
            model_type="unigram",
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(rules),
            minloglevel=2,
        )
        # the map alone is wanted
        written = pathlib.Path(folder) / "map.model"
        written.write_bytes(model.getvalue())
        return read_model(written).charsmap
