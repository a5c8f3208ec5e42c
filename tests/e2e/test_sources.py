"""A replay that goes on reads the events of its plan, or says why it cannot."""

from __future__ import annotations

import datetime as dt
import json
from functools import partial
from pathlib import Path
from typing import Any

import pymongo
import pytest
from command_line import CommandLine
from support import create_topics, read_topic, unique_name, wait_until
from workers import Cluster, Worker, events_of

from replay_app.demo.shop import seed_store

EVENTS = 1_500
A_MINUTE = 60.0


LEGACY_EVENTS = 60


@pytest.fixture
def legacy(shop: Cluster) -> str:
    """A collection beside the shop's events, whose documents have another form."""
    name = unique_name("legacy").replace("-", "_")
    time = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with pymongo.MongoClient[dict[str, Any]](shop.stack.mongo) as client:
        client[shop.name][name].insert_many(
            [
                {
                    "uuid": f"u-{number}",
                    "kind": "placed" if number % 2 else "paid",
                    "order": f"o-{number % 5}",
                    "at": (time + dt.timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "number": number,
                    "headers": {"schema": "order-2", "traceparent": "00-1-2-01"},
                }
                for number in range(LEGACY_EVENTS)
            ]
        )
    return name


def test_a_command_names_another_collection_and_its_mapping(
    shop: Cluster, worker: Worker, legacy: str, tmp_path: Path
) -> None:
    topic, replay_id = unique_name("to"), unique_name("legacy")
    create_topics(shop.stack.kafka, {topic: 1})
    replay_app = CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)
    source = ("--collection", legacy, "--mapping", "legacy", "--event-type", "paid")
    target = ("--to-topic", topic)

    plan = json.loads(replay_app("plan", *source, *target, "--json"))
    assert plan["source"]["REPLAY_MONGO_COLLECTION"] == legacy
    assert plan["source"]["REPLAY_FIELD_ID"] == "uuid"
    assert f"{shop.name}.{legacy}" in replay_app("plan", *source, *target)

    told = replay_app("start", *source, *target, "--replay-id", replay_id, "--wait")
    assert "completed" in told
    records = read_topic(shop.stack.kafka, [topic])
    numbers = [json.loads(record.value or b"")["number"] for record in records]
    assert numbers == list(range(0, LEGACY_EVENTS, 2))
    first = records[0]
    assert (first.key, first.headers["replay-delivery-id"]) == (b"o-0", f"{replay_id}:u-0".encode())
    assert first.headers["replay-original-time"] == b"2026-01-01T00:00:00.000Z"
    assert b"uuid" not in (first.value or b"")
    assert all(record.headers["schema"] == b"order-2" for record in records)
    assert not any("traceparent" in record.headers for record in records)

    assert f"{shop.name}.{legacy}, mapping legacy" in replay_app("status", replay_id)
    receipt = json.loads(replay_app("receipt", replay_id, "--json"))
    assert (receipt["mapping"], receipt["source"]["REPLAY_MONGO_COLLECTION"]) == ("legacy", legacy)
    assert "equal" in replay_app("verify", replay_id)
    lines = replay_app("events", *source, *target).splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == [
        f"u-{number}" for number in range(0, LEGACY_EVENTS, 2)
    ]


def test_a_null_becomes_a_tombstone_where_the_mapping_says_so(
    shop: Cluster, worker: Worker, tmp_path: Path
) -> None:
    kind, topic = unique_name("bodies"), unique_name("to")
    create_topics(shop.stack.kafka, {topic: 1})
    bodies = ["x", None, "", "y"]
    events = events_of(kind, len(bodies))
    shop.insert(one | {"body": body} for one, body in zip(events, bodies, strict=True))
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    replay_id = unique_name("bodies")
    session = shop.run(replay_id, **body, source={"mapping": "bodies"})
    assert (session["state"], session["receipt"]["bytes"]) == ("completed", 2)
    values = [record.value for record in read_topic(shop.stack.kafka, [topic])]
    assert values == [b"x", None, b"", b"y"]
    replay_app = CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)
    assert "equal" in replay_app("verify", replay_id)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            {"collection": "secrets"},
            "no worker may read '{name}.secrets': REPLAY_SOURCES is {name}",
        ),
        ({"database": "admin", "collection": "legacy_x"}, "no worker may read 'admin.legacy_x'"),
        (
            {"mapping": "other"},
            "there is no mapping 'other': the file of REPLAY_MAPPINGS has bodies, legacy",
        ),
        ({"collection": "legacy_none"}, "no collection '{name}.legacy_none': check the source"),
    ],
)
def test_a_source_that_cannot_be_read_fails_the_replay_with_the_remedy(
    shop: Cluster, source: dict[str, str], told: str
) -> None:
    session = shop.run(unique_name("refused"), source=source)
    assert session["state"] == "failed"
    assert told.format(name=shop.name) in session["error"]


def pause_in_mid_run(cluster: Cluster, *replay_ids: str) -> None:
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "100"}
    cluster.seed(EVENTS)
    cluster.start_worker()
    for name in replay_ids:
        # Counted before the first event: a count beside the replay begins again after a pause.
        cluster.command(name, rate=200, preflight="full")
    for name in replay_ids:
        wait_until(partial(cluster.has_read, name), A_MINUTE)
        cluster.command(name, "pause")
        cluster.wait_for(name, "paused")
        cluster.command(name, "set-rate", rate=None)


def test_a_pause_during_which_store_or_mapping_change_ends_with_both_values(
    cluster: Cluster,
) -> None:
    pause_in_mid_run(cluster, "store", "mapping", "untouched")
    other = f"{cluster.name}-other"
    changes = {
        "store": ("REPLAY_MONGO_DATABASE", cluster.name, other),
        "mapping": ("REPLAY_FIELD_KEY", "", "order_id"),
    }
    seed_store(cluster.stack.mongo, other, "events", EVENTS * 2)
    for name, (variable, before, now) in changes.items():
        cluster.workers[0].terminate()
        cluster.start_worker(0, **{variable: now}).wait_until_ready()
        for command in ("resume", "retry"):
            cluster.command(name, command)
            session = cluster.wait_for(name, "failed", attempt=1 if command == "resume" else 2)
            told = f"{variable} was {before!r}, and is {now!r} now"
            assert told in session["error"]
        assert 0 < session["counters"]["published"] < EVENTS
        assert len(cluster.published_by(name)) == session["counters"]["published"]
    cluster.workers[0].terminate()
    cluster.start_worker(0).wait_until_ready()
    for name in changes:
        cluster.command(name, "retry")
    cluster.command("untouched", "resume")
    for name in ("store", "mapping", "untouched"):
        assert cluster.wait_for(name, "completed")["counters"]["published"] == EVENTS
    cluster.assert_exact("store", "mapping", "untouched")


def test_a_collection_that_was_dropped_and_filled_again_is_another_one(cluster: Cluster) -> None:
    pause_in_mid_run(cluster, "r")
    with cluster.store() as events:
        events.drop()
    cluster.insert({"_id": number, "event_id": str(number)} for number in range(10))
    cluster.command("r", "resume")
    error = cluster.wait_for("r", "failed")["error"]
    assert "UUID of the collection was '" in error
    assert "start a new replay" in error


def test_the_receipt_says_that_the_store_has_lost_events_during_a_pause(cluster: Cluster) -> None:
    pause_in_mid_run(cluster, "r")
    lost = [event["_id"] for event in cluster.stored()[-500:]]
    with cluster.store() as events:
        events.delete_many({"_id": {"$in": lost}})
    cluster.command("r", "resume")
    session = cluster.wait_for("r", "completed")
    assert session["receipt"]["counters"]["published"] == EVENTS - 500
    (warning,) = [one for one in session["warnings"] if "the plan counted" in one]
    assert warning.startswith(
        "the plan counted 1,500 events, the replay has read 1,000, and the store now has 1,000: "
        "events were stored, changed or deleted during the replay"
    )
    cluster.assert_exact("r")
