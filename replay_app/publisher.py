"""Producers: the fenced one that writes transactions, and the plain one for internal records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from replay_app.exceptions import Unavailable
from replay_app.progress import MAX_INTERNAL_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.encoder import Batch
    from replay_app.progress import Offsets
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""A fenced or cut-off producer may hang in stop(); it is left behind after this."""
TRANSACTION_TIMEOUT_MS = 60_000
"""Never lower: one that expires while a lone broker starts can be committed (design section 6)."""
HEARTBEAT_SECONDS = 3.0
"""Interval of the group's heartbeats; a worker learns of its eviction within it."""
REQUEST_TIMEOUT_MS = 30_000
BATCH_OVERHEAD = 48_576
"""What is around the records of a request; with it a session is still below the broker's limit."""
RETRY_SECONDS = 1.0

#: What a producer raises when it must be discarded: its own errors, and the assertions with which
#: aiokafka answers calls after a fatal one.
PRODUCER_ERRORS = (KafkaError, AssertionError, asyncio.TimeoutError, ConnectionError)


class FencedProducer:
    """One transactional producer that fences every other one of its transactional id.

    `start` settles the open transaction of a former owner; from then on whatever that owner still
    sends fails. After any error discard it (`discard`) and make a new one: a fatal state is final.

    With ``delivery=at_least_once`` the same calls publish without a transaction: `commit` waits
    for all acks, and nothing is fenced.
    """

    def __init__(self, settings: Settings, bootstrap: str, transactional_id: str) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self.transactional_id = transactional_id
        self.in_transaction = False
        self.transactional = settings.delivery == "exactly_once"
        compression = None if settings.compression == "none" else settings.compression
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            transactional_id=transactional_id if self.transactional else None,
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
        """Fence the former owner and be ready to begin a transaction."""
        try:
            await self._producer.start()
        except BaseException:
            await self.discard()
            raise
        return self

    def renewed(self) -> FencedProducer:
        """Return a fresh producer of the same transactional id."""
        return FencedProducer(self._settings, self._bootstrap, self.transactional_id)

    async def begin(self) -> None:
        """Begin a transaction."""
        self._unacked.clear()
        if self.transactional:
            await self._producer.begin_transaction()
        self.in_transaction = True

    async def send(self, topic: str, *, partition: int, **record: Any) -> None:
        """Add one record to the transaction; the ack is awaited by `commit`."""
        self._unacked.append(await self._producer.send(topic, partition=partition, **record))

    async def send_batches(self, batches: Iterable[Batch], offsets: Offsets) -> None:
        """Publish finished batches, each partition's in their order, and widen ``offsets``.

        Returns when all are acked. Partitions go side by side: one partition takes only one
        batch at a time.
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

    async def acked(self) -> None:
        """Await the acks of all records sent one by one."""
        if self._unacked:
            await asyncio.gather(*self._unacked)
            self._unacked.clear()

    async def commit(self) -> None:
        """Await all acks and commit the transaction."""
        await self.acked()
        if self.transactional:
            await self._producer.commit_transaction()
        self.in_transaction = False

    async def abort(self) -> None:
        """Abort the transaction."""
        if self.transactional:
            await self._producer.abort_transaction()
        self.in_transaction = False

    async def discard(self) -> None:
        """Stop the producer, whatever state it is in."""
        for ack in self._unacked:
            ack.cancel()
        with contextlib.suppress(*PRODUCER_ERRORS, Exception):
            await asyncio.wait_for(self._producer.stop(), STOP_SECONDS)


class Outbox:
    """The plain producer of internal records: tokens, progress, commands.

    Its records may be repeated, never lost: `send` returns only when the broker has the record,
    and tries again for as long as that takes.
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
                await asyncio.wait_for(self._producer.stop(), STOP_SECONDS)
            self._producer = None

    async def send(self, topic: str, key: str, value: bytes, partition: int) -> None:
        """Append one record and await its ack, however long the broker is away."""
        while True:
            try:
                await self.try_send(topic, key, value, partition)
            except Unavailable as error:
                logger.warning("%s; trying again", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def try_send(
        self, topic: str, key: str, value: bytes, partition: int, seconds: float | None = None
    ) -> None:
        """Append one record and await its ack.

        Raises
        ------
        Unavailable
            When the broker does not take it in time.

        """
        if self._producer is None:
            msg = "the worker is starting or stopping; try again in a few seconds"
            raise Unavailable(msg)
        sending = self._producer.send_and_wait(topic, value, key=key.encode(), partition=partition)
        try:
            await asyncio.wait_for(sending, seconds)
        except PRODUCER_ERRORS as error:
            msg = f"Kafka at {self._settings.kafka} takes no record for {topic!r}: {error!r}"
            raise Unavailable(msg) from error
