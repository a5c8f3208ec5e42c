"""Conditions on the fields of events, in the filter of a start command (docs/mapping.md).

A condition is a value that the field must have, or an object such as ``{"gte": 1, "lt": 5}``. A
value is plain JSON, or a typed value in extended JSON, such as ``{"$oid": "..."}``. Nothing of a
condition ever reaches the store as an operator of the client's choice.
"""

from __future__ import annotations

import contextlib
import math
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from bson import Decimal128, ObjectId
from pydantic import AwareDatetime, PlainValidator, TypeAdapter, WithJsonSchema

MAX_LISTED_VALUES = 10_000
"""Values of one ``in``."""
INTEGERS = range(-(2**63), 2**63)
"""The integers of BSON."""
NAMES = ("in", "gte", "gt", "lte", "lt", "ne", "exists")
"""The members of an object of conditions."""
PLAIN = "a string, a number, true, false or null"


_AWARE = TypeAdapter(AwareDatetime)


def _read_date(text: str) -> datetime:
    try:
        return _AWARE.validate_python(text).astimezone(UTC)
    except OverflowError as error:
        msg = "it lies outside the years 1 to 9999 in UTC"
        raise ValueError(msg) from error


class _Typed(NamedTuple):
    pattern: str
    """What the text looks like, as a pattern of JSON Schema."""
    example: str
    read: Callable[[str], Any]
    """Makes the BSON value of a text that fits the pattern; raises ValueError."""


_HEX = "[0-9a-fA-F]"
_TYPED: Mapping[str, _Typed] = {
    "$oid": _Typed(f"^{_HEX}{{24}}$", "65a000000000000000000001", ObjectId),
    "$uuid": _Typed(
        f"^{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}$",
        "7ce42c82-1807-4e8c-b5bf-992dc9e9c616",
        uuid.UUID,
    ),
    "$date": _Typed(r"^(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}T.", "2026-01-31T00:00:00Z", _read_date),
    # As many digits as a Decimal128 has: no value is rounded.
    "$numberDecimal": _Typed(r"^-?[0-9]{1,17}(\.[0-9]{1,17})?$", "12.50", Decimal128),
}
TYPED = ", ".join(f'{{"{name}": ...}}' for name in _TYPED)
VALUE = f"{PLAIN}, or a typed value ({TYPED})"


def is_typed(value: object) -> bool:
    """Return whether a value is written as a typed value."""
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _TYPED


def typed_value(value: Mapping[str, Any]) -> Any:
    """Return the BSON value of a typed value.

    Raises
    ------
    ValueError
        When the text is not one of this type.

    """
    ((name, text),) = value.items()
    kind = _TYPED[name]
    # To Python, `$` also stands before a line break at the end.
    if isinstance(text, str) and "\n" not in text and re.search(kind.pattern, text):
        try:
            return kind.read(text)
        except ValueError:
            pass
    msg = f'{name}: must be a text such as "{kind.example}"'
    raise ValueError(msg)


def conditions_of(condition: Any) -> Mapping[str, Any] | None:
    """Return the members of an object of conditions; None if the condition is a value."""
    return condition if isinstance(condition, dict) and not is_typed(condition) else None


def _check(condition: Any) -> Any:
    """Return a condition with numbers that BSON has; raise ValueError if it is no condition."""
    members = conditions_of(condition)
    if members is None:
        return _check_value(condition)
    if not members or not members.keys() <= set(NAMES):
        named = ", ".join(map(repr, sorted(members, key=str))) or "nothing"
        msg = (
            f"must be {VALUE}, or an object with some of {', '.join(NAMES)}, not with {named}; "
            "operators of the store are not allowed"
        )
        raise ValueError(msg)
    checked = {}
    for name, operand in members.items():
        try:
            checked[name] = _check_operand(name, operand)
        except ValueError as error:
            msg = f"{name}: {error}"
            raise ValueError(msg) from None
    return checked


def _check_operand(name: str, operand: Any) -> Any:
    if name == "exists":
        if isinstance(operand, bool):
            return operand
        msg = "must be true or false"
    elif name == "in":
        if isinstance(operand, list) and 0 < len(operand) <= MAX_LISTED_VALUES:
            return [_check_value(value) for value in operand]
        msg = f"must be a list of 1 to {MAX_LISTED_VALUES:,} values"
    elif name == "ne" or not (operand is None or isinstance(operand, bool)):
        return _check_value(operand)
    else:
        msg = f"must be a string, a number, or a typed value ({TYPED})"
    raise ValueError(msg)


def _check_value(value: Any) -> Any:
    if is_typed(value):
        typed_value(value)
        return value
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int) and INTEGERS[0] <= value <= INTEGERS[-1]:
        return value
    with contextlib.suppress(OverflowError):  # an integer that BSON does not have is a double
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    msg = f"must be {VALUE}"
    raise ValueError(msg)


# The schema


def _schema() -> dict[str, Any]:
    numbers: list[dict[str, Any]] = [
        {"type": "integer", "minimum": INTEGERS[0], "maximum": INTEGERS[-1]},
        {"type": "number"},
    ]
    typed = [_typed_schema(name, kind) for name, kind in _TYPED.items()]
    comparable = {"anyOf": [{"type": "string"}, *numbers, *typed]}
    value = {"anyOf": [*comparable["anyOf"], {"type": "boolean"}, {"type": "null"}]}
    values = {"type": "array", "minItems": 1, "maxItems": MAX_LISTED_VALUES, "items": value}
    special = {"in": values, "ne": value, "exists": {"type": "boolean"}}
    conditions = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {name: special.get(name, comparable) for name in NAMES},
    }
    return {"anyOf": [*value["anyOf"], conditions]}


def _typed_schema(name: str, kind: _Typed) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "pattern": kind.pattern}
    if name == "$date":
        text["format"] = "date-time"
    return {
        "type": "object",
        "required": [name],
        "additionalProperties": False,
        "properties": {name: text},
    }


FieldCondition = Annotated[Any, PlainValidator(_check), WithJsonSchema(_schema())]
