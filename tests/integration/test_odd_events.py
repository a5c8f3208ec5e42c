"""Events that the driver cannot show as they are, on a real store: nothing is lost or repeated."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import DatetimeMS
from pymongo.collection import Collection
from store_proxy import rewritten_store

from replay_app.commands import Start, Target
from replay_app.destinations import Destination
from replay_app.elements import StoredValue, values_at
from replay_app.encoders import make_encoder
from replay_app.events import EventMapping
from replay_app.pages import EncodeSpec, document_spans, split_page
from replay_app.plans import Planner
from replay_app.queries import advance, after
from replay_app.settings import Settings
from replay_app.store import EventStore

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
YEAR_1000 = datetime(1000, 1, 1, tzinfo=UTC)
BY_TIME = ("timestamp", "_id")
EVENTS = 24


def event(number: int, **fields: Any) -> Document:
    return {
        "_id": number,
        "number": number,
        "timestamp": T0 + timedelta(seconds=number // 2),
        "event_type": "t",
        "aggregate_id": f"o-{number // 8}",
        "meta": {"at": T0 + timedelta(seconds=number // 2)},
    } | fields


def milliseconds(time: datetime | DatetimeMS) -> bytes:
    return int(time if isinstance(time, DatetimeMS) else DatetimeMS(time)).to_bytes(
        8, "little", signed=True
    )


FAR_PAST = milliseconds(DatetimeMS(-(2**60)))
FIRST, LAST = T0 - timedelta(days=9), T0 + timedelta(days=9)
KINDS: dict[str, tuple[tuple[str, ...], Document, dict[bytes, bytes], bool]] = {
    # The order, what an odd event has beside a good one, the bytes that the proxy replaces, and
    # whether the proxy puts the old bytes back into the requests.
    "time twice, later": (
        BY_TIME,
        {"timestam2": LAST},
        {b"\ttimestam2\0": b"\ttimestamp\0"},
        False,
    ),
    "time twice, earlier": (
        BY_TIME,
        {"timestam2": FIRST},
        {b"\ttimestam2\0": b"\ttimestamp\0"},
        False,
    ),
    "id twice": (BY_TIME, {"_i2": 10**6}, {b"\x10_i2\0": b"\x10_id\0"}, False),
    "aggregate twice": (
        ("aggregate_id", *BY_TIME),
        {"aggregate_i2": "z"},
        {b"\x02aggregate_i2\0": b"\x02aggregate_id\0"},
        False,
    ),
    "time in a document twice": (
        ("meta.at", "_id"),
        {"met2": {"at": LAST}},
        {b"\x03met2\0": b"\x03meta\0"},
        False,
    ),
    "time far in the past": (
        BY_TIME,
        {"timestamp": YEAR_1000},
        {milliseconds(YEAR_1000): FAR_PAST},
        True,
    ),
    "id that is not UTF-8": (BY_TIME, {"_id": "text~~"}, {b"~~": b"\xff\xfe"}, True),
}
ODD = {
    "one by one": {0, 5, 10, 15, 23},
    "in a row": {0, 1, 2, 9, 10, 11, 12, 13, 22, 23},
    "all": set(range(EVENTS)),
}


async def walk(
    store: EventStore, sort: tuple[str, ...], page_events: int, encoder: str
) -> tuple[list[int], int]:
    """Read everything, with a new query after each page; return the events and the failures."""
    mapping = EventMapping(field_timestamp="meta.at" if sort[0] == "meta.at" else "timestamp")
    spec = EncodeSpec(
        mapping=mapping,
        target=Target(topic="t"),
        replay_id="r",
        attempt=1,
        name=None,
        reason=None,
        partitions={"t": 1},
        cursor_fields=sort,
        stop_at_failure=False,
        include_replayed=False,
        record_timestamp="append",
        compression="none",
        max_record_bytes=100_000,
    )
    found: list[int] = []
    failed, cursor = 0, None
    while True:
        pages = store.pages(after(cursor, sort), sort, page_events)
        page = await anext(pages, None)
        await pages.aclose()
        if page is None:
            return found, failed
        page, _ = split_page(page, page_events)
        encoded = make_encoder(spec, encoder).encode(page, 0)
        cursor = advance(cursor, encoded.cursor, encoded.unplaced)
        found += [number_of(page[slice(*span)]) for span in document_spans(page)]
        failed += len(encoded.failures)


def number_of(document: bytes) -> int:
    (value,) = values_at(document, "number")
    assert value is not None
    return int.from_bytes(value.content, "little")


@pytest.mark.parametrize("encoder", ["python", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_lost_or_repeated_around_odd_events(
    settings: Settings, events: Collection[Document], kind: str, odd: str, encoder: str
) -> None:
    sort, fields, changes, is_symmetric = KINDS[kind]
    events.insert_many(
        [
            event(number, **{name: of(value, number) for name, value in fields.items()})
            if number in ODD[odd]
            else event(number)
            for number in range(EVENTS)
        ]
    )
    back = {new: old for old, new in changes.items()} if is_symmetric else {}
    with rewritten_store(settings.mongo.get_secret_value(), changes, back) as uri:
        store = EventStore(settings.model_copy(update={"mongo": type(settings.mongo)(uri)}))
        for page_events in (1, 2, 5):
            found, failed = await walk(store, sort, page_events, encoder)
            assert sorted(found) == list(range(EVENTS))
            assert failed == len(ODD[odd])
        store.close()


def of(value: Any, number: int) -> Any:
    """Return a value that no other event has, where the value is text or a number."""
    if isinstance(value, str):
        return f"{value}{number:02}"
    return value + number if isinstance(value, int) else value


BAD_TEXT = {b"~~": b"\xff\xfe"}


@pytest.mark.parametrize("ordering", ["global", "aggregate"])
@pytest.mark.parametrize("field", ["event_type", "topic", "aggregate_id", "_id", "event_id"])
@pytest.mark.parametrize("kind", ["text", "date", "uuid"])
async def test_one_unreadable_value_does_not_fail_the_plan(
    settings: Settings, events: Collection[Document], kind: str, field: str, ordering: Any
) -> None:
    value, changes = {
        "text": ("or~~s", {b"or~~s\0": b"or\xff\xfes\0"}),
        "date": (YEAR_1000, {milliseconds(YEAR_1000): FAR_PAST}),
        "uuid": (b"0123456789", {b"\x0a\0\0\0\x000123456789": b"\x0a\0\0\0\x040123456789"}),
    }[kind]
    good = [event(number, topic="orders") for number in range(1, 10)]
    odd = event(0, topic="orders") | {field: value}
    events.insert_many([*good, odd])
    with rewritten_store(settings.mongo.get_secret_value(), changes) as uri:
        store = EventStore(settings.model_copy(update={"mongo": type(settings.mongo)(uri)}))
        start = Start(replay_id="r", ordering=ordering)
        plan = await Planner(start, settings, store, describe).plan()
        groups = await store.count_groups({}, [f"${field}"], 10)
        sample = await store.sample({}, field, 100, 10)
        store.close()
    assert plan.matched == 10
    assert plan.by_topic == {"orders": 9 if field in {"event_type", "topic"} else 10}
    (unreadable,) = [one for (one,) in groups if isinstance(one, StoredValue)]
    assert unreadable in sample
    assert sum(groups.values()) == len(sample) == 10


async def describe(topics: Iterable[str]) -> dict[str, Destination]:
    return {topic: Destination(1) for topic in topics if topic == "orders"}
