"""The history that is replayed: events of one exact size, with JSON types and a date."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import struct
from collections.abc import Iterator
from typing import Any

import bson
import pymongo
from bson import ObjectId
from bson.raw_bson import RawBSONDocument

DATABASE = "bench"
TOPICS = ("orders", "payments")
PARTITIONS = 4
EVENT_TYPES = (
    *("order_placed", "order_confirmed", "order_shipped", "order_completed"),
    *("payment_requested", "payment_received", "payment_refunded", "payment_failed"),
)
EVENTS_PER_AGGREGATE = 50
BEGIN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
INSERT_EVENTS = 5_000
RICH_BYTES = 430
"""Smaller events have fewer fields."""
WORDS = (
    *("parcel", "warm", "letter", "market", "over", "green", "river"),
    *("number", "seven", "garden", "quick", "table", "paper"),
)


def seed(mongo: str, collection: str, count: int, size: int, per_aggregate: int) -> None:
    """Fill a collection with ``count`` events of ``size`` bytes, and indexes for both orders."""
    with pymongo.MongoClient[RawBSONDocument](mongo, document_class=RawBSONDocument) as client:
        events = client[DATABASE][collection]
        # Before the events: the Rust store fills an index in one transaction, limited by its cache.
        events.create_index([("timestamp", 1), ("_id", 1)])
        events.create_index([("aggregate_id", 1), ("timestamp", 1), ("_id", 1)])
        stream = (RawBSONDocument(raw) for raw in history(count, size, per_aggregate))
        while batch := list(itertools.islice(stream, INSERT_EVENTS)):
            events.insert_many(batch, ordered=False)


def drop(mongo: str, collection: str) -> None:
    """Remove a collection."""
    with pymongo.MongoClient[RawBSONDocument](mongo) as client:
        client[DATABASE].drop_collection(collection)


def history(count: int, size: int, per_aggregate: int = EVENTS_PER_AGGREGATE) -> Iterator[bytes]:
    """Yield the events as BSON, oldest first; two of them share each millisecond."""
    rng = random.Random(size)
    words = " ".join(rng.choices(WORDS, k=size))
    aggregates = max(1, count // per_aggregate)
    for index in range(count):
        event = _event(index, index * 7919 % aggregates, rng)
        if size < RICH_BYTES:
            del event["metadata"], event["version"]
            event["data"] = {"note": ""}
        missing = size - len(bson.encode(event))
        if missing < 0:
            raise ValueError(f"no event of this kind has only {size} bytes")
        start = rng.randrange(len(words) - missing + 1)
        event["data"]["note"] = words[start : start + missing]
        yield bson.encode(event)


def aggregate_id(number: int) -> str:
    """Return the id of one aggregate."""
    return f"order-{number:07d}"


def _event(index: int, aggregate: int, rng: random.Random) -> dict[str, Any]:
    place = index % len(EVENT_TYPES)
    number = f"{rng.getrandbits(64):016x}"
    return {
        "_id": ObjectId(struct.pack(">IQ", int(BEGIN.timestamp()) + index // 1000, index)),
        "event_id": f"{number[:8]}-{number[8:12]}-4{number[13:]}-8000-{index:012x}",
        "event_type": EVENT_TYPES[place],
        "aggregate_id": aggregate_id(aggregate),
        "timestamp": BEGIN + dt.timedelta(milliseconds=index // 2),
        "topic": TOPICS[place // 4],
        "version": index // 50,
        "metadata": {"user_id": f"u-{index % 997:05d}", "correlation_id": f"c-{number}"},
        "data": {
            "customer": {"id": index % 997, "country": "SE", "vip": index % 10 == 0},
            "lines": [{"sku": f"A-{index % 89:03d}", "quantity": 2, "price": 12.5}],
            "total": round(index % 10_000 / 100, 2),
            "currency": "EUR",
            "note": "",
        },
    }
