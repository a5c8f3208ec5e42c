"""The readers of a work partition: used by slices, limited in number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection

from replay_app.commands import Start
from replay_app.queries import Query, to_json
from replay_app.readers import OPEN_READERS, PageReader, Readers
from replay_app.reports import Plan, Report, ShardPlan
from replay_app.sessions import Session
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.transitions import on_command, on_report

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SHARDS = tuple(
    ShardPlan(match=to_json({"_id": {"$gte": low, "$lt": low + 10}}), sort=("timestamp", "_id"))
    for low in range(0, 60, 10)
)


class CountingStore(EventStore):
    """Counts the queries for pages that were opened and closed."""

    opened = 0
    closed = 0

    async def pages(
        self, query: Query, sort: Sequence[str], events: int
    ) -> AsyncGenerator[bytes, None]:
        self.opened += 1
        try:
            async for page in super().pages(query, sort, events):
                yield page
        finally:
            self.closed += 1

    async def comes_to(self, *, opened: int, closed: int = 0) -> bool:
        """Wait for these numbers of opened and closed queries; return False if more follow soon."""
        async with asyncio.timeout(5):
            while (self.opened, self.closed) != (opened, closed):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return (self.opened, self.closed) == (opened, closed)


@pytest.fixture
async def store(
    settings: Settings, events: Collection[dict[str, Any]]
) -> AsyncIterator[CountingStore]:
    events.insert_many(
        [{"_id": number, "timestamp": T0 + timedelta(seconds=number)} for number in range(60)]
    )
    store = CountingStore(settings)
    yield store
    store.close()


@pytest.fixture
async def readers(settings: Settings, store: CountingStore) -> AsyncIterator[Readers]:
    readers = Readers(lambda _start: (settings, store), lambda _key: False)
    yield readers
    await readers.close()


def session_with_plan(*shards: ShardPlan) -> Session:
    session = on_command(None, Start(replay_id="r1"), T0).session
    plan = Plan(end=T0, matched=10, shards=shards)
    report = Report(replay_id="r1", kind="plan", shard="plan", epoch=1, state="done", plan=plan)
    after = on_report(session, report, T0).session
    assert after is not None
    return after


def take(readers: Readers, session: Session, number: int = 0) -> PageReader | None:
    """Return the reader that a slice gets."""
    assert session.plan is not None
    key = f"{session.replay_id}/{number}"
    return readers.take(key, session.start, session.plan.shards[number], None)


async def test_a_shard_keeps_its_reader_from_slice_to_slice(
    readers: Readers, store: CountingStore
) -> None:
    session = session_with_plan(*SHARDS[:2])
    reader = take(readers, session)
    assert reader is not None
    assert take(readers, session) is reader
    assert take(readers, session, 1) is not reader
    assert await store.comes_to(opened=2)


async def test_a_reader_that_stands_elsewhere_is_replaced(
    readers: Readers, store: CountingStore
) -> None:
    session = session_with_plan(SHARDS[0])
    reader = take(readers, session)
    assert reader is not None
    assert await reader.next(5) is not None
    reader.position = "a cursor that no checkpoint has"
    assert take(readers, session) is not reader
    assert await store.comes_to(opened=2, closed=1)


async def test_a_shard_that_has_served_gives_its_place_to_the_next_one(
    readers: Readers, store: CountingStore
) -> None:
    session = session_with_plan(*SHARDS)
    first, *_ = [take(readers, session, number) for number in range(OPEN_READERS)]
    assert first is not None
    assert take(readers, session, OPEN_READERS) is None  # no shard has served a page yet
    assert readers.is_waiting(f"r1/{OPEN_READERS}")
    assert await first.next(5) is not None
    assert take(readers, session, OPEN_READERS) is not None
    assert await store.comes_to(opened=OPEN_READERS + 1, closed=1)
