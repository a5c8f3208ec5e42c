"""The broker: fresh topics for each run, and what came to stand in them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

ANSWER_SECONDS = 30.0
COUNT_SECONDS = 300.0


def create_topics(kafka: str, partitions: Mapping[str, int]) -> None:
    """Create topics and wait until the broker serves them."""
    admin = AdminClient(_client(kafka))
    created = admin.create_topics([NewTopic(name, count) for name, count in partitions.items()])
    for done in created.values():
        done.result(ANSWER_SECONDS)
    deadline = time.monotonic() + ANSWER_SECONDS
    while not partitions.keys() <= admin.list_topics(timeout=ANSWER_SECONDS).topics.keys():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the broker does not serve {sorted(partitions)}")
        time.sleep(0.02)


def delete_topics(kafka: str, *prefixes: str) -> None:
    """Delete all topics whose names begin so."""
    admin = AdminClient(_client(kafka))
    names = [t for t in admin.list_topics(timeout=ANSWER_SECONDS).topics if t.startswith(prefixes)]
    for done in (admin.delete_topics(names) if names else {}).values():
        done.result(ANSWER_SECONDS)


def read_committed(kafka: str, partitions: Mapping[str, int], *, wait_ms: int = 100) -> Consumer:
    """Return a consumer at the beginning of the topics' partitions, one without a group."""
    consumer = Consumer(
        {
            **_client(kafka),
            "group.id": f"bench-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": wait_ms,
        }
    )
    consumer.assign(_assignment(partitions))
    return consumer


def count_records(kafka: str, partitions: Mapping[str, int]) -> int:
    """Count the records that a read_committed consumer gets, by reading them all."""
    consumer = Consumer(
        {
            **_client(kafka),
            "group.id": f"bench-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    assignment = _assignment(partitions)
    unread = {(one.topic, one.partition) for one in assignment}
    deadline = time.monotonic() + COUNT_SECONDS
    records = 0
    try:
        consumer.assign(assignment)
        while unread:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{sorted(unread)} could not be read to the end")
            for message in consumer.consume(20_000, timeout=0.1):
                error = message.error()
                if error is None:
                    records += 1
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                    unread.discard((message.topic(), message.partition()))
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return records


def _client(kafka: str) -> dict[str, Any]:
    return {"bootstrap.servers": kafka, "log_level": 3}  # errors only


def _assignment(partitions: Mapping[str, int]) -> list[TopicPartition]:
    return [
        TopicPartition(name, number, OFFSET_BEGINNING)
        for name, count in partitions.items()
        for number in range(count)
    ]
