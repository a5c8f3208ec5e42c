"""Every topic of this program: name, partitions and configuration, declared in one place."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaClient, AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    for_code,
)

from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.kafka_internals import close_client
from replay_app.partitioner import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterable

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


async def ensure_topics(settings: Settings) -> list[str]:
    """Create the missing topics and prime every partition; return the names of the new topics.

    Raises
    ------
    InvalidSettings
        When a topic exists with another partition count, or a broker has no transactions.
    Unavailable
        When the broker does not answer.

    """
    declared = Topics.of(settings).all()
    created: list[str] = []
    for bootstrap, on_target in _clusters(settings):
        await _require_transactions(settings, bootstrap)
        wanted = [t for t in declared if on_target is None or t.on_target is on_target]
        created += await _create_missing(settings, bootstrap, wanted)
    await _prime(settings, [t for t in declared if t.subscribed])
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
    admin = await _admin(settings, bootstrap)
    try:
        existing = set(await admin.list_topics())
        wanted = existing if names is None else existing & set(names)
        described = await admin.describe_topics(sorted(wanted)) if wanted else []
    except KafkaError as error:
        raise _unavailable(settings, bootstrap, error) from error
    finally:
        await admin.close()
    return {t["topic"]: len(t["partitions"]) for t in described if not t["error_code"]}


async def _require_transactions(settings: Settings, bootstrap: str) -> None:
    # Imported here: internals.py imports PyMongo, and most commands do not need PyMongo.
    from replay_app.internals import request_types  # noqa: PLC0415

    client = AIOKafkaClient(bootstrap_servers=bootstrap, **settings.kafka_security())
    try:
        await client.bootstrap()
        missing = TRANSACTION_REQUESTS.keys() - await request_types(client)
    except KafkaError as error:
        raise _unavailable(settings, bootstrap, error) from error
    finally:
        await close_client(client)
    if missing:
        named = ", ".join(TRANSACTION_REQUESTS[number] for number in sorted(missing))
        msg = (
            f"{cluster_name(settings, bootstrap)} has no transactions, and a replay publishes in "
            f"transactions only: the broker does not answer {named}. Use Apache Kafka 0.11 or "
            "later, or another broker with transactions"
        )
        raise InvalidSettings(msg)


def _clusters(settings: Settings) -> list[tuple[str, bool | None]]:
    if settings.target_bootstrap == settings.kafka:
        return [(settings.kafka, None)]
    return [(settings.kafka, False), (settings.target_bootstrap, True)]


async def _create_missing(settings: Settings, bootstrap: str, wanted: list[Topic]) -> list[str]:
    existing = await partition_counts(settings, bootstrap, [t.name for t in wanted])
    for topic in wanted:
        if existing.get(topic.name, topic.partitions) != topic.partitions:
            msg = (
                f"topic {topic.name!r} has {existing[topic.name]} partitions, but "
                f"REPLAY_PARTITIONS is {topic.partitions}: the number is fixed once the topics "
                "exist; set it back, or choose another REPLAY_TOPIC_PREFIX and REPLAY_APP_ID"
            )
            raise InvalidSettings(msg)
    missing = [t for t in wanted if t.name not in existing]
    if not missing:
        return []
    admin = await _admin(settings, bootstrap)
    try:
        response = await admin.create_topics(
            [
                NewTopic(t.name, t.partitions, settings.replication, topic_configs=t.config)
                for t in missing
            ]
        )
    except KafkaError as error:
        raise _unavailable(settings, bootstrap, error) from error
    finally:
        await admin.close()
    created: list[str] = []
    for name, code, message in (entry[:3] for entry in response.topic_errors):
        if not code:
            created.append(name)
        # When two workers start at once, both try: the second one finds the topic created.
        elif for_code(code) is not TopicAlreadyExistsError:
            msg = (
                f"topic {name!r} cannot be created: {message or for_code(code).__name__}. "
                "REPLAY_REPLICATION is at most the number of brokers, and the worker needs the "
                "right to create topics"
            )
            raise InvalidSettings(msg)
    if created:
        logger.info("created topics %s", ", ".join(created))
    return created


async def _prime(settings: Settings, topics: list[Topic]) -> None:
    """Give the group a committed offset above 0 on every partition, before any member joins.

    After a rebalance Faust discards the records that it has fetched, and seeks back. aiokafka seeks
    to offsets above 0 only, so a record at offset 0 could be skipped for ever if no offset is
    committed (docs/decisions.md, 10). So `NOOP` is the record at offset 0. If a command has offset
    0 already, all records of the partition are copied to its end, and the agents read the copies.
    """
    connection = {"bootstrap_servers": settings.kafka, **settings.kafka_security()}
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
        await consumer.start()
        await producer.start()
        consumer.assign(partitions)
        unprimed = [tp for tp in partitions if not await consumer.committed(tp)]
        beginnings = await consumer.beginning_offsets(unprimed) if unprimed else {}
        ends = await consumer.end_offsets(unprimed) if unprimed else {}
        commits: dict[TopicPartition, int] = {}
        for tp in unprimed:
            if beginnings[tp] > 0:
                continue  # the earliest offset is above 0: aiokafka seeks to it
            end = ends[tp]
            if end == 0:
                # A client may have sent a command meanwhile: the no-op may not be the first record.
                sent = await producer.send_and_wait(tp.topic, NOOP, partition=tp.partition)
                end = sent.offset
            if end > 0:
                await _copy_to_the_end(consumer, producer, tp, end)
                consumer.assign(partitions)
            commits[tp] = max(end, 1)
        if commits:
            try:
                await consumer.commit(commits)
            except CommitFailedError:
                # Another worker, started at the same time, may have primed the partitions and
                # joined the group.
                if not all([await consumer.committed(tp) for tp in commits]):
                    raise
            logger.info("primed %d partitions", len(commits))
    except KafkaError as error:
        raise _unavailable(settings, settings.kafka, error) from error
    finally:
        await producer.stop()
        await consumer.stop()


async def _copy_to_the_end(
    consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, tp: TopicPartition, end: int
) -> None:
    consumer.assign([tp])
    consumer.seek(tp, 0)
    while await consumer.position(tp) < end:
        for record in (await consumer.getmany(tp, timeout_ms=1000)).get(tp, []):
            if record.offset < end and record.value != NOOP:
                await producer.send_and_wait(
                    tp.topic, record.value, key=record.key, partition=tp.partition
                )


async def _admin(settings: Settings, bootstrap: str) -> AIOKafkaAdminClient:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **settings.kafka_security())
    try:
        await admin.start()
    except KafkaError as error:
        await admin.close()
        raise _unavailable(settings, bootstrap, error) from error
    return admin


def _unavailable(settings: Settings, bootstrap: str, error: Any) -> Unavailable | InvalidSettings:
    if isinstance(error, TopicAuthorizationFailedError | GroupAuthorizationFailedError):
        return InvalidSettings(
            f"{cluster_name(settings, bootstrap)} refuses rights to the worker's user: {error}; "
            "grant the rights that docs/operations.md lists (Access control)"
        )
    what = "cannot be reached" if isinstance(error, KafkaConnectionError) else "gave an error"
    return Unavailable(f"{cluster_name(settings, bootstrap)} {what}: {error}")


def cluster_name(settings: Settings, bootstrap: str) -> str:
    """Return a cluster's addresses, and the setting that names them, for a message."""
    variable = "REPLAY_KAFKA" if bootstrap == settings.kafka else "REPLAY_TARGET_KAFKA"
    return f"Kafka at {bootstrap} ({variable})"
