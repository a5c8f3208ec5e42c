"""Ids as text: the text in a delivery id, and the stored values for which a text may stand."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Any

import bson
from bson import Binary, DBRef, ObjectId, Regex, json_util
from bson.binary import UuidRepresentation
from bson.errors import BSONError

from replay_app.events import STRICT, as_text, is_text
from replay_app.extended_json import EXACT, extended_text

_WHOLE_NUMBER = re.compile(r"(0|-?[1-9]\d{0,18})\Z", re.ASCII)
_LEGACY_UUIDS = (
    UuidRepresentation.PYTHON_LEGACY,
    UuidRepresentation.CSHARP_LEGACY,
    UuidRepresentation.JAVA_LEGACY,
)
"""The byte orders in which drivers stored UUIDs as binary subtype 3."""
_BOOLEANS = {True: '{"$bool":true}', False: '{"$bool":false}'}
"""Extended JSON writes a boolean as ``true``, which is also a text."""
_EXTENDED = ("{", '"')
"""How extended JSON of an id begins."""


def delivery_text(value: Any) -> str:
    """Return an event's id as it stands in the delivery id: ids that differ have other texts.

    Text, ObjectIds and UUIDs are as people write them, so one of these may share its text with
    another. Any other id is canonical extended JSON, and so is a text that looks like it.

    Raises
    ------
    EventError
        When values of this type have no text form.

    """
    if is_text(value):
        return extended_text(value) if value.startswith(_EXTENDED) else value
    if isinstance(value, bool):
        return _BOOLEANS[value]
    if not isinstance(value, dict):
        text = as_text(value, "id")
        if isinstance(value, ObjectId | uuid.UUID):
            return text
    return extended_text(value)


def stored_values(ids: Iterable[str | int]) -> list[Any]:
    """Return each id in every BSON type in which it may be stored: "42" also finds 42."""
    found: list[Any] = []
    for item in ids:
        found += spellings(item)
        if isinstance(item, str):
            if _WHOLE_NUMBER.match(item) and -(2**63) <= int(item) < 2**63:
                found.append(int(item))
            elif item.startswith(_EXTENDED):
                found += _read(item)
    return found


def spellings(value: Any) -> list[Any]:
    """Return a value, and the ObjectId and the UUIDs that have the value as their text.

    A UUID may be stored as binary subtype 4, or as subtype 3 in the byte order of the driver that
    stored it: nothing in the store says which, so a text stands for all three.
    """
    found = [value]
    if isinstance(value, str):
        if ObjectId.is_valid(value):
            found.append(ObjectId(value))
        try:
            number = uuid.UUID(value)
        except ValueError:
            return found
        found.append(number)
        found += [Binary.from_uuid(number, order) for order in _LEGACY_UUIDS]
    return found


def _read(text: str) -> list[Any]:
    """Return the value that a text has as extended JSON; no value if the text is another text.

    A pattern, or a document that a query would take for an operator, is no value either.
    """
    for boolean, written in _BOOLEANS.items():
        if text == written:
            return [boolean]
    try:
        value = json_util.loads(text, json_options=EXACT)
        bson.encode({"": value}, codec_options=STRICT)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError, BSONError):
        return []
    is_operator = isinstance(value, dict) and any(name.startswith("$") for name in value)
    return [] if is_operator or isinstance(value, Regex | DBRef) else [value]
