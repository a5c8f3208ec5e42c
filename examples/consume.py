"""Rebuild a projection from one replay, while live events arrive in the same topic.

The projection in this example is the number of events of each aggregate::

    replay-app start --replay-id rebuild-1 --control-records
    python examples/consume.py localhost:9092 shop.orders rebuild-1

A real projection writes its state, the delivery ids that it has seen, and the consumer's offsets
in one transaction of its database. This example keeps them in memory, and each run starts from the
beginning of the topic.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter

from aiokafka import AIOKafkaConsumer, ConsumerRecord

from replay_app.consumer import provenance


class Rebuild:
    """The number of events of each aggregate, counted from one replay."""

    def __init__(self, replay_id: str, partitions: set[int]) -> None:
        self.events: Counter[str] = Counter()
        self._replay_id = replay_id
        self._unfinished = set(partitions)
        self._seen: set[str] = set()

    @property
    def is_complete(self) -> bool:
        """Whether every partition has had its `end` control record."""
        return not self._unfinished

    def apply(self, record: ConsumerRecord) -> str:
        """Apply one record; return in a few words what the record was."""
        replayed = provenance(record.headers)
        if replayed is None:
            return "live"  # side effects, such as mails and payments, belong here
        if replayed.replay_id != self._replay_id:
            return "of another replay"
        if replayed.control is not None:  # a control record: key and value are null
            if replayed.control == "end":
                self._unfinished.discard(record.partition)
            return replayed.control
        # read_committed delivers each event once. The check is for a consumer that starts again
        # from an older offset.
        if replayed.delivery_id in self._seen:
            return "duplicate"
        if replayed.delivery_id is not None:
            self._seen.add(replayed.delivery_id)
        self.events[record.key.decode()] += 1
        return "replayed"


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
        rebuild = Rebuild(replay_id, consumer.partitions_for_topic(topic) or set())
        async for record in consumer:
            what = rebuild.apply(record)
            print(f"{record.topic}[{record.partition}] {record.offset}: {what}")
            if rebuild.is_complete:
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
