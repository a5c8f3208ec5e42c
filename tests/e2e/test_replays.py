"""What a replay does, as its users see it: one worker, many replays side by side."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from bson import Regex
from oracle import assert_is_replay_of, assert_published_exactly, assert_same_json, event_id_of
from support import Record, create_topics, read_topic, unique_name, wait_until
from workers import Cluster

from replay_app.demo.stack import Stack

EVENTS = 3_000
JANUARY_5 = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
JANUARY_9 = dt.datetime(2026, 1, 9, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A shop's history and a worker that all tests of this module share."""
    cluster = Cluster(stack, tmp_path_factory.mktemp("shop"))
    # Within it, so that a whole replay of the shop does not meet the odd events of some tests.
    cluster.environment["REPLAY_MAX_RECORD_BYTES"] = "100000"
    cluster.seed(EVENTS)
    cluster.start_worker().wait_until_ready()
    yield cluster
    cluster.close()


@pytest.fixture
def topic(shop: Cluster) -> str:
    """A destination of this test alone."""
    name = unique_name("to")
    create_topics(shop.stack.kafka, {name: 2})
    return name


@pytest.fixture
def kind() -> str:
    """An event type of this test alone."""
    return unique_name("kind")


def read(shop: Cluster, topic: str) -> list[Record]:
    return read_topic(shop.stack.kafka, topic)


JANUARY = {"start": "2026-01-01T00:00:00Z", "end": "2026-02-01T00:00:00Z"}
"""The shop's whole history, without what single tests insert."""


def everything(topic: str) -> dict[str, Any]:
    return {"target": {"topic": topic}, "filter": JANUARY}


def stored(shop: Cluster, query: dict[str, Any]) -> list[dict[str, Any]]:
    return shop.stored({"$and": [{"service": {"$exists": True}}, query]})


def events_of(kind: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Return good events of one type, a second apart, in February."""
    first = dt.datetime(2026, 2, 1, tzinfo=dt.UTC)
    return [
        {
            "event_id": f"{kind}-{number}",
            "event_type": kind,
            "aggregate_id": f"{kind}-a{number % 3}",
            "timestamp": first + dt.timedelta(seconds=number),
            **fields,
        }
        for number in range(count)
    ]


# Filters and targets


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        ({}, {}),
        (
            {"start": "2026-01-05T00:00:00Z", "end": "2026-01-09T01:00:00+01:00"},
            {"timestamp": {"$gte": JANUARY_5, "$lt": JANUARY_9}},
        ),
        (
            {"event_types": ["order_placed", "order_paid"]},
            {"event_type": {"$in": ["order_placed", "order_paid"]}},
        ),
        (
            {"exclude_event_types": ["order_placed", "order_paid"]},
            {"event_type": {"$nin": ["order_placed", "order_paid"]}},
        ),
        (
            {"aggregate_ids": ["o-0000001", "u-00007", "none"]},
            {"aggregate_id": {"$in": ["o-0000001", "u-00007"]}},
        ),
        (
            {"fields": {"metadata.user_id": "u-00007", "service": "orders"}},
            {"metadata.user_id": "u-00007", "service": "orders"},
        ),
        (
            {"event_types": ["order_placed"], "end": "2026-01-05T00:00:00Z"},
            {"event_type": "order_placed", "timestamp": {"$lt": JANUARY_5}},
        ),
    ],
)
def test_exactly_the_matching_events_are_published_in_order(
    shop: Cluster, topic: str, wanted: dict[str, Any], query: dict[str, Any]
) -> None:
    replay_id = unique_name("filter")
    session = shop.run(replay_id, filter=JANUARY | wanted, target={"topic": topic})
    assert session["state"] == "completed"
    events = stored(shop, query)
    assert 0 < len(events) == session["matched"] == session["counters"]["published"]
    kinds = dict.fromkeys({event["event_type"] for event in events}, topic)
    assert_published_exactly(read(shop, topic), events, replay_id, kinds)
    assert session["plan"]["by_type"] == session["receipt"]["by_type"]
    assert session["receipt"]["by_topic"] == {topic: len(events)}


def test_event_ids_pick_single_events(shop: Cluster, topic: str) -> None:
    events = stored(shop, {})[10:13]
    wanted = {"event_ids": [event["event_id"] for event in events]}
    session = shop.run("ids", filter=wanted, target={"topic": topic})
    assert (session["state"], session["matched"], session["error"]) == ("completed", 3, None)
    assert {event_id_of(one) for one in read(shop, topic)} == {e["event_id"] for e in events}


def test_events_go_to_their_original_topics_behind_a_prefix(shop: Cluster) -> None:
    session = shop.run("whole", filter=JANUARY)
    assert session["counters"]["published"] == EVENTS
    records = [one for one in shop.published() if one.headers["replay-id"] == b"whole"]
    assert_published_exactly(records, stored(shop, {}), "whole", shop.target_prefix)


def test_a_type_may_have_a_topic_of_its_own(shop: Cluster, topic: str) -> None:
    wanted = {"event_types": ["order_placed"]}
    shop.run("typed", filter=wanted, target={"topics": {"order_placed": topic}})
    assert len(read(shop, topic)) == len(stored(shop, {"event_type": "order_placed"}))


def test_max_events_takes_the_first_ones(shop: Cluster, topic: str) -> None:
    session = shop.run("first", max_events=70, **everything(topic))
    assert session["matched"] == 70
    assert session["counters"] == {"read": 70, "published": 70, "skipped": 0, "dead_lettered": 0}
    kinds = {event["event_type"]: topic for event in stored(shop, {})}
    assert_published_exactly(read(shop, topic), stored(shop, {})[:70], "first", kinds)


def test_zero_matches_complete_at_once(shop: Cluster, topic: str) -> None:
    session = shop.run("none", filter={"event_types": ["no-such"]}, target={"topic": topic})
    assert (session["state"], session["matched"]) == ("completed", 0)
    assert session["receipt"]["counters"]["published"] == 0


def test_aggregate_order_runs_in_shards_and_keeps_each_aggregates_order(
    shop: Cluster, topic: str
) -> None:
    session = shop.run("sharded", ordering="aggregate", shards=4, **everything(topic))
    assert session["state"] == "completed", session["error"]
    assert len(session["shards"]) >= 4
    ids = {event["event_id"] for event in stored(shop, {})}
    records = read(shop, topic)
    assert sorted(map(event_id_of, records)) == sorted(ids)
    versions: dict[bytes | None, int] = {}
    for record in sorted(records, key=lambda one: (one.partition, one.offset)):
        version = json.loads(record.value or b"")["version"]
        assert version == versions.get(record.key, 0) + 1
        versions[record.key] = version


def test_an_upper_bound_is_frozen_when_the_replay_is_planned(
    shop: Cluster, topic: str, kind: str
) -> None:
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    session = shop.run("bounded", filter={"event_types": [kind]}, target={"topic": topic})
    end = dt.datetime.fromisoformat(session["plan"]["end"])
    assert before < end < dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)


# Marks


def test_records_are_marked_and_bodies_are_not_changed(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 2))
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    shop.run("marked", name="rebuild", reason="view lost", **body)
    for record in read(shop, topic):
        (event,) = [
            e for e in shop.stored({"event_type": kind}) if e["event_id"] == event_id_of(record)
        ]
        assert_is_replay_of(record, event, "marked", {kind: topic})
        assert record.headers["replay-attempt"] == b"1"
        assert record.headers["replay-name"] == b"rebuild"
        assert record.headers["replay-reason"] == b"view lost"
        assert not {"replay", "headers"} & json.loads(record.value or b"").keys()


def test_events_that_are_themselves_replays_are_left_out_unless_asked_for(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 2))
    shop.insert(
        [
            {**one, "event_id": f"{one['event_id']}-again", "headers": {"replay-id": "x"}}
            for one in events_of(kind, 2)
        ]
    )
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    guarded = shop.run(unique_name("guard"), **body)
    assert guarded["state"] == "completed"
    assert guarded["counters"] == {"read": 4, "published": 2, "skipped": 2, "dead_lettered": 0}
    asked = shop.run(unique_name("guard"), include_replayed=True, **body)
    assert asked["counters"]["published"] == 4


def test_control_records_stand_at_both_ends_of_every_partition(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 6))
    shop.run(
        "controlled",
        control_records=True,
        filter={"event_types": [kind]},
        target={"topic": topic},
    )
    for partition in range(2):
        records = [one for one in read(shop, topic) if one.partition == partition]
        controls = [one.headers.get("replay-control") for one in records]
        assert (controls[0], controls[-1]) == (b"begin", b"end")
        assert set(controls[1:-1]) <= {None}
        assert (records[0].key, records[0].value) == (None, None)


def test_a_dry_run_reads_maps_and_counts_but_publishes_nothing(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(
        [*events_of(kind, 3), {**events_of(kind, 1)[0], "event_id": "bad", "body": Regex("x")}]
    )
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}, "dry_run": True}
    session = shop.run("dry", **body)
    assert session["state"] == "completed_with_errors"
    assert session["counters"] == {"read": 4, "published": 0, "skipped": 1, "dead_lettered": 0}
    assert session["receipt"]["by_type"] == {kind: 3}
    (failure,) = session["receipt"]["failures"]
    assert failure["event_id"] == "bad"
    assert "type Regex" in failure["reason"]
    assert read(shop, topic) == []


# Bad events


def _with_a_bad_one(kind: str) -> list[dict[str, Any]]:
    events = events_of(kind, 5)
    events[2]["body"] = Regex("^x")
    return events


def test_a_bad_event_fails_the_replay_before_it_and_a_retry_goes_on(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(_with_a_bad_one(kind))
    session = shop.run("failing", filter={"event_types": [kind]}, target={"topic": topic})
    assert session["state"] == "failed"
    assert f"event '{kind}-2'" in session["error"]
    assert "type Regex" in session["error"]
    assert sorted(event_id_of(one) for one in read(shop, topic)) == [f"{kind}-0", f"{kind}-1"]
    with shop.store() as events:
        events.update_one({"event_id": f"{kind}-2"}, {"$set": {"body": "mended"}})
    shop.command("failing", "retry")
    session = shop.wait_for("failing", "completed")
    assert (session["attempt"], session["counters"]["published"]) == (2, 5)
    assert sorted(event_id_of(one) for one in read(shop, topic)) == [
        f"{kind}-{number}" for number in range(5)
    ]


def test_under_skip_bad_events_are_counted_and_named(shop: Cluster, topic: str, kind: str) -> None:
    shop.insert(_with_a_bad_one(kind))
    session = shop.run(
        "skipping", on_error="skip", filter={"event_types": [kind]}, target={"topic": topic}
    )
    assert session["state"] == "completed_with_errors"
    assert session["counters"] == {"read": 5, "published": 4, "skipped": 1, "dead_lettered": 0}
    assert [one["event_id"] for one in session["receipt"]["failures"]] == [f"{kind}-2"]
    assert len(read(shop, topic)) == 4


def test_dead_letters_hold_the_bad_events_with_the_reason(
    shop: Cluster, topic: str, kind: str
) -> None:
    events = _with_a_bad_one(kind)
    events[3]["body"] = "x" * 200_000
    shop.insert(events)
    session = shop.run(
        "burying", on_error="dead-letter", filter={"event_types": [kind]}, target={"topic": topic}
    )
    assert session["state"] == "completed_with_errors"
    assert session["counters"] == {"read": 5, "published": 3, "skipped": 0, "dead_lettered": 2}
    letters = {
        one.key: one
        for one in read(shop, f"{shop.prefix}dead-letters")
        if one.headers["replay-id"] == b"burying"
    }
    odd, large = letters[f"{kind}-2".encode()], letters[f"{kind}-3".encode()]
    assert json.loads(odd.value or b"")["body"] == {
        "$regularExpression": {"pattern": "^x", "options": ""}
    }
    assert b"type Regex" in (odd.headers["replay-error"] or b"")
    assert large.value is None
    assert b"REPLAY_MAX_RECORD_BYTES" in (large.headers["replay-error"] or b"")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"timestamp": "yesterday"}, "it has no date time"),
        ({"timestamp": None}, "it has no date time"),
        ({"aggregate_id": ["a"]}, "has no text form"),
        ({"topic": "no topic"}, "which is no topic name"),
    ],
)
def test_each_kind_of_bad_event_is_named(
    shop: Cluster, kind: str, fields: dict[str, Any], reason: str
) -> None:
    create_topics(shop.stack.kafka, {kind: 1})
    shop.insert([{**event, **fields} for event in events_of(kind, 1)])
    session = shop.run(unique_name("bad"), filter={"event_types": [kind]}, target={})
    assert session["state"] == "failed"
    assert f"event '{kind}-0'" in session["error"]
    assert reason in session["error"]


def test_an_event_without_a_type_is_named(shop: Cluster, topic: str, kind: str) -> None:
    shop.insert([{**event, "event_type": None} for event in events_of(kind, 1)])
    session = shop.run(
        unique_name("bad"), filter={"event_ids": [f"{kind}-0"]}, target={"topic": topic}
    )
    assert session["state"] == "failed"
    assert "it has no type" in session["error"]


def test_a_missing_destination_topic_is_named_before_anything_is_published(
    shop: Cluster, topic: str, kind: str
) -> None:
    missing = unique_name("not-there")
    shop.insert([*events_of(kind, 3, topic=topic), *events_of(f"{kind}-b", 1, topic=missing)])
    wanted = {"event_types": [kind, f"{kind}-b"]}
    session = shop.run("nowhere", filter=wanted, target={})
    assert session["state"] == "failed"
    assert f"missing destination topics: {missing!r}" in session["error"]
    assert read(shop, topic) == []
    assert read_topic(shop.stack.kafka, topic) == []
    create_topics(shop.stack.kafka, {missing: 1})
    shop.command("nowhere", "retry")
    assert shop.wait_for("nowhere", "completed")["counters"]["published"] == 4


# Commands


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"command": "start", "replay_id": "ID", "filtr": {}}', "filtr: unknown field"),
        (b'{"command": "start", "replay_id": "ID", "filter": {"typ": 1}}', "typ: unknown field"),
        (b'{"command": "begin", "replay_id": "ID"}', "'begin' is not one of start"),
        (b'{"command": "start", "replay_id": "ID", "rate": -1}', "rate"),
        (b'{"command": "start", "replay_id": "ID", "rate": 1, "rate": 2}', "rate: given more"),
        (
            b'{"command": "start", "replay_id": "ID", "filter": {"start": "2026-01-01T00:00:00"}}',
            "timezone",
        ),
        (
            b'{"command": "start", "replay_id": "ID", "filter": {"fields": {"$where": "1"}}}',
            "operators are not allowed",
        ),
        (b'{"command": "cancel", "replay_id": "ID"}', "there is no replay"),
        (b'{"replay_id": "ID"}', "command: missing"),
    ],
)
def test_a_bad_command_is_answered_on_the_status_topic(
    shop: Cluster, body: bytes, why: str
) -> None:
    replay_id = unique_name("bad")
    shop.produce(body.replace(b"ID", replay_id.encode()), replay_id.encode())
    answer = wait_until(lambda: _rejections(shop, replay_id), 30)
    assert why in answer[0]["rejected"]
    assert shop.session(replay_id) is None


def test_rubbish_on_the_requests_topic_stops_nothing(shop: Cluster, topic: str) -> None:
    for rubbish in (None, b"", b"\x00\xff", b"{", b"[]", b"5", b'"start"', b"{}", b"[" * 20_000):
        shop.produce(rubbish, b"x")
    faults = {"event_types": [1] * 20_000}
    shop.produce(json.dumps({"command": "start", "replay_id": "x", "filter": faults}).encode())
    for replay_id in ("a/b", "a b", "", "x" * 10_000):
        shop.produce(json.dumps({"command": "start", "replay_id": replay_id}).encode())
    session = shop.run(unique_name("after"), max_events=5, **everything(topic))
    assert session["state"] == "completed"


def test_rubbish_on_the_internal_topics_stops_nothing(cluster: Cluster) -> None:
    cluster.seed(200)
    cluster.start_worker().wait_until_ready()
    for topic in ("work", "progress", "checkpoints", "status"):
        for partition in range(int(cluster.environment["REPLAY_PARTITIONS"])):
            for rubbish in (None, b"{}", b"\x00\xff", b'{"token": 5}'):
                cluster.produce(rubbish, b"x", topic, partition)
    cluster.workers[0].kill()
    cluster.start_worker(0).wait_until_ready()
    session = cluster.run("after-rubbish")
    assert session["counters"]["published"] == 200


def test_the_same_body_again_changes_nothing_and_another_one_is_refused(
    shop: Cluster, topic: str
) -> None:
    body = {"max_events": 5, **everything(topic)}
    first = shop.run("same", **body)
    shop.command("same", **body)
    shop.command("same", max_events=6, **everything(topic))
    (answer,) = wait_until(lambda: _rejections(shop, "same"), 30)
    assert "exists with another body" in answer["rejected"]
    assert shop.session("same") == first
    assert len(read(shop, topic)) == 5


# Control


def test_pause_resume_rate_and_cancel_take_effect_within_a_slice(shop: Cluster, topic: str) -> None:
    shop.command("steered", rate=300, **everything(topic))
    wait_until(lambda: _published(shop, "steered"), 60)
    shop.command("steered", "pause", requested_by="ana")
    paused = shop.wait_for("steered", "paused")
    at_rest = len(read(shop, topic))
    assert at_rest == paused["counters"]["published"] < EVENTS
    shop.command("steered", "pause")  # again: nothing
    shop.command("steered", "set-rate", rate=None)
    shop.wait_for("steered", "paused", rate=None)
    assert len(read(shop, topic)) == at_rest
    shop.command("steered", "resume")
    done = shop.wait_for("steered", "completed")
    assert done["counters"]["published"] == EVENTS
    kinds = {event["event_type"]: topic for event in stored(shop, {})}
    assert_published_exactly(read(shop, topic), stored(shop, {}), "steered", kinds)


def test_a_cancelled_replay_publishes_nothing_more_and_cannot_be_resumed(
    shop: Cluster, topic: str
) -> None:
    shop.command("stopped", rate=200, control_records=True, **everything(topic))
    wait_until(lambda: _published(shop, "stopped"), 60)
    shop.command("stopped", "cancel")
    session = shop.wait_for("stopped", "cancelled")
    records = read(shop, topic)
    events = [one for one in records if one.value is not None]
    assert len(events) == session["receipt"]["counters"]["published"] < EVENTS
    controls = [one.headers["replay-control"] for one in records if one.value is None]
    assert Counter(controls) == {b"begin": 2, b"cancelled": 2}
    shop.command("stopped", "resume")
    answer = wait_until(lambda: _rejections(shop, "stopped"), 30)
    assert "it is cancelled" in answer[0]["rejected"]
    assert len(read(shop, topic)) == len(records)


def test_a_replay_waits_for_those_before_it(shop: Cluster, topic: str) -> None:
    shop.command("second", after=["one"], max_events=5, **everything(topic))
    waiting = shop.wait_for("second", "waiting")
    wait_until(lambda: "'one' (unknown)" in ((shop.session("second") or {})["reason"] or ""), 30)
    assert waiting["counters"]["read"] == 0
    shop.command("one", max_events=3, **everything(topic))
    assert shop.wait_for("second", "completed")["counters"]["published"] == 5
    order = [one.headers["replay-id"] for one in read(shop, topic)]
    assert order.count(b"one") == 3


def test_many_small_replays_finish_beside_a_large_throttled_one(shop: Cluster, topic: str) -> None:
    shop.command("large", rate=50, **everything(topic))
    names = [f"small-{number}" for number in range(20)]
    for name in names:
        shop.command(name, max_events=10, **everything(topic))
    for name in names:
        assert shop.wait_for(name, "completed")["counters"]["published"] == 10
    assert (shop.session("large") or {})["state"] == "running"
    shop.command("large", "cancel")
    shop.wait_for("large", "cancelled")


def _published(shop: Cluster, replay_id: str) -> int:
    session = shop.session(replay_id)
    return int(session["counters"]["published"]) if session else 0


def _rejections(shop: Cluster, replay_id: str) -> list[dict[str, Any]]:
    found = shop.workers[0].get("/replays")["rejections"]
    return [one for one in found if one["replay_id"] == replay_id]


def test_json_of_the_store_and_of_the_topic_are_the_same(shop: Cluster, topic: str) -> None:
    """Every BSON type of the shop survives; see the unit tests for the rest of the table."""
    shop.run("json", max_events=50, **everything(topic))
    events = {event["event_id"]: event for event in stored(shop, {})[:50]}
    for record in read(shop, topic):
        event = events[event_id_of(record)]
        assert_same_json(
            json.loads(record.value or b""), {k: v for k, v in event.items() if k != "_id"}
        )
