"""The readers of a work partition: opened for drafts, used by slices, limited in number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection

from replay_app.commands import Cancel, Start
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
    one = settings.model_copy(update={"partitions": 1})
    readers = Readers(one, store, 0, lambda _key: False)
    yield readers
    await readers.close()


def report_plan(session: Session, **fields: Any) -> Session:
    report = Report(replay_id="r1", kind="plan", shard="plan", epoch=session.epoch, **fields)
    after = on_report(session, report, T0).session
    assert after is not None
    return after


def session_with_draft(*shards: ShardPlan, replay_id: str = "r1") -> Session:
    """Return a session that has these shards as a draft while its events are counted."""
    session = on_command(None, Start(replay_id=replay_id), T0).session
    assert session is not None
    return report_plan(session, draft=shards, reason="counting")


def session_with_plan(session: Session, *shards: ShardPlan) -> Session:
    return report_plan(session, state="done", plan=Plan(end=T0, matched=10, shards=shards))


def take(readers: Readers, session: Session, number: int = 0) -> PageReader | None:
    """Return the reader that a slice gets."""
    assert session.plan is not None
    key = f"{session.replay_id}/{number}"
    return readers.take(key, session.start, session.plan.shards[number], None)


async def test_a_slice_takes_the_reader_that_was_opened_while_events_were_counted(
    readers: Readers, store: CountingStore
) -> None:
    session = session_with_draft(*SHARDS[:2])
    readers.on_session(session)
    assert await store.comes_to(opened=2)
    session = session_with_plan(session, *SHARDS[:2])
    readers.on_session(session)
    reader = take(readers, session)
    assert reader is not None
    assert await reader.next(5) is not None
    assert take(readers, session, 1) is not None
    assert store.opened == 2


async def test_a_plan_with_other_shards_than_its_draft_gets_new_readers(
    readers: Readers, store: CountingStore
) -> None:
    session = session_with_draft(SHARDS[0])
    readers.on_session(session)
    assert await store.comes_to(opened=1)
    assert take(readers, session_with_plan(session, SHARDS[1])) is not None
    assert await store.comes_to(opened=2, closed=1)


async def test_a_newer_draft_replaces_the_reader_of_the_older(
    readers: Readers, store: CountingStore
) -> None:
    readers.on_session(session_with_draft(SHARDS[0]))
    assert await store.comes_to(opened=1)
    readers.on_session(session_with_draft(SHARDS[1]))
    assert await store.comes_to(opened=2, closed=1)


@pytest.mark.parametrize("ending", ["cancelled", "nothing to do"])
async def test_readers_opened_for_nothing_are_closed(
    readers: Readers, store: CountingStore, ending: str
) -> None:
    session = session_with_draft(SHARDS[0])
    readers.on_session(session)
    assert await store.comes_to(opened=1)
    if ending == "cancelled":
        ended = on_command(session, Cancel(replay_id="r1"), T0).session
    else:
        ended = session_with_plan(session)
        report = Report(replay_id="r1", kind="finish", shard="finish", epoch=1, state="done")
        ended = on_report(ended, report, T0).session
    assert ended is not None
    readers.on_session(ended)
    assert await store.comes_to(opened=1, closed=1)


async def test_drafts_have_the_room_that_slices_leave(
    readers: Readers, store: CountingStore
) -> None:
    running = session_with_plan(session_with_draft(*SHARDS[:2]), *SHARDS[:2])
    assert take(readers, running) is not None
    readers.on_session(session_with_draft(*SHARDS, replay_id="r2"))
    assert await store.comes_to(opened=OPEN_READERS)
    assert take(readers, running, 1) is not None
    assert await store.comes_to(opened=OPEN_READERS + 1, closed=1)  # the reader of a draft
