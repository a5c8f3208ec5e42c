"""The plan and count steps of a work partition, on a store that counts slowly."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo.collection import Collection
from support import create_topics, unique_name

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
        self, query: Query, keys: Sequence[Any], seconds: float, first: int = 0
    ) -> dict[tuple[Any, ...], int]:
        if not first:
            self.counts += 1
            await self.go_on.wait()
        return await super().count_groups(query, keys, seconds, first)


class KeepingOutbox(Outbox):
    """Keeps the reports of plans and counts that it sends."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.reports: list[Report] = []

    async def send(self, topic: Topic, key: str, value: bytes) -> None:
        await super().send(topic, key, value)
        report = decode_report(value)
        if report is not None and report.kind in {"plan", "count"}:
            self.reports.append(report)


@pytest.fixture
async def partition(
    start_worker: Callable[..., Awaitable[WorkerContext]], events: Collection[dict[str, Any]]
) -> AsyncIterator[WorkPartition]:
    topic = unique_name("orders")
    events.insert_one({"_id": 1, "timestamp": T0, "event_type": topic})
    worker = await start_worker(SlowStore, KeepingOutbox)
    create_topics(worker.settings.kafka, {topic: 1})
    following = asyncio.create_task(worker.board.follow())
    partition = WorkPartition(worker, 0)
    await partition.wait_until_open()
    yield partition
    await partition.close()
    following.cancel()
    await asyncio.wait([following])


async def run_steps(
    partition: WorkPartition, session: Session, until: Callable[[Session], bool]
) -> Session:
    """Run the tokens of the plan or the count, one after another; return the session after them."""
    worker = partition.context
    assert isinstance(worker.outbox, KeepingOutbox)
    async with asyncio.timeout(20):
        while not until(session):
            worker.board.sessions[session.replay_id] = session
            step: Any = "count" if session.is_counting else "plan"
            number = next(NUMBERS)
            token = Token(replay_id="r1", shard=step, epoch=session.epoch, slice=number, kind=step)
            known = len(worker.outbox.reports)
            await partition.run(token, Origin(0, number))
            for report in worker.outbox.reports[known:]:
                session = present(on_report(session, report, T0).session)
    return session


def present(session: Session | None) -> Session:
    assert session is not None
    return session


async def test_the_shards_begin_before_the_events_are_counted(partition: WorkPartition) -> None:
    session = present(on_command(None, Start(replay_id="r1", dry_run=True), T0).session)
    session = await run_steps(partition, session, lambda session: session.state == "running")
    assert session.matched is None
    assert session.is_counting
    store = partition.context.store
    assert isinstance(store, SlowStore)
    store.go_on.set()
    session = await run_steps(partition, session, lambda session: not session.is_counting)
    assert session.matched == 1


async def test_a_full_preflight_counts_first(partition: WorkPartition) -> None:
    start = Start(replay_id="r1", dry_run=True, preflight="full")
    session = present(on_command(None, start, T0).session)
    session = await run_steps(partition, session, lambda session: session.state == "planning")
    assert session.reason == "counting the matching events"
    store = partition.context.store
    assert isinstance(store, SlowStore)
    store.go_on.set()
    session = await run_steps(partition, session, lambda session: session.state != "planning")
    assert (session.state, session.matched) == ("running", 1)


async def test_a_topic_that_a_look_finds_missing_fails_the_plan(
    partition: WorkPartition, events: Collection[dict[str, Any]]
) -> None:
    events.insert_one({"_id": 2, "timestamp": T0, "event_type": "nowhere"})
    session = present(on_command(None, Start(replay_id="r1"), T0).session)
    session = await run_steps(
        partition, session, lambda session: session.state in {"failed", "running"}
    )
    assert session.state == "failed"
    assert "missing destination topics: 'nowhere'" in (session.error or "")


@pytest.mark.parametrize("preflight", ["quick", "full"])
async def test_a_pause_ends_the_count_and_a_resume_begins_a_new_one(
    partition: WorkPartition, preflight: str
) -> None:
    store = partition.context.store
    assert isinstance(store, SlowStore)
    step: Any = "plan" if preflight == "full" else "count"
    before = 0 if preflight == "full" else 1  # a quick plan tries to count first
    start = Start.model_validate({"replay_id": "r1", "preflight": preflight})
    session = present(on_command(None, start, T0).session)
    session = await run_steps(partition, session, lambda _: store.counts == before + 1)
    number = next(NUMBERS)
    token = Token(replay_id="r1", shard=step, epoch=session.epoch, slice=number, kind=step)
    running = asyncio.create_task(partition.run(token, Origin(0, number)))
    await asyncio.sleep(0.02)  # the token waits for the count now
    session = present(on_command(session, Pause(replay_id="r1"), T0).session)
    partition.on_session(session)
    await running  # without an error
    session = present(on_command(session, Resume(replay_id="r1"), T0).session)
    session = await run_steps(partition, session, lambda _: store.counts == before + 2)
    assert (session.state, session.is_counting) == (
        ("planning", False) if preflight == "full" else ("running", True)
    )
