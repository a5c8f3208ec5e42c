"""What a partition does with records that no worker of this version has written."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from pymongo.collection import Collection
from support import create_topics, read_topic, unique_name, write_transaction

from replay_app.checkpoints import Checkpoint, Origin, Token
from replay_app.commands import Start
from replay_app.context import WorkerContext
from replay_app.demo.stack import Stack
from replay_app.plans import Planner
from replay_app.reports import Counters, Report, ShardProgress, decode_report
from replay_app.sessions import Session, Shard
from replay_app.work_agent import WorkPartitions
from replay_app.work_partition import WorkPartition

SECONDS = 30.0
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def reports(context: WorkerContext) -> list[Report]:
    """Return all reports that were sent."""
    name = context.topics.progress.name
    found = [decode_report(record.value) for record in read_topic(context.settings.kafka, name)]
    return [report for report in found if report is not None and report.kind != "noop"]


async def running_session(
    context: WorkerContext,
    stack: Stack,
    events: Collection[dict[str, Any]],
    replay_id: str,
    read: int = 0,
) -> Session:
    """Return a running session over three events, with one shard that has read some of them."""
    topic = unique_name("target")
    create_topics(stack.kafka, {topic: 1})
    if not events.find_one():
        events.insert_many(
            {"_id": number, "timestamp": T0, "event_type": "placed"} for number in range(3)
        )
    start = Start.model_validate({"replay_id": replay_id, "target": {"topic": topic}})
    planner = Planner(start, context.settings, context.store, context.describe)
    return Session(
        replay_id=replay_id,
        revision=1,
        state="running",
        start=start,
        plan=await planner.plan(),
        shards=(Shard(progress=ShardProgress(counters=Counters(read=read, published=read))),),
        created_at=T0,
        updated_at=T0,
        progressed_at=T0,
        heard_at=T0,
    )


async def test_an_unreadable_checkpoint_fails_only_its_shard_and_stays_as_it_is(
    context: WorkerContext, stack: Stack, events: Collection[dict[str, Any]]
) -> None:
    sessions = [
        await running_session(context, stack, events, name, read)
        for name, read in (("bad", 2), ("good", 0))
    ]
    status = context.topics.status.name
    await write_transaction(
        context.settings, status, *((one.replay_id, one.encode()) for one in sessions)
    )
    checkpoints = context.topics.checkpoints.name
    await write_transaction(
        context.settings, checkpoints, ("old/0", b"{"), ("old/0", None), ("bad/0", b"{"), ("x", b"")
    )
    partitions = WorkPartitions(context)
    await partitions.assign([0])
    for number, replay_id in enumerate(("bad", "good")):
        token = Token(replay_id=replay_id, epoch=1, kind="emit")
        await partitions.handle(0, number, token.encode())
    assert partitions.unreadable() == {0: ("bad/0",)}
    assert b"replay_unreadable_checkpoints 1.0" in context.metrics.exposition()
    ignored = f'replay_ignored_records_total{{topic="{checkpoints}"}} 1.0'
    assert ignored.encode() in context.metrics.exposition()

    # The shard fails twice: when its partition opens, and when its token comes.
    bad = [report for report in reports(context) if report.replay_id == "bad"]
    assert [report.progress and report.progress.state for report in bad] == ["failed", "failed"]
    for report in bad:
        assert report.progress is not None
        assert report.progress.counters == Counters(read=2, published=2)  # as the session knows
        assert "the checkpoint 'bad/0'" in (report.progress.error or "")
        assert "cannot be read" in (report.progress.error or "")
    (good,) = [report for report in reports(context) if report.replay_id == "good"]
    assert good.progress is not None
    assert (good.progress.state, good.progress.counters.published) == ("done", 3)

    # A cancelled replay is stopped, and forgetting it removes the checkpoint.
    await partitions.handle(
        0, 2, Token(replay_id="bad", epoch=1, slice=2**31, kind="stop").encode()
    )
    stopped = reports(context)[-1]
    assert stopped.progress is not None
    assert (stopped.progress.state, stopped.progress.error) == ("stopped", None)
    await partitions.handle(0, 3, Token(replay_id="bad", kind="forget").encode())
    assert partitions.unreadable() == {}
    await partitions.revoke()
    again = WorkPartition(context, 0)
    await again.wait_until_open()
    assert list(again.checkpoints.newest) == ["good/0"]
    await again.close()


async def test_tokens_of_unknown_sessions_wait_aside_until_their_session_comes(
    context: WorkerContext, stack: Stack, events: Collection[dict[str, Any]]
) -> None:
    partitions = WorkPartitions(context)
    await partitions.assign([0])
    late = Token(replay_id="late", epoch=1, kind="emit")
    async with asyncio.timeout(SECONDS):  # each used to wait half a second, and to come again
        for number in range(100):
            token = Token(replay_id=f"unknown-{number}", epoch=1, kind="emit")
            await partitions.handle(0, number, token.encode())
        await partitions.handle(0, 100, late.encode())

    session = await running_session(context, stack, events, "late")
    await write_transaction(
        context.settings, context.topics.status.name, ("late", session.encode())
    )
    work = context.topics.work.name

    async def sent() -> list[Token]:
        records = await asyncio.to_thread(read_topic, context.settings.kafka, work)
        tokens = [Token.model_validate_json(record.value or b"") for record in records]
        return [token for token in tokens if token.kind != "noop"]

    async with asyncio.timeout(SECONDS):
        while not (tokens := await sent()):
            await asyncio.sleep(0.05)
    assert tokens == [late.model_copy(update={"origin": Origin(0, 100)})]
    await partitions.handle(0, 101, tokens[0].encode())
    (report,) = reports(context)
    assert report.progress is not None
    assert report.progress.state == "done"

    await partitions.revoke()  # the next owner may know the others
    assert len(await sent()) == 101
    assert {token.requeues for token in await sent()} == {0, 1}


async def test_a_token_of_a_shard_that_the_replay_does_not_have_changes_nothing(
    context: WorkerContext, stack: Stack, events: Collection[dict[str, Any]]
) -> None:
    session = await running_session(context, stack, events, "small")
    await write_transaction(
        context.settings, context.topics.status.name, ("small", session.encode())
    )
    partitions = WorkPartitions(context)
    await partitions.assign([0])
    await partitions.handle(0, 0, Token(replay_id="small", shard=7, epoch=1, kind="emit").encode())
    await partitions.handle(0, 1, Token(replay_id="small", shard=7, epoch=1, kind="stop").encode())
    assert reports(context) == []
    assert context.ignored.counts[context.topics.work.name] == 2
    await partitions.revoke()


async def test_a_checkpoint_that_belongs_to_another_key_is_unreadable(
    context: WorkerContext,
) -> None:
    token = Token(replay_id="a", epoch=1, kind="emit")
    checkpoint = Checkpoint.of_shard(token, Origin(0, 1), None, ShardProgress())
    await write_transaction(
        context.settings, context.topics.checkpoints.name, ("b/0", checkpoint.encode())
    )
    partition = WorkPartition(context, 0)
    await partition.wait_until_open()
    assert partition.checkpoints.newest == {}
    assert "the value belongs to 'a/0'" in partition.checkpoints.unreadable["b/0"]
    await partition.close()
