"""Stored events as the records that a replay would publish, without Kafka and without a worker.

The queries, the order and the mapping are those of a replay. Which partition a record gets, and
what a topic refuses, is unknown here.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from replay_app.bounds import freeze_bounds
from replay_app.encoders import record_spec
from replay_app.events import Header, event_id, rfc3339
from replay_app.exceptions import EventError, InvalidCommand
from replay_app.pages import (
    EncodedPage,
    document_spans,
    make_failure,
    people_json,
    readable,
    set_position,
)
from replay_app.plans import shard_of
from replay_app.python_encoder import PythonEncoder
from replay_app.queries import advance, after, untimed
from replay_app.readers import Readers
from replay_app.reports import MAX_SHOWN_ID, SampleHeader, SampleRecord
from replay_app.ties import tie_runs
from replay_app.transforms import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from replay_app.commands import Start
    from replay_app.events import EventMapping
    from replay_app.readers import PageReader
    from replay_app.redaction import Redaction
    from replay_app.reports import ShardPlan
    from replay_app.settings import Settings
    from replay_app.store import EventStore
    from replay_app.transforms import Transforms

KEY = "events"
"""The key of the only reader."""
SHOWN_BYTES = 2000
"""Bytes of the value that a sample shows."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A stored event, and the record that it becomes."""

    document: bytes
    """Raw BSON."""
    event_id: str | None
    """None if the event has no id that can be read."""
    error: str | None = None
    """Why the event cannot be replayed. The members below are then empty."""
    event_type: str = ""
    time: str = ""
    """RFC 3339."""
    topic: str = ""
    key: bytes = b""
    value: bytes | None = b""
    """None: a tombstone."""
    headers: Sequence[Header] = ()
    cursor: str | None = None
    """Behind the event; None where no reading can go on: between events with equal sort values."""
    redaction: Redaction | None = None
    """For what is shown of an event that cannot be replayed."""

    def members(self, *, is_json: bool) -> dict[str, Any]:
        """Return what is shown of the record. ``is_json``: the value is JSON, not another text."""
        if self.error is not None:
            text = people_json(self.document, self.redaction)
            document = None if text is None else orjson.Fragment(_json_or_base64(text))
            found: dict[str, Any] = {
                "event_id": self.event_id,
                "error": self.error,
                "document": document,
            }
        else:
            value: dict[str, Any] = _text("value", self.value)
            if is_json and self.value is not None:
                value = {"value": orjson.Fragment(self.value)}
            found = {
                "event_id": self.event_id,
                "type": self.event_type,
                "time": self.time,
                "topic": self.topic,
                **_text("key", self.key),
                "headers": [{"key": name, **_text("value", text)} for name, text in self.headers],
                **value,
            }
        return found if self.cursor is None else {**found, "cursor": self.cursor}

    def sample(self) -> SampleRecord:
        """Return the record for people: of what is long, only the begin."""

        def begin(value: bytes | None) -> str:
            return (value or b"")[:SHOWN_BYTES].decode(errors="replace")

        return SampleRecord(
            event_id=self.event_id and self.event_id[:MAX_SHOWN_ID],
            error=self.error and self.error[:SHOWN_BYTES],
            topic=self.topic,
            key=begin(self.key),
            headers=tuple(SampleHeader(key=name, value=begin(text)) for name, text in self.headers),
            value=begin(self.value),
        )

    def line(self, *, is_json: bool) -> bytes:
        """Return `members` as a line of JSON. A JSON value keeps each of its bytes."""
        return orjson.dumps(self.members(is_json=is_json)) + b"\n"


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    """Return a member with a text; ``NAME_base64`` for bytes that are no text."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _json_or_base64(text: bytes) -> bytes:
    """Return JSON as it is; the bytes of a document that cannot be read as base64 in quotes."""
    try:
        json.loads(text)
    except ValueError:
        return b'"' + base64.b64encode(text) + b'"'
    return text


class RecordMaker:
    """Makes the record of a stored event, in the way of a replay with the id of ``start``."""

    def __init__(
        self, start: Start, settings: Settings, mapping: EventMapping, sort: Sequence[str] = ()
    ) -> None:
        self._mapping = mapping
        self._spec = replace(record_spec(settings, start, sort), mapping=mapping)
        self._encoder = PythonEncoder(self._spec)

    @property
    def transforms(self) -> Transforms | None:
        """The transforms of the replay, for `run_in_thread`."""
        return self._spec.transforms

    def record(self, document: bytes, cursor: str | None = None) -> EventRecord | None:
        """Return the record of a raw document.

        None: the event is marked as replayed, or a transform has dropped it.
        """
        try:
            made = self._encoder.record(document)
        except EventError as error:
            failure = make_failure(0, document, error, self._mapping)
            return EventRecord(
                document,
                failure.event_id,
                failure.reason,
                cursor=cursor,
                redaction=self._spec.redaction,
            )
        if made is None:
            return None
        kind, topic, _, time, key, value, headers = made
        return EventRecord(
            document,
            event_id(readable(document), self._mapping),
            event_type=kind,
            time=rfc3339(time).decode(),
            topic=topic,
            key=key,
            value=value,
            headers=headers,
            cursor=cursor,
        )

    def place(self, cursor: str | None, document: bytes) -> str | None:
        """Return the cursor behind a document that is read at ``cursor``."""
        out = EncodedPage()
        set_position(out, document, (0, len(document)), self._spec)
        return advance(cursor, out.cursor, out.unplaced)


async def read_event_records(
    start: Start, settings: Settings, store: EventStore, place: str | None = None
) -> AsyncGenerator[list[EventRecord]]:
    """Yield the matching events in order, page by page; last those without a usable time.

    These are left out if the command has a start or a last event. ``place`` is the cursor of a
    record: reading goes on behind the record's event. Events that are marked as replayed are left
    out, and so are those that a transform drops.

    Raises
    ------
    InvalidCommand
        When ``place`` is no cursor of a record.
    ReplayFailed
        When the collection does not exist, or when the store refuses.
    Unavailable
        When the store does not answer, or sends no page in time.

    """
    await store.require_collection()
    mapping, left = settings.mapping, start.max_events
    bounds = await freeze_bounds(start, mapping, store)
    times = bounds.times(mapping)
    shards = [shard_of(times, mapping.field_timestamp, until=bounds.until)]
    if start.filter.start is None and start.until_event_id is None:
        shards.append(shard_of(untimed(mapping)))
    first, cursor = _place_of(place, shards)
    readers = Readers(lambda _start: (settings, store), lambda _key: False, 1)
    try:
        for number, shard in list(enumerate(shards))[first:]:
            maker = RecordMaker(start, settings, mapping, shard.sort)
            while left != 0:
                reader, page = await readers.next_page(KEY, start, shard, cursor)
                if page is None:
                    break
                reading = _Page(maker, reader, shard, number, cursor)
                records = await run_in_thread(
                    maker.transforms,
                    lambda: list(reading.records(page, left)),  # noqa: B023 - ended before the next page
                )
                reader.position = cursor = reading.cursor
                left = None if left is None else left - reading.read
                yield records
            await readers.drop(KEY)
            cursor = None
    finally:
        await readers.close()


class _Page:
    """One page of a shard."""

    def __init__(
        self,
        maker: RecordMaker,
        reader: PageReader,
        shard: ShardPlan,
        number: int,
        cursor: str | None,
    ) -> None:
        self._maker = maker
        self._may_tie = reader.may_tie
        self._sort = shard.sort
        self._number = number
        self.cursor = cursor
        """Behind the last event that was read."""
        self.read = 0

    def records(self, page: bytes, left: int | None) -> Iterator[EventRecord]:
        """Yield the records of the first ``left`` events."""
        parts = tie_runs(page, self._sort) if self._may_tie else [(page, False)]
        for part, is_tie in parts:
            spans = list(document_spans(part))
            for index, span in enumerate(spans):
                if self.read == left:
                    return
                self.read += 1
                document = part[slice(*span)]
                place = None
                if not is_tie or index == len(spans) - 1:
                    self.cursor = self._maker.place(self.cursor, document)
                    place = f"{self._number}:{self.cursor}"
                record = self._maker.record(document, place)
                if record is not None:
                    yield record


def _place_of(place: str | None, shards: Sequence[ShardPlan]) -> tuple[int, str | None]:
    """Return the shard's number, and the cursor in the shard, of a record's cursor."""
    if place is None:
        return 0, None
    number, _, cursor = place.partition(":")
    try:
        after(cursor, shards[int(number)].sort)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        msg = f"after: {place[:100]!r} is not the cursor of one of these events"
        raise InvalidCommand(msg) from error
    return int(number), cursor
