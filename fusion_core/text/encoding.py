"""The encoding of text: UTF-8 is read, with or without a byte order mark; anything else is named, with what converts it."""

from __future__ import annotations

import codecs
import pathlib
import shlex
import stat

from fusion_core.errors import InputError

BOM = "\ufeff"
POINTER = b"version https://git-lfs.github.com/spec/"
HEAD = 4096  # bytes that are looked at
# byte order marks, longer ones first, and iconv's names of the encodings
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_NOT_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")  # bytes that Windows-1252 does not have
SAMPLE = 1 << 24  # bytes by which an encoding is guessed
_UNPACK = {".gz": "gzip", ".zst": "zstd"}


def foreign_encoding(head: bytes) -> str | None:
    """Return iconv's name of the encoding of a file that begins with ``head``; None if it may be UTF-8.

    UTF-16 without a mark is UTF-8 with a zero byte beside every letter, which no text has.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for first, name in enumerate(("UTF-16BE", "UTF-16LE")):
        high, low = head[first::2], head[1 - first :: 2]
        if len(head) > 1 and 2 * high.count(0) > len(high) and not low.count(0):
            return name
    return None


def not_utf8(path: pathlib.Path, data: bytes, offset: int) -> InputError:
    """Return the error for a file with bytes that are no UTF-8, with the command that converts it.

    Args:
      path: of the file.
      data: bytes with the first that is wrong: of its line, say; at offset 0 the file's first ones.
      offset: of ``data`` in the file (without compression).
    """
    encoding = foreign_encoding(data[:HEAD]) if offset == 0 else None
    if encoding is not None:
        mark = "byte order mark" if encoding in ("UTF-16", "UTF-32") else "zero bytes"
        where, what = f"it is {encoding}, by its {mark}", ""
    else:
        try:
            zero = offset + len(data.decode("utf-8").partition("\0")[0].encode())
            return InputError(
                f"{path} is no text (a zero byte at offset {zero}); leave it out, or write it again as UTF-8"
            )
        except UnicodeDecodeError as error:
            where = f"byte 0x{data[error.start]:02x} at offset {offset + error.start}"
        encoding, what = _single_bytes(path, data)
    encoding = encoding if encoding.startswith("-") else f"-f {encoding} -t UTF-8"
    unpack = _UNPACK.get(path.suffix.lower())
    plain = path.with_suffix("") if unpack else path
    new = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    old = shlex.quote(str(path))
    read = f"{unpack} -dc {old} | iconv {encoding}" if unpack else f"iconv {encoding} {old}"
    return InputError(f"{path} is not UTF-8: {where}; convert it{what}: {read} > {new}, or leave it out")


def _single_bytes(path: pathlib.Path, data: bytes) -> tuple[str, str]:
    """Return iconv's options for a file with wrong bytes, and what they suppose."""
    if path.suffix.lower() not in _UNPACK:
        with path.open("rb") as file:
            data = file.read(SAMPLE)
    letters = sum(ord(character) > 127 for character in data.decode("utf-8", errors="ignore"))
    wrong = data.decode("utf-8", errors="replace").count("\ufffd")
    if letters > wrong:
        return "-c -f UTF-8 -t UTF-8", " (most of it is UTF-8, and this leaves out what is not)"
    name = "LATIN1" if set(data) & _NOT_1252 else "WINDOWS-1252"
    return f"-f {name} -t UTF-8", f" (if it is {name})"


def check_head(path: pathlib.Path, head: bytes) -> None:
    """Raise InputError if a file that begins with ``head`` is of another encoding, or no text."""
    if foreign_encoding(head[:HEAD]) or 0 in head[:HEAD]:
        raise not_utf8(path, head[:HEAD], 0)


def check_pointer(path: pathlib.Path) -> None:
    """Raise InputError if a file, which must exist, is what git-lfs or a failed download leaves in the place of another.

    So it does for what is no regular file: a pipe may never end, and nobody may ever write into it.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise InputError(f"{path} is {what}; only regular files are read: write what it gives into one")
    with path.open("rb") as file:
        head = file.read(len(POINTER))
    if head.startswith(POINTER):
        raise InputError(f"{path} is a pointer of git-lfs, not the file itself; fetch it: git lfs pull")
    if head.lower().startswith((b"<!doctype html", b"<html")) and path.suffix in (".json", ".safetensors", ".model"):
        raise InputError(f"{path} is a web page, not the file itself; download it again")


def read_text(path: pathlib.Path, longest: int | None = None) -> str:
    r"""Return the text of a file, without its byte order mark, with lines that end in ``\n``.

    Args:
      path: of the file.
      longest: bytes that it may have; if None, any number.

    Raises:
      InputError: there is no such file, it cannot be read, it is longer, or it is not UTF-8.
    """
    try:
        check_pointer(path)
        if longest is not None and (size := path.stat().st_size) > longest:
            raise InputError(f"{path} has {size:,} bytes; such a file has at most {longest:,}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from None
    check_head(path, data)
    try:
        return data.decode("utf-8").removeprefix(BOM).replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise not_utf8(path, data, 0) from None


def check_characters(text: str, origin: str) -> str:
    """Return the text. Raises InputError, which begins with ``origin``, if it has half of a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"{origin}: half of a character ({half}, after {error.start} characters), which no text can hold; write the other "
            "half too, or leave it out"
        ) from None
    return text
