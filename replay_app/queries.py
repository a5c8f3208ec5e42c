"""Filter, order and cursor as MongoDB queries: pure functions.

The queries are plain MongoDB filters. Values inside JSON records (bounds of shards) are written as
canonical extended JSON, so that no BSON type is lost.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import bson
from bson import ObjectId, json_util
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from replay_app.conditions import conditions_of, is_typed, typed_value
from replay_app.elements import StoredValue
from replay_app.events import EPOCH, LENIENT
from replay_app.exceptions import ReplayFailed
from replay_app.extended_json import CANONICAL, EXACT
from replay_app.id_texts import spellings, stored_values
from replay_app.internals import to_json_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay_app.commands import Filter
    from replay_app.events import EventMapping

Query = dict[str, Any]

MAX_CURSOR_CHARACTERS = 200_000
"""Longest cursor: a checkpoint must fit into one record."""
_BSON_TYPE = {"date": "date", "iso": "string", "epoch_ms": "number"}
_EXPRESSION_TYPES = {
    "date": ["date"],
    "iso": ["string"],
    "epoch_ms": ["int", "long", "double", "decimal"],
}


def to_json(value: Any) -> Any:
    """Return BSON values as plain JSON values (canonical extended JSON)."""
    return to_json_values(value, CANONICAL)


def from_json(value: Any) -> Any:
    """Return the BSON values of canonical extended JSON."""
    if isinstance(value, dict):
        return json_util.object_hook({k: from_json(v) for k, v in value.items()}, CANONICAL)
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
        parts.append({mapping.field_aggregate: {"$in": stored_values(wanted.aggregate_ids)}})
    if wanted.event_ids:
        ids = stored_values(wanted.event_ids)
        if mapping.field_id:
            parts.append({mapping.field_id: {"$in": ids}})
        else:  # as in `event_id`: the field event_id if the document has it, else _id
            parts.append(
                {"$or": [{"event_id": {"$in": ids}}, {"event_id": None, "_id": {"$in": ids}}]}
            )
    parts += [_field_query(path, value) for path, value in sorted(wanted.fields.items())]
    return all_of(*parts)


def _field_query(path: str, condition: Any) -> Query:
    # In these operators the store never takes a value for another operator.
    conditions = conditions_of(condition)
    if conditions is None:
        found = _stored_values(condition)
        return {path: {"$eq": found[0]} if len(found) == 1 else {"$in": found}}
    operators: Query = {}
    for name, operand in conditions.items():
        if name == "in":
            operators["$in"] = [one for value in operand for one in _stored_values(value)]
        elif name == "ne":
            operators["$nin"] = _stored_values(operand)
        elif name == "exists":
            operators["$exists"] = operand
        else:
            bound = typed_value(operand) if is_typed(operand) else operand
            if isinstance(bound, datetime) and name in {"gte", "lt"}:
                bound = _whole_milliseconds(bound)
            operators[f"${name}"] = bound
    return {path: operators}


def _stored_values(value: Any) -> list[Any]:
    """Return each BSON value for which a value of a condition stands.

    None if no event can have the value: the driver would cut a date to whole milliseconds.
    """
    if not is_typed(value):
        return spellings(value)
    found = typed_value(value)
    return [] if isinstance(found, datetime) and found.microsecond % 1000 else [found]


def all_of(*parts: Query) -> Query:
    """Return the query for events that match every part. An empty part matches all events."""
    wanted = [part for part in parts if part]
    if len(wanted) == 1:
        return wanted[0]
    return {"$and": wanted} if wanted else {}


def time_range(
    start: datetime | None, end: datetime, mapping: EventMapping, *, with_arrays: bool = False
) -> Query:
    """Return the query for start <= timestamp < end, in the store's type of timestamp.

    ``with_arrays``: events match, too, whose timestamp is an array with such a time. A cursor
    cannot hold its sort value. But without these events MongoDB cannot count by the index alone.
    """
    bounds: Query = {"$lt": _stored_time(end, mapping)}
    if not with_arrays:
        bounds["$not"] = {"$type": "array"}
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
    return _whole_milliseconds(time)


def _whole_milliseconds(time: datetime) -> datetime:
    """Return a bound that BSON can hold, for $gte and $lt.

    BSON dates are whole milliseconds, and the driver would round the bound down. Rounded up, the
    bound keeps its meaning: no BSON date lies between the exact bound and the next millisecond.
    """
    past = time.microsecond % 1000
    try:
        return time + timedelta(microseconds=1000 - past) if past else time
    except OverflowError:  # no later time exists
        return time


def bound_text(time: datetime) -> str:
    """Return a bound of a time range where the stored times are ISO text.

    The store compares text, and a text sorts before every longer text that begins with it: "...00"
    before "...00Z" and "...00.5Z", "...00.5" before "...00.500Z". So a bound has no timezone, and
    no zeros at the end of its fraction. Which stored times fit: `store_checks.text_time_fault`.
    """
    text = time.astimezone(UTC).replace(tzinfo=None).isoformat()
    return text.rstrip("0") if "." in text else text


# Cursors


def sort_value(stored: StoredValue | None) -> Any:
    """Return the value of a sort field for a cursor; None if the field is missing.

    The value is a `StoredValue` if the driver or extended JSON would change one byte of it: a text
    that is not UTF-8, a UUID of a wrong length, ``undefined``. So the store gets back what it sent.
    """
    if stored is None:
        return None
    document = stored.under(b"")
    try:
        value = bson.decode(document, codec_options=LENIENT)[""]
        (read,) = json_util.loads(
            json_util.dumps([value], json_options=CANONICAL), json_options=EXACT
        )
        is_exact = bson.encode({"": read}, codec_options=LENIENT) == document
    except (BSONError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return stored
    return value if is_exact and not _is_carried(value) else stored


def encode_cursor(values: Sequence[Any] | None, unplaced: Sequence[Sequence[Any]] = ()) -> str:
    """Return a cursor as extended JSON.

    ``values`` are the sort values of the event behind which the cursor stands; None: before the
    first event. ``unplaced`` are the sort values of events that were read after this event and
    whose place in the order is not known (see `advance`).
    """
    place = None if values is None else [_carried(value) for value in values]
    cursor: Any = place
    if unplaced:
        others = [[_carried(value) for value in one] for one in unplaced]
        cursor = {"after": place, "unplaced": others}
    return json_util.dumps(cursor, json_options=CANONICAL)


def decode_cursor(cursor: str) -> list[Any]:
    """Return the sort values of the event behind which a cursor stands; empty without an event."""
    return _parse_cursor(cursor)[0] or []


def _parse_cursor(cursor: str) -> tuple[list[Any] | None, list[list[Any]]]:
    found = json_util.loads(cursor, json_options=EXACT)
    place, others = (found["after"], found["unplaced"]) if isinstance(found, dict) else (found, [])
    values = None if place is None else [_restored(value) for value in place]
    return values, [[_restored(value) for value in one] for one in others]


def _carried(value: Any) -> Any:
    return {"$bson": value.under(b"")} if isinstance(value, StoredValue) else value


def _restored(value: Any) -> Any:
    return StoredValue.of(value["$bson"]) if _is_carried(value) else value


def _is_carried(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"$bson"}


def advance(
    cursor: str | None, values: Sequence[Any] | None, unplaced: Sequence[Sequence[Any]]
) -> str | None:
    """Return the cursor after a page.

    ``values`` are the sort values of the last event with a known place; None if no event of the
    page has one. ``unplaced`` are the sort values of the events after that: events with a sort
    field that occurs more than once have several places, of which the store takes one. The cursor
    stays before such events and names them, so that a later query leaves them out.

    Raises
    ------
    ReplayFailed
        When the cursor would move backwards, or would name too many events.

    """
    if values is None and not unplaced:
        return cursor
    old_values, old_unplaced = (None, []) if cursor is None else _parse_cursor(cursor)
    if values is None:
        values, unplaced = old_values, [*old_unplaced, *unplaced]
    elif old_values is not None and _is_before(values, old_values):
        msg = (
            f"the event store sent the event with the sort values {_shown(values)} after the one "
            f"with {_shown(old_values)}: was the event changed meanwhile? Compare it with the "
            "store's index, then retry"
        )
        raise ReplayFailed(msg)
    found = encode_cursor(values, unplaced)
    if unplaced and len(found) > MAX_CURSOR_CHARACTERS:
        msg = (
            f"{len(unplaced)} events in a row have a sort field more than once, the last one with "
            f"the sort values {_shown(unplaced[-1])}: correct them in the store, then retry"
        )
        raise ReplayFailed(msg)
    return found


def _is_before(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether sort values surely come before others; False if only the store can compare them."""
    for value, other in zip(values, others, strict=True):
        (kind, one), (other_kind, another) = _comparable(value), _comparable(other)
        if kind != other_kind or (kind is None and one != another):
            return False
        if one != another:
            return bool(one < another)
    return False


def _comparable(value: Any) -> tuple[str | None, Any]:
    """Return a kind and a value; Python orders the values of one kind as every store does.

    The kind is None for other values. Texts are among these: a collection may have a collation.
    """
    if isinstance(value, datetime | DatetimeMS):
        return "date", int(value if isinstance(value, DatetimeMS) else DatetimeMS(value))
    if isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return "number", value
    return ("objectId" if isinstance(value, ObjectId) else None), value


def _shown(values: Sequence[Any]) -> str:
    return json_util.dumps([_carried(value) for value in values], json_options=CANONICAL)[:300]


def after(cursor: str | None, sort: Sequence[str]) -> Query:
    """Return the query for the events after a cursor, in the ascending order of ``sort``.

    The first field gets a plain bound, so that an index on ``sort`` starts at the cursor. The last
    field is always ``_id``. It is compared by ``$expr``: a plain ``$gt`` compares values of one
    BSON type only, and would skip events whose ``_id`` has another type (docs/decisions.md, 12).
    """
    if cursor is None:
        return {}
    values, unplaced = _parse_cursor(cursor)
    parts: list[Query] = []
    left_out: list[Query] = [
        {field: _operand("$eq", value) for field, value in zip(sort, one, strict=True)}
        for one in unplaced
    ]
    if values is not None:
        *others, last = values
        if others and others[0] is not None:
            parts.append({sort[0]: _operand("$gte", others[0])})
        equal: Query = {}
        for field, value in zip(sort[:-1], others, strict=True):
            if equal:
                left_out.append({**equal, field: _operand("$lt", value)})
            equal[field] = _operand("$eq", value)
        id_is_read = {"$lte": [f"${sort[-1]}", _operand("$literal", last)]}
        left_out.append({**equal, "$expr": id_is_read})
    return all_of(*parts, {"$nor": left_out})


def up_to(cursor: str, field_timestamp: str) -> Query:
    """Return the query for the events up to a cursor, in the order of time and ``_id``.

    The event of the cursor is among them. Empty without a cursor.
    """
    return {"$nor": [after(cursor, (field_timestamp, "_id"))]} if cursor else {}


def _operand(operator: str, value: Any) -> Any:
    """Return an operator with a sort value, which may be one that only its bytes can hold."""
    if isinstance(value, StoredValue):
        return RawBSONDocument(value.under(operator.encode()))
    return {operator: value}
