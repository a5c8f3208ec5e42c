"""Reading some partitions of a compacted topic, as a ``read_committed`` consumer without a group.

A ``read_committed`` consumer reads up to the stable offset, and an open transaction of any producer
holds that offset. So the end to be reached is the high watermark: what a reader knows before that
may be old, and nothing may be decided by it.

Faust's consumer reads uncommitted records, so the topics that are written in transactions
(``replay.checkpoints``, ``replay.status``) are read here (docs/decisions.md, 4).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError

from replay_app.kafka_security import kafka_security
from replay_app.stable_offsets import explain_open_transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from aiokafka import ConsumerRecord

    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

OBSTACLE_SECONDS = 5.0
"""How long a reader may stand still before it says why."""
HELD_SECONDS = 60.0
"""How long a reader may stand still before it gives up."""
POLL_MS = 200
"""Longest wait of one read for new records."""
ANSWER_SECONDS = 60.0
"""How long the broker may take to answer. aiokafka waits for a position without a limit."""
STOP_SECONDS = 5.0
"""How long a consumer may take to disconnect."""


class CompactedReader:
    """A reader of some partitions of one topic.

    Every method but `stop` raises ``aiokafka.errors.KafkaError`` when the broker does not answer.
    """

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        topic: str,
        partitions: Iterable[int],
        *,
        fetch_max_wait_ms: int = 500,
    ) -> None:
        self._partitions = {number: TopicPartition(topic, number) for number in partitions}
        self.positions: dict[int, int] = {}
        """By partition: the offset that is read next."""
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=fetch_max_wait_ms,
            **kafka_security(settings, bootstrap),
        )
        self._settings = settings
        self._bootstrap = bootstrap
        # To a read_committed consumer, the end of a partition is its stable offset.
        self._watermarks = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_uncommitted",
            enable_auto_commit=False,
            **kafka_security(settings, bootstrap),
        )

    async def start(self, positions: Mapping[int, int] | None = None) -> None:
        """Connect, and start at ``positions``. Other partitions start at their beginning."""
        async with _limit():
            await self._watermarks.start()
            await self._consumer.start()
            self._consumer.assign(list(self._partitions.values()))
            for number, partition in self._partitions.items():
                if positions and number in positions:
                    self._consumer.seek(partition, positions[number])
                else:
                    await self._consumer.seek_to_beginning(partition)

    async def stop(self) -> None:
        """Disconnect."""
        for consumer in (self._consumer, self._watermarks):
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(consumer.stop(), STOP_SECONDS)

    async def ends(self, *numbers: int) -> dict[int, int]:
        """Return the present high watermarks of the given partitions; of all without arguments."""
        wanted = [self._partitions[number] for number in numbers or self._partitions]
        async with _limit():
            ends = await self._watermarks.end_offsets(wanted)
        return {partition.partition: end for partition, end in ends.items()}

    async def read(self) -> list[ConsumerRecord]:
        """Return the next records, each partition's in order. The list is empty after POLL_MS."""
        async with _limit():
            batches = await self._consumer.getmany(timeout_ms=POLL_MS)
            for number, partition in self._partitions.items():
                self.positions[number] = await self._consumer.position(partition)
        return [record for records in batches.values() for record in records]

    async def read_to_end(self) -> AsyncIterator[ConsumerRecord]:
        """Yield every record up to the ends that the partitions have now.

        While an open transaction holds a partition, this waits and logs why. After HELD_SECONDS it
        gives up, with an error that says why.
        """
        ends, why = await self.ends(), "the broker gives no more records"
        said = moved = time.monotonic()
        while any(self.positions.get(number, 0) < end for number, end in ends.items()):
            for record in await self.read():
                yield record
                moved = time.monotonic()
            now = time.monotonic()
            if now - said > OBSTACLE_SECONDS:
                said = now
                for number, end in ends.items():
                    if (obstacle := await self.explain(number, end)) is not None:
                        why = obstacle
                        logger.warning("%s", why)
            if now - moved > HELD_SECONDS:
                raise KafkaTimeoutError(f"{why}; gave up after {HELD_SECONDS:g} s")

    async def explain(self, number: int, end: int) -> str | None:
        """Return why the reader has not reached an offset of a partition; None if it reads on.

        The text names the partition, the producer with the open transaction, and the remedy.
        """
        partition, position = self._partitions[number], self.positions.get(number, 0)
        stable = self._consumer.last_stable_offset(partition)
        if position >= end or stable is None or position < stable:
            return None
        why = await explain_open_transaction(self._settings, self._bootstrap, partition, stable)
        ids = f"{self._settings.app_id}-"
        return (
            f"{why}; but do not end the transaction if `kafka-transactions.sh list` shows this "
            f"producer id with a transactional id that begins with {ids!r}, and no worker is busy "
            "with it: a lone broker has lost its marker, and its record would be dropped"
        )


@contextlib.asynccontextmanager
async def _limit() -> AsyncIterator[None]:
    """Limit the wait for the broker's answer."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except TimeoutError as error:
        msg = f"no answer within {ANSWER_SECONDS:g} s"
        raise KafkaTimeoutError(msg) from error
