"""Producers: the fenced producer of transactions, and the plain producer of internal records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from replay_app.exceptions import Unavailable
from replay_app.reports import MAX_INTERNAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.pages import Batch
    from replay_app.reports import Offsets
    from replay_app.settings import Settings
    from replay_app.topics import Topic

logger = logging.getLogger(__name__)

PRODUCER_STOP_SECONDS = 5.0
"""A fenced or disconnected producer may hang in ``stop()``. After this time it is left alone."""
TRANSACTION_TIMEOUT_MS = 60_000
"""Never lower. A transaction that expires while a lone broker starts may be committed
(docs/faust.md, "Transactions")."""
GROUP_HEARTBEAT_SECONDS = 3.0
"""Interval of the heartbeats in the consumer group. An evicted worker learns of its eviction within
this time."""
REOPEN_SECONDS = GROUP_HEARTBEAT_SECONDS + 0.5
"""How long a worker waits before it starts a producer again after an error. An evicted worker
learns of its eviction first, and does not fence the new owner."""
REQUEST_TIMEOUT_MS = 30_000
BATCH_OVERHEAD = 48_576
"""Bytes of a request around its records. A session with this overhead stays below the broker's
limit."""
RESEND_SECONDS = 1.0

#: What a producer raises when it must be discarded. After a fatal error aiokafka answers calls with
#: an AssertionError.
PRODUCER_ERRORS = (KafkaError, AssertionError, asyncio.TimeoutError, ConnectionError)


class FencedProducer:
    """A transactional producer that fences every other producer of its transactional id.

    `start` settles the open transaction of the former owner. Whatever the former owner sends later
    fails. After any error call `discard` and use a `renewed` producer: a fatal state is final.
    """

    def __init__(self, settings: Settings, bootstrap: str, transactional_id: str) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self.transactional_id = transactional_id
        self.in_transaction = False
        compression = None if settings.compression == "none" else settings.compression
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            acks="all",
            compression_type=compression,
            max_batch_size=settings.max_record_bytes,
            max_request_size=max(settings.max_record_bytes, MAX_INTERNAL_BYTES) + BATCH_OVERHEAD,
            **settings.kafka_security(),
        )
        self._unacked: list[asyncio.Future[Any]] = []

    async def start(self) -> Self:
        """Fence the former owner, and be ready to begin a transaction."""
        try:
            await self._producer.start()
        except BaseException:
            await self.discard()
            raise
        return self

    def renewed(self) -> FencedProducer:
        """Return a new producer of the same transactional id, not started."""
        return FencedProducer(self._settings, self._bootstrap, self.transactional_id)

    async def begin(self) -> None:
        """Begin a transaction."""
        self._unacked.clear()
        await self._producer.begin_transaction()
        self.in_transaction = True

    async def send(self, topic: str, *, partition: int, **record: Any) -> None:
        """Add one record to the transaction. `commit` awaits the broker's ack."""
        self._unacked.append(await self._producer.send(topic, partition=partition, **record))

    async def send_batches(self, batches: Iterable[Batch], offsets: Offsets) -> None:
        """Publish finished batches, each partition's in their order, and widen ``offsets``.

        Returns when the broker has acked all. Partitions are sent side by side: aiokafka takes one
        batch at a time for a partition.
        """
        lanes: dict[tuple[str, int], list[Batch]] = {}
        for batch in batches:
            lanes.setdefault((batch.topic, batch.partition), []).append(batch)
        results = await asyncio.gather(
            *(self._send_in_order(*lane, queue, offsets) for lane, queue in lanes.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _send_in_order(
        self, topic: str, partition: int, batches: list[Batch], offsets: Offsets
    ) -> None:
        acks = [
            (await self._producer.send_batch(batch.builder, topic, partition=partition), batch)
            for batch in batches
        ]
        for ack, batch in acks:
            first = (await ack).offset
            known = offsets.setdefault(topic, {})
            start, _ = known.get(partition, (first, 0))
            known[partition] = (start, first + batch.records - 1)

    async def commit(self) -> None:
        """Await the acks of all records, and commit the transaction."""
        if self._unacked:
            await asyncio.gather(*self._unacked)
            self._unacked.clear()
        await self._producer.commit_transaction()
        self.in_transaction = False

    async def abort(self) -> None:
        """Abort the transaction."""
        await self._producer.abort_transaction()
        self.in_transaction = False

    async def discard(self) -> None:
        """Stop the producer, whatever its state."""
        for ack in self._unacked:
            ack.cancel()
        with contextlib.suppress(*PRODUCER_ERRORS, Exception):
            await asyncio.wait_for(self._producer.stop(), PRODUCER_STOP_SECONDS)


class Outbox:
    """The plain producer of internal records: tokens, reports, commands.

    A record may be sent twice, and is never lost: `send` returns when the broker has the record,
    and tries until then.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect."""
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka,
            acks="all",
            request_timeout_ms=REQUEST_TIMEOUT_MS,
            max_request_size=MAX_INTERNAL_BYTES + BATCH_OVERHEAD,
            **self._settings.kafka_security(),
        )
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect."""
        if self._producer is not None:
            with contextlib.suppress(*PRODUCER_ERRORS):
                await asyncio.wait_for(self._producer.stop(), PRODUCER_STOP_SECONDS)
            self._producer = None

    async def send(self, topic: Topic, key: str, value: bytes) -> None:
        """Append one record to its key's partition. Try until the broker has acked the record."""
        while True:
            try:
                await self.try_send(topic, key, value)
            except Unavailable as error:
                logger.warning("%s; trying again", error)
                await asyncio.sleep(RESEND_SECONDS)
            else:
                return

    async def try_send(
        self, topic: Topic, key: str, value: bytes, seconds: float | None = None
    ) -> None:
        """Append one record to its key's partition, and await the broker's ack.

        Raises
        ------
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
        except PRODUCER_ERRORS as error:
            msg = f"Kafka at {self._settings.kafka} takes no record for {topic.name!r}: {error!r}"
            raise Unavailable(msg) from error
