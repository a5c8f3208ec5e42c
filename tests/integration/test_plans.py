"""Plans on a real store: their counts, and that their shards cover every event once."""

from __future__ import annotations

import math
import random
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64, ObjectId
from pymongo.collection import Collection
from support import AWARE

from replay_app.commands import Filter, Start, Target
from replay_app.demo.stack import free_port
from replay_app.destinations import Destination
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.plans import MAX_PLAN_NAMES, Planner
from replay_app.queries import all_of, compile_filter, from_json
from replay_app.reports import OTHER, Plan
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
TOPICS = {"orders": 3, "payments": 1, "test.orders": 2, "rebuild": 4, "named": 1}


CONFIG = {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime"}


async def describe(names: Iterable[str]) -> dict[str, Destination]:
    return {name: Destination(TOPICS[name], config=CONFIG) for name in names if name in TOPICS}


def event(number: int, **fields: Any) -> Document:
    return {
        "_id": number,
        "timestamp": T0 + timedelta(seconds=number),
        "event_type": "orders",
        "aggregate_id": f"o-{number % 3}",
    } | fields


async def plan_of(store: EventStore, settings: Settings, **fields: Any) -> Plan:
    return await Planner(Start(replay_id="r1", **fields), settings, store, describe).plan()


async def shards(
    store: EventStore, settings: Settings, plan: Plan, wanted: Filter | None = None
) -> list[list[Any]]:
    """Return the ids of each shard, as a worker would read them."""
    own = compile_filter(wanted or Filter(), settings.mapping)
    return [
        [
            document["_id"]
            async for page in store.pages(all_of(own, from_json(shard.match)), shard.sort, 50)
            for document in bson.decode_all(page, codec_options=AWARE)
        ]
        for shard in plan.shards
    ]


async def test_matching_events_are_counted_by_type_and_topic(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(
        [
            event(1),
            event(2),
            event(3, event_type="payments"),
            event(4, event_type="paid", topic="payments"),
            event(5, event_type="paid", topic="payments"),
        ]
    )
    plan = await plan_of(store, settings)
    assert plan.matched == 5
    assert plan.by_type == {"orders": 2, "payments": 1, "paid": 2}
    assert plan.by_topic == {"orders": 2, "payments": 3}
    assert plan.partitions == {"orders": 3, "payments": 1}
    assert [shard.sort for shard in plan.shards] == [("timestamp", "_id")]


@pytest.mark.parametrize(
    ("target", "topics"),
    [
        ({}, {"orders": 2}),
        ({"topic": "rebuild"}, {"rebuild": 2}),
        ({"prefix": "test."}, {"test.orders": 2}),
        ({"topics": {"orders": "named"}}, {"named": 2}),
        ({"topics": {"other": "named"}, "topic": "rebuild"}, {"rebuild": 2}),
    ],
)
async def test_the_target_decides_on_the_topics(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    target: dict[str, Any],
    topics: dict[str, int],
) -> None:
    events.insert_many([event(1), event(2)])
    plan = await plan_of(store, settings, target=Target(**target))
    assert plan.by_topic == topics


async def test_a_filter_narrows_the_plan(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(
        [event(n, event_type="payments" if n % 4 == 0 else "orders") for n in range(20)]
    )
    wanted = Filter(
        start=T0 + timedelta(seconds=5), end=T0 + timedelta(seconds=15), event_types=("orders",)
    )
    plan = await plan_of(store, settings, filter=wanted)
    expected = [n for n in range(5, 15) if n % 4]
    assert plan.matched == len(expected)
    assert await shards(store, settings, plan, wanted) == [expected]


async def test_a_missing_destination_topic_is_named(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(1), event(2, topic="nowhere")])
    with pytest.raises(ReplayFailed, match="missing destination topics: 'nowhere'; create"):
        await plan_of(store, settings)


async def test_of_many_missing_topics_a_few_are_named(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(n, topic=f"t{n}") for n in range(8)])
    message = "topics: 't0', 't1', 't2', 't3', 't4' and 3 more; create them"
    with pytest.raises(ReplayFailed, match=message):
        await plan_of(store, settings)


async def test_events_without_a_usable_topic_do_not_stop_the_plan(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(1), event(2, event_type=None), event(3, topic="no topic!")])
    plan = await plan_of(store, settings)
    assert plan.matched == 3
    assert plan.by_topic == {"orders": 1}
    assert plan.by_type == {"orders": 2, "(None)": 1}


TYPES_WITHOUT_TOPIC = {"a b/c": 3, "x" * 300: 2, ".": 1, "..": 1, "größe": 1, "\n": 1}


@pytest.mark.parametrize("on_error", ["fail", "skip"])
async def test_types_without_a_legal_topic_name_are_named_with_their_numbers(
    store: EventStore, settings: Settings, events: Collection[Document], on_error: Any
) -> None:
    types = Counter({"orders": 4} | TYPES_WITHOUT_TOPIC)
    events.insert_many(
        event(number, event_type=kind) for number, kind in enumerate(types.elements())
    )
    plan = await plan_of(store, settings, on_error=on_error)
    assert (plan.matched, plan.by_topic) == (13, {"orders": 4})
    assert sum(plan.by_type.values()) == 13
    (warning,) = [one for one in plan.warnings if "have no topic" in one]
    assert warning.startswith("9 events have no topic, and each of them fails under on_error=")
    assert f"on_error={on_error}: of the types 'a b/c' (3), '{'x' * 100}' (2), " in warning
    assert ", and 1 more types. For example, an event of the type '" in warning
    assert "which is not a topic name" in warning


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        ({"topics": dict.fromkeys(TYPES_WITHOUT_TOPIC, "named")}, 1),  # only the topic field
        ({"topic": "rebuild"}, 0),
        ({"prefix": "p"}, 8),  # "p." and "p.." are legal
    ],
)
async def test_the_target_decides_which_types_have_a_topic(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    target: dict[str, Any],
    refused: int,
) -> None:
    types = list(Counter(TYPES_WITHOUT_TOPIC).elements())
    events.insert_many(event(number, event_type=kind) for number, kind in enumerate(types))
    events.insert_one(event(99, topic="no topic"))

    async def every(names: Iterable[str]) -> dict[str, Destination]:
        return {name: Destination(1, config=CONFIG) for name in names}

    start = Start(replay_id="r1", target=Target(**target))
    plan = await Planner(start, settings, store, every).plan()
    told = [int(one.split()[0]) for one in plan.warnings if "have no topic" in one]
    assert told == ([refused] if refused else [])
    assert sum(plan.by_topic.values()) == 10 - refused


async def test_a_missing_collection_is_no_empty_history(
    store: EventStore, settings: Settings
) -> None:
    with pytest.raises(ReplayFailed, match="has no collection"):
        await plan_of(store, settings)


async def test_the_end_is_frozen_at_the_stores_clock(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    now = datetime.now(UTC)
    tomorrow = now + timedelta(days=1)
    events.insert_many([event(1), event(2, timestamp=tomorrow)])
    plan = await plan_of(store, settings)
    assert abs(plan.end - now) < timedelta(seconds=5)
    assert plan.matched == 1
    assert await shards(store, settings, plan) == [[1]]
    given = await plan_of(store, settings, filter=Filter(end=tomorrow + timedelta(days=1)))
    assert given.end == tomorrow + timedelta(days=1)
    assert given.matched == 2


@pytest.mark.parametrize(("most", "matched"), [(3, 3), (7, 7), (100, 7), (None, 7)])
async def test_no_more_than_max_events_match(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    most: int | None,
    matched: int,
) -> None:
    events.insert_many([event(n) for n in range(7)])
    plan = await plan_of(store, settings, max_events=most)
    assert plan.matched == matched
    assert plan.by_type == {"orders": 7}
    told = "7 events match, and the counts by type and topic are of all of them; the replay reads "
    assert (f"{told}the first 3 (max_events)" in plan.warnings) == (most == 3)


@pytest.mark.parametrize("ordering", ["global", "aggregate"])
async def test_nothing_that_matches_is_no_shard(
    store: EventStore, settings: Settings, events: Collection[Document], ordering: str
) -> None:
    events.insert_one(event(1))
    wanted = Filter(event_types=("none",))
    plan = await plan_of(store, settings, filter=wanted, ordering=ordering)
    assert (plan.matched, plan.shards, plan.by_topic) == (0, (), {})
    (warning,) = plan.warnings
    assert warning.startswith("the filter fits no event. In a sample of 1 events of ")


async def test_a_scan_and_a_sort_are_warned_of(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(n) for n in range(5)])
    (warning,) = (await plan_of(store, settings)).warnings
    assert warning == (
        f"no index fits the filter: {settings.mongo_database}.events is scanned as a whole and "
        "sorted; an index on {timestamp: 1, _id: 1} would avoid both"
    )
    (of_aggregates,) = (await plan_of(store, settings, ordering="aggregate")).warnings
    assert of_aggregates == warning.replace("{timestamp", "{aggregate_id: 1, timestamp")


async def test_a_plan_of_very_many_types_stays_small(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    dirty = [event(n, event_type=f"type-{n}") for n in range(MAX_PLAN_NAMES + 100)]
    events.insert_many([*dirty, *(event(1000 + n, event_type="often") for n in range(5))])
    plan = await plan_of(store, settings, target=Target(topic="rebuild"))
    assert len(plan.by_type) == MAX_PLAN_NAMES + 1
    assert plan.by_type["often"] == 5
    assert plan.by_type[OTHER] == 101
    assert plan.matched == sum(plan.by_type.values()) == MAX_PLAN_NAMES + 105


async def test_a_store_that_is_away_can_be_planned_again_later(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.store.SERVER_SELECTION_MS", 200)
    store = EventStore(load_settings(mongo=f"mongodb://127.0.0.1:{free_port()}"))
    with pytest.raises(Unavailable):
        await plan_of(store, settings)
    store.close()


# Events without a time

MISFITS = [
    event(100, timestamp=None),
    event(101, timestamp="2026-01-01T00:00:00Z"),
    event(102, timestamp=[T0]),
    event(103, timestamp=5),
]


@pytest.mark.parametrize("ordering", ["global", "aggregate"])
async def test_a_replay_of_everything_takes_the_events_without_a_time_along(
    store: EventStore, settings: Settings, events: Collection[Document], ordering: str
) -> None:
    untimed = event(104)
    del untimed["timestamp"]
    events.insert_many([event(1), event(2), *MISFITS, untimed])
    plan = await plan_of(store, settings, ordering=ordering)
    assert plan.matched == 7
    assert plan.by_type == {"orders": 7}
    assert plan.by_topic == {"orders": 2}
    found = await shards(store, settings, plan)
    assert sorted(found[-1]) == [100, 101, 102, 103, 104]
    assert sorted(one for part in found for one in part) == [1, 2, 100, 101, 102, 103, 104]


async def test_a_replay_with_a_start_leaves_them_out_and_says_so(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(1), event(2), *MISFITS])
    plan = await plan_of(store, settings, filter=Filter(start=T0))
    assert plan.matched == 2
    assert await shards(store, settings, plan) == [[1, 2]]
    assert plan.warnings[0] == (
        "4 matching events have no date in 'timestamp'; they are in no time range and are left out"
    )


async def test_only_events_without_a_time_are_one_shard(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([*MISFITS, event(1, event_type="payments")])
    plan = await plan_of(store, settings, filter=Filter(event_types=("orders",)))
    assert (plan.matched, len(plan.shards)) == (4, 1)
    assert plan.by_type == {"orders": 4}


ODD_TIMES: tuple[Any, ...] = (
    *(None, "", "yesterday", True, 7, 7.5, Int64(7), Decimal128("7"), T0, [T0], [7], [], {}),
    *(
        math.nan,
        -math.inf,
        math.inf,
        Decimal128("NaN"),
        Decimal128("-Infinity"),
        ObjectId(bytes(12)),
    ),
)


@pytest.mark.parametrize("kind", ["date", "iso", "epoch_ms"])
async def test_as_many_events_are_counted_as_the_shards_hold_whatever_their_times(
    store: EventStore, settings: Settings, events: Collection[Document], kind: str
) -> None:
    """The single-pass count agrees with the shards; odd times make exact queries necessary."""
    settings = settings.model_copy(update={"timestamp_type": kind, "field_timestamp": "meta.time"})
    times: list[Any] = {
        "date": [T0, T0 - timedelta(milliseconds=1), T0 + timedelta(milliseconds=1)],
        "iso": ["2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z", "2026-01-01T00:00:01Z"],
        "epoch_ms": [1767225600000, Int64(1767225599999), 1767225600000.5],
    }[kind]  # type: ignore[assignment]
    clean = [event(number, meta={"time": time}) for number, time in enumerate(times)]
    odd = [event(100 + number, meta={"time": time}) for number, time in enumerate(ODD_TIMES)]
    odd += [event(200, meta={}), event(201), event(202, meta=[{"time": times[1]}, {"time": 1}])]
    for extra in (None, *odd):
        events.delete_many({})
        events.insert_many([*clean, *([extra] if extra else [])])
        plan = await plan_of(store, settings, filter=Filter(end=T0))
        found = Counter(one for part in await shards(store, settings, plan) for one in part)
        assert found[1] == 1, extra
        assert not {0, 2} & set(found), extra
        assert set(found.values()) == {1}, extra
        assert plan.matched == len(found), extra


# Aggregates


def aggregate_of(kind: str, chance: random.Random) -> Any:
    number = chance.randrange(40)
    return {
        "string": f"o-{number}",
        "number": chance.choice([number, number + 0.5, Int64(2**40 + number), -number]),
        "uuid": uuid.UUID(int=number << 100),
        "objectId": ObjectId(f"{number:024x}"),
        "bytes": bytes([number]) * chance.randrange(1, 5),
        "date": T0 + timedelta(days=number),
        "bool": bool(number % 2),
        "none": None,
        "decimal": Decimal128(f"{number}.25"),
        "nan": math.nan,
        "array": [f"o-{number}", 7],
        "document": {"id": number},
    }[kind]


KINDS = [
    ["string"],
    ["number"],
    ["uuid"],
    ["objectId"],
    ["bytes"],
    ["date"],
    ["bool"],
    ["none"],
    ["string", "number"],
    ["string", "none", "nan"],
    ["number", "nan", "decimal"],
    ["uuid", "bytes", "string"],
    ["string", "array", "document"],
    ["string", "number", "uuid", "objectId", "bytes", "date", "bool", "none", "nan", "array"],
]


@pytest.mark.parametrize("wanted", [1, 3, 16])
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
async def test_the_shards_of_aggregates_cover_every_event_exactly_once(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    kinds: list[str],
    wanted: int,
) -> None:
    chance = random.Random(f"{kinds}{wanted}")
    documents = [
        event(n, aggregate_id=aggregate_of(chance.choice(kinds), chance)) for n in range(200)
    ]
    for document in documents[::17]:
        if document["aggregate_id"] is None:
            del document["aggregate_id"]
    events.insert_many(documents)
    plan = await plan_of(store, settings, ordering="aggregate", shards=wanted)
    assert plan.matched == 200
    found = await shards(store, settings, plan)
    assert Counter(one for part in found for one in part) == Counter(range(200))

    time_of = {document["_id"]: document["timestamp"] for document in documents}
    shard_of: dict[str, set[int]] = {}
    for number, part in enumerate(found):
        latest: dict[str, datetime] = {}
        for one in part:
            aggregate = repr(documents[one].get("aggregate_id"))
            assert latest.get(aggregate, T0) <= time_of[one]  # the order of each aggregate
            latest[aggregate] = time_of[one]
            shard_of.setdefault(aggregate, set()).add(number)
    assert all(len(numbers) == 1 for numbers in shard_of.values())  # one shard for each aggregate


async def test_a_filter_and_bounds_hold_for_shards_of_aggregates_too(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many(
        [event(n, event_type="payments" if n % 4 == 0 else "orders") for n in range(40)]
    )
    wanted = Filter(
        start=T0 + timedelta(seconds=5), end=T0 + timedelta(seconds=35), event_types=("orders",)
    )
    plan = await plan_of(store, settings, filter=wanted, ordering="aggregate", shards=3)
    found = await shards(store, settings, plan, wanted)
    assert sorted(one for part in found for one in part) == [n for n in range(5, 35) if n % 4]


async def test_a_count_that_takes_too_long_leaves_the_total_unknown(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(n) for n in range(2_000)])
    hasty = settings.model_copy(update={"plan_seconds": 0.001})
    for ordering in ("global", "aggregate"):
        plan = await plan_of(store, hasty, ordering=ordering, target=Target(topic="rebuild"))
        assert plan.matched is None
        assert (plan.by_type, plan.by_topic, plan.partitions) == ({}, {}, {"rebuild": 4})
        assert "could not be counted within 0.001 s (REPLAY_PLAN_SECONDS)" in plan.warnings[0]
        found = await shards(store, settings, plan)
        assert sorted(one for part in found for one in part) == list(range(2_000))


async def test_a_plan_that_is_made_again_counts_what_is_there_now_and_keeps_bound_and_shards(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(n) for n in range(5)])
    first = await plan_of(store, settings)
    events.delete_one({"_id": 4})
    events.insert_one(event(9, event_type="payments"))
    events.insert_one(event(10, event_type="payments"))
    events.insert_one(event(11, timestamp=first.end))
    planner = Planner(Start(replay_id="r1"), settings, store, describe)
    again = await planner.plan(first)
    assert (again.end, again.shards) == (first.end, first.shards)
    assert (first.matched, again.matched) == (5, 6)
    assert again.by_type == {"orders": 4, "payments": 2}
    events.delete_many({"event_type": "orders"})
    assert (await planner.plan(first)).shards == first.shards
