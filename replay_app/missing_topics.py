"""The topics to which a replay publishes, and how the missing ones are created.

A missing topic is created like the original topic of its events: with the same number of partitions
and the same settings. So the records of a key share a partition again, and none is refused that the
original topic has taken.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from replay_app.bounds import freeze_bounds
from replay_app.clusters import answers, cluster_name, connected
from replay_app.commands import Target
from replay_app.counts import count_events, topic_of_group
from replay_app.destinations import ANSWER_SECONDS, describe_all, describe_destinations
from replay_app.exceptions import EventError, ReplayError
from replay_app.kafka_internals import close_client
from replay_app.kafka_requests import describe_overrides
from replay_app.kafka_security import kafka_security

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.store import EventStore


IN_SYNC = "min.insync.replicas"
OF_THE_CLUSTER = ("leader.replication.", "follower.replication.", "remote.", "local.")
"""How the settings begin that say where a topic's data are and how they move: not copied."""


@dataclass(frozen=True, slots=True)
class NeededTopic:
    """A destination topic of a replay."""

    name: str
    like: str
    """The original topic of the events. Of several, the one with the most partitions."""
    exists: bool
    partitions: int = 0
    """Of the original topic. 0: the original topic does not exist."""
    replicas: int = 0
    config: Mapping[str, str] = field(default_factory=dict)
    """The settings that the original topic does not have from its cluster."""


async def find_needed(start: Start, settings: Settings, store: EventStore) -> list[NeededTopic]:
    """Return the destination topics of the events that match a command now.

    Raises
    ------
    ReplayFailed
        When the collection does not exist, or when the store refuses.
    ReplayError
        When the events cannot be counted by type within ``REPLAY_PLAN_SECONDS``.
    Unavailable
        When the store or a broker does not answer.

    """
    likes = await _originals(start, settings, store)
    there = await describe_destinations(settings, likes)
    live = await _live(settings, sorted({name for names in likes.values() for name in names}))
    needed = []
    for name, originals in sorted(likes.items()):
        known = [live[one] for one in originals if one in live]
        like = max(known, key=lambda one: one.partitions, default=None)
        if like is None:
            needed.append(NeededTopic(name, originals[0], name in there))
        else:
            found = NeededTopic(
                name, like.name, name in there, like.partitions, like.replicas, like.config
            )
            needed.append(found)
    return needed


async def _originals(start: Start, settings: Settings, store: EventStore) -> dict[str, list[str]]:
    """Return the original topics of the events, by destination topic."""
    await store.require_collection()
    mapping = settings.mapping
    bounds = await freeze_bounds(start, mapping, store)
    counts = await count_events(start, settings, store, bounds)
    if counts.timed is None:
        msg = (
            f"the topics of the events are not known within {settings.plan_seconds:g} s "
            "(REPLAY_PLAN_SECONDS): raise the limit, or name fewer events, such as by --event-type"
        )
        raise ReplayError(msg)
    found: dict[str, list[str]] = {}
    for event_type, topic in counts.timed:
        with contextlib.suppress(EventError):  # these events have no topic: each of them fails
            original = topic_of_group(event_type, topic, mapping, Target())
            name = topic_of_group(event_type, topic, mapping, start.target)
            if original not in (originals := found.setdefault(name, [])):
                originals.append(original)
    return found


async def _live(settings: Settings, names: list[str]) -> dict[str, NeededTopic]:
    """Return the original topics that exist, with their settings."""
    if not names:
        return {}
    async with (
        answers(settings, settings.kafka, ANSWER_SECONDS),
        connected(settings, settings.kafka) as client,
    ):
        topics = [one for one in await describe_all(client, names) if not one.error_code]
        configs = await describe_overrides(client, [one.name for one in topics])
    return {
        one.name: NeededTopic(
            one.name,
            one.name,
            exists=True,
            partitions=one.partitions,
            replicas=one.replicas,
            config=configs.get(one.name, {}),
        )
        for one in topics
    }


def _config_for(topic: NeededTopic, replicas: int) -> dict[str, str]:
    """Return the settings of the original topic that fit the new topic's cluster."""
    config = {
        name: value for name, value in topic.config.items() if not name.startswith(OF_THE_CLUSTER)
    }
    if int(config.get(IN_SYNC, 1)) > replicas:  # else the topic would take no record
        config[IN_SYNC] = str(replicas)
    return config


async def create_missing(settings: Settings, needed: Sequence[NeededTopic]) -> list[str]:
    """Create the topics that do not exist and that are like another; return their names.

    A topic has no more replicas than the cluster has brokers.

    Raises
    ------
    ReplayError
        When the broker refuses a topic. Those before it are created.
    Unavailable
        When the broker does not answer.

    """
    bootstrap = settings.target_bootstrap
    missing = [one for one in needed if not one.exists and one.partitions]
    if not missing:
        return []
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **kafka_security(settings, bootstrap))
    created: list[str] = []
    try:
        async with answers(settings, bootstrap, ANSWER_SECONDS):
            await admin.start()
            brokers = len((await admin.describe_cluster())["brokers"])
            for one in missing:
                replicas = max(1, min(one.replicas, brokers))
                config = _config_for(one, replicas)
                topic = NewTopic(one.name, one.partitions, replicas, topic_configs=config)
                answer = await admin.create_topics([topic])
                for name, code, message in (entry[:3] for entry in answer.topic_errors):
                    error = for_code(code)
                    if code and error is not TopicAlreadyExistsError:
                        msg = (
                            f"{cluster_name(settings, bootstrap)} does not create topic {name!r}: "
                            f"{message or error.__name__}"
                        )
                        raise ReplayError(msg)
                    created += [] if code else [name]
    finally:
        await close_client(admin)
    return created
