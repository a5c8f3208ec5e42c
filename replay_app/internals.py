"""Private names of other libraries, behind public names, and a check of the libraries' versions.

A private name may change with any version. So the versions are pinned, and a worker that finds
other versions does not start (`check_versions`). Only three modules of this program may use private
names of aiokafka, Faust and PyMongo: this one, `kafka_internals` (aiokafka's producer and its
connections) and `kafka_requests` (requests that aiokafka does not have).
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import TYPE_CHECKING, Any, Never, Protocol, cast

import bson
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record import MemoryRecords
from bson import json_util, raw_bson
from pymongo.cursor import RawBatchCursor

from replay_app.exceptions import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import faust
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from bson.json_util import JSONOptions

__all__ = (
    "BatchBuilder",
    "FinishedBatch",
    "PageCursor",
    "batch_bytes",
    "check_versions",
    "fetch_at_once",
    "give_plain_records",
    "has_lost_membership",
    "mend_faust",
    "records_of",
    "to_json_values",
)

VERSIONS = {"aiokafka": "0.14.0", "faust-streaming": "0.15.3", "pymongo": "4.20.0"}
"""The versions whose private names were read and tested. ``pyproject.toml`` pins the same ones."""


def check_versions() -> None:
    """Compare the installed libraries with `VERSIONS`.

    Raises
    ------
    InvalidSettings
        When another version is installed. The message names the library and both versions.

    """
    for library, wanted in VERSIONS.items():
        found = importlib.metadata.version(library)
        if found != wanted:
            msg = (
                f"{library} {found} is installed, but this program is tested with {wanted} and "
                f"uses private names of that version: pip install {library}=={wanted}"
            )
            raise InvalidSettings(msg)


# aiokafka


RecordParts = tuple[int, bytes, bytes | None, list[bytes]]
"""A record's timestamp, key, value, and the values of its last two headers."""


class EncodedRecords(Protocol):
    """Encoded and compressed records of one partition: ``replay_native.Batch``."""

    @property
    def size(self) -> int:
        """Bytes of the batch, header included."""

    def records(self) -> list[RecordParts] | None:
        """Return the records; None if they are compressed."""

    def seal(self, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
        """Return the batch with its header, for one producer."""


class FinishedBatch(BatchBuilder):  # type: ignore[misc]  # aiokafka ships no types
    """A batch whose records are already encoded. The header is written when the batch is sent.

    ``AIOKafkaProducer.send_batch`` takes it in place of the builder of ``create_batch``.
    """

    def __init__(self, batch: EncodedRecords, records: int) -> None:
        # The base's __init__ would open a builder for records that are encoded already.
        self._unsealed: EncodedRecords | None = batch
        self._size = batch.size
        self._records = records
        self._producer_state = (-1, -1, 0)
        self._sealed = b""

    def append(
        self, *, timestamp: int, key: bytes, value: bytes, headers: Sequence[Any] = ()
    ) -> None:
        """Return None, as a full batch does."""

    def close(self) -> None:
        """Do nothing: the batch is closed."""

    def closed(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the bytes that are sent."""
        return self._size

    def record_count(self) -> int:
        """Return the number of records."""
        return self._records

    def records(self) -> list[RecordParts] | None:
        """Return the records; None if they are compressed, or sealed."""
        return None if self._unsealed is None else self._unsealed.records()

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        # As in the base: a batch that may have been sent keeps its sequence number.
        assert self._unsealed is not None, "the batch is sealed"  # noqa: S101
        self._producer_state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        # Sealed once: a retry must send the same bytes, and memory holds one copy only.
        if self._unsealed is not None:
            self._sealed = self._unsealed.seal(*self._producer_state)
            self._unsealed = None
        return self._sealed

    def _serialize(self, key: Any, value: Any) -> Never:
        raise NotImplementedError


def batch_bytes(builder: BatchBuilder) -> int:
    """Close a batch, compress it, and return its bytes as the producer sends them."""
    return len(builder._build())  # noqa: SLF001


def records_of(builder: BatchBuilder) -> list[RecordParts]:
    """Close a batch and return its records."""
    if isinstance(builder, FinishedBatch) and (records := builder.records()) is not None:
        return records
    batch = MemoryRecords(bytes(builder._build())).next_batch()  # noqa: SLF001
    return [
        (one.timestamp, one.key, one.value, [value for _, value in one.headers[-2:]])
        for one in batch or ()
    ]


def fetch_at_once(consumer: AIOKafkaConsumer) -> None:
    """Let a consumer fetch a partition that is read up, whatever it has of other partitions.

    aiokafka else waits for up to 0.1 s, for all partitions of a broker to be read up. A caller
    that reads one partition at a time waits with it.
    """
    consumer._fetcher._prefetch_backoff = 0.0  # noqa: SLF001


def give_plain_records(consumer: AIOKafkaConsumer) -> None:
    """Let a consumer give out the fetched records as they were unpacked.

    Such a record has no more than offset, timestamp, key, value and headers; the headers are a
    list. To make a `ConsumerRecord` of each takes half as long as to unpack them.
    """
    for result in consumer._fetcher._records.values():  # noqa: SLF001
        if isinstance(result, FetchResult) and result.has_more():
            result._partition_records._consumer_record = _plain_record  # noqa: SLF001


def _plain_record(_partition: Any, record: Any) -> Any:
    return record


# Faust


def mend_faust(app: faust.App) -> None:
    """Let an app lose no record while it takes its partitions over."""
    recovery = cast("Any", app.tables).recovery
    recovery.on_recovery_completed = functools.partial(_resume_last, recovery)
    cast("Any", app.transport).Consumer._getmany = _read_active  # noqa: SLF001


async def _read_active(
    consumer: Any,
    active_partitions: set[Any] | None,
    timeout: float,  # noqa: ASYNC109 - Faust's signature
) -> Any:
    """Do what Faust's consumer does, but ask for a copy of the active partitions, and seek back.

    Faust gives its own set away. When the set becomes empty, because the changelogs are read,
    aiokafka takes the empty set for all partitions.

    Faust drops the records of partitions that it has paused since it asked, though aiokafka is
    past them. A rebalance seeks to the committed offsets, but may have done so already. So this
    function seeks back.
    """
    thread = consumer._thread  # noqa: SLF001
    wanted = None if active_partitions is None else frozenset(active_partitions)
    records = await thread.getmany(wanted, timeout)
    if active_partitions is None:
        return records
    # Faust may pause further partitions during the seek. Each round leaves some out: the loop ends.
    while True:
        buffered = consumer._buffered_partitions - consumer._paused_partitions  # noqa: SLF001
        paused = records.keys() - active_partitions - buffered
        if not paused:
            return records
        offsets = {tp: records[tp][0].offset for tp in paused}
        await thread.call_thread(_seek_back, thread._ensure_consumer(), offsets)  # noqa: SLF001
        records = {tp: found for tp, found in records.items() if tp not in paused}


async def _seek_back(consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
    subscription = consumer._subscription.subscription  # noqa: SLF001
    for tp, offset in offsets.items():
        if tp in consumer.assignment():
            state = subscription.assignment.state_value(tp)
            # If the position is lower, Faust has sought back to the committed offset meanwhile.
            if state.has_valid_position and state.position > offset:
                consumer.seek(tp, offset)


async def _resume_last(recovery: Any, generation_id: int = 0) -> None:
    """Do what `Recovery.on_recovery_completed` does, but resume the partitions last.

    Faust resumes the partitions first. It then delivers records while it seeks to the committed
    offsets, and empties the agents' queues afterwards. The records that stood in the queues are
    lost: Faust drops them as read when they come again.
    """
    app = recovery.app
    consumer = app.consumer
    await app.on_rebalance_complete.send()
    recovery._set_recovery_ended()  # noqa: SLF001
    for table in recovery.tables.values():
        await table.on_recovery_completed(
            recovery.actives_for_table[table], recovery.standbys_for_table[table]
        )
    if app.consumer_generation_id != generation_id:  # the next recovery has begun
        return
    assignment = consumer.assignment()
    if assignment:
        # A rebalance that begins meanwhile, or a stop, raises an error that the caller expects.
        await recovery._wait(  # noqa: SLF001
            consumer.perform_seek(), timeout=app.conf.broker_request_timeout
        )
    recovery.completed.set()
    app.flow_control.resume()  # empties the queues
    changelogs = app.tables.changelog_topics
    consumer.resume_partitions({tp for tp in assignment if tp.topic not in changelogs})
    consumer.resume_flow()
    await app._fetcher.maybe_start()  # noqa: SLF001
    app.tables.on_actives_ready()
    if not app.assignor.assigned_standbys():
        app.tables.on_standbys_ready()
    app.on_rebalance_end()


def has_lost_membership(app: faust.App) -> bool:
    """Return whether aiokafka has given up the consumer group of a Faust app.

    aiokafka's coordinator ends its task then. Neither aiokafka nor Faust reports this.
    """
    thread = getattr(app._consumer, "_thread", None)  # noqa: SLF001
    coordinator = getattr(getattr(thread, "_consumer", None), "_coordinator", None)
    task = getattr(coordinator, "_coordination_task", None)
    return task is not None and task.done()


# PyMongo


class PageCursor(RawBatchCursor[Any]):
    """The cursor of ``find_raw_batches``, at a third of its cost.

    The base makes an object of each document of a page and throws the object away, while it holds
    the interpreter's lock.
    """

    def next_batch(self, documents: int) -> None:
        """Ask for this many documents at most with the next page. The base fixes the number."""
        self._batch_size = documents

    def _unpack_response(
        self,
        response: Any,
        cursor_id: int | None,  # noqa: ARG002 - the base's signature
        codec_options: Any,  # noqa: ARG002
        user_fields: Any = None,
        legacy_response: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> list[Any]:
        options: Any = raw_bson._RAW_ARRAY_BSON_OPTIONS  # noqa: SLF001
        reply = raw_bson._RawArrayBSONDocument(response.payload_document, options)  # noqa: SLF001
        fields = bson._decode_selective(reply, user_fields, options)  # noqa: SLF001
        bson._convert_raw_document_lists_to_streams(fields)  # noqa: SLF001
        return [fields]


def to_json_values(value: Any, options: JSONOptions) -> Any:
    """Return what ``json_util.dumps`` would write, as plain JSON values instead of text."""
    return json_util._json_convert(value, options)  # noqa: SLF001
