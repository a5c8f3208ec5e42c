"""The demo: replays a shop's history, and compares the topics with the event store.

The demo starts servers (see `replay_app.demo.stack`) and a worker process, sends a command to
``replay.requests``, and reads the topics with an ordinary consumer. It leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pymongo
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from replay_app.answers import SessionJson
from replay_app.client import Client, produce_command
from replay_app.demo.shop import JANUARY, MONTH, SHOP_TOPICS, seed_store
from replay_app.demo.stack import (
    EnvironmentServers,
    Reaper,
    Stack,
    free_port,
    outside_environment,
)
from replay_app.exceptions import ReplayError
from replay_app.supervisor import COMMAND
from replay_app.terminal import say, say_json, show_claims
from replay_app.watching import show_progress

REPLAY_ID = "demo"
SHOP_PARTITIONS = 3
WORKER_READY_SECONDS = 60.0
WORKER_STOP_SECONDS = 20.0
VERIFY_SECONDS = 300.0
"""The longest time to compare the shop's topics with the store."""
VERIFY_WORDS = 2000
"""Characters of what a failed verification has printed."""
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
            if session["state"] == "completed":
                tell("Reading the topics (read_committed), and comparing them with the store")
                verdict = judge(session, prove(place, worker))
            else:
                verdict = failure(session)
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
        self._reaper = Reaper(self._folder)
        own = {
            "REPLAY_DATA_DIR": str(self._folder / "data"),
            "REPLAY_WEB_PORT": str(port),
            "REPLAY_WORKER_ID": "demo",
        }
        self._environment = {**outside_environment(), **environment, **own}
        self.start()

    def start(self) -> None:
        """Start the process: after a `kill`, with the same name, port and folder."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a constant
                COMMAND,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self._folder,  # this folder has no .env file
                start_new_session=True,  # only this process gets Ctrl-C; it ends the worker
            )

    def kill(self) -> None:
        """Kill the process (SIGKILL), as a machine that fails does."""
        self._process.kill()
        self._process.wait(WORKER_STOP_SECONDS)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def command(
        self, environment: Mapping[str, str], *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``replay-app`` with the worker's settings, as a user would; return its answer."""
        return subprocess.run(  # noqa: S603 - a constant, and our own arguments
            [sys.executable, "-m", "replay_app", *arguments],
            env={**outside_environment(), **environment, "REPLAY_URL": self.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self._folder,  # this folder has no .env file
            timeout=VERIFY_SECONDS,
            check=False,
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
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._reaper.close()


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
        "to_original": not place.prefix,  # nobody else reads the topics of the demo's own broker
    }
    asyncio.run(produce_command(place.stack.kafka, place.requests, body))
    replays = Client(worker.url).follow(REPLAY_ID, just_started=True, on_trouble=worker.check)
    last = deque(replays, maxlen=1).pop() if as_json else show_progress(replays)
    return last.members


def prove(place: Place, worker: Worker) -> dict[str, Any]:
    """Return what ``replay-app verify`` finds, as its JSON."""
    answer = worker.command(place.environment(), "verify", REPLAY_ID, "--json")
    try:
        found = dict(json.loads(answer.stdout))
        found["checks"]
    except (ValueError, KeyError) as error:
        msg = f"the verification failed: {(answer.stderr or answer.stdout)[-VERIFY_WORDS:]}"
        raise ReplayError(msg) from error
    return found


@dataclass
class Verdict:
    """What the demo has shown."""

    holds: bool
    """Whether every claim holds."""
    checks: dict[str, tuple[bool, str]]
    """By claim: whether the claim holds, and the figures."""
    events_per_second: float | None
    """The replay's speed, from its first slice to its end."""
    seconds: float = field(default=0.0)
    """Time of the whole demo, from the start of the servers."""

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
        show_claims(self.checks)
        shown = f"{speed:,.0f} events/s, " if speed else ""
        say(f"{'It holds' if self.holds else 'IT FAILED'}: {shown}{self.seconds:.1f} s in total.")


def judge(session: SessionJson, found: Mapping[str, Any]) -> Verdict:
    """Return the verdict on the replay of the whole store, of which nothing may be left out."""
    stored, matched = found["verification"]["stored"], session["matched"]
    is_whole = stored == matched == session["counters"]["read"]
    shown = "unknown" if matched is None else f"{matched:,}"
    checks = {
        "every stored event was read": (is_whole, f"{stored:,} stored, {shown} matched"),
        **{claim: (one["holds"], one["figures"]) for claim, one in found["checks"].items()},
    }
    return Verdict(is_whole and found["holds"], checks, _speed(session))


def failure(session: SessionJson) -> Verdict:
    """Return the verdict on a replay that has not completed."""
    why = session["state"] + (f": {session['error']}" if session["error"] else "")
    return Verdict(False, {"it completed": (False, why)}, _speed(session))  # noqa: FBT003 - see `Verdict`


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
    target = f" --prefix {place.prefix}" if place.prefix else ""
    to = target or " --to-original"
    when = f"--start {JANUARY:%Y-%m-%dT%H:%M:%SZ} --end {JANUARY + MONTH:%Y-%m-%dT%H:%M:%SZ}"
    return "\n".join(
        (
            "",
            f"Running until Ctrl-C. The status page: {worker.url}/",
            "In another terminal:",
            *exports,
            "  replay-app list",
            f"  replay-app plan {when} --event-type order_placed{target}",
            f"  replay-app start --replay-id slow {when} --rate 2000{to} --wait",
            "and while that runs, in a third one:",
            "  replay-app pause slow; replay-app resume slow; replay-app set-rate slow none",
        )
    )
