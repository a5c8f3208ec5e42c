"""Producers: the fenced producer of transactions, and the plain producer of internal records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from replay_app.broker_errors import Kind, Refused, TopicGone
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.kafka_internals import TransactionalProducer
from replay_app.kafka_security import kafka_security
from replay_app.reports import MAX_INTERNAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from replay_app.pages import Batch
    from replay_app.reports import Offsets
    from replay_app.settings import Settings
    from replay_app.topics import Topic

logger = logging.getLogger(__name__)

OUTBOX_STOP_SECONDS = 5.0
"""A disconnected producer may hang in ``stop()``. After this time it is left alone."""
START_SECONDS = 30.0
"""Longest wait until the former owner is fenced. Its transaction is aborted meanwhile."""
SILENCE_SECONDS = 25.0
"""Longest wait for the next ack. Longer than REQUEST_TIMEOUT_MS: a lost request is sent again.
Shorter than REPLAY_STALL_SECONDS: the replay says why it waits before the watchdog acts."""
LEAVING_SECONDS = 5.0
"""The same while the worker stops, or while its partitions move to other workers."""
LOOK_SECONDS = 1.0
"""After this time without an ack, the publisher looks whether the topics still exist."""
GONE_SECONDS = 5.0
"""A topic is gone when the broker has not known it for this time. A broker that has just started
may not know all topics yet."""
COMMIT_SECONDS = 30.0
"""Longest wait for a commit or an abort."""
MAX_NAMED_TOPICS = 3
"""Topics that an error names."""
TRANSACTION_TIMEOUT_MS = 60_000
"""Never lower. A transaction that expires while a lone broker starts may be committed
(docs/faust.md, "Transactions")."""
GROUP_HEARTBEAT_SECONDS = 3.0
"""Interval of the heartbeats in the consumer group. An evicted worker learns of its eviction within
this time."""
REOPEN_SECONDS = GROUP_HEARTBEAT_SECONDS + 0.5
"""How long a worker waits before it starts a producer again after an error. An evicted worker
learns of its eviction first, and does not fence the new owner."""
REQUEST_TIMEOUT_MS = 20_000
BATCH_OVERHEAD = 48_576
"""Bytes of a request around its records. A session with this overhead stays below the broker's
limit."""
RESEND_SECONDS = 1.0
TRY_SECONDS = 15.0
"""Longest wait for the ack of an internal record, before the record is sent again."""

#: What a producer raises when it must be discarded. After a fatal error aiokafka answers calls with
#: an AssertionError.
PRODUCER_ERRORS = (KafkaError, AssertionError, asyncio.TimeoutError, ConnectionError)


class BatchesRefused(Exception):
    """The broker refuses batches of a page, each for the sake of single events."""

    def __init__(self, refusals: list[tuple[Batch, Refused]]) -> None:
        super().__init__(*(str(refused) for _, refused in refusals))
        self.refusals = refusals


class FencedProducer:
    """A transactional producer that fences every other producer of its transactional id.

    `start` settles the open transaction of the former owner. Whatever the former owner sends later
    fails. Every wait has a limit, a shorter one while ``is_leaving`` is true. After `Refused` or
    `BatchesRefused` call `abort`; the producer can then be used again. After any other error call
    `discard` and use a `renewed` producer: a fatal state is final.
    """

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        transactional_id: str,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self.transactional_id = transactional_id
        self._is_leaving = is_leaving
        self.in_transaction = False
        # Of the records that are sent one by one: checkpoints, sessions, dead letters.
        chosen = "snappy" if settings.compression == "auto" else settings.compression
        compression = None if chosen == "none" else chosen
        self._producer = TransactionalProducer(
            bootstrap_servers=bootstrap,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            compression_type=compression,
            max_batch_size=settings.max_record_bytes,
            max_request_size=max(settings.max_record_bytes, MAX_INTERNAL_BYTES) + BATCH_OVERHEAD,
            **kafka_security(settings, bootstrap),
        )
        self._unacked: dict[asyncio.Future[Any], str] = {}
        """The acks of single records, with the records' topics."""
        self._acked_at = 0.0
        """Monotonic seconds of the last ack."""

    async def start(self) -> Self:
        """Fence the former owner, and be ready to begin a transaction."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._producer.start()
        except BaseException:
            await self.discard()
            raise
        return self

    def renewed(self) -> FencedProducer:
        """Return a new producer of the same transactional id, not started."""
        return FencedProducer(
            self._settings, self._bootstrap, self.transactional_id, self._is_leaving
        )

    async def begin(self) -> None:
        """Begin a transaction."""
        self._unacked.clear()
        async with asyncio.timeout(START_SECONDS):
            await self._producer.begin_transaction()
        self.in_transaction = True

    async def send(self, topic: str, *, partition: int, **record: Any) -> None:
        """Add one record to the transaction. `commit` awaits the broker's ack."""
        with _own_errors(topic):
            async with asyncio.timeout(SILENCE_SECONDS):
                ack = await self._producer.send(topic, partition=partition, **record)
        self._unacked[ack] = topic

    async def send_batches(self, batches: Iterable[Batch], offsets: Offsets) -> None:
        """Publish finished batches, each partition's in their order, and widen ``offsets``.

        Returns when the broker has acked all. Partitions are sent side by side: aiokafka takes one
        batch at a time for a partition.

        Raises
        ------
        BatchesRefused
            When single events are at fault. All batches were sent.
        Refused
            When a topic is at fault, or does not exist any more.
        Exception
            One of PRODUCER_ERRORS, when the producer must be discarded.

        """
        lanes: dict[tuple[str, int], list[Batch]] = {}
        for batch in batches:
            lanes.setdefault((batch.topic, batch.partition), []).append(batch)
        refusals: list[tuple[Batch, Refused]] = []
        await self._answers(
            [
                asyncio.ensure_future(self._send_in_order(*lane, queue, offsets, refusals))
                for lane, queue in lanes.items()
            ],
            {topic for topic, _ in lanes},
        )
        for _, refused in refusals:
            if refused.kind is not Kind.EVENT:
                raise refused
        if refusals:
            raise BatchesRefused(refusals)

    async def _send_in_order(
        self,
        topic: str,
        partition: int,
        batches: list[Batch],
        offsets: Offsets,
        refusals: list[tuple[Batch, Refused]],
    ) -> None:
        acks: list[tuple[asyncio.Future[Any], Batch]] = []
        for batch in batches:
            try:
                with _own_errors(topic):
                    sent = await self._producer.send_batch(
                        batch.builder, topic, partition=partition
                    )
            except Refused as refused:  # of the batch before, for which this batch has waited
                refusals.append((batch, refused))
                break
            acks.append((sent, batch))
        for ack, batch in acks:
            try:
                first = (await ack).offset
            except Refused as refused:
                refusals.append((batch, refused))
                continue
            self._acked_at = time.monotonic()
            known = offsets.setdefault(topic, {})
            start, _ = known.get(partition, (first, 0))
            known[partition] = (start, first + batch.records - 1)

    async def _answers(self, waits: Collection[asyncio.Future[Any]], topics: set[str]) -> None:
        """Wait until all ``waits`` are done, and raise their first error.

        Raises
        ------
        TopicGone
            When one of ``topics`` does not exist any more.
        TimeoutError
            When the broker acks nothing for SILENCE_SECONDS.

        """
        self._acked_at = time.monotonic()
        gone_since: float | None = None
        open_waits = set(waits)
        try:
            while open_waits:
                _, open_waits = await asyncio.wait(open_waits, timeout=LOOK_SECONDS)
                now = time.monotonic()
                if not open_waits or now - self._acked_at < LOOK_SECONDS:
                    continue
                missing = await self._missing(topics)
                gone_since = (gone_since or now) if missing else None
                if gone_since is not None and now - gone_since >= GONE_SECONDS:
                    raise TopicGone(min(missing))
                limit = LEAVING_SECONDS if self._is_leaving() else SILENCE_SECONDS
                if now - self._acked_at >= limit:
                    named = ", ".join(map(repr, sorted(topics)[:MAX_NAMED_TOPICS]))
                    msg = f"Kafka at {self._bootstrap} has acked nothing for {limit:g} s ({named})"
                    raise TimeoutError(msg)
            for wait in waits:
                wait.result()
        finally:
            for wait in open_waits:
                wait.cancel()
            # Every error is taken: asyncio would log an error that nobody has taken.
            await asyncio.gather(*waits, return_exceptions=True)

    async def _missing(self, topics: set[str]) -> set[str]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                return await self._producer.missing_topics(topics)
        return set()

    async def commit(self) -> None:
        """Await the acks of all records, and commit the transaction.

        Raises
        ------
        Refused
            When the broker refuses a record. The transaction can only be aborted.
        Exception
            One of PRODUCER_ERRORS, when nobody knows whether the transaction is committed. The
            producer must be discarded; who starts the next producer finds out.

        """
        if self._unacked:
            unacked = dict(self._unacked)
            self._unacked.clear()
            await self._answers(unacked, set(unacked.values()))
        async with asyncio.timeout(COMMIT_SECONDS):
            await self._producer.commit_transaction()
        self.in_transaction = False

    async def abort(self) -> None:
        """Abort the transaction."""
        async with asyncio.timeout(COMMIT_SECONDS):
            await self._producer.abort_transaction()
        self.in_transaction = False

    async def discard(self) -> None:
        """Stop the producer at once, whatever its state. Kafka aborts an open transaction."""
        for ack in self._unacked:
            ack.cancel()
        await self._producer.end()


@contextlib.contextmanager
def _own_errors(topic: str) -> Iterator[None]:
    """Turn what aiokafka refuses by itself into `Refused`."""
    try:
        yield
    except (MessageSizeTooLargeError, TopicAuthorizationFailedError) as error:
        raise Refused(error.errno, topic) from error


class Outbox:
    """The plain producer of internal records: tokens, reports, commands.

    A record may be sent twice, and is never lost: `send` returns when the broker has the record,
    and tries as long as the worker lives.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self.obstacle: str | None = None
        """Why the broker takes no records now. None if the last record was taken."""

    async def start(self) -> None:
        """Connect."""
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka,
            acks="all",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_request_size=MAX_INTERNAL_BYTES + BATCH_OVERHEAD,
            **kafka_security(self._settings, self._settings.kafka),
        )
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            with contextlib.suppress(*PRODUCER_ERRORS):
                await asyncio.wait_for(self._producer.stop(), OUTBOX_STOP_SECONDS)
            self._producer = None

    async def send(self, topic: Topic, key: str, value: bytes) -> None:
        """Append one record to its key's partition. Try until the broker has acked the record.

        Raises
        ------
        ReplayFailed
            When the record is too large for its topic.

        """
        while True:
            try:
                await self.try_send(topic, key, value, TRY_SECONDS)
            except Unavailable as error:
                self.obstacle = str(error)
                logger.warning("%s; trying again", error)
                await asyncio.sleep(RESEND_SECONDS)
            else:
                self.obstacle = None
                return

    async def try_send(self, topic: Topic, key: str, value: bytes, seconds: float) -> None:
        """Append one record to its key's partition, and await the broker's ack.

        Raises
        ------
        ReplayFailed
            When the record is too large for its topic.
        Unavailable
            When the broker does not ack the record within ``seconds``.

        """
        if self._producer is None:
            msg = "the worker is starting or stopping; try again in a few seconds"
            raise Unavailable(msg)
        sending = self._producer.send_and_wait(
            topic.name, value, key=key.encode(), partition=topic.partition(key)
        )
        try:
            await asyncio.wait_for(sending, seconds)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            msg = (
                f"a record of {len(value):,} bytes is too large for {topic.name!r}: raise the "
                f"topic's max.message.bytes to at least {MAX_INTERNAL_BYTES + BATCH_OVERHEAD:,}"
            )
            raise ReplayFailed(msg) from error
        except PRODUCER_ERRORS as error:
            why = str(error) or f"no answer within {seconds:g} s"
            msg = f"Kafka at {self._settings.kafka} takes no record for {topic.name!r}: {why}"
            raise Unavailable(msg) from error
