"""What a look at a real event store says of its types and fields, and what the look may cost."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo.collection import Collection

from replay_app.event_types import FIRST_EVENTS, MAX_BYTES, look_at_types, sample_events
from replay_app.events import EventMapping
from replay_app.store import EventStore, NoCollection

MAPPING = EventMapping()


def event(number: int, kind: str = "placed", **fields: Any) -> dict[str, Any]:
    return {"_id": number, "event_type": kind, "topic": f"shop.{kind}", **fields}


async def test_types_come_with_topics_and_fields_with_types(
    store: EventStore, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([event(number, amount=number) for number in range(5)])
    events.insert_many([event(9, "paid"), {"_id": 10, "topic": "no type"}])
    found = await look_at_types(store, MAPPING)
    assert [(one.name, one.topic, one.events) for one in found.types] == [
        ("placed", "shop.placed", 5),
        ("paid", "shop.paid", 1),
    ]
    fields = {one.path: one for one in found.fields}
    assert fields["amount"].types == ("int",)
    assert fields["amount"].example == "0"
    assert (found.looked_at, found.warnings) == (7, ())


async def test_a_collection_without_events_is_told(store: EventStore) -> None:
    with pytest.raises(NoCollection):
        await look_at_types(store, MAPPING)


async def test_large_events_do_not_fill_the_memory(
    store: EventStore, events: Collection[dict[str, Any]]
) -> None:
    size = 500_000
    for number in range(30):
        events.insert_one(event(number, value="x" * size))
    raw, _ = await sample_events(store, 200, 10.0, MAX_BYTES)
    assert 1 <= len(raw) < 30 <= FIRST_EVENTS
    assert sum(map(len, raw)) <= 2 * (MAX_BYTES + 2 * size)
    assert len((await look_at_types(store, MAPPING)).types) == 1
