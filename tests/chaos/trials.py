"""A trial: an installation at work while a scenario breaks it, and the outcome."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from brokers import Brokers, Partition
from bson import Regex
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from oracle import account_of, assert_is_replay_of, event_id_of
from support import Record, consumer_from_start, create_topics, unique_name, wait_until
from workers import Cluster, Worker

from replay_app.demo.shop import seed_store
from replay_app.demo.stack import EmbeddedServers, free_port
from replay_app.settings import Settings
from replay_app.states import COMPLETED

REPLAYS = 3
"""Number of replays that run at each moment."""
RECOVERY_SECONDS = 150.0
STANDSTILL_SECONDS = 90.0
"""A stable offset that stands still for this time stands still for ever: every transaction of a
worker has ended or has timed out by then."""
HUNG_END_SECONDS = 180.0
"""Time for all replays to end after a partition has lost its marker."""
PARTITIONS = 3
"""Partitions of each destination topic at the beginning."""
SHARDS = 3
SESSION_TIMEOUT_SECONDS = 6
ENVIRONMENT = {
    # Small pages, one round trip each: a transaction is open most of the time.
    "REPLAY_PAGE_EVENTS": "15",
    "REPLAY_SESSION_TIMEOUT_SECONDS": str(SESSION_TIMEOUT_SECONDS),
    "REPLAY_ENCODER": Settings().encoder,  # from the environment of `make chaos`
}


class Size(NamedTuple):
    """The size of each replay: it lasts for a few faults, and several run side by side."""

    events: int = 3_000
    rate: int = 600
    """Events per second."""
    slice_events: int = 600


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the table."""

    fault: str
    times: int
    events: int = 0
    duplicates: int = 0
    losses: int = 0
    disorder: int = 0
    wrong_counters: int = 0
    """Number of replays whose counters or receipt differ from the topics."""
    recoveries: tuple[float, ...] = ()
    """Seconds from each fault until every running replay had published again."""
    note: str = ""
    hung: int = 0
    """Partitions in which a marker was lost: their stable offsets stand still for ever."""
    refused: int = 0
    """Replays that failed because of such a partition, and named partition and producer."""
    waiting: int = 0
    """Replays that stood still because of such a partition of the worker's own topics."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, repeated, disordered or miscounted."""
        return not (self.duplicates or self.losses or self.disorder or self.wrong_counters)

    def __add__(self, other: Outcome) -> Outcome:
        """Return the outcome of two trials of one scenario."""
        added = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__dataclass_fields__
            if name not in {"fault", "note"}
        }
        notes = dict.fromkeys(note for note in (self.note, other.note) if note)
        return Outcome(fault=self.fault, note="; ".join(notes), **added)


class Follower:
    """A read_committed consumer that notes when each replay's records become visible."""

    def __init__(self, bootstrap: str, topics: list[str], partitions: int) -> None:
        options = {
            # The consumer sees at once that a broker is back, so the measured times are exact.
            "reconnect.backoff.ms": 100,
            "reconnect.backoff.max.ms": 200,
            "log_level": 0,  # the broker dies again and again
        }
        self._consumer = consumer_from_start(bootstrap, dict.fromkeys(topics, partitions), options)
        self.counts: Counter[str] = Counter()
        self._seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._new: queue.SimpleQueue[TopicPartition] = queue.SimpleQueue()
        """Partitions to read too. Only the thread that consumes may assign: librdkafka may hang."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()

    def follow(self, topic: str, partition: int) -> None:
        """Read a new partition too, from its beginning."""
        self._new.put(TopicPartition(topic, partition, OFFSET_BEGINNING))

    def seen_after(self, replay_id: str, moment: float) -> float | None:
        """Return when the first record written after a moment became visible; epoch seconds."""
        found = [seen for written, seen in self._seen[replay_id] if written > moment]
        return found[0] if found else None

    def longest_gap(self, replay_id: str, moment: float) -> float:
        """Return the longest time after a moment without a new visible record; seconds."""
        seen = [moment, *(at for _, at in self._seen[replay_id] if at > moment)]
        return max((later - at for at, later in pairwise(seen)), default=0.0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._consumer.incremental_assign([self._new.get_nowait()])
            try:
                messages = self._consumer.consume(1_000, timeout=0.05)
            except KafkaException:
                continue
            now = time.time()
            for message in messages:
                if message.error() is None:
                    headers: Mapping[str, Any] = dict(message.headers() or ())
                    replay_id = headers["replay-id"].decode()
                    self.counts[replay_id] += 1
                    self._seen[replay_id].append((message.timestamp()[1] / 1000, now))


class View:
    """A consumer group that reads all topics, as a view that is rebuilt."""

    def __init__(self, bootstrap: str, topics: list[str]) -> None:
        self.group = unique_name("view")
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": self.group,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "auto.commit.interval.ms": 200,
                "log_level": 0,
            }
        )
        self._consumer.subscribe(topics)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="view", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            self._consumer.consume(500, timeout=0.1)


@dataclass
class Trial:
    """Workers, replays that run all the time, and a follower that watches the topics."""

    stack: EmbeddedServers
    folder: Path
    rng: random.Random
    proxy_port: int
    """The port on which a proxy in front of the broker listens."""
    environment: dict[str, str] = field(default_factory=dict)
    size: Size = field(default_factory=Size)
    recoveries: list[float] = field(default_factory=list)
    repeats: int = 1
    """Number of times that each start command is sent."""
    hung: dict[Partition, int] = field(default_factory=dict)
    """Partitions without a marker, with the offset at which each stands still."""
    view: View | None = None
    """The consumer group of all replays, if they are chained."""
    is_mixed: bool = False
    """Whether `mix` was called."""
    revived: int = 0
    """Number of workers that ended by themselves and were started again, as an operator does."""

    def __post_init__(self) -> None:
        slices = {"REPLAY_SLICE_EVENTS": str(self.size.slice_events)}
        environment = ENVIRONMENT | slices | self.environment
        self.cluster = Cluster(self.stack, self.folder, environment=environment)
        seed_store(self.stack.mongo, self.cluster.name, "events", self.size.events)
        # Record times come from the broker's clock, because a worker's clock may be wrong.
        config = {"message.timestamp.type": "LogAppendTime"}
        self.partitions = dict.fromkeys(self.cluster.topics(), PARTITIONS)
        create_topics(self.stack.kafka, self.partitions, config)
        self.brokers = Brokers(self.stack.kafka)
        self.stored = self.cluster.stored()
        """The events that each replay must publish."""
        self._orderings: dict[str, Literal["global", "aggregate"]] = {}
        self._stepping: set[str] = set()
        """Replays that make steps."""
        self.follower = Follower(self.stack.kafka, self.cluster.topics(), PARTITIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.follower.close()
        for worker in self.cluster.workers:
            worker.kill()

    # The run

    def start(self, workers: int = 3) -> Self:
        """Start workers and replays, and wait until every replay has published."""
        for _ in range(workers):
            self.cluster.start_worker()
        for worker in self.cluster.workers:
            worker.wait_until_ready()
        self.keep_busy()

        def have_begun() -> bool:
            self._step_on()
            return all(self.follower.counts[one] for one in self._orderings)

        wait_until(have_begun, 60)
        return self

    def under_way(self) -> list[str]:
        """Return the replays that have published some of their events but not all."""
        counts = self.follower.counts
        return [name for name in self._orderings if 0 < counts[name] < len(self.stored)]

    def aim(self) -> tuple[float, list[str]]:
        """Return the time and the running replays, once there are enough of them."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while len(names := self.under_way()) < REPLAYS - 1 and time.monotonic() < deadline:
            self.go_on(0.1)
        return time.time(), names

    def keep_busy(self) -> None:
        """Start a replay for each that has ended; every second replay orders by aggregate."""
        counts = self.follower.counts
        while sum(counts[name] < len(self.stored) for name in self._orderings) < REPLAYS:
            number = len(self._orderings)
            ordering: Literal["global", "aggregate"] = "aggregate" if number % 2 else "global"
            self._orderings[f"r{number}"] = ordering
            body: dict[str, Any] = {"rate": self.size.rate, "ordering": ordering}
            body |= {"shards": SHARDS} if ordering == "aggregate" else {}
            if self.view is not None:
                parents = [f"r{number - REPLAYS}"] if number >= REPLAYS else []
                body["after"] = [{"replay": parent, "consumed": True} for parent in parents]
                # The rate allows for these records in 1.3 s; the group commits five times a second.
                most = self.size.rate * 4 // 3
                body |= {"consumers": [self.view.group], "max_lag": most}
            if self.is_mixed:
                body |= {"on_error": "park"}
            if self.is_mixed and ordering == "global":
                body |= self._mixed(f"r{number}", number // 2)
            for _ in range(self.repeats):
                self.cluster.command(f"r{number}", "start", **body)
        self._step_on()

    def mix(self) -> None:
        """Let the replays in global order make steps, keep a pace, or transform, in turns.

        Some events cannot be replayed, and each replay parks what comes behind them.
        """
        self.is_mixed = True
        poisoned = {one["aggregate_id"]: one["_id"] for one in reversed(self.stored[5:600:97])}
        with self.cluster.store() as events:
            events.update_many(
                {"_id": {"$in": [*poisoned.values()]}}, {"$set": {"odd": Regex("x")}}
            )
        parked: set[str] = set()
        good = []
        for one in self.stored:
            if poisoned.get(one["aggregate_id"]) == one["_id"]:
                parked.add(one["aggregate_id"])
            if one["aggregate_id"] not in parked:
                good.append(one)
        self.stored = good
        self.cluster.environment |= {
            "REPLAY_TRANSFORMS": '{"same": "odd_transforms:same"}',
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }

    def _mixed(self, name: str, turn: int) -> dict[str, Any]:
        """Return what the start command of a replay has beside the other members."""
        if turn % 3 == 0:
            self._stepping.add(name)
            return {"paused": True}
        if turn % 3 == 1:  # the events are hours apart
            return {"speed": 1e6, "max_gap_seconds": 1 / self.size.rate}
        return {"transforms": ["same"]}

    def _step_on(self) -> None:
        """Let each replay that waits for a step make the next one."""
        for name in self._stepping:
            if self.follower.counts[name] >= len(self.stored):
                continue
            session = self.cluster.session(name)
            if session is not None and session["state"] == "paused":
                published = session["counters"]["published"]
                self.cluster.command(name, "step", events=self.size.rate, published=published)

    @contextlib.contextmanager
    def chained(self) -> Iterator[None]:
        """Let each replay wait until a group has read an earlier one, and keep near the group."""
        self.view = View(self.stack.kafka, self.cluster.topics())
        try:
            yield
            for name in self._orderings:
                wait_until(
                    lambda one=name: self._is_consumed(one),  # type: ignore[misc]
                    RECOVERY_SECONDS,
                    f"{name} is not consumed",
                )
        finally:
            self.view.close()

    def _is_consumed(self, name: str) -> bool:
        session = self.cluster.session(name)
        groups = session["consumption"].values() if session else ()
        return bool(groups) and all(group["consumed_at"] for group in groups)

    def revive(self, **environment: str) -> None:
        """Start again each worker that has ended without the trial's doing."""
        for number, worker in enumerate(self.cluster.workers):
            if worker.process.poll() is not None:
                self.revived += 1
                self.cluster.start_worker(number, **environment)

    def go_on(self, seconds: float) -> None:
        """Let the replays run for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.keep_busy()
            time.sleep(0.02)

    def await_recovery(self, struck_at: float, names: list[str], *, reviving: bool = True) -> None:
        """Wait until the replays have published again, and note the time of the recovery.

        A record that was written before the fault and became visible later does not count.
        With ``reviving``, workers that end by themselves are started again meanwhile.
        """

        def have_recovered() -> bool:
            self.keep_busy()
            if reviving:
                self.revive()
            return None not in {self._recovered_at(name, struck_at) for name in names}

        wait_until(have_recovered, RECOVERY_SECONDS, f"no recovery of {names}")
        if names:
            seen = [self._recovered_at(name, struck_at) or struck_at for name in names]
            self.recoveries.append(max(seen) - struck_at)

    def _recovered_at(self, name: str, struck_at: float) -> float | None:
        seen = self.follower.seen_after(name, struck_at)
        if seen is None and self.follower.counts[name] >= len(self.stored):
            return struck_at  # the replay had published its last event before
        return seen

    def grow(self, topic: str) -> None:
        """Give a destination topic one partition more."""
        new = self.partitions[topic]
        self.partitions[topic] += 1
        self.brokers.grow({topic: self.partitions[topic]})
        self.follower.follow(topic, new)

    def has_lost_markers(self) -> bool:
        """Look for partitions whose stable offset stands still for ever, and note them."""
        own = [self.cluster.prefix + topic for topic in ("checkpoints", "status")]
        self.hung = self.brokers.hidden([*self.partitions, *own], STANDSTILL_SECONDS)
        return bool(self.hung)

    def replace(self, number: int) -> Worker:
        """Replace a dead worker by a worker with another name and an empty folder."""
        name = unique_name("worker")
        folder = self.folder / name
        return self.cluster.start_worker(number, REPLAY_WORKER_ID=name, REPLAY_DATA_DIR=str(folder))

    def twin(self, number: int) -> Worker:
        """Start a second worker with the same name and address, on another port."""
        return Worker(
            {
                **self.cluster.environment,
                "REPLAY_WORKER_ID": f"worker-{number}",
                "REPLAY_CANONICAL_URL": self.cluster.workers[number].url,
                "REPLAY_WEB_PORT": str(free_port()),
                "REPLAY_DATA_DIR": str(self.folder / unique_name("twin")),
            },
            self.folder / f"twin-{number}.log",
        )

    # The outcome

    def outcome(self, fault: str, times: int, note: str = "") -> Outcome:
        """Let every replay end, and compare the topics with the stored events."""
        self.revive()
        sessions = self._settled()
        waiting = len(self._orderings) - len(sessions)
        refused = {name for name, session in sessions.items() if session["state"] == "failed"}
        published: dict[str, list[Record]] = defaultdict(list)
        for record in self.cluster.published():
            published[(record.headers["replay-id"] or b"").decode()].append(record)
        assert published.keys() <= self._orderings.keys(), "records of no replay of this trial"
        events = {event["event_id"]: event for event in self.stored}
        duplicates = losses = disorder = wrong = 0
        for name, ordering in self._orderings.items():
            records = published[name]
            account = account_of(records, self.stored, ordering)
            assert not account.foreign, f"no such events: {account.foreign[:5]}"
            duplicates += sum(account.repeated.values()) - len(account.repeated)
            disorder += len(account.disordered)
            for record in records:
                event = events[event_id_of(record)]
                assert_is_replay_of(record, event, name, self.cluster.target_prefix)
            if name not in sessions or name in refused:
                continue  # the replay does not say that consumers see all
            losses += len(account.lost)
            session, receipt = sessions[name], sessions[name]["receipt"]["counters"]
            wrong += not (
                session["counters"]["published"] == receipt["published"] == len(records)
                and receipt["read"] == self.size.events
            )
        if not self.hung:
            assert not self.has_lost_markers(), f"stable offsets stand still: {self.hung}"
        if self.revived:
            ended = f"{self.revived} workers ended by themselves and were started again"
            note = f"{note}; {ended}" if note else ended
        return Outcome(
            fault=fault,
            times=times,
            events=self.size.events * len(sessions),
            duplicates=duplicates,
            losses=losses,
            disorder=disorder,
            wrong_counters=wrong,
            recoveries=tuple(self.recoveries),
            note=note,
            hung=len(self.hung),
            refused=len(refused),
            waiting=waiting,
        )

    def _settled(self) -> dict[str, Any]:
        """Return the sessions that have ended: completed, or failed because of a lost marker.

        Without a lost marker every replay must complete. With a lost marker in the worker's own
        topics, the replays of that partition wait, and a worker's log must say for what.
        """
        for name in self._stepping:
            self.cluster.command(name, "resume")
        if not self.hung:
            return {name: self.cluster.wait_for(name, *COMPLETED) for name in self._orderings}
        named = [self._words_for(partition, offset) for partition, offset in self.hung.items()]
        own = [words for words in named if self.cluster.prefix in words[0]]
        sessions: dict[str, Any] = {}

        def all_have_ended() -> bool:
            for name in self._orderings:
                session = self.cluster.session(name)
                if session and session["state"] in {*COMPLETED, "failed"}:
                    sessions[name] = session
            return len(sessions) == len(self._orderings)

        try:
            wait_until(all_have_ended, HUNG_END_SECONDS, "replays neither completed nor failed")
        except AssertionError:
            logs = "".join(worker.log.read_text() for worker in self.cluster.workers)
            if not any(all(word in logs for word in words) for words in own):
                raise
        for name, session in sessions.items():
            error = session["error"] or ""
            assert session["state"] in COMPLETED or any(
                all(word in error for word in words) for words in named
            ), f"{name} failed with {error!r}, which names none of {named}"
        return sessions

    def _words_for(self, partition: Partition, offset: int) -> tuple[str, str]:
        """Return how an explanation names a partition, and the producer that holds it.

        Kafka's own tool says who holds the partition.
        """
        topic, number = partition
        told = self.stack.run_tool(
            "org.apache.kafka.tools.TransactionsCommand",
            *("--bootstrap-server", self.stack.kafka, "describe-producers"),
            *("--topic", topic, "--partition", str(number)),
        )
        rows = [line.split() for line in told.splitlines()]
        holders = [row[0] for row in rows if row and row[-1] == str(offset)]
        assert len(holders) == 1, f"who holds {partition} at {offset}? {told}"
        return f"partition {number} of {topic!r}", f"producer id {holders[0]}"
