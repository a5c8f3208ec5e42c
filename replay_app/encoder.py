"""The page encoder: a raw page and a mapping in, finished batches out (design section 7).

This is the hot path and its one narrow boundary: no I/O and no clock, so that it can be profiled,
property-tested, and have a native twin.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import bson
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder
from bson.errors import InvalidBSON

from replay_app.events import (
    LENIENT,
    STRICT,
    Document,
    EventMapping,
    Target,
    destination,
    event_id,
    event_key,
    event_time,
    event_type,
    event_value,
    field_at,
    has_field,
    is_text,
    rfc3339,
)
from replay_app.exceptions import EventError, InvalidSettings, ReplayFailed

logger = logging.getLogger(__name__)

RECORD_OVERHEAD_BYTES = 512
"""At most what a record has beside its key, value and own headers' text."""
MAX_CACHED_KEYS = 100_000
DECODE_EVENTS = 64
_INVALID = (InvalidBSON, ValueError, OverflowError, RecursionError)
"""What the driver raises of documents that it cannot decode."""


Record = tuple[str, str, int, datetime, bytes, bytes, list[tuple[str, bytes]]]
"""Event type, topic, partition, original time, key, value, headers."""


class MissingTopic(EventError):
    """Nothing is wrong with the event, but its destination topic is not there."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"its topic {topic!r} does not exist")
        self.topic = topic


@dataclass(frozen=True, slots=True)
class EncodeSpec:
    """All that the encoder needs to know of a replay, fixed for one slice."""

    mapping: EventMapping
    target: Target
    replay_id: str
    attempt: int
    name: str | None
    reason: str | None
    partitions: dict[str, int]
    """Partition count of each destination topic known to exist."""
    cursor_fields: tuple[str, ...]
    """Field paths of the sort order."""
    stop_at_failure: bool
    """End the page before the first event that fails."""
    include_replayed: bool
    """Also events that are themselves marked as replayed."""
    record_timestamp: Literal["append", "original"]
    compression: str
    transactional: bool
    max_record_bytes: int


@dataclass(slots=True)
class Batch:
    """Records for one partition, in order."""

    topic: str
    partition: int
    builder: BatchBuilder
    records: int
    bytes: int
    """Before compression."""


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event of the page that could not be encoded."""

    index: int
    """Its place in the page."""
    event_id: str | None
    reason: str
    document: bytes
    """Raw BSON."""
    missing_topic: str | None = None
    """Set when nothing is wrong with the event, but its topic is not in ``partitions``."""


@dataclass(slots=True)
class EncodedPage:
    """A page's events as batches, and the account of them."""

    read: int = 0
    """Events up to the end, or up to the failure that stopped the page."""
    published: int = 0
    """Events in the batches."""
    skipped_replays: int = 0
    """Events left out because they are themselves marked as replayed."""
    bytes: int = 0
    """Of all values."""
    batches: list[Batch] = field(default_factory=list)
    by_type: dict[str, int] = field(default_factory=dict)
    by_topic: dict[str, int] = field(default_factory=dict)
    failures: list[FailedEvent] = field(default_factory=list)
    """With ``stop_at_failure`` the last one is that which stopped the page; it was not read."""
    cursor: list[Any] | None = None
    """The sort values of the last event read; None: no event was read."""


class PageEncoder(Protocol):
    """What an encoder does, whatever it is made of."""

    name: str

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page of concatenated BSON documents; ``now_ms`` is the append time.

        Raises
        ------
        ReplayFailed
            When the page is no sequence of BSON documents.

        """


def make_encoder(spec: EncodeSpec, kind: str) -> PageEncoder:
    """Return the encoder that ``REPLAY_ENCODER`` asks for.

    Raises
    ------
    InvalidSettings
        When the native one is asked for and cannot be used.

    """
    if encoder_name(kind) == "native":
        # Imported here: it stands on this module, and its own module is optional.
        from replay_app.native import NativeEncoder  # noqa: PLC0415

        return NativeEncoder(spec)
    return PythonEncoder(spec)


def encoder_name(kind: str) -> str:
    """Return the name of the encoder that ``REPLAY_ENCODER`` comes down to here.

    Raises
    ------
    InvalidSettings
        When the native one is asked for and cannot be used.

    """
    if kind == "python":
        return "python"
    trouble = _native_trouble()
    if trouble is None:
        return "native"
    if kind == "native":
        msg = f"REPLAY_ENCODER=native: {trouble}, or set it to auto or python"
        raise InvalidSettings(msg)
    return "python"


@functools.cache
def _native_trouble() -> str | None:
    """Return why the native encoder cannot be used; None: it can."""
    if importlib.util.find_spec("replay_native") is None:
        return "the native encoder is not installed: run `make native`"
    try:
        importlib.import_module("replay_app.native")
    except (ImportError, InvalidSettings) as error:
        logger.warning("the native encoder is left alone: %s", error)
        return str(error)
    return None


class PythonEncoder:
    """The reference: decodes each document, maps it, and appends it to its partition's batch."""

    name = "python"

    def __init__(self, spec: EncodeSpec) -> None:
        self._spec = spec
        self._headers = replay_headers(spec)
        self._overhead_bytes = overhead_bytes(self._headers)
        self._guard = None if spec.include_replayed else spec.mapping.replayed_field
        self._compression = COMPRESSION_CODES[spec.compression]
        self._topics: dict[tuple[str, Any], str] = {}

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page; see `PageEncoder`."""
        spec = self._spec
        own_timestamps = spec.record_timestamp == "original"
        out = EncodedPage()
        open_batches: dict[tuple[str, int], Batch] = {}
        by_type, by_topic = out.by_type, out.by_topic
        spans = list(_spans(page))
        for index, document in enumerate(_decode(page, spans)):
            try:
                record = self._record(document)
            except EventError as error:
                raw = page[slice(*spans[index])]
                out.failures.append(failed_event(index, raw, error, spec.mapping))
                if spec.stop_at_failure:
                    break
                out.read += 1
                continue
            out.read += 1
            if record is None:
                out.skipped_replays += 1
                continue
            kind, topic, partition, time, key, value, headers = record
            place = (topic, partition)
            timestamp = timestamp_ms(time) if own_timestamps else now_ms
            batch = open_batches.get(place)
            if batch is None or not batch.builder.append(
                timestamp=timestamp, key=key, value=value, headers=headers
            ):
                batch = open_batches[place] = self._open_batch(place, out)
                batch.builder.append(timestamp=timestamp, key=key, value=value, headers=headers)
            batch.records += 1
            batch.bytes += len(value)
            by_type[kind] = by_type.get(kind, 0) + 1
            by_topic[topic] = by_topic.get(topic, 0) + 1
        for batch in out.batches:
            out.published += batch.records
            out.bytes += batch.bytes
            batch.builder.close()
        if out.read:
            out.cursor = cursor_of(page[slice(*spans[out.read - 1])], spec.cursor_fields)
        return out

    def record(self, document: bytes) -> Record | None:
        """Return the record of one raw document; None for one that is itself a replay.

        Raises
        ------
        EventError
            When it cannot be replayed.

        """
        return self._record(_decode_one(document))

    def _record(self, document: Document | EventError) -> Record | None:
        """Return the record of an event; None for one that is itself a replay.

        Raises
        ------
        EventError
            When it cannot be replayed.

        """
        if isinstance(document, EventError):
            raise document
        spec = self._spec
        mapping = spec.mapping
        identity = event_id(document, mapping)
        if self._guard is not None and has_field(document, self._guard):
            return None
        kind = event_type(document, mapping)
        time = event_time(document, mapping)
        headers = [
            *self._headers,
            ("replay-original-time", rfc3339(time)),
            ("replay-delivery-id", f"{spec.replay_id}:{identity}".encode()),
        ]
        topic = self._topic(kind, field_at(document, mapping.topic_field))
        count = spec.partitions.get(topic)
        if count is None:
            raise MissingTopic(topic)
        key = event_key(document, mapping, identity)
        value = event_value(document, mapping)
        size = len(key) + len(value) + len(identity) + self._overhead_bytes
        if size > spec.max_record_bytes:
            msg = (
                f"as a record it has {size} bytes, too many for "
                f"REPLAY_MAX_RECORD_BYTES={spec.max_record_bytes}: raise it, and the "
                "broker's message.max.bytes"
            )
            raise EventError(msg)
        return kind, topic, partition_hash(key) % count, time, key, value, headers

    def _topic(self, kind: str, own_topic: Any) -> str:
        """Return the destination; types and topics are few, so each pair is worked out once."""
        if not is_text(own_topic):
            own_topic = None
        topic = self._topics.get((kind, own_topic))
        if topic is None:
            topic = destination(kind, own_topic, self._spec.mapping, self._spec.target)
            if len(self._topics) >= MAX_CACHED_KEYS:
                self._topics.clear()
            self._topics[kind, own_topic] = topic
        return topic

    def _open_batch(self, place: tuple[str, int], out: EncodedPage) -> Batch:
        builder = BatchBuilder(
            self._spec.max_record_bytes,
            self._compression,
            is_transactional=int(self._spec.transactional),
        )
        batch = Batch(*place, builder, 0, 0)
        out.batches.append(batch)
        return batch


def replay_headers(spec: EncodeSpec) -> list[tuple[str, bytes]]:
    """Return the headers that all records of a replay have."""
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
    """Return what a record may have beside its key, value and id."""
    return RECORD_OVERHEAD_BYTES + sum(len(name) + len(value) for name, value in headers)


def timestamp_ms(time: datetime) -> int:
    """Return a record's timestamp."""
    return round(time.replace(tzinfo=UTC).timestamp() * 1000)


COMPRESSION_CODES = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""As the record batch's attributes count them (KIP-98)."""

_hashes: dict[bytes, int] = {}


def partition_hash(key: bytes) -> int:
    """Return the hash that Kafka's default partitioner takes modulo the partition count."""
    found = _hashes.get(key)
    if found is None:
        found = int(murmur2(key) & 0x7FFFFFFF)
        if len(_hashes) >= MAX_CACHED_KEYS:
            _hashes.clear()
        _hashes[key] = found
    return found


def count_documents(page: bytes) -> int:
    """Return how many documents a page has."""
    return sum(1 for _ in _spans(page))


def split_page(page: bytes, documents: int) -> tuple[bytes, bytes]:
    """Return the first so many documents of a page, and its rest."""
    end = 0
    for _, end in itertools.islice(_spans(page), documents):  # noqa: B007 - used behind the loop
        pass
    return page[:end], page[end:]


def _spans(page: bytes) -> Iterator[tuple[int, int]]:
    start, size = 0, len(page)
    while start < size:
        length = struct.unpack_from("<i", page, start)[0] if size - start >= 5 else 0  # noqa: PLR2004
        if length < 5 or start + length > size:  # noqa: PLR2004 - BSON's smallest document
            msg = (
                "the event store sent bytes that are no BSON documents; check the store, then retry"
            )
            raise ReplayFailed(msg)
        yield start, start + length
        start += length


def _decode(page: bytes, spans: list[tuple[int, int]]) -> Iterator[Document | EventError]:
    """Decode a few documents at once, or one by one where any of them is invalid.

    Not the whole page: thousands of documents fit into no cache, which costs a fifth of the time.
    """
    for first in range(0, len(spans), DECODE_EVENTS):
        few = spans[first : first + DECODE_EVENTS]
        try:
            yield from bson.decode_all(page[few[0][0] : few[-1][1]], STRICT)
        except _INVALID:
            yield from (_decode_one(page[start:end]) for start, end in few)


def _decode_one(document: bytes) -> Document | EventError:
    try:
        return bson.decode(document, codec_options=STRICT)
    except _INVALID as error:
        return EventError(f"it is no valid BSON: {error}")


def _decode_leniently(document: bytes) -> dict[str, Any]:
    try:
        return bson.decode(document, codec_options=LENIENT)
    except _INVALID as error:
        msg = f"the event store sent a document that is no BSON: {error}; mend it, then retry"
        raise ReplayFailed(msg) from error


def cursor_of(document: bytes, fields: tuple[str, ...]) -> list[Any]:
    """Return the sort values of a raw document."""
    decoded = _decode_leniently(document)
    return [field_at(decoded, path) for path in fields]


def failed_event(
    index: int, document: bytes, error: EventError, mapping: EventMapping
) -> FailedEvent:
    """Return what is known of a raw document that could not be encoded."""
    try:
        identity = event_id(_decode_leniently(document), mapping)
    except (EventError, ReplayFailed):
        identity = None
    missing_topic = error.topic if isinstance(error, MissingTopic) else None
    return FailedEvent(index, identity, str(error), document, missing_topic)
