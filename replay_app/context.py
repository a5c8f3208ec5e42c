"""What the agents and views of one worker share: connections, board, metrics."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replay_app.board import Board
from replay_app.budgets import ByteBudget
from replay_app.commands import Source, Start
from replay_app.destinations import Destination, describe_destinations
from replay_app.ignored import IgnoredRecords
from replay_app.metrics import Metrics
from replay_app.publisher import TRANSACTION_TIMEOUT_MS, Outbox
from replay_app.reports import Plan
from replay_app.settings import Settings
from replay_app.sources import require_same_source, settings_for, source_of
from replay_app.stable_offsets import ConsumerWatch
from replay_app.store import EventStore
from replay_app.store_health import StoreHealth
from replay_app.tokens import Tokens
from replay_app.topics import Topics

TRANSACTION_SECONDS = TRANSACTION_TIMEOUT_MS / 1000 / 4
"""How long the broker may take for a transaction before the next ones are made smaller."""
MAX_SOURCES = 100
"""Sources that a worker remembers."""
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
    obstacles: dict[str, str] = field(default_factory=dict)
    """What holds the worker up now, in words, by the thing that is held up."""
    metrics: Metrics = field(default_factory=Metrics)
    budgets: defaultdict[int, ByteBudget] = field(
        default_factory=lambda: defaultdict(lambda: ByteBudget(TRANSACTION_SECONDS))
    )
    """By partition of ``replay.work``. Here, so that they outlive a producer that was given up."""
    ignored: IgnoredRecords = field(default_factory=IgnoredRecords)
    unreadable: Callable[[], dict[int, tuple[str, ...]]] = dict
    """The keys of unreadable checkpoints by owned partition; the work agent tells."""
    watch: ConsumerWatch = field(init=False)
    store_health: StoreHealth = field(init=False)
    tokens: Tokens = field(init=False)
    _sources: dict[Source, Settings] = field(default_factory=dict)
    """What `reads` has found."""
    _destinations: dict[str, tuple[float, Destination]] = field(default_factory=dict)
    """By topic: until when the topic is remembered (monotonic seconds), and the topic."""

    def __post_init__(self) -> None:
        """Make what needs the settings or the store."""
        self.watch = ConsumerWatch(self.settings)
        self.store_health = StoreHealth(self.store)
        self.tokens = Tokens(self.settings)
        self.metrics.show_ignored(self.ignored.counts)

    def reads(self, start: Start) -> tuple[Settings, EventStore]:
        """Return the settings and the collection with which a replay reads its events.

        Raises
        ------
        ReplayFailed
            When this worker may not read the replay's source, or does not know its mapping.

        """
        settings = self._sources.get(start.source)
        if settings is None:
            settings = settings_for(self.settings, start.source)
            if len(self._sources) >= MAX_SOURCES:
                self._sources.clear()
            self._sources[start.source] = settings
        return settings, self.store if settings is self.settings else self.store.at(settings)

    def require_same_source(self, start: Start, plan: Plan) -> None:
        """Raise `ReplayFailed` if this worker would read a replay from another source than planned.

        The first read of the collection compares the identity of the collection, too.
        """
        settings, _ = self.reads(start)
        require_same_source(plan.source, source_of(settings, start))

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
