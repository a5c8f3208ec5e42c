"""The groups of cases that are compared, each with the peers of its ratios."""

from __future__ import annotations

import importlib.util
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from history import EVENT_TYPES, EVENTS_PER_AGGREGATE, aggregate_id

ENCODERS = ("native", "python") if importlib.util.find_spec("replay_native") else ("python",)
BEST = ENCODERS[0]
WORKER, BARE = "this worker", "its encoder in a bare loop"
CONFLUENT, AIOKAFKA, RAW = "pymongo + confluent-kafka", "motor + aiokafka send", "raw sorted read"
LEAN, FIRST_PAGE = "the same with one header", "the store's first page"
ORDERINGS = ("global", "aggregate")
PROOF = "Proof"
VERIFY = "replay-app verify"
FIRST_EVENT, TEN_MILLION = "Time to the first event", "10 million events"
CODECS = ("none", "snappy", "lz4", "zstd", "gzip")
REDACT = {"metadata.user_id": "hash", "data.customer.id": "mask", "data.lines.sku": "drop"}
SMALL = 10
"""Events of a small replay."""


@dataclass(frozen=True)
class History:
    """A seeded collection."""

    size: int
    """Bytes of each event, as BSON."""
    events: int
    per_aggregate: int = EVENTS_PER_AGGREGATE

    @property
    def collection(self) -> str:
        """The collection's name."""
        return f"events_{self.size}_{self.events}_{self.per_aggregate}"

    @property
    def aggregates(self) -> int:
        """How many aggregates there are."""
        return max(1, self.events // self.per_aggregate)


@dataclass(frozen=True)
class Script:
    """A contender of ``contenders.py``."""

    label: str
    name: str
    history: History
    codec: str = "none"
    query: Mapping[str, Any] = field(default_factory=dict)
    events: int = 0
    """Number of events that match; 0: all."""
    limit: int = 0
    publishes: bool = True
    order: str = "global"

    @property
    def kind(self) -> Hashable:
        """A value that is equal for cases that run the same code."""
        return self.name, self.order


TRANSFORMED = {
    "REPLAY_TRANSFORMS": '{"no-tests": "shop_transforms:no_tests"}',
    "PYTHONPATH": str(Path(__file__).parents[1] / "examples"),
}
"""Settings with a transform that looks at a field of each event, and changes nothing."""


@dataclass(frozen=True)
class Replay:
    """A replay, or many, by this program's workers."""

    label: str
    history: History
    encoder: str = BEST
    codec: str | None = None
    """None: the setting's default."""
    settings: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    events: int = 0
    """Number of events that match; 0: all."""
    workers: int = 1
    shards: int = 1
    replays: int = 1
    """If more than one, each replay has the `SMALL` events of one aggregate."""
    at_once: bool = True
    """Send all commands before the first replay is completed."""
    first_event: bool = False
    """Measure when a read_committed consumer gets the first event."""
    cancelled: bool = False
    """Cancel the replay once its first event is there."""
    verified: bool = False
    """Measure the verification of the replay, not the replay."""

    @property
    def kind(self) -> Hashable:
        """A value that is equal for cases that run the same code."""
        if self.verified:
            return "verified"
        is_plain = self.workers == 1 and not self.first_event and self.replays == 1
        order = self.body.get("ordering") if self.first_event else None
        ways = (self.workers, self.first_event, self.replays > 1, self.at_once, order)
        changes = self.body.keys() & {"redact", "transforms"}
        return (self.encoder, frozenset(changes)) if is_plain else ways

    @property
    def publishes(self) -> bool:
        """Whether the case publishes records."""
        return not self.body.get("dry_run")


Case = Script | Replay


@dataclass(frozen=True)
class Group:
    """Cases that run in turns."""

    title: str
    note: str
    cases: tuple[Case, ...]
    peers: tuple[str, ...]
    """Labels, or beginnings of labels; of several cases the fastest is the peer."""
    rounds: int = 3


def groups(*, quick: bool) -> list[Group]:
    """Return everything that is compared; if ``quick``, one case of each kind, with few events."""
    scale = 500 if quick else 1
    small = History(600, 500_000 // scale)
    tiny = History(600, 10_000 // scale, SMALL)
    found = [
        _main(small, scale),
        _filters(small),
        _first_event(FIRST_EVENT, History(600, 300_000 // scale), History(600, 2_000_000 // scale)),
        _shards(History(600, 200_000 // scale)),
        _small(tiny),
        _sized("2 kB events", History(2_000, 150_000 // scale)),
        _sized("20 kB events", History(20_000, 15_000 // scale)),
        _proof(History(600, 200_000 // scale)),
    ]
    if quick:
        return list(_one_of_each_kind(found))
    # Seeding takes a quarter of an hour, and a round nearly as long: one round must do.
    large = _first_event(TEN_MILLION, History(235, 100_000), History(235, 10_000_000))
    return [*found, replace(large, rounds=1)]


def _one_of_each_kind(full: list[Group]) -> Iterator[Group]:
    seen: set[Any] = set()
    for group in full:
        cases = []
        for case in group.cases:
            if case.kind not in seen:
                seen.add(case.kind)
                cases.append(case)
        if cases:
            yield replace(group, cases=tuple(cases), rounds=1)


def _main(history: History, scale: int) -> Group:
    return Group(
        "600 B events",
        "One worker, one shard, global order; what a user would write beside it.",
        (
            *_limits(history),
            *(Script(f"{CONFLUENT}, {codec}", "confluent", history, codec) for codec in CODECS),
            Script(LEAN, "lean", history, "lz4"),
            Script(AIOKAFKA, "aiokafka_send", history),
            Script(
                "motor + aiokafka send_and_wait",
                "aiokafka_send_and_wait",
                history,
                limit=5_000 // scale,
            ),
            Script(
                "the same with a status update for each event",
                "status_updates",
                history,
                limit=2_000 // scale,
            ),
            *_workers(history, CODECS),
            *(
                Replay(f"{WORKER}, {encoder}, dry run", history, encoder, body={"dry_run": True})
                for encoder in ENCODERS
            ),
            *(
                Replay(
                    f"{WORKER}, {encoder}, redacted",
                    history,
                    encoder,
                    settings={"REPLAY_REDACT_KEY": "of the bench"},
                    body={"redact": REDACT},
                )
                for encoder in ENCODERS
            ),
            Replay(
                f"{WORKER}, python, transformed",
                history,
                "python",
                settings=TRANSFORMED,
                body={"transforms": ["no-tests"]},
            ),
            Script(BARE, "bare_loop", history, "lz4"),
        ),
        (CONFLUENT, LEAN, RAW, AIOKAFKA),
    )


def _sized(title: str, history: History) -> Group:
    return Group(
        title,
        "One worker, one shard.",
        (
            *_limits(history),
            *(
                Script(f"{CONFLUENT}, {codec}", "confluent", history, codec)
                for codec in ("none", "lz4")
            ),
            *_workers(history, ("none", "lz4")),
        ),
        (CONFLUENT, RAW, "librdkafka"),
    )


def _limits(history: History) -> tuple[Script, ...]:
    return (
        Script(RAW, "raw_read", history, publishes=False),
        *(
            Script(f"librdkafka, {codec}", "librdkafka", history, codec)
            for codec in ("none", "lz4")
        ),
    )


def _workers(history: History, codecs: Sequence[str]) -> tuple[Replay, ...]:
    return tuple(
        Replay(f"{WORKER}, {encoder}, codec {codec}", history, encoder, codec)
        for encoder in ENCODERS
        for codec in codecs
    )


def _shards(history: History) -> Group:
    return Group(
        "Shards over workers",
        "Aggregate order, 600 B events. Cores: how many of them the workers, the broker and the "
        "store kept busy together.",
        tuple(
            Replay(
                f"{WORKER}, {shards} shard{'s' * (shards > 1)} on {count}",
                history,
                # As many partitions as workers: each worker has one partition. The bench's store
                # reads all events for a sample.
                settings={"REPLAY_PARTITIONS": str(count), "REPLAY_CUT_SECONDS": "60"},
                body={"ordering": "aggregate", "shards": shards},
                workers=count,
                shards=shards,
            )
            for shards, count in ((1, 1), (2, 1), (2, 2), (4, 2))
        ),
        (f"{WORKER}, 1 shard on 1",),
    )


def _filters(history: History) -> Group:
    kind = EVENT_TYPES[0]
    ids = [aggregate_id(number) for number in range(min(100, history.aggregates))]
    by_type = history.events // len(EVENT_TYPES)
    by_aggregate = len(ids) * history.per_aggregate
    return Group(
        "Filters",
        f"One of {len(EVENT_TYPES)} types; {len(ids)} of {history.aggregates} aggregates. "
        "Events are those that match.",
        (
            Script(
                f"{RAW}, one type",
                "raw_read",
                history,
                query={"event_type": kind},
                events=by_type,
                publishes=False,
            ),
            Replay(
                f"{WORKER}, one type",
                history,
                body={"filter": {"event_types": [kind]}},
                events=by_type,
            ),
            Script(
                f"{RAW}, some aggregates",
                "raw_read",
                history,
                query={"aggregate_id": {"$in": ids}},
                events=by_aggregate,
                publishes=False,
            ),
            Replay(
                f"{WORKER}, some aggregates",
                history,
                body={"filter": {"aggregate_ids": ids}},
                events=by_aggregate,
            ),
        ),
        (),
    )


def _first_event(title: str, *histories: History) -> Group:
    return Group(
        title,
        "From the command until a read_committed consumer has the first event; the replay is then "
        "cancelled. Beside it, the time to the first page of the same query without this program. "
        "The figures of whole runs say nothing here.",
        tuple(
            case
            for history in histories
            for order in ORDERINGS
            for case in (
                Script(
                    f"{FIRST_PAGE}, {order} order, {history.events:,}",
                    "first_page",
                    history,
                    publishes=False,
                    order=order,
                ),
                Replay(
                    f"{WORKER}, {order} order, {history.events:,}",
                    history,
                    body={"ordering": order},
                    shards=2 if order == "aggregate" else 1,
                    first_event=True,
                    cancelled=True,
                ),
            )
        ),
        (),
    )


def _proof(history: History) -> Group:
    return Group(
        PROOF,
        f"`{VERIFY}` of a replay of 600 B events, from the command's start to its verdict, with a "
        "new process.",
        (Replay(WORKER, history), Replay(VERIFY, history, verified=True)),
        (WORKER,),
    )


def _small(history: History) -> Group:
    count = history.aggregates
    return Group(
        "Small replays",
        f"{SMALL} events each, filtered by aggregate; events/s of the whole.",
        (
            Replay(f"{WORKER}, one after another", history, replays=min(50, count), at_once=False),
            Replay(f"{WORKER}, all at once", history, replays=count),
        ),
        (),
    )
