"""The plan and count steps of a work partition, on a store that counts slowly."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection
from support import create_topics, unique_name

from replay_app import looks, plans, steps
from replay_app.checkpoints import Origin, Token
from replay_app.commands import Pause, Resume, Start
from replay_app.context import WorkerContext
from replay_app.destinations import Destination
from replay_app.exceptions import ReplayFailed
from replay_app.plans import Planner
from replay_app.publisher import Outbox
from replay_app.queries import Query
from replay_app.reports import Report, decode_report
from replay_app.sessions import Session
from replay_app.settings import Settings
from replay_app.store import EventStore, TimeLimitExceeded
from replay_app.store_checks import SAMPLE_EVENTS
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
    start_worker: Callable[..., Awaitable[WorkerContext]],
    events: Collection[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WorkPartition]:
    monkeypatch.setattr(steps, "SHARDS_FIRST_SECONDS", 0.1)  # no shard runs here
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


class NeverCounts(EventStore):
    """Counts so slowly that no plan which starts at once has its counts."""

    async def count_groups(
        self, query: Query, keys: Sequence[Any], seconds: float
    ) -> dict[tuple[Any, ...], int]:
        if seconds < 1:
            await asyncio.Event().wait()
        return await super().count_groups(query, keys, seconds)


TOPICS = {"orders": 3, "payments": 1, "named": 2}


async def describe(names: Iterable[str]) -> dict[str, Destination]:
    config = {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime"}
    return {name: Destination(TOPICS[name], config=config) for name in names if name in TOPICS}


@pytest.fixture
def slow(settings: Settings) -> Iterator[EventStore]:
    store = NeverCounts(settings)
    yield store
    store.close()


def planner(store: EventStore, settings: Settings, **fields: Any) -> Planner:
    start = Start.model_validate({"replay_id": "r1", **fields})
    return Planner(start, settings, store, describe)


def stored(number: int, **fields: Any) -> dict[str, Any]:
    time = T0 + timedelta(seconds=number)
    event = {"_id": number, "timestamp": time, "event_type": "orders", "aggregate_id": "a"}
    return event | fields


MANY = SAMPLE_EVENTS + 100


async def test_a_plan_that_starts_at_once_knows_the_topics_of_the_first_events(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(MANY)] + [stored(MANY, event_type="nowhere")])
    plan = await planner(slow, settings).plan(at_once=True)
    assert (plan.counted, plan.matched, plan.untimed) == ("running", None, None)
    assert plan.partitions == {"orders": 3}
    # No count says that every event has a time.
    assert [shard.is_untimed for shard in plan.shards] == [False, True]
    counted = await planner(slow, settings).count(plan)
    assert (counted.counted, counted.matched, counted.untimed) == ("beside", MANY + 1, 0)
    assert counted.by_topic == {"orders": MANY, "nowhere": 1}
    assert counted.partitions == {"orders": 3}
    assert "missing destination topics: 'nowhere' (1 events); create" in counted.warnings[0]
    full = await planner(slow, settings, target={"topics": {"nowhere": "named"}}).plan()
    assert (full.counted, full.matched, len(full.shards)) == ("before", MANY + 1, 1)


async def test_a_plan_that_starts_at_once_looks_for_each_type_of_the_filter(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(MANY)] + [stored(MANY, event_type="nowhere")])
    wanted = {"event_types": ["orders", "nowhere", "no event has this type"]}
    with pytest.raises(ReplayFailed, match="missing destination topics: 'nowhere'; create"):
        await planner(slow, settings, filter=wanted).plan(at_once=True)
    target = {"topics": {"nowhere": "named"}}
    plan = await planner(slow, settings, filter=wanted, target=target).plan(at_once=True)
    assert plan.partitions == {"orders": 3, "named": 2}


async def test_a_plan_that_starts_at_once_looks_for_each_type_that_an_index_has(
    slow: EventStore,
    settings: Settings,
    events: Collection[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(looks, "LOOK_AROUND_SECONDS", 5.0)  # this store reads all events for a type
    last = stored(MANY, event_type="nowhere")
    events.insert_many([stored(n) for n in range(MANY)] + [last, stored(MANY + 1, event_type=7)])
    assert (await planner(slow, settings).plan(at_once=True)).partitions == {"orders": 3}
    events.create_index([("event_type", -1), ("_id", 1)])
    with pytest.raises(ReplayFailed, match="missing destination topics: 'nowhere'; create"):
        await planner(slow, settings).plan(at_once=True)
    # A type of which no event matches needs no topic.
    before = {"start": T0.isoformat(), "end": last["timestamp"].isoformat()}
    plan = await planner(slow, settings, filter=before).plan(at_once=True)
    assert plan.partitions == {"orders": 3}
    monkeypatch.setattr(looks, "LOOK_AROUND_SECONDS", 0.001)
    assert (await planner(slow, settings).plan(at_once=True)).partitions == {}


async def test_a_plan_that_starts_at_once_needs_the_topics_that_the_command_names(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(3)])
    for target in ({"topic": "gone"}, {"topics": {"later": "gone"}}):
        with pytest.raises(ReplayFailed, match="missing destination topics: 'gone'; create"):
            await planner(slow, settings, target=target).plan(at_once=True)
    wanted = {"exclude_event_types": ["later"]}
    target = {"topics": {"later": "gone"}}
    plan = await planner(slow, settings, filter=wanted, target=target).plan(at_once=True)
    assert plan.partitions == {"orders": 3}


async def test_a_retry_that_starts_at_once_needs_the_topics_of_the_former_count(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(MANY)] + [stored(MANY, event_type="nowhere")])
    plan = await planner(slow, settings).plan(at_once=True)
    known = plan.model_copy(update={"by_topic": {"orders": MANY, "nowhere": 1}})
    with pytest.raises(ReplayFailed, match="missing destination topics: 'nowhere'; create"):
        await planner(slow, settings).plan(known, at_once=True)
    again = await planner(slow, settings).plan(plan, at_once=True)
    assert (again.end, again.shards) == (plan.end, plan.shards)


async def test_a_plan_that_starts_at_once_knows_that_nothing_matches(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(3)])
    wanted = {"start": T0.isoformat(), "event_types": ["no event has this type"]}
    plan = await planner(slow, settings, filter=wanted).plan(at_once=True)
    assert (plan.counted, plan.matched, plan.shards) == ("before", 0, ())
    assert "the filter fits no event. In a sample of 3 events" in plan.warnings[0]


async def test_a_plan_that_starts_at_once_refuses_a_mapping_that_fits_no_event(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(3)])
    other = settings.model_copy(update={"field_type": "kind"})
    with pytest.raises(ReplayFailed, match="the mapping fits no event: of 6 events"):
        await planner(slow, other).plan(at_once=True)


async def test_a_store_that_answers_no_look_is_planned_all_the_same(
    settings: Settings, events: Collection[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looks, "LOOK_AROUND_SECONDS", 0.001)
    monkeypatch.setattr(plans, "AT_ONCE_SECONDS", 0.001)
    events.insert_many([stored(n) for n in range(3)])
    store = EventStore(settings)
    fields = {"filter": {"event_types": ["orders"]}, "target": {"topics": {"orders": "named"}}}
    plan = await planner(store, settings, **fields).plan(at_once=True)
    store.close()
    assert (plan.counted, plan.matched, plan.partitions) == ("running", None, {"named": 2})


class TooManyEvents(EventStore):
    """Cannot count within the time of a plan."""

    async def count_groups(
        self, query: Query, keys: Sequence[Any], seconds: float
    ) -> dict[tuple[Any, ...], int]:
        msg = f"counting {query} by {keys} takes more than {seconds:g} s"
        raise TimeLimitExceeded(msg)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kind", [EventStore, TooManyEvents])
async def test_a_plan_refuses_a_live_topic_where_the_setting_forbids_that(
    settings: Settings,
    events: Collection[dict[str, Any]],
    kind: type[EventStore],
    at_once: bool,
) -> None:
    """Also where the events cannot be counted in time: the first events tell their topics then."""
    events.insert_many([stored(n) for n in range(3)])
    forbids, store = settings.model_copy(update={"allow_original": False}), kind(settings)
    for target in ({}, {"topic": "orders"}, {"topics": {"orders": "orders"}, "topic": "named"}):
        with pytest.raises(ReplayFailed, match="publish to live topics of its events, 'orders'"):
            await planner(store, forbids, target=target).plan(at_once=at_once)
        # Nothing is published by a dry run.
        await planner(store, forbids, target=target, dry_run=True).plan(at_once=at_once)
    plan = await planner(store, forbids, target={"topic": "named"}).plan(at_once=at_once)
    assert plan.partitions == {"named": 2}
    store.close()


async def test_a_count_warns_of_a_live_topic_where_the_setting_forbids_that(
    slow: EventStore, settings: Settings, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many([stored(n) for n in range(3)])
    plan = await planner(slow, settings).plan(at_once=True)  # by a worker with another setting
    forbids = settings.model_copy(update={"allow_original": False})
    counted = await planner(slow, forbids).count(plan)
    assert any("REPLAY_ALLOW_ORIGINAL=false forbids" in one for one in counted.warnings)


async def test_where_live_topics_are_forbidden_the_count_comes_first(
    partition: WorkPartition,
) -> None:
    forbids = partition.context.settings.model_copy(update={"allow_original": False})
    partition.context.settings = forbids
    start = Start.model_validate({"replay_id": "r1", "target": {"prefix": "a."}})
    session = present(on_command(None, start, T0).session)
    session = await run_steps(partition, session, lambda session: session.state == "planning")
    assert session.reason == "counting the matching events"
    store = partition.context.store
    assert isinstance(store, SlowStore)
    store.go_on.set()
    session = await run_steps(partition, session, lambda session: session.state != "planning")
    assert "missing destination topics" in (session.error or "")


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
