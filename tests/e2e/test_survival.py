"""An operator's commands and a replay's progress outlive workers, folders and topics."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import signal
from functools import partial

import pytest
from confluent_kafka import Producer
from support import delete_topics, newest_by_key, purge_topics, wait_until
from workers import Cluster

from replay_app.crashpoints import VARIABLE

EVENTS = 1_500
SMALL_SLICES = {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "100"}


@pytest.fixture(autouse=True)
def small_slices(cluster: Cluster) -> None:
    cluster.environment |= SMALL_SLICES


# Control


@pytest.mark.parametrize("wiped", [False, True], ids=["kept", "wiped"])
def test_a_pause_a_rate_and_a_cancel_survive_the_death_of_every_worker(
    cluster: Cluster, wiped: bool
) -> None:
    cluster.seed(EVENTS)
    for _ in range(2):
        cluster.start_worker()
    for name in ("paused", "slowed", "cancelled", "told-the-dead"):
        cluster.command(name, rate=200)
    for name in ("paused", "slowed", "cancelled", "told-the-dead"):
        wait_until(partial(read, cluster, name), 60)
    cluster.command("paused", "pause")
    cluster.command("cancelled", "cancel")
    cluster.command("slowed", "set-rate", rate=20)
    paused = cluster.wait_for("paused", "paused")
    cancelled = cluster.wait_for("cancelled", "cancelled")
    cluster.wait_for("slowed", "running", rate=20)
    kill_all(cluster)
    # No worker reads this command before the restart.
    cluster.command("told-the-dead", "pause")
    restart_all(cluster, wiped=wiped)
    told = cluster.wait_for("told-the-dead", "paused")
    slowed = cluster.wait_for("slowed", "running", rate=20)
    assert slowed["counters"]["published"] < EVENTS
    # No other replay moves during the time of a whole replay.
    cluster.run("other")
    for before in (paused, cancelled, told):
        name = before["replay_id"]
        assert cluster.wait_for(name)["state"] == before["state"]
        assert len(cluster.published_by(name)) == before["counters"]["published"] < EVENTS
    for name, command in (("paused", "resume"), ("told-the-dead", "resume")):
        cluster.command(name, command)
    for name in ("paused", "slowed", "told-the-dead"):
        cluster.command(name, "set-rate", rate=None)
    for name in ("paused", "slowed", "told-the-dead", "other"):
        assert cluster.wait_for(name, "completed")["counters"]["published"] == EVENTS
    cluster.assert_exact("paused", "slowed", "told-the-dead", "other")


def test_each_command_is_done_once_however_often_it_is_sent(cluster: Cluster) -> None:
    cluster.seed(EVENTS)
    cluster.start_worker()
    for _ in range(3):
        cluster.command("r", rate=400)
    wait_until(partial(read, cluster, "r"), 60)
    for command in ("pause", "resume", "pause", "pause", "resume", "resume"):
        cluster.command("r", command)
    for _ in range(3):
        cluster.command("r", "set-rate", rate=None)
    session = cluster.wait_for("r", "completed")
    assert session["attempt"] == 1
    cluster.assert_exact("r")


# Losses


def test_when_the_work_topic_is_purged_the_checkpoints_stand_for_the_tokens(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
    cluster.start_worker()
    names = ["r0", "r1", "r2"]
    for name in names:
        cluster.command(name, rate=500)
    for name in names:
        wait_until(partial(read, cluster, name), 60)
    kill_all(cluster)
    purge_topics(cluster.stack.kafka, f"{cluster.prefix}work")
    restart_all(cluster)
    for name in names:
        # The watchdog repaired nothing.
        assert cluster.wait_for(name, "completed")["repairs"] == 0
    cluster.assert_exact(*names)


def test_a_lost_token_without_a_checkpoint_is_sent_again_under_a_higher_epoch(
    cluster: Cluster,
) -> None:
    # The second repair would come after twice this time; even a busy machine needs less.
    cluster.environment["REPLAY_STALL_SECONDS"] = "6"
    cluster.seed(EVENTS)
    worker = cluster.start_worker(None, **{VARIABLE: "before-commit:1"})  # the plan's commit
    cluster.command("r")
    assert worker.process.wait(60) == -signal.SIGKILL
    purge_topics(cluster.stack.kafka, f"{cluster.prefix}work")
    restart_all(cluster)
    session = cluster.wait_for("r", "completed")
    assert (session["repairs"], session["epoch"]) == (1, 2)
    assert not session["stalled"]
    cluster.assert_exact("r")


def test_a_replay_without_progress_is_shown_as_stalled_until_it_goes_on(
    cluster: Cluster,
) -> None:
    cluster.environment["REPLAY_STALL_SECONDS"] = "3"
    cluster.seed(EVENTS)
    cluster.start_worker().wait_until_ready()
    cluster.command("r", rate=0.05)  # the first event at once, then one event in twenty seconds
    # A busy machine may show the replay as stalled before its first event too.
    wait_until(partial(read, cluster, "r"), 60)
    stalled = cluster.wait_for("r", "running", stalled=True)
    assert stalled["counters"]["published"] == 1
    cluster.command("r", "set-rate", rate=None)
    session = cluster.wait_for("r", "completed")
    assert not session["stalled"]
    cluster.assert_exact("r")


@pytest.mark.parametrize("wiped", [False, True], ids=["kept", "wiped"])
def test_when_the_tables_changelog_is_lost_the_status_topic_heals_it(
    cluster: Cluster, wiped: bool
) -> None:
    cluster.seed(EVENTS)
    for _ in range(2):
        cluster.start_worker()
    cluster.run("before")
    cluster.command("r", rate=400)
    cluster.command("paused", rate=400)
    for name in ("r", "paused"):
        wait_until(partial(read, cluster, name), 60)
    cluster.command("paused", "pause")
    cluster.wait_for("paused", "paused")
    kill_all(cluster)
    delete_topics(cluster.stack.kafka, [f"{cluster.name}-sessions-changelog"])
    restart_all(cluster, wiped=wiped)
    cluster.wait_for("r", "completed")
    assert cluster.wait_for("before")["state"] == "completed"
    cluster.command("paused", "resume")
    assert cluster.wait_for("paused", "completed")["counters"]["published"] == EVENTS
    cluster.assert_exact("before", "r", "paused")


# Forgetting


def test_an_old_session_leaves_the_table_and_the_topics_and_its_id_is_free(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
    cluster.start_worker()
    kept = cluster.run("kept", max_events=10)
    cluster.run("old", max_events=10)
    kill_all(cluster)
    backdate(cluster, "old", dt.timedelta(days=31))
    restart_all(cluster)
    wait_until(lambda: newest(cluster, "status").get(b"old") is None, 60)
    cluster.workers[0].wait_until_ready()
    assert cluster.workers[0].request("GET", "/replays/old")[0] == 404
    assert cluster.session("kept") == kept
    changelog = f"{cluster.name}-sessions-changelog"
    wait_until(lambda: newest_by_key(cluster.stack.kafka, changelog)[b"old"] is None, 30)

    def has_no_checkpoint() -> bool:
        found = newest(cluster, "checkpoints")
        left = {key for key, value in found.items() if value is not None}
        # On a slow machine the events were counted in a step of its own.
        return left - {b"kept/count"} == {b"kept/plan", b"kept/0", b"kept/finish"}

    wait_until(has_no_checkpoint, 30, "checkpoints were left")
    # Another body is accepted and starts at the first event: nothing of the old replay is left.
    session = cluster.run("old", max_events=20)
    assert (session["state"], session["counters"]["published"]) == ("completed", 20)


# Neighbours


def test_slow_and_paused_replays_do_not_hold_up_another_on_their_partition(
    cluster: Cluster,
) -> None:
    turns = 30
    cluster.environment |= {"REPLAY_PARTITIONS": "1", "REPLAY_SLICE_EVENTS": str(EVENTS // turns)}
    cluster.seed(EVENTS)
    cluster.start_worker()
    slow = [f"slow-{number}" for number in range(4)]
    for name in (*slow, "paused"):
        cluster.command(name, rate=0.1)  # an event in ten seconds
    for name in (*slow, "paused"):
        wait_until(partial(read, cluster, name), 60)
    cluster.command("paused", "pause")
    cluster.wait_for("paused", "paused")
    cluster.run("fast")
    # If each slice of "fast" had waited for the slow replays, they would have as many slices.
    for name in slow:
        assert len(cluster.published_by(name)) < turns
    assert len(cluster.published_by("paused")) == 1
    cluster.assert_exact("fast")


def test_fifty_small_replays_finish_before_a_large_one_that_came_first(cluster: Cluster) -> None:
    cluster.environment |= {
        "REPLAY_PARTITIONS": "1",
        "REPLAY_SLICE_EVENTS": "15",
        "REPLAY_PAGE_EVENTS": "15",
    }
    cluster.seed(1_000)
    events = cluster.stored()
    first, last = events[0]["timestamp"], events[10]["timestamp"]
    few = {"start": first.isoformat(), "end": last.isoformat()}
    matching = sum(first <= event["timestamp"] < last for event in events)
    assert 0 < matching <= 10
    cluster.start_worker().wait_until_ready()
    cluster.command("large")
    names = [f"small-{number}" for number in range(50)]
    for name in names:
        cluster.command(name, filter=few)
    sessions = {name: cluster.wait_for(name, "completed") for name in (*names, "large")}
    assert [sessions[name]["counters"]["published"] for name in names] == [matching] * 50
    ends = {name: dt.datetime.fromisoformat(one["ended_at"]) for name, one in sessions.items()}
    assert max(ends, key=lambda name: ends[name]) == "large"
    cluster.assert_exact("large")


# Scale


def test_aggregate_order_holds_while_workers_join_leave_and_die(cluster: Cluster) -> None:
    events = 1_600
    cluster.seed(events)
    with cluster.store() as store:
        # Events without an aggregate, spread over the month.
        ids = [event["_id"] for event in cluster.stored()[::7]]
        store.update_many({"_id": {"$in": ids}}, {"$set": {"aggregate_id": None}})
    cluster.start_worker()
    # So slow that the replay cannot end before the last worker has gone.
    cluster.command("r", ordering="aggregate", shards=4, rate=16)

    def go_on() -> None:
        enough = read(cluster, "r") + 40
        wait_until(lambda: read(cluster, "r") > enough, 60)

    go_on()
    second, third = cluster.start_worker(), cluster.start_worker()  # scale out
    second.wait_until_ready()
    third.wait_until_ready()
    go_on()
    assert second.terminate() == 0  # scale in
    go_on()
    third.kill()
    go_on()
    assert read(cluster, "r") < events
    cluster.command("r", "set-rate", rate=None)
    session = cluster.wait_for("r", "completed")
    # How many shards there are depends on the cuts that a random sample gives within its time.
    assert len(session["shards"]) > 1
    assert session["counters"]["published"] == events
    cluster.assert_exact("r", ordering="aggregate")


# Steps


def read(cluster: Cluster, replay_id: str) -> int:
    session = cluster.session(replay_id)
    return int(session["counters"]["read"]) if session else 0


def newest(cluster: Cluster, topic: str) -> dict[bytes, bytes | None]:
    return newest_by_key(cluster.stack.kafka, cluster.prefix + topic)


def kill_all(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.kill()


def restart_all(cluster: Cluster, *, wiped: bool = False) -> None:
    for number in range(len(cluster.workers)):
        if wiped:
            shutil.rmtree(cluster.data_dir(number))
        cluster.start_worker(number)


def backdate(cluster: Cluster, replay_id: str, age: dt.timedelta) -> None:
    """Publish a session again with all its times moved into the past."""
    value = newest(cluster, "status")[replay_id.encode()]
    session = json.loads(value or b"")
    for name in ("created_at", "updated_at", "started_at", "ended_at", "progressed_at"):
        session[name] = (dt.datetime.fromisoformat(session[name]) - age).isoformat()
    session["revision"] += 1
    producer = Producer({"bootstrap.servers": cluster.stack.kafka, "partitioner": "murmur2_random"})
    key = replay_id.encode()
    producer.produce(f"{cluster.prefix}status", json.dumps(session).encode(), key)
    assert producer.flush(30) == 0
