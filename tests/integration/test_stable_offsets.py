"""What open transactions of other producers hide, and what a replay says of them at its end."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection
from support import (
    create_topics,
    open_transactions,
    read_topic,
    unique_name,
    wait_until,
    write_transaction,
)

from replay_app import steps
from replay_app.audits import Audit, audit
from replay_app.checkpoints import Checkpoint, Origin, Token
from replay_app.commands import Filter, Start
from replay_app.compacted import CompactedReader
from replay_app.context import WorkerContext
from replay_app.demo.stack import Stack, free_port
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.plans import Planner
from replay_app.publisher import FencedProducer
from replay_app.reports import Counters, Failure, Offsets, ShardProgress, decode_report
from replay_app.sessions import Session, Shard
from replay_app.sessions_agent import SessionPartitions
from replay_app.settings import load_settings
from replay_app.stable_offsets import ConsumerWatch, find_hidden_records
from replay_app.work_partition import WorkPartition

SECONDS = 30.0
T0 = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_reader_does_not_go_on_from_less_than_what_is_committed(
    context: WorkerContext, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.compacted.OBSTACLE_SECONDS", 0.1)
    settings, topic = context.settings, context.topics.checkpoints.name
    await write_transaction(settings, topic, ("k", b"old"))
    reader = CompactedReader(settings, settings.kafka, topic, [0])
    await reader.start()

    async def read() -> list[bytes]:
        return [record.value async for record in reader.read_to_end()]

    with open_transactions(settings.kafka, {topic: 1}):
        await write_transaction(settings, topic, ("k", b"new"))
        reading = asyncio.create_task(read())
        async with asyncio.timeout(SECONDS):
            while "open transaction of producer id" not in caplog.text:
                await asyncio.sleep(0.05)
        assert not reading.done()
    async with asyncio.timeout(SECONDS):
        assert await reading == [b"old", b"new"]
    await reader.stop()
    assert f"partition 0 of {topic!r} stands still at offset 2" in caplog.text
    assert f"abort --topic {topic} --partition 0 --start-offset 2" in caplog.text


async def test_the_board_waits_for_what_an_open_transaction_hides(context: WorkerContext) -> None:
    topic = context.topics.status.name
    with open_transactions(context.settings.kafka, {topic: 1}):
        await write_transaction(context.settings, topic, ("r1", new_session().encode()))
        waiting = asyncio.create_task(context.board.caught_up(0))
        await asyncio.wait([waiting], timeout=1)
        assert not waiting.done()
    async with asyncio.timeout(SECONDS):
        await waiting
    assert "r1" in context.board.sessions


def new_session() -> Session:
    return Session(
        replay_id="r1",
        start=Start(replay_id="r1"),
        created_at=T0,
        updated_at=T0,
        progressed_at=T0,
        heard_at=T0,
    )


def nudge_of(context: WorkerContext) -> str | None:
    """Return the reason of the last nudge."""
    records = read_topic(context.settings.kafka, context.topics.progress.name)
    reports = [decode_report(record.value) for record in records]
    return next((one.reason for one in reports[::-1] if one and one.kind == "nudge"), None)


@pytest.mark.parametrize("held", ["checkpoints", "status"])
async def test_a_partition_stays_closed_and_says_why_until_everything_can_be_read(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    monkeypatch.setattr("replay_app.compacted.OBSTACLE_SECONDS", 0.1)
    monkeypatch.setattr("replay_app.board.OBSTACLE_SECONDS", 0.1)
    monkeypatch.setattr("replay_app.compacted.HELD_SECONDS", 1.0)
    monkeypatch.setattr("replay_app.board.CAUGHT_UP_SECONDS", 2.0)
    monkeypatch.setattr("replay_app.work_partition.BACKOFF_SECONDS", (0.1, 0.1, 0.1))
    topic = getattr(context.topics, held).name
    token = Token(replay_id="r1", epoch=1, kind="emit")
    checkpoint = Checkpoint.of_shard(token, Origin(0, 0), None, ShardProgress(state="stopped"))
    await write_transaction(
        context.settings, context.topics.checkpoints.name, ("r1/0", checkpoint.encode())
    )
    context.board.sessions["r1"] = new_session()
    partition = WorkPartition(context, 0)
    with open_transactions(context.settings.kafka, {topic: 1}):
        partition.open()
        async with asyncio.timeout(SECONDS):
            while not context.obstacles:
                await asyncio.sleep(0.05)
        (why,) = context.obstacles.values()
        assert why.startswith(f"partition 0 of {context.topics.work.name} cannot be opened: ")
        assert f"partition 0 of {topic!r} stands still at offset" in why
        assert "open transaction of producer id" in why
        assert not await partition.is_open_within(0.1)
        reason = await asyncio.to_thread(wait_until, lambda: nudge_of(context), SECONDS)
        assert reason.startswith(f"partition 0 of {context.topics.work.name} cannot be opened: ")
    # From here on, no limit may end a try that would succeed on a slow machine.
    monkeypatch.setattr("replay_app.compacted.HELD_SECONDS", SECONDS)
    monkeypatch.setattr("replay_app.board.CAUGHT_UP_SECONDS", SECONDS)
    async with asyncio.timeout(SECONDS):
        await partition.wait_until_open()
    assert not context.obstacles
    assert set(partition.checkpoints.newest) == {"r1/0"}
    await partition.close()


async def test_no_step_of_a_session_is_taken_before_the_newest_session_is_known(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.board.OBSTACLE_SECONDS", 0.1)
    monkeypatch.setattr("replay_app.board.CAUGHT_UP_SECONDS", 2.0)
    agent = SessionPartitions(context, {}, lambda: True)
    await agent.assign([0])
    command = Start(replay_id="r1", filter=Filter(all=True)).model_dump_json().encode()
    with open_transactions(context.settings.kafka, {context.topics.status.name: 1}):
        handling = asyncio.create_task(agent.handle_request(0, 1, command))
        async with asyncio.timeout(SECONDS):
            while not context.obstacles:
                await asyncio.sleep(0.05)
        (why,) = context.obstacles.values()
        assert "is not read to its end within 2 s" in why
        assert "open transaction of producer id" in why
        assert not handling.done()
    monkeypatch.setattr("replay_app.board.CAUGHT_UP_SECONDS", SECONDS)  # for a slow machine
    async with asyncio.timeout(SECONDS):
        await handling
    assert not context.obstacles
    async with asyncio.timeout(SECONDS):
        while "r1" not in context.board.sessions:
            await asyncio.sleep(0.05)
    await agent.revoke()


# The end of a replay


async def session_of(context: WorkerContext, topic: str, read: int, **offsets: Any) -> Session:
    """Return the session of a replay that has read events and is about to finish."""
    start = Start.model_validate({"replay_id": "r1", "target": {"topic": topic}})
    planner = Planner(start, context.settings, context.store, context.describe)
    progress = ShardProgress(state="done", counters=Counters(read=read, published=read))
    return Session(
        replay_id="r1",
        state="running",
        start=start,
        plan=await planner.plan(),
        shards=(Shard(progress=progress),),
        finishing=True,
        created_at=T0,
        updated_at=T0,
        progressed_at=T0,
        heard_at=T0,
        **offsets,
    )


@pytest.fixture
def topic(stack: Stack) -> str:
    name = unique_name("hidden")
    create_topics(stack.kafka, {name: 1})
    return name


@pytest.fixture
def three_events(events: Collection[dict[str, Any]]) -> None:
    events.insert_many(
        {"_id": number, "timestamp": T0 + timedelta(seconds=number), "event_type": "placed"}
        for number in range(3)
    )


@pytest.mark.usefixtures("three_events")
async def test_a_replay_does_not_complete_while_consumers_cannot_see_its_records(
    context: WorkerContext, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = WorkPartition(context, 0)
    await partition.wait_until_open()

    async def finish(slice_number: int) -> Checkpoint:
        token = Token(replay_id="r1", shard="finish", epoch=1, slice=slice_number, kind="finish")
        await partition.run(token, Origin(0, slice_number))
        return partition.checkpoints.newest["r1/finish"]

    with open_transactions(context.settings.kafka, {topic: 1}):
        offset = await write_transaction(context.settings, topic, ("k", b"replayed"))
        session = await session_of(context, topic, 3, offsets={topic: {0: (offset, offset)}})
        context.board.sessions["r1"] = session
        waits = (await finish(1)).report
        assert waits.state == "live"
        assert "consumers do not see all" in (waits.reason or "")
        assert "behind an open transaction of producer id" in (waits.reason or "")
        monkeypatch.setattr(steps, "HIDDEN_SECONDS", 0.0)
        failed = (await finish(2)).report
        assert failed.state == "failed"
        assert "read_committed consumers do not see all of them" in (failed.error or "")
        assert f"abort --topic {topic} --partition 0 --start-offset 0" in (failed.error or "")
    assert (await finish(3)).report.state == "done"  # what a retry does
    await partition.close()


@pytest.mark.usefixtures("three_events")
@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "committed"])
async def test_a_slice_without_marker_fails_the_replay_until_consumers_see_the_slice(
    context: WorkerContext, topic: str, monkeypatch: pytest.MonkeyPatch, *, dropped: bool
) -> None:
    monkeypatch.setattr(steps, "HIDDEN_SECONDS", 0.0)
    partition = WorkPartition(context, 0)
    await partition.wait_until_open()
    # To consumers, an open transaction is the same as a committed one whose marker is lost.
    slices = await FencedProducer(
        context.settings, context.settings.kafka, unique_name("w")
    ).start()
    await slices.begin()
    await slices.send(topic, partition=0, value=b"v", headers=[("replay-id", b"r1")])
    (ack,) = slices._unacked
    assert (await ack).offset == 0
    context.board.sessions["r1"] = await session_of(context, topic, 3, offsets={topic: {0: (0, 0)}})

    async def finish(epoch: int) -> Checkpoint:
        token = Token(replay_id="r1", shard="finish", epoch=epoch, kind="finish")
        context.board.sessions["r1"] = context.board.sessions["r1"].model_copy(
            update={"epoch": epoch}
        )
        await partition.run(token, Origin(0, epoch))
        return partition.checkpoints.newest["r1/finish"]

    error = (await finish(1)).report.error or ""
    assert "lost the marker of a committed slice of this replay, of producer id" in error
    assert f"partition 0 of {topic!r} stands still at offset 0" in error
    await (slices.abort() if dropped else slices.commit())
    for epoch in (2, 3):  # a retry does not change what consumers see
        report = (await finish(epoch)).report
        assert report.state == ("failed" if dropped else "done")
        told = f"consumers never see the events in partition 0 of {topic!r} (offset 0)"
        assert (told in (report.error or "")) == dropped
    await slices.discard()
    await partition.close()


async def test_seen_records_need_no_explanation(context: WorkerContext, topic: str) -> None:
    offset = await write_transaction(context.settings, topic, ("k", b"replayed"))
    written = {topic: {0: (offset, offset)}}
    assert await find_hidden_records(context.settings, written, "r1") is None
    assert await find_hidden_records(context.settings, {}, "r1") is None


async def test_a_topic_that_is_gone_is_named_within_a_time_limit(
    context: WorkerContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.stable_offsets.ANSWER_SECONDS", 1.0)
    gone = unique_name("gone")
    async with asyncio.timeout(SECONDS):
        with pytest.raises(Unavailable, match=gone):
            await find_hidden_records(context.settings, {gone: {0: (0, 0)}}, "r1")


# While a replay runs


async def look_until(watch: ConsumerWatch, written: Offsets, *, is_found: bool) -> str | None:
    async with asyncio.timeout(SECONDS):
        while bool(found := watch.hidden_records("r1", written)) is not is_found:
            await asyncio.sleep(0.05)
    return found


async def test_a_watch_tells_what_consumers_do_not_see_until_they_see_it(
    context: WorkerContext, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.stable_offsets.LOOK_SECONDS", 0.2)
    watch = ConsumerWatch(context.settings)
    offset = await write_transaction(context.settings, topic, ("k", b"seen"))
    written: Offsets = {topic: {0: (offset, offset)}}
    assert watch.hidden_records("r1", written) is None
    with open_transactions(context.settings.kafka, {topic: 1}):
        hidden = await write_transaction(context.settings, topic, ("k", b"hidden"))
        written = {topic: {0: (offset, hidden)}}
        told = await look_until(watch, written, is_found=True)
        assert f"partition 0 of {topic!r} stands still at offset" in (told or "")
        assert watch.hidden_records("another", written) is None
    assert await look_until(watch, written, is_found=False) is None
    watch.forget("r1", "another")


async def test_a_watch_keeps_what_it_has_found_while_the_broker_is_away(
    context: WorkerContext,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("replay_app.stable_offsets.LOOK_SECONDS", 0.2)
    watch = ConsumerWatch(context.settings)
    with open_transactions(context.settings.kafka, {topic: 1}):
        hidden = await write_transaction(context.settings, topic, ("k", b"hidden"))
        written: Offsets = {topic: {0: (hidden, hidden)}}
        told = await look_until(watch, written, is_found=True)
        watch._settings = load_settings(kafka=f"127.0.0.1:{free_port()}")
        async with asyncio.timeout(SECONDS):
            while "does not tell the stable offsets" not in caplog.text:
                assert watch.hidden_records("r1", written) == told
                await asyncio.sleep(0.05)
    assert watch.hidden_records("r1", written) == told
    watch.forget("r1")


# The account of a replay


@pytest.mark.usefixtures("three_events")
async def test_the_account_of_an_unchanged_store_must_agree(
    context: WorkerContext, topic: str
) -> None:
    assert await audit(await session_of(context, topic, 3), context) == Audit((), 0)
    for read in (2, 4):
        session = await session_of(context, topic, read)
        told = f"counted 3 events, the replay has read {read}, and the store still has 3"
        with pytest.raises(ReplayFailed, match=told):
            await audit(session, context)


@pytest.mark.usefixtures("three_events")
async def test_a_store_that_changed_is_named_with_its_numbers(
    context: WorkerContext, topic: str, events: Collection[dict[str, Any]]
) -> None:
    session = await session_of(context, topic, 1)
    events.delete_one({"_id": 2})
    found = await audit(session, context)
    assert "counted 3 events, the replay has read 1, and the store now has 2" in found.warnings[0]
    assert found.behind == 1


@pytest.mark.usefixtures("three_events")
async def test_a_store_that_changed_between_two_attempts_is_no_error(
    context: WorkerContext, topic: str
) -> None:
    session = await session_of(context, topic, 4, planned_matches=(4, 3))
    (warning,) = (await audit(session, context)).warnings
    assert "counted 3 events, the replay has read 4, and the store now has 3" in warning


@pytest.mark.usefixtures("three_events")
async def test_a_dry_run_in_which_no_event_can_be_replayed_fails(
    context: WorkerContext, topic: str
) -> None:
    session = await session_of(context, topic, 3)
    dry = session.model_copy(update={"start": session.start.model_copy(update={"dry_run": True})})
    bad = ShardProgress(
        state="done",
        counters=Counters(read=3, skipped=3),
        failed=3,
        failures=(Failure(event_id="0", reason="it has no type"),),
    )
    all_bad = dry.model_copy(update={"shards": (Shard(progress=bad),)})
    told = "none of the 3 events could be replayed. The first, event '0': it has no type. Correct"
    with pytest.raises(ReplayFailed, match=re.escape(told)):
        await audit(all_bad, context)
    one_good = bad.model_copy(update={"failed": 2, "valid": 1})
    one_bad = dry.model_copy(update={"shards": (Shard(progress=one_good),)})
    assert await audit(one_bad, context) == Audit()
    assert await audit(dry, context) == Audit()  # every event is itself a replay
