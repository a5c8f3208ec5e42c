"""The program itself as a contender: real worker processes, from the command to ``completed``."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from broker import read_committed
from confluent_kafka import Consumer, Producer
from history import DATABASE
from prometheus_client.parser import text_string_to_metric_families

from replay_app.client import Client
from replay_app.demo.stack import EmbeddedServers, free_port
from replay_app.supervisor import COMMAND
from replay_app.topics import partition_of

READY_SECONDS = 60.0
COMPLETED_SECONDS = 600.0
SEND_SECONDS = 30.0
ENDED = {"completed", "completed_with_errors", "failed", "cancelled"}


class Workers:
    """An installation of its own: its internal topics, and so many workers, up and ready."""

    def __init__(  # noqa: PLR0913 - what an installation is made of
        self,
        stack: EmbeddedServers,
        name: str,
        folder: Path,
        collection: str,
        *,
        count: int = 1,
        settings: Mapping[str, str],
    ) -> None:
        self._stack = stack
        self.partitions = int(settings.get("REPLAY_PARTITIONS", "8"))
        self.prefix = f"{name}.replay."
        outside = {k: v for k, v in os.environ.items() if not k.startswith("REPLAY_")}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._clients: list[Client] = []
        self._status: Consumer | None = None
        try:
            for number in range(count):
                home, port = folder / f"{name}-{number}", free_port()
                home.mkdir()
                environment = {
                    **outside,
                    **stack.environment(),
                    "REPLAY_APP_ID": name,
                    "REPLAY_TOPIC_PREFIX": self.prefix,
                    "REPLAY_MONGO_DATABASE": DATABASE,
                    "REPLAY_MONGO_COLLECTION": collection,
                    "REPLAY_DATA_DIR": str(home / "data"),
                    "REPLAY_WEB_PORT": str(port),
                    "REPLAY_WORKER_ID": f"worker-{number}",
                    **settings,
                }
                self._start(environment, home)
                self._clients.append(Client(f"http://127.0.0.1:{port}"))
            for client in self._clients:
                self._wait_until_ready(client.url)
            self._status = read_committed(
                stack.kafka, {f"{self.prefix}status": self.partitions}, wait_ms=10
            )
        except BaseException:
            self.close()
            raise

    def _start(self, environment: Mapping[str, str], home: Path) -> None:
        with (home / "log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    COMMAND,
                    env=environment,
                    stdin=subprocess.PIPE,  # so that it ends with this process, however that ends
                    stdout=log,
                    stderr=log,
                    cwd=home,
                )
            )

    def _wait_until_ready(self, url: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError), urlopen(f"{url}/readyz", timeout=READY_SECONDS):  # noqa: S310 - our own
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"no worker became ready at {url}")
            time.sleep(0.05)

    @property
    def processes(self) -> list[psutil.Process]:
        """The worker processes."""
        return [psutil.Process(process.pid) for process in self._processes]

    def start(self, replay_id: str, **body: Any) -> None:
        """Send one start command over HTTP."""
        self._clients[0].start({"replay_id": replay_id, **body})

    def start_many(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Put many start commands on the requests topic."""
        producer = Producer(
            {"bootstrap.servers": self._stack.kafka, "partitioner": "murmur2_random"}
        )
        for body in bodies:
            command = json.dumps({"command": "start", **body})
            producer.produce(f"{self.prefix}requests", command, body["replay_id"])
        producer.flush(SEND_SECONDS)

    def completed(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many replays are completed, as anybody sees it on ``replay.status``."""
        sessions: list[dict[str, Any]] = []
        deadline = time.monotonic() + COMPLETED_SECONDS
        if self._status is None:
            raise AssertionError  # it is there once the workers are
        while len(sessions) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(sessions)} of {count} replays were completed")
            message = self._status.poll(0.1)
            session = json.loads(message.value() or b"{}") if message else {}
            if session.get("state") not in ENDED:
                continue
            if session["state"] != "completed":
                raise RuntimeError(f"{session['replay_id']}: {session.get('error')}")
            sessions.append(session)
        return sessions

    def waited_seconds(self) -> dict[str, float]:
        """Return what the shards waited for so far, by stage, as the metrics have it."""
        found: dict[str, float] = defaultdict(float)
        for client in self._clients:
            with urlopen(f"{client.url}/metrics", timeout=READY_SECONDS) as answer:  # noqa: S310 - our own
                families = text_string_to_metric_families(answer.read().decode())
            for family in families:
                for sample in family.samples:
                    if sample.name == "replay_stage_seconds_sum":
                        found[sample.labels["stage"]] += sample.value
        return dict(found)

    def close(self) -> None:
        """Kill the workers: all is measured, and their topics go too."""
        if self._status is not None:
            self._status.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


@contextlib.contextmanager
def workers(*arguments: Any, **options: Any) -> Iterator[Workers]:
    """Give an installation that is ended with the block."""
    with contextlib.closing(Workers(*arguments, **options)) as running:
        yield running


def spread_id(name: str, shards: int, partitions: int) -> str:
    """Return a replay id whose shards lie on all partitions evenly: by chance they may not."""
    for number in itertools.count():
        replay_id = f"{name}-{number}"
        places = [partition_of(f"{replay_id}/{s}".encode(), partitions) for s in range(shards)]
        if max(map(places.count, range(partitions))) <= -(-shards // partitions):
            return replay_id
    raise AssertionError
