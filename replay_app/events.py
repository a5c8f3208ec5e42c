"""Events: how a stored document becomes a Kafka record (docs/mapping.md).

Pure functions on decoded documents. For a document that cannot be mapped they raise `EventError`,
which says why this one event fails.
"""

from __future__ import annotations

import base64
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeGuard

import orjson
from bson import Binary, Decimal128, Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS

from replay_app.commands import TOPIC_NAME, TOPIC_RULE, Target
from replay_app.exceptions import EventError

Document = dict[str, Any]

STRICT: CodecOptions[dict[str, Any]] = CodecOptions(
    # Naive times, in UTC as BSON has them: to attach a timezone takes longer than to decode them.
    tz_aware=False,
    uuid_representation=UuidRepresentation.STANDARD,
    # A date outside the years 1 to 9999 must not keep us from the event's id: see `_encode_other`.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""How stored documents are decoded; invalid UTF-8 is an error."""
LENIENT = STRICT.with_options(tz_aware=True, unicode_decode_error_handler="replace")
"""How a document is decoded that cannot be decoded otherwise, to name it; and a cursor."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
JSON_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_SUBCLASS
"""Of subclasses only ours are known: the driver's `Code` is a `str` too, but no text."""
_MISSING = object()

TimestampType = Literal["date", "iso", "epoch_ms"]


@dataclass(frozen=True, slots=True)
class EventMapping:
    """Where a document keeps what an event is made of; all fields are dotted paths."""

    field_id: str | None = None
    """None: ``event_id`` where there is one, else ``_id``."""
    field_timestamp: str = "timestamp"
    field_type: str = "event_type"
    field_aggregate: str = "aggregate_id"
    field_topic: str = "topic"
    field_key: str | None = None
    """None: the aggregate id, else the event id."""
    field_value: str | None = None
    """None: the document as JSON; else this field's bytes or text, passed through as they are."""
    field_replayed: str | None = None
    """Whose presence says that the stored event is itself a replayed one."""
    timestamp_type: TimestampType = "date"
    exclude_fields: tuple[str, ...] = ("_id",)
    """Left out of the value."""
    topics: Mapping[str, str] = field(default_factory=dict)
    """Event type to topic."""
    topic_template: str = "{event_type}"


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is a BSON string; the driver's `Code` is a `str` too, but no text."""
    return type(value) is str


def field_at(document: Document, path: str) -> Any:
    """Return the value at a dotted path; None where there is none."""
    if "." not in path:
        return document.get(path)
    value = _at(document, path)
    return None if value is _MISSING else value


def has_field(document: Document, path: str) -> bool:
    """Return whether there is a field at a dotted path, whatever its value."""
    if "." not in path:
        return path in document
    return _at(document, path) is not _MISSING


def _at(document: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(document, dict) or name not in document:
            return _MISSING
        document = document[name]
    return document


def without_field(document: dict[str, Any], path: str) -> None:
    """Remove the field at a dotted path, if it is there."""
    if "." not in path:
        document.pop(path, None)
        return
    *parents, name = path.split(".")
    for parent in parents:
        inner = document.get(parent)
        if not isinstance(inner, dict):
            return
        document = inner
    document.pop(name, None)


def event_id(document: Document, mapping: EventMapping) -> str:
    """Return the event's id as text.

    Raises
    ------
    EventError
        When it has none.

    """
    if mapping.field_id is None:
        value = document.get("event_id")
        if value is None:
            value = document.get("_id")
    else:
        value = field_at(document, mapping.field_id)
    if value is None:
        msg = f"it has no id in field {mapping.field_id or '_id'!r} (REPLAY_FIELD_ID)"
        raise EventError(msg)
    return as_text(value, "id")


def event_type(document: Document, mapping: EventMapping) -> str:
    """Return the event's type.

    Raises
    ------
    EventError
        When it has none, or one that is not text.

    """
    value = field_at(document, mapping.field_type)
    if is_text(value) and value:
        return value
    msg = f"it has no type: field {mapping.field_type!r} (REPLAY_FIELD_TYPE) holds {_shown(value)}"
    raise EventError(msg)


def event_time(document: Document, mapping: EventMapping) -> datetime:
    """Return when the event happened, in UTC and without a timezone.

    Raises
    ------
    EventError
        When the field is missing, of another type than configured, or no time of years 1 to 9999.

    """
    value = field_at(document, mapping.field_timestamp)
    kind = mapping.timestamp_type
    try:
        if kind == "date" and isinstance(value, datetime):
            return value
        if kind == "iso" and is_text(value):
            time = datetime.fromisoformat(value)
            return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
        if kind == "epoch_ms" and isinstance(value, int | float) and not isinstance(value, bool):
            return (EPOCH + timedelta(milliseconds=value)).replace(tzinfo=None)
    except (ValueError, OverflowError):
        pass
    msg = (
        f"it has no {kind} time: field {mapping.field_timestamp!r} (REPLAY_FIELD_TIMESTAMP, "
        f"REPLAY_TIMESTAMP_TYPE) holds {_shown(value)}"
    )
    raise EventError(msg)


def event_key(document: Document, mapping: EventMapping, identity: str) -> bytes:
    """Return the record's key; ``identity`` is the event id.

    Raises
    ------
    EventError
        When the configured key field is missing, or the key has no text form.

    """
    if mapping.field_key is not None:
        value = field_at(document, mapping.field_key)
        if value is None:
            msg = f"it has no key: field {mapping.field_key!r} (REPLAY_FIELD_KEY) is missing"
            raise EventError(msg)
    else:
        value = field_at(document, mapping.field_aggregate)
        if value is None:
            return identity.encode()
    return bytes(value) if isinstance(value, bytes) else as_text(value, "key").encode()


def destination(kind: Any, own_topic: Any, mapping: EventMapping, target: Target) -> str:
    """Return the topic for an event of type ``kind`` whose document names ``own_topic``.

    The first that gives one: the target's map and topic, the document's own topic, the map of
    types to topics, the template; a target's prefix goes before the last three.

    Raises
    ------
    EventError
        When what comes out is no topic name.

    """
    topic = target.topics.get(kind) or target.topic
    if topic is None:
        if is_text(own_topic) and own_topic:
            topic = own_topic
        elif isinstance(kind, str):
            topic = mapping.topics.get(kind) or mapping.topic_template.replace("{event_type}", kind)
        else:
            msg = "it has neither a topic nor a type that would give one"
            raise EventError(msg)
        topic = (target.prefix or "") + topic
    if not TOPIC_NAME.match(topic):
        msg = f"its topic would be {topic[:300]!r}, which is no topic name: {TOPIC_RULE}"
        raise EventError(msg)
    return topic


def event_value(document: dict[str, Any], mapping: EventMapping) -> bytes:
    """Return the record's value; removes the excluded fields from ``document``.

    Raises
    ------
    EventError
        When a value has no mapping to JSON, or the pass-through field is no bytes or text.

    """
    if mapping.field_value is not None:
        value = field_at(document, mapping.field_value)
        if isinstance(value, bytes):
            return bytes(value)
        if is_text(value):
            return value.encode()
        msg = (
            f"field {mapping.field_value!r} (REPLAY_FIELD_VALUE) holds {_shown(value)}; only "
            "bytes and text can be passed through"
        )
        raise EventError(msg)
    for path in mapping.exclude_fields:
        without_field(document, path)
    return encode_json(document)


def encode_json(document: Document) -> bytes:
    """Return a decoded BSON document as JSON (the table is in docs/mapping.md).

    Raises
    ------
    EventError
        For a value without a mapping, and for NaN and infinities, which JSON does not have.

    """
    try:
        value = orjson.dumps(document, _encode_other, JSON_OPTIONS)
    except orjson.JSONEncodeError as error:
        if isinstance(error.__cause__, EventError):
            raise error.__cause__ from None
        msg = f"it cannot be written as JSON: {error}"
        raise EventError(msg) from error
    # The encoder writes NaN as null. Only a value with a null in it can have been one.
    if b"null" in value:
        _refuse_no_numbers(document, "")
    return value


def _refuse_no_numbers(value: Any, path: str) -> None:
    if isinstance(value, float):
        if value - value != 0:
            msg = f"field {path!r} holds {value}, which JSON has no number for"
            raise EventError(msg)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _refuse_no_numbers(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_no_numbers(inner, f"{path}.{number}")


def _encode_other(value: Any) -> Any:
    """Return a BSON value as one that JSON has; what orjson knows itself does not come here."""
    convert = _CONVERSIONS.get(type(value))
    if convert is not None:
        return convert(value)
    if isinstance(value, DatetimeMS):
        msg = f"the date {int(value)} ms after 1970 lies outside the years 1 to 9999"
        raise EventError(msg)
    msg = f"it holds a value of BSON type {type(value).__name__}, which has no mapping to JSON"
    raise EventError(msg)


def base64_text(value: bytes) -> str:
    """Return bytes as JSON has them."""
    return base64.b64encode(value).decode()


def decimal_text(value: Decimal128) -> str:
    """Return what ``str`` gives, at a fifth of its cost for everyday amounts.

    The layout is that of IEEE 754-2008's binary integer decimal encoding.
    """
    low, high = _TWO_WORDS.unpack(value.bid)
    exponent = (high >> 49 & 0x3FFF) - 6176
    if high >> 61 & 3 != 3 and -6 < exponent <= 0:  # noqa: PLR2004 - not NaN, not infinite
        digits = str((high & 0x1FFFFFFFFFFFF) << 64 | low)
        if exponent:
            digits = digits.rjust(1 - exponent, "0")
            digits = f"{digits[:exponent]}.{digits[exponent:]}"
        return f"-{digits}" if high >> 63 else digits
    return str(value)


_TWO_WORDS = struct.Struct("<QQ")
_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    Int64: int,
    ObjectId: str,
    Decimal128: decimal_text,
    bytes: base64_text,
    Binary: base64_text,
}


def as_text(value: Any, what: str) -> str:
    """Return an id or key as text.

    Raises
    ------
    EventError
        For a type that has no one text form.

    """
    if is_text(value):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float | ObjectId | uuid.UUID | Decimal128):
        return str(value)
    if isinstance(value, datetime):
        return rfc3339(value).decode()
    if isinstance(value, bytes):
        return bytes(value).hex()
    msg = f"its {what} is {_shown(value)}, which has no text form"
    raise EventError(msg)


def rfc3339(time: datetime) -> bytes:
    """Return a time of a document with milliseconds, BSON's precision, and a final Z."""
    # A quarter of isoformat()'s cost: quoted, with six digits of fraction or none.
    text = orjson.dumps(time, None, JSON_OPTIONS)
    return text[1:24] + b"Z" if time.microsecond else text[1:20] + b".000Z"


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"  # noqa: PLR2004
