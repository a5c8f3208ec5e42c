"""The audit at the end: how many events were stored behind the position of a replay."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection

from replay_app import audits
from replay_app.audits import Audit, audit
from replay_app.board import Board
from replay_app.commands import Start
from replay_app.context import WorkerContext
from replay_app.demo.stack import free_port
from replay_app.destinations import Destination
from replay_app.exceptions import ReplayFailed
from replay_app.plans import Planner
from replay_app.publisher import Outbox
from replay_app.reports import Counters, ShardProgress
from replay_app.sessions import Session, Shard
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore
from replay_app.topics import Topics

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = 10
NOT_COUNTED = {"counted": "after", "matched": None, "untimed": None}
LATE = "matching events lie behind the replay's position and are not published"


@pytest.fixture
def context(settings: Settings, store: EventStore) -> WorkerContext:
    """A worker's context that is not connected to Kafka: an audit asks the store only."""
    return WorkerContext(
        settings=settings,
        topics=Topics.of(settings),
        store=store,
        outbox=Outbox(settings),
        board=Board(settings),
        is_leaving=lambda: False,
    )


@pytest.fixture(autouse=True)
def _ten_events(events: Collection[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    events.insert_many(event(number) for number in range(EVENTS))
    monkeypatch.setattr(audits, "BEHIND_SECONDS", 60.0)  # for a slow machine


def event(number: int, **fields: Any) -> Document:
    time = T0 + timedelta(seconds=number)
    return {"_id": number, "timestamp": time, "event_type": "placed"} | fields


async def ended(
    context: WorkerContext,
    read: int = EVENTS,
    plan: Document | None = None,
    untimed: int = 0,
    **start: Any,
) -> Session:
    """Return the session of a replay whose last event is published."""

    async def describe(names: Iterable[str]) -> dict[str, Destination]:
        return {name: Destination(1) for name in names}

    command = Start.model_validate({"replay_id": "r", **start})
    made = await Planner(command, context.settings, context.store, describe).plan()
    progress = [
        ShardProgress(state="done", counters=Counters(read=number, published=number))
        for number in [read, untimed][: 1 + bool(untimed)]
    ]
    now = datetime.now(UTC)
    return Session(
        replay_id="r",
        state="running",
        start=command,
        plan=made.model_copy(update=plan or {}),
        shards=tuple(Shard(progress=one) for one in progress),
        finishing=True,
        created_at=now,
        updated_at=now,
        started_at=now,
        progressed_at=now,
        heard_at=now,
    )


@pytest.mark.parametrize(
    "start",
    [
        {},  # every event, also those without a time
        {"filter": {"start": "2026-01-01T00:00:00Z"}},
        {"filter": {"event_types": ["placed"]}},
        {"ordering": "aggregate", "shards": 2},
        {"max_events": 50},
    ],
)
async def test_events_that_were_stored_behind_the_position_are_counted(
    context: WorkerContext, events: Collection[Document], start: Document
) -> None:
    session = await ended(context, **start)
    assert await audit(session, context) == Audit((), 0)
    events.insert_many([event(20), event(21)])
    events.insert_one(event(22, timestamp=session.plan.end if session.plan else None))  # not before
    found = await audit(session, context)
    assert found.behind == 2
    (warning,) = found.warnings
    assert warning.startswith(f"2 {LATE}")


@pytest.mark.parametrize("plan", [{"untimed": 1}, {"untimed": None, "matched": None}])
async def test_events_without_a_time_were_read_and_are_not_behind(
    context: WorkerContext, events: Collection[Document], plan: Document
) -> None:
    events.insert_one(event(20, timestamp="yesterday"))
    session = await ended(context, EVENTS, plan, untimed=1)
    assert await audit(session, context) == Audit((), 0)


@pytest.mark.parametrize("start", [{}, {"filter": {"start": "2026-01-01T00:00:00Z"}}])
async def test_an_array_of_times_is_in_no_time_range_and_not_behind(
    context: WorkerContext, events: Collection[Document], start: Document
) -> None:
    session = await ended(context, **start)
    events.insert_many([event(20, timestamp=[T0, T0]), event(21)])
    assert (await audit(session, context)).behind == 1


@pytest.mark.parametrize("counted", ["beside", "after"])
async def test_a_count_beside_the_shards_does_not_fail_a_replay_that_has_read_less(
    context: WorkerContext, counted: str
) -> None:
    # The count of an attempt before, which one more event has come behind of.
    session = await ended(context, EVENTS - 1, {"counted": counted, "matched": EVENTS})
    changed, behind = (await audit(session, context)).warnings
    assert "the replay has read 9, and the store still has 10" in changed
    assert behind.startswith(f"1 {LATE}")
    session = await ended(context, EVENTS - 1, {"counted": "before", "matched": EVENTS})
    with pytest.raises(ReplayFailed, match="events were missed or read twice"):
        await audit(session, context)


@pytest.mark.parametrize("start", [{}, {"dry_run": True}])
async def test_a_replay_that_was_faster_than_its_count_says_if_it_has_read_more_than_there_is(
    context: WorkerContext,
    events: Collection[Document],
    monkeypatch: pytest.MonkeyPatch,
    start: Document,
) -> None:
    session = await ended(context, EVENTS + 2, NOT_COUNTED, **start)
    found = await audit(session, context)
    assert found.behind is None
    assert "has read 12 events with a time, and the store now has 10" in found.warnings[0]
    assert "or some were read twice" in found.warnings[0]
    events.insert_many(event(number) for number in range(100, 30_000))
    monkeypatch.setattr(audits, "BEHIND_SECONDS", 0.001)
    monkeypatch.setattr(audits, "BEHIND_SHARE", 0.0)
    (late,) = [one for one in (await audit(session, context)).warnings if "unknown" in one]
    assert "could not be counted within 0 s" in late


@pytest.mark.parametrize("start", [{}, {"dry_run": True}])
async def test_a_replay_that_was_faster_than_its_count_says_what_the_count_would_have_said(
    context: WorkerContext, events: Collection[Document], start: Document
) -> None:
    session = await ended(context, plan=NOT_COUNTED, **start)
    assert await audit(session, context) == Audit((), None if start else 0)
    events.insert_one(event(20, timestamp=datetime(2100, 1, 1, tzinfo=UTC)))
    (warning,) = (await audit(session, context)).warnings
    assert warning.startswith("1 matching events are left out: their times lie at or past")


async def test_a_replay_that_was_faster_than_its_count_says_what_has_no_time(
    context: WorkerContext, events: Collection[Document]
) -> None:
    session = await ended(context, plan=NOT_COUNTED, filter={"start": "2026-01-01T00:00:00Z"})
    events.insert_one(event(20, timestamp="yesterday"))
    (warning,) = (await audit(session, context)).warnings
    assert warning.startswith("1 matching events have no date in 'timestamp'")


async def test_a_replay_that_was_faster_than_its_count_and_read_nothing_says_why(
    context: WorkerContext,
) -> None:
    session = await ended(context, 0, NOT_COUNTED, filter={"event_types": ["never"]})
    (warning,) = (await audit(session, context)).warnings
    assert warning.startswith("the filter fits no event")


@pytest.mark.parametrize(("days", "expired"), [(1, True), (10_000_000, False)])
async def test_a_replay_that_was_faster_than_its_count_says_that_retention_may_delete(
    context: WorkerContext, days: int, expired: bool
) -> None:
    config = {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime"}
    keeps = config | {"retention.ms": str(days * 24 * 3600 * 1000)}

    async def describe(names: Iterable[str]) -> dict[str, Destination]:
        return {name: Destination(1, config=keeps) for name in names}

    original = context.settings.model_copy(update={"record_timestamp": "original"})
    context.settings = original
    context.describe = describe  # type: ignore[method-assign]
    session = await ended(context, plan=NOT_COUNTED)
    (shard,) = session.shards
    progress = shard.progress.model_copy(update={"by_topic": {"placed": EVENTS}})
    session = session.model_copy(update={"shards": (Shard(progress=progress),)})
    warnings = (await audit(session, context)).warnings
    assert len(warnings) == expired
    assert all(
        "the oldest event, of 2026-01-01T00:00:00Z, is older" in one and "'placed'" in one
        for one in warnings
    )


async def test_where_events_were_deleted_the_number_is_unknown(
    context: WorkerContext, events: Collection[Document]
) -> None:
    session = await ended(context)
    events.delete_one({"_id": 3})
    assert await audit(session, context) == Audit()


async def test_behind_the_last_of_the_first_events_nothing_is_counted(
    context: WorkerContext,
) -> None:
    assert await audit(await ended(context, 4, max_events=4), context) == Audit()


async def test_a_count_with_another_number_tells_what_lies_behind_too(
    context: WorkerContext, events: Collection[Document]
) -> None:
    session = await ended(context, EVENTS + 1)  # one event was stored before the position
    events.insert_many([event(20), event(21), event(22)])
    found = await audit(session, context)
    assert found.behind == 2
    changed, behind = found.warnings
    assert "counted 10 events, the replay has read 11, and the store now has 13" in changed
    assert behind.startswith(f"2 {LATE}")


async def test_a_count_that_takes_too_long_leaves_the_number_unknown_without_a_warning(
    context: WorkerContext, events: Collection[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await ended(context)
    events.insert_many(event(number) for number in range(100, 30_000))
    monkeypatch.setattr(audits, "BEHIND_SECONDS", 0.001)
    monkeypatch.setattr(audits, "BEHIND_SHARE", 0.0)
    assert await audit(session, context) == Audit()


async def test_a_store_that_does_not_answer_does_not_stop_the_end(
    context: WorkerContext,
) -> None:
    session = await ended(context)
    away = f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=200"
    context.store = EventStore(load_settings(mongo=away))
    try:
        found = await audit(session, context)
    finally:
        context.store.close()
    assert found.behind is None
    (warning,) = found.warnings
    told = "how many events lie behind the replay's position is unknown: the event store"
    assert warning.startswith(told)


async def test_a_dry_run_has_nothing_behind(context: WorkerContext) -> None:
    session = await ended(context, dry_run=True)
    assert await audit(session, context) == Audit()
