"""Looks, while a worker runs, whether its own topics are still those of its start.

Faust and aiokafka know offsets, and no topics: in a topic that was deleted and created again, they
pass over all records up to the offset that they have reached in the old one. So a worker whose
topic is gone, or is another one under the same name, starts over: its start creates the missing
topics and gives them their first offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaClient
from aiokafka.errors import UnknownTopicOrPartitionError

from replay_app.kafka_internals import close_client
from replay_app.kafka_requests import describe_topics
from replay_app.kafka_security import kafka_security
from replay_app.topics import topics_by_cluster

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Time between two looks."""
GONE_SECONDS = 8.0
"""A topic is gone when the broker has not known it for this time. A broker that has just started
may not know all topics yet."""
ANSWER_SECONDS = 10.0
"""How long the broker may take to answer a look."""
METADATA_MS = 24 * 60 * 60 * 1000
"""How often aiokafka asks for all topics of the cluster by itself. The watch does not need them."""
OBSTACLE = "topics"
"""Under which name the worker shows what a look has found."""


class TopicWatch:
    """The topics of one worker, and the ids that they had when the worker started."""

    def __init__(self, settings: Settings, obstacles: MutableMapping[str, str]) -> None:
        self._settings = settings
        self._obstacles = obstacles
        """What holds the worker up, in words, by the thing that is held up."""
        self.ids: dict[str, str] = {}
        """By topic: the id at the first look. A broker before Kafka 2.8 has no ids."""
        self._missing_since: dict[str, float] = {}
        """By topic: monotonic seconds."""
        self._clients: dict[str, AIOKafkaClient] = {}
        """By the addresses of the cluster."""

    async def until_lost(self) -> str:
        """Look until a topic is lost. Return what has happened, in words."""
        try:
            while True:
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        found = await self._find()
                except Exception as error:  # noqa: BLE001 - a look that fails must not end the watch
                    logger.debug("the topics cannot be looked at: %r", error)
                    await self._disconnect()
                else:
                    if (lost := self._compare(found, time.monotonic())) is not None:
                        return lost
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self._disconnect()

    async def _find(self) -> dict[str, str | None]:
        """Return the id of each topic, "" without an id; None: the broker does not know it."""
        found: dict[str, str | None] = {}
        for bootstrap, topics in topics_by_cluster(self._settings).items():
            client = await self._connect(bootstrap)
            for topic in await describe_topics(client, [own.name for own in topics]):
                if topic.error_code == UnknownTopicOrPartitionError.errno:
                    found[topic.name] = None
                elif not topic.error_code:
                    found[topic.name] = topic.topic_id
        return found

    async def _connect(self, bootstrap: str) -> AIOKafkaClient:
        """Return a cluster's client. A client is kept until a look fails."""
        if bootstrap not in self._clients:
            client = self._clients[bootstrap] = AIOKafkaClient(
                bootstrap_servers=bootstrap,
                metadata_max_age_ms=METADATA_MS,
                **kafka_security(self._settings, bootstrap),
            )
            await client.bootstrap()
        return self._clients[bootstrap]

    async def _disconnect(self) -> None:
        while self._clients:
            await close_client(self._clients.popitem()[1])

    def _compare(self, found: dict[str, str | None], now: float) -> str | None:
        """Return what has happened, once a topic is lost; show what is missing meanwhile."""
        for name, topic_id in found.items():
            if topic_id is None:
                self._missing_since.setdefault(name, now)
                continue
            self._missing_since.pop(name, None)
            if topic_id != self.ids.setdefault(name, topic_id):
                return f"topic {name!r} was deleted and created again"
        missing = sorted(self._missing_since)
        if not missing:
            self._obstacles.pop(OBSTACLE, None)
            return None
        named = ", ".join(map(repr, missing))
        gone = f"the broker does not know {named}: deleted while the worker runs?"
        if OBSTACLE not in self._obstacles:
            logger.warning("%s", gone)
        self._obstacles[OBSTACLE] = gone
        if now - min(self._missing_since.values()) >= GONE_SECONDS:
            return f"{named} was deleted while the worker ran"
        return None
