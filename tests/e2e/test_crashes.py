"""Workers die at every moment; the topics hold each event exactly once, in order."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from oracle import assert_published_exactly
from support import wait_until
from workers import Cluster

from replay_app.crashpoints import VARIABLE
from replay_app.demo.stack import EmbeddedServers, Stack

STANDS_STILL = "stands still at offset"
"""What a worker's log says of a partition that has an open transaction."""
# The development store reads all events for each answer. So there are few events, at low rates, in
# small slices and pages: every replay runs for seconds, and most of the time in a transaction.
SMALL_SLICES = {"REPLAY_SLICE_EVENTS": "160", "REPLAY_PAGE_EVENTS": "60"}


@pytest.fixture(scope="module")
def crash_site(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A shop in which each crash point runs a replay; no test leaves a worker running."""
    cluster = Cluster(stack, tmp_path_factory.mktemp("crashes"), environment=SMALL_SLICES)
    cluster.seed(800)
    yield cluster
    cluster.close()


def test_ten_kills_at_random_moments_lose_and_repeat_nothing(cluster: Cluster) -> None:
    events = 5_000
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "50"}
    cluster.seed(events)
    rng = random.Random(20260101)
    worker = cluster.start_worker().wait_until_ready()
    # The rate keeps the replay running until the last kill.
    cluster.command("r", rate=500)
    for _ in range(10):
        before = _read(cluster)
        wait_until(partial(_has_read_more, cluster, before), 60)
        time.sleep(rng.uniform(0, 0.6))  # the random moment
        worker.kill()
        worker = cluster.start_worker(0)
    killed_at = _read(cluster)
    session = cluster.wait_for("r", "completed")
    assert killed_at < events, "the replay had ended before the last kill"
    assert session["counters"]["published"] == events
    assert session["receipt"]["counters"]["published"] == events
    assert_published_exactly(cluster.published(), cluster.stored(), "r", cluster.target_prefix)


@pytest.mark.parametrize(
    "place",
    [
        "after-tokens:1",  # the first token is sent, its session is not published
        "after-tokens:2",
        "after-status:1",  # the session is published, its row is not written
        "before-commit:1",  # the plan
        "before-commit:3",
        "after-commit:1",  # between commit and report
        "after-commit:3",
        "after-progress:3",  # between report and continuation
        "after-continuation:3",  # between continuation and acknowledgement
        "after-continuation:6",
    ],
)
def test_a_kill_between_any_two_steps_changes_nothing(crash_site: Cluster, place: str) -> None:
    replay_id = place.replace(":", "-")
    number = 0 if crash_site.workers else None
    worker = crash_site.start_worker(number, **{VARIABLE: place})
    crash_site.command(replay_id, requested_by="ana")
    assert worker.process.wait(90) == -signal.SIGKILL
    worker = crash_site.start_worker(0)
    session = crash_site.wait_for(replay_id, "completed")
    assert session["counters"] == {
        "read": 800,
        "published": 800,
        "skipped": 0,
        "dead_lettered": 0,
    }
    crash_site.assert_exact(replay_id)
    worker.kill()


def test_when_one_of_two_workers_is_killed_the_other_finishes(cluster: Cluster) -> None:
    events = 1_200
    cluster.environment |= SMALL_SLICES
    cluster.seed(events)
    first, second = cluster.start_worker(), cluster.start_worker()
    first.wait_until_ready()
    second.wait_until_ready()
    names = [f"r{number}" for number in range(4)]  # on several partitions, so on both workers
    for name in names:
        cluster.command(name, rate=200)
    for name in names:
        wait_until(partial(_read, cluster, name), 60)
    first.kill()
    for name in names:
        session = cluster.wait_for(name, "completed")
        assert session["counters"]["published"] == events
    cluster.assert_exact(*names)
    assert second.process.poll() is None


def test_sigterm_in_mid_slice_publishes_nothing_twice(cluster: Cluster) -> None:
    events = 4_000
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "2000", "REPLAY_PAGE_EVENTS": "40"}
    cluster.seed(events)
    worker = cluster.start_worker()
    cluster.command("r", rate=400)  # a slice ends after two seconds
    for _ in range(3):
        before = _read(cluster)
        wait_until(partial(_has_read_more, cluster, before), 60)
        time.sleep(0.5)  # into the next slice
        assert cluster.wait_for("r", "running")["counters"]["read"] < events
        assert worker.terminate() == 0
        worker = cluster.start_worker(0)
    cluster.command("r", "set-rate", rate=None)
    assert cluster.wait_for("r", "completed")["counters"]["published"] == events
    assert_published_exactly(cluster.published(), cluster.stored(), "r", cluster.target_prefix)


def test_a_worker_that_slept_past_its_session_publishes_nothing_more(cluster: Cluster) -> None:
    events = 1_200
    cluster.environment |= SMALL_SLICES
    cluster.seed(events)
    first, second = cluster.start_worker(), cluster.start_worker()
    first.wait_until_ready()
    second.wait_until_ready()
    names = [f"r{number}" for number in range(4)]
    for name in names:
        cluster.command(name, rate=160)
    for name in names:
        wait_until(partial(_read, cluster, name), 60)
    first.signal(signal.SIGSTOP)
    time.sleep(9)  # longer than the session timeout: the group evicts the worker
    first.signal(signal.SIGCONT)
    for name in names:
        assert cluster.wait_for(name, "completed")["counters"]["published"] == events
    cluster.assert_exact(*names)


@pytest.fixture
def own_cluster(own_stack: EmbeddedServers, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(own_stack, tmp_path)
    yield cluster
    for worker in cluster.workers:
        worker.kill()


def test_the_broker_is_killed_and_restarted_in_the_middle(
    own_stack: EmbeddedServers, tmp_path: Path
) -> None:
    # A lone broker may lose the marker of a transaction that it is killed in
    # (docs/reliability.md, "What is not covered"): such an attempt says nothing about a restart.
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        cluster = Cluster(own_stack, folder, environment=SMALL_SLICES)
        with contextlib.closing(cluster):
            cluster.seed(2_000)
            cluster.start_worker().wait_until_ready()
            cluster.command("r", rate=500)
            wait_until(partial(_has_read_more, cluster, 0), 60)
            own_stack.kill_broker()
            own_stack.start_broker()
            try:
                session = cluster.wait_for("r", "completed", "failed", seconds=120)
            except AssertionError:
                if STANDS_STILL in cluster.logs():
                    continue
                raise
            if "the broker has lost the marker" in (session["error"] or ""):
                continue
            assert (session["state"], session["counters"]["published"]) == ("completed", 2_000)
            records, events = cluster.published(), cluster.stored()
            assert_published_exactly(records, events, "r", cluster.target_prefix)
            return
    raise AssertionError("the broker lost a marker in each attempt")


def test_the_store_is_killed_and_restarted_in_the_middle(
    own_cluster: Cluster, own_stack: EmbeddedServers
) -> None:
    own_cluster.environment |= SMALL_SLICES
    own_cluster.seed(2_000)
    own_cluster.start_worker().wait_until_ready()
    own_cluster.command("r", rate=500)
    wait_until(lambda: _read(own_cluster) > 0, 60)
    own_stack.kill_store()
    session = own_cluster.wait_for("r", "running", seconds=30)
    wait_until(
        lambda: "does not answer" in ((own_cluster.session("r") or {}).get("reason") or ""),
        60,
        "the session never said that the store is away",
    )
    own_stack.start_store()
    session = own_cluster.wait_for("r", "completed")
    assert session["counters"]["published"] == 2_000
    records, events = own_cluster.published(), own_cluster.stored()
    assert_published_exactly(records, events, "r", own_cluster.target_prefix)


def _read(cluster: Cluster, replay_id: str = "r") -> int:
    session = cluster.session(replay_id)
    return int(session["counters"]["read"]) if session else 0


def _has_read_more(cluster: Cluster, before: int) -> bool:
    return _read(cluster) > before or (cluster.session("r") or {}).get("state") == "completed"
