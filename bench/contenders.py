"""The limits of this machine, and what a user would write without this program.

``contenders.py NAME`` runs one contender and prints its figures as one line of JSON. The time
includes connecting, but not the imports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import orjson
import pymongo
import uvloop
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from history import DATABASE, PARTITIONS, TOPICS
from motor.motor_asyncio import AsyncIOMotorClient
from pydantic import SecretStr
from pymongo.collection import Collection

from replay_app.commands import Target
from replay_app.encoders import make_encoder
from replay_app.pages import EncodeSpec
from replay_app.publisher import FencedProducer
from replay_app.readers import PageReader
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.worker import tune_memory

READ_EVENTS = 10_000
"""Events in one batch of the cursor; larger batches are not faster."""
PAGE_EVENTS = 5_000
"""The worker's pages."""
SORT = [("timestamp", pymongo.ASCENDING), ("_id", pymongo.ASCENDING)]
ORDERS = {"global": SORT, "aggregate": [("aggregate_id", pymongo.ASCENDING), *SORT]}
READ_SECONDS = 60.0
BATCH_BYTES = 900_000
"""The same as the worker's; the defaults of the clients are slower."""
UTC_WITH_Z = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
REPLAY_ID = "rebuild-orders-1"

Document = dict[str, Any]
Figures = dict[str, float]


class Options(argparse.Namespace):
    """The command line of a contender."""

    mongo: str
    kafka: str
    collection: str
    query: dict[str, Any]
    prefix: str
    codec: str
    limit: int
    order: str


@contextmanager
def measure(figures: Figures) -> Iterator[None]:
    """Measure the block: time, and CPU of all threads of this process."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    figures["seconds"] = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures["peak_rss_bytes"] = after.ru_maxrss * 1024


# The limits


def raw_read(options: Options) -> Figures:
    """Read the same events in the same order, and do nothing else."""
    figures: Figures = {"bytes": 0}
    with measure(figures), _events(options) as events:
        cursor = events.find_raw_batches(options.query, sort=SORT, batch_size=READ_EVENTS)
        for page in cursor:
            figures["bytes"] += len(page)
    return figures


def librdkafka(options: Options) -> Figures:
    """Produce the same records, which are encoded before and held in memory."""
    with _events(options) as events:
        records = [_record(event, options) for event in events.find(options.query, sort=SORT)]
    figures: Figures = {}
    with measure(figures):
        _produce(records, options)
    return figures


def first_page(options: Options) -> Figures:
    """Wait for the first page of the query that a replay makes, in the order of the replay.

    A replay cannot be faster than its store.
    """
    figures: Figures = {}
    query = {"timestamp": {"$lt": datetime.now(UTC), "$not": {"$type": "array"}}}
    with measure(figures), _events(options) as events:
        cursor = events.find_raw_batches(query, sort=ORDERS[options.order], batch_size=PAGE_EVENTS)
        figures["bytes"] = len(next(cursor))
        cursor.close()
    figures["first_page_seconds"] = figures["seconds"]
    return figures


# What a user would write


def confluent(options: Options) -> Figures:
    """Read with pymongo, encode with orjson, publish with confluent-kafka."""
    figures: Figures = {}
    with measure(figures), _events(options) as events:
        found = events.find(options.query, sort=SORT, batch_size=READ_EVENTS)
        _produce((_record(event, options) for event in found), options)
    return figures


def lean(options: Options) -> Figures:
    """Do the same as `confluent`, with one header only: nobody could find a single record again."""
    figures: Figures = {}
    headers = [("replay-id", REPLAY_ID.encode())]
    with measure(figures), _events(options) as events:
        found = events.find(options.query, sort=SORT, batch_size=READ_EVENTS)
        _produce(((*_record(event, options)[:3], headers) for event in found), options)
    return figures


def aiokafka_send(options: Options) -> Figures:
    """Read with motor, publish with aiokafka's send()."""

    async def publish() -> None:
        async with _producer(options, linger_ms=20) as producer:
            async for event in _motor_events(options):
                await producer.send(**_keywords(_record(event, options)))
            await producer.flush()

    return _run(publish)


def aiokafka_send_and_wait(options: Options) -> Figures:
    """Read with motor, publish with aiokafka's send_and_wait(): one event at a time."""

    async def publish() -> None:
        async with _producer(options) as producer:
            async for event in _motor_events(options):
                await producer.send_and_wait(**_keywords(_record(event, options)))

    return _run(publish)


def status_updates(options: Options) -> Figures:
    """Publish one event at a time, and store the progress after each event."""

    async def publish() -> None:
        client: Any = AsyncIOMotorClient(options.mongo)
        progress = client[DATABASE]["progress"]
        async with _producer(options) as producer:
            async for event in _motor_events(options):
                identity = event["_id"]
                await producer.send_and_wait(**_keywords(_record(event, options)))
                await progress.update_one(
                    {"_id": options.prefix},
                    {"$inc": {"published": 1}, "$set": {"last": identity}},
                    upsert=True,
                )

    return _run(publish)


# This program's parts


def bare_loop(options: Options) -> Figures:
    """Read, encode and send as the worker does, and nothing else.

    One transaction for all events; no checkpoint, report or plan, and no Faust. The difference to
    a worker is the cost of these. The time counts from the first page on.
    """
    settings = Settings(
        kafka=options.kafka,
        mongo=SecretStr(options.mongo),
        mongo_database=DATABASE,
        mongo_collection=options.collection,
        compression=cast("Any", options.codec),
    )
    spec = EncodeSpec(
        mapping=settings.mapping,
        target=Target(prefix=options.prefix),
        replay_id=REPLAY_ID,
        attempt=1,
        name=None,
        reason=None,
        partitions={options.prefix + topic: PARTITIONS for topic in TOPICS},
        cursor_fields=("timestamp", "_id"),
        stop_at_failure=True,
        include_replayed=False,
        record_timestamp="append",
        compression=options.codec,
        max_record_bytes=settings.max_record_bytes,
    )

    figures: Figures = {}

    async def publish() -> None:
        reader = PageReader(
            EventStore(settings), options.query, spec.cursor_fields, settings.page_events, None
        )
        producer = await FencedProducer(settings, settings.kafka, "bench-bare-loop").start()
        encoder = make_encoder(spec, settings.encoder)
        sending: asyncio.Task[None] | None = None
        await reader.ready()
        await producer.begin()
        with measure(figures):
            while (page := await reader.next(READ_SECONDS)) is not None:
                now_ms = time.time_ns() // 1_000_000
                encoded = await asyncio.to_thread(encoder.encode, page, now_ms)
                if sending is not None:
                    await sending
                sending = asyncio.create_task(producer.send_batches(encoded.batches, {}))
            if sending is not None:
                await sending
            await producer.commit()
        await producer.discard()

    tune_memory()
    uvloop.run(publish())
    return figures


CONTENDERS: dict[str, Callable[[Options], Figures]] = {
    one.__name__: one
    for one in (
        *(raw_read, first_page, librdkafka, confluent, lean),
        *(aiokafka_send, aiokafka_send_and_wait, status_updates, bare_loop),
    )
}

# What they share

Record = tuple[str, bytes, bytes, list[tuple[str, bytes]]]
"""Topic, key, value, headers."""


def _record(event: Document, options: Options) -> Record:
    """Return what the worker would publish for the event; it loses its ``_id``."""
    del event["_id"]
    moment: datetime = event["timestamp"]
    headers = [
        ("replay-id", REPLAY_ID.encode()),
        ("replay-attempt", b"1"),
        ("replay-original-time", f"{moment.isoformat(timespec='milliseconds')}Z".encode()),
        ("replay-delivery-id", f"{REPLAY_ID}:{event['event_id']}".encode()),
    ]
    topic = options.prefix + event["topic"]
    return topic, event["aggregate_id"].encode(), orjson.dumps(event, option=UTC_WITH_Z), headers


@contextmanager
def _events(options: Options) -> Iterator[Collection[Document]]:
    with pymongo.MongoClient[Document](options.mongo) as client:
        yield client[DATABASE][options.collection]


def _motor_events(options: Options) -> Any:
    client: Any = AsyncIOMotorClient(options.mongo)
    events = client[DATABASE][options.collection]
    found = events.find(options.query, sort=SORT, batch_size=READ_EVENTS)
    return found.limit(options.limit) if options.limit else found


def _produce(records: Any, options: Options) -> None:
    producer = Producer(
        {
            "bootstrap.servers": options.kafka,
            "log_level": 3,  # errors only
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "compression.type": options.codec,
            "linger.ms": 20,
            "batch.size": BATCH_BYTES,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 128 * 1024,
        }
    )
    for topic, key, value, headers in records:
        while True:
            try:
                producer.produce(topic, value, key, headers=headers)
            except BufferError:
                producer.poll(0.05)
            else:
                break
    if producer.flush(120):
        raise TimeoutError("the broker did not take all records")


def _producer(options: Options, **more: Any) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=options.kafka,
        enable_idempotence=True,
        compression_type=None if options.codec == "none" else options.codec,
        max_batch_size=BATCH_BYTES,
        **more,
    )


def _keywords(record: Record) -> dict[str, Any]:
    return dict(zip(("topic", "key", "value", "headers"), record, strict=True))


def _run(publish: Callable[[], Any]) -> Figures:
    figures: Figures = {}
    with measure(figures):
        uvloop.run(publish())
    return figures


def main() -> int:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--mongo", required=True)
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--query", type=json.loads, default={}, help="a MongoDB filter as JSON")
    parser.add_argument("--prefix", default="", help="put before the topics' names")
    parser.add_argument("--codec", default="none")
    parser.add_argument("--order", choices=ORDERS, default="global")
    parser.add_argument("--limit", type=int, default=0, help="only so many events; 0: all")
    options = parser.parse_args(namespace=Options())
    print(json.dumps(CONTENDERS[options.name](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
