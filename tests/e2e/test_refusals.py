"""What a replay does when the broker refuses: topics that go away, events that no topic takes."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Iterator
from functools import partial

import pytest
from support import (
    alter_topic,
    create_topics,
    delete_topics,
    read_topic,
    topic_names,
    unique_name,
    wait_until,
)
from workers import Cluster

from replay_app.demo.stack import EmbeddedServers

EVENTS = 2_000
A_MINUTE = 60.0
HALF = dt.datetime(2026, 1, 16, tzinfo=dt.UTC)
"""In the middle of the shop's history."""


@pytest.fixture(scope="module")
def creating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A shop on a broker that creates topics by itself, and one worker with one partition."""
    with EmbeddedServers(broker_settings={"auto.create.topics.enable": "true"}) as servers:
        cluster = Cluster(servers, tmp_path_factory.mktemp("creating"), partitions=1)
        cluster.environment["REPLAY_RECORD_TIMESTAMP"] = "original"
        cluster.seed(EVENTS)
        cluster.start_worker().wait_until_ready()
        yield cluster
        cluster.close()


@pytest.fixture
def topic(creating: Cluster) -> str:
    """A topic that only this test uses, and deletes."""
    name = unique_name("gone")
    create_topics(creating.stack.kafka, {name: 2})
    return name


def read(cluster: Cluster, replay_id: str) -> int:
    session = cluster.session(replay_id)
    return int(session["counters"]["read"]) if session else 0


def start_and_delete(cluster: Cluster, topic: str, *replay_ids: str) -> None:
    """Start slow replays to a topic, and delete the topic once all have published events."""
    for replay_id in replay_ids:
        cluster.command(replay_id, rate=200, target={"topic": topic})
    for replay_id in replay_ids:
        wait_until(partial(read, cluster, replay_id), A_MINUTE)
    delete_topics(cluster.stack.kafka, [topic])


# A topic that goes away


def test_a_topic_deleted_in_mid_run_fails_the_replay_by_name_and_is_not_created_again(
    creating: Cluster, topic: str
) -> None:
    replay_id, other = unique_name("r"), unique_name("other")
    start_and_delete(creating, topic, replay_id)
    creating.command(other)  # on the same partition
    session = creating.wait_for(replay_id, "failed", seconds=A_MINUTE)
    assert f"topic '{topic}' is gone" in session["error"]
    assert "create it again, then retry" in session["error"]
    assert creating.wait_for(other, "completed")["counters"]["published"] == EVENTS
    creating.assert_exact(other)
    assert topic not in topic_names(creating.stack.kafka)


def test_a_retry_goes_on_once_the_topic_is_there_again(creating: Cluster, topic: str) -> None:
    replay_id = unique_name("r")
    start_and_delete(creating, topic, replay_id)
    failed = creating.wait_for(replay_id, "failed", seconds=A_MINUTE)
    create_topics(creating.stack.kafka, {topic: 2})
    creating.command(replay_id, "set-rate", rate=None)
    creating.command(replay_id, "retry")
    session = creating.wait_for(replay_id, "completed")
    assert session["counters"]["published"] == EVENTS > failed["counters"]["published"]


def test_a_cancel_is_answered_while_the_topic_is_gone(creating: Cluster, topic: str) -> None:
    replay_id = unique_name("r")
    start_and_delete(creating, topic, replay_id)
    creating.command(replay_id, "cancel")
    creating.wait_for(replay_id, "cancelled", seconds=A_MINUTE)


# Events that the broker refuses


@pytest.fixture
def young(creating: Cluster) -> str:
    """A topic that refuses the events before HALF: their timestamps are too old."""
    name = unique_name("young")
    age_ms = (dt.datetime.now(dt.UTC) - HALF) // dt.timedelta(milliseconds=1)
    create_topics(creating.stack.kafka, {name: 2}, {"message.timestamp.before.max.ms": str(age_ms)})
    return name


def ids_of(cluster: Cluster, topic: str) -> list[str]:
    """Return the ids of the events that a topic holds, in the order of their times."""
    records = read_topic(cluster.stack.kafka, topic)
    found = [
        (one.headers["replay-delivery-id"] or b"").decode().partition(":")[2] for one in records
    ]
    assert len(found) == len(set(found)), "an event is there twice"
    return sorted(found)


def test_events_that_the_broker_refuses_are_skipped_by_name(creating: Cluster, young: str) -> None:
    events = creating.stored({"timestamp": {"$lt": dt.datetime(2026, 2, 1, tzinfo=dt.UTC)}})
    good = sorted(event["event_id"] for event in events if event["timestamp"] >= HALF)
    bad = [event["event_id"] for event in events if event["timestamp"] < HALF]
    session = creating.run(unique_name("r"), on_error="skip", target={"topic": young})
    assert session["state"] == "completed_with_errors"
    assert session["counters"]["published"] == len(good)
    assert session["counters"]["skipped"] == len(bad)
    assert ids_of(creating, young) == good
    failures = session["receipt"]["failures"]
    assert [one["event_id"] for one in failures] == bad[: len(failures)]
    assert {one["reason"].split(":")[0] for one in failures} == {"the broker refuses it"}
    assert "INVALID_TIMESTAMP" in failures[0]["reason"]


def test_an_event_that_the_broker_refuses_fails_the_replay_by_name(
    creating: Cluster, topic: str
) -> None:
    replay_id = unique_name("r")
    creating.command(replay_id, rate=200, target={"topic": topic})
    wait_until(partial(read, creating, replay_id), A_MINUTE)
    # The plan would have found this limit.
    alter_topic(creating.stack.kafka, topic, "message.timestamp.before.max.ms", "1000")
    session = creating.wait_for(replay_id, "failed", seconds=A_MINUTE)
    published = ids_of(creating, topic)
    first = [event["event_id"] for event in creating.stored()][len(published)]
    assert f"event '{first}': the broker refuses it: INVALID_TIMESTAMP" in session["error"]
    assert session["counters"]["published"] == len(published)


def test_an_event_that_is_too_large_for_its_topic_becomes_a_dead_letter(creating: Cluster) -> None:
    topic, kind = unique_name("small"), unique_name("kind")
    create_topics(creating.stack.kafka, {topic: 1}, {"max.message.bytes": "20000"})
    start = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
    creating.insert(
        {
            "event_id": f"{kind}-{number}",
            "event_type": kind,
            "aggregate_id": "a",
            "timestamp": start + dt.timedelta(seconds=number),
            "data": {"text": secrets.token_hex(30_000 if number == 150 else 150)},
        }
        for number in range(400)
    )
    replay_id = unique_name("r")
    session = creating.run(
        replay_id, on_error="dead-letter", target={"topic": topic}, filter={"event_types": [kind]}
    )
    with creating.store() as store:
        store.delete_many({"event_type": kind})  # the other tests replay everything
    assert session["state"] == "completed_with_errors", session
    counters = session["counters"]
    assert (counters["published"], counters["dead_lettered"]) == (399, 1)
    assert ids_of(creating, topic) == sorted(f"{kind}-{n}" for n in range(400) if n != 150)
    letters = [
        one
        for one in read_topic(creating.stack.kafka, f"{creating.prefix}dead-letters")
        if one.headers["replay-id"] == replay_id.encode()
    ]
    assert [one.key for one in letters] == [f"{kind}-150".encode()]
    assert b"too many for its topic" in (letters[0].headers["replay-error"] or b"")


def test_control_records_that_a_topic_refuses_fail_the_replay_by_name(
    creating: Cluster, topic: str
) -> None:
    replay_id = unique_name("r")
    creating.command(replay_id, rate=500, control_records=True, target={"topic": topic})
    wait_until(partial(read, creating, replay_id), A_MINUTE)
    alter_topic(creating.stack.kafka, topic, "cleanup.policy", "compact")  # after the plan
    session = creating.wait_for(replay_id, "failed", seconds=A_MINUTE)
    assert f"topic '{topic}' does not take control records: INVALID_RECORD" in session["error"]


# A replay that waits


def test_a_replay_that_waits_for_an_unknown_one_fails_by_name(creating: Cluster) -> None:
    replay_id, unknown = unique_name("r"), unique_name("unknown")
    creating.command(replay_id, after=[unknown])
    creating.wait_for(replay_id, "waiting")
    session = creating.wait_for(replay_id, "failed", seconds=2 * A_MINUTE)
    assert f"replay '{unknown}', which this one waits for, is not known" in session["error"]


# A topic that takes less than a session


def test_a_start_whose_session_its_topic_refuses_is_refused_by_name(creating: Cluster) -> None:
    status = f"{creating.prefix}status"
    alter_topic(creating.stack.kafka, status, "max.message.bytes", "6000")
    try:
        large = unique_name("r")
        creating.command(large, filter={"event_ids": [unique_name("e") for _ in range(1000)]})
        assert creating.run(unique_name("r"))["state"] == "completed"
        refused = creating.workers[0].get("/replays")["rejections"]
        (why,) = [one["rejected"] for one in refused if one["replay_id"] == large]
        assert why.startswith(f"topic {status!r} takes no record of")
        assert "max.message.bytes" in why
    finally:
        alter_topic(creating.stack.kafka, status, "max.message.bytes", "1048588")


# The end of the worker. These tests come last: they end the shared worker and the broker.


def test_sigterm_ends_a_worker_whose_topic_is_gone(creating: Cluster, topic: str) -> None:
    replay_id = unique_name("r")
    start_and_delete(creating, topic, replay_id)
    assert creating.workers[0].terminate() == 0
    creating.start_worker(0).wait_until_ready()
    creating.wait_for(replay_id, "failed", seconds=A_MINUTE)


def test_sigterm_ends_a_worker_whose_broker_is_away(creating: Cluster, topic: str) -> None:
    replay_id = unique_name("r")
    creating.command(replay_id, rate=200, target={"topic": topic})
    wait_until(partial(read, creating, replay_id), A_MINUTE)
    assert isinstance(creating.stack, EmbeddedServers)
    creating.stack.stop_broker()
    worker = creating.workers[0]

    def says_why() -> bool:
        status, answer = worker.request("GET", "/readyz")
        return status == 503 and "takes no record" in str(answer["missing"])

    wait_until(says_why, A_MINUTE)
    worker.terminate()  # raises if the worker does not end in time
    creating.stack.start_broker()
    creating.start_worker(0).wait_until_ready()
    creating.command(replay_id, "set-rate", rate=None)
    assert creating.wait_for(replay_id, "completed")["counters"]["published"] == EVENTS


# Checkpoints that the broker refuses


def test_a_pause_that_cannot_be_written_says_why_until_it_can(cluster: Cluster) -> None:
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "100"}
    cluster.seed(EVENTS)
    cluster.start_worker()
    cluster.command("r", rate=1)
    wait_until(partial(read, cluster, "r"), A_MINUTE)
    checkpoints = cluster.prefix + "checkpoints"
    # Room for a transaction's marker, and for no checkpoint.
    alter_topic(cluster.stack.kafka, checkpoints, "max.message.bytes", "100")
    cluster.command("r", "pause")

    def reason() -> str:
        session = cluster.session("r")
        return (session["reason"] or "") if session and session["state"] == "pausing" else ""

    wait_until(lambda: "shard 0 cannot be stopped, trying again: " in reason(), A_MINUTE)
    assert "MESSAGE_TOO_LARGE" in reason()
    alter_topic(cluster.stack.kafka, checkpoints, "max.message.bytes", "1000000")
    assert cluster.wait_for("r", "paused")["reason"] is None
    cluster.command("r", "set-rate", rate=None)
    cluster.command("r", "resume")
    cluster.wait_for("r", "completed")
    cluster.assert_exact("r")
