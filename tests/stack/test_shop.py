"""The demo's history looks like a real shop's, and is always the same."""

from __future__ import annotations

import datetime as dt
import itertools
import statistics
from typing import Any

import bson
import pymongo
from support import unique_name

from replay_app.demo.shop import EVENT_TYPES, SHOP_TOPICS, seed_store, shop_events
from replay_app.demo.stack import Stack

EVENTS = list(shop_events(5_000))


def test_the_same_seed_gives_the_same_events() -> None:
    assert list(shop_events(5_000)) == EVENTS


def test_another_seed_gives_other_events_with_other_ids() -> None:
    other = list(shop_events(5_000, seed=2))
    assert {event["_id"] for event in other}.isdisjoint(event["_id"] for event in EVENTS)
    assert {event["event_id"] for event in other}.isdisjoint(event["event_id"] for event in EVENTS)


def test_events_stream_from_a_history_of_any_length() -> None:
    assert len(list(itertools.islice(shop_events(10**12), 3))) == 3


def test_ids_are_unique_and_ascend_with_time() -> None:
    keys = [(event["timestamp"], event["_id"]) for event in EVENTS]
    assert keys == sorted(set(keys))
    assert len({event["event_id"] for event in EVENTS}) == len(EVENTS)


def test_the_history_fills_january_2026() -> None:
    assert EVENTS[0]["timestamp"] == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    assert EVENTS[-1]["timestamp"].date() == dt.date(2026, 1, 31)


def test_runs_of_events_share_a_timestamp_also_across_services() -> None:
    runs = [list(run) for _, run in itertools.groupby(EVENTS, lambda event: event["timestamp"])]
    assert max(len(run) for run in runs) >= 4
    assert any(len({event["service"] for event in run}) > 1 for run in runs)
    assert any(len(run) == 1 for run in runs)


def test_every_event_type_and_topic_occurs() -> None:
    assert {event["event_type"] for event in EVENTS} == set(EVENT_TYPES)
    assert {event["topic"] for event in EVENTS} == set(SHOP_TOPICS)


def test_each_aggregate_counts_its_versions_without_a_gap() -> None:
    versions: dict[str, list[int]] = {}
    for event in EVENTS:
        versions.setdefault(event["aggregate_id"], []).append(event["version"])
    for aggregate_id, counted in versions.items():
        assert counted == list(range(1, len(counted) + 1)), aggregate_id


def test_documents_have_the_size_of_real_events() -> None:
    sizes = [len(bson.encode(event)) for event in EVENTS]
    assert 500 <= statistics.mean(sizes) <= 700
    assert min(sizes) > 400
    assert max(sizes) < 900


def test_texts_are_not_ascii_and_some_have_emoji() -> None:
    text = str([event["data"] for event in EVENTS])
    assert not text.isascii()
    assert any(ord(character) > 0xFFFF for character in text)


def test_a_seeded_store_holds_the_history_in_another_order_with_its_index(stack: Stack) -> None:
    name = unique_name("shop")
    with pymongo.MongoClient[dict[str, Any]](stack.mongo, tz_aware=True) as client:
        try:
            seed_store(stack.mongo, name, "events", 6_000)
            seed_store(stack.mongo, name, "events", 5_000, drop=True)
            stored = client[name]["events"]
            assert [event["_id"] for event in stored.find()] != [event["_id"] for event in EVENTS]
            assert list(stored.find().sort([("timestamp", 1), ("_id", 1)])) == EVENTS
            assert [("timestamp", 1), ("_id", 1)] in [
                index["key"] for index in stored.index_information().values()
            ]
        finally:
            client.drop_database(name)
