"""Replays under a producer quota: transactions shrink until they end within their time limit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaClient, AIOKafkaConsumer, TopicPartition
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String
from pymongo.collection import Collection
from support import create_topics, read_topic, unique_name

from replay_app.board import Board
from replay_app.budgets import ByteBudget
from replay_app.checkpoints import Token
from replay_app.commands import Start
from replay_app.context import WorkerContext
from replay_app.demo.stack import EmbeddedServers, Stack
from replay_app.plans import Planner
from replay_app.publisher import Outbox
from replay_app.sessions import Session, Shard
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore
from replay_app.topics import Topics, ensure_topics
from replay_app.work_agent import WorkPartitions

TRANSACTION_SECONDS = 6.0
"""Instead of a minute, so that the test is short. The broker is not killed here: see faust.md."""
QUOTA = 30_000
EVENTS = 320
EVENT_BYTES = 1_000
"""All events at once take the broker longer than TRANSACTION_SECONDS."""
T0 = datetime(2026, 1, 1, tzinfo=UTC)


class _QuotasResponse(Response):  # type: ignore[misc]
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "entries",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("entity", Array(("type", String("utf-8")), ("name", String("utf-8")))),
            ),
        ),
    )


class _QuotasRequestV0(RequestStruct):  # type: ignore[misc]
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = _QuotasResponse
    SCHEMA = Schema(
        (
            "entries",
            Array(
                ("entity", Array(("type", String("utf-8")), ("name", String("utf-8")))),
                (
                    "ops",
                    Array(("key", String("utf-8")), ("value", Float64), ("remove", Boolean)),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class _QuotasRequest(Request[_QuotasRequestV0]):  # type: ignore[misc]
    """AlterClientQuotas (KIP-546): neither aiokafka nor confluent-kafka has this request."""

    API_KEY = 49

    def __init__(self, bytes_per_second: float) -> None:
        self._entry = (
            [("client-id", None)],  # the default of all client ids
            [("producer_byte_rate", bytes_per_second, False)],
        )

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(entries=[self._entry], validate_only=False)


async def limit_producers(bootstrap: str, bytes_per_second: float) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    answer = await client.send(client.get_random_node(), _QuotasRequest(bytes_per_second))
    await client.close()
    assert [code for code, *_ in answer.entries] == [0]


@pytest.fixture(scope="module")
def slow_broker() -> Iterator[EmbeddedServers]:
    """A broker whose quotas look at two seconds instead of ten: shorter bursts, shorter waits.

    The broker looks every second, not every ten, for transactions beyond their time limit.
    """
    with EmbeddedServers(
        broker_settings={
            "quota.window.num": "3",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        }
    ) as servers:
        asyncio.run(limit_producers(servers.kafka, QUOTA))
        yield servers


@pytest.fixture
def settings(stack: Stack, slow_broker: EmbeddedServers) -> Settings:
    name = unique_name("quota")
    return load_settings(
        kafka=slow_broker.kafka,
        mongo=stack.mongo,
        mongo_database=name,
        app_id=name,
        topic_prefix=f"{name}.",
        partitions=1,
        compression="none",
    )


async def work(context: WorkerContext, partitions: WorkPartitions, session: Session) -> None:
    """Do what the tokens on the work topic ask for, as Faust does, until the shard is done."""
    topic = context.topics.work
    await context.outbox.send(topic, "r1/0", Token(replay_id="r1", epoch=1, kind="emit").encode())
    consumer = AIOKafkaConsumer(bootstrap_servers=context.settings.kafka)
    await consumer.start()
    consumer.assign([TopicPartition(topic.name, 0)])
    await consumer.seek_to_beginning()
    try:
        async for record in consumer:
            await partitions.handle(0, record.offset, record.value)
            checkpoint = partitions._owned[0].checkpoints.newest.get("r1/0")
            progress = checkpoint and checkpoint.report.progress
            if progress and progress.state != "live":
                assert (progress.state, progress.error) == ("done", None)
                return
    finally:
        await consumer.stop()


@pytest.mark.long
async def test_a_replay_completes_under_a_quota_that_is_slower_than_its_transactions(
    settings: Settings,
    events: Collection[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "replay_app.publisher.TRANSACTION_TIMEOUT_MS", int(TRANSACTION_SECONDS * 1000)
    )
    monkeypatch.setattr("replay_app.emit.GIVE_UP_SECONDS", TRANSACTION_SECONDS * 2 / 3)
    noise = random.Random(1)
    events.insert_many(
        {
            "_id": number,
            "timestamp": T0 + timedelta(seconds=number),
            "event_type": "placed",
            "aggregate_id": str(number),
            "body": noise.randbytes(EVENT_BYTES * 3 // 4),  # base64 needs a third more
        }
        for number in range(EVENTS)
    )
    destination = unique_name("slow")
    create_topics(settings.kafka, {destination: 1})
    await ensure_topics(settings)
    context = WorkerContext(
        settings=settings,
        topics=Topics.of(settings),
        store=EventStore(settings),
        outbox=Outbox(settings),
        board=Board(settings),
        is_leaving=lambda: False,
    )
    context.budgets[0] = ByteBudget(TRANSACTION_SECONDS / 4)
    await context.outbox.start()
    following = asyncio.create_task(context.board.follow())
    start = Start.model_validate({"replay_id": "r1", "target": {"topic": destination}})
    planner = Planner(start, settings, context.store, context.describe)
    session = Session(
        replay_id="r1",
        state="running",
        start=start,
        plan=await planner.plan(),
        shards=(Shard(),),
        created_at=T0,
        updated_at=T0,
        progressed_at=T0,
        heard_at=T0,
    )
    context.board.sessions["r1"] = session
    partitions = WorkPartitions(context)
    await partitions.assign([0])
    try:
        async with asyncio.timeout(120):
            await work(context, partitions, session)
    finally:
        await partitions.revoke()
        following.cancel()
        await asyncio.wait([following])
        await context.outbox.stop()
        context.store.close()
    published = await asyncio.to_thread(read_topic, settings.kafka, destination)
    assert [record.key for record in published] == [str(n).encode() for n in range(EVENTS)]
