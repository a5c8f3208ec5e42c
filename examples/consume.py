"""Rebuild a projection from one replay, while live events arrive in the same topic.

The projection in this example is the number of events of each aggregate::

    replay-app start --replay-id rebuild-1 --all --control-records --to-original
    python examples/consume.py localhost:9092 shop.orders rebuild-1

A real projection writes its rows and the state of the `ReplayReader` in one transaction of its
database. This example keeps both in memory, and each run starts from the beginning of the topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from replay_app.consumer import ReplayReader


class Rebuild:
    """The number of events of each aggregate, counted from one replay."""

    def __init__(self, replay_id: str, partitions: set[tuple[str, int]]) -> None:
        self.events: Counter[str] = Counter()
        self.replay = ReplayReader(replay_id, partitions)

    def apply(self, record: ConsumerRecord) -> str:
        """Apply one record; return in one word what the record was."""
        what = self.replay.take(record.topic, record.partition, record.offset, record.headers)
        if what == "live":
            pass  # side effects, such as mails and payments, belong here
        elif what == "event":
            self.events[record.key.decode()] += 1
        return what


async def consume(bootstrap: str, topic: str, replay_id: str) -> None:
    """Print what each record of a topic is until the replay has ended, then print the counts."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",  # or records of aborted slices would be seen too
    )
    await consumer.start()
    try:
        partitions = consumer.partitions_for_topic(topic) or set()
        rebuild = Rebuild(replay_id, {(topic, number) for number in partitions})
        async for record in consumer:
            what = rebuild.apply(record)
            print(f"{record.topic}[{record.partition}] {record.offset}: {what}")
            if rebuild.replay.is_complete or rebuild.replay.is_cancelled:
                break
        for aggregate, events in rebuild.events.most_common():
            print(f"{aggregate}: {events} events")
    finally:
        await consumer.stop()


if __name__ == "__main__":
    if len(sys.argv) != 4:  # noqa: PLR2004 - the program and its three arguments
        sys.exit("usage: consume.py BOOTSTRAP_SERVERS TOPIC REPLAY_ID")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(consume(*sys.argv[1:]))
