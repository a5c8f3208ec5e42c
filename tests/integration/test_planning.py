"""The plan step of a work partition, on a store that counts slowly."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.collection import Collection

from replay_app.checkpoints import Origin, Token
from replay_app.commands import Pause, Resume, Start
from replay_app.context import WorkerContext
from replay_app.publisher import Outbox
from replay_app.queries import Query
from replay_app.reports import Report, decode_report
from replay_app.sessions import Session
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.topics import Topic
from replay_app.transitions import on_command, on_report
from replay_app.work_partition import WorkPartition

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NUMBERS = itertools.count(1)
"""Numbers for slices and for the offsets of tokens."""


class SlowStore(EventStore):
    """Counts only after `go_on` is set."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.go_on = asyncio.Event()
        self.counts = 0

    async def count_groups(
        self, query: Query, keys: Sequence[Any], seconds: float
    ) -> dict[tuple[Any, ...], int]:
        self.counts += 1
        await self.go_on.wait()
        return await super().count_groups(query, keys, seconds)


class KeepingOutbox(Outbox):
    """Keeps the plan reports that it sends."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.reports: list[Report] = []

    async def send(self, topic: Topic, key: str, value: bytes) -> None:
        await super().send(topic, key, value)
        report = decode_report(value)
        if report is not None and report.kind == "plan":
            self.reports.append(report)


@pytest.fixture
async def partition(
    start_worker: Callable[..., Awaitable[WorkerContext]], events: Collection[dict[str, Any]]
) -> AsyncIterator[WorkPartition]:
    events.insert_one({"_id": 1, "timestamp": T0, "event_type": "none"})
    worker = await start_worker(SlowStore, KeepingOutbox)
    following = asyncio.create_task(worker.board.follow())
    partition = WorkPartition(worker, 0)
    await partition.wait_until_open()
    yield partition
    await partition.close()
    following.cancel()
    await asyncio.wait([following])


async def plan(
    partition: WorkPartition, session: Session, until: Callable[[Session], bool]
) -> Session:
    """Run plan tokens one after another; return the session after their reports."""
    worker = partition.context
    assert isinstance(worker.outbox, KeepingOutbox)
    worker.board.sessions[session.replay_id] = session
    async with asyncio.timeout(20):
        while not until(session):
            number = next(NUMBERS)
            token = Token(
                replay_id="r1", shard="plan", epoch=session.epoch, slice=number, kind="plan"
            )
            known = len(worker.outbox.reports)
            await partition.run(token, Origin(0, number))
            for report in worker.outbox.reports[known:]:
                session = present(on_report(session, report, T0).session)
    return session


def present(session: Session | None) -> Session:
    assert session is not None
    return session


async def test_the_shards_are_reported_while_events_are_counted_and_the_plan_after_it(
    partition: WorkPartition,
) -> None:
    session = present(on_command(None, Start(replay_id="r1", dry_run=True), T0).session)
    session = await plan(partition, session, lambda session: bool(session.draft))
    assert (session.state, len(session.draft)) == ("planning", 1)
    store = partition.context.store
    assert isinstance(store, SlowStore)
    store.go_on.set()
    session = await plan(partition, session, lambda session: session.state != "planning")
    assert session.state == "failed"
    assert session.error is not None
    assert "missing destination topics: 'none'" in session.error


async def test_a_pause_ends_the_count_and_a_resume_begins_a_new_one(
    partition: WorkPartition,
) -> None:
    store = partition.context.store
    assert isinstance(store, SlowStore)
    session = present(on_command(None, Start(replay_id="r1"), T0).session)
    session = await plan(partition, session, lambda _: store.counts == 1)
    number = next(NUMBERS)
    token = Token(replay_id="r1", shard="plan", epoch=session.epoch, slice=number, kind="plan")
    running = asyncio.create_task(partition.run(token, Origin(0, number)))
    await asyncio.sleep(0.02)  # the token waits for the plan now
    session = present(on_command(session, Pause(replay_id="r1"), T0).session)
    partition.on_session(session)
    await running  # without an error
    session = present(on_command(session, Resume(replay_id="r1"), T0).session)
    session = await plan(partition, session, lambda _: store.counts == 2)
    assert session.state == "planning"
