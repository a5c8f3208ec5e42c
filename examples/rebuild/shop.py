"""The shop goes on: stores new events and publishes them, as the shop's services do.

Some events are late: their time is a second in the past, or Kafka has them before the store has.

Usage: ``python examples/rebuild/shop.py KAFKA MONGO DATABASE SKIP EVENTS_PER_SECOND``. The events
go on where the first ``SKIP`` events of the history end. SIGTERM or Ctrl-C ends the program between
two events, so that store and Kafka have the same. The last line of the output is the number of
events.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
from aiokafka import AIOKafkaProducer
from bson import ObjectId

from replay_app.demo.shop import shop_events
from replay_app.events import EventMapping, event_value

EVENTS = 10**9
"""More than anybody waits for."""
OLD_TIME_EVERY = 10
STORED_LATE_EVERY = 25
LATE = timedelta(seconds=1)


async def sell(kafka: str, events: Any, skip: int, per_second: float) -> int:
    """Store and publish events until a signal comes; return how many there were."""
    stop = asyncio.Event()
    for sent in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sent, stop.set)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True)
    await producer.start()
    count = 0
    try:
        for number, event in enumerate(itertools.islice(shop_events(EVENTS), skip, None)):
            now = datetime.now(UTC)
            event["timestamp"] = now - LATE if number % OLD_TIME_EVERY == 0 else now
            event["_id"] = ObjectId()
            if number % STORED_LATE_EVERY == 0:
                await publish(producer, event)
                await asyncio.sleep(LATE.total_seconds() / 3)
                await asyncio.to_thread(events.insert_one, event)
            else:
                await asyncio.to_thread(events.insert_one, event)
                await publish(producer, event)
            count += 1
            try:
                await asyncio.wait_for(stop.wait(), 1 / per_second)
            except TimeoutError:
                continue
            break
    finally:
        await producer.stop()
    return count


async def publish(producer: AIOKafkaProducer, event: dict[str, Any]) -> None:
    """Publish an event to its topic, with the value that a replay would have."""
    await producer.send_and_wait(
        event["topic"], event_value(event, EventMapping()), event["aggregate_id"].encode()
    )


if __name__ == "__main__":
    if len(sys.argv) != 6:  # noqa: PLR2004 - the program and its five arguments
        sys.exit("usage: shop.py KAFKA MONGO DATABASE SKIP EVENTS_PER_SECOND")
    bootstrap, mongo, database, skip, per_second = sys.argv[1:]
    with pymongo.MongoClient[dict[str, Any]](mongo) as client:
        stored = client[database]["events"]
        print(asyncio.run(sell(bootstrap, stored, int(skip), float(per_second))))
