"""Queries, pages and errors of a real event store, compared with plain Python."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import socket
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Binary, Decimal128, MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import UuidRepresentation
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.collection import Collection
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)
from support import AWARE, unique_name

from replay_app.commands import Filter
from replay_app.demo.stack import Stack, free_port
from replay_app.elements import values_at
from replay_app.events import EventMapping, event_id, field_at
from replay_app.exceptions import InvalidSettings, ReplayError, ReplayFailed, Unavailable
from replay_app.id_texts import delivery_text
from replay_app.pages import PAGE_BYTES, document_spans, split_page
from replay_app.queries import (
    after,
    all_of,
    compile_filter,
    encode_cursor,
    sort_value,
    time_range,
    untimed,
)
from replay_app.readers import PageReader
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore, NoCollection, StoreUnavailable, TimeLimitExceeded
from replay_app.store_health import StoreHealth

Document = dict[str, Any]
MAPPING = EventMapping()
ANSWER_SECONDS = 15.0
"""Half of what the driver would take for a server that is silent."""
T0 = datetime(2026, 1, 1, tzinfo=UTC)
LEGACY_UUIDS = [
    UuidRepresentation.PYTHON_LEGACY,
    UuidRepresentation.CSHARP_LEGACY,
    UuidRepresentation.JAVA_LEGACY,
]
BY_TIME = ("timestamp", "_id")
BY_AGGREGATE = ("aggregate_id", "timestamp", "_id")


# BSON's order, in plain Python


def bson_rank(value: Any) -> tuple[Any, ...]:
    """Return a sort key that orders values as BSON does."""
    rank: tuple[Any, ...] = (1,)  # null and missing values
    match value:
        case bool():
            rank = (8, value)
        case int() | float():
            rank = (2, value)
        case str():
            rank = (3, value.encode())
        case uuid.UUID():
            rank = (6, 16, 4, value.bytes)
        case bytes():
            rank = (6, len(value), 0, value)
        case ObjectId():
            rank = (7, value.binary)
        case datetime():
            rank = (9, value)
    return rank


def in_order(documents: Sequence[Document], sort: Sequence[str]) -> list[Any]:
    """Return the ids in the order in which the store must return them."""
    ranked = sorted(documents, key=lambda one: [bson_rank(field_at(one, name)) for name in sort])
    return [document["_id"] for document in ranked]


def decode(page: bytes) -> list[Document]:
    return bson.decode_all(page, codec_options=AWARE)


async def ids(store: EventStore, query: Any, sort: Sequence[str] = BY_TIME) -> list[Any]:
    return [doc["_id"] async for page in store.pages(query, sort, 100) for doc in decode(page)]


async def walk(store: EventStore, sort: Sequence[str], page_events: int) -> list[Any]:
    """Return all ids, with a new query for each page."""
    found: list[Any] = []
    cursor = None
    while True:
        pages = store.pages(after(cursor, sort), sort, page_events)
        page = await anext(pages, None)
        await pages.aclose()
        if page is None:
            return found
        page, _ = split_page(page, page_events)
        found += [document["_id"] for document in decode(page)]
        *_, (start, end) = document_spans(page)
        places = [values_at(page[start:end], name) for name in sort]
        cursor = encode_cursor([sort_value(value) for (value,) in places])


def random_id(chance: random.Random) -> Any:
    make: Callable[[], Any] = chance.choice(
        [
            lambda: chance.randrange(10**6),
            lambda: chance.randrange(2**40, 2**62),
            lambda: chance.random() * 10**6,
            lambda: f"{chance.randrange(10**6):x}",
            lambda: chance.choice("aäz$€\U0001f600") + str(chance.randrange(10**6)),
            lambda: ObjectId(chance.randbytes(12)),
            lambda: uuid.UUID(bytes=chance.randbytes(16)),
            lambda: chance.randbytes(chance.randrange(1, 20)),
            lambda: T0 + timedelta(milliseconds=chance.randrange(10**9)),
        ]
    )
    return make()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("page_events", [1, 3, 7])
async def test_pages_never_skip_or_repeat_whatever_the_ids_are(
    store: EventStore, events: Collection[Document], seed: int, page_events: int
) -> None:
    chance = random.Random(seed)
    made = {repr(one): one for one in (random_id(chance) for _ in range(40))}
    documents = [
        {"_id": one, "timestamp": T0 + timedelta(milliseconds=chance.randrange(3))}
        for one in made.values()
    ]
    chance.shuffle(documents)
    events.insert_many(documents)
    assert await walk(store, BY_TIME, page_events) == in_order(documents, BY_TIME)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("string", ["", "a", "aa", "b", "ä", "\U0001f600", None]),
        ("number", [-1, 0, 0.5, 1, 2**40, 1e300, None]),
        ("objectId", [ObjectId(bytes([n] * 12)) for n in range(5)]),
        ("binData", [uuid.UUID(int=1), uuid.UUID(int=2**127), uuid.UUID(int=2**128 - 1), None]),
        ("binData", [b"abc", b"abd", b"\xff\x00\x01"]),
        ("date", [T0, T0 + timedelta(days=1), None]),
    ],
)
@pytest.mark.parametrize("page_events", [1, 4])
async def test_aggregates_are_paged_without_skips_also_if_some_events_have_none(
    store: EventStore,
    events: Collection[Document],
    kind: str,
    values: list[Any],
    page_events: int,
) -> None:
    chance = random.Random(kind)
    documents: list[Document] = []
    for number in range(40):
        document: Document = {
            "_id": number if number % 2 else str(number),
            "timestamp": T0 + timedelta(milliseconds=chance.randrange(2)),
            "aggregate_id": chance.choice(values),
        }
        if document["aggregate_id"] is None and number % 3:
            del document["aggregate_id"]
        documents.append(document)
    events.insert_many(documents)
    assert await walk(store, BY_AGGREGATE, page_events) == in_order(documents, BY_AGGREGATE)


@pytest.mark.parametrize("kind", ["iso", "epoch_ms"])
async def test_other_kinds_of_time_are_paged_likewise(
    store: EventStore, events: Collection[Document], kind: str
) -> None:
    times: list[Any] = (
        ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", "2026-01-02T00:00:00Z"]
        if kind == "iso"
        else [1767225600000, 1767225600000.5, 1767225600001]
    )
    documents = [{"_id": number, "timestamp": times[number % 3]} for number in range(20)]
    events.insert_many(documents)
    assert await walk(store, BY_TIME, 2) == in_order(documents, BY_TIME)


async def test_a_new_event_before_the_cursor_is_not_read(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many([{"_id": n, "timestamp": T0 + timedelta(seconds=n)} for n in range(6)])
    cursor = encode_cursor([T0 + timedelta(seconds=3), 3])
    events.insert_one({"_id": 100, "timestamp": T0 + timedelta(seconds=1)})
    assert await ids(store, after(cursor, BY_TIME)) == [4, 5]


async def test_pages_of_large_events_have_a_few_mebibytes_after_the_first(
    store: EventStore, events: Collection[Document]
) -> None:
    # 24 MiB of large events, then small ones. The store alone would send up to 16 MiB at once.
    large, small = 96, 2_000
    for first in range(0, large, 32):
        events.insert_many([{"_id": n, "data": "x" * (1 << 18)} for n in range(first, first + 32)])
    events.insert_many([{"_id": large + n} for n in range(small)])
    pages = [page async for page in store.pages({}, ["_id"], 1_000)]
    found = [document["_id"] for page in pages for document in decode(page)]
    assert found == list(range(large + small))
    sizes = [len(page) for page in pages]
    assert all(size <= PAGE_BYTES * 3 // 2 for size in sizes[1:])
    assert len(pages) < 5 + small / 16 / 2, "the pages never had more small events again"


# Filters

SHAPES: list[Document] = [
    {"event_type": "a", "aggregate_id": "o-1", "user": "u-1", "nested": {"n": 1}},
    {"event_type": "a", "aggregate_id": 7, "user": None, "nested": {"n": 2}},
    {"event_type": "b", "aggregate_id": "7", "user": {"$ne": 1}, "nested": {"n": 1.0}},
    {"event_type": "b", "aggregate_id": ObjectId("65920080000001000000002a"), "user": "$ne"},
    {"event_type": "c", "aggregate_id": uuid.UUID(int=5), "user": True, "event_id": "e-1"},
    {"event_type": None, "aggregate_id": None, "user": 1, "event_id": 12},
    {"user": "/.*/", "nested": {"n": "1"}, "event_id": None},
    {"event_type": "$where", "aggregate_id": "$ne", "user": 2**53 + 1, "event_id": "12"},
]


def same(stored: Any, wanted: Any) -> bool:
    """Tell whether two values are equal in BSON, where true is not 1."""
    return isinstance(stored, bool) == isinstance(wanted, bool) and bool(stored == wanted)


def matches(document: Document, wanted: Filter) -> bool:
    """Tell whether a document matches, by the words of the filter's documentation."""
    kind, aggregate = document.get("event_type"), document.get("aggregate_id")
    own_id = event_id(document, MAPPING)
    return (
        (not wanted.event_types or kind in wanted.event_types)
        and kind not in wanted.exclude_event_types
        and (not wanted.aggregate_ids or str(aggregate) in map(str, wanted.aggregate_ids))
        and (not wanted.event_ids or own_id in map(str, wanted.event_ids))
        and all(same(field_at(document, path), v) for path, v in wanted.fields.items())
    )


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"event_types": ("a",)},
        {"event_types": ("a", "c", "$where")},
        {"exclude_event_types": ("a",)},
        {"event_types": ("a", "b"), "exclude_event_types": ("c",)},
        {"aggregate_ids": ("o-1",)},
        {"aggregate_ids": ("7",)},
        {"aggregate_ids": ("65920080000001000000002a", str(uuid.UUID(int=5)), "$ne")},
        {"event_ids": ("e-1", "doc-0")},
        {"event_ids": ("12",)},
        {
            "event_ids": ("doc-4",)
        },  # the document has an event_id, so its _id is not the id of the event
        {"event_ids": ("doc-6",)},
        {"fields": {"user": "u-1"}},
        {"fields": {"user": "$ne"}},
        {"fields": {"user": "/.*/"}},
        {"fields": {"user": True}},
        {"fields": {"user": 1}},
        {"fields": {"user": 2**53 + 1}},
        {"fields": {"user": None}},
        {"fields": {"nested.n": 1}},
        {"fields": {"nested.n": 1.0, "user": "u-1"}},
        {"fields": {"nested.n": "1"}},
        {"fields": {"nested.none": None, "user": "u-1"}},
        {"fields": {"nowhere": "x"}},
    ],
)
async def test_filters_of_every_kind_find_what_they_say(
    store: EventStore, events: Collection[Document], wanted: dict[str, Any]
) -> None:
    documents = [
        {"_id": f"doc-{number}", "timestamp": T0, **shape} for number, shape in enumerate(SHAPES)
    ]
    events.insert_many(documents)
    filtered = Filter(**wanted)
    expected = [doc["_id"] for doc in documents if matches(doc, filtered)]
    assert await ids(store, compile_filter(filtered, MAPPING)) == expected


async def test_a_number_finds_only_the_number_and_text_finds_both(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many([{"_id": 1, "aggregate_id": 7}, {"_id": 2, "aggregate_id": "7"}])
    number, text = Filter(aggregate_ids=(7,)), Filter(aggregate_ids=("7",))
    assert await ids(store, compile_filter(number, MAPPING)) == [1]
    assert await ids(store, compile_filter(text, MAPPING)) == [1, 2]


async def test_the_text_of_a_uuid_finds_the_uuid_however_a_driver_has_stored_it(
    store: EventStore, events: Collection[Document]
) -> None:
    number = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
    spellings = [
        str(number),
        number,
        *(Binary.from_uuid(number, order) for order in LEGACY_UUIDS),
    ]
    others = [uuid.UUID(int=1), Binary(number.bytes, 0), number.hex, None]
    events.insert_many(
        [
            {"_id": n, "timestamp": T0, "aggregate_id": one, "event_id": one, "user": {"id": one}}
            for n, one in enumerate([*spellings, *others])
        ]
    )
    for wanted in (
        Filter(aggregate_ids=(str(number),)),
        Filter(event_ids=(str(number),)),
        Filter(fields={"user.id": str(number)}),
    ):
        assert await ids(store, compile_filter(wanted, MAPPING)) == [0, 1, 2, 3, 4]


async def test_the_text_of_an_id_that_is_a_document_finds_the_document(
    store: EventStore, events: Collection[Document]
) -> None:
    made: list[Any] = [
        {"stream": "o-1", "version": 3},
        {"stream": "o-1", "version": 4},
        {"stream": "o-1", "version": "3"},
        {"stream": "o-1"},
        7,
        "7",
        b"x",
    ]
    events.insert_many([{"_id": one, "timestamp": T0} for one in made])
    for number, one in enumerate(made):
        text = delivery_text(one)
        found = await ids(store, compile_filter(Filter(event_ids=(text,)), MAPPING))
        assert found == ([7, "7"] if one == "7" else [one]), number
    relaxed = Filter(event_ids=('{"stream": "o-1", "version": 3}',))
    assert await ids(store, compile_filter(relaxed, MAPPING)) == [made[0]]


ODD_IDS: list[Any] = [
    math.nan,
    -1,
    2.5,
    Decimal128("3.50"),
    "a",
    {"at": T0},
    {"n": math.nan},
    {"stream": "o-1", "version": 3},
    b"ab",
    Binary(bytes(range(16)), 3),
    uuid.UUID(int=7),
    ObjectId(bytes(12)),
    False,
    T0,
    Timestamp(1, 2),
    MinKey(),
    MaxKey(),
]


@pytest.mark.parametrize("page_events", [1, 4])
async def test_ids_of_odd_types_are_paged_without_skips(
    store: EventStore, events: Collection[Document], page_events: int
) -> None:
    events.insert_many([{"_id": one, "timestamp": T0} for one in ODD_IDS])
    found = await walk(store, BY_TIME, page_events)

    def stored(made: Sequence[Any]) -> list[bytes]:
        return sorted(bson.encode({"v": one}, codec_options=AWARE) for one in made)

    assert stored(found) == stored(ODD_IDS)


@pytest.mark.parametrize("kind", ["date", "iso", "epoch_ms"])
async def test_the_start_is_inclusive_and_the_end_exclusive(
    stack: Stack, events: Collection[Document], store: EventStore, kind: Any
) -> None:
    def stored(milliseconds: int) -> Any:
        time = T0 + timedelta(milliseconds=milliseconds)
        if kind == "iso":
            return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return time if kind == "date" else round(time.timestamp() * 1000)

    documents = [{"_id": number, "timestamp": stored(number)} for number in range(10)]
    events.insert_many(documents)
    mapping = EventMapping(timestamp_type=kind)
    begin, end = T0 + timedelta(milliseconds=2), T0 + timedelta(milliseconds=7)
    assert await ids(store, time_range(begin, end, mapping)) == [2, 3, 4, 5, 6]
    assert await ids(store, time_range(None, begin, mapping)) == [0, 1]
    if kind == "iso":
        return  # between two texts there is no other instant
    between = timedelta(microseconds=300)
    found = await ids(store, time_range(begin + between, end + between, mapping))
    assert found == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("date", [T0, "2026-01-01T00:00:00Z", 5, None, [T0], {"t": T0}, True]),
        ("iso", ["2026-01-01T00:00:00Z", T0, 5, None, ["2026"], math.nan]),
        ("epoch_ms", [5, T0, "2026", None, [5], math.nan, True]),
    ],
)
async def test_every_event_is_either_in_some_time_range_or_untimed(
    store: EventStore, events: Collection[Document], kind: Any, times: list[Any]
) -> None:
    documents: list[Document] = [{"_id": n, "timestamp": time} for n, time in enumerate(times)]
    events.insert_many([*documents, {"_id": 100}])
    mapping = EventMapping(timestamp_type=kind)
    end = datetime(9999, 1, 1, tzinfo=UTC)
    assert await ids(store, time_range(None, end, mapping)) == [0]
    assert sorted(await ids(store, untimed(mapping))) == [*range(1, len(times)), 100]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ({"gte": 2, "lt": 4}, [2, 3]),
        ({"in": [1, "one", {"$oid": "65a000000000000000000001"}]}, [1, 5, 6]),
        ({"ne": 1}, [0, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"ne": None}, [1, 2, 3, 4, 5, 6, 7]),
        ({"exists": False}, [9]),
        ({"exists": True, "lte": 1}, [1]),
        ({"gt": "a"}, [5]),
        ({"$date": "2026-01-01T00:00:00Z"}, [7]),
        ({"lt": {"$date": "2026-01-01T00:00:00.0001Z"}}, [7]),
        ({"$numberDecimal": "4"}, [4]),
        (None, [0, 8, 9]),
    ],
)
async def test_conditions_on_fields_find_the_values_of_their_types(
    store: EventStore, events: Collection[Document], condition: Any, wanted: list[int]
) -> None:
    values = [None, 1, 2, 3.0, 4, "one", ObjectId("65a000000000000000000001"), T0, None]
    documents: list[Document] = [
        {"_id": n, "timestamp": T0, "data": {"n": value}} for n, value in enumerate(values)
    ]
    events.insert_many([*documents, {"_id": 9, "timestamp": T0, "data": {}}])
    query = compile_filter(Filter(fields={"data.n": condition}), EventMapping())
    assert sorted(await ids(store, query)) == wanted


# A plan's other questions


async def test_a_missing_collection_is_named(store: EventStore, settings: Settings) -> None:
    with pytest.raises(ReplayFailed, match=f"no collection '{settings.mongo_database}.events'"):
        await store.require_collection()


async def test_a_collection_that_is_there_is_enough(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_one({"_id": 1})
    await store.require_collection()


@pytest.mark.parametrize(
    ("options", "may_tie"),
    [
        ({}, False),
        ({"capped": True, "size": 100_000}, False),
        ({"viewOn": "orders", "pipeline": [{"$unwind": "$lines"}]}, True),
        ({"timeseries": {"timeField": "timestamp"}}, True),
    ],
)
async def test_events_may_tie_where_nothing_keeps_their_ids_unique(
    store: EventStore, events: Collection[Document], options: dict[str, Any], *, may_tie: bool
) -> None:
    events.database.create_collection("events", **options)
    assert (await store.identify()).may_tie == may_tie


async def test_a_collation_is_told(store: EventStore, events: Collection[Document]) -> None:
    events.insert_one({"_id": 1})
    assert not (await store.identify()).collates
    events.drop()
    events.database.create_collection("events", collation={"locale": "en", "strength": 2})
    assert (await store.identify()).collates


async def test_a_collection_has_the_same_identity_until_it_is_dropped(
    store: EventStore, events: Collection[Document]
) -> None:
    assert (await store.identify()).uuid == ""  # there is no collection yet
    found = []
    for _ in range(2):
        events.insert_one({"_id": 1})
        first = (await store.identify()).uuid
        events.delete_many({})
        events.create_index("timestamp")
        assert (await store.identify()).uuid == first
        assert str(uuid.UUID(first)) == first
        found.append(first)
        events.drop()
    assert found[0] != found[1]


async def test_a_reader_of_a_view_ends_its_pages_with_whole_ties(
    store: EventStore, events: Collection[Document]
) -> None:
    events.database["orders"].insert_many(
        [{"_id": n, "timestamp": T0, "lines": list(range(3))} for n in range(4)]
    )
    events.database.create_collection("events", viewOn="orders", pipeline=[{"$unwind": "$lines"}])
    reader = PageReader(store, {}, BY_TIME, 4, None)
    found = []
    while (page := await reader.next(10)) is not None:
        found.append([document["_id"] for document in decode(page)])
    assert found == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]]
    await reader.close()


async def test_groups_are_counted_by_every_combination(
    store: EventStore, events: Collection[Document]
) -> None:
    shapes: list[Document] = [
        {"event_type": "a", "topic": "x"},
        {"event_type": "a", "topic": "x"},
        {"event_type": "a"},
        {"event_type": "a", "topic": None},
        {"event_type": ["odd"], "topic": {"very": "odd"}},
        {"topic": "x"},
    ]
    events.insert_many([{"_id": number, **shape} for number, shape in enumerate(shapes)])
    found = await store.count_groups({}, ["$event_type", "$topic"], 10)
    assert found.pop(("a", "x")) == 2
    assert found.pop(("a", None)) == 2
    assert found.pop((None, "x")) == 1
    assert list(found.values()) == [1]
    assert await store.count_groups({"event_type": "a"}, [], 10) == {(): 4}
    assert await store.count_groups({"event_type": "none"}, [], 10) == {}
    assert await store.count_groups({"event_type": "none"}, ["$event_type"], 10) == {}


async def test_no_count_is_lost_where_python_takes_two_values_for_one(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many(
        [{"_id": n, "event_type": t} for n, t in enumerate([1, True, 1.0, 0, False])]
    )
    assert sum((await store.count_groups({}, ["$event_type"], 10)).values()) == 5


async def test_nested_fields_are_counted(store: EventStore, events: Collection[Document]) -> None:
    events.insert_many([{"_id": 1, "meta": {"type": "a"}}, {"_id": 2, "meta": {"type": "a"}}])
    assert await store.count_groups({}, ["$meta.type", "$topic"], 10) == {("a", None): 2}


async def test_a_sample_is_in_the_stores_order(
    store: EventStore, events: Collection[Document]
) -> None:
    values = [5, "b", 1.5, "a", b"zz", b"a", uuid.UUID(int=3), None, T0]
    events.insert_many([{"_id": number, "v": value} for number, value in enumerate(values)])
    found = await store.sample({}, "v", 100, 10)
    assert found == sorted(values, key=bson_rank)
    assert len(await store.sample({}, "v", 3, 10)) == 3
    assert await store.estimate(10) == 9


async def test_size_and_sample_have_time_limits_that_the_server_keeps(
    settings: Settings, events: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    events.insert_many([{"_id": number} for number in range(8_000)])
    listener = Listener()
    monkeypatch.setattr(
        "replay_app.store.AsyncIOMotorClient",
        functools.partial(AsyncIOMotorClient, event_listeners=[listener]),
    )
    store = EventStore(settings)
    assert await store.estimate(60) == 8_000
    with pytest.raises(TimeLimitExceeded):
        await store.sample({}, "_id", 4_000, 0.001)
    store.close()
    limits = [one["maxTimeMS"] for one in listener.sent if one.keys() & {"count", "aggregate"}]
    assert limits == [60_000, 1]


async def test_the_clock_is_the_servers(store: EventStore) -> None:
    assert abs(await store.clock() - datetime.now(UTC)) < timedelta(seconds=5)


async def test_the_plan_tells_whether_an_index_fits(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many([{"_id": n, "timestamp": T0, "event_type": "a"} for n in range(10)])
    # A plain query: each store decides differently which index serves a whole filter.
    query = {"timestamp": {"$gte": T0}}
    assert await store.plan_stages(query, BY_TIME) >= {"COLLSCAN", "SORT"}
    events.create_index([("timestamp", 1), ("_id", 1)])
    stages = await store.plan_stages(query, BY_TIME)
    assert "IXSCAN" in stages
    assert "COLLSCAN" not in stages


async def test_a_query_that_bson_cannot_hold_is_an_error_and_not_a_crash(
    store: EventStore, events: Collection[Document]
) -> None:
    with pytest.raises(ReplayFailed, match="cannot be written as BSON"):
        await store.count_groups({"a": 2**70}, [], 10)
    reader = PageReader(store, {"a": 2**70}, BY_TIME, 10, None)
    with pytest.raises(ReplayFailed, match="cannot be written as BSON"):
        await reader.next(10)
    await reader.close()


async def test_a_query_that_the_store_does_not_know_is_refused_for_good(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_one({"_id": 1})
    with pytest.raises(ReplayFailed, match="refused"):
        await store.count_groups({"$nonsense": 1}, [], 10)


def test_a_wrong_uri_is_refused_and_its_variable_named() -> None:
    with pytest.raises(InvalidSettings, match="REPLAY_MONGO is not a usable MongoDB URI"):
        EventStore(load_settings(mongo="http://localhost:27017"))


async def test_a_store_that_is_away_is_unavailable_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replay_app.store.SERVER_SELECTION_MS", 200)
    port = free_port()
    store = EventStore(load_settings(mongo=f"mongodb://ana:hunter2@127.0.0.1:{port}"))
    calls: list[Callable[[], Any]] = [
        store.clock,
        store.require_collection,
        lambda: store.count_groups({}, [], 5),
        lambda: store.estimate(5),
        lambda: store.sample({}, "a", 1, 5),
        lambda: store.plan_stages({}, BY_TIME),
        lambda: ids(store, {}),
    ]
    try:
        for call in calls:
            with pytest.raises(Unavailable) as away:
                await call()
            message = str(away.value)
            assert message.startswith("the event store 'events.events' does not answer: ")
            assert f"127.0.0.1:{port}" in message
            assert "hunter2" not in message
            assert len(message) < 400
            assert not isinstance(away.value, TimeLimitExceeded)
    finally:
        store.close()


# Secondaries


class Listener(CommandListener):
    """Keeps the commands that the driver sends, but for those about connections."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.sent.append(event.command)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Do nothing."""

    def reads(self) -> list[Any]:
        """Return the commands that read events."""
        return [one for one in self.sent if one.keys() & {"find", "aggregate"}]


@pytest.mark.parametrize("preference", ["primary", "secondaryPreferred", "nearest"])
async def test_reads_of_secondaries_wait_for_what_the_primary_has(
    settings: Settings,
    events: Collection[Document],
    monkeypatch: pytest.MonkeyPatch,
    preference: str,
) -> None:
    events.insert_many([{"_id": n, "timestamp": T0, "event_type": "a"} for n in range(5)])
    listener = Listener()
    monkeypatch.setattr(
        "replay_app.store.AsyncIOMotorClient",
        functools.partial(AsyncIOMotorClient, event_listeners=[listener]),
    )
    uri = f"{settings.mongo.get_secret_value()}/?readPreference={preference}"
    store = EventStore(load_settings(mongo=uri, mongo_database=settings.mongo_database))
    assert await store.count_groups({}, ["$event_type"], 10) == {("a",): 5}
    assert len(await store.documents([{"$limit": 2}], 10)) == 2
    assert await ids(store, {}) == [0, 1, 2, 3, 4]
    store.close()
    assert len(listener.reads()) == (3 if preference == "primary" else 6)  # one probe for each
    for command in listener.reads():
        if preference == "primary":
            assert "afterClusterTime" not in command.get("readConcern", {})
        else:
            assert command["readConcern"]["level"] == "majority"
            assert isinstance(command["readConcern"]["afterClusterTime"], Timestamp)


async def test_a_secondary_that_lags_is_named_and_asked_again_later(
    settings: Settings, events: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    events.insert_many([{"_id": n} for n in range(8_000)])
    # The development store has no secondaries. It takes longer than this for any read.
    monkeypatch.setattr("replay_app.store.CATCH_UP_MS", 1)
    uri = f"{settings.mongo.get_secret_value()}/?readPreference=secondaryPreferred"
    store = EventStore(load_settings(mongo=uri, mongo_database=settings.mongo_database))
    for read in (store.count_groups({}, [], 10), ids(store, {})):
        with pytest.raises(
            Unavailable, match=r"readPreference in REPLAY_MONGO.* lags behind"
        ) as no:
            await read
        assert not isinstance(no.value, TimeLimitExceeded)
    store.close()


# A store that cannot be used


@pytest.mark.parametrize(
    ("address", "kind", "why"),
    [
        ("mongodb://127.0.0.1:{free}", StoreUnavailable, "does not answer: 127.0.0.1:{free}: "),
        ("mongodb://127.0.0.1:{silent}", StoreUnavailable, "does not answer: "),
        ("mongodb://ana:hunter2@{store}", ReplayFailed, "check the user and the password in REP"),
        ("mongodb://{store}", NoCollection, "has no collection"),
    ],
    ids=["away", "silent", "password", "empty"],
)
async def test_a_store_that_cannot_be_used_is_told_within_seconds_with_the_reason(
    address: str, kind: type[ReplayError], why: str, stack: Stack
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, never answers
        place = {
            "free": free_port(),
            "silent": listener.getsockname()[1],
            "store": stack.mongo.rpartition("/")[2],
        }
        name = unique_name("empty")
        store = EventStore(load_settings(mongo=address.format(**place), mongo_database=name))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                with pytest.raises(kind) as told:
                    await store.check()
        finally:
            store.close()
    assert type(told.value) is kind
    assert why.format(**place) in str(told.value)
    assert f"{name}.events" in str(told.value)
    assert "hunter2" not in str(told.value)


async def test_the_health_of_the_store_is_remembered_and_each_change_is_said(
    store: EventStore,
    events: Collection[Document],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("replay_app.store_health.REMEMBER_SECONDS", 3600.0)
    health = StoreHealth(store)
    assert isinstance(await health.problem(), NoCollection)
    events.insert_one({"_id": 1})
    assert isinstance(await health.problem(), NoCollection)
    monkeypatch.setattr("replay_app.store_health.REMEMBER_SECONDS", 0.0)
    assert await health.problem() is None
    assert await health.problem() is None
    assert [one.levelname for one in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages[1] == f"the event store {store.name!r} answers"


# The reader


async def test_a_reader_gives_every_page_and_then_none(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many([{"_id": n, "timestamp": T0 + timedelta(seconds=n)} for n in range(25)])
    reader = PageReader(store, {}, BY_TIME, 10, None)
    found: list[Any] = []
    while (page := await reader.next(10)) is not None:
        assert len(decode(page)) <= 10
        found += [document["_id"] for document in decode(page)]
    assert found == list(range(25))
    assert await reader.next(10) is None
    await reader.ready()
    await reader.close()


async def test_a_page_that_is_put_back_comes_first(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many([{"_id": n, "timestamp": T0 + timedelta(seconds=n)} for n in range(4)])
    reader = PageReader(store, {}, BY_TIME, 2, None)
    page = await reader.next(10)
    assert page is not None
    reader.put_back(page)
    await reader.ready()
    assert await reader.next(0.0) == page
    reader.put_back(b"")
    page = await reader.next(10)
    assert page is not None
    assert [document["_id"] for document in decode(page)] == [2, 3]
    await reader.close()


async def test_a_reader_of_a_store_that_is_away_says_so_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("replay_app.store.SERVER_SELECTION_MS", 200)
    store = EventStore(load_settings(mongo=f"mongodb://127.0.0.1:{free_port()}"))
    reader = PageReader(store, {}, BY_TIME, 10, None)
    with pytest.raises(TimeoutError):
        await reader.next(0.01)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await reader.next(10)
    await reader.close()
    store.close()


async def test_a_reader_can_be_closed_in_the_middle(
    store: EventStore, events: Collection[Document]
) -> None:
    events.insert_many([{"_id": n, "timestamp": T0} for n in range(100)])
    reader = PageReader(store, all_of({"timestamp": T0}), BY_TIME, 10, None)
    assert await reader.next(10)
    await reader.close()
    assert len(asyncio.all_tasks()) == 1
