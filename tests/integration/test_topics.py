"""The topics of one installation on a real broker: created once, as declared, and primed."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]
from support import (
    create_topics,
    delete_topics,
    open_transactions,
    read_topic,
    unique_name,
    wait_until,
)

from replay_app.demo.stack import Stack, free_port
from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.partitioner import partition_of
from replay_app.settings import Settings, load_settings
from replay_app.topics import NOOP, Topic, Topics, ensure_topics, partition_counts

SECONDS = 30.0
COMMAND = b'{"command": "start", "replay_id": "early", "filter": {"all": true}}'


@pytest.fixture
def settings(stack: Stack) -> Settings:
    name = unique_name("topics")
    return load_settings(kafka=stack.kafka, app_id=name, topic_prefix=f"{name}.", partitions=3)


def config_of(settings: Settings, topic: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({"bootstrap.servers": settings.kafka})
    entries = admin.describe_configs([resource])[resource].result(SECONDS)
    return {name: entry.value for name, entry in entries.items()}


def committed_offsets(settings: Settings, topics: list[Topic]) -> dict[tuple[str, int], int]:
    """Return the group's committed offsets; below zero: no offset is committed."""
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": settings.app_id})
    try:
        asked = [TopicPartition(t.name, n) for t in topics for n in range(t.partitions)]
        return {(o.topic, o.partition): o.offset for o in consumer.committed(asked, SECONDS)}
    finally:
        consumer.close()


def subscribed_topics(settings: Settings) -> list[Topic]:
    return [topic for topic in Topics.of(settings).all() if topic.subscribed]


def produce(settings: Settings, topic: str, partition: int, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka})
    for value in values:
        producer.produce(topic, value, b"early", partition=partition)
    assert producer.flush(SECONDS) == 0


def unread_values(settings: Settings, topic: str) -> list[bytes | None]:
    """Return the values that the group has not read, without no-ops."""
    offsets = committed_offsets(settings, [Topic(topic, settings.partitions)])
    return [
        record.value
        for record in read_topic(settings.kafka, topic)
        if record.offset >= offsets[topic, record.partition] and record.value != NOOP
    ]


async def test_every_topic_is_created_as_declared(settings: Settings) -> None:
    declared = Topics.of(settings).all()
    assert sorted(await ensure_topics(settings)) == sorted(topic.name for topic in declared)
    counts = await partition_counts(settings, settings.kafka, [topic.name for topic in declared])
    assert counts == {topic.name: 3 for topic in declared}
    for topic in declared:
        found = config_of(settings, topic.name)
        assert {name: found[name] for name in topic.config} == topic.config


async def test_topics_that_must_outlive_a_week_are_compacted(settings: Settings) -> None:
    await ensure_topics(settings)
    topics = Topics.of(settings)
    kept = {topics.status.name, topics.checkpoints.name, topics.table_changelog.name}
    for name in names(settings):
        policy = config_of(settings, name)["cleanup.policy"]
        assert policy == ("compact" if name in kept else "delete"), name


async def test_again_it_changes_nothing(settings: Settings) -> None:
    await ensure_topics(settings)
    before = committed_offsets(settings, subscribed_topics(settings))
    assert await ensure_topics(settings) == []
    assert committed_offsets(settings, subscribed_topics(settings)) == before
    assert {record.offset for record in read_topic(settings.kafka, names(settings))} == {0}


async def test_two_workers_that_start_together_both_succeed(settings: Settings) -> None:
    created = await asyncio.gather(ensure_topics(settings), ensure_topics(settings))
    assert sorted(created[0] + created[1]) == sorted(t.name for t in Topics.of(settings).all())
    assert min(committed_offsets(settings, subscribed_topics(settings)).values()) >= 1


async def test_a_topic_with_another_partition_count_is_named(settings: Settings) -> None:
    requests = Topics.of(settings).requests.name
    create_topics(settings.kafka, {requests: 5})
    with pytest.raises(InvalidSettings) as refused:
        await ensure_topics(settings)
    assert str(refused.value).startswith(
        f"topic '{requests}' has 5 partitions, but REPLAY_PARTITIONS is 3"
    )
    assert "by itself (auto.create.topics.enable), delete it" in str(refused.value)
    assert await partition_counts(settings, settings.kafka, names(settings)) == {requests: 5}


async def test_more_replicas_than_brokers_are_refused_by_the_topic(settings: Settings) -> None:
    many = settings.model_copy(update={"replication": 7})
    with pytest.raises(
        InvalidSettings, match=f"topic '{settings.topic_prefix}.*' cannot be created"
    ):
        await ensure_topics(many)


@pytest.mark.parametrize("ask", [ensure_topics, lambda s: partition_counts(s, s.kafka)])
async def test_a_broker_that_is_away_is_unavailable_and_named(ask: object) -> None:
    settings = load_settings(kafka=f"127.0.0.1:{free_port()}")
    assert callable(ask)
    with pytest.raises(
        Unavailable, match=f"Kafka at {settings.kafka} \\(REPLAY_KAFKA\\) cannot be"
    ):
        await ask(settings)


async def test_every_partition_that_the_group_reads_has_a_committed_offset(
    settings: Settings,
) -> None:
    await ensure_topics(settings)
    offsets = committed_offsets(settings, subscribed_topics(settings))
    assert len(offsets) == 9
    assert set(offsets.values()) == {1}
    for topic in subscribed_topics(settings):
        assert {record.value for record in read_topic(settings.kafka, topic.name)} == {NOOP}


async def test_commands_that_came_before_the_first_worker_are_read_once_and_in_order(
    settings: Settings,
) -> None:
    requests = Topics.of(settings).requests.name
    create_topics(settings.kafka, {requests: 3})
    produce(settings, requests, 1, COMMAND, b"second")
    await ensure_topics(settings)
    assert min(committed_offsets(settings, subscribed_topics(settings)).values()) >= 1
    assert unread_values(settings, requests) == [COMMAND, b"second"]
    keys = {r.key for r in read_topic(settings.kafka, requests) if r.value == COMMAND}
    assert keys == {b"early"}


async def test_a_record_that_the_group_has_read_is_not_read_again(settings: Settings) -> None:
    requests = Topics.of(settings).requests.name
    await ensure_topics(settings)
    produce(settings, requests, 0, b"read already")
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": settings.app_id})
    consumer.commit(offsets=[TopicPartition(requests, 0, 2)], asynchronous=False)
    consumer.close()
    produce(settings, requests, 0, b"new")
    await ensure_topics(settings)
    assert unread_values(settings, requests) == [b"new"]


async def test_a_partition_whose_beginning_is_gone_needs_no_priming(settings: Settings) -> None:
    requests = Topics.of(settings).requests.name
    create_topics(settings.kafka, {requests: 3})
    produce(settings, requests, 2, b"old", b"new")
    admin = AdminClient({"bootstrap.servers": settings.kafka})
    for deleted in admin.delete_records([TopicPartition(requests, 2, 1)]).values():
        deleted.result(SECONDS)
    await ensure_topics(settings)
    found = committed_offsets(settings, [Topics.of(settings).requests])
    assert (found[requests, 0], found[requests, 1]) == (1, 1)
    values = [r.value for r in read_topic(settings.kafka, requests) if r.partition == 2]
    assert values == [b"new"]


async def test_a_worker_may_prime_beside_one_that_has_joined(settings: Settings) -> None:
    await ensure_topics(settings)
    member = Consumer({"bootstrap.servers": settings.kafka, "group.id": settings.app_id})
    try:
        member.subscribe(names(settings))
        wait_until(lambda: member.poll(0.1) or member.assignment(), SECONDS, "it never joined")
        assert await ensure_topics(settings) == []
    finally:
        member.close()


# Two installations


def other_of(settings: Settings, changed: str) -> Settings:
    """Return the settings of an installation that differs in its app id or in its prefix."""
    value = unique_name("other")
    return settings.model_copy(
        update={"app_id": value} if changed == "app id" else {"topic_prefix": f"{value}."}
    )


@pytest.mark.parametrize("changed", ["app id", "prefix"])
async def test_a_second_installation_is_refused_with_both_names_and_creates_nothing(
    settings: Settings, changed: str
) -> None:
    await ensure_topics(settings)
    other = other_of(settings, changed)
    for _ in range(2):
        with pytest.raises(InvalidSettings) as refused:
            await ensure_topics(other)
        mine, theirs = (
            (other.app_id, settings.app_id)
            if changed == "app id"
            else (other.topic_prefix, settings.topic_prefix)
        )
        told = str(refused.value)
        assert mine in told
        assert theirs in told
        assert "choose another" in told
    counts = await partition_counts(settings, settings.kafka, names(other))
    assert counts.keys() <= set(names(settings))
    assert await ensure_topics(settings) == []


@pytest.mark.parametrize("changed", ["app id", "prefix"])
async def test_of_two_installations_that_start_at_the_same_moment_one_wins_for_ever(
    settings: Settings, changed: str
) -> None:
    both = [settings, other_of(settings, changed)]
    for _ in range(2):
        answers = await asyncio.gather(*map(ensure_topics, both), return_exceptions=True)
        won = [isinstance(answer, list) for answer in answers]
        assert sorted(won) == [False, True], answers
        assert isinstance(answers[won.index(False)], InvalidSettings)
        # The winner goes on in the other place, too.
        both = [both[won.index(False)], both[won.index(True)]]
        assert isinstance(await ensure_topics(both[1]), list)


async def test_an_installation_without_its_record_gets_the_record_from_the_next_worker(
    settings: Settings,
) -> None:
    # As an older version left the topics.
    create_topics(settings.kafka, dict.fromkeys(names(settings), 3))
    produce(settings, Topics.of(settings).status.name, 0, *[b"a session"] * 1000)
    assert await ensure_topics(settings) == []
    with pytest.raises(InvalidSettings, match="belongs to"):
        await ensure_topics(other_of(settings, "app id"))


async def test_a_strangers_record_claims_nothing(settings: Settings) -> None:
    status = Topics.of(settings).status.name
    create_topics(settings.kafka, {status: 3})
    producer = Producer({"bootstrap.servers": settings.kafka})
    other = b'{"app_id":"b","topic_prefix":"c."}'
    for key, value in (
        (b"/installation/a/b.", other),
        (b"/installation/a/b.", None),
        (b"/installation/a/b.", b"[]"),
        (b"r", other),
        (None, other),
    ):
        producer.produce(status, value, key, partition=0)
    assert producer.flush(SECONDS) == 0
    await ensure_topics(settings)
    with pytest.raises(InvalidSettings, match=f"belongs to REPLAY_APP_ID={settings.app_id}"):
        await ensure_topics(other_of(settings, "app id"))


async def test_an_open_transaction_does_not_hold_up_the_start(settings: Settings) -> None:
    status = Topics.of(settings).status.name
    create_topics(settings.kafka, {status: 3})
    with open_transactions(settings.kafka, {status: 3}):
        await ensure_topics(settings)
        assert await ensure_topics(settings) == []


async def test_another_cluster_for_the_events_says_whose_checkpoints_it_has(
    settings: Settings,
) -> None:
    # Two names of one broker stand for two clusters.
    apart = settings.model_copy(
        update={"target_kafka": settings.kafka.replace("127.0.0.1", "localhost")}
    )
    assert apart.target_bootstrap != apart.kafka
    await ensure_topics(apart)
    delete_topics(settings.kafka, [Topics.of(settings).status.name])
    with pytest.raises(InvalidSettings, match="checkpoints' belongs to"):
        await ensure_topics(other_of(apart, "app id"))


# Topics that were deleted and created again


async def test_offsets_of_a_topic_before_it_was_created_anew_are_replaced(
    settings: Settings,
) -> None:
    # A worker that still ran has committed the offset of the deleted topic.
    await ensure_topics(settings)
    work = Topics.of(settings).work
    delete_topics(settings.kafka, [work.name])
    create_topics(settings.kafka, {work.name: 3})
    produce(settings, work.name, 1, b"new")
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": settings.app_id})
    consumer.commit(
        offsets=[TopicPartition(work.name, n, 57) for n in range(3)], asynchronous=False
    )
    consumer.close()
    await ensure_topics(settings)
    offsets = committed_offsets(settings, [work])
    assert (offsets[work.name, 0], offsets[work.name, 2]) == (1, 1)
    assert unread_values(settings, work.name) == [b"new"]


async def test_a_new_topic_waits_until_the_workers_that_do_not_know_it_have_left(
    settings: Settings,
) -> None:
    await ensure_topics(settings)
    topics = Topics.of(settings)
    member = Consumer({"bootstrap.servers": settings.kafka, "group.id": settings.app_id})
    try:
        member.subscribe([topics.requests.name])
        wait_until(lambda: member.poll(0.1) or member.assignment(), SECONDS, "it never joined")
        delete_topics(settings.kafka, [topics.work.name])
        create_topics(settings.kafka, {topics.work.name: 3})
        produce(settings, topics.work.name, 0, b"token")
        for _ in range(3):  # the token is not copied again and again
            with pytest.raises(Unavailable, match=f"do not know {topics.work.name} yet"):
                await ensure_topics(settings)
    finally:
        member.close()
    await ensure_topics(settings)
    assert unread_values(settings, topics.work.name) == [b"token"]


async def test_partition_counts_are_of_the_topics_that_exist(settings: Settings) -> None:
    name = unique_name("orders")
    create_topics(settings.kafka, {name: 4})
    assert await partition_counts(settings, settings.kafka, [name, "nowhere"]) == {name: 4}
    assert await partition_counts(settings, settings.kafka, []) == {}
    assert (await partition_counts(settings, settings.kafka))[name] == 4


def test_a_key_goes_where_every_client_puts_it(settings: Settings) -> None:
    name = unique_name("keys")
    create_topics(settings.kafka, {name: 7})
    producer = Producer({"bootstrap.servers": settings.kafka, "partitioner": "murmur2_random"})
    keys = [f"replay-{number}".encode() for number in range(50)] + ["größer".encode(), b"\xff"]
    for key in keys:
        producer.produce(name, b"", key)
    assert producer.flush(SECONDS) == 0
    found = {record.key: record.partition for record in read_topic(settings.kafka, name)}
    assert found == {key: partition_of(key, 7) for key in keys}


def names(settings: Settings) -> list[str]:
    return [topic.name for topic in Topics.of(settings).all()]


class BrokerWithoutTransactions:
    """A proxy that hides the requests of transactions from the broker's list of requests."""

    HIDDEN = frozenset({22, 24, 26})

    def __init__(self, kafka: str) -> None:
        self._host, _, port = kafka.partition(":")
        self._port = int(port)
        self.port = self.advertised_port = free_port()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection(self._host, self._port)
        requests: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

        async def ask() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    frame = await self._frame(reader)
                    requests.put_nowait(struct.unpack_from(">hh", frame))
                    broker_writer.write(len(frame).to_bytes(4) + frame)
            broker_writer.close()

        async def answer() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    frame = self._with_own_port(await self._frame(broker_reader))
                    if await requests.get() == (18, 0):  # ApiVersions, version 0
                        frame = self._with_less_requests(frame)
                    writer.write(len(frame).to_bytes(4) + frame)
            writer.close()

        await asyncio.gather(ask(), answer())

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4)))

    def _with_own_port(self, frame: bytes) -> bytes:
        host = self._host.encode()
        return frame.replace(host + self._port.to_bytes(4), host + self.advertised_port.to_bytes(4))

    def _with_less_requests(self, frame: bytes) -> bytes:
        head, body = frame[:6], frame[10:]  # correlation id and error code; then the count
        entries = [body[at : at + 6] for at in range(0, len(body), 6)]
        shown = [entry for entry in entries if int.from_bytes(entry[:2]) not in self.HIDDEN]
        assert len(shown) == len(entries) - len(self.HIDDEN)
        return head + len(shown).to_bytes(4) + b"".join(shown)


async def test_a_broker_without_transactions_is_refused_by_name(settings: Settings) -> None:
    proxy = BrokerWithoutTransactions(settings.kafka)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", proxy.port)
    hidden = settings.model_copy(update={"kafka": f"127.0.0.1:{proxy.port}"})
    told = "has no transactions.*InitProducerId, AddPartitionsToTxn, EndTxn"
    try:
        with pytest.raises(InvalidSettings, match=told):
            await ensure_topics(hidden)
    finally:
        server.close()
    names = [topic.name for topic in Topics.of(settings).all()]
    assert await partition_counts(settings, settings.kafka, names) == {}


async def test_a_broker_that_advertises_a_wrong_address_is_unavailable(settings: Settings) -> None:
    proxy = BrokerWithoutTransactions(settings.kafka)
    proxy.advertised_port = free_port()  # nobody listens there
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", proxy.port)
    wrong = settings.model_copy(update={"kafka": f"127.0.0.1:{proxy.port}"})
    try:
        with pytest.raises(Unavailable, match="no broker answers at the address"):
            await ensure_topics(wrong)
    finally:
        server.close()
