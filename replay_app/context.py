"""What the agents and views of one worker share: connections, board, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replay_app.board import Board
from replay_app.destinations import Destination, describe_destinations
from replay_app.metrics import Metrics
from replay_app.publisher import Outbox
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.topics import Topics

REMEMBER_SECONDS = 10.0
"""How long a worker remembers what the broker tells of destination topics."""


@dataclass
class WorkerContext:
    """What the agents and views of one worker share."""

    settings: Settings
    topics: Topics
    store: EventStore
    outbox: Outbox
    board: Board
    is_leaving: Callable[[], bool]
    """Whether the worker stops or rebalances: a slice then ends at its next page."""
    metrics: Metrics = field(default_factory=Metrics)
    _destinations: dict[str, tuple[float, Destination]] = field(default_factory=dict)
    """By topic: until when the topic is remembered (monotonic seconds), and the topic."""

    async def describe(self, names: Iterable[str]) -> dict[str, Destination]:
        """Ask the broker for destination topics; return those that exist.

        Raises
        ------
        Unavailable
            When the broker does not answer.

        """
        now = time.monotonic()
        found = await describe_destinations(self.settings, names)
        self._destinations |= {name: (now + REMEMBER_SECONDS, one) for name, one in found.items()}
        return found

    async def destinations(self, names: Iterable[str]) -> dict[str, Destination]:
        """Return those destination topics that exist, as they were within REMEMBER_SECONDS.

        Raises
        ------
        Unavailable
            When the broker does not answer.

        """
        wanted, now = set(names), time.monotonic()
        fresh = {
            name: topic
            for name, (until, topic) in self._destinations.items()
            if name in wanted and now < until
        }
        return fresh | await self.describe(wanted - set(fresh))
