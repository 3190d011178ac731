"""Values that were read from a file, checked against the types of what they become; and what is wrong with them in words."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# kinds of pydantic's errors -> what a value must be
WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a word in quotes",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "literal_error": "one of {expected}",
    "dataclass_type": "a table",
    "dataclass_exact_type": "a table",
}


def explained(error: Any, name: str) -> str:
    """Return the message for one of pydantic's errors about the field ``name``."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in ("missing", "unexpected_keyword_argument"):
        return f"{name} is missing; give it" if error["type"] == "missing" else f"{name} is unknown; leave it out"
    bounds = {key: _written(value) for key, value in error.get("ctx", {}).items()}
    wanted = WANTED.get(error["type"], error["msg"]).format(**bounds)
    return f"{name} is {error['input']!r}; it must be {wanted}"


def _written(value: Any) -> Any:
    """Return a bound as one reads it: whole numbers with all their digits."""
    return value if not isinstance(value, int | float) else f"{int(value):,}" if value % 1 == 0 else f"{value:g}"


@functools.lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # slow to import

    return TypeAdapter(kind)


def checked(kind: Any, values: Any) -> Any:
    """Return values of JSON as an object of a type, in which lists are tuples where the type says so, and nothing else changes.

    Args:
      kind: a dataclass with types, a ``TypedDict`` or another type that pydantic knows.
      values: as ``json.loads`` gives them.

    Raises:
      ValueError: a field is missing, unknown to the dataclass, or of another type; the message has the first one.
    """
    from pydantic import ValidationError

    if dataclasses.is_dataclass(kind) and isinstance(values, dict):
        known = {field.name for field in dataclasses.fields(kind)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"{unknown[0][:100]!r} is unknown; there are {', '.join(sorted(known))}")
    try:
        return _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        first["input"] = repr(first["input"])[:100]
        raise ValueError(explained(first, ".".join(map(str, first["loc"])) or "it")[:500]) from None
