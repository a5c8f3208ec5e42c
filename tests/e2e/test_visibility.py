"""Replays beside open transactions of other producers: nothing twice, nothing hidden."""

from __future__ import annotations

from functools import partial

from support import open_transactions, wait_until
from workers import Cluster

EVENTS = 1_200


def read(cluster: Cluster, replay_id: str) -> int:
    session = cluster.session(replay_id)
    return session["counters"]["read"] if session else 0


def reason(cluster: Cluster, replay_id: str) -> str:
    session = cluster.session(replay_id)
    return (session["finishing"] and session["reason"]) or "" if session else ""


def test_a_kill_beside_open_transactions_on_the_internal_topics_repeats_nothing(
    cluster: Cluster,
) -> None:
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "80", "REPLAY_PAGE_EVENTS": "40"}
    cluster.seed(EVENTS)
    worker = cluster.start_worker().wait_until_ready()
    cluster.command("r", rate=40)  # half a minute: the worker dies in the middle
    wait_until(partial(read, cluster, "r"), 60)
    internal = [cluster.prefix + "checkpoints", cluster.prefix + "status"]
    with open_transactions(cluster.stack.kafka, dict.fromkeys(internal, cluster.partitions)):
        # Checkpoints behind the open transaction, which a new owner of the partition must not miss.
        before = wait_until(lambda: len(cluster.published_by("r")), 60)
        wait_until(lambda: len(cluster.published_by("r")) > before + 80, 60)
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


def test_a_running_replay_says_what_consumers_do_not_see_until_they_see_it(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
    cluster.start_worker().wait_until_ready()
    first = cluster.topics()[0]

    def why() -> str:
        session = cluster.session("r")
        assert session is not None
        assert (session["state"], session["finishing"]) == ("running", False)
        told: str = session["reason"] or ""
        return told if "consumers" in told else ""

    with open_transactions(cluster.stack.kafka, {first: 1}):
        cluster.command("r", rate=4)  # minutes, so that the replay outlasts the looks
        cluster.wait_for("r", "running")
        told = wait_until(why, 90)
        assert told.startswith(f"consumers do not see all: partition 0 of '{first}' stands still")
        assert "behind an open transaction of producer id" in told
        assert f"abort --topic {first} --partition 0 --start-offset 0" in told
        before = read(cluster, "r")
        wait_until(lambda: read(cluster, "r") > before, 30, "the replay does not go on")
    wait_until(lambda: not why(), 60)
    cluster.command("r", "set-rate", rate=None)
    cluster.wait_for("r", "completed")
    cluster.assert_exact("r")
