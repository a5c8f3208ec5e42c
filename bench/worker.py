"""The program itself as a contender: worker processes, from the command to ``completed``."""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Producer
from history import DATABASE
from support import consumer_from_start
from workers import Worker

from replay_app.client import Client
from replay_app.commands import Start
from replay_app.demo.stack import EmbeddedServers, free_port, outside_environment
from replay_app.partitioner import partition_of

COMPLETED_SECONDS = 600.0
SEND_SECONDS = 30.0
SAMPLE_SECONDS = 0.02
"""Time between two looks at the memory of a process."""
ENDED = {"completed", "completed_with_errors", "failed", "cancelled"}


class Workers:
    """An installation with its own internal topics and ``count`` workers that are ready."""

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
        self._workers: list[Worker] = []
        installation = {
            **stack.environment(),
            "REPLAY_APP_ID": name,
            "REPLAY_TOPIC_PREFIX": self.prefix,
            "REPLAY_MONGO_DATABASE": DATABASE,
            "REPLAY_MONGO_COLLECTION": collection,
            **settings,
        }
        with contextlib.ExitStack() as undo:
            undo.callback(self._kill_workers)
            for number in range(count):
                home = folder / f"{name}-{number}"
                home.mkdir()
                environment = {
                    **installation,
                    "REPLAY_DATA_DIR": str(home / "data"),
                    "REPLAY_WEB_PORT": str(free_port()),
                    "REPLAY_WORKER_ID": f"worker-{number}",
                }
                self._workers.append(Worker(environment, home / "log"))
            self._environment = {
                **outside_environment(),
                **installation,
                "REPLAY_URL": self._workers[0].url,
            }
            for worker in self._workers:
                worker.wait_until_ready()
            self._client = Client(self._workers[0].url)
            self._status = consumer_from_start(
                stack.kafka, {f"{self.prefix}status": self.partitions}, {"fetch.wait.max.ms": 10}
            )
            undo.pop_all()

    @property
    def processes(self) -> list[psutil.Process]:
        """The worker processes."""
        return [psutil.Process(worker.process.pid) for worker in self._workers]

    def start(self, replay_id: str, **body: Any) -> None:
        """Send one start command over HTTP."""
        members = {"replay_id": replay_id, "filter": {"all": True}, **body}
        self._client.start(Start.model_validate(members))

    def cancel(self, replay_id: str) -> None:
        """Cancel a replay; `completed` then waits for its end."""
        self._client.command(replay_id, "cancel", None)

    def start_many(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Publish start commands on the requests topic."""
        producer = Producer(
            {"bootstrap.servers": self._stack.kafka, "partitioner": "murmur2_random"}
        )
        for body in bodies:
            command = json.dumps({"command": "start", **body})
            producer.produce(f"{self.prefix}requests", command, body["replay_id"])
        producer.flush(SEND_SECONDS)

    def completed(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait until ``count`` replays are completed on ``replay.status``; return the sessions."""
        sessions: list[dict[str, Any]] = []
        deadline = time.monotonic() + COMPLETED_SECONDS
        while len(sessions) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(sessions)} of {count} replays were completed")
            message = self._status.poll(0.1)
            session = json.loads(message.value() or b"{}") if message else {}
            if session.get("state") not in ENDED:
                continue
            if session["state"] not in {"completed", "cancelled"}:
                raise RuntimeError(f"{session['replay_id']}: {session.get('error')}")
            sessions.append(session)
        return sessions

    def verify(self, replay_id: str) -> dict[str, float]:
        """Run ``replay-app verify``; return its seconds, seconds of CPU, and peak RSS in bytes."""
        cpu, began, peak = _cpu_seconds_of_children(), time.perf_counter(), 0
        with subprocess.Popen(
            [sys.executable, "-m", "replay_app", "verify", replay_id],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                while process.poll() is None:
                    # The operating system's own figure has the peak of this process too.
                    peak = max(peak, peak_rss_bytes(process.pid))
                    if time.perf_counter() > began + COMPLETED_SECONDS:
                        raise TimeoutError(f"verify {replay_id} has not ended")
                    time.sleep(SAMPLE_SECONDS)
            finally:
                process.kill()
            seconds, output = time.perf_counter() - began, process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"verify {replay_id} ended with {process.returncode}: {output}")
        used = _cpu_seconds_of_children() - cpu
        return {"seconds": seconds, "cpu_seconds": used, "peak_rss_bytes": peak}

    def waited_seconds(self) -> dict[str, float]:
        """Return the seconds for which the shards have waited, by stage, from the metrics."""
        found: dict[str, float] = defaultdict(float)
        for worker in self._workers:
            for (name, stage), seconds in worker.metrics().items():
                if name == "replay_stage_seconds_sum":
                    found[stage] += seconds
        return dict(found)

    def close(self) -> None:
        """Kill the workers; their topics are deleted next."""
        self._status.close()
        self._kill_workers()

    def _kill_workers(self) -> None:
        for worker in self._workers:
            worker.kill()


def peak_rss_bytes(pid: int) -> int:
    """Return the largest resident size of a process since its start; 0 if the process has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _cpu_seconds_of_children() -> float:
    """Return the seconds of CPU of the children of this process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def workers(*arguments: Any, **options: Any) -> Iterator[Workers]:
    """Give an installation that ends with the block."""
    with contextlib.closing(Workers(*arguments, **options)) as running:
        yield running


def spread_id(name: str, shards: int, partitions: int) -> str:
    """Return a replay id whose shards are spread evenly over the partitions."""
    for number in itertools.count():
        replay_id = f"{name}-{number}"
        places = [partition_of(f"{replay_id}/{s}".encode(), partitions) for s in range(shards)]
        if max(map(places.count, range(partitions))) <= -(-shards // partitions):
            return replay_id
    raise AssertionError
