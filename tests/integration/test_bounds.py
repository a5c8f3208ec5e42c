"""The last event of a replay: the bound up to it, and with it, on a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Binary, Int64, ObjectId
from pymongo.collection import Collection

from replay_app.bounds import bounds_of, freeze_bounds
from replay_app.commands import Start
from replay_app.counts import count_events, count_timed
from replay_app.destinations import Destination
from replay_app.event_records import read_event_records
from replay_app.events import LENIENT
from replay_app.exceptions import ReplayFailed
from replay_app.plans import Planner
from replay_app.readers import Readers
from replay_app.reports import Plan
from replay_app.settings import Settings
from replay_app.store import EventStore

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
IDS = (
    *(1, 2.5, Int64(7), "a", "b", ObjectId("65920080000001000000002a"), b"\0"),
    *(Binary(bytes(16), 3), Binary(b"\1" * 16, 3), Binary(b"\2" * 16, 4), Binary(b"\3" * 16, 4)),
    *({"a": Binary(bytes(16), 3)}, T0),
)
"""Ids of many types. The store says in which order they are."""


async def describe(names: Iterable[str]) -> dict[str, Destination]:
    return {name: Destination(1) for name in names}


def event(number: int, time: Any, **fields: Any) -> Document:
    return {
        "_id": number,
        "event_id": f"e-{number}",
        "timestamp": time,
        "event_type": "placed",
        "aggregate_id": f"a-{number % 3}",
    } | fields


def until(event_id: str | int, **fields: Any) -> Start:
    return Start.model_validate({"replay_id": "r", "until_event_id": event_id, **fields})


async def planned(settings: Settings, store: EventStore, start: Start) -> Plan:
    return await Planner(start, settings, store, describe).plan()


async def read(store: EventStore, settings: Settings, start: Start, plan: Plan) -> set[Any]:
    """Return the event ids of all shards, as a worker would read them."""
    found: set[Any] = set()
    readers = Readers(lambda _start: (settings, store), lambda _key: False, 1)
    for number, shard in enumerate(plan.shards):
        while True:
            _, page = await readers.next_page(str(number), start, shard, None)
            if page is None:
                break
            found |= {one["event_id"] for one in bson.decode_all(page, codec_options=LENIENT)}
        await readers.drop(str(number))
    await readers.close()
    return found


TIMES: dict[str, Callable[[int], Any]] = {
    "date": lambda number: T0 + timedelta(seconds=number),
    "iso": lambda number: (T0 + timedelta(seconds=number / 4)).isoformat()[:19] + "Z",
    "epoch_ms": lambda number: 1_767_225_600_000 + number * 0.25,
}
"""Times of events. Of the last two kinds, four events have about the same time."""


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("ordering", ["global", "aggregate"])
async def test_the_last_event_is_read_and_none_behind_it(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    kind: str,
    ordering: str,
) -> None:
    settings = settings.replaced({"timestamp_type": kind})
    store = store.at(settings)
    events.insert_many(event(number, TIMES[kind](number)) for number in range(20))
    events.insert_one(event(30, None))  # without a time
    start = until("e-9", ordering=ordering)
    plan = await planned(settings, store, start)
    assert await read(store, settings, start, plan) == {f"e-{number}" for number in range(10)}
    assert plan.matched == 10
    bounds = bounds_of(start, plan)
    assert (await count_events(start, settings, store, bounds)).total == 10
    assert await count_timed(start, settings, store, bounds, 10, 60) == 10
    pages = [page async for page in read_event_records(start, settings, store)]
    assert {one.event_id for page in pages for one in page} == {f"e-{n}" for n in range(10)}


async def test_events_of_the_same_time_are_told_apart_by_ids_of_any_type(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(0, T0, _id=one, event_id=f"e-{n}") for n, one in enumerate(IDS))
    order = [one["event_id"] for one in events.find().sort([("timestamp", 1), ("_id", 1)])]
    for number, last in enumerate(order, 1):
        start = until(last)
        plan = await planned(settings, store, start)
        assert await read(store, settings, start, plan) == {*order[:number]}
        assert plan.matched == number
        assert plan.end == T0 + timedelta(milliseconds=1)


async def test_the_last_event_need_not_match_the_filter(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(number, TIMES["date"](number)) for number in range(9))
    start = until("e-5", filter={"aggregate_ids": ["a-0"]})
    plan = await planned(settings, store, start)
    assert await read(store, settings, start, plan) == {"e-0", "e-3"}


async def test_the_bound_stays_when_the_event_is_gone(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(number, TIMES["date"](number)) for number in range(9))
    start = until("e-5")
    plan = await planned(settings, store, start)
    events.delete_one({"event_id": "e-5"})
    again = await Planner(start, settings, store, describe).plan(plan)
    assert (again.end, again.until, again.matched) == (plan.end, plan.until, 5)


@pytest.mark.parametrize(
    ("event_id", "fields", "told"),
    [
        ("never", {}, "there is no event 'never' (until_event_id) in"),
        (7, {}, "there is no event 7 (until_event_id) in"),
        ("twice", {}, "the event 'twice' (until_event_id) is stored more than once"),
        ("late", {"filter": {"end": "2026-01-02T00:00:00Z"}}, "lies outside of the times"),
        ("e-1", {"filter": {"start": "2026-01-02T00:00:00Z"}}, "lies outside of the times"),
        ("untimed", {}, "the event 'untimed' (until_event_id) has no place in the order"),
        ("text", {}, "the event 'text' (until_event_id) has no place in the order"),
    ],
)
async def test_a_last_event_without_a_place_fails_the_plan(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    event_id: str | int,
    fields: Document,
    told: str,
) -> None:
    events.insert_many(event(number, TIMES["date"](number)) for number in range(3))
    events.insert_many(
        [
            event(10, T0, event_id="twice"),
            event(11, T0, event_id="twice"),
            event(12, T0 + timedelta(days=9), event_id="late"),
            {"_id": 13, "event_id": "untimed", "event_type": "placed"},
            event(14, "yesterday", event_id="text"),
        ]
    )
    with pytest.raises(ReplayFailed) as refused:
        await freeze_bounds(until(event_id, **fields), settings.mapping, store)
    assert told in str(refused.value)
