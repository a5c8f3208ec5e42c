"""``replay-app worker --processes N``: several workers under one process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support import wait_until
from workers import WORKER_READY_SECONDS, WORKER_STOP_SECONDS, Api, Cluster, Worker

from replay_app.demo.stack import PORTS, free_port

EVENTS = 1_200
GONE_SECONDS = 10.0


class Pair:
    """Two worker processes and the process that keeps them running."""

    def __init__(self, cluster: Cluster, **environment: str) -> None:
        self.cluster = cluster
        self.port = two_free_ports()
        self.keeper: Worker = cluster.start_worker(
            None,
            *("--processes", "2"),
            REPLAY_WEB_PORT=str(self.port),
            REPLAY_WORKER_ID="pair",
            **environment,
        )

    def wait_until_ready(self) -> None:
        for port in (self.port, self.port + 1):
            wait_until(partial(self.is_ready, port), WORKER_READY_SECONDS, f"{port} is not ready")

    def is_ready(self, port: int) -> bool:
        assert self.keeper.process.poll() is None, self.cluster.logs()
        return Api(port).is_ready()

    def processes(self) -> dict[str, int]:
        """Return the process id of each worker by its name, also after the death of its parent."""
        folder, found = str(self.cluster.folder), {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # the process has ended meanwhile
                words = path.read_text().split("\0")
                if "--worker-id" in words and any(folder in word for word in words):
                    found[words[words.index("--worker-id") + 1]] = int(path.parent.name)
        return found


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[Pair]:
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "160", "REPLAY_PAGE_EVENTS": "60"}
    pair = Pair(cluster)
    yield pair
    pair.keeper.kill()
    wait_until(lambda: not pair.processes(), GONE_SECONDS, "processes were left")


def test_two_workers_run_each_on_its_port_in_its_folder_and_sigterm_ends_both(
    cluster: Cluster, pair: Pair
) -> None:
    pair.wait_until_ready()
    assert pair.processes().keys() == {"pair-0", "pair-1"}
    folder = cluster.data_dir(0)
    assert sorted(path.name for path in folder.iterdir()) == ["worker-0", "worker-1"]
    assert all(list(path.iterdir()) for path in folder.iterdir())
    assert pair.keeper.terminate() == 0
    assert not pair.processes()


def test_a_killed_worker_comes_back_under_its_name_and_the_replay_is_exact(
    cluster: Cluster, pair: Pair
) -> None:
    cluster.seed(EVENTS)
    pair.wait_until_ready()
    # On several partitions, so on both workers.
    names = [f"r{number}" for number in range(4)]
    for name in names:
        cluster.command(name, rate=200)
    for name in names:
        cluster.wait_for(name, "running")
    before = pair.processes()
    os.kill(before["pair-1"], signal.SIGKILL)
    wait_until(lambda: pair.processes().get("pair-1", before["pair-1"]) != before["pair-1"], 20)
    pair.wait_until_ready()
    assert pair.processes().keys() == before.keys()
    assert pair.processes()["pair-0"] == before["pair-0"]
    for name in names:
        assert cluster.wait_for(name, "completed")["counters"]["published"] == EVENTS
    cluster.assert_exact(*names)


def test_no_worker_outlives_a_keeper_that_was_killed(pair: Pair) -> None:
    pair.wait_until_ready()
    assert len(pair.processes()) == 2
    pair.keeper.kill()
    wait_until(lambda: not pair.processes(), GONE_SECONDS, "a worker was left")


def test_a_worker_that_is_still_starting_does_not_outlive_its_keeper_either(pair: Pair) -> None:
    wait_until(lambda: len(pair.processes()) == 2, WORKER_READY_SECONDS, "not started")
    pair.keeper.kill()
    wait_until(lambda: not pair.processes(), GONE_SECONDS, "a worker was left")


def test_when_a_worker_cannot_start_all_end_and_the_log_says_why(cluster: Cluster) -> None:
    first = cluster.start_worker().wait_until_ready()  # so that the topics exist
    ready = f"ready at {first.url}: 4 of 4 partitions, "
    wait_until(lambda: ready in first.log.read_text(), WORKER_READY_SECONDS, "not announced")
    port = two_free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        keeper = cluster.start_worker(
            None,
            *("--processes", "2"),
            REPLAY_WEB_PORT=str(port),
            REPLAY_WORKER_ID="pair",
        )
        assert keeper.process.wait(WORKER_READY_SECONDS + WORKER_STOP_SECONDS) == 1
    said = keeper.log.read_text()
    assert "worker pair-1 ended with code 1 after " in said
    assert f"127.0.0.1:{port + 1} (REPLAY_WEB_HOST, REPLAY_WEB_PORT) cannot be bound" in said
    assert "Traceback" not in said


def test_wrong_settings_are_said_before_any_worker_starts(cluster: Cluster) -> None:
    keeper = cluster.start_worker(None, "--processes", "2", REPLAY_WEB_PORT="65535")
    assert keeper.process.wait(WORKER_READY_SECONDS) == 2
    assert "REPLAY_WEB_PORT=65535" in keeper.log.read_text()


def two_free_ports() -> int:
    """Return a free port whose next port is free too."""
    while True:
        port = free_port()
        with socket.socket() as next_one, contextlib.suppress(OSError):
            next_one.bind(("127.0.0.1", port + 1))
            if port + 1 in PORTS:
                return port
