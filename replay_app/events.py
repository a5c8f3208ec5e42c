"""Events: how a stored document becomes a Kafka record (docs/mapping.md).

Pure functions on decoded documents. They raise `EventError` for a document that cannot be mapped;
the message says why.
"""

from __future__ import annotations

import base64
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Literal, TypeGuard

import orjson
from bson import Binary, Decimal128, Int64, ObjectId
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS

from replay_app.commands import TOPIC_NAME, TOPIC_RULE, Target
from replay_app.exceptions import EventError
from replay_app.extended_json import extended_text

Document = dict[str, Any]

STRICT: CodecOptions[dict[str, Any]] = CodecOptions(
    # Times without a timezone, in UTC: attaching a timezone takes longer than decoding the time.
    tz_aware=False,
    uuid_representation=UuidRepresentation.STANDARD,
    # A date outside the years 1 to 9999 becomes a DatetimeMS: the event's id can still be read, and
    # `_encode_other` refuses the date.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
"""How stored documents are decoded; invalid UTF-8 is an error."""
LENIENT = STRICT.with_options(tz_aware=True, unicode_decode_error_handler="replace")
"""How documents that `STRICT` refuses are decoded, to find the event's id. U+FFFD replaces invalid
UTF-8."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
JSON_OPTIONS = (
    orjson.OPT_NAIVE_UTC
    | orjson.OPT_UTC_Z
    | orjson.OPT_PASSTHROUGH_SUBCLASS
    | orjson.OPT_PASSTHROUGH_DATACLASS
)
"""orjson must not write subclasses as their base: PyMongo's `Code` is a ``str``, but not a text. A
dataclass comes from transforms only, and could hide numbers that JSON does not have."""
_MISSING = object()
"""Stands for the value at a path that leads to no field. None is the value of a null field."""

HEADER_NAMES, HEADER_VALUES = ("key", "k", "name"), ("value", "v")
"""The fields of a header that is a document."""
TRACE_HEADERS = frozenset(
    {
        *("traceparent", "tracestate", "baggage", "b3", "uber-trace-id", "sentry-trace"),
        *("x-amzn-trace-id", "x-cloud-trace-context", "elastic-apm-traceparent"),
    }
)
"""W3C Trace Context and Baggage, B3, Jaeger, Sentry, AWS X-Ray, Google Cloud, Elastic."""
TRACE_PREFIXES = ("replay-", "x-b3-", "x-datadog-", "uberctx-")
Header = tuple[str, bytes | None]

TimestampType = Literal["date", "iso", "epoch_ms"]


@dataclass(frozen=True, slots=True)
class EventMapping:
    """The rules by which a document becomes a record. The names of fields are dotted paths."""

    field_id: str | None = None
    """None: ``event_id`` if the document has this field, else ``_id``."""
    field_timestamp: str = "timestamp"
    field_type: str = "event_type"
    field_aggregate: str = "aggregate_id"
    field_topic: str = "topic"
    field_key: str | None = None
    """None: the aggregate id, else the event id."""
    field_value: str | None = None
    """None: the document as JSON. Otherwise the bytes or the text of this field, unchanged."""
    null_values: Literal["fail", "tombstone"] = "fail"
    """What a null in ``field_value`` becomes."""
    field_headers: str | None = None
    """The event's original headers, which are published again. None: there are none."""
    field_replayed: str | None = None
    """A stored event with this field is itself a replayed event. None: no stored event is."""
    timestamp_type: TimestampType = "date"
    exclude_fields: tuple[str, ...] = ("_id",)
    """Fields that are left out of the value."""
    topics: Mapping[str, str] = field(default_factory=dict)
    """Topics by event type."""
    topic_template: str = "{event_type}"
    """The topic if no other rule gives one."""


def fields_of(mapping: EventMapping) -> set[str]:
    """Return the paths of all fields that a mapping reads."""
    ids = {"event_id", "_id"} if mapping.field_id is None else {mapping.field_id}
    others = {
        mapping.field_timestamp,
        mapping.field_type,
        mapping.field_aggregate,
        mapping.field_topic,
        mapping.field_key,
        mapping.field_value,
        mapping.field_headers,
        mapping.field_replayed,
    }
    return ids | {path for path in others if path is not None}


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is a BSON string. PyMongo's `Code` is a ``str``, but not a text."""
    return type(value) is str


def field_at(document: Document, path: str) -> Any:
    """Return the value at a dotted path; None if the path leads to no field."""
    if "." not in path:
        return document.get(path)
    value = _at(document, path)
    return None if value is _MISSING else value


def has_field(document: Document, path: str) -> bool:
    """Return whether a dotted path leads to a field, whatever the field's value."""
    if "." not in path:
        return path in document
    return _at(document, path) is not _MISSING


def _at(document: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(document, dict) or name not in document:
            return _MISSING
        document = document[name]
    return document


def is_within(path: str, outer: str) -> bool:
    """Return whether a dotted path leads to the field of another path, or to a field inside it."""
    return path == outer or path.startswith(f"{outer}.")


def is_marked(document: Document, path: str) -> bool:
    """Return whether a document has the header at a dotted path, whatever the header's value.

    The headers are a document, or an array of pairs: ``[name, value]``, or a document that has the
    name in the field ``key``, ``k`` or ``name``, or as the name of a field.
    """
    if has_field(document, path):
        return True
    parents, _, name = path.rpartition(".")
    headers = field_at(document, parents) if parents else None
    return isinstance(headers, list) and any(_is_header(pair, name) for pair in headers)


def _is_header(pair: Any, name: str) -> bool:
    if isinstance(pair, dict):
        return name in pair or any(pair.get(field) == name for field in HEADER_NAMES)
    return isinstance(pair, list) and bool(pair) and pair[0] == name


def event_headers(document: Document, mapping: EventMapping) -> list[Header]:
    """Return the event's original headers that are published again, in their order.

    They are a document, or an array of pairs: ``[name, value]``, a document that has the name in
    ``key``, ``k`` or ``name`` and the value in ``value`` or ``v``, or a document with one field.
    Left out are headers of a replay and of a trace: they would tell of another way of the event.

    Raises
    ------
    EventError
        When the field holds something else.

    """
    if mapping.field_headers is None:
        return []
    stored = field_at(document, mapping.field_headers)
    if stored is None:
        return []
    if isinstance(stored, dict):
        pairs: Iterable[Any] = stored.items()
    elif isinstance(stored, list):
        pairs = map(_header_pair, stored)
    else:
        pairs = (None,)
    headers = []
    for pair in pairs:
        if pair is None or not is_text(pair[0]):
            msg = (
                f"its headers in field {mapping.field_headers!r} (REPLAY_FIELD_HEADERS) are "
                "neither an object nor an array of keys and values"
            )
            raise EventError(msg)
        name, value = pair
        if not is_left_out(name):
            headers.append((name, _header_value(name, value)))
    return headers


def _header_pair(pair: Any) -> tuple[Any, Any] | None:
    if isinstance(pair, dict):
        if len(pair) == 1:
            ((name, value),) = pair.items()
            return name, value
        name = next((field for field in HEADER_NAMES if field in pair), None)
        value = next((field for field in HEADER_VALUES if field in pair), None)
        return None if name is None or value is None else (pair[name], pair[value])
    return (pair[0], pair[1]) if isinstance(pair, list) and len(pair) == 2 else None  # noqa: PLR2004 - a pair


def is_left_out(name: str) -> bool:
    """Return whether a header tells of a replay or of a trace."""
    name = name.lower()
    return name in TRACE_HEADERS or name.startswith(TRACE_PREFIXES)


def _header_value(name: str, value: Any) -> bytes | None:
    """Return a header's value: bytes as they are, documents and arrays as JSON, others as text."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, dict | list):
        return encode_json(value)
    return as_text(value, f"header {name!r}").encode()


def remove_field(document: dict[str, Any], path: str) -> None:
    """Remove the field at a dotted path, if the path leads to one."""
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


def id_of(document: Document, mapping: EventMapping) -> Any:
    """Return the event's id as it is stored.

    Raises
    ------
    EventError
        When the document has no id.

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
    return value


def event_id(document: Document, mapping: EventMapping) -> str:
    """Return the event's id as text: what a person reads, and the key of last resort.

    Raises
    ------
    EventError
        When the document has no id, or the id has no text form.

    """
    value = id_of(document, mapping)
    return extended_text(value) if isinstance(value, dict) else as_text(value, "id")


def event_type(document: Document, mapping: EventMapping) -> str:
    """Return the event's type.

    Raises
    ------
    EventError
        When the document has no type, or a type that is not text.

    """
    value = field_at(document, mapping.field_type)
    if is_text(value) and value:
        return value
    msg = f"it has no type: field {mapping.field_type!r} (REPLAY_FIELD_TYPE) holds {_quote(value)}"
    raise EventError(msg)


def event_time(document: Document, mapping: EventMapping) -> datetime:
    """Return when the event happened, in UTC and without a timezone.

    Raises
    ------
    EventError
        When the field is missing, has another type than ``timestamp_type`` says, or its time lies
        outside the years 1 to 9999.

    """
    return time_of(field_at(document, mapping.field_timestamp), mapping)


def time_of(value: Any, mapping: EventMapping) -> datetime:
    """Return the time that the timestamp field holds; see `event_time`."""
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
        f"REPLAY_TIMESTAMP_TYPE) holds {_quote(value)}"
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

    The first rule that gives a topic: the target's map, the target's topic, the document's topic,
    the mapping's map, the template. The target's prefix is put before the topic of the last three
    rules (docs/mapping.md, "The topic").

    Raises
    ------
    EventError
        When no rule gives a topic, or when the result is not a topic name.

    """
    topic = target.topics.get(kind) or target.topic
    if topic is None:
        if is_text(own_topic) and own_topic:
            topic = own_topic
        elif isinstance(kind, str):
            topic = mapping.topics.get(kind) or mapping.topic_template.replace("{event_type}", kind)
        else:
            msg = "it has neither a topic nor a type that gives a topic"
            raise EventError(msg)
        topic = (target.prefix or "") + topic
    if not TOPIC_NAME.match(topic):
        msg = f"its topic would be {topic[:300]!r}, which is not a topic name: {TOPIC_RULE}"
        raise EventError(msg)
    return topic


def strip(
    document: Document, mapping: EventMapping, redact: Callable[[Document], None] = lambda _: None
) -> None:
    """Remove the excluded fields from a document that becomes JSON, and redact the rest.

    Raises
    ------
    EventError
        When the document cannot be redacted.

    """
    if mapping.field_value is None:
        for path in mapping.exclude_fields:
            remove_field(document, path)
        redact(document)


def event_value(document: Document, mapping: EventMapping) -> bytes | None:
    """Return the record's value, of a document that `strip` has changed. None: a tombstone.

    Raises
    ------
    EventError
        When a value has no mapping to JSON, or when ``field_value`` holds neither bytes nor text.

    """
    if mapping.field_value is not None:
        value = field_at(document, mapping.field_value)
        if isinstance(value, bytes):
            return bytes(value)
        if is_text(value):
            return value.encode()
        is_null = value is None and has_field(document, mapping.field_value)
        if is_null and mapping.null_values == "tombstone":
            return None
        msg = (
            f"field {mapping.field_value!r} (REPLAY_FIELD_VALUE) holds {_quote(value)}; only "
            "bytes and text can be passed through"
            + ("; REPLAY_NULL_VALUES=tombstone would make it a tombstone" if is_null else "")
        )
        raise EventError(msg)
    return encode_json(document)


def encode_json(document: Any) -> bytes:
    """Return a decoded BSON value as JSON (the table is in docs/mapping.md).

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
    # orjson writes NaN and infinities as null. JSON without a null had no such number.
    if b"null" in value:
        _require_finite(document, "")
    return value


def _require_finite(value: Any, path: str) -> None:
    """Raise `EventError` if a number in a value is NaN or infinite."""
    if isinstance(value, float):
        if value - value != 0:
            msg = f"field {path!r} holds {value}, which is not a number in JSON"
            raise EventError(msg)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _require_finite(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _require_finite(inner, f"{path}.{number}")
    elif isinstance(value, Enum):
        _require_finite(value.value, path)


def _encode_other(value: Any) -> Any:
    """Convert a BSON value that orjson does not know. orjson calls this function."""
    convert = _CONVERSIONS.get(type(value))
    if convert is not None:
        return convert(value)
    if isinstance(value, DatetimeMS):
        msg = f"the date {int(value)} ms after 1970 lies outside the years 1 to 9999"
        raise EventError(msg)
    msg = f"it holds a value of BSON type {type(value).__name__}, which has no mapping to JSON"
    raise EventError(msg)


def base64_text(value: bytes) -> str:
    """Return bytes as base64, their form in JSON."""
    return base64.b64encode(value).decode()


def decimal_text(value: Decimal128) -> str:
    """Return ``str(value)``, for common amounts at a fifth of its cost.

    The bits are those of the binary integer decimal encoding of IEEE 754-2008.
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
    """Return an id or key as text. ``what`` names the value in the error.

    Raises
    ------
    EventError
        When values of this type have no text form.

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
    msg = f"its {what} is {_quote(value)}, which has no text form"
    raise EventError(msg)


def rfc3339(time: datetime) -> bytes:
    """Return a time of a document, in UTC, as RFC 3339 with milliseconds and a final Z."""
    # orjson takes a quarter of isoformat()'s time. It writes quotes, and six digits of fraction or
    # no fraction.
    text = orjson.dumps(time, None, JSON_OPTIONS)
    return text[1:24] + b"Z" if time.microsecond else text[1:20] + b".000Z"


def _quote(value: Any) -> str:
    """Return a value and its type for a message, shortened."""
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"  # noqa: PLR2004
