"""Sources in which several events have the same time and ``_id``: views and time series."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from functools import partial
from typing import Any

import pymongo
import pytest
from bson import Regex
from support import create_topics, read_topic, unique_name, wait_until
from workers import Cluster

JANUARY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TIED = 5
"""Events with the same time and ``_id``."""
TIES = 40
EVENTS = TIED * TIES


def unwound_view(database: Any) -> None:
    """Make a view of one event for each line of an order."""
    database.orders.insert_many(
        {
            "_id": number,
            "timestamp": JANUARY + dt.timedelta(seconds=number),
            "event_type": "line",
            "lines": [{"id": f"{number}-{line}"} for line in range(TIED)],
        }
        for number in range(TIES)
    )
    database.create_collection("events", viewOn="orders", pipeline=[{"$unwind": "$lines"}])


def time_series(database: Any) -> None:
    """Make a time series: nothing keeps its ``_id`` unique."""
    database.create_collection("events", timeseries={"timeField": "timestamp"})
    database.events.insert_many(
        {
            "_id": number,
            "timestamp": JANUARY + dt.timedelta(seconds=number),
            "event_type": "line",
            "lines": {"id": f"{number}-{line}"},
        }
        for line in range(TIED)
        for number in range(TIES)
    )


SMALL = {"REPLAY_SLICE_EVENTS": "7", "REPLAY_PAGE_EVENTS": "4", "REPLAY_FIELD_ID": "lines.id"}
"""Settings under which neither a slice nor a page ends with a whole tie by chance."""


@pytest.fixture
def topic(cluster: Cluster) -> str:
    name = unique_name("to")
    create_topics(cluster.stack.kafka, {name: 2})
    return name


def published_ids(cluster: Cluster, topic: str) -> Counter[str]:
    records = read_topic(cluster.stack.kafka, topic)
    return Counter((one.headers["replay-delivery-id"] or b"").decode() for one in records)


EVERY_LINE = {f"tied:{n}-{line}": 1 for n in range(TIES) for line in range(TIED)}


@pytest.mark.parametrize("make", [unwound_view, time_series])
def test_tied_events_are_published_once_over_pauses_and_a_crash(
    cluster: Cluster, topic: str, make: Any
) -> None:
    with pymongo.MongoClient[dict[str, Any]](cluster.stack.mongo) as client:
        make(client[cluster.name])
    cluster.start_worker(None, **SMALL).wait_until_ready()

    def published() -> int:
        session = cluster.session("tied")
        return session["counters"]["published"] if session else 0

    def has_published_more_than(events: int) -> bool:
        return published() > events

    cluster.command("tied", rate=20, target={"topic": topic})
    for pause in range(4):
        reached = published()
        wait_until(partial(has_published_more_than, reached), 60)
        if pause == 2:
            cluster.workers[0].kill()
            cluster.start_worker(0, **SMALL).wait_until_ready()
        cluster.command("tied", "pause")
        at_rest = cluster.wait_for("tied", "paused")["counters"]["published"]
        assert at_rest % TIED == 0
        assert at_rest < EVENTS
        cluster.command("tied", "resume")
        cluster.wait_for("tied", "running")
    cluster.command("tied", "set-rate", rate=None)
    session = cluster.wait_for("tied")
    assert (session["state"], session["matched"]) == ("completed", EVENTS), session["error"]
    assert published_ids(cluster, topic) == EVERY_LINE


def test_a_bad_event_holds_back_the_events_that_tie_with_it(cluster: Cluster, topic: str) -> None:
    with pymongo.MongoClient[dict[str, Any]](cluster.stack.mongo) as client:
        orders = client[cluster.name]["orders"]
        unwound_view(client[cluster.name])
        orders.update_one({"_id": 20}, {"$set": {"lines.3.note": Regex("^x")}})
        cluster.start_worker(None, **SMALL).wait_until_ready()
        session = cluster.run("tied", target={"topic": topic})
        assert session["state"] == "failed"
        assert "event '20-3'" in session["error"]
        assert session["counters"]["published"] == 20 * TIED
        orders.update_one({"_id": 20}, {"$set": {"lines.3.note": "mended"}})
    cluster.command("tied", "retry")
    assert cluster.wait_for("tied", "completed")["counters"]["published"] == EVENTS
    assert published_ids(cluster, topic) == EVERY_LINE
    assert cluster.run("first", max_events=7, target={"topic": topic})["state"] == "completed"
    few = published_ids(cluster, topic) - Counter(EVERY_LINE)
    assert (len(few), few.total()) == (7, 7)
