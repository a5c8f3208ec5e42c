"""Control records in topics that get more partitions during a replay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from brokers import Brokers
from support import create_topics, unique_name

from replay_app.commands import Start
from replay_app.context import WorkerContext
from replay_app.demo.stack import Stack
from replay_app.publisher import Outbox
from replay_app.reports import Plan
from replay_app.sessions import Session
from replay_app.steps import control_batches
from replay_app.store import EventStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_the_end_is_announced_in_partitions_that_are_a_moment_old(
    stack: Stack, start_worker: Callable[..., Awaitable[WorkerContext]]
) -> None:
    context = await start_worker(EventStore, Outbox)
    topic = unique_name("grown")
    create_topics(stack.kafka, {topic: 2})
    session = Session(
        replay_id="r1",
        start=Start(replay_id="r1", control_records=True),
        plan=Plan(end=NOW, matched=0, partitions={topic: 2}),
        created_at=NOW,
        updated_at=NOW,
        progressed_at=NOW,
        heard_at=NOW,
    )
    known = await context.destinations([topic])  # which the worker remembers
    assert known[topic].partitions == 2
    Brokers(stack.kafka).grow({topic: 4})
    batches = await control_batches(session, context, "end")
    assert [batch.partition for batch in batches] == [0, 1, 2, 3]
