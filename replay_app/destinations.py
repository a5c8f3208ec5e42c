"""Destination topics: what the broker tells of them, and what a replay would meet there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from replay_app.clusters import connected
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.kafka_requests import describe_configs, describe_topics
from replay_app.reports import few

if TYPE_CHECKING:
    from replay_app.kafka_requests import TopicMetadata
    from replay_app.settings import Settings

ANSWER_SECONDS = 20.0
"""How long the broker may take to describe all destination topics of a replay."""
TOPICS_PER_REQUEST = 500
MAX_NAMED_TOPICS = 5
"""Topics that an error or a warning names."""
CONFIG_NAMES = (
    "cleanup.policy",
    "max.message.bytes",
    "message.timestamp.after.max.ms",
    "message.timestamp.before.max.ms",
    "message.timestamp.difference.max.ms",  # before Kafka 3.6
    "message.timestamp.type",
    "min.insync.replicas",
    "retention.ms",
)
WRITE = 1 << 4
"""The bit of the operation WRITE among the rights on a topic (Java's AclOperation)."""
NO_LIMIT = 2**63 - 1
"""The value of a topic's time limit that is no limit."""

MAY_DELETE = (
    "Kafka may delete such records at once: raise retention.ms, or set "
    "REPLAY_RECORD_TIMESTAMP=append"
)
"""What happens to records that are older than their topic keeps records, and the remedy."""

Spans = dict[str, tuple[datetime, datetime]]
"""By topic: the times of the oldest and of the newest event."""


@dataclass(frozen=True, slots=True)
class Destination:
    """What the broker tells of an existing topic."""

    partitions: int
    """0 if this program may not see the topic."""
    may_write: bool = True
    """True also where the broker does not tell."""
    in_sync: int = 1
    """Replicas in sync of the partition that has the fewest."""
    config: Mapping[str, str] = field(default_factory=dict)
    """The topic's settings, by Kafka's names. Empty if the broker does not tell."""
    topic_id: str = ""
    """Another one after the topic was deleted and created again. Empty if the broker has none."""

    @property
    def batch_bytes(self) -> int | None:
        """Most bytes of a compressed batch. None if unknown."""
        return self._number("max.message.bytes")

    @property
    def is_compacted(self) -> bool:
        """Whether Kafka keeps only the newest record of each key."""
        return "compact" in self.config.get("cleanup.policy", "")

    @property
    def keeps_original_times(self) -> bool:
        """Whether records keep the timestamps that the producer gives them."""
        return self.config.get("message.timestamp.type") == "CreateTime"

    @property
    def wanted_in_sync(self) -> int:
        """Replicas in sync without which the broker takes no record."""
        return self._number("min.insync.replicas") or 1

    def oldest_taken(self, now: datetime) -> datetime | None:
        """Return the oldest record timestamp that the broker takes. None: there is no limit."""
        return self._moment(now, -1, "message.timestamp.before.max.ms")

    def newest_taken(self, now: datetime) -> datetime | None:
        """Return the newest record timestamp that the broker takes. None: there is no limit."""
        return self._moment(now, 1, "message.timestamp.after.max.ms")

    def oldest_kept(self, now: datetime) -> datetime | None:
        """Return the oldest record timestamp that retention does not delete. None: no limit."""
        if "delete" not in self.config.get("cleanup.policy", ""):
            return None
        return _moment(now, -1, self._number("retention.ms"))

    def time_limits(self, now: datetime) -> tuple[datetime | None, ...]:
        """Return all limits for the timestamps of records."""
        return self.oldest_taken(now), self.newest_taken(now), self.oldest_kept(now)

    def _moment(self, now: datetime, sign: int, name: str) -> datetime | None:
        limit = self._number(name)
        if limit is None:  # the order in which Kafka 3.6 to 3.9 look
            limit = self._number("message.timestamp.difference.max.ms")
        return _moment(now, sign, limit)

    def _number(self, name: str) -> int | None:
        value = int(self.config.get(name, -1))
        return value if 0 <= value < NO_LIMIT else None


def _moment(now: datetime, sign: int, milliseconds: int | None) -> datetime | None:
    """Return the time that lies some milliseconds away; None without a limit that matters."""
    if milliseconds is None:
        return None
    try:
        return now + sign * timedelta(milliseconds=milliseconds)
    except OverflowError:  # a limit of thousands of years
        return None


def _is_before(time: datetime | None, limit: datetime | None) -> bool:
    """Whether a time lies before another; False if one of them is None."""
    return time is not None and limit is not None and time < limit


async def describe_destinations(settings: Settings, names: Iterable[str]) -> dict[str, Destination]:
    """Ask the broker for the named topics; return those that exist.

    Raises
    ------
    Unavailable
        When the broker does not answer within ANSWER_SECONDS.

    """
    wanted = sorted(set(names))
    if not wanted:
        return {}
    bootstrap = settings.target_bootstrap
    found: dict[str, Destination] = {}
    try:
        async with asyncio.timeout(ANSWER_SECONDS), connected(settings, bootstrap) as client:
            for first in range(0, len(wanted), TOPICS_PER_REQUEST):
                found |= await _describe(client, wanted[first : first + TOPICS_PER_REQUEST])
    except (KafkaError, TimeoutError) as error:
        msg = f"Kafka at {bootstrap} does not describe the destination topics: {error!r}"
        raise Unavailable(msg) from error
    return found


def have_original_times(topics: Mapping[str, Destination], settings: Settings) -> bool:
    """Return whether the records of all these topics have their events' times as timestamps."""
    return settings.record_timestamp == "original" and all(
        topic.keeps_original_times for topic in topics.values()
    )


def batch_limits(topics: Mapping[str, Destination], most: int) -> dict[str, int]:
    """Return the topics that take smaller batches than ``most`` bytes, and how many bytes."""
    return {
        name: one.batch_bytes
        for name, one in topics.items()
        if one.batch_bytes is not None and one.batch_bytes < most
    }


async def describe_all(client: AIOKafkaClient, names: Sequence[str]) -> list[TopicMetadata]:
    """Return what a cluster tells of some topics, without their settings. No topic is created.

    ``client`` has been bootstrapped.

    Raises
    ------
    aiokafka.errors.KafkaError
        When the broker does not answer.

    """
    return [
        told
        for first in range(0, len(names), TOPICS_PER_REQUEST)
        for told in await describe_topics(client, names[first : first + TOPICS_PER_REQUEST])
    ]


async def _describe(client: AIOKafkaClient, names: list[str]) -> dict[str, Destination]:
    topics, configs = await asyncio.gather(
        describe_topics(client, names), describe_configs(client, names, CONFIG_NAMES)
    )
    found: dict[str, Destination] = {}
    for topic in topics:
        if topic.error_code == TopicAuthorizationFailedError.errno:
            found[topic.name] = Destination(0, may_write=False)
        elif not topic.error_code:
            found[topic.name] = Destination(
                topic.partitions,
                may_write=topic.operations is None or bool(topic.operations & WRITE),
                in_sync=topic.in_sync,
                config=configs.get(topic.name, {}),
                topic_id=topic.topic_id,
            )
    return found


# The preflight


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a replay would do to its destination topics, compared with what the topics take."""

    found: Mapping[str, Destination]
    """The destination topics, all of which exist."""
    now: datetime
    writes_null_keys: bool
    """Whether control records are written: their keys are null."""
    original_times: bool
    """Whether the records carry the times of their events."""
    leaves_out: bool = False
    """Whether an event that the broker refuses is left out: the replay's ``on_error`` is not
    ``fail``."""

    @property
    def needs_spans(self) -> bool:
        """Whether the times of the events decide what is found."""
        return self.original_times and any(
            topic.keeps_original_times and any(topic.time_limits(self.now))
            for topic in self.found.values()
        )

    def check(self, settings: Settings, spans: Spans) -> tuple[str, ...]:
        """Return warnings of what may hurt.

        ``spans`` has the times of the events, where they are known.

        Raises
        ------
        ReplayFailed
            When the replay cannot succeed: each obstacle, with its topics and its remedy.

        """
        obstacles = [*self._rights(settings), *self._null_keys()]
        refused_times = [*self._refused_times(spans)]
        if not self.leaves_out:
            obstacles += refused_times
        if obstacles:
            msg = f"{'; '.join(obstacles)}; then retry"
            raise ReplayFailed(msg)
        return (
            *(f"{refused}; else these events fail one by one" for refused in refused_times),
            *self._merged_keys(),
            *self._lost_times(spans),
            *self._replicas(),
            *self._unknown(),
        )

    def _named(self, applies: Callable[[str, Destination], bool]) -> str | None:
        """Return the names of the topics to which a condition applies; None without one."""
        topics = sorted(name for name, topic in self.found.items() if applies(name, topic))
        return name_topics(topics) if topics else None

    # What cannot succeed

    def _rights(self, settings: Settings) -> Iterable[str]:
        denied = sorted(name for name, topic in self.found.items() if not topic.may_write)
        if denied:
            user = settings.kafka_sasl_plain_username or "USER"
            yield (
                f"no right to write to {name_topics(denied)}: add the ACL WRITE, with "
                f"`kafka-acls.sh --bootstrap-server {settings.target_bootstrap} --add "
                f"--allow-principal User:{user} --operation Write --topic {denied[0]}`"
            )

    def _null_keys(self) -> Iterable[str]:
        named = self._named(lambda _, topic: topic.is_compacted)
        if named and self.writes_null_keys:
            yield (
                f"control records have no key, and compacted topics refuse such records: {named}; "
                "start the replay without control_records, or publish to other topics"
            )

    def _refused_times(self, spans: Spans) -> Iterable[str]:
        now = self.now
        for what, limit, named in (
            (
                "older",
                "before",
                self._timed(spans, lambda one, low, _: _is_before(low, one.oldest_taken(now))),
            ),
            (
                "further ahead",
                "after",
                self._timed(spans, lambda one, _, high: _is_before(one.newest_taken(now), high)),
            ),
        ):
            if named:
                yield (
                    f"events are {what} than their topics take "
                    f"(message.timestamp.{limit}.max.ms): {named}; raise the limit, or set "
                    "REPLAY_RECORD_TIMESTAMP=append"
                )

    def _timed(
        self, spans: Spans, applies: Callable[[Destination, datetime, datetime], bool]
    ) -> str | None:
        """Return the names of the topics whose oldest and newest event meet a condition."""
        return self._named(
            lambda name, topic: (
                self.original_times
                and topic.keeps_original_times
                and name in spans
                and applies(topic, *spans[name])
            )
        )

    # What may hurt

    def _merged_keys(self) -> Iterable[str]:
        named = self._named(lambda _, topic: topic.is_compacted)
        if named:
            yield (
                f"compacted topics: {named}; Kafka keeps only the newest record of each key, so "
                "an old event that is published again takes the place of newer ones"
            )

    def expired(self, oldest: datetime) -> list[str]:
        """Return a warning of the topics that do not keep a record of the oldest event's time."""
        spans = dict.fromkeys(self.found, (oldest, oldest))
        named = self._expired(spans)
        if named is None:
            return []
        when = f"the oldest event, of {oldest:%Y-%m-%dT%H:%M:%SZ}, is older"
        return [f"{when} than topics keep records (retention.ms): {named}; {MAY_DELETE}"]

    def _expired(self, spans: Spans) -> str | None:
        """Return the names of the topics that do not keep records of their oldest event's time."""
        return self._timed(spans, lambda one, low, _: _is_before(low, one.oldest_kept(self.now)))

    def _lost_times(self, spans: Spans) -> Iterable[str]:
        named = self._expired(spans)
        if named:
            yield (
                f"events are older than their topics keep records (retention.ms): {named}; "
                f"{MAY_DELETE}"
            )
        named = self._named(lambda _, one: bool(one.config) and not one.keeps_original_times)
        if named and self.original_times:
            yield (
                "REPLAY_RECORD_TIMESTAMP=original has no effect where the broker sets the "
                f"timestamps (message.timestamp.type=LogAppendTime): {named}"
            )

    def _replicas(self) -> Iterable[str]:
        named = self._named(lambda _, topic: topic.in_sync < topic.wanted_in_sync)
        if named:
            yield (
                f"fewer replicas are in sync than min.insync.replicas asks for: {named}; the "
                "broker may take no records until more brokers are up"
            )

    def _unknown(self) -> Iterable[str]:
        named = self._named(lambda _, topic: not topic.config)
        if named:
            yield (
                f"the broker does not tell the settings of {named}: compaction, size limits and "
                "time limits were not checked; the ACL DESCRIBE_CONFIGS would allow it"
            )


def grown_topics(planned: Mapping[str, int], found: Mapping[str, Destination]) -> tuple[str, ...]:
    """Return a warning for each of the first topics that have more partitions than planned.

    The text stays the same if a topic grows again: a session has each warning once.
    """
    grown = [
        name for name, one in sorted(found.items()) if 0 < planned.get(name, 0) < one.partitions
    ]
    return tuple(
        f"topic {name!r} had {planned[name]} partitions when the replay was planned, and has more "
        "now: from there on, the records of a key may be in another partition than before, and "
        "consumers see the key's order only within each of the two"
        for name in grown[:MAX_NAMED_TOPICS]
    )


def name_topics(topics: list[str]) -> str:
    """Return the first MAX_NAMED_TOPICS names, and the number of the others."""
    return few([*map(repr, topics)], MAX_NAMED_TOPICS)
