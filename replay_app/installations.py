"""Which installation a topic belongs to: a record on the topic, which every worker reads first.

An installation is a pair: ``REPLAY_APP_ID`` and ``REPLAY_TOPIC_PREFIX``. With another app id on the
same topics, a second group of workers would publish each replay once more. With another prefix in
the same group, the members would read different topics.

The first record in the partition's log wins. Its key contains the installation, so compaction keeps
the records of two installations that start at the same moment, and their order.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pydantic
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from replay_app.clusters import cluster_name, refused_rights
from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.kafka_security import kafka_security

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from replay_app.settings import Settings

KEY = b"/installation/"
"""How the keys of these records begin. No replay id begins with a slash."""
PARTITION = 0
ANSWER_SECONDS = 30.0
"""How long the broker may take to tell whom a topic belongs to, and to take the record."""
POLL_MS = 500


@dataclass(frozen=True, slots=True)
class Installation:
    """Workers that work together: they share a consumer group and all topics."""

    app_id: str
    topic_prefix: str

    @classmethod
    def of(cls, settings: Settings) -> Installation:
        """Return the installation of a worker with these settings."""
        return cls(settings.app_id, settings.topic_prefix)

    @property
    def key(self) -> bytes:
        """The key of this installation's records."""
        return KEY + f"{self.app_id}/{self.topic_prefix}".encode()


_Installation = pydantic.TypeAdapter(Installation)


def is_installation(key: bytes | None) -> bool:
    """Whether a record says whom its topic belongs to. Readers of the topic pass it over."""
    return key is not None and key.startswith(KEY)


class TopicOwner:
    """Finds out, and says, to which installation a topic belongs.

    Both methods raise `Unavailable` when the broker does not answer within ANSWER_SECONDS. An open
    transaction holds up neither: the record is not part of a transaction, and it is read with
    ``read_uncommitted``.
    """

    def __init__(self, settings: Settings, bootstrap: str, topic: str) -> None:
        self._settings = settings
        self._bootstrap = bootstrap
        self._mine = Installation.of(settings)
        self._partition = TopicPartition(topic, PARTITION)
        self._connection: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            **kafka_security(settings, bootstrap),
        }

    async def require(self) -> bool:
        """Check that the topic, which exists, belongs to no other installation.

        Return whether the topic belongs to this installation: False if it belongs to nobody yet.

        Raises
        ------
        InvalidSettings
            When the topic belongs to another installation.

        """
        owner = await self._within_limit(self._find())
        if owner is None or owner == self._mine:
            return owner is not None
        raise InvalidSettings(_refusal(self._partition.topic, owner, self._mine))

    async def claim(self) -> None:
        """Let the topic belong to this installation. Call this if it belongs to nobody.

        Raises
        ------
        InvalidSettings
            When another installation was faster.

        """
        # Without a look before: aiokafka would write errors into the log until a new topic has
        # leaders.
        await self._within_limit(self._write())
        await self.require()

    async def _within_limit(self, work: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await work
        except TopicAuthorizationFailedError as error:
            what = f"on topic {self._partition.topic!r}: {error}"
            raise refused_rights(self._settings, self._bootstrap, what) from error
        except (KafkaError, TimeoutError) as error:
            why = str(error) or f"no answer within {ANSWER_SECONDS:g} s"
            msg = (
                f"{cluster_name(self._settings, self._bootstrap)} does not tell to which app id "
                f"{self._partition.topic!r} belongs: {why}"
            )
            raise Unavailable(msg) from error

    async def _find(self) -> Installation | None:
        """Return the installation of the first such record; None without a record."""
        consumer = AIOKafkaConsumer(
            isolation_level="read_uncommitted",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            **self._connection,
        )
        partition = self._partition
        try:
            await consumer.start()
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            await consumer.seek_to_beginning(partition)
            while await consumer.position(partition) < end:
                batches = await consumer.getmany(partition, timeout_ms=POLL_MS)
                for record in batches.get(partition, []):
                    found = _decode(record)
                    if found is not None:
                        return found
        finally:
            await consumer.stop()
        return None

    async def _write(self) -> None:
        producer = AIOKafkaProducer(acks="all", **self._connection)
        try:
            await producer.start()
            await producer.send_and_wait(
                self._partition.topic,
                _Installation.dump_json(self._mine),
                key=self._mine.key,
                partition=PARTITION,
            )
        finally:
            await producer.stop()


def _decode(record: ConsumerRecord) -> Installation | None:
    """Return the installation of a record; None for all other records, also a stranger's."""
    if not is_installation(record.key):
        return None
    try:
        found = _Installation.validate_json(record.value or b"")
    except pydantic.ValidationError:
        return None
    return found if found.key == record.key else None


def _refusal(topic: str, owner: Installation, mine: Installation) -> str:
    """Return why a worker cannot start, and what to do."""
    if owner.app_id != mine.app_id:
        return (
            f"topic {topic!r} belongs to REPLAY_APP_ID={owner.app_id}, and this worker has "
            f"REPLAY_APP_ID={mine.app_id}: both would publish every replay. Set REPLAY_APP_ID="
            f"{owner.app_id}, or choose another REPLAY_TOPIC_PREFIX than {mine.topic_prefix!r}. To "
            f"give the prefix to {mine.app_id}, end the replays and the workers of {owner.app_id}, "
            f"then delete the topics that `replay-app topics` lists"
        )
    return (
        f"REPLAY_APP_ID={mine.app_id} belongs to REPLAY_TOPIC_PREFIX={owner.topic_prefix!r}, and "
        f"this worker has REPLAY_TOPIC_PREFIX={mine.topic_prefix!r}: one group cannot read both. "
        f"Set REPLAY_TOPIC_PREFIX={owner.topic_prefix}, or choose another REPLAY_APP_ID than "
        f"{mine.app_id}. To give {mine.app_id} the other prefix, end the replays and the workers, "
        f"then delete topic {topic!r}"
    )
