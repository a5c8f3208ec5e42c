"""Pages: raw BSON documents from the store, and what an encoder makes of them.

A page encoder is the hot path. It takes a page and a mapping and gives finished record batches,
without I/O and without a clock. `replay_app.python_encoder` is the reference;
`replay_app.native_encoder` gives the same records in a sixth of the time.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import bson
from bson import json_util
from bson.errors import InvalidBSON

from replay_app.commands import Target
from replay_app.elements import elements, require_bson, values_at
from replay_app.events import LENIENT, Document, EventMapping, event_id, time_of
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.extended_json import RELAXED
from replay_app.internals import BatchBuilder
from replay_app.parking import Parked, Parking
from replay_app.queries import sort_value
from replay_app.redaction import Redaction
from replay_app.schemas import Schemas
from replay_app.transforms import Transforms

DECODE_ERRORS = (InvalidBSON, ValueError, OverflowError, RecursionError)
"""What the driver raises for documents that it cannot decode."""
RECORD_OVERHEAD_BYTES = 512
"""Most bytes of a record beside its key, its value and its headers' text."""
MAX_PLACES = 100
"""Places that one event may have, if its sort fields occur more than once."""
PAGE_BYTES = 4 << 20
"""Bytes that a page of large documents should have. A shard at work holds a handful of pages, and
a store sends up to 16 MiB at once."""
SMALLEST_DOCUMENT = 5
"""Bytes of an empty BSON document: its length and a final zero."""


class MissingTopic(EventError):
    """The event is good, but its destination topic does not exist."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"its topic {topic!r} does not exist")
        self.topic = topic


@dataclass(frozen=True, slots=True)
class EncodeSpec:
    """What an encoder must know of a replay. Fixed for one slice."""

    mapping: EventMapping
    target: Target
    replay_id: str
    attempt: int
    name: str | None
    reason: str | None
    partitions: dict[str, int] | None
    """Partition count of each destination topic that is known to exist. None, for the Python
    encoder only: nothing is published, and any topic will do."""
    cursor_fields: tuple[str, ...]
    """Field paths of the sort order."""
    stop_at_failure: bool
    """End the page before the first event that fails."""
    include_replayed: bool
    """Encode events that are marked as replayed, too."""
    record_timestamp: Literal["append", "original"]
    compression: str
    max_record_bytes: int
    batch_bytes: dict[str, int] = field(default_factory=dict)
    """Most bytes of a batch, for each topic whose own limit is below ``max_record_bytes``."""
    redaction: Redaction | None = None
    transforms: Transforms | None = None
    parking: Parking | None = None
    """With ``on_error`` "park". Shared by all encoders of a slice."""
    schemas: Schemas | None = None
    """Only the Python encoder knows transforms and schemas."""

    @property
    def needs_python(self) -> bool:
        """Whether only the Python encoder can encode."""
        return self.transforms is not None or self.schemas is not None


@dataclass(slots=True)
class Batch:
    """Records of one partition, in order."""

    topic: str
    partition: int
    builder: BatchBuilder
    records: int
    bytes: int
    """Bytes of the values, before compression."""


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event of a page that could not be encoded."""

    index: int
    """The event's place in the page, from 0."""
    event_id: str | None
    reason: str
    document: bytes
    """Raw BSON."""
    missing_topic: str | None = None
    """The event's topic, if the only fault is that ``EncodeSpec.partitions`` lacks the topic."""


@dataclass(slots=True)
class EncodedPage:
    """The batches of a page, and the account of its events."""

    read: int = 0
    """Events up to the page's end, or up to the failure that stopped the page."""
    encoded: int = 0
    """Events in the batches."""
    skipped_replays: int = 0
    """Events left out because they are marked as replayed."""
    dropped: int = 0
    """Events that a transform has dropped."""
    waiting: int = 0
    """Events that are parked. Each is also a failure."""
    parked: Parked | None = None
    """Which aggregates are parked after the page. None: as before."""
    parked_before: Parked = field(default_factory=dict)
    bytes: int = 0
    """Bytes of all values."""
    batches: list[Batch] = field(default_factory=list)
    by_type: dict[str, int] = field(default_factory=dict)
    by_topic: dict[str, int] = field(default_factory=dict)
    failures: list[FailedEvent] = field(default_factory=list)
    """With ``stop_at_failure``, the last failure stopped the page, and its event was not read."""
    cursor: list[Any] | None = None
    """Sort values of the last event read whose place in the order is known. None if there is no
    such event."""
    unplaced: list[list[Any]] = field(default_factory=list)
    """Sort values of the events that were read after that. A field that occurs more than once gives
    its event several lists: the store takes one of the values."""
    last_time: datetime | None = None
    """Time of the last event read, in UTC. None if no event was read or the event has no time."""


class PageEncoder(Protocol):
    """What every page encoder does."""

    name: str

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page of concatenated BSON documents.

        ``now_ms`` is the append time, in milliseconds since 1970.

        Raises
        ------
        ReplayFailed
            When the page is not a sequence of BSON documents.

        """


# Cutting pages


def count_documents(page: bytes) -> int:
    """Return the number of documents of a page.

    Raises
    ------
    ReplayFailed
        When the page is not a sequence of BSON documents.

    """
    return sum(1 for _ in document_spans(page))


def next_page_events(events: int, page: bytes, most: int) -> int:
    """Return how many events the page after a page should have, to have about PAGE_BYTES.

    ``events`` were asked for with ``page``; there are never more than ``most``.
    """
    if len(page) > PAGE_BYTES * 3 // 2:
        return max(1, count_documents(page) * PAGE_BYTES // len(page))
    if len(page) < PAGE_BYTES // 2:
        return min(most, events * 2)
    return events


def split_page(page: bytes, documents: int) -> tuple[bytes, bytes]:
    """Return the first ``documents`` documents of a page, and the rest of the page.

    Raises
    ------
    ReplayFailed
        When the page is not a sequence of BSON documents.

    """
    end = 0
    for _, end in itertools.islice(document_spans(page), documents):  # noqa: B007 - used below
        pass
    return page[:end], page[end:]


def document_spans(page: bytes) -> Iterator[tuple[int, int]]:
    """Yield where in a page each document begins and ends.

    Raises
    ------
    ReplayFailed
        When the page is not a sequence of BSON documents.

    """
    start, size = 0, len(page)
    while start < size:
        has_length = size - start >= SMALLEST_DOCUMENT
        length = struct.unpack_from("<i", page, start)[0] if has_length else 0
        if length < SMALLEST_DOCUMENT or start + length > size:
            msg = "the event store sent bytes that are not BSON; check the store, then retry"
            raise ReplayFailed(msg)
        yield start, start + length
        start += length


# What the encoders share


def replay_headers(spec: EncodeSpec) -> list[tuple[str, bytes]]:
    """Return the headers that are the same on all records of a replay."""
    headers = [
        ("replay-id", spec.replay_id.encode()),
        ("replay-attempt", str(spec.attempt).encode()),
    ]
    if spec.name is not None:
        headers.append(("replay-name", spec.name.encode()))
    if spec.reason is not None:
        headers.append(("replay-reason", spec.reason.encode()))
    return headers


def overhead_bytes(headers: list[tuple[str, bytes]]) -> int:
    """Return the most bytes that a record has beside its key, its value and its event id."""
    return RECORD_OVERHEAD_BYTES + sum(len(name) + len(value) for name, value in headers)


def timestamp_ms(time: datetime) -> int:
    """Return an event's time (naive, in UTC) in milliseconds since 1970."""
    return round(time.replace(tzinfo=UTC).timestamp() * 1000)


def set_position(out: EncodedPage, page: bytes, last: tuple[int, int], spec: EncodeSpec) -> None:
    """Set the cursor and the time of the last event read; ``last`` says where the event is."""
    document = page[slice(*last)]
    out.cursor = _place(document, spec, out.unplaced)
    with contextlib.suppress(EventError, ValueError):
        out.last_time = _time(document, spec.mapping)
    if out.cursor is None:  # rare: look for the event before
        spans = [span for span in document_spans(page) if span < last]
        while spans and out.cursor is None:
            out.cursor = _place(page[slice(*spans.pop())], spec, out.unplaced)


def _place(document: bytes, spec: EncodeSpec, unplaced: list[list[Any]]) -> list[Any] | None:
    """Return an event's sort values, or add all that the store may take to ``unplaced``.

    Raises
    ------
    ReplayFailed
        When the document is so damaged that its sort fields cannot be found.

    """
    try:
        found = [values_at(document, path) for path in spec.cursor_fields]
        if any(None in values for values in found):
            require_bson(document)  # only a whole document says that a field is missing
    except (ValueError, RecursionError) as error:
        msg = f"the event store sent a document that is not BSON: {error}; correct it, then retry"
        raise ReplayFailed(msg) from error
    if math.prod(map(len, found)) > MAX_PLACES:
        shown = "" if spec.redaction else f": {document[:200]!r}"
        msg = (
            f"an event has the sort fields {', '.join(spec.cursor_fields)} too many times; correct "
            f"the event, then retry{shown}"
        )
        raise ReplayFailed(msg)
    places = [
        list(one) for one in itertools.product(*(map(sort_value, values) for values in found))
    ]
    if len(places) == 1:
        return places[0]
    unplaced += places
    return None


def _time(document: bytes, mapping: EventMapping) -> datetime:
    """Return the time of an event, in UTC; other fields of the event may be damaged."""
    *_, value = values_at(document, mapping.field_timestamp)  # the driver takes the last one too
    return time_of(sort_value(value), mapping).replace(tzinfo=UTC)


def event_times(page: bytes, mapping: EventMapping) -> Iterator[datetime | None]:
    """Yield the time of each event of a page; None where no time can be read."""
    for start, end in document_spans(page):
        time = None
        with contextlib.suppress(EventError, ValueError):
            time = _time(page[start:end], mapping)
        yield time


def make_failure(
    index: int, document: bytes, error: EventError, mapping: EventMapping
) -> FailedEvent:
    """Return what is known of a raw document that could not be encoded."""
    try:
        identity = event_id(readable(document), mapping)
    except EventError:
        identity = None
    missing_topic = error.topic if isinstance(error, MissingTopic) else None
    return FailedEvent(index, identity, str(error), document, missing_topic)


def people_json(document: bytes, redaction: Redaction | None = None) -> bytes | None:
    """Return a stored event as extended JSON that people read.

    If the event cannot be decoded: the raw bytes; None if something in them is to be redacted.
    """
    try:
        decoded = bson.decode(document, codec_options=LENIENT)
        if redaction is not None:
            redaction.masked().apply(decoded)
        return json_util.dumps(decoded, json_options=RELAXED).encode()
    except (InvalidBSON, ValueError, OverflowError):
        return document if redaction is None else None


def readable(document: bytes) -> Document:
    """Return a document, if need be without the fields that the driver cannot decode.

    U+FFFD replaces invalid UTF-8.
    """
    try:
        return bson.decode(document, codec_options=LENIENT)
    except DECODE_ERRORS:
        fields: Document = {}
        with contextlib.suppress(ValueError, RecursionError):
            require_bson(document)
            for name, value in elements(document):
                with contextlib.suppress(*DECODE_ERRORS):
                    fields |= bson.decode(value.under(name), codec_options=LENIENT)
        return fields
