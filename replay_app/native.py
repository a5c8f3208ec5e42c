"""The native page encoder: the same page as `PythonEncoder`'s, in a sixth of its time.

The work is done by the module ``replay_native`` (``native/``), with the interpreter lock released.
It declines documents that it is not sure of; each of these goes to the reference alone, so errors
are the reference's own sentences.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Never

import replay_native
from aiokafka.producer.message_accumulator import BatchBuilder

from replay_app.encoder import (
    Batch,
    EncodedPage,
    EncodeSpec,
    PythonEncoder,
    count_documents,
    cursor_of,
    failed_event,
    overhead_bytes,
    replay_headers,
    timestamp_ms,
)
from replay_app.exceptions import EventError, InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERFACE = 2
AIOKAFKA = "0.14.0"
"""`FinishedBatch` overrides private names: those of this version."""


def _check_versions() -> None:
    if (found := importlib.metadata.version("aiokafka")) != AIOKAFKA:
        msg = f"the native encoder works with aiokafka {AIOKAFKA}, not {found}: install that one"
        raise InvalidSettings(msg)
    if (interface := replay_native.INTERFACE) != INTERFACE:
        msg = (
            f"the native encoder that is installed has interface {interface}, not {INTERFACE}: "
            "run `make native`"
        )
        raise InvalidSettings(msg)


_check_versions()


class FinishedBatch(BatchBuilder):  # type: ignore[misc]  # aiokafka ships no types
    """Records that are encoded and compressed; the header is sealed when they are sent."""

    def __init__(self, batch: replay_native.Batch, records: int, *, transactional: bool) -> None:
        # Not the base's: it would open a builder for records that are there already.
        self._unsealed: replay_native.Batch | None = batch
        self._size = batch.size
        self._records = records
        self._transactional = transactional
        self._producer_state = (-1, -1, 0)
        self._sealed = b""

    def append(
        self, *, timestamp: int, key: bytes, value: bytes, headers: Sequence[Any] = ()
    ) -> None:
        """Refuse, as a full batch does."""

    def close(self) -> None:
        """Do nothing: it is closed."""

    def closed(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the bytes that are sent."""
        return self._size

    def record_count(self) -> int:
        """Return the number of records."""
        return self._records

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        # As the base does: a batch that may have been sent keeps its sequence.
        assert self._unsealed is not None, "the batch is sealed"  # noqa: S101
        self._producer_state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        # Once: a retry must send the same bytes, and no second copy is kept.
        if self._unsealed is not None:
            self._sealed = self._unsealed.seal(*self._producer_state, self._transactional)
            self._unsealed = None
        return self._sealed

    def _serialize(self, key: Any, value: Any) -> Never:
        raise NotImplementedError


class NativeEncoder:
    """Encodes a page with ``replay_native``; see `PageEncoder`."""

    name = "native"

    def __init__(self, spec: EncodeSpec) -> None:
        self._spec = spec
        self._reference = PythonEncoder(spec)
        self._encoder = replay_native.Encoder(_parts(spec))

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page; see `PageEncoder`."""
        spec, out = self._spec, EncodedPage()
        try:
            work = self._encoder.begin(page, now_ms)
        except ValueError:
            count_documents(page)  # raises the error that says so
            raise
        while (declined := work.run()) is not None:
            index, start, end = declined
            document = page[start:end]
            try:
                record = self._reference.record(document)
            except EventError as error:
                out.failures.append(failed_event(index, document, error, spec.mapping))
                if spec.stop_at_failure:
                    break
                work.leave_out()
                continue
            if record is None:
                work.skip()
                continue
            kind, topic, partition, time, key, value, headers = record
            timestamp = timestamp_ms(time) if spec.record_timestamp == "original" else now_ms
            work.add(kind, topic, partition, timestamp, key, value, headers)
        account = work.finish()
        out.read = account["read"]
        out.published = account["encoded"]
        out.skipped_replays = account["skipped_replays"]
        out.bytes = account["bytes"]
        out.by_type = account["by_type"]
        out.by_topic = account["by_topic"]
        for topic, partition, batch, records, size in account["batches"]:
            builder = FinishedBatch(batch, records, transactional=spec.transactional)
            out.batches.append(Batch(topic, partition, builder, records, size))
        if (last := account["last"]) is not None:
            out.cursor = cursor_of(page[slice(*last)], spec.cursor_fields)
        return out


def _parts(spec: EncodeSpec) -> dict[str, Any]:
    """Return a spec as ``replay_native`` takes it."""
    mapping, target = spec.mapping, spec.target
    headers = replay_headers(spec)
    return {
        "field_id": mapping.id_field,
        "field_timestamp": mapping.timestamp_field,
        "field_type": mapping.type_field,
        "field_aggregate": mapping.aggregate_field,
        "field_topic": mapping.topic_field,
        "field_key": mapping.key_field,
        "field_value": mapping.value_field,
        "field_replayed": None if spec.include_replayed else mapping.replayed_field,
        "timestamp_type": mapping.timestamp_type,
        "exclude_fields": list(mapping.exclude_fields),
        "topics": dict(mapping.topics),
        "topic_template": mapping.topic_template,
        "target_topic": target.topic,
        "target_topics": dict(target.topics),
        "target_prefix": target.prefix or "",
        "replay_id": spec.replay_id,
        "headers": headers,
        "overhead_bytes": overhead_bytes(headers),
        "partitions": spec.partitions,
        "original_timestamps": spec.record_timestamp == "original",
        "compression": spec.compression,
        "max_record_bytes": spec.max_record_bytes,
    }
