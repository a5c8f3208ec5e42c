"""Events that the driver cannot show as they are, through a worker that is paused and killed."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

from bson import DatetimeMS
from oracle import event_id_of
from store_proxy import rewritten_store
from support import create_topics, read_topic, unique_name, wait_until
from workers import Cluster

FIRST = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
YEAR_1000 = dt.datetime(1000, 1, 1, tzinfo=dt.UTC)
FAR_PAST = DatetimeMS(-(2**60))
EVENTS = 120
FAR = {0, 1}
TWICE = {30, 31, 32, 33, 34, 35, 60, 90, 119}
BAD_IDS = {50, 51}


def milliseconds(time: dt.datetime | DatetimeMS) -> bytes:
    number = int(time if isinstance(time, DatetimeMS) else DatetimeMS(time))
    return number.to_bytes(8, "little", signed=True)


def events_with_odd_ones() -> list[dict[str, Any]]:
    """Return events of which some become odd behind the proxy: `ANSWERS` says how."""
    return [
        {
            "_id": f"~~{number:03}" if number in BAD_IDS else f"i-{number:03}",
            "event_id": f"e-{number:03}",
            "event_type": "t",
            "aggregate_id": f"a-{number % 3}",
            "timestamp": YEAR_1000 if number in FAR else FIRST + dt.timedelta(seconds=number),
        }
        # The time that the driver reads: far behind the time by which the store sorts, or far
        # before.
        | ({"timestam2": FIRST + dt.timedelta(days=5 - number % 2 * 9)} if number in TWICE else {})
        for number in range(EVENTS)
    ]


ANSWERS = {
    b"\ttimestam2\0": b"\ttimestamp\0",
    milliseconds(YEAR_1000): milliseconds(FAR_PAST),
    b"~~": b"\xff\xfe",
}
REQUESTS = {milliseconds(FAR_PAST): milliseconds(YEAR_1000), b"\xff\xfe": b"~~"}


def test_odd_events_fail_by_name_and_nothing_around_them_is_lost_or_repeated(
    cluster: Cluster,
) -> None:
    topic = unique_name("to")
    create_topics(cluster.stack.kafka, {topic: 2})
    cluster.insert(events_with_odd_ones())
    with rewritten_store(cluster.stack.mongo, ANSWERS, REQUESTS) as uri:
        environment = {"REPLAY_MONGO": uri, "REPLAY_PAGE_EVENTS": "3"}
        cluster.start_worker(None, **environment).wait_until_ready()
        cluster.command("odd", on_error="dead-letter", rate=20, target={"topic": topic})
        for read in (1, 2, 31, 33, 51, 61, 91):
            wait_until(lambda read=read: read_by(cluster) >= read, 60)  # type: ignore[misc]
            cluster.command("odd", "pause")
            cluster.wait_for("odd", "paused")
            cluster.command("odd", "resume")
        cluster.workers[0].kill()
        cluster.start_worker(0, **environment).wait_until_ready()
        session = cluster.wait_for("odd", "completed_with_errors", "completed", "failed")
    odd = FAR | TWICE | BAD_IDS
    assert session["state"] == "completed_with_errors", session["error"]
    assert not [one for one in session["warnings"] if "the store now has" in one]
    assert session["counters"] == {
        "read": EVENTS,
        "published": EVENTS - len(odd),
        "skipped": 0,
        "dead_lettered": len(odd),
    }
    names = Counter(event_id_of(one) for one in read_topic(cluster.stack.kafka, topic))
    assert names == Counter(f"e-{number:03}" for number in range(EVENTS) if number not in odd)
    letters = read_topic(cluster.stack.kafka, f"{cluster.prefix}dead-letters")
    assert Counter(one.key for one in letters) == Counter(f"e-{n:03}".encode() for n in odd)
    reasons = {one.key: one.headers["replay-error"] or b"" for one in letters}
    assert b"'timestamp' 2 times" in reasons[b"e-030"]
    assert b"it has no date time" in reasons[b"e-000"]
    assert b"it is not valid BSON" in reasons[b"e-050"]


def test_under_fail_an_odd_event_stops_the_replay_by_name_and_a_retry_goes_on(
    cluster: Cluster,
) -> None:
    topic = unique_name("to")
    create_topics(cluster.stack.kafka, {topic: 1})
    cluster.insert(events_with_odd_ones()[20:40])
    with rewritten_store(cluster.stack.mongo, ANSWERS, REQUESTS) as uri:
        cluster.start_worker(REPLAY_MONGO=uri, REPLAY_PAGE_EVENTS="3").wait_until_ready()
        session = cluster.run("odd", target={"topic": topic})
        assert session["state"] == "failed"
        assert "event 'e-030': it has the field 'timestamp' 2 times" in session["error"]
        with cluster.store() as events:
            events.update_many({}, {"$unset": {"timestam2": 1}})
        cluster.command("odd", "retry")
        assert cluster.wait_for("odd", "completed")["counters"]["published"] == 20
    found = [event_id_of(one) for one in read_topic(cluster.stack.kafka, topic)]
    assert found == [f"e-{number:03}" for number in range(20, 40)]


def read_by(cluster: Cluster) -> int:
    session = cluster.session("odd")
    return int(session["counters"]["read"]) if session else 0
