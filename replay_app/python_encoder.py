"""The reference page encoder, in Python: it decodes, maps and appends one document at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import bson
from bson.errors import BSONError

from replay_app.elements import faults
from replay_app.events import (
    STRICT,
    Document,
    Header,
    destination,
    encode_json,
    event_headers,
    event_id,
    event_key,
    event_time,
    event_type,
    event_value,
    field_at,
    fields_of,
    id_of,
    is_marked,
    is_text,
    is_within,
    rfc3339,
    strip,
)
from replay_app.exceptions import EventError
from replay_app.id_texts import delivery_text
from replay_app.internals import BatchBuilder, batch_bytes
from replay_app.pages import (
    DECODE_ERRORS,
    Batch,
    EncodedPage,
    EncodeSpec,
    MissingTopic,
    document_spans,
    make_failure,
    overhead_bytes,
    readable,
    replay_headers,
    set_position,
    timestamp_ms,
)
from replay_app.parking import ParkedEvent, must_wait, park
from replay_app.partitioner import partition_of
from replay_app.transforms import DROP, Drop, EventContext

COMPRESSION_CODES = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
"""The numbers of the codecs in the attributes of a record batch (KIP-98)."""
DECODE_EVENTS = 64
"""Documents that the driver decodes in one call."""
MAX_CACHED_TOPICS = 100_000
HEADER_BYTES = 10
"""Most bytes of a header beside its name and its value: two sizes."""

Record = tuple[str, str, int, datetime, bytes, bytes | None, list[Header]]
"""Event type, topic, partition, original time, key, value (None: a tombstone), headers."""


class PythonEncoder:
    """Decodes each document, maps it, and appends the record to the batch of its partition."""

    name = "python"

    def __init__(self, spec: EncodeSpec) -> None:
        self._spec = spec
        self._headers = replay_headers(spec)
        self._overhead_bytes = overhead_bytes(self._headers)
        self._guard = None if spec.include_replayed else spec.mapping.field_replayed
        self._compression = COMPRESSION_CODES[spec.compression]
        self._used = {*fields_of(spec.mapping), *spec.cursor_fields}
        self._topics: dict[tuple[str, Any], str] = {}
        self._parked = {} if spec.parking is None else dict(spec.parking.behind)
        self._transforms = spec.transforms
        redaction = spec.redaction
        self._redact = _keep_all if redaction is None else redaction.apply

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page; see `PageEncoder`."""
        spec = self._spec
        own_timestamps = spec.record_timestamp == "original"
        out = EncodedPage()
        open_batches: dict[tuple[str, int], Batch] = {}
        by_type, by_topic = out.by_type, out.by_topic
        if spec.parking is not None:
            self._parked, out.parked_before = dict(spec.parking.behind), spec.parking.behind
        spans = list(document_spans(page))
        for index, document in enumerate(_decode_all(page, spans)):
            raw = page[slice(*spans[index])]
            try:
                record = self._map(document, raw)
            except EventError as error:
                out.failures.append(make_failure(index, raw, error, spec.mapping))
                out.waiting += isinstance(error, ParkedEvent)
                self._park(raw, error)
                if spec.stop_at_failure:
                    break
                out.read += 1
                continue
            out.read += 1
            if record is None or isinstance(record, Drop):
                out.skipped_replays += record is None
                out.dropped += record is not None
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
            batch.bytes += len(value or b"")
            by_type[kind] = by_type.get(kind, 0) + 1
            by_topic[topic] = by_topic.get(topic, 0) + 1
        for batch in out.batches:
            out.encoded += batch.records
            out.bytes += batch.bytes
            batch.builder.close()
        if self._parked != out.parked_before:
            out.parked = self._parked
        if out.read:
            set_position(out, page, spans[out.read - 1], spec)
        return out

    def record(self, document: bytes) -> Record | None:
        """Return the record of a raw document.

        None: the event is marked as replayed, or a transform has dropped it.

        Raises
        ------
        EventError
            When the event cannot be replayed.

        """
        try:
            record = self._map(_decode(document), document)
        except EventError as error:
            self._park(document, error)
            raise
        return None if isinstance(record, Drop) else record

    def _park(self, raw: bytes, error: EventError) -> None:
        """Let the later events of a failed event's aggregate wait."""
        if self._spec.parking is None or isinstance(error, MissingTopic | ParkedEvent):
            return
        document, mapping = readable(raw), self._spec.mapping
        identity = None
        with contextlib.suppress(EventError):
            identity = event_id(document, mapping)
        park(self._parked, document, mapping, identity)

    def _map(self, document: Document | EventError, raw: bytes) -> Record | Drop | None:
        if isinstance(document, EventError):
            raise document
        spec = self._spec
        mapping = spec.mapping
        identity = event_id(document, mapping)
        delivered = delivery_text(id_of(document, mapping)).encode()
        if self._guard is not None and is_marked(document, self._guard):
            return None
        if self._parked and (behind := must_wait(self._parked, document, mapping, identity)):
            raise ParkedEvent(behind)
        self._require_whole(document, raw)
        kind = event_type(document, mapping)
        time = event_time(document, mapping)
        original: Sequence[Header] = event_headers(document, mapping)
        topic = self._topic(kind, field_at(document, mapping.field_topic))
        key = event_key(document, mapping, identity)
        version = None if spec.schemas is None else spec.schemas.version_of(document)
        strip(document, mapping, self._redact)
        value = None
        if self._transforms is not None:
            context = EventContext(
                identity,
                kind,
                time.replace(tzinfo=UTC),
                topic,
                key,
                tuple(original),
                spec.replay_id,
            )
            changed = self._transforms.apply(document, context)
            if changed is None:
                return DROP
            document, value, context = changed
            topic, key, original = context.topic, context.key, context.headers
        value = self._value(kind, version, document, value)
        headers: list[Header] = [
            *original,
            *self._headers,
            ("replay-original-time", rfc3339(time)),
            ("replay-delivery-id", spec.replay_id.encode() + b":" + delivered),
        ]
        size = len(key) + len(value or b"") + len(delivered) + self._overhead_bytes
        size += sum(HEADER_BYTES + len(name.encode()) + len(text or b"") for name, text in original)
        self._require_size(size)
        # After all that is the event's own fault: a missing topic stops the whole replay.
        count = 1 if spec.partitions is None else spec.partitions.get(topic)
        if count is None:
            raise MissingTopic(topic)
        if size > spec.batch_bytes.get(topic, size):
            self._require_room(topic, key, value, headers)
        return kind, topic, partition_of(key, count), time, key, value, headers

    def _value(
        self, kind: str, version: Any, document: Document, value: bytes | None
    ) -> bytes | None:
        """Return the record's value, which is ``value`` if a transform has given bytes.

        ``version`` is that of the stored event, for its schema. A transform may have changed it.
        """
        schemas, mapping = self._spec.schemas, self._spec.mapping
        if schemas is not None and self._transforms is not None:
            version = schemas.version_of(document) or version
        if value is None:
            value = checked = event_value(document, mapping)
        else:  # what the transform has made the bytes of is checked
            checked = None if schemas is None else encode_json(document)
        if schemas is not None and checked is not None:  # a tombstone fits every schema
            schemas.check(kind, version, checked)
        return value

    def _require_size(self, size: int) -> None:
        """Raise `EventError` if a record has too many bytes."""
        most = self._spec.max_record_bytes
        if size > most:
            msg = (
                f"as a record it has {size} bytes, too many for REPLAY_MAX_RECORD_BYTES={most}: "
                "raise it, and the broker's message.max.bytes"
            )
            raise EventError(msg)

    def _require_room(
        self, topic: str, key: bytes, value: bytes | None, headers: list[Header]
    ) -> None:
        """Raise `EventError` if a record is too large for its topic even as a compressed batch.

        The broker compares a topic's limit with the compressed batch.
        """
        limit = self._spec.batch_bytes[topic]
        alone = BatchBuilder(limit, self._compression, is_transactional=1)
        alone.append(timestamp=0, key=key, value=value, headers=headers)
        if (size := batch_bytes(alone)) > limit:
            msg = (
                f"as a batch it has {size} bytes, too many for its topic {topic!r}: raise the "
                f"topic's max.message.bytes={limit}"
            )
            raise EventError(msg)

    def _require_whole(self, document: Document, raw: bytes) -> None:
        """Raise `EventError` if decoding has lost a part of the document that matters.

        The driver keeps the last of two fields with one name, and makes None of ``undefined``.
        Encoding again shows whether anything was lost, for about a fifth of the encoder's time.
        """
        try:
            # One level deeper: in a whole document, the driver would move _id to the front.
            if bson.encode({"": document}, codec_options=STRICT)[6:-1] == raw:
                return
            fault = next(faults(raw, self._matters), None)
        except (*DECODE_ERRORS, BSONError) as error:
            msg = f"it cannot be compared with its bytes: {error}"
            raise EventError(msg) from error
        if fault is not None:
            raise EventError(fault)

    def _matters(self, path: str) -> bool:
        """Return whether the field at a path is published, or is used to map or to order events."""
        mapping = self._spec.mapping
        if mapping.field_value is None and not any(
            is_within(path, excluded) for excluded in mapping.exclude_fields
        ):
            return True
        return any(is_within(path, used) or is_within(used, path) for used in self._used)

    def _topic(self, kind: str, own_topic: Any) -> str:
        """Return the destination topic. Types and topics are few, so the result is cached."""
        if not is_text(own_topic):
            own_topic = None
        topic = self._topics.get((kind, own_topic))
        if topic is None:
            topic = destination(kind, own_topic, self._spec.mapping, self._spec.target)
            if len(self._topics) >= MAX_CACHED_TOPICS:
                self._topics.clear()
            self._topics[kind, own_topic] = topic
        return topic

    def _open_batch(self, place: tuple[str, int], out: EncodedPage) -> Batch:
        most = self._spec.max_record_bytes
        limit = min(most, self._spec.batch_bytes.get(place[0], most))
        builder = BatchBuilder(limit, self._compression, is_transactional=1)
        batch = Batch(*place, builder, 0, 0)
        out.batches.append(batch)
        return batch


def _keep_all(document: Document) -> None:
    """Redact nothing."""


def _decode_all(page: bytes, spans: list[tuple[int, int]]) -> Iterator[Document | EventError]:
    """Yield each document, or the error of a document that cannot be decoded.

    The driver decodes DECODE_EVENTS documents at once. A whole page at once costs a fifth more
    time: thousands of decoded documents do not fit into a processor's cache.
    """
    for first in range(0, len(spans), DECODE_EVENTS):
        some = spans[first : first + DECODE_EVENTS]
        try:
            yield from bson.decode_all(page[some[0][0] : some[-1][1]], STRICT)
        except DECODE_ERRORS:
            yield from (_decode(page[start:end]) for start, end in some)


def _decode(document: bytes) -> Document | EventError:
    try:
        return bson.decode(document, codec_options=STRICT)
    except DECODE_ERRORS as error:
        return EventError(f"it is not valid BSON: {error}")
