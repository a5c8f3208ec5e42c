"""Reading some partitions of a compacted topic, as a ``read_committed`` consumer without a group.

Faust's consumer reads uncommitted records, so the topics that are written in transactions
(``replay.checkpoints``, ``replay.status``) are read here (docs/decisions.md, 4).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from aiokafka import ConsumerRecord

    from replay_app.settings import Settings

POLL_MS = 200
"""Longest wait of one read for new records."""


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
            **settings.kafka_security(),
        )

    async def start(self, positions: Mapping[int, int] | None = None) -> None:
        """Connect, and start at ``positions``. Other partitions start at their beginning."""
        await self._consumer.start()
        self._consumer.assign(list(self._partitions.values()))
        for number, partition in self._partitions.items():
            if positions and number in positions:
                self._consumer.seek(partition, positions[number])
            else:
                await self._consumer.seek_to_beginning(partition)

    async def stop(self) -> None:
        """Disconnect."""
        with contextlib.suppress(KafkaError):
            await self._consumer.stop()

    async def ends(self, *numbers: int) -> dict[int, int]:
        """Return the present end offsets of the given partitions; of all without arguments."""
        wanted = [self._partitions[number] for number in numbers or self._partitions]
        ends = await self._consumer.end_offsets(wanted)
        return {partition.partition: end for partition, end in ends.items()}

    async def read(self) -> list[ConsumerRecord]:
        """Return the next records, each partition's in order. The list is empty after POLL_MS."""
        batches = await self._consumer.getmany(timeout_ms=POLL_MS)
        for number, partition in self._partitions.items():
            self.positions[number] = await self._consumer.position(partition)
        return [record for records in batches.values() for record in records]

    async def read_to_end(self) -> AsyncIterator[ConsumerRecord]:
        """Yield every record up to the ends that the partitions have now."""
        ends = await self.ends()
        while any(self.positions.get(number, 0) < end for number, end in ends.items()):
            for record in await self.read():
                yield record
