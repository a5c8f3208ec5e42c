"""Every topic of this program: name, partitions and configuration, declared in one place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from replay_app.clusters import answers, cluster_name, connected
from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.installations import TopicOwner
from replay_app.kafka_internals import close_client
from replay_app.kafka_requests import request_types
from replay_app.kafka_security import kafka_security
from replay_app.partitioner import partition_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from aiokafka import ConsumerRecord

    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

_DAY_MS = 24 * 60 * 60 * 1000
_COMPACTED = {
    "cleanup.policy": "compact",
    # A worker that opens a partition reads the whole partition: keep the uncompacted part short.
    "segment.bytes": str(8 << 20),
    "segment.ms": str(10 * 60 * 1000),
    "min.cleanable.dirty.ratio": "0.1",
    "delete.retention.ms": str(_DAY_MS),
}
# Kafka deletes whole segments only. With segments of a day, six days of retention keep a record for
# a week at most: no command may outlive its session.
_DELETE_AFTER_A_WEEK = {
    "cleanup.policy": "delete",
    "retention.ms": str(6 * _DAY_MS),
    "segment.ms": str(_DAY_MS),
}
TRANSACTION_REQUESTS = {22: "InitProducerId", 24: "AddPartitionsToTxn", 26: "EndTxn"}
"""The requests that transactions need, by API key (Kafka's protocol guide)."""
NOOP = b'{"kind":"noop"}'
"""The record that primes a new partition. The agents ignore it."""
ANSWER_SECONDS = 20.0
"""How long a broker may take to describe topics, or to create topics with their leaders. aiokafka
waits without a limit."""
PRIME_SECONDS = 60.0
"""How long the broker may take to give every partition its first offset."""
NEW_SECONDS = 600.0
"""A topic whose first record is younger than this was created while older workers still ran."""
LEADERS_POLL_SECONDS = 0.1
NOT_THERE_YET = frozenset({UnknownTopicOrPartitionError.errno, LeaderNotAvailableError.errno})
STOP_SECONDS = 5.0
"""How long a client may take to disconnect."""


@dataclass(frozen=True)
class Topic:
    """One declared topic."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)
    """Kafka's topic configuration."""
    on_target: bool = False
    """Whether the topic is on the cluster that receives the replayed records."""
    subscribed: bool = False
    """Whether a Faust agent reads the topic."""

    def partition(self, key: str) -> int:
        """Return the partition of a key.

        A replay has the same partition number in ``replay.requests``, ``replay.progress`` and
        ``replay.status``; a shard has it in ``replay.work`` and ``replay.checkpoints``.
        """
        return partition_of(key.encode(), self.partitions)


@dataclass(frozen=True)
class Topics:
    """The topics of one installation."""

    requests: Topic
    work: Topic
    progress: Topic
    status: Topic
    checkpoints: Topic
    dead_letters: Topic
    table_changelog: Topic

    @classmethod
    def of(cls, settings: Settings) -> Topics:
        """Return the topics of an installation with these settings."""
        prefix, count = settings.topic_prefix, settings.partitions
        return cls(
            # Kafka keeps commands for a shorter time than sessions. If the group's offsets expire
            # and a command is read again, its session still exists, and nothing starts twice.
            requests=Topic(f"{prefix}requests", count, _DELETE_AFTER_A_WEEK, subscribed=True),
            work=Topic(f"{prefix}work", count, _DELETE_AFTER_A_WEEK, subscribed=True),
            progress=Topic(f"{prefix}progress", count, _DELETE_AFTER_A_WEEK, subscribed=True),
            status=Topic(f"{prefix}status", count, _COMPACTED),
            checkpoints=Topic(f"{prefix}checkpoints", count, _COMPACTED, on_target=True),
            dead_letters=Topic(
                f"{prefix}dead-letters", count, {"retention.ms": str(30 * _DAY_MS)}, on_target=True
            ),
            table_changelog=Topic(f"{settings.app_id}-sessions-changelog", count, _COMPACTED),
        )

    def all(self) -> tuple[Topic, ...]:
        """Return the topics in the order of the data's way."""
        return (
            self.requests,
            self.work,
            self.progress,
            self.status,
            self.checkpoints,
            self.dead_letters,
            self.table_changelog,
        )

    def owned(self, *, on_other: bool) -> tuple[Topic, ...]:
        """Return the topics of a cluster that say to which installation they belong.

        ``on_other``: of a cluster that only receives the replayed records.
        """
        if on_other:
            return (self.checkpoints,)
        # The first belongs to the topic prefix, the second to the app id.
        return (self.status, self.table_changelog)


def topics_by_cluster(settings: Settings) -> dict[str, list[Topic]]:
    """Return the topics of each cluster, by the cluster's addresses; one cluster may have all."""
    clusters: dict[str, list[Topic]] = {settings.kafka: [], settings.target_bootstrap: []}
    for topic in Topics.of(settings).all():
        clusters[settings.target_bootstrap if topic.on_target else settings.kafka].append(topic)
    return clusters


async def ensure_topics(settings: Settings) -> list[str]:
    """Create the missing topics and prime every partition; return the names of the new topics.

    Raises
    ------
    InvalidSettings
        When a topic exists with another partition count or belongs to another installation, or a
        broker has no transactions.
    Unavailable
        When the broker does not answer, or when workers that do not know of new topics are still
        in the group.

    """
    declared = Topics.of(settings)
    created: list[str] = []
    unclaimed: list[TopicOwner] = []
    for bootstrap, wanted in topics_by_cluster(settings).items():
        await _require_transactions(settings, bootstrap)
        owners = {
            topic.name: TopicOwner(settings, bootstrap, topic.name)
            for topic in declared.owned(on_other=bootstrap != settings.kafka)
        }
        existing = await partition_counts(settings, bootstrap, [t.name for t in wanted])
        for name, owner in owners.items():  # an installation that is refused creates nothing
            if name not in existing or not await owner.require():
                unclaimed.append(owner)
        created += await _create_missing(settings, bootstrap, wanted, existing)
    await _prime(settings, [t for t in declared.all() if t.subscribed])
    for owner in unclaimed:
        await owner.claim()
    return created


async def partition_counts(
    settings: Settings, bootstrap: str, names: Iterable[str] | None = None
) -> dict[str, int]:
    """Return the partition counts of the named topics that exist; of all topics without names.

    Raises
    ------
    Unavailable
        When the broker does not answer.

    """
    async with _admin(settings, bootstrap) as admin:
        existing = set(await admin.list_topics())
        wanted = existing if names is None else existing & set(names)
        described = await admin.describe_topics(sorted(wanted)) if wanted else []
    return {t["topic"]: len(t["partitions"]) for t in described if not t["error_code"]}


async def _require_transactions(settings: Settings, bootstrap: str) -> None:
    async with (
        answers(settings, bootstrap, ANSWER_SECONDS),
        connected(settings, bootstrap) as client,
    ):
        missing = TRANSACTION_REQUESTS.keys() - await request_types(client)
    if missing:
        named = ", ".join(TRANSACTION_REQUESTS[number] for number in sorted(missing))
        msg = (
            f"{cluster_name(settings, bootstrap)} has no transactions, and a replay publishes in "
            f"transactions only: the broker does not answer {named}. Use Apache Kafka 0.11 or "
            "later, or another broker with transactions"
        )
        raise InvalidSettings(msg)


async def _create_missing(
    settings: Settings, bootstrap: str, wanted: list[Topic], existing: dict[str, int]
) -> list[str]:
    for topic in wanted:
        if existing.get(topic.name, topic.partitions) != topic.partitions:
            msg = (
                f"topic {topic.name!r} has {existing[topic.name]} partitions, but "
                f"REPLAY_PARTITIONS is {topic.partitions}: the number is fixed once the topics "
                "exist; set it back, or choose another REPLAY_TOPIC_PREFIX and REPLAY_APP_ID. If "
                "the broker has made the topic by itself (auto.create.topics.enable), delete it: "
                "the worker creates it as it must be"
            )
            raise InvalidSettings(msg)
    missing = [t for t in wanted if t.name not in existing]
    if not missing:
        return []
    async with _admin(settings, bootstrap) as admin:
        response = await admin.create_topics(
            [
                NewTopic(t.name, t.partitions, settings.replication, topic_configs=t.config)
                for t in missing
            ]
        )
        created: list[str] = []
        for name, code, message in (entry[:3] for entry in response.topic_errors):
            if not code:
                created.append(name)
            # When two workers start at once, both try: the second one finds the topic created.
            elif for_code(code) is not TopicAlreadyExistsError:
                msg = (
                    f"topic {name!r} cannot be created: {message or for_code(code).__name__}. "
                    "REPLAY_REPLICATION is at most the number of brokers, and the worker needs "
                    "the right to create topics"
                )
                raise InvalidSettings(msg)
        await _await_leaders(admin, [topic.name for topic in missing])
    if created:
        logger.info("created topics %s", ", ".join(created))
    return created


async def _await_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> None:
    """Wait until new topics can be used. Before, aiokafka's clients log errors about them."""
    while True:
        topics = await admin.describe_topics(names)
        codes = [part["error_code"] for topic in topics for part in (topic, *topic["partitions"])]
        if not NOT_THERE_YET.intersection(codes):
            return  # a missing right, for example, is named later
        await asyncio.sleep(LEADERS_POLL_SECONDS)


async def _prime(settings: Settings, topics: list[Topic]) -> None:
    """Give the group a committed offset above 0 on every partition, before any member joins.

    After a rebalance Faust discards the records that it has fetched, and seeks back. aiokafka seeks
    to offsets above 0 only, so a record at offset 0 could be skipped for ever if no offset is
    committed (docs/decisions.md, 10). So `NOOP` is the record at offset 0. If a command has offset
    0 already, all records of the partition are copied to its end, and the agents read the copies.

    A committed offset behind the partition's end is of a topic that was deleted and created again
    while a worker ran. Faust would drop all records up to that offset: it is replaced.
    """
    connection = {"bootstrap_servers": settings.kafka, **kafka_security(settings, settings.kafka)}
    partitions = [TopicPartition(t.name, p) for t in topics for p in range(t.partitions)]
    consumer = AIOKafkaConsumer(
        group_id=settings.app_id,
        enable_auto_commit=False,
        # Else aiokafka asks for the offsets of new topics, and logs errors until they have leaders.
        auto_offset_reset="none",
        **connection,
    )
    producer = AIOKafkaProducer(acks="all", linger_ms=5, **connection)
    try:
        async with answers(settings, settings.kafka, PRIME_SECONDS):
            await consumer.start()
            await producer.start()
            consumer.assign(partitions)
            known = {tp: await consumer.committed(tp) for tp in partitions}
            ends = await consumer.end_offsets(partitions)
            unprimed = [tp for tp in partitions if not 0 < (known[tp] or 0) <= ends[tp]]
            beginnings = await consumer.beginning_offsets(unprimed) if unprimed else {}
            # From a beginning above 0 aiokafka starts rightly.
            unprimed = [tp for tp in unprimed if known[tp] or not beginnings[tp]]
            if not unprimed:
                return
            await _require_empty_group(settings, sorted({tp.topic for tp in unprimed}))
            commits = {
                tp: await _first_offset(consumer, producer, tp, ends[tp], is_stale=bool(known[tp]))
                for tp in unprimed
            }
            consumer.assign(partitions)
            await consumer.commit(commits)
            logger.info("primed %d partitions", len(commits))
    finally:
        for client in (producer, consumer):
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(client.stop(), STOP_SECONDS)


async def _require_empty_group(settings: Settings, topics: list[str]) -> None:
    """Raise `Unavailable` while the group has members: Kafka then takes no offsets from outside.

    A living worker sees that its topics were deleted, and starts over (`topic_watch`). Another
    worker, started at the same time, may have primed the partitions and joined the group.
    """
    async with _admin(settings, settings.kafka) as admin:
        (answer,) = await admin.describe_consumer_groups([settings.app_id])
    (group,) = answer.to_object()["groups"]
    if group["members"]:
        msg = (
            f"the group {settings.app_id!r} (REPLAY_APP_ID) has {len(group['members'])} members "
            f"that do not know {', '.join(topics)} yet: they start over within seconds, and leave "
            "after REPLAY_SESSION_TIMEOUT_SECONDS"
        )
        raise Unavailable(msg)


async def _first_offset(
    consumer: AIOKafkaConsumer,
    producer: AIOKafkaProducer,
    tp: TopicPartition,
    end: int,
    *,
    is_stale: bool,
) -> int:
    """Return the offset at which the group begins to read a partition: above 0.

    ``is_stale``: the group has a committed offset behind ``end``.
    """
    if end == 0:
        sent = await producer.send_and_wait(tp.topic, NOOP, partition=tp.partition)
        if sent.offset == 0:
            return 1  # as in nearly every new partition: a read of each would take half a second
        end = sent.offset + 1  # a client has sent a command meanwhile
    first = await _first_record(consumer, tp)
    if is_stale and time.time() - first.timestamp / 1000 > NEW_SECONDS:
        return end  # the topic is the old one, and the broker has lost its end: all was read
    if first.offset or first.value == NOOP:
        return int(first.offset) or 1
    await _copy_to_the_end(consumer, producer, tp, end)
    return end


async def _first_record(consumer: AIOKafkaConsumer, tp: TopicPartition) -> ConsumerRecord:
    consumer.assign([tp])
    await consumer.seek_to_beginning(tp)
    while True:
        for record in (await consumer.getmany(tp, timeout_ms=1000)).get(tp, []):
            return record


async def _copy_to_the_end(
    consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, tp: TopicPartition, end: int
) -> None:
    consumer.seek(tp, 0)
    while await consumer.position(tp) < end:
        records = (await consumer.getmany(tp, timeout_ms=1000)).get(tp, [])
        # Not one by one: PRIME_SECONDS must be enough for all.
        acks = [
            await producer.send(tp.topic, one.value, key=one.key, partition=tp.partition)
            for one in records
            if one.offset < end and one.value != NOOP
        ]
        await asyncio.gather(*acks)


@contextlib.asynccontextmanager
async def _admin(settings: Settings, bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give an admin client for ANSWER_SECONDS.

    Raises
    ------
    Unavailable
        When the broker does not answer within the block.

    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **kafka_security(settings, bootstrap))
    try:
        async with answers(settings, bootstrap, ANSWER_SECONDS):
            await admin.start()
            yield admin
    finally:
        await close_client(admin)
