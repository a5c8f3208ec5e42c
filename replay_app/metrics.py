"""The metrics of one worker for Prometheus (docs/operations.md, "Metrics").

The metrics of all workers may be added up: each worker counts only its own work, and the sessions
of the partitions that it owns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from replay_app.reports import Counters

Stage = Literal["read", "encode", "send", "commit"]
SLICE_BUCKETS_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one worker, in a separate registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._events = Counter(
            "replay_events", "Events of committed slices.", ["outcome"], registry=registry
        )
        for outcome in ("published", "skipped", "dead_lettered"):
            self._events.labels(outcome)  # shows each outcome from the start, as 0
        self._bytes = Counter(
            "replay_published_bytes", "Bytes of the published values.", registry=registry
        )
        self._slices = Histogram(
            "replay_slice_seconds",
            "Seconds from a token to its commit.",
            ["kind"],
            buckets=SLICE_BUCKETS_SECONDS,
            registry=registry,
        )
        self._stages = Summary(
            "replay_stage_seconds",
            "Seconds for which shards waited, by stage: read, encode, send or commit.",
            ["stage"],
            registry=registry,
        )
        for stage in get_args(Stage):
            self._stages.labels(stage)
        self.requeued_tokens = Counter(
            "replay_requeued_tokens", "Tokens put back after a producer's error.", registry=registry
        )
        self.refused_commands = Counter(
            "replay_refused_commands", "Refused commands, by cause.", ["why"], registry=registry
        )
        for why in ("malformed", "conflict"):
            self.refused_commands.labels(why)
        self.refused_requests = Counter(
            "replay_http_refused",
            "HTTP requests and connections refused before a view saw them, by cause.",
            ["why"],
            registry=registry,
        )
        for why in ("malformed", "unauthorized", "too_many"):
            self.refused_requests.labels(why)

    def count_slice(self, kind: str, seconds: float, more: Counters, more_bytes: int) -> None:
        """Count a committed slice.

        ``seconds`` is the time from the token to the commit. ``more`` and ``more_bytes`` are the
        increase of the shard's counters and of its published bytes.
        """
        self._slices.labels(kind).observe(seconds)
        self._events.labels("published").inc(more.published)
        self._events.labels("skipped").inc(more.skipped)
        self._events.labels("dead_lettered").inc(more.dead_lettered)
        self._bytes.inc(more_bytes)

    def waiting(self, stage: Stage) -> AbstractContextManager[object]:
        """Return a context that measures how long a shard waits for a stage.

        The stages run beside each other. The stage with the longest wait limits the replay.
        """
        return self._stages.labels(stage).time()

    def show_sessions(self, owned_by_state: Callable[[], Mapping[str, int]]) -> None:
        """Show the number of owned sessions by state. The function is called at each scrape."""
        self.registry.register(_Sessions(owned_by_state))

    def show_consumer_lag(self, lag_by_group: Callable[[], Mapping[str, int]]) -> None:
        """Show the lag of consumer groups. The function is called at each scrape."""
        self.registry.register(_ConsumerLag(lag_by_group))

    def show_ignored(self, counts_by_topic: Mapping[str, int]) -> None:
        """Show the number of records passed over by topic, as it is at each scrape."""
        self.registry.register(_Ignored(counts_by_topic))

    def show_unreadable(self, count: Callable[[], int]) -> None:
        """Show the number of shards that cannot go on because their checkpoint is unreadable."""
        gauge = Gauge(
            "replay_unreadable_checkpoints",
            "Shards that cannot go on: their newest checkpoint cannot be read.",
            registry=self.registry,
        )
        gauge.set_function(count)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Sessions(Collector):
    def __init__(self, owned_by_state: Callable[[], Mapping[str, int]]) -> None:
        self._owned_by_state = owned_by_state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        sessions = GaugeMetricFamily(
            "replay_sessions", "Sessions of the partitions that this worker owns.", labels=["state"]
        )
        for state, count in self._owned_by_state().items():
            sessions.add_metric([state], count)
        yield sessions

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []


class _ConsumerLag(Collector):
    def __init__(self, lag_by_group: Callable[[], Mapping[str, int]]) -> None:
        self._lag_by_group = lag_by_group

    def collect(self) -> Iterator[GaugeMetricFamily]:
        records = GaugeMetricFamily(
            "replay_consumer_lag_records",
            "Records of the owned sessions that a consumer group of these has not read.",
            labels=["group"],
        )
        for group, lag in self._lag_by_group().items():
            records.add_metric([group], lag)
        yield records

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []


class _Ignored(Collector):
    def __init__(self, counts_by_topic: Mapping[str, int]) -> None:
        self._counts_by_topic = counts_by_topic

    def collect(self) -> Iterator[CounterMetricFamily]:
        records = CounterMetricFamily(
            "replay_ignored_records", "Records of internal topics passed over.", labels=["topic"]
        )
        for topic, count in self._counts_by_topic.items():
            records.add_metric([topic], count)
        yield records

    def describe(self) -> Iterable[CounterMetricFamily]:
        return []
