"""Own topics that are deleted while a replay runs: it ends rightly, or says what is lost."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import signal
from functools import partial

import pytest
from support import delete_topics, read_topic, topic_names, wait_until
from workers import Cluster, Worker

EVENTS = 1_500
A_MINUTE = 60.0
SHOWN = {"status", "checkpoints", "dead-letters"}
"""Topics without which a session's reason can be read."""
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
        status, answer = worker.request("GET", "/readyz?exclude=store")
        return status == 503 and any(topic in one for one in answer["missing"])
    return False


def has_started_over(worker: Worker, topic: str) -> bool:
    log = worker.log.read_text()
    # Faust may see first that the table's changelog was lost.
    lost = re.search(f"'{re.escape(topic)}' was deleted .*: starting over", log)
    return bool(lost) or ": starting again without" in log


def delete_in_mid_run(cluster: Cluster, topic: str, **body: str) -> str:
    """Delete an internal topic while the replay r runs and the replay "paused" is paused."""
    for _ in range(2):
        cluster.start_worker()
    # A worker that is still starting would create the topic before anybody has missed it.
    for worker in cluster.workers:
        worker.wait_until_ready()
    for name in ("r", "paused"):
        cluster.command(name, rate=100, **body)
    for name in ("r", "paused"):
        cluster.wait_for(name, "running", seconds=A_MINUTE)
        wait_until(partial(read, cluster, name), A_MINUTE, f"{name} reads nothing")
    cluster.command("paused", "pause")
    cluster.wait_for("paused", "paused")
    name = full_name(cluster, topic)
    delete_topics(cluster.stack.kafka, [name])
    # Each worker shows the loss from its first look until it starts over, at least GONE_SECONDS
    # later. Without a topic that Faust reads or writes, no worker may answer with the session any
    # more, and the tries would take most of this time.
    wanted = {"readyz", "reason"} if topic in SHOWN else {"readyz"}
    seen: set[str] = set()

    def is_shown() -> bool:
        if any(names_missing(worker, name) for worker in cluster.workers):
            seen.add("readyz")
        session = cluster.session("r") if "reason" in wanted - seen else None
        if session and f"the broker does not know '{name}'" in (session["reason"] or ""):
            seen.add("reason")
        return wanted <= seen

    wait_until(is_shown, A_MINUTE, f"{name} is not missed: {seen}")
    for worker in cluster.workers:
        wait_until(partial(has_started_over, worker, name), A_MINUTE, "not said")
        worker.wait_until_ready()
    assert name in topic_names(cluster.stack.kafka)
    return name


@pytest.mark.parametrize("topic", ["requests", "work", "progress", "status", "sessions-changelog"])
def test_a_topic_deleted_in_mid_run_is_created_again_and_every_replay_is_exact(
    cluster: Cluster, topic: str
) -> None:
    cluster.seed(EVENTS)
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


def test_a_replay_is_found_after_a_rebalance_without_the_changelog(cluster: Cluster) -> None:
    cluster.start_worker().wait_until_ready()
    cluster.start_worker().wait_until_ready()
    cluster.seed(EVENTS)
    cluster.run("r")
    name = full_name(cluster, "sessions-changelog")
    delete_topics(cluster.stack.kafka, [name])
    # A member that is evicted while the topic is missing: the group's next assignment has no
    # partition of the topic. The workers start over as soon as this assignment is made.
    stays, stopped = cluster.workers
    stopped.signal(signal.SIGSTOP)
    ignored = f"Ignoring missing topic: '{name}'"
    wait_until(lambda: ignored in stays.log.read_text(), A_MINUTE, "no rebalance")
    stopped.signal(signal.SIGCONT)
    for worker in cluster.workers:
        wait_until(partial(has_started_over, worker, name), A_MINUTE, "not said")
        worker.wait_until_ready()
    for worker in cluster.workers:
        status, answer = worker.request("GET", "/replays/r")
        assert status == 200, answer


def test_deleted_dead_letters_are_a_warning_of_the_replays_that_wrote_some(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
    # The first event has no type.
    cluster.insert([{"_id": 0, "event_id": "bad", "timestamp": dt.datetime(2026, 1, 1)}])  # noqa: DTZ001 - as stored
    name = delete_in_mid_run(cluster, "dead-letters", on_error="dead-letter")
    cluster.command("paused", "resume")
    for replay_id in ("r", "paused"):
        cluster.command(replay_id, "set-rate", rate=None)
        session = cluster.wait_for(replay_id, "completed_with_errors")
        counters = session["counters"]
        assert (counters["published"], counters["dead_lettered"]) == (EVENTS, 1)
        assert f"topic '{name}' was deleted during the replay" in session["warnings"][-1]
    session = cluster.run("new", on_error="dead-letter")
    assert session["state"] == "completed_with_errors"
    assert not any("was deleted" in warning for warning in session["warnings"])
    assert [one.headers["replay-id"] for one in read_topic(cluster.stack.kafka, name)] == [b"new"]


def test_deleted_checkpoints_fail_the_replays_and_nothing_is_published_again(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
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
