"""Own topics that are deleted while a replay runs: it ends rightly, or says what is lost."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
from support import delete_topics, topic_names, wait_until
from workers import Cluster, Worker

EVENTS = 1_500
A_MINUTE = 60.0
SMALL_SLICES = {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "100"}


@pytest.fixture(autouse=True)
def small_slices(cluster: Cluster) -> None:
    # A lost token is sent again by the watchdog.
    cluster.environment |= {**SMALL_SLICES, "REPLAY_STALL_SECONDS": "6"}


def read(cluster: Cluster, replay_id: str) -> int:
    session = cluster.session(replay_id)
    return int(session["counters"]["read"]) if session else 0


def full_name(cluster: Cluster, topic: str) -> str:
    return f"{cluster.name}-{topic}" if topic == "sessions-changelog" else cluster.prefix + topic


def names_missing(worker: Worker, topic: str) -> bool:
    with contextlib.suppress(OSError):
        status, answer = worker.request("GET", "/readyz")
        return status == 503 and any(topic in one for one in answer["missing"])
    return False


def has_started_over(worker: Worker) -> bool:
    return ": starting over" in worker.log.read_text()


def delete_in_mid_run(cluster: Cluster, topic: str) -> str:
    """Delete an internal topic while the replay r runs and the replay "paused" is paused."""
    cluster.seed(EVENTS)
    for _ in range(2):
        cluster.start_worker()
    for name in ("r", "paused"):
        cluster.command(name, rate=100)
    for name in ("r", "paused"):
        wait_until(partial(read, cluster, name), A_MINUTE)
    cluster.command("paused", "pause")
    cluster.wait_for("paused", "paused")
    name = full_name(cluster, topic)
    delete_topics(cluster.stack.kafka, [name])
    for worker in cluster.workers:
        wait_until(partial(names_missing, worker, name), A_MINUTE, f"{name} is not missed")
    for worker in cluster.workers:
        wait_until(partial(has_started_over, worker), A_MINUTE, "not said")
        worker.wait_until_ready()
    assert name in topic_names(cluster.stack.kafka)
    return name


@pytest.mark.parametrize(
    "topic", ["requests", "work", "progress", "status", "dead-letters", "sessions-changelog"]
)
def test_a_topic_deleted_in_mid_run_is_created_again_and_every_replay_is_exact(
    cluster: Cluster, topic: str
) -> None:
    delete_in_mid_run(cluster, topic)
    cluster.wait_for("paused", "paused")
    for name, command in (("r", "set-rate"), ("paused", "set-rate")):
        cluster.command(name, command, rate=None)
    cluster.command("paused", "resume")
    for name in ("r", "paused"):
        session = cluster.wait_for(name, "completed")
        assert session["counters"]["published"] == EVENTS
    cluster.run("new")
    cluster.assert_exact("r", "paused", "new")


def test_deleted_checkpoints_fail_the_replays_and_nothing_is_published_again(
    cluster: Cluster,
) -> None:
    delete_in_mid_run(cluster, "checkpoints")
    cluster.command("paused", "resume")
    for name in ("r", "paused"):
        session = cluster.wait_for(name, "failed")
        assert "its checkpoints are lost" in session["error"]
        assert "start a new one" in session["error"]
        assert 0 < session["counters"]["published"] < EVENTS
        # Another attempt must not go on from nothing either.
        cluster.command(name, "retry")
        failed = cluster.wait_for(name, "failed", attempt=2)
        assert failed["counters"] == session["counters"]
        records = cluster.published_by(name)
        assert len(records) == session["counters"]["published"]
        assert len({one.headers["replay-delivery-id"] for one in records}) == len(records)
        cluster.command(name, "cancel")
        assert cluster.wait_for(name, "cancelled")["counters"] == session["counters"]
    cluster.run("new")
    cluster.assert_exact("new")
