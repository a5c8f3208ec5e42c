"""Worker processes, and installations of them on the servers of the tests."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import pymongo
from confluent_kafka import Producer
from oracle import Ordering, assert_published_exactly
from prometheus_client.parser import text_string_to_metric_families
from secret_values import assert_no_secret
from support import Record, create_topics, read_topic, unique_name, wait_until

from replay_app.demo.shop import SHOP_TOPICS, seed_store
from replay_app.demo.stack import Stack, free_port, outside_environment
from replay_app.supervisor import COMMAND

WORKER_READY_SECONDS = 60.0
WORKER_STOP_SECONDS = 30.0
REPLAY_END_SECONDS = 180.0
SHOP_EVENTS = 1_200
"""Enough for several pages and partitions. The store reads all events for each answer."""
SHOP_HISTORY = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}
"""A filter for the whole history of the shared shop, without the events that tests add."""
SETTLED = {"completed", "completed_with_errors", "cancelled", "failed", "paused"}


@cache
def leash() -> int:
    """Return the reading end of a pipe that closes when this process ends, however it ends.

    The pipe is the standard input of every worker process, so no worker outlives this process.
    """
    reading, _ = os.pipe()
    return reading


def events_of(kind: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Return good events of one type, a second apart, in February."""
    first = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
    return [
        {
            "event_id": f"{kind}-{number}",
            "event_type": kind,
            "aggregate_id": f"{kind}-a{number % 3}",
            "timestamp": first + dt.timedelta(seconds=number),
            **fields,
        }
        for number in range(count)
    ]


class Api:
    """A worker's HTTP API."""

    def __init__(self, port: str | int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> Any:
        """Return the JSON that a path answers."""
        return self.request("GET", path)[1]

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Return the status and the JSON of an answer; a body of bytes is sent unchanged."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - our own worker
            self.url + path,
            data=data,
            method=method,
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own
                return answer.status, self._json(answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return error.code, self._json(error.headers, error.read())

    def _json(self, headers: Any, body: bytes) -> Any:
        assert_no_secret(f"{headers}{body!r}", f"an answer of {self.url}")
        return _parse_json(body)

    def metrics(self) -> dict[tuple[str, str], float]:
        """Return the samples of /metrics, by name and the value of the first label, if any."""
        return {
            (sample.name, next(iter(sample.labels.values()), "")): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").decode())
            for sample in family.samples
        }

    def is_ready(self) -> bool:
        """Tell whether the worker is ready, whatever the store does."""
        try:
            return self.request("GET", "/readyz?exclude=store")[0] == 200
        except OSError:
            return False


class Worker(Api):
    """One worker process with its own process group; it ends with this process at the latest.

    ``environment`` has the worker's settings. The worker runs in the folder of its log file, where
    it finds no ``.env`` file.
    """

    def __init__(self, environment: Mapping[str, str], log: Path, *options: str) -> None:
        super().__init__(environment["REPLAY_WEB_PORT"])
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *options],
                env={**outside_environment(), **environment},
                stdin=leash(),
                stdout=output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        """Tell whether the worker is ready; fail if the process has ended."""
        assert self.process.poll() is None, f"the worker ended:\n{self.log.read_text()[-4000:]}"
        return super().is_ready()

    def wait_until_ready(self) -> Self:
        wait_until(self.is_ready, WORKER_READY_SECONDS, f"not ready; see {self.log}")
        return self

    def signal(self, sent: signal.Signals) -> None:
        os.killpg(self.process.pid, sent)

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait(WORKER_STOP_SECONDS)

    def terminate(self) -> int:
        """End the process in order (SIGTERM); return its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(WORKER_STOP_SECONDS)


@dataclass
class Cluster:
    """An installation on shared servers, with its own topics, group, database and workers."""

    stack: Stack
    folder: Path
    partitions: int = 4
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = unique_name("e2e")
        self.prefix = f"{self.name}."
        self.target_prefix = f"{self.name}-"
        """The prefix of the shop's topics: no other test writes to these topics."""
        self.environment = {
            **self.stack.environment(),
            "REPLAY_APP_ID": self.name,
            "REPLAY_TOPIC_PREFIX": self.prefix,
            "REPLAY_PARTITIONS": str(self.partitions),
            "REPLAY_MONGO_DATABASE": self.name,
            "REPLAY_SESSION_TIMEOUT_SECONDS": "6",
            # The development store reads all events for a sample, on a machine with other work.
            "REPLAY_CUT_SECONDS": "60",
            **self.environment,
        }

    # The store and the topics

    def seed(self, events: int, **options: Any) -> None:
        """Fill the store with the shop's history and create the destination topics."""
        seed_store(self.stack.mongo, self.name, "events", events, **options)
        self.create_shop_topics()

    def create_shop_topics(self, partitions: int = 3) -> None:
        create_topics(self.stack.kafka, dict.fromkeys(self.topics(), partitions))

    def insert(self, documents: Iterable[Mapping[str, Any]]) -> None:
        with self.store() as events:
            events.insert_many([dict(document) for document in documents])

    @contextlib.contextmanager
    def store(self) -> Iterator[Any]:
        """Give the collection of the events."""
        with pymongo.MongoClient[dict[str, Any]](self.stack.mongo, tz_aware=True) as client:
            yield client[self.name]["events"]

    def stored(self, query: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return the matching events in the order of a global replay."""
        with self.store() as events:
            return list(events.find(query or {}).sort([("timestamp", 1), ("_id", 1)]))

    def topics(self) -> list[str]:
        return [self.target_prefix + topic for topic in SHOP_TOPICS]

    def published(self, isolation: Any = "read_committed") -> list[Record]:
        """Return all records of the shop's topics."""
        return read_topic(self.stack.kafka, self.topics(), isolation)

    def published_by(self, replay_id: str) -> list[Record]:
        """Return one replay's records in the shop's topics."""
        return [one for one in self.published() if one.headers["replay-id"] == replay_id.encode()]

    def assert_exact(
        self, *replay_ids: str, ordering: Ordering = "global", partitions_of_key: int = 1
    ) -> None:
        """Check that each of these replays has published every stored event exactly."""
        records: dict[str, list[Record]] = defaultdict(list)
        for record in self.published():
            records[(record.headers["replay-id"] or b"").decode()].append(record)
        events = self.stored()
        for replay_id in replay_ids:
            assert_published_exactly(
                records[replay_id],
                events,
                replay_id,
                self.target_prefix,
                ordering,
                partitions_of_key=partitions_of_key,
            )

    # Workers

    def start_worker(self, number: int | None = None, *options: str, **environment: str) -> Worker:
        """Start a worker; a worker that is started again keeps its name, port and folder."""
        number = len(self.workers) if number is None else number
        again = number < len(self.workers)
        port = self.workers[number].url.rpartition(":")[2] if again else str(free_port())
        worker = Worker(
            {
                **self.environment,
                "REPLAY_DATA_DIR": str(self.data_dir(number)),
                "REPLAY_WEB_PORT": port,
                "REPLAY_WORKER_ID": f"worker-{number}",
                **environment,
            },
            self.folder / f"worker-{number}.log",
            *options,
        )
        if again:
            self.workers[number] = worker
        else:
            self.workers.append(worker)
        return worker

    def data_dir(self, number: int) -> Path:
        """Return a worker's REPLAY_DATA_DIR."""
        return self.folder / f"worker-{number}" / "data"

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        with pymongo.MongoClient[dict[str, Any]](self.stack.mongo) as client:
            client.drop_database(self.name)

    def logs(self) -> str:
        """Return the end of each worker's log, with the name of its file."""
        return "\n".join(
            f"{path.name}:\n{path.read_text()[-8000:]}"
            for path in sorted(self.folder.glob("worker-*.log"))
        )

    # Replays

    def command(self, replay_id: str, command: str = "start", **body: Any) -> None:
        """Publish a command on the requests topic.

        By default a start asks for all events and targets the shop's topics.
        """
        if command == "start":
            defaults = {"filter": {"all": True}, "target": {"prefix": self.target_prefix}}
            body = defaults | body
        value = json.dumps({"command": command, "replay_id": replay_id, **body})
        self.produce(value.encode(), replay_id.encode())

    def produce(
        self,
        value: bytes | None,
        key: bytes | None = None,
        topic: str = "requests",
        partition: int = -1,
    ) -> None:
        """Publish any bytes on an internal topic."""
        self.produce_all([(key, value)], topic, partition)

    def produce_all(
        self,
        records: Iterable[tuple[bytes | None, bytes | None]],
        topic: str = "requests",
        partition: int = -1,
    ) -> None:
        """Publish records, each a key and a value, on an internal topic."""
        producer = Producer(
            {"bootstrap.servers": self.stack.kafka, "partitioner": "murmur2_random"}
        )
        errors: list[Any] = []  # an empty queue says only that no record waits any more
        for key, value in records:
            producer.produce(
                f"{self.prefix}{topic}",
                value,
                key,
                partition,
                on_delivery=lambda error, _: errors.append(error),
            )
        assert producer.flush(30) == 0
        assert set(errors) == {None}, errors

    def session(self, replay_id: str) -> Any:
        """Return a session from any worker that knows it, else None."""
        for worker in self.workers:
            if worker.process.poll() is None:
                with contextlib.suppress(OSError):
                    status, session = worker.request("GET", f"/replays/{replay_id}")
                    if status == 200:
                        return session
        return None

    def has_read(self, replay_id: str, events: int = 1) -> bool:
        """Return whether a replay has read a number of events."""
        session = self.session(replay_id)
        return session is not None and session["counters"]["read"] >= events

    def wait_for(
        self, replay_id: str, *states: str, seconds: float = REPLAY_END_SECONDS, **facts: Any
    ) -> dict[str, Any]:
        """Wait until a session has one of the states (default: `SETTLED`) and these members."""
        last: dict[str, Any] | None = None

        def reached() -> bool:
            nonlocal last
            last = self.session(replay_id) or last
            return (
                last is not None
                and last["state"] in (states or SETTLED)
                and all(last[name] == value for name, value in facts.items())
            )

        try:
            wait_until(reached, seconds)
        except AssertionError:
            raise AssertionError(
                f"{replay_id} never was {states or SETTLED}; last seen: {json.dumps(last)[:3000]}\n"
                f"{self.logs()}"
            ) from None
        assert last is not None
        return last

    def run(self, replay_id: str, **body: Any) -> dict[str, Any]:
        """Start a replay and wait until it is settled."""
        self.command(replay_id, **body)
        return self.wait_for(replay_id)


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body
