"""The count beside the shards: on a store that counts slowly, and on workers that die."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from bson import Regex
from oracle import event_id_of
from store_proxy import slow_store
from support import create_topics, read_topic, unique_name, wait_until
from workers import SHOP_HISTORY, Cluster

EVENTS = 1_000
LATE = 10
"""The last events have a type, and a topic, that no other event has."""
COUNT_SECONDS = 3.0
A_MINUTE = 60.0
FIRST = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def slow_count(cluster: Cluster) -> Iterator[None]:
    with slow_store(cluster.stack.mongo, COUNT_SECONDS, b"$group") as uri:
        cluster.environment |= {"REPLAY_MONGO": uri}
        yield


def fill(cluster: Cluster) -> tuple[str, str]:
    """Store the events; return two topics: of most events, which exists, and of the last events."""
    kind, late = unique_name("kind"), unique_name("late")
    create_topics(cluster.stack.kafka, {kind: 2})
    cluster.insert(
        {
            "_id": number,
            "event_id": f"e-{number}",
            "event_type": kind if number < EVENTS - LATE else late,
            "aggregate_id": f"a-{number % 7}",
            "timestamp": FIRST + dt.timedelta(seconds=number),
        }
        for number in range(EVENTS)
    )
    return kind, late


def counted(cluster: Cluster) -> dict[str, Any]:
    """Return the session once its events are counted."""

    def has_count() -> bool:
        session = cluster.session("r")
        return session is not None and session["matched"] is not None

    wait_until(has_count, 2 * A_MINUTE, "never counted")
    session: dict[str, Any] = cluster.session("r")
    return session


def assert_each_once(cluster: Cluster, *topics: str) -> None:
    ids = [event_id_of(record) for record in read_topic(cluster.stack.kafka, topics)]
    assert len(ids) == len(set(ids)) == EVENTS


def test_events_come_before_the_count_and_a_missing_topic_is_a_warning_until_it_is_needed(
    cluster: Cluster,
) -> None:
    kind, late = fill(cluster)
    cluster.start_worker().wait_until_ready()
    cluster.command("r", rate=10, target={})
    wait_until(lambda: read_topic(cluster.stack.kafka, kind), A_MINUTE, "no event")
    session = cluster.session("r")
    assert session["plan"]["counted"] == "running"
    assert (session["matched"], session["percent"], session["eta_seconds"]) == (None, None, None)
    session = counted(cluster)
    assert (session["state"], session["matched"]) == ("running", EVENTS)
    assert session["plan"]["by_topic"] == {kind: EVENTS - LATE, late: LATE}
    assert session["plan"]["counted"] == "beside"
    (warning,) = [one for one in session["warnings"] if "missing" in one]
    assert warning.startswith(f"missing destination topics: {late!r} ({LATE} events); create")
    position = session["position"]
    assert position["time"].startswith("2026-03-01T00:")
    assert (position["start"], position["end"]) == (None, session["plan"]["end"])
    cluster.command("r", "set-rate", rate=None)
    session = cluster.wait_for("r", "failed")
    assert f"topic {late!r}" in session["error"]
    assert session["counters"]["published"] == EVENTS - LATE
    # The retry knows the topic from the count: nothing begins before the topic exists.
    cluster.command("r", "retry")
    session = cluster.wait_for("r", "failed", attempt=2)
    assert f"missing destination topics: {late!r}" in session["error"]
    create_topics(cluster.stack.kafka, {late: 1})
    cluster.command("r", "retry")
    assert cluster.wait_for("r", "completed")["counters"]["published"] == EVENTS
    assert_each_once(cluster, kind, late)


def test_a_full_preflight_publishes_nothing_while_a_topic_is_missing(cluster: Cluster) -> None:
    kind, late = fill(cluster)
    cluster.start_worker().wait_until_ready()
    session = cluster.run("r", target={}, preflight="full")
    assert session["state"] == "failed"
    assert f"missing destination topics: {late!r}" in session["error"]
    assert read_topic(cluster.stack.kafka, kind) == []


def test_a_replay_that_ends_before_its_count_is_the_count(cluster: Cluster) -> None:
    kind, late = fill(cluster)
    create_topics(cluster.stack.kafka, {late: 1})
    cluster.start_worker().wait_until_ready()
    # With a start, no shard of events without a time waits for the count.
    session = cluster.run("r", filter={"start": FIRST.isoformat()}, target={})
    assert (session["state"], session["matched"], session["percent"]) == ("completed", EVENTS, 100)
    assert session["plan"]["by_topic"] == {kind: EVENTS - LATE, late: LATE}
    assert_each_once(cluster, kind, late)


def test_a_replay_of_everything_that_has_read_all_is_not_counted(cluster: Cluster) -> None:
    kind, late = fill(cluster)
    create_topics(cluster.stack.kafka, {late: 1})
    cluster.insert([{"_id": "untimed", "event_id": "untimed", "event_type": kind}])
    cluster.start_worker().wait_until_ready()
    session = cluster.run("r", target={}, on_error="skip")
    assert (session["state"], session["matched"]) == ("completed_with_errors", EVENTS + 1)
    assert session["plan"]["counted"] == "after"
    assert session["receipt"]["behind"] == 0
    counters = session["counters"]
    assert (counters["published"], counters["skipped"]) == (EVENTS, 1)
    assert_each_once(cluster, kind, late)


def test_topics_that_no_look_has_found_are_found_while_the_replay_runs(cluster: Cluster) -> None:
    cluster.seed(EVENTS)
    with slow_store(cluster.stack.mongo, COUNT_SECONDS, b"$group", b"$limit") as uri:
        cluster.start_worker(None, REPLAY_MONGO=uri).wait_until_ready()
        session = cluster.run("r", filter=SHOP_HISTORY)
    assert (session["state"], session["matched"]) == ("completed", EVENTS), session["error"]
    assert len(session["plan"]["by_topic"]) > 1
    cluster.assert_exact("r")


def test_a_retry_that_skips_an_event_finds_the_topics_behind_the_event(cluster: Cluster) -> None:
    _, late = fill(cluster)
    create_topics(cluster.stack.kafka, {late: 1})
    last = EVENTS - LATE - 1
    with cluster.store() as events:  # the plan's look does not get as far
        events.update_one({"_id": last}, {"$set": {"body": Regex("x")}})
    cluster.start_worker().wait_until_ready()
    session = cluster.run("r", filter={"start": FIRST.isoformat()}, target={})
    assert f"event 'e-{last}'" in session["error"]
    cluster.command("r", "retry", skip_events=[f"e-{last}"])
    session = cluster.wait_for("r", "completed_with_errors", "failed", attempt=2)
    assert session["error"] is None
    counters = session["counters"]
    assert (counters["published"], counters["skipped"]) == (EVENTS - 1, 1)
    assert read_topic(cluster.stack.kafka, late)


def test_a_count_goes_on_after_a_pause_and_on_another_worker(cluster: Cluster) -> None:
    kind, late = fill(cluster)
    create_topics(cluster.stack.kafka, {late: 1})
    for _ in range(2):
        cluster.start_worker()
    for worker in cluster.workers:
        worker.wait_until_ready()
    cluster.command("r", rate=5, target={})
    cluster.wait_for("r", "running")
    cluster.command("r", "pause")
    assert cluster.wait_for("r", "paused")["matched"] is None
    cluster.command("r", "resume")
    cluster.wait_for("r", "running")
    for number, worker in enumerate(list(cluster.workers)):  # one of them counts
        worker.kill()
        cluster.start_worker(number).wait_until_ready()
    session = counted(cluster)
    assert (session["state"], session["matched"]) == ("running", EVENTS)
    cluster.command("r", "set-rate", rate=None)
    assert cluster.wait_for("r", "completed")["counters"]["published"] == EVENTS
    assert_each_once(cluster, kind, late)
