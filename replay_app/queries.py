"""Filter, order and cursor as MongoDB queries: pure functions.

The queries are plain MongoDB filters. Values inside JSON records (cursors, bounds of shards) are
written as canonical extended JSON, so that no BSON type is lost.
"""

from __future__ import annotations

import math
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import ObjectId, json_util
from bson.binary import UuidRepresentation
from bson.json_util import JSONMode, JSONOptions

from replay_app.events import EPOCH
from replay_app.internals import to_json_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from replay_app.commands import Filter
    from replay_app.events import EventMapping

Query = dict[str, Any]

_JSON = JSONOptions(
    json_mode=JSONMode.CANONICAL,
    tz_aware=True,
    tzinfo=UTC,
    uuid_representation=UuidRepresentation.STANDARD,
)
_WHOLE_NUMBER = re.compile(r"(0|-?[1-9]\d{0,18})\Z", re.ASCII)
_BSON_TYPE = {"date": "date", "iso": "string", "epoch_ms": "number"}
_EXPRESSION_TYPES = {
    "date": ["date"],
    "iso": ["string"],
    "epoch_ms": ["int", "long", "double", "decimal"],
}


def to_json(value: Any) -> Any:
    """Return BSON values as plain JSON values (canonical extended JSON)."""
    return to_json_values(value, _JSON)


def encode_cursor(values: Sequence[Any]) -> str:
    """Return the cursor of the event with these sort values, as extended JSON."""
    return json_util.dumps(list(values), json_options=_JSON)


def decode_cursor(cursor: str) -> list[Any]:
    """Return the sort values of a cursor."""
    return list(json_util.loads(cursor, json_options=_JSON))


def from_json(value: Any) -> Any:
    """Return the BSON values of canonical extended JSON."""
    if isinstance(value, dict):
        return json_util.object_hook({k: from_json(v) for k, v in value.items()}, _JSON)
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value


def compile_filter(wanted: Filter, mapping: EventMapping) -> Query:
    """Return the query for a filter without its time range, which `time_range` compiles."""
    parts: list[Query] = []
    if wanted.event_types:
        parts.append({mapping.field_type: {"$in": list(wanted.event_types)}})
    if wanted.exclude_event_types:
        parts.append({mapping.field_type: {"$nin": list(wanted.exclude_event_types)}})
    if wanted.aggregate_ids:
        parts.append({mapping.field_aggregate: {"$in": _spellings(wanted.aggregate_ids)}})
    if wanted.event_ids:
        ids = _spellings(wanted.event_ids)
        if mapping.field_id:
            parts.append({mapping.field_id: {"$in": ids}})
        else:  # as in `event_id`: the field event_id if the document has it, else _id
            parts.append(
                {"$or": [{"event_id": {"$in": ids}}, {"event_id": None, "_id": {"$in": ids}}]}
            )
    # With $eq the store never takes a value for an operator.
    parts += [{path: {"$eq": value}} for path, value in sorted(wanted.fields.items())]
    return all_of(*parts)


def all_of(*parts: Query) -> Query:
    """Return the query for events that match every part. An empty part matches all events."""
    wanted = [part for part in parts if part]
    if len(wanted) == 1:
        return wanted[0]
    return {"$and": wanted} if wanted else {}


def _spellings(ids: Iterable[str | int]) -> list[Any]:
    """Return each id in every BSON type in which it may be stored: "42" also finds 42."""
    found: list[Any] = []
    for item in ids:
        found.append(item)
        if isinstance(item, str):
            if _WHOLE_NUMBER.match(item) and -(2**63) <= int(item) < 2**63:
                found.append(int(item))
            if ObjectId.is_valid(item):
                found.append(ObjectId(item))
            try:
                found.append(uuid.UUID(item))
            except ValueError:
                continue
    return found


def time_range(start: datetime | None, end: datetime, mapping: EventMapping) -> Query:
    """Return the query for start <= timestamp < end, in the store's type of timestamp."""
    # Without $not an array of times would match too, and a cursor cannot hold its sort value.
    bounds: Query = {"$lt": _stored_time(end, mapping), "$not": {"$type": "array"}}
    if start is not None:
        bounds["$gte"] = _stored_time(start, mapping)
    return {mapping.field_timestamp: bounds}


def not_before(time: datetime, mapping: EventMapping) -> Query:
    """Return the query for timestamp >= time, in the store's type of timestamp."""
    bounds = {"$gte": _stored_time(time, mapping), "$not": {"$type": "array"}}
    return {mapping.field_timestamp: bounds}


def untimed(mapping: EventMapping) -> Query:
    """Return the query for events whose timestamp is missing or has another type."""
    return {"$nor": [of_type(mapping.field_timestamp, _BSON_TYPE[mapping.timestamp_type])]}


def time_keys(end: datetime, mapping: EventMapping) -> list[Any]:
    """Return two aggregation expressions: the timestamp's type, and whether it is before ``end``.

    `in_time` takes their values.
    """
    value = f"${mapping.field_timestamp}"
    kind: Any = {"$type": value}
    if mapping.timestamp_type == "epoch_ms":
        kind = {"$cond": [{"$gte": [value, -math.inf]}, kind, "NaN"]}
    return [kind, {"$lt": [value, _stored_time(end, mapping)]}]


def in_time(kind: Any, is_before: Any, mapping: EventMapping) -> bool | None:
    """Return whether events with these `time_keys` match the `time_range` without a start.

    None if the events are `untimed`, or if the path to their timestamp leads through an array:
    queries look into arrays, expressions do not.
    """
    return bool(is_before) if kind in _EXPRESSION_TYPES[mapping.timestamp_type] else None


def of_type(field: str, kind: str) -> Query:
    """Return the query for a field of one BSON type.

    An array with elements of the type does not match. NaN does not match: no range contains NaN.
    """
    condition: Query = {"$type": kind, "$not": {"$type": "array"}}
    if kind == "number":
        condition["$ne"] = math.nan
    return {field: condition}


def _stored_time(time: datetime, mapping: EventMapping) -> Any:
    """Return a bound of a time range in the store's type of timestamp."""
    time = time.astimezone(UTC)
    if mapping.timestamp_type == "iso":
        return bound_text(time)
    if mapping.timestamp_type == "epoch_ms":
        return (time - EPOCH) / timedelta(milliseconds=1)
    # BSON dates are whole milliseconds, and the driver would round the bound down. Rounded up, the
    # bound keeps its meaning: no BSON date lies between the exact bound and the next millisecond.
    past = time.microsecond % 1000
    return time + timedelta(microseconds=1000 - past) if past else time


def bound_text(time: datetime) -> str:
    """Return a bound of a time range where the stored times are ISO text.

    The store compares text, and a text sorts before every longer text that begins with it: "...00"
    before "...00Z" and "...00.5Z", "...00.5" before "...00.500Z". So a bound has no timezone, and
    no zeros at the end of its fraction. Which stored times fit: `store_checks.text_time_fault`.
    """
    text = time.astimezone(UTC).replace(tzinfo=None).isoformat()
    return text.rstrip("0") if "." in text else text


def after(cursor: str | None, sort: Sequence[str]) -> Query:
    """Return the query for the events after a cursor, in the ascending order of ``sort``.

    The first field gets a plain bound, so that an index on ``sort`` starts at the cursor. The last
    field is always ``_id``. It is compared by ``$expr``: a plain ``$gt`` compares values of one
    BSON type only, and would skip events whose ``_id`` has another type (docs/decisions.md, 12).
    """
    if cursor is None:
        return {}
    values = decode_cursor(cursor)
    parts: list[Query] = []
    if len(sort) > 1 and values[0] is not None:
        parts.append({sort[0]: {"$gte": values[0]}})
    up_to_cursor: list[Query] = []
    equal: Query = {}
    for field, value in zip(sort[:-1], values[:-1], strict=True):
        if equal:
            up_to_cursor.append({**equal, field: {"$lt": value}})
        equal[field] = {"$eq": value}
    up_to_cursor.append({**equal, "$expr": {"$lte": [f"${sort[-1]}", {"$literal": values[-1]}]}})
    return all_of(*parts, {"$nor": up_to_cursor})
