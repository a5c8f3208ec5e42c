"""The demo: replays a shop's history, and compares the topics with the event store.

The demo starts servers (see `replay_app.demo.stack`) and a worker process, sends a command to
``replay.requests``, and reads the topics with an ordinary consumer. It leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shlex
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.request import urlopen

import pymongo
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from replay_app.client import Client, SessionJson, produce_command
from replay_app.consumer import provenance
from replay_app.demo.shop import JANUARY, MONTH, SHOP_TOPICS, seed_store
from replay_app.demo.stack import REAPER, EnvironmentServers, Stack, free_port
from replay_app.events import STRICT, EventMapping, event_value
from replay_app.exceptions import ReplayError
from replay_app.supervisor import COMMAND
from replay_app.terminal import say, say_json, show_progress

REPLAY_ID = "demo"
SHOP_PARTITIONS = 3
SAMPLE_EVENTS = 1000
"""Events whose values are compared."""
WORKER_READY_SECONDS = 60.0
WORKER_STOP_SECONDS = 20.0
CONSUME_SECONDS = 300.0
"""The longest time to read the shop's topics to their ends."""
LAST_LOG_LINES = 30
COLLECTION = "events"


def main(*, events: int, keep: bool = False, as_json: bool = False) -> int:
    """Run the demo; return 0 if the verdict holds, else 1.

    With ``keep`` everything runs on afterwards, until Ctrl-C or SIGTERM. With ``as_json`` standard
    output has only the verdict, as JSON.

    Raises
    ------
    ReplayError
        When a server, the worker or the replay cannot run. If the worker has started, its last log
        lines are printed first.

    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM cleans up as Ctrl-C does
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"[{time.monotonic() - began:5.1f} s] {text}", error=as_json)

    with ExitStack() as running:
        tell("Starting a broker and a store")
        place = Place(running.enter_context(Stack.start()))
        running.callback(place.clean_up)
        tell("Starting a worker")
        asyncio.run(place.create_shop_topics())
        worker = running.enter_context(closing(Worker(place.environment())))
        tell(f"Storing {events:,} events of a shop")
        seed_store(place.stack.mongo, place.database, COLLECTION, events)
        try:
            worker.wait_until_ready()
            tell(f"Sending the command to {place.requests}; the status page is {worker.url}/")
            session = replay(place, worker, as_json=as_json)
            tell("Reading the topics (read_committed), and comparing them with the store")
            verdict = judge(session, asyncio.run(consume(place)))
        except ReplayError:
            say(*worker.last_log_lines().splitlines(), error=True)
            raise
        verdict.seconds = time.monotonic() - began
        verdict.show(as_json=as_json)
        if not verdict.holds:
            say(*worker.last_log_lines().splitlines(), error=True)
        if keep:
            say(*next_steps(place, worker).splitlines(), error=as_json)
            with suppress(KeyboardInterrupt):
                while worker.is_alive():
                    time.sleep(1)
    return 0 if verdict.holds else 1


class Place:
    """Where the demo has its data: servers, database, topics.

    On shared servers all names begin with a prefix that no other program has.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._is_shared = isinstance(stack, EnvironmentServers)
        self.database = f"replay-demo-{secrets.token_hex(4)}"
        self.prefix = f"{self.database}." if self._is_shared else ""
        self.requests = f"{self.prefix}replay.requests"
        self.shop_topics = [self.prefix + topic for topic in SHOP_TOPICS]

    def environment(self) -> dict[str, str]:
        """Return the worker's settings."""
        return {
            **self.stack.environment(),
            "REPLAY_MONGO_DATABASE": self.database,
            "REPLAY_APP_ID": f"{self.prefix}replay",
            "REPLAY_TOPIC_PREFIX": f"{self.prefix}replay.",
        }

    async def create_shop_topics(self) -> None:
        """Create the topics to which the shop's services publish."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.kafka)
        await admin.start()
        try:
            created = await admin.create_topics(
                [NewTopic(topic, SHOP_PARTITIONS, 1) for topic in self.shop_topics]
            )
        finally:
            await admin.close()
        for topic, code, *_ in created.topic_errors:
            if code:
                raise ReplayError(f"topic {topic!r} cannot be created: {for_code(code).__name__}")

    def clean_up(self) -> None:
        """Remove the demo's data from shared servers. Other servers end with their data."""
        if not self._is_shared:
            return
        with pymongo.MongoClient[dict[str, Any]](self.stack.mongo) as client:
            client.drop_database(self.database)
        with suppress(KafkaError):
            asyncio.run(self._delete_topics())

    async def _delete_topics(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.stack.kafka)
        await admin.start()
        try:
            topics = await admin.list_topics()
            await admin.delete_topics([topic for topic in topics if topic.startswith(self.prefix)])
        finally:
            await admin.close()


class Worker:
    """A worker process and its folder. Both go when this process ends, even by SIGKILL."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._folder = Path(tempfile.mkdtemp(prefix="replay-demo-"))
        self._log = self._folder / "worker.log"
        # The reaper removes the folder when the pipe to the reaper closes.
        self._reaper = subprocess.Popen(  # noqa: S603 - a constant
            ["/bin/sh", "-c", REAPER, "reaper", str(self._folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        outside = {k: v for k, v in os.environ.items() if not k.startswith("REPLAY_")}
        own = {"REPLAY_DATA_DIR": str(self._folder / "data"), "REPLAY_WEB_PORT": str(port)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a constant
                COMMAND,
                env={**outside, **environment, **own},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,  # this folder has no .env file
                start_new_session=True,  # only this process gets Ctrl-C; it ends the worker
            )

    def is_alive(self) -> bool:
        """Return whether the process still runs."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Wait until the worker takes work; raise `ReplayError` after WORKER_READY_SECONDS."""
        deadline = time.monotonic() + WORKER_READY_SECONDS
        while True:
            self.check("the worker is not ready yet")
            with suppress(OSError), urlopen(f"{self.url}/readyz", timeout=5) as answer:  # noqa: S310 - http
                if answer.status == 200:  # noqa: PLR2004 - OK
                    return
            if time.monotonic() > deadline:
                raise ReplayError(f"the worker was not ready after {WORKER_READY_SECONDS:g} s")
            time.sleep(0.1)

    def check(self, trouble: str) -> None:
        """Raise `ReplayError` if the worker has ended. The message begins with ``trouble``."""
        if not self.is_alive():
            raise ReplayError(f"{trouble}: it ended with code {self._process.returncode}")

    def last_log_lines(self) -> str:
        """Return the end of the worker's log."""
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LOG_LINES:]
        return "\n".join(["The worker's last log lines:", *lines])

    def close(self) -> None:
        """End the worker in order, and remove its folder."""
        if self.is_alive():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(WORKER_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in (self._process, self._reaper):
            if process.stdin is not None:
                process.stdin.close()
        self._reaper.wait()


def replay(place: Place, worker: Worker, *, as_json: bool) -> SessionJson:
    """Start the replay and show its progress; return its last session."""
    body = {
        "command": "start",
        "replay_id": REPLAY_ID,
        "requested_by": "the demo",
        "name": "January",
        "reason": "to see that it works",
        "filter": {"start": JANUARY.isoformat(), "end": (JANUARY + MONTH).isoformat()},
        "target": {"prefix": place.prefix or None},
    }
    asyncio.run(produce_command(place.stack.kafka, place.requests, body))
    sessions = Client(worker.url).follow(REPLAY_ID, just_started=True, on_trouble=worker.check)
    return deque(sessions, maxlen=1).pop() if as_json else show_progress(sessions)


@dataclass
class Evidence:
    """What a consumer found in the topics, compared with the store."""

    stored: int
    records: int = 0
    unmarked: int = 0
    """Records without the headers of this replay."""
    unknown: int = 0
    """Records of events that are not in the store."""
    duplicates: int = 0
    """Records of events that had arrived already."""
    unordered: int = 0
    """Records after a record of a later event in the same partition."""
    compared: int = 0
    """Records whose value was compared with the stored event."""
    differing: int = 0
    """Compared records with another value than the stored event."""

    @property
    def missing(self) -> int:
        """Stored events that did not arrive."""
        return self.stored - (self.records - self.unknown - self.duplicates)


class Comparison:
    """Compares records, one after the other, with the stored events."""

    def __init__(self, mongo: str, database: str) -> None:
        with pymongo.MongoClient[dict[str, Any]](mongo) as client:
            events = client[database].get_collection(COLLECTION, codec_options=STRICT)
            ordered = list(events.find({}, {"event_id": 1}).sort([("timestamp", 1), ("_id", 1)]))
            step = max(1, len(ordered) // SAMPLE_EVENTS)
            sample = events.find({"_id": {"$in": [event["_id"] for event in ordered[::step]]}})
            self._values = {
                event["event_id"]: json.loads(event_value(event, EventMapping()))
                for event in sample
            }
        self._places = {event["event_id"]: place for place, event in enumerate(ordered)}
        self._arrived: set[int] = set()
        self._last: dict[TopicPartition, int] = {}
        self.evidence = Evidence(stored=len(ordered))

    def take(self, partition: TopicPartition, headers: Any, value: bytes | None) -> None:
        """Compare one record."""
        found, evidence = provenance(headers), self.evidence
        evidence.records += 1
        delivery_id = (found and found.delivery_id) or ""
        replay_id, _, event_id = delivery_id.partition(":")
        marks = found and (found.replay_id, replay_id, found.attempt)
        if marks != (REPLAY_ID, REPLAY_ID, 1) or found is None or found.original_time is None:
            evidence.unmarked += 1
        place = self._places.get(event_id)
        if place is None:
            evidence.unknown += 1
            return
        if place in self._arrived:
            evidence.duplicates += 1
        elif place < self._last.get(partition, -1):
            evidence.unordered += 1
        self._arrived.add(place)
        self._last[partition] = place
        if event_id in self._values:
            evidence.compared += 1
            evidence.differing += json.loads(value or b"null") != self._values[event_id]


async def consume(place: Place) -> Evidence:
    """Read the shop's topics to their present ends, with an ordinary consumer."""
    comparison = Comparison(place.stack.mongo, place.database)
    partitions = [
        TopicPartition(topic, number)
        for topic in place.shop_topics
        for number in range(SHOP_PARTITIONS)
    ]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=place.stack.kafka,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        async with asyncio.timeout(CONSUME_SECONDS):
            while any([await consumer.position(one) < end for one, end in ends.items()]):
                for one, records in (await consumer.getmany(timeout_ms=500)).items():
                    for record in records:
                        comparison.take(one, record.headers, record.value)
    except TimeoutError:
        _give_up_reading()
    finally:
        await consumer.stop()
    return comparison.evidence


def _give_up_reading() -> NoReturn:
    raise ReplayError(f"the shop's topics could not be read to their ends in {CONSUME_SECONDS:g} s")


@dataclass
class Verdict:
    """What the demo has shown."""

    checks: dict[str, tuple[bool, str]]
    """By claim: whether the claim holds, and the figures."""
    events_per_second: float | None
    """The replay's speed, from its first slice to its end."""
    seconds: float = field(default=0.0)
    """Time of the whole demo, from the start of the servers."""

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(holds for holds, _ in self.checks.values())

    def show(self, *, as_json: bool) -> None:
        """Print the verdict."""
        speed = self.events_per_second
        if as_json:
            checks = {
                claim: {"holds": holds, "figures": figures}
                for claim, (holds, figures) in self.checks.items()
            }
            facts = {"events_per_second": speed and round(speed), "seconds": round(self.seconds, 1)}
            say_json({"holds": self.holds, "checks": checks, **facts})
            return
        say("")
        for claim, (holds, figures) in self.checks.items():
            say(f"  {'ok    ' if holds else 'FAILED'}  {claim:<40} {figures}")
        say("")
        shown = f"{speed:,.0f} events/s, " if speed else ""
        say(f"{'It holds' if self.holds else 'IT FAILED'}: {shown}{self.seconds:.1f} s in total.")


def judge(session: SessionJson, evidence: Evidence) -> Verdict:
    """Compare what the replay promises with what the consumer found."""
    counters, matched, stored = session["counters"], session["matched"], evidence.stored
    counts = (counters["published"], matched, stored, evidence.records)
    checks = {
        "it completed": (
            session["state"] == "completed",
            session["state"] + (f": {session['error']}" if session["error"] else ""),
        ),
        "published = matched = stored = consumed": (
            len(set(counts)) == 1,
            " = ".join(f"{count:,}" if count is not None else "unknown" for count in counts),
        ),
        "no event is missing": (evidence.missing == 0, f"{evidence.missing:,} missing"),
        "no event is there twice": (
            evidence.duplicates == 0,
            f"{evidence.duplicates:,} duplicates",
        ),
        "nothing else is there": (
            evidence.unknown == 0,
            f"{evidence.unknown:,} records of unknown events",
        ),
        "each partition is in the store's order": (
            evidence.unordered == 0,
            f"{evidence.unordered:,} out of order",
        ),
        "each record is marked as replayed": (
            evidence.unmarked == 0,
            f"{evidence.unmarked:,} unmarked",
        ),
        "values are those of the store": (
            evidence.differing == 0 and evidence.compared > 0,
            f"{evidence.differing:,} of {evidence.compared:,} compared differ",
        ),
    }
    return Verdict(checks, _speed(session))


def _speed(session: SessionJson) -> float | None:
    """Return the events per second; None without both times."""
    if not (session["started_at"] and session["ended_at"]):
        return None
    started, ended = (datetime.fromisoformat(session[at]) for at in ("started_at", "ended_at"))
    seconds = (ended - started).total_seconds()
    return float(session["counters"]["read"] / seconds) if seconds > 0 else None


def next_steps(place: Place, worker: Worker) -> str:
    """Return commands to try while the demo keeps running."""
    variables = {**place.environment(), "REPLAY_URL": worker.url}
    exports = [f"  export {name}={shlex.quote(value)}" for name, value in variables.items()]
    to = f" --prefix {place.prefix}" if place.prefix else ""
    when = f"--start {JANUARY:%Y-%m-%dT%H:%M:%SZ} --end {JANUARY + MONTH:%Y-%m-%dT%H:%M:%SZ}"
    return "\n".join(
        (
            "",
            f"Running until Ctrl-C. The status page: {worker.url}/",
            "In another terminal:",
            *exports,
            "  replay-app list",
            f"  replay-app plan {when} --event-type order_placed{to}",
            f"  replay-app start --replay-id slow {when} --rate 2000{to} --wait",
            "and while that runs, in a third one:",
            "  replay-app pause slow; replay-app resume slow; replay-app set-rate slow none",
        )
    )
