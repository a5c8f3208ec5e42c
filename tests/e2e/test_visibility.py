"""Replays beside open transactions of other producers: nothing twice, nothing hidden."""

from __future__ import annotations

from functools import partial

from support import open_transactions, wait_until
from workers import Cluster

EVENTS = 3_000


def read(cluster: Cluster, replay_id: str) -> int:
    session = cluster.session(replay_id)
    return session["counters"]["read"] if session else 0


def reason(cluster: Cluster, replay_id: str) -> str:
    session = cluster.session(replay_id)
    return (session["finishing"] and session["reason"]) or "" if session else ""


def test_a_kill_beside_open_transactions_on_the_internal_topics_repeats_nothing(
    cluster: Cluster,
) -> None:
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "100"}
    cluster.seed(EVENTS)
    worker = cluster.start_worker().wait_until_ready()
    cluster.command("r", rate=100)  # half a minute: the worker dies in the middle
    wait_until(partial(read, cluster, "r"), 60)
    internal = [cluster.prefix + "checkpoints", cluster.prefix + "status"]
    with open_transactions(cluster.stack.kafka, dict.fromkeys(internal, cluster.partitions)):
        # Checkpoints behind the open transaction, which a new owner of the partition must not miss.
        before = wait_until(lambda: len(cluster.published_by("r")), 60)
        wait_until(lambda: len(cluster.published_by("r")) > before + 200, 60)
        worker.kill()
        worker = cluster.start_worker(0)
        log = worker.log
        wait_until(lambda: "behind an open transaction" in log.read_text(), 60)
    cluster.command("r", "set-rate", rate=None)
    session = cluster.wait_for("r", "completed")
    assert session["counters"]["published"] == session["matched"] == EVENTS
    cluster.assert_exact("r")


def test_a_replay_completes_when_consumers_can_see_its_records(cluster: Cluster) -> None:
    cluster.seed(EVENTS)
    cluster.start_worker().wait_until_ready()
    with open_transactions(cluster.stack.kafka, dict.fromkeys(cluster.topics(), 3)):
        cluster.command("r")
        told = wait_until(partial(reason, cluster, "r"), 60)
        assert "consumers do not see all" in told
        assert cluster.published_by("r") == []
        assert cluster.session("r")["state"] == "running"
    assert cluster.wait_for("r", "completed")["counters"]["published"] == EVENTS
    cluster.assert_exact("r")
