"""What the outside may do to a command while it runs: signals, a terminal without UTF-8, a closed pipe, a full disk."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import re
import signal
import sys
import unicodedata
from typing import Any

from fusion_core.errors import Terminated

_LETTERS = {"Δ": "Delta", "Θ": "Theta", "Π": "Pi", "Σ": "Sigma", "α": "alpha", "β": "beta", "δ": "delta", "ε": "eps"}
_LETTERS |= {"ζ": "zeta", "η": "eta", "θ": "theta", "λ": "lambda", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau"}
_LETTERS |= {"φ": "phi", "ω": "omega", "∂": "d", "∇": "grad", "∫": "int", "√": "sqrt", "∞": "inf"}
_SIGNS = {"–": "-", "−": "-", "‖": "||", "“": '"', "”": '"', "’": "'", "·": "*", "×": "x", "±": "+-", "∘": "o"}
_SIGNS |= {"←": "<-", "→": "->", "↦": "->", "≈": "~", "≠": "!=", "≤": "<=", "≥": ">=", "≫": ">>", "⟨": "<", "⟩": ">"}
PLAIN = _LETTERS | _SIGNS | {"─": "-", "━": "-", "▼": "v", **dict(zip("▁▂▃▄▅▆▇█", "_.-=+*#@", strict=True))}
"""Symbols that are used, and what stands for them where the terminal has no such characters."""
ERRORS = "deepfusion-plain"
REMEDIES = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EACCES: "check its rights, or choose another place",
    errno.EPERM: "check its rights, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


def plain(text: str) -> str:
    """Return the text in ASCII: symbols by ``PLAIN``, letters without their accents, a question mark for the rest."""
    known = "".join(PLAIN.get(character, character) for character in text)
    return unicodedata.normalize("NFKD", known).translate(dict.fromkeys(range(768, 880))).encode(
        "ascii", "replace"
    ).decode()  # fmt: skip


def _encoded(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what is written for characters that a stream cannot encode; bytes of file names as they are."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start : error.end]
    with contextlib.suppress(UnicodeEncodeError):
        if all(0xDC80 <= ord(character) <= 0xDCFF for character in part):
            return part.encode("ascii", "surrogateescape"), error.end
    return plain(part), error.end


def prepare_streams() -> None:
    """Let both output streams write any text, whatever their encoding."""
    codecs.register_error(ERRORS, _encoded)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)


def shown_help(text: str) -> str:
    """Return the text as standard output can show it."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text if codecs.lookup(encoding).name.startswith("utf") else plain(text)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def obey_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does: what is half written is removed, and the command ends."""
    with contextlib.suppress(ValueError):  # not the main thread, which alone may handle signals
        signal.signal(signal.SIGTERM, _terminate)


def os_error(error: OSError) -> str:
    """Return an error of the operating system as one line: the file, what is wrong with it, a remedy if there is one."""
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{where}{error.strerror or error}{f'; {remedy}' if remedy else ''}"


def visible(message: str) -> str:
    """Return a message whose names of files neither break its line nor drive a terminal; lists of errors keep their lines."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\n(?!  )", lambda found: repr(found[0])[1:-1], message)


def flush() -> None:
    """Write what is still in standard output's buffer. Raise OSError if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        abandon_output()
        raise


def abandon_output() -> None:
    """Let what is still in standard output's buffer go nowhere: it cannot be written, and Python would try again."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
