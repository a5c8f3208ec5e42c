"""What the agents and views of one worker share: connections, board, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replay_app.board import Board
from replay_app.ignored import IgnoredRecords
from replay_app.metrics import Metrics
from replay_app.publisher import Outbox
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.topics import Topics, partition_counts

REMEMBER_SECONDS = 10.0
"""How long a worker remembers the partition counts of destination topics."""


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
    ignored: IgnoredRecords = field(default_factory=IgnoredRecords)
    _counts: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By topic: until when the partition count is remembered (monotonic seconds), and the count."""

    def __post_init__(self) -> None:
        self.metrics.show_ignored(self.ignored.counts)

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
            found = await partition_counts(
                self.settings, self.settings.target_bootstrap, wanted - set(fresh)
            )
            self._counts |= {name: (now + REMEMBER_SECONDS, n) for name, n in found.items()}
            fresh |= found
        return fresh
