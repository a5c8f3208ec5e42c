"""What tests ask the brokers: who leads, who coordinates, what is replicated, what is hidden."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Literal

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError
from confluent_kafka import IsolationLevel as KafkaIsolationLevel
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    NewPartitions,
    OffsetSpec,
    PartitionMetadata,
)
from support import KAFKA_SECONDS, POLL_SECONDS, IsolationLevel, wait_until

REPLICATED_SECONDS = 90.0
ANSWER_SECONDS = 5.0
COORDINATORS = {"group": CoordinationType.GROUP, "transaction": CoordinationType.TRANSACTION}
LEVELS = {
    "read_committed": KafkaIsolationLevel.READ_COMMITTED,
    "read_uncommitted": KafkaIsolationLevel.READ_UNCOMMITTED,
}

Partition = tuple[str, int]
"""A topic and a partition number."""


class Brokers:
    """A client that asks about the brokers behind an address."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})  # brokers die

    def leader(self, topic: str, partition: int) -> int:
        """Return the node id of a partition's leader."""

        def find() -> int:
            # Another broker may answer each time, and one of them may not know the partition yet.
            found = self._metadata(topic).get(partition)
            return 0 if found is None else max(found.leader, 0)

        return wait_until(find, KAFKA_SECONDS, f"no leader of {topic}[{partition}]")

    def coordinator(self, kind: Literal["group", "transaction"], name: str) -> int:
        """Return the node id of the coordinator of a group, or of a transactional id."""
        return wait_until(
            lambda: asyncio.run(_coordinator(self._bootstrap, kind, name)),
            KAFKA_SECONDS,
            f"no coordinator of {kind} {name}",
        )

    def wait_until_replicated(self, replicas: int) -> None:
        """Wait until each partition of each topic has a number of replicas in sync, and a leader.

        Kafka's internal topics are included.
        """
        wait_until(
            lambda: self._is_replicated(replicas), REPLICATED_SECONDS, f"not {replicas} in sync"
        )

    def grow(self, topics: Mapping[str, int]) -> None:
        """Give topics more partitions, by name with the new count; wait until all have leaders."""
        grown = self._admin.create_partitions(
            [NewPartitions(name, count) for name, count in topics.items()],
            operation_timeout=KAFKA_SECONDS,
        )
        for done in grown.values():
            done.result(KAFKA_SECONDS)
        for name, count in topics.items():
            for number in range(count):
                self.leader(name, number)

    def ends(self, topics: Iterable[str], level: IsolationLevel) -> dict[Partition, int]:
        """Return the end of each partition: the stable offset, or the high watermark."""
        names = list(topics)
        # A leader may have died a moment ago.
        return wait_until(lambda: self._ends(names, level), KAFKA_SECONDS, f"no ends of {names}")

    def hidden(self, topics: Iterable[str], seconds: float) -> dict[Partition, int]:
        """Return the partitions whose stable offset does not pass their present end in a time.

        The value of each is the stable offset. Open transactions that end in time hide nothing.
        """
        names = list(topics)
        ends = self.ends(names, "read_uncommitted")
        deadline = time.monotonic() + seconds
        while True:
            stable = self.ends(names, "read_committed")
            hidden = {one: stable[one] for one, end in ends.items() if stable[one] < end}
            if not hidden or time.monotonic() > deadline:
                return hidden
            time.sleep(POLL_SECONDS)

    def _ends(self, topics: list[str], level: IsolationLevel) -> dict[Partition, int] | None:
        try:
            asked = self._admin.list_offsets(
                {
                    TopicPartition(topic, number): OffsetSpec.latest()  # type: ignore[no-untyped-call]
                    for topic in topics
                    for number in self._metadata(topic)
                },
                isolation_level=LEVELS[level],
                request_timeout=ANSWER_SECONDS,
            )
            return {
                (one.topic, one.partition): answer.result(KAFKA_SECONDS).offset
                for one, answer in asked.items()
            }
        except KafkaException:
            return None

    def _metadata(self, topic: str) -> dict[int, PartitionMetadata]:
        """Return the partitions of a topic. A broker that was asked may have died a moment ago."""
        return wait_until(lambda: self._try_metadata(topic), KAFKA_SECONDS, f"no {topic}")

    def _try_metadata(self, topic: str) -> dict[int, PartitionMetadata] | None:
        try:
            found = self._admin.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic]
        except KafkaException:
            return None
        return dict(found.partitions)

    def _is_replicated(self, replicas: int) -> bool:
        try:
            topics = self._admin.list_topics(timeout=ANSWER_SECONDS).topics.values()
        except KafkaException:
            return False
        return all(
            len(partition.isrs) >= replicas and partition.leader >= 0
            for topic in topics
            for partition in topic.partitions.values()
        )


async def _coordinator(bootstrap: str, kind: str, name: str) -> int | None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await client.bootstrap()
            return int(await client.coordinator_lookup(COORDINATORS[kind], name))
    except (KafkaError, TimeoutError):
        return None
    finally:
        await client.close()
