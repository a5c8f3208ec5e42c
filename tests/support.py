"""What tests of several kinds share: names, topics, reading a topic, waiting for a condition."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from replay_app.events import STRICT

KAFKA_SECONDS = 30.0
AWARE = STRICT.with_options(tz_aware=True)
"""How tests read the store: as the program does, but with times that say that they are UTC."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic, as any consumer sees it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes | None]


def unique_name(prefix: str) -> str:
    """Return a name that no other test uses; allowed for topics, groups and databases."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def create_topics(
    bootstrap: str, partitions: Mapping[str, int], config: Mapping[str, str] | None = None
) -> None:
    """Create topics, by name with their partition counts, and wait until the broker serves them."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    created = admin.create_topics(
        [
            NewTopic(name, num_partitions=count, config=dict(config or {}))
            for name, count in partitions.items()
        ],
        operation_timeout=KAFKA_SECONDS,
    )
    for done in created.values():
        done.result(KAFKA_SECONDS)
    wait_until(
        lambda: partitions.keys() <= admin.list_topics(timeout=KAFKA_SECONDS).topics.keys(),
        KAFKA_SECONDS,
        f"the broker never served {sorted(partitions)}",
    )


def purge_topics(bootstrap: str, *topics: str) -> None:
    """Delete all records of the topics, as their retention would; the offsets go on."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    metadata = admin.list_topics(timeout=KAFKA_SECONDS).topics
    purged = admin.delete_records(
        [
            TopicPartition(topic, partition, OFFSET_END)
            for topic in topics
            for partition in metadata[topic].partitions
        ],
        operation_timeout=KAFKA_SECONDS,
    )
    for done in purged.values():
        done.result(KAFKA_SECONDS)


def delete_topic(bootstrap: str, topic: str) -> None:
    """Delete a topic and wait until the broker has forgotten it."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.delete_topics([topic], operation_timeout=KAFKA_SECONDS)[topic].result(KAFKA_SECONDS)
    wait_until(
        lambda: topic not in admin.list_topics(timeout=KAFKA_SECONDS).topics,
        KAFKA_SECONDS,
        f"the broker never forgot {topic}",
    )


def newest_by_key(bootstrap: str, topic: str) -> dict[bytes, bytes | None]:
    """Return the newest value of each key of a compacted topic; None: it was deleted."""
    records = sorted(read_topic(bootstrap, topic), key=lambda one: (one.partition, one.offset))
    return {record.key or b"": record.value for record in records}


def read_topic(
    bootstrap: str,
    topics: str | Sequence[str],
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed",
    *,
    deadline_seconds: float = 120.0,
) -> list[Record]:
    """Read topics from their beginning to their present end, with librdkafka.

    Under read_committed the end is where the first open transaction begins. The records of one
    partition are in its order; partitions are mixed.
    """
    names = [topics] if isinstance(topics, str) else list(topics)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": unique_name("reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,  # also behind a transaction's marker, which is no record
            "isolation.level": isolation_level,
            "check.crcs": True,
        }
    )
    records: list[Record] = []
    try:
        partitions = [
            TopicPartition(name, partition, OFFSET_BEGINNING)
            for name in names
            for partition in _partitions(consumer, name)
        ]
        consumer.assign(partitions)
        unread = {(one.topic, one.partition) for one in partitions}
        deadline = time.monotonic() + deadline_seconds
        while unread:
            if time.monotonic() > deadline:
                raise AssertionError(f"{sorted(unread)} not read in {deadline_seconds} s")
            for message in consumer.consume(10_000, timeout=0.2):
                error = message.error()
                if error is None:
                    records.append(_record(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic(), message.partition()))
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return records


def wait_until(
    predicate: Callable[[], Answer], deadline_seconds: float, message: str = "not in time"
) -> Answer:
    """Call the predicate until its answer is true, and return that.

    Raises `AssertionError` with the message and the last answer when the deadline has passed.
    """
    deadline = time.monotonic() + deadline_seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} (after {deadline_seconds} s: {answer!r})")
        time.sleep(0.05)


def _partitions(consumer: Consumer, topic: str) -> Sequence[int]:
    metadata = consumer.list_topics(topic, timeout=KAFKA_SECONDS).topics[topic]
    if metadata.error is not None:
        raise KafkaException(metadata.error)
    return sorted(metadata.partitions)


def _record(message: Message) -> Record:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return Record(
        topic,
        partition,
        offset,
        message.timestamp()[1],
        _bytes(message.key()),
        _bytes(message.value()),
        {header[0]: _bytes(header[1]) for header in message.headers() or ()},
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
