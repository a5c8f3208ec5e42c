"""Each kind of odd value, in each field that the mapping reads, on each way through a real store.

Only the event with the odd value may fail, and it fails by name: nothing else is lost, repeated or
held up, and no plan fails.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from bson import Binary, Decimal128, ObjectId
from pymongo.collection import Collection
from store_proxy import rewritten_store

from replay_app.commands import Start
from replay_app.destinations import Destination
from replay_app.elements import values_at
from replay_app.encoders import make_encoder
from replay_app.events import EventMapping
from replay_app.pages import EncodeSpec, document_spans, people_json, split_page
from replay_app.plans import Planner
from replay_app.queries import advance, after, all_of, compile_filter, from_json
from replay_app.reports import Plan
from replay_app.settings import Settings
from replay_app.store import EventStore

Document = dict[str, Any]
T0 = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
YEAR_1000 = dt.datetime(1000, 1, 1, tzinfo=dt.UTC)
EVENTS = 8
ODD = 3
"""The number of the odd event."""
FIELDS = ("event_type", "topic", "aggregate_id", "event_id", "_id", "timestamp")
ENCODERS = ("python", "native") if importlib.util.find_spec("replay_native") else ("python",)
NO_IDS = {
    "array",
    "empty array",
    "regular expression",
    "undefined",
    "null",
    "MinKey",
    "MaxKey",
    "twice",
}
"""Kinds that no _id has, in MongoDB or behind the proxy."""


@dataclass(frozen=True)
class OnTheWire:
    """A value that the development store cannot hold: what the store holds, and what is sent."""

    stored: Any
    kind: int
    """The BSON type of what is stored."""
    content: bytes
    """The content of what is stored."""
    sent_kind: int
    sent: bytes

    def changes(self, names: Iterable[str]) -> dict[bytes, bytes]:
        """Return what the proxy replaces: the value under each of the names."""
        return {
            bytes([self.kind]) + name.encode() + b"\0" + self.content: bytes([self.sent_kind])
            + name.encode()
            + b"\0"
            + self.sent
            for name in names
        }


def as_text(stored: str, sent_kind: int, sent: bytes) -> OnTheWire:
    """Return a value that stands in the store as a text of the same length."""
    content = struct.pack("<i", len(stored) + 1) + stored.encode() + b"\0"
    return OnTheWire(stored, 2, content, sent_kind, content[:4] + sent + b"\0")


def as_date(milliseconds: int) -> OnTheWire:
    stored = struct.pack("<q", round(YEAR_1000.timestamp() * 1000))
    return OnTheWire(YEAR_1000, 9, stored, 9, struct.pack("<q", milliseconds))


def as_bytes(data: bytes, sent_kind: int, sent: bytes) -> OnTheWire:
    content = struct.pack("<i", len(data)) + b"\x80" + data
    assert len(content) == len(sent)
    return OnTheWire(Binary(data, 0x80), 5, content, sent_kind, sent)


SUB_DOCUMENT = b"\x10\0\0\0\x02x\0\x03\0\0\0\xff\xfe\0\0\0"
TWICE = object()
"""Stands for a field that occurs twice, with another value the second time."""
VALUES: dict[str, Any] = {
    "twice": TWICE,
    "text that is not UTF-8": as_text("or~~s", 0x02, b"or\xff\xfes"),
    "symbol": as_text("or~~s", 0x0E, b"or~~s"),
    "code": as_text("or~~s", 0x0D, b"or~~s"),
    "date after 9999": as_date(2**60),
    "date before 1": as_date(-(2**60)),
    "undefined": OnTheWire(None, 0x0A, b"", 0x06, b""),
    "MinKey": OnTheWire(None, 0x0A, b"", 0xFF, b""),
    "MaxKey": OnTheWire(None, 0x0A, b"", 0x7F, b""),
    "UUID of 10 bytes": as_bytes(b"0123456789", 5, struct.pack("<i", 10) + b"\x040123456789"),
    "DBPointer": as_bytes(b"z" * 13, 0x0C, b"\x02\0\0\0a\0" + b"z" * 12),
    "regular expression": as_bytes(b"zz", 0x0B, b"abcd\0i\0"),
    "internal timestamp": as_bytes(b"zzz", 0x11, struct.pack("<II", 1, 2)),
    "code with scope": as_bytes(b"z" * 14, 0x0F, b"\x13\0\0\0\x06\0\0\0f(a)z\0\x05\0\0\0\0"),
    "document with bad text": as_bytes(b"z" * 11, 0x03, SUB_DOCUMENT),
    "null": None,
    "empty text": "",
    "document": {"a": 1},
    "array": ["o-1", "orders"],
    "empty array": [],
    "boolean": True,
    "int": 7,
    "NaN": float("nan"),
    "Decimal128": Decimal128("1.10"),
    "Decimal128 NaN": Decimal128("NaN"),
    "ObjectId": ObjectId("65920080000001000000002a"),
    "UUID": Binary(bytes(16), 4),
}


def event(number: int) -> Document:
    return {
        "_id": f"i-{number}",
        "number": number,
        "event_id": f"e-{number}",
        "event_type": f"t-{number % 2}",
        "aggregate_id": f"o-{number // 4}",
        "topic": "orders",
        "timestamp": T0 + dt.timedelta(seconds=number),
    }


async def describe(topics: Iterable[str]) -> dict[str, Destination]:
    return {topic: Destination(2) for topic in topics if topic in {"orders", "t-0", "t-1"}}


def number_of(document: bytes) -> int:
    (value,) = values_at(document, "number")
    assert value is not None
    return int.from_bytes(value.content, "little")


@contextlib.contextmanager
def stored(
    settings: Settings, events: Collection[Document], field: str, value: Any
) -> Iterator[EventStore]:
    """Give the store with good events and an odd one, through a proxy if need be."""
    documents = [event(number) for number in range(EVENTS)]
    changes: dict[bytes, bytes] = {}
    back: dict[bytes, bytes] = {}
    if isinstance(value, OnTheWire):
        documents[ODD][field] = value.stored
        changes = value.changes([field, "k0", "k1", "value", "low", "high"])
        asked = value.changes(["$eq", "$lt", "$gte", "$lte", "$literal", "1"])
        back = {new: old for old, new in asked.items()}
    elif value is TWICE:
        other = f"{field[:-1]}~"
        documents[ODD][other] = event(ODD + 4)[field]
        changes = {other.encode() + b"\0": field.encode() + b"\0"}
    else:
        documents[ODD][field] = value
    events.delete_many({})
    events.insert_many(documents)
    uri = settings.mongo.get_secret_value()
    way = rewritten_store(uri, changes, back) if changes else contextlib.nullcontext(uri)
    with way as uri:
        store = EventStore(settings.model_copy(update={"mongo": type(settings.mongo)(uri)}))
        try:
            yield store
        finally:
            store.close()


async def replay(
    start: Start, plan: Plan, mapping: EventMapping, store: EventStore
) -> tuple[list[int], dict[int, str], Counter[str]]:
    """Replay the shards of a plan with all encoders, and a new query after each page of 3 events.

    Return the numbers of the events read, the reasons of the failed ones, and the records by topic.
    """
    numbers: list[int] = []
    reasons: dict[int, str] = {}
    topics: Counter[str] = Counter()
    wanted = compile_filter(start.filter, mapping)
    for shard in plan.shards:
        spec = EncodeSpec(
            mapping=mapping,
            target=start.target,
            replay_id="r",
            attempt=1,
            name=None,
            reason=None,
            partitions=plan.partitions,
            cursor_fields=shard.sort,
            stop_at_failure=False,
            include_replayed=False,
            record_timestamp="append",
            compression="none",
            max_record_bytes=100_000,
        )
        cursor = None
        while True:
            query = all_of(wanted, from_json(shard.match), after(cursor, shard.sort))
            pages = store.pages(query, shard.sort, 3)
            page = await anext(pages, None)
            await pages.aclose()
            if page is None:
                break
            page, _ = split_page(page, 3)
            encoded, *others = (make_encoder(spec, name).encode(page, 0) for name in ENCODERS)
            for other in others:
                assert (other.read, other.by_topic) == (encoded.read, encoded.by_topic)
                assert other.failures == encoded.failures
            cursor = advance(cursor, encoded.cursor, encoded.unplaced)
            read = [number_of(page[slice(*span)]) for span in document_spans(page)]
            numbers += read
            topics.update(encoded.by_topic)
            for failure in encoded.failures:
                assert failure.missing_topic is None, failure.reason
                reasons[read[failure.index]] = failure.reason
                assert people_json(failure.document)
            assert len(numbers) <= EVENTS, "events are read again and again"
    return numbers, reasons, topics


EVERY_TYPE = {"event_types": ["t-0", "t-1"], "exclude_event_types": ["t-9"]}
EVERY_AGGREGATE = {
    "aggregate_ids": ["o-0", "o-1"],
    "start": "2025-01-01T00:00:00Z",
    "end": "2027-01-01T00:00:00Z",
}


@pytest.mark.parametrize("ordering", ["global", pytest.param("aggregate", marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", VALUES)
async def test_an_odd_value_fails_its_event_alone(
    settings: Settings, events: Collection[Document], kind: str, ordering: str
) -> None:
    mapping = settings.mapping
    others = [number for number in range(EVENTS) if number != ODD]
    # What the store cannot hold fails wherever it stands; a symbol is a text.
    is_unfit = (isinstance(VALUES[kind], OnTheWire) and kind != "symbol") or kind == "twice"
    for field in FIELDS:
        if field == "_id" and kind in NO_IDS:
            continue
        with stored(settings, events, field, VALUES[kind]) as store:
            for wanted in ({}, EVERY_TYPE, EVERY_AGGREGATE):
                start = Start.model_validate(
                    {"replay_id": "r", "ordering": ordering, "filter": wanted}
                )
                plan = await Planner(start, settings, store, describe).plan()
                numbers, reasons, topics = await replay(start, plan, mapping, store)
                what = (kind, field, wanted, reasons)
                assert sorted(numbers) in ([*range(EVENTS)], others), what
                assert numbers.count(ODD) == 1 or wanted, what
                assert reasons.keys() <= {ODD}, what
                if is_unfit and field != "_id" and ODD in numbers:  # _id is not published
                    assert reasons, what
                assert plan.matched == sum(plan.by_type.values()) == len(numbers), what
                assert topics.total() == len(numbers) - len(reasons), what
                assert topics.keys() <= plan.partitions.keys(), what


@pytest.mark.parametrize("kind", VALUES)
async def test_an_odd_value_hinders_no_look_at_the_stored_events(
    settings: Settings, events: Collection[Document], kind: str
) -> None:
    nothing = Start.model_validate({"replay_id": "r", "filter": {"event_types": ["nothing"]}})
    keyed = settings.model_copy(update={"field_key": "number"})
    for field in FIELDS:
        if field == "_id" and kind in NO_IDS:
            continue
        with stored(settings, events, field, VALUES[kind]) as store:
            plan = await Planner(nothing, settings, store, describe).plan()
            assert any("the filter fits no event" in warning for warning in plan.warnings)
            assert (await Planner(Start(replay_id="r"), keyed, store, describe).plan()).matched
