"""Values that nobody would write, by the kind of file."""

from __future__ import annotations

from typing import Any

RAW = "@raw"  # a string that begins so stands for the text after it, without quotes
DEEP = 100_000
NAMES = (
    "../outside.safetensors",
    "/etc/passwd",
    "../../x",
    "..",
    ".",
    "",
    "a/b",
    "x" * 5000,
    "nul\0",
    "\ud800",
    "é",
    "-x",
)
CODE = ("__import__('os').system('touch ran')", "().__class__.__base__", "breakpoint()", "lambda: 0", "os.abort()")
NUMBERS = (0, -1, 1, 2, 3, 7, 0.5, 1e-300, 1e308, -1e308, 2**31, 2**32, 2**63, 10**7, 10**12, 10**30, 10**400)
RAWS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-0", "0x10", "'a'", "tru", "[" * DEEP, '{"a":' * DEEP, "")
VALUES: tuple[Any, ...] = (
    *(True, False, None, *NUMBERS, *NAMES, *CODE, *(RAW + text for text in RAWS)),
    *([], {}, [[]], [0], [None], {"": ""}, {"type": "x"}, ["a", 1], [[[[[[1]]]]]], ["a"] * 300, [10**6] * 20),
)  # fmt: skip
BYTES = (
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\n",
    b"\r\n",
    b"\t",
    b"\x80",
    b"<html",
    b"\xf4\x90",
)
TOML_VALUES = (
    *("true", "-1", "0", "1e400", "nan", "-inf", "9" * 400, "9" * 5000, '""', '"x"', '"rest"', '"50%"', '"101%"', "[]"),
    *("{}", "[[]]", "[1, 'a']", "1979-05-27T07:32:00Z", '"../../x"', '"/etc/passwd"', '"\\ud800"', "{ a = 1 }", "0.1", "1e-9"),
    *("[" * 1000, "{a=" * 1000, "10000000000000", "100000000", '"a"', '["a", "a"]', '["b"]', "'auto'", '"é"', "0x10", "1_0"),
)  # fmt: skip
CELLS = (
    *("", "-1", "-", "0", "5.5", "nan", "1e999", "hidden", '"', "a" * 5000, "\u2028", "entailment", "٣", "²", "1.0", " 1 "),
    "\0",
)  # fmt: skip
WORDS = (
    *("x", "y", "z", "h", "E", "pi", "I", "oo", "nan", "1", "0", "2", "0.5", "10**9", "1e300", "1e400", "60", "-1", "1/3"),
    *("exp", "log", "sqrt", "sin", "tanh", "erf", "abs", "lambda", "Matrix", "Symbol", "x_1", "é", "٣", "x.y", "x[0]", "'x'"),
    *("+", "-", "*", "/", "**", "^", "(", ")", ",", "@", "//", "%", "=", "==", " ", "if", "f", "not", "~", ":", ";", "\n"),
    *("\\", "E1", *CODE),
)  # fmt: skip
ARGUMENTS = (
    *("", "-1", "0", "1", "nan", "inf", "1e400", "9" * 400, "a", "--", "-", "\udcff", "é", "a\nb", "true", "2", "3", "0.5"),
)  # fmt: skip
FORMULAS = ("x", "y", "z", "2", "0.5", "3", "x", "y", "-1", "1/3")
FUNCTIONS = ("exp", "log", "sqrt", "sin", "cos", "tanh", "erf", "atan", "cosh")
POWERS = ("2", "3", "4", "-1", "0.5", "8", "60", "x")
