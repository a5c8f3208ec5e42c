"""What a broker tells of consumer groups: their states, their offsets, and who reads a topic."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiokafka import TopicPartition
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Place
from support import create_topics, delete_topics, open_transactions, unique_name, wait_until

from replay_app import consumer_groups
from replay_app.consumer_groups import GroupFound, GroupReader, find_readers
from replay_app.demo.stack import Stack, free_port
from replay_app.exceptions import Unavailable
from replay_app.reports import TopicReader
from replay_app.settings import Settings

RECORDS = 10
SECONDS = 60.0


@pytest.fixture
def kafka_settings(settings: Settings, stack: Stack) -> Settings:
    # As the target: groups are where the events are published.
    update = {"kafka": f"127.0.0.1:{free_port()}", "target_kafka": stack.kafka}
    return settings.model_copy(update=update)


@pytest.fixture
async def reader(kafka_settings: Settings) -> AsyncIterator[GroupReader]:
    reader = GroupReader(kafka_settings)
    yield reader
    await reader.close()


@pytest.fixture
def topic(stack: Stack) -> str:
    """A topic with RECORDS records in each of its two partitions."""
    name = unique_name("read")
    create_topics(stack.kafka, {name: 2})
    producer = Producer({"bootstrap.servers": stack.kafka})
    for number in range(2 * RECORDS):
        producer.produce(name, b"v", partition=number % 2)
    assert producer.flush(SECONDS) == 0
    return name


def consumer(stack: Stack, group: str, **options: Any) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": stack.kafka,
            "group.id": group,
            "enable.auto.commit": False,
            "log_level": 3,
        }
        | {name.replace("_", "."): value for name, value in options.items()}
    )


def commit(stack: Stack, group: str, topic: str, *offsets: int) -> None:
    """Let a group without members commit offsets in the first partitions of a topic."""
    places = [Place(topic, partition, at) for partition, at in enumerate(offsets)]
    committing = consumer(stack, group)
    wait_until(lambda: committing.commit(offsets=places, asynchronous=False), SECONDS)
    committing.close()


@pytest.fixture(params=["classic", "consumer"])
def member(stack: Stack, topic: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a group with a member that has partitions, and has committed nothing."""
    name = unique_name(request.param)
    joined = consumer(stack, name, group_protocol=request.param)
    joined.subscribe([topic])

    def has_partitions() -> bool:
        joined.poll(0.5)
        return bool(joined.assignment())

    wait_until(has_partitions, SECONDS, "the member never got a partition")
    yield name
    joined.close()


async def test_groups_are_unseen_empty_or_active(
    reader: GroupReader, stack: Stack, topic: str, member: str
) -> None:
    empty, unseen = unique_name("empty"), unique_name("unseen")
    commit(stack, empty, topic, 3)
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    found = await reader.find(dict.fromkeys((empty, unseen, member), places))
    assert found == {
        empty: GroupFound("empty", {places[0]: 3}),
        unseen: GroupFound("unseen"),
        member: GroupFound("active"),
    }
    # Over the same connection again, and without a partition.
    assert (await reader.find({empty: ()}))[empty] == GroupFound("empty")


async def test_many_groups_are_found_at_once(reader: GroupReader, stack: Stack, topic: str) -> None:
    groups = {unique_name(f"g{number}"): number for number in range(25)}
    for name, number in list(groups.items())[:3]:
        commit(stack, name, topic, number)
    place = TopicPartition(topic, 0)
    found = await reader.find(dict.fromkeys(groups, (place,)))
    assert [found[name].committed.get(place) for name in groups] == [0, 1, 2, *[None] * 22]


async def test_a_deleted_topic_has_no_offsets(
    reader: GroupReader, stack: Stack, topic: str
) -> None:
    group, other = unique_name("empty"), unique_name("other")
    create_topics(stack.kafka, {other: 1})
    commit(stack, group, topic, 3)
    commit(stack, group, other, 5)
    delete_topics(stack.kafka, [topic])
    places = [TopicPartition(topic, 0), TopicPartition(other, 0)]
    async with asyncio.timeout(SECONDS):  # the coordinator forgets the offsets a moment later
        while (await reader.find({group: places}))[group].committed != {places[1]: 5}:
            await asyncio.sleep(0.1)


async def test_the_ends_of_partitions_count_what_is_not_visible_yet(
    reader: GroupReader, stack: Stack, topic: str
) -> None:
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    with open_transactions(stack.kafka, {topic: 2}):
        assert await reader.ends(places) == dict.fromkeys(places, RECORDS + 1)
    # What does not exist is no reason to wait: other groups are looked at meanwhile.
    gone = [TopicPartition(unique_name("gone"), 0), TopicPartition(topic, 2)]
    wanted = {places[0]: RECORDS + 2} | dict.fromkeys(gone, 0)
    async with asyncio.timeout(SECONDS):  # the transaction's marker comes a moment later
        while await reader.ends([places[0], *gone]) != wanted:
            await asyncio.sleep(0.1)
    assert await reader.ends(gone) == dict.fromkeys(gone, 0)
    assert (await reader.find({"view": places}))["view"] == GroupFound("unseen")  # connected still


async def test_a_cluster_that_is_away_is_named(settings: Settings) -> None:
    away = f"127.0.0.1:{free_port()}"
    reader = GroupReader(settings.model_copy(update={"target_kafka": away}))
    with pytest.raises(Unavailable, match=rf"Kafka at {away} \(REPLAY_TARGET_KAFKA\)"):
        await reader.find({"view": ()})


async def test_the_readers_of_topics_are_found_with_their_lag(
    kafka_settings: Settings, stack: Stack, topic: str
) -> None:
    other, stranger = unique_name("other"), unique_name("stranger")
    create_topics(stack.kafka, {other: 1, stranger: 1})
    some, idle = unique_name("some"), unique_name("idle")
    commit(stack, some, topic, 3, RECORDS)
    commit(stack, some, other, 0)
    commit(stack, unique_name("elsewhere"), stranger, 0)
    joined = consumer(stack, idle)
    joined.subscribe([topic])
    wait_until(lambda: joined.poll(0.5) or joined.assignment(), SECONDS)
    readers, warnings = await find_readers(kafka_settings, [topic, other])
    joined.close()
    assert warnings == ()
    assert readers == {
        some: TopicReader(state="empty", lag=RECORDS - 3, topics=tuple(sorted((topic, other)))),
        idle: TopicReader(state="active", lag=None, topics=(topic,)),
    }
    assert await find_readers(kafka_settings, []) == ({}, ())


async def test_a_search_is_bounded_and_says_so(
    kafka_settings: Settings, stack: Stack, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        commit(stack, unique_name("some"), topic, 1)
    monkeypatch.setattr(consumer_groups, "MAX_SEARCHED", 1)
    readers, (warning,) = await find_readers(kafka_settings, [topic])
    assert len(readers) <= 1
    assert "only the first 1 by name" in warning
