"""What the agents and views of one worker share: connections, board, metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replay_app.board import Board
from replay_app.exceptions import Unavailable
from replay_app.metrics import Metrics
from replay_app.publisher import Outbox
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.topics import Topics, partition_counts

REMEMBER_SECONDS = 10.0
"""How long a worker remembers the partition counts of destination topics."""
ANSWER_SECONDS = 20.0
"""How long the broker may take to tell the partition counts."""


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
    obstacles: dict[str, str] = field(default_factory=dict)
    """What holds the worker up now, in words, by the thing that is held up."""
    metrics: Metrics = field(default_factory=Metrics)
    _counts: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By topic: until when the partition count is remembered (monotonic seconds), and the count."""

    async def partition_counts(self, names: Iterable[str]) -> dict[str, int]:
        """Return the partition counts of those destination topics that exist.

        Raises
        ------
        Unavailable
            When the broker does not answer.

        """
        wanted, now = set(names), time.monotonic()
        fresh = {
            name: count
            for name, (until, count) in self._counts.items()
            if name in wanted and now < until
        }
        if wanted - set(fresh):
            bootstrap = self.settings.target_bootstrap
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    found = await partition_counts(self.settings, bootstrap, wanted - set(fresh))
            except TimeoutError as error:
                msg = f"Kafka at {bootstrap} does not tell the topics within {ANSWER_SECONDS:g} s"
                raise Unavailable(msg) from error
            self._counts |= {name: (now + REMEMBER_SECONDS, n) for name, n in found.items()}
            fresh |= found
        return fresh
