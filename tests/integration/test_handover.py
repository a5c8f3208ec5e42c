"""The hand-over on a real broker: the offsets of live topics at the bound, and what is unknown."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer
from pymongo.collection import Collection
from support import (
    KAFKA_SECONDS,
    create_topics,
    delete_topics,
    open_transactions,
    purge_topics,
    topic_names,
    unique_name,
)

from replay_app import handover
from replay_app.commands import Filter, Start, Target
from replay_app.demo.stack import Stack, free_port
from replay_app.destinations import Destination
from replay_app.handover import complete_handover, find_handover
from replay_app.plans import Planner
from replay_app.reports import Handover, Plan, ShardProgress
from replay_app.sessions import Session, Shard
from replay_app.settings import Settings
from replay_app.store import EventStore

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def settings(settings: Settings, stack: Stack) -> Settings:
    return settings.model_copy(update={"kafka": stack.kafka})


@pytest.fixture
def topic(stack: Stack) -> str:
    topic = unique_name("live")
    # Else the broker may delete the records, whose timestamps are old.
    create_topics(stack.kafka, {topic: 3}, {"retention.ms": "-1"})
    return topic


def send(stack: Stack, topic: str, *records: tuple[int, datetime]) -> None:
    """Send live records: their partitions, and their timestamps."""
    producer = Producer({"bootstrap.servers": stack.kafka})
    for partition, time in records:
        milliseconds = round(time.timestamp() * 1000)
        producer.produce(topic, b"live", partition=partition, timestamp=milliseconds)
        producer.poll(0)
    assert producer.flush(KAFKA_SECONDS) == 0


async def find(
    settings: Settings, *topics: str, end: datetime = NOON, is_given: bool = False
) -> Plan:
    """Return a plan with the hand-over. ``is_given``: the command gives the bound."""
    plan = Plan(end=end, matched=1, handover=dict.fromkeys(topics), warnings=("of the plan",))
    start = Start(replay_id="r", filter=Filter(end=end if is_given else None))
    return await find_handover(settings, start, plan)


async def test_the_offset_is_that_of_the_first_record_within_the_overlap(
    settings: Settings, stack: Stack, topic: str
) -> None:
    send(
        stack,
        topic,
        (0, NOON - 2 * MINUTE),
        (0, NOON - 1.5 * MINUTE),
        (0, NOON - MINUTE),  # 2: exactly the overlap before the bound
        (0, NOON + MINUTE),
        (1, NOON - 3 * MINUTE),
        (1, NOON - 30 * timedelta(seconds=1)),  # 1: comes before an older record
        (1, NOON - 2 * MINUTE),
        (1, NOON + MINUTE),
        (2, NOON - 3 * MINUTE),  # 1: no newer record
    )
    plan = await find(settings, topic)
    assert plan.handover == {topic: {0: 2, 1: 1, 2: 1}}
    assert plan.handover_time == NOON - MINUTE
    assert len(plan.live_ids[topic]) == 32
    assert plan.warnings == ("of the plan",)
    none = settings.model_copy(update={"handover_overlap_seconds": 0.0})
    assert (await find(none, topic)).handover == {topic: {0: 3, 1: 3, 2: 1}}


async def test_records_of_an_open_transaction_lie_behind_the_hand_over(
    settings: Settings, stack: Stack, topic: str
) -> None:
    send(stack, topic, (0, NOON))
    with open_transactions(stack.kafka, {topic: 3}):
        plan = await find(settings, topic, end=datetime.now(UTC))
    assert plan.handover == {topic: {0: 1, 1: 0, 2: 0}}


async def test_a_live_topic_that_does_not_exist_has_no_partitions_and_is_not_created(
    settings: Settings, stack: Stack, topic: str
) -> None:
    absent = unique_name("absent")
    plan = await find(settings, absent, topic)
    assert plan.handover == {absent: {}, topic: {0: 0, 1: 0, 2: 0}}
    assert plan.warnings == ("of the plan",)
    assert absent not in topic_names(stack.kafka)


async def test_a_broker_that_does_not_answer_leaves_the_hand_over_unknown_with_a_warning(
    settings: Settings,
) -> None:
    away = settings.model_copy(update={"kafka": f"127.0.0.1:{free_port()}"})
    plan = await find(away, "orders", "payments")
    assert plan.handover == {"orders": None, "payments": None}
    _, warning = plan.warnings
    told = f"the hand-over is unknown for 'orders', 'payments': Kafka at {away.kafka} (REPLAY_KAFKA"
    assert warning.startswith(told)


async def test_what_is_known_stays_and_only_the_rest_is_asked(
    settings: Settings, stack: Stack, topic: str
) -> None:
    send(stack, topic, (0, NOON), (0, NOON + MINUTE))
    before = NOON + 30 * timedelta(seconds=1)
    known = Plan(end=NOON, matched=1, handover_time=before, live_ids={"gone": "0a"})
    plan = Plan(end=NOON, matched=1, handover={"gone": {0: 7}, topic: None})
    found = await find_handover(settings, Start(replay_id="r"), plan, known)
    assert found.handover == {"gone": {0: 7}, topic: {0: 1, 1: 0, 2: 0}}
    assert found.handover_time == before
    assert found.live_ids.keys() == {"gone", topic}
    assert found.warnings == ()


async def test_deleted_live_records_behind_a_given_bound_are_a_warning(
    settings: Settings, stack: Stack, topic: str
) -> None:
    send(stack, topic, (0, NOON - 5 * MINUTE), (1, NOON))
    purge_topics(stack.kafka, topic)
    send(stack, topic, (0, NOON + MINUTE))
    plan = await find(settings, topic, is_given=True)
    assert plan.handover == {topic: {0: 1, 1: 1, 2: 0}}
    assert f"may have a gap: the oldest records of {topic!r} are deleted" in plan.warnings[-1]
    # Where the clock gives the bound, nothing from the bound on can be deleted yet.
    assert (await find(settings, topic)).warnings == ("of the plan",)
    # The oldest record is older than the bound: nothing from the bound on is deleted.
    send(stack, topic, (1, NOON + MINUTE))
    plan = await find(settings, topic, end=NOON + 2 * MINUTE, is_given=True)
    assert plan.warnings == ("of the plan",)


async def test_a_hand_over_has_a_limit_of_topics_and_of_partitions(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "MAX_HANDOVER_PARTITIONS", 2)
    plan = await find(settings, topic)
    assert plan.handover == {topic: None}
    assert (
        plan.warnings[-1]
        == f"the hand-over is unknown for {topic!r}: it lists 2 partitions at most"
    )
    monkeypatch.setattr(handover, "MAX_HANDOVER_TOPICS", 1)
    plan = await find(settings, "absent", topic)
    assert plan.handover == {"absent": {}}
    assert plan.warnings[-1].startswith("the events have more live topics than the 1 that")


async def test_a_plan_names_the_live_topics_and_not_the_destinations(
    settings: Settings, store: EventStore, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many(
        {"timestamp": NOON, "event_type": kind, "topic": own}
        for kind, own in (("a", None), ("b", "own"), ("b", "own"), ("no topic!", None))
    )

    async def describe(names: Iterable[str]) -> dict[str, Destination]:
        return {name: Destination(1, topic_id="0a") for name in names}

    for target in ({}, {"prefix": "new."}, {"topic": "all"}):
        start = Start.model_validate({"replay_id": "r", "target": target})
        plan = await Planner(start, settings, store, describe).plan()
        expected: Handover = {"a": None, "own": None}
        assert plan.handover == expected  # `find_handover` finds the offsets
        assert plan.topic_ids == dict.fromkeys(plan.partitions, "0a")


async def test_a_live_topic_that_was_deleted_meanwhile_takes_no_longer_than_the_limit(
    settings: Settings, stack: Stack, topic: str
) -> None:
    delete_topics(stack.kafka, [topic])
    plan = await find(settings, topic)
    assert plan.handover == {topic: {}}


@pytest.mark.parametrize(
    ("plan", "topics"),
    [
        ({"matched": 1, "handover": {"a": {0: 1}}}, None),  # the hand-over is whole
        ({"matched": 1, "handover": {"a": None}}, {"a"}),  # the broker did not answer before
        ({"matched": None, "counted": "running", "handover": {"a": {0: 1}}}, {"a", "b"}),
        ({"matched": None, "counted": "beside"}, {"b"}),  # the count has failed
    ],
)
async def test_an_ended_replay_completes_its_hand_over(
    settings: Settings, plan: dict[str, Any], topics: set[str] | None
) -> None:
    start = Start(replay_id="r", target=Target(prefix="new."))
    progress = ShardProgress(by_topic={"new.b": 1})
    session = Session(
        replay_id="r",
        start=start,
        plan=Plan(end=NOON, handover_time=NOON, **plan),
        shards=(Shard(progress=progress),),
        created_at=NOON,
        updated_at=NOON,
        progressed_at=NOON,
        heard_at=NOON,
    )
    found = await complete_handover(session, settings)
    assert (found and found.handover.keys()) == topics
    assert found is None or None not in found.handover.values()
