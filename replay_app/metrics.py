"""What one worker tells Prometheus about itself (``GET /metrics``).

Everything may be added up over the workers: a worker counts what it did itself, and the sessions
whose partitions it owns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from replay_app.reports import Counters

Stage = Literal["read", "encode", "send", "commit"]
SLICE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._events = Counter(
            "replay_events", "Events of committed slices.", ["outcome"], registry=registry
        )
        for outcome in ("published", "skipped", "dead_lettered"):
            self._events.labels(outcome)  # so that each is there from the start, at 0
        self._bytes = Counter(
            "replay_published_bytes", "Bytes of the published values.", registry=registry
        )
        self._slices = Histogram(
            "replay_slice_seconds",
            "From the token to the commit.",
            ["kind"],
            buckets=SLICE_SECONDS,
            registry=registry,
        )
        self._stages = Summary(
            "replay_stage_seconds",
            "What shards waited for: a page, its encoding, the acks of the one before, a commit.",
            ["stage"],
            registry=registry,
        )
        for stage in get_args(Stage):
            self._stages.labels(stage)
        self.requeued_tokens = Counter(
            "replay_requeued_tokens", "Tokens put back after a producer's error.", registry=registry
        )
        self.refused_commands = Counter(
            "replay_refused_commands", "Commands refused, by why.", ["why"], registry=registry
        )
        for why in ("malformed", "conflict"):
            self.refused_commands.labels(why)

    def count_slice(self, kind: str, seconds: float, more: Counters, more_bytes: int) -> None:
        """Count a slice and what it added to its shard's counters."""
        self._slices.labels(kind).observe(seconds)
        self._events.labels("published").inc(more.published)
        self._events.labels("skipped").inc(more.skipped)
        self._events.labels("dead_lettered").inc(more.dead_lettered)
        self._bytes.inc(more_bytes)

    def waiting(self, stage: Stage) -> AbstractContextManager[object]:
        """Measure the block as time in which a shard waits for one stage of its work.

        They run beside each other, so the one that is waited for longest limits the replay.
        """
        return self._stages.labels(stage).time()

    def show_sessions(self, owned_by_state: Callable[[], Mapping[str, int]]) -> None:
        """Show the sessions that this worker owns, as they are whenever somebody asks."""
        self.registry.register(_Sessions(owned_by_state))

    def exposition(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry)


class _Sessions(Collector):
    def __init__(self, owned_by_state: Callable[[], Mapping[str, int]]) -> None:
        self._owned_by_state = owned_by_state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        sessions = GaugeMetricFamily(
            "replay_sessions", "Sessions whose partition is owned here.", labels=["state"]
        )
        for state, count in self._owned_by_state().items():
            sessions.add_metric([state], count)
        yield sessions

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []
