"""What a sample of stored events says: fields, and which of them fit the parts of the mapping.

Pure functions on decoded documents. The choice follows names that are common for a part, and what
the values are; a field that the settings name, and that fits, is always chosen.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bson import Binary, Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS

from replay_app.events import Document, EventMapping, TimestampType, has_field, is_text
from replay_app.store_checks import mapping_faults, text_time_fault

MAX_FIELDS = 200
"""Fields that are looked at."""
MAX_DEPTH = 4
"""Names in the path of a field that is looked at."""
MAX_CANDIDATES = 5
MAX_EXAMPLE = 60
"""Characters of an example."""
NEARLY_ALL = 0.9
"""Share of the events that have a field which nearly all have."""
FEW_VALUES = 0.5
"""Different values of a type, as a share of the events: types repeat."""
SMALL_SAMPLE = 20
"""Events of a sample that is too small to tell whether values repeat."""
FIRST_MILLISECOND, LAST_MILLISECOND = 10**12, 5 * 10**12
"""Numbers that are times in milliseconds: from 2001 to 2128."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "time": (
        *("timestamp", "eventtime", "occurredat", "occurredon", "eventtimestamp", "time"),
        *("createdat", "created", "recordedat", "publishedat", "storedat", "date", "ts", "at"),
    ),
    "type": ("eventtype", "type", "eventname", "messagetype", "kind", "name", "action", "event"),
    "id": ("eventid", "id", "messageid", "uuid", "guid"),
    "aggregate": ("aggregateid", "streamid", "entityid", "aggregate", "stream", "subject", "key"),
    "topic": ("topic", "kafkatopic", "topicname", "destination", "channel"),
}
"""Names of fields that are common for a part, the most telling first: lower case, letters only."""
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "bool"),
    (Int64, "long"),
    (int, "int"),
    (float, "double"),
    (Decimal128, "decimal"),
    ((datetime, DatetimeMS), "date"),
    (ObjectId, "objectId"),
    (uuid.UUID, "uuid"),
    (Binary, "binData"),
    (bytes, "binData"),
    (dict, "object"),
    (list, "array"),
)
"""BSON types by the class of a decoded value; the first that fits."""


@dataclass
class SeenField:
    """A field of the sampled events."""

    path: str
    events: int = 0
    """Events that have the field."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Events by BSON type."""
    values: Counter[Any] = field(default_factory=Counter)
    """Events by value, of texts, numbers and ids."""
    example: str = ""

    @property
    def name(self) -> str:
        """The last name of the path: lower case, letters only."""
        return re.sub(r"[^a-z]", "", self.path.rpartition(".")[2].lower())

    def add(self, value: Any) -> None:
        """Add the value of one more event."""
        kind = kind_of(value)
        self.events += 1
        self.kinds[kind] += 1
        if kind in {"string", "int", "long", "objectId", "uuid"}:
            self.values[value] += 1
        if not self.example and value is not None:
            self.example = str(value)[:MAX_EXAMPLE]


@dataclass(frozen=True)
class Inspection:
    """What a sample of a collection says."""

    events: int
    """Events of the sample."""
    fields: tuple[SeenField, ...]
    candidates: Mapping[str, tuple[str, ...]]
    """By part (id, time, type, aggregate, topic): the fields that fit, the best first."""
    mapping: EventMapping
    """The mapping of the settings, with the best field for each part that did not fit."""
    faults: tuple[str, ...]
    """What still fits no event."""


def kind_of(value: Any) -> str:
    """Return the BSON type of a decoded value."""
    if value is None:
        return "null"
    if is_text(value):
        return "string"
    return next((name for types, name in _KINDS if isinstance(value, types)), "other")


def inspect(documents: Sequence[Document], mapping: EventMapping) -> Inspection:
    """Look at a sample of events. ``mapping`` is the one of the settings."""
    fields = {one.path: one for one in _fields(documents)}
    count = len(documents)
    times = dict(_times(fields.values(), count))
    candidates = {
        "id": _best("id", _ids(fields.values(), count)),
        "time": _best("time", (fields[path] for path in times), times=times),
        "type": _best("type", _types(fields.values(), count)),
        "topic": _best("topic", _topics(fields.values())),
    }
    used = {name for part in ("time", "type", "topic") for name in candidates[part][:1]}
    ids = set(candidates["id"][:1])
    aggregates = [one for one in _aggregates(fields.values(), count) if one.path not in used | ids]
    candidates["aggregate"] = _best("aggregate", aggregates)
    fitted = _fit(documents, mapping, candidates, times)
    return Inspection(
        count,
        tuple(fields.values()),
        candidates,
        fitted,
        tuple(mapping_faults(documents, fitted, needs_topic=False)),
    )


def _fields(documents: Iterable[Document]) -> Iterator[SeenField]:
    found: dict[str, SeenField] = {}

    def walk(document: Mapping[str, Any], prefix: str, depth: int) -> None:
        for name, value in document.items():
            if not name or "." in name or name.startswith("$"):
                continue  # no path leads to such a field
            path = prefix + name
            if path not in found and len(found) >= MAX_FIELDS:
                continue
            found.setdefault(path, SeenField(path)).add(value)
            if isinstance(value, dict) and depth < MAX_DEPTH:
                walk(value, f"{path}.", depth + 1)

    for document in documents:
        walk(document, "", 1)
    yield from found.values()


# Candidates


def _times(fields: Iterable[SeenField], count: int) -> Iterator[tuple[str, TimestampType]]:
    """Yield the fields that can order the events, and in which form their times are."""
    for one in fields:
        if one.events < NEARLY_ALL * count:
            continue
        if one.kinds["date"] >= NEARLY_ALL * one.events:
            yield one.path, "date"
        elif one.kinds["string"] == one.events and all(map(_is_time, one.values)):
            if text_time_fault(one.values, ()) is None:
                yield one.path, "iso"
        elif one.values and all(
            isinstance(value, int) and FIRST_MILLISECOND <= value <= LAST_MILLISECOND
            for value in one.values
        ):
            yield one.path, "epoch_ms"


def _is_time(text: Any) -> bool:
    try:
        return is_text(text) and "T" in text and bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def _types(fields: Iterable[SeenField], count: int) -> Iterator[SeenField]:
    """Yield the texts that repeat and that nearly all events have."""
    for one in fields:
        repeats = len(one.values) <= FEW_VALUES * count or count < SMALL_SAMPLE
        is_type = one.name in _NAMES["type"] or len(one.values) > 1
        is_everywhere = one.kinds["string"] >= NEARLY_ALL * count
        if is_everywhere and repeats and is_type and not any(map(_is_time, one.values)):
            yield one


def _ids(fields: Iterable[SeenField], count: int) -> Iterator[SeenField]:
    """Yield the fields that differ in every event."""
    for one in fields:
        if one.events == count == len(one.values) and not any(map(_is_time, one.values)):
            yield one


def _aggregates(fields: Iterable[SeenField], count: int) -> Iterator[SeenField]:
    """Yield the ids that several events share, or whose name says that they may."""
    for one in fields:
        if one.events < FEW_VALUES * count or not one.values:
            continue
        is_id = one.kinds.keys() <= {"string", "int", "long", "objectId", "uuid", "null"}
        is_named = one.name in _NAMES["aggregate"]
        repeats = 1 < len(one.values) < one.events and one.name.endswith("id")
        if is_id and (is_named or repeats):
            yield one


def _topics(fields: Iterable[SeenField]) -> Iterator[SeenField]:
    for one in fields:
        if one.name in _NAMES["topic"] and one.kinds["string"]:
            yield one


def _best(
    part: str, fields: Iterable[SeenField], times: Mapping[str, TimestampType] | None = None
) -> tuple[str, ...]:
    """Return the paths of the candidates of a part, the best first."""
    names = _NAMES[part]

    def rank(one: SeenField) -> tuple[object, ...]:
        place = names.index(one.name) if one.name in names else len(names)
        form = (times or {}).get(one.path) not in {None, "date"}
        return place, form, one.path.count("."), len(one.values), one.path

    return tuple(one.path for one in sorted(fields, key=rank)[:MAX_CANDIDATES])


def _fit(
    documents: Sequence[Document],
    mapping: EventMapping,
    candidates: Mapping[str, tuple[str, ...]],
    times: Mapping[str, TimestampType],
) -> EventMapping:
    """Return the mapping with the best candidate for each part that fits no event."""
    time, kind = mapping.field_timestamp, mapping.timestamp_type
    if times.get(time) != kind:
        time = time if time in times else next(iter(candidates["time"]), time)
        mapping = replace(mapping, field_timestamp=time, timestamp_type=times.get(time, kind))
    found: dict[str, Any] = {}
    for part, setting in (
        ("type", "field_type"),
        ("aggregate", "field_aggregate"),
        ("topic", "field_topic"),
    ):
        present = getattr(mapping, setting)
        if not _is_anywhere(documents, present) and candidates[part]:
            found[setting] = candidates[part][0]
    identity = mapping.field_id
    if identity is not None and not _is_anywhere(documents, identity):
        identity = None
    if identity is None and not _is_anywhere(documents, "event_id"):
        best = next(iter(candidates["id"]), "_id")
        identity = None if best == "_id" else best
    return replace(mapping, field_id=identity, **found)


def _is_anywhere(documents: Iterable[Document], path: str) -> bool:
    return any(has_field(document, path) for document in documents)


# What to set


def settings_for(fitted: EventMapping) -> dict[str, str]:
    """Return the settings of a mapping that differ from the program's defaults."""
    defaults = EventMapping()
    names = {
        "field_id": "REPLAY_FIELD_ID",
        "field_timestamp": "REPLAY_FIELD_TIMESTAMP",
        "timestamp_type": "REPLAY_TIMESTAMP_TYPE",
        "field_type": "REPLAY_FIELD_TYPE",
        "field_aggregate": "REPLAY_FIELD_AGGREGATE",
        "field_topic": "REPLAY_FIELD_TOPIC",
    }
    return {
        variable: getattr(fitted, name) or ""
        for name, variable in names.items()
        if getattr(fitted, name) != getattr(defaults, name)
    }


def wanted_indexes(mapping: EventMapping) -> tuple[tuple[str, ...], ...]:
    """Return the fields of the indexes that a replay wants: by time, and by aggregate."""
    by_time = (mapping.field_timestamp, "_id")
    return by_time, (mapping.field_aggregate, *by_time)
