"""The shards of a replay in aggregate order, on a real store: even, complete, and found in time."""

from __future__ import annotations

import asyncio
import random
import struct
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import ObjectId
from pymongo.collection import Collection
from support import AWARE

from replay_app.commands import Filter, Start
from replay_app.cuts import ID_TYPES, Range, find_ranges
from replay_app.destinations import Destination
from replay_app.plans import Planner
from replay_app.queries import all_of, compile_filter, time_range
from replay_app.settings import Settings
from replay_app.store import EventStore, TimeLimitExceeded

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
END = T0 + timedelta(days=1)
AGGREGATES = 100
EVENTS = 1_000
SHARDS = 4
LARGEST = 0.45
"""Largest part of the events in one of four shards. With a sample of 200 events, a larger one comes
less than once in a million runs."""


def skewed(number: int) -> str:
    """Return an id: nine tenths of the aggregates have ids that begin in the same way."""
    return f"{number:04}" if number % 10 == 0 else f"customer-eu-{number:06}"


def ulid(number: int) -> str:
    chance = random.Random(number)
    return f"01J{number:07}" + "".join(chance.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=16))


IDS: dict[str, Callable[[int], Any]] = {
    "UUID as text": lambda n: str(uuid.UUID(int=random.Random(n).getrandbits(128))),
    "UUID": lambda n: uuid.UUID(int=random.Random(n).getrandbits(128)),
    "ObjectId": lambda n: ObjectId(struct.pack(">IQ", 1767225600 + n * 7, n)),
    "number": lambda n: n * 3,
    "counter": lambda n: f"customer-{n:06}",
    "ULID": ulid,
    "skewed": skewed,
}


def event(number: int, aggregate: Any) -> Document:
    return {"_id": number, "timestamp": T0 + timedelta(seconds=number), "aggregate_id": aggregate}


async def describe(topics: Iterable[str]) -> dict[str, Destination]:
    return {topic: Destination(1) for topic in topics}


async def cut(
    store: EventStore, settings: Settings, wanted: Filter | None = None, shards: int = SHARDS
) -> tuple[list[Range], list[str]]:
    start = Start(replay_id="r", ordering="aggregate", shards=shards, filter=wanted or Filter())
    return await find_ranges(start, settings, store, matching(settings, start.filter))


def matching(settings: Settings, wanted: Filter) -> Document:
    bounds = time_range(wanted.start, wanted.end or END, settings.mapping)
    return all_of(compile_filter(wanted, settings.mapping), bounds)


async def held(
    store: EventStore, settings: Settings, found: list[Range], wanted: Filter | None = None
) -> list[list[int]]:
    """Return the ids of the events of each range, in the order of a shard."""
    return [
        [
            document["_id"]
            async for page in store.pages(
                all_of(matching(settings, wanted or Filter()), one.match),
                [*one.order, settings.field_timestamp, "_id"],
                500,
            )
            for document in bson.decode_all(page, codec_options=AWARE)
        ]
        for one in found
    ]


@pytest.mark.parametrize("kind", IDS)
async def test_the_shards_are_even_whatever_the_ids_look_like(
    store: EventStore, settings: Settings, events: Collection[Document], kind: str
) -> None:
    events.insert_many(event(n, IDS[kind](n % AGGREGATES)) for n in range(EVENTS))
    found, warnings = await cut(store, settings)
    sizes = [len(part) for part in await held(store, settings, found)]
    assert (len(sizes), sum(sizes), sizes[-1]) == (SHARDS + 1, EVENTS, 0)
    assert max(sizes) <= LARGEST * EVENTS, sizes
    assert warnings == []


async def test_the_shards_are_even_for_a_few_events_whose_ids_lie_side_by_side(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(n, f"order-{n:06}") for n in range(EVENTS))
    wanted = Filter(start=T0 + timedelta(seconds=EVENTS * 9 // 10))  # the newest tenth
    found, _ = await cut(store, settings, wanted)
    sizes = [len(part) for part in await held(store, settings, found, wanted)]
    assert sum(sizes) == EVENTS // 10
    assert max(sizes) <= LARGEST * EVENTS // 10, sizes


MIXED: tuple[Any, ...] = (
    *("o-1", "o-2", 7, 7.5, uuid.UUID(int=9), b"xy", ObjectId(bytes(12)), T0, True),
    *(None, float("nan"), ["o-1", 7], {"id": 1}, bson.Decimal128("7.25"), bson.Regex("o")),
)


@pytest.mark.parametrize("sampled", [["o-1"], [7], [None], list(MIXED)], ids=str)
async def test_events_that_are_stored_after_the_cut_are_in_one_shard_whatever_their_ids(
    store: EventStore, settings: Settings, events: Collection[Document], sampled: list[Any]
) -> None:
    events.insert_many(event(n, value) for n, value in enumerate(sampled))
    found, _ = await cut(store, settings)
    without = event(200, None)
    del without["aggregate_id"]
    events.insert_many([*(event(100 + n, value) for n, value in enumerate(MIXED)), without])
    parts = await held(store, settings, found)
    stored = Counter(document["_id"] for document in events.find({}, ["_id"]))
    assert Counter(one for part in parts for one in part) == stored


# In time


class SlowStore(EventStore):
    """Does not answer some questions in time, as a store that reads all events for them."""

    slow: str = ""
    """The question, and whether the store ends it at its limit ("late"), or never ("silent")."""

    async def estimate(self, seconds: float) -> int:
        await self._be_slow("estimate")
        return await super().estimate(seconds)

    async def sample(self, query: Document, field: str, size: int, seconds: float) -> list[Any]:
        await self._be_slow("sample")
        await self._be_slow("sample of matches" if query else "sample of all")
        return await super().sample(query, field, size, seconds)

    async def _be_slow(self, question: str) -> None:
        if self.slow == f"{question} silent":
            await asyncio.Event().wait()
        if self.slow == f"{question} late":
            raise TimeLimitExceeded(question)


@pytest.fixture
async def slow_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SlowStore]:
    monkeypatch.setattr("replay_app.cuts.NETWORK_SECONDS", 0)
    store = SlowStore(settings)
    yield store
    store.close()


@pytest.mark.parametrize("slow", ["estimate late", "estimate silent"])
async def test_a_store_that_does_not_know_its_size_gives_one_shard_and_a_warning(
    slow_store: SlowStore, settings: Settings, events: Collection[Document], slow: str
) -> None:
    events.insert_many(event(n, MIXED[n % len(MIXED)]) for n in range(60))
    events.create_index([("aggregate_id", 1), ("timestamp", 1), ("_id", 1)])
    slow_store.slow = slow
    found, (warning,) = await cut(slow_store, settings.model_copy(update={"cut_seconds": 0.5}))
    assert found == [Range({}, ())]
    assert await held(slow_store, settings, found) == [list(range(60))]
    assert warning == (
        f"{slow_store.name} gave no sample of its aggregate ids within 0.5 s (REPLAY_CUT_SECONDS): "
        "all events are one shard, in the order of time, and one worker at a time runs it. If "
        "speed matters, read a collection and not a view, create an index on {aggregate_id: 1, "
        "timestamp: 1, _id: 1}, or raise REPLAY_CUT_SECONDS, which delays the first event"
    )


async def test_a_plan_without_cuts_has_the_shard_of_global_order_and_the_warning(
    slow_store: SlowStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(n, f"o-{n}") | {"event_type": "orders"} for n in range(20))
    slow_store.slow = "estimate late"
    start = Start(replay_id="r", filter=Filter(end=END))
    in_time = await Planner(start, settings, slow_store, describe).plan()
    start = start.model_copy(update={"ordering": "aggregate"})
    plan = await Planner(start, settings, slow_store, describe).plan()
    assert plan.shards == in_time.shards
    assert plan.matched == 20
    assert any("gave no sample of its aggregate ids" in warning for warning in plan.warnings)


@pytest.mark.parametrize("slow", ["sample late", "sample silent"])
@pytest.mark.parametrize("is_indexed", [True, False])
async def test_a_store_that_only_samples_slowly_gives_a_shard_for_each_type_if_an_index_serves_them(
    slow_store: SlowStore,
    settings: Settings,
    events: Collection[Document],
    slow: str,
    *,
    is_indexed: bool,
) -> None:
    events.insert_many(event(n, MIXED[n % len(MIXED)]) for n in range(60))
    if is_indexed:
        events.create_index([("aggregate_id", 1), ("timestamp", 1), ("_id", 1)])
    slow_store.slow = slow
    seconds = 2 if slow == "sample silent" else 60
    found, (warning,) = await cut(slow_store, settings.model_copy(update={"cut_seconds": seconds}))
    parts = await held(slow_store, settings, found)
    assert Counter(one for part in parts for one in part) == Counter(range(60))
    if is_indexed:
        assert len(found) == len(ID_TYPES) + 1
        assert ": each type of aggregate id is one shard, so most events may be in one. " in warning
    else:
        assert found == [Range({}, ())]
        assert ": all events are one shard, in the order of time, " in warning


async def test_if_a_sample_of_the_matching_events_takes_too_long_all_events_are_sampled(
    slow_store: SlowStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(n, f"o-{n:03}") for n in range(100))
    slow_store.slow = "sample of matches late"
    wanted = Filter(start=T0 + timedelta(seconds=50))
    found, warnings = await cut(slow_store, settings, wanted)
    parts = await held(slow_store, settings, found, wanted)
    assert [len(part) for part in parts] == [0, 0, 25, 25, 0]  # the sample has all 100 events
    assert warnings == []


async def test_a_sample_that_the_store_refuses_gives_fewer_shards_and_no_failure(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(event(n, f"o-{n}") for n in range(9))
    refused = settings.model_copy(update={"field_aggregate": "$no.path"})
    found, (warning,) = await cut(store, refused)
    assert found == [Range({}, ())]
    assert "gave no sample of its aggregate ids" in warning


# Named ids


async def test_named_ids_are_cut_without_a_look_at_the_store(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    names = [f"o-{n:02}" for n in range(40)]
    events.insert_many(event(n, names[n % 40]) for n in range(400))
    events.insert_many([event(400, ["o-01", "x"]), event(401, "x"), event(402, None)])
    wanted = Filter(aggregate_ids=tuple(names[:20]))
    hasty = settings.model_copy(update={"cut_seconds": 0.000_001})
    found, warnings = await cut(store, hasty, wanted)
    parts = await held(store, settings, found, wanted)
    assert [len(part) for part in parts] == [50, 50, 50, 50, 1]
    assert Counter(one for part in parts for one in part) == Counter(
        [*(n for n in range(400) if n % 40 < 20), 400]
    )
    assert warnings == []


async def test_named_ids_are_not_cut_where_a_collation_decides_on_their_order(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.database.create_collection(events.name, collation={"locale": "en", "strength": 2})
    names = ["B", "a", "b", "A", "c", "C"]
    events.insert_many(event(n, names[n % 6]) for n in range(60))
    wanted = Filter(aggregate_ids=("A", "a", "B", "c"))
    found, _ = await cut(store, settings, wanted)
    assert [one.order for one in found] == [("aggregate_id",), ()]
    parts = await held(store, settings, found, wanted)
    assert max(Counter(one for part in parts for one in part).values()) == 1
