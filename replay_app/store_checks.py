"""Looks at the stored events before a replay: mapping, times and filter must fit them."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bson import json_util

from replay_app.events import (
    Document,
    EventMapping,
    event_id,
    event_time,
    event_type,
    field_at,
    is_text,
)
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.queries import Query, all_of, bound_text, not_before
from replay_app.redaction import Redaction, leads_to_field
from replay_app.reports import few
from replay_app.store import TimeLimitExceeded

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.store import EventStore

SAMPLE_EVENTS = 200
"""Events of a sample."""
EDGE_EVENTS = 20
"""The first and the last events by time that are looked at beside a sample."""
LOOK_SECONDS = 5.0
"""Longest time for one look at the store."""
WARNING_SECONDS = 1.0
"""Longest count for a warning about events outside the bounds of a replay."""
MAX_NAMES = 5
"""Types, or aggregate ids, that a message names."""
EXAMPLE_CHARACTERS = 400
"""Most characters of an example document in a message."""
_DEFAULTS = EventMapping()
_TEXT_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.(\d+))?(Z|[+-]00(?::?00)?)?", re.ASCII)
"""A text time in UTC. Its fraction, and its suffix."""


class StoreChecks:
    """Checks of one start command.

    Every method may raise `Unavailable` when the store does not answer.
    """

    def __init__(
        self, start: Start, mapping: EventMapping, store: EventStore, wanted: Query
    ) -> None:
        self._start = start
        self._mapping = mapping
        self._store = store
        self._wanted = wanted
        """The command's filter without its time range."""

    async def require_mapping(self, seen: Sequence[Document] = ()) -> None:
        """Check that every field that the mapping names is in some event.

        The check looks at the matching events ``seen``, or at a sample of them, and then at a
        sample of all events.

        Raises
        ------
        ReplayFailed
            When a field is in no event of the samples: each event would fail, or get a wrong key.

        """
        documents: list[Document] = []
        for query in (self._wanted, {}) if self._wanted or seen else ({},):
            documents += (not documents and seen) or await self._sample(query)
            faults = mapping_faults(
                documents, self._mapping, needs_topic=not self._start.target.topic
            )
            if documents and not faults:
                return
        if documents:
            msg = (
                f"the mapping fits no event: of {len(documents)} events of {self._store.name} that "
                f"were looked at, none has {' or '.join(faults)}. Correct the settings, then "
                f"retry. An example of the events: {self._example(documents[0])}"
            )
            raise ReplayFailed(msg)

    def _example(self, document: Document) -> str:
        """Return a document in the way of `example`, redacted as the replay asks for."""
        Redaction(self._start.redact, b"").masked().apply(document)
        return example(document)

    async def require_text_times(self, seen: Sequence[Document] = ()) -> None:
        """Check that text times sort in the order of time, and beside the command's bounds.

        The check looks at the events ``seen``, or at a sample of the matching events, and at the
        first and the last of them.

        Raises
        ------
        ReplayFailed
            When the events would be read in a wrong order, or when a bound would lie elsewhere.

        """
        field = self._mapping.field_timestamp
        query = all_of(self._wanted, {field: {"$type": "string"}})
        documents = [*(seen or await self._sample(query))]
        for direction in (1, -1):
            documents += await self._look(
                [{"$match": query}, {"$sort": {field: direction}}, {"$limit": EDGE_EVENTS}]
            )
        texts = (field_at(document, field) for document in documents)
        bounds = (self._start.filter.start, self._start.filter.end)
        fault = text_time_fault(filter(is_text, texts), filter(None, bounds))
        if fault is not None:
            msg = (
                f"the times in {field!r} (REPLAY_TIMESTAMP_TYPE=iso) cannot be read in order: "
                f"{fault}. Store the times as BSON dates, or replay from a view that converts them "
                "with $toDate"
            )
            raise ReplayFailed(msg)

    async def later_events(self, end: datetime, seconds: float = WARNING_SECONDS) -> list[str]:
        """Return a warning if matching events lie past a bound that nobody asked for.

        Events that are stored while the check runs are not counted, if their clocks are right.

        Raises
        ------
        TimeLimitExceeded
            When the look takes too long.

        """
        clock = await self._store.clock()
        bound = max(end, clock + timedelta(seconds=WARNING_SECONDS))
        query = all_of(self._wanted, not_before(bound, self._mapping))
        seconds = min(WARNING_SECONDS, seconds)
        found = await self._store.documents([{"$match": query}, {"$limit": 1}], seconds)
        if not found:
            return []
        count = "matching events"
        with contextlib.suppress(TimeLimitExceeded):
            groups = await self._store.count_groups(query, [], seconds)
            count = f"{sum(groups.values()):,} matching events"
        path = self._mapping.field_timestamp
        time = json_util.dumps(
            field_at(found[0], path), json_options=json_util.RELAXED_JSON_OPTIONS
        )
        warning = (
            f"{count} are left out: their times lie at or past the bound, the store's clock "
            f"({end:%Y-%m-%dT%H:%M:%SZ}), such as event {_name(found[0], self._mapping)} with "
            f"{path} = {time[:100]}. To replay them, give an end after them. Else correct their "
            "times: a clock was ahead, a local time was stored as UTC, or REPLAY_TIMESTAMP_TYPE "
            "expects another unit"
        )
        return [warning]

    async def unknown_redactions(
        self, query: Query, seconds: float, *, is_last: bool = False
    ) -> list[str]:
        """Return a warning for each path that is to be redacted and that no matching event has.

        What the store does not tell within ``seconds`` stays unknown; the last look says so.
        """
        if not self._start.redact:
            return []
        until, missing, unknown = time.monotonic() + seconds, list[str](), list[str]()
        first: list[Document] = []
        with contextlib.suppress(TimeLimitExceeded):
            pipeline: list[dict[str, Any]] = [{"$match": query}, {"$limit": SAMPLE_EVENTS}]
            first = await self._store.documents(pipeline, seconds)
        for path in self._start.redact:
            if any(leads_to_field(document, path) for document in first):
                continue
            match = {"$match": all_of(query, {path: {"$exists": True}})}
            try:
                left = max(0.001, until - time.monotonic())
                if not await self._store.documents([match, {"$limit": 1}], left):
                    missing.append(path)
            except TimeLimitExceeded:
                unknown.append(path)
        warnings = [
            f"redact: no matching event has the field {path!r}, so nothing is redacted there: is "
            "the path right?"
            for path in missing
        ]
        if unknown and is_last:
            warnings.append(
                f"redact: the store does not tell within {seconds:g} s whether an event has the "
                f"fields {_few(map(repr, unknown))}: look at some records"
            )
        return warnings

    async def nothing_matches(self) -> str:
        """Return the warning that no event matches, with what is there instead."""
        documents = await self._sample({})
        if not documents:
            return f"the filter fits no event: no event was found in {self._store.name} at all"
        return (
            f"the filter fits no event. In a sample of {len(documents)} events of "
            f"{self._store.name} there are {contents(documents, self._mapping)}. An example: "
            f"{self._example(documents[0])}"
        )

    async def _sample(self, query: Query) -> list[Document]:
        """Return some matching events: random ones, or the first ones if that takes too long."""
        match = [{"$match": query}] if query else []
        # As the first stage, $sample reads no more than it returns.
        return await self._look([*match, {"$sample": {"size": SAMPLE_EVENTS}}]) or await self._look(
            [*match, {"$limit": SAMPLE_EVENTS}]
        )

    async def _look(self, pipeline: list[dict[str, Any]]) -> list[Document]:
        """Return the events of a pipeline; no event if the store needs more time."""
        with contextlib.suppress(TimeLimitExceeded):
            return await self._store.documents(pipeline, LOOK_SECONDS)
        return []


def is_customized(mapping: EventMapping) -> bool:
    """Return whether settings name fields that a count of types and times says nothing about."""
    return (
        (mapping.field_id or mapping.field_key or mapping.field_value) is not None
        or mapping.field_aggregate != _DEFAULTS.field_aggregate
        or mapping.field_topic != _DEFAULTS.field_topic
    )


def mapping_faults(
    documents: Iterable[Document], mapping: EventMapping, *, needs_topic: bool
) -> list[str]:
    """Return the parts of the mapping that no document has, each with its field and settings.

    The default fields of aggregate and topic may be missing everywhere: other rules give key and
    topic then (docs/mapping.md).
    """
    documents = list(documents)
    kind, field_time = mapping.timestamp_type, mapping.field_timestamp
    parts: list[tuple[str, str, str, Callable[[Document], Any]]] = [
        ("an id", mapping.field_id or "_id", "ID", lambda one: event_id(one, mapping)),
        ("a type", mapping.field_type, "TYPE", lambda one: event_type(one, mapping)),
        (
            f"a time of the type {kind}",
            field_time,
            "TIMESTAMP, REPLAY_TIMESTAMP_TYPE",
            lambda one: _stored_time(one, mapping),
        ),
    ]
    named = [
        ("a key", mapping.field_key, None, "KEY"),
        ("a value", mapping.field_value, None, "VALUE"),
        ("an aggregate id", mapping.field_aggregate, _DEFAULTS.field_aggregate, "AGGREGATE"),
    ]
    if needs_topic:
        named.append(("a topic", mapping.field_topic, _DEFAULTS.field_topic, "TOPIC"))
    parts += [
        (what, path, setting, lambda one, path=path: field_at(one, path))  # type: ignore[misc]
        for what, path, default, setting in named
        if path is not None and path != default
    ]
    return [
        f"{what} in field {path!r} (REPLAY_FIELD_{setting})"
        for what, path, setting, read in parts
        if not any(_is_readable(read, document) for document in documents)
    ]


def _stored_time(document: Document, mapping: EventMapping) -> Any:
    """Return the event's time. A number may lie outside all years: `later_events` names these."""
    value = field_at(document, mapping.field_timestamp)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if mapping.timestamp_type == "epoch_ms" and is_number:
        return value
    return event_time(document, mapping)


def _is_readable(read: Callable[[Document], Any], document: Document) -> bool:
    try:
        return read(document) is not None
    except EventError:
        return False


def text_time_fault(texts: Iterable[str], bounds: Iterable[datetime]) -> str | None:
    """Return why text times do not sort by time, or do not fit the bounds; None if they do.

    The store compares text. Texts that are no time are passed over: each such event fails by
    itself. A fraction may have any number of digits if no ``Z`` follows: ``Z`` sorts after the
    digits and the point, everything else that may follow sorts before both.
    """
    forms: dict[int, str] = {}
    with_z: str | None = None
    for text in texts:
        try:
            datetime.fromisoformat(text)
        except ValueError:
            continue
        form = _TEXT_TIME.fullmatch(text)
        if form is None:
            return (
                f"{text!r} has not the form 2026-01-31T10:00:00Z, in UTC, so it does not sort "
                "beside the bounds of a replay"
            )
        forms.setdefault(len(form[1] or ""), text)
        if form[2] == "Z":
            with_z = text
    if with_z is None:
        return None
    if len(forms) > 1:
        one, other = list(forms.values())[:2]
        return (
            f"{one!r} and {other!r} have fractions of different lengths, and before a Z such "
            "times do not sort by time"
        )
    for bound in map(bound_text, bounds):
        if len(bound.partition(".")[2]) > next(iter(forms)):
            return (
                f"the bound {bound!r} has more digits than the stored times, such as {with_z!r}: "
                "give a bound with fewer digits"
            )
    return None


def contents(documents: list[Document], mapping: EventMapping) -> str:
    """Return what a sample holds: types, aggregate ids, first and last time."""
    types: dict[str, None] = {}
    aggregates: dict[str, None] = {}
    times: list[datetime] = []
    for document in documents:
        with contextlib.suppress(EventError):
            types.setdefault(repr(event_type(document, mapping)))
        with contextlib.suppress(EventError):
            time = event_time(document, mapping)
            times.append(time if time.tzinfo else time.replace(tzinfo=UTC))
        aggregate = field_at(document, mapping.field_aggregate)
        if aggregate is not None:
            aggregates.setdefault(str(aggregate)[:100])
    found = [f"the types {_few(types)}" if types else f"no types in {mapping.field_type!r}"]
    if aggregates:
        found.append(f"aggregate ids such as {_few(map(repr, aggregates), 3)}")
    if times:
        first, last = (time.isoformat().replace("+00:00", "Z") for time in (min(times), max(times)))
        found.append(f"times from {first} to {last}")
    else:
        found.append(f"no {mapping.timestamp_type} times in {mapping.field_timestamp!r}")
    return ", ".join(found)


def example(document: Document) -> str:
    """Return a document as extended JSON, cut short."""
    try:
        text = json_util.dumps(document, json_options=json_util.RELAXED_JSON_OPTIONS)
    except (TypeError, ValueError, OverflowError):
        text = repr(document)
    return text if len(text) <= EXAMPLE_CHARACTERS else f"{text[: EXAMPLE_CHARACTERS - 3]}..."


def _few(names: Iterable[str], most: int = MAX_NAMES) -> str:
    return few([name[:100] for name in names], most)


def _name(document: Document, mapping: EventMapping) -> str:
    try:
        return repr(event_id(document, mapping)[:100])
    except EventError:
        return repr(document.get("_id"))[:100]
