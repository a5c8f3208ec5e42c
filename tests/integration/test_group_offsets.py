"""The offsets of real consumer groups: what would change, what is refused, what is set."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from brokers import Brokers
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from support import (
    KAFKA_SECONDS,
    create_topics,
    delete_topics,
    purge_topics,
    unique_name,
    wait_until,
    write_transaction,
)

from replay_app.clusters import connected
from replay_app.demo.stack import Stack, free_port
from replay_app.destinations import describe_all
from replay_app.exceptions import CommandConflict, Unavailable
from replay_app.group_offsets import Move, Wanted, execute_moves, find_moves
from replay_app.settings import Settings

RECORDS = 5


@pytest.fixture
def settings(settings: Settings, stack: Stack) -> Settings:
    return settings.model_copy(update={"kafka": stack.kafka})


@pytest.fixture
async def topic(settings: Settings, stack: Stack) -> str:
    """A topic of two partitions. The first has some records, and the marker of a transaction."""
    topic = unique_name("moved")
    create_topics(stack.kafka, {topic: 2})
    await write_transaction(settings, topic, *((f"k{n}", b"v") for n in range(RECORDS)))
    return topic


async def wanted(settings: Settings, topic: str, offsets: dict[int, int]) -> Wanted:
    async with connected(settings, settings.kafka) as client:
        (told,) = await describe_all(client, [topic])
    return Wanted({topic: offsets}, {topic: told.topic_id}, takes_new_partitions=False)


def committed(stack: Stack, group: str, topic: str) -> dict[int, int]:
    """Return a group's offsets by partition, as librdkafka tells them; -1001 stands for none."""
    consumer = Consumer({"bootstrap.servers": stack.kafka, "group.id": group, "log_level": 3})
    try:
        found = consumer.committed([TopicPartition(topic, n) for n in range(2)], KAFKA_SECONDS)
        return {one.partition: one.offset for one in found}
    finally:
        consumer.close()


@contextlib.contextmanager
def member(stack: Stack, group: str, topic: str, protocol: str) -> Iterator[None]:
    """Keep a member in a group."""
    consumer = Consumer(
        {
            "bootstrap.servers": stack.kafka,
            "group.id": group,
            "group.protocol": protocol,
            "enable.auto.commit": False,
            "log_level": 3,
        }
    )
    try:
        consumer.subscribe([topic])
        wait_until(lambda: consumer.poll(0.1) or consumer.assignment(), KAFKA_SECONDS)
        yield
    finally:
        consumer.close()


async def test_the_offsets_of_a_group_are_shown_set_and_read_back(
    settings: Settings, stack: Stack, topic: str
) -> None:
    group = unique_name("group")
    first = await find_moves(settings, group, "begin", await wanted(settings, topic, {0: 4, 1: 0}))
    assert first.moves == (Move(topic, 0, None, 4), Move(topic, 1, None, 0))
    assert first.notes == (f"the group {group!r} does not exist yet: check its name",)
    assert committed(stack, group, topic) == {0: -1001, 1: -1001}  # nothing is changed yet
    await execute_moves(settings, group, "begin", first.moves)
    assert committed(stack, group, topic) == {0: 4, 1: 0}
    back = await find_moves(settings, group, "handover", await wanted(settings, topic, {0: 1}))
    assert back.moves == (Move(topic, 0, 4, 1),)
    assert back.notes == ()
    await execute_moves(settings, group, "handover", back.moves)
    assert committed(stack, group, topic) == {0: 1, 1: 0}


async def test_partitions_with_control_records_only_are_set_by_time(
    settings: Settings, topic: str
) -> None:
    asked = await wanted(settings, topic, {1: 0})
    group = unique_name("group")
    for since, then in ((0, 0), (int(time.time() * 1000) + 3_600_000, RECORDS + 1)):
        found = await find_moves(settings, group, "begin", replace(asked, since=since))
        assert found.moves == (Move(topic, 0, None, then), Move(topic, 1, None, 0))
        assert found.notes[0].startswith(f"some partitions of {topic!r} have only control records")


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_group_with_members_is_refused_and_keeps_its_offsets(
    settings: Settings, stack: Stack, topic: str, protocol: str
) -> None:
    group = unique_name("group")
    asked = await wanted(settings, topic, {0: 2})
    found = await find_moves(settings, group, "begin", asked)
    told = f"the group {group!r} has .*members, and they would go on .*: stop its consumers"
    with member(stack, group, topic, protocol):
        with pytest.raises(CommandConflict, match=told):  # a member came between the two steps
            await execute_moves(settings, group, "begin", found.moves)
        if protocol == "classic":
            with pytest.raises(CommandConflict, match="has 1 members"):
                await find_moves(settings, group, "begin", asked)
        else:
            (note,) = (await find_moves(settings, group, "begin", asked)).notes
            assert "uses the newer consumer protocol: whether it has members shows only" in note
        assert committed(stack, group, topic)[0] == -1001
    admin = AdminClient({"bootstrap.servers": stack.kafka, "log_level": 3})

    def is_empty() -> bool:
        (described,) = admin.describe_consumer_groups([group]).values()
        return not described.result(KAFKA_SECONDS).members

    wait_until(is_empty, KAFKA_SECONDS)
    await execute_moves(settings, group, "begin", found.moves)
    assert committed(stack, group, topic)[0] == 2


async def test_a_topic_that_was_made_again_is_refused(
    settings: Settings, stack: Stack, topic: str
) -> None:
    asked = await wanted(settings, topic, {0: 0})
    delete_topics(stack.kafka, [topic])
    told = f"{topic!r} does not exist on Kafka at {settings.kafka} (REPLAY_KAFKA)"
    with pytest.raises(CommandConflict) as refused:
        await find_moves(settings, "g", "begin", asked)
    assert told in str(refused.value)
    create_topics(stack.kafka, {topic: 2})
    with pytest.raises(CommandConflict, match="was deleted and made again, or this is another"):
        await find_moves(settings, "g", "begin", asked)


async def test_offsets_that_a_partition_does_not_have_are_refused_and_named(
    settings: Settings, stack: Stack, topic: str
) -> None:
    end = RECORDS + 1  # the marker, too, has an offset
    asked = await wanted(settings, topic, {0: end, 1: 1})
    with pytest.raises(CommandConflict) as refused:
        await find_moves(settings, "g", "begin", asked)
    assert f"{topic}[1] ends at 0, and the offset would be 1: the topic has lost records" in str(
        refused.value
    )
    assert f"{topic}[0]" not in str(refused.value)
    purge_topics(stack.kafka, topic)
    with pytest.raises(CommandConflict) as refused:
        await find_moves(settings, "g", "begin", await wanted(settings, topic, {0: 2}))
    assert f"{topic}[0] begins at {end}, and the offset would be 2: the records between" in str(
        refused.value
    )
    # Nothing is deleted behind the end.
    (move,) = (
        await find_moves(settings, "g", "begin", await wanted(settings, topic, {0: end}))
    ).moves
    assert move.then == end


async def test_partitions_that_came_since_are_read_from_their_beginning_after_a_hand_over(
    settings: Settings, stack: Stack, topic: str
) -> None:
    asked = await wanted(settings, topic, {0: 3, 1: 0})
    Brokers(stack.kafka).grow({topic: 4})
    found = await find_moves(settings, "g", "begin", asked)
    assert [(one.partition, one.then) for one in found.moves] == [(0, 3), (1, 0)]
    live = Wanted(asked.offsets, asked.topic_ids, takes_new_partitions=True)
    found = await find_moves(settings, "g", "handover", live)
    assert [(one.partition, one.then) for one in found.moves] == [(0, 3), (1, 0), (2, 0), (3, 0)]
    assert found.notes[0].startswith(f"{topic!r} has more partitions since")


async def test_the_begin_is_on_the_target_cluster_and_the_hand_over_is_not(
    settings: Settings, topic: str
) -> None:
    away = f"127.0.0.1:{free_port()}"
    asked = await wanted(settings, topic, {0: 1})
    to_other = settings.model_copy(update={"target_kafka": away})
    assert (await find_moves(to_other, "g", "handover", asked)).moves[0].then == 1
    with pytest.raises(Unavailable, match=r"\(REPLAY_TARGET_KAFKA\) cannot be reached"):
        await find_moves(to_other, "g", "begin", asked)
