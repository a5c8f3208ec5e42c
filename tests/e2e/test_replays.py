"""What users see of a replay: one worker, many replays side by side."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bson import Regex
from command_line import CommandLine
from oracle import assert_published_exactly, assert_same_json, event_id_of
from secret_values import SECRET_WORD
from support import Record, create_topics, read_topic, unique_name, wait_until
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker, events_of

JANUARY_5 = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
JANUARY_9 = dt.datetime(2026, 1, 9, tzinfo=dt.UTC)
MAIL = "ana@example.org"


@pytest.fixture
def topic(shop: Cluster) -> str:
    """A destination topic that only this test uses."""
    name = unique_name("to")
    create_topics(shop.stack.kafka, {name: 2})
    return name


@pytest.fixture
def kind() -> str:
    """An event type that only this test uses."""
    return unique_name("kind")


def read(shop: Cluster, topic: str) -> list[Record]:
    return read_topic(shop.stack.kafka, topic)


def everything(topic: str) -> dict[str, Any]:
    return {"target": {"topic": topic}, "filter": SHOP_HISTORY}


def stored(shop: Cluster, query: dict[str, Any]) -> list[dict[str, Any]]:
    return shop.stored({"$and": [{"service": {"$exists": True}}, query]})


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
    session = shop.run(replay_id, filter=SHOP_HISTORY | wanted, target={"topic": topic})
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


def test_events_go_to_their_original_topics_with_a_prefix(shop: Cluster) -> None:
    session = shop.run("whole", filter=SHOP_HISTORY)
    assert session["counters"]["published"] == SHOP_EVENTS
    records = [one for one in shop.published() if one.headers["replay-id"] == b"whole"]
    assert_published_exactly(records, stored(shop, {}), "whole", shop.target_prefix)


def test_a_type_may_have_its_own_topic(shop: Cluster, topic: str) -> None:
    wanted = {"event_types": ["order_placed"]}
    shop.run("typed", filter=wanted, target={"topics": {"order_placed": topic}})
    events = stored(shop, {"event_type": "order_placed"})
    assert_published_exactly(read(shop, topic), events, "typed", {"order_placed": topic})


def test_max_events_takes_the_first_ones(shop: Cluster, topic: str) -> None:
    session = shop.run("first", max_events=70, **everything(topic))
    assert session["matched"] == 70
    assert session["counters"] == {"read": 70, "published": 70, "skipped": 0, "dead_lettered": 0}
    kinds = {event["event_type"]: topic for event in stored(shop, {})}
    assert_published_exactly(read(shop, topic), stored(shop, {})[:70], "first", kinds)


def test_zero_matches_complete_at_once(shop: Cluster, topic: str) -> None:
    session = shop.run("none", filter={"event_types": ["no-such"]}, target={"topic": topic})
    assert (session["state"], session["matched"]) == ("completed", 0)
    assert set(session["receipt"]["counters"].values()) == {0}
    assert read(shop, topic) == []


def test_aggregate_order_runs_in_shards_and_keeps_each_aggregates_order(
    shop: Cluster, topic: str
) -> None:
    session = shop.run("sharded", ordering="aggregate", shards=4, **everything(topic))
    assert session["state"] == "completed", session["error"]
    # A random sample gives the cuts: there may be fewer ranges than asked for.
    assert len(session["shards"]) > 1
    records, events = read(shop, topic), stored(shop, {})
    kinds = {event["event_type"]: topic for event in events}
    assert_published_exactly(records, events, "sharded", kinds, "aggregate")
    versions: dict[bytes | None, int] = {}
    for record in sorted(records, key=lambda one: (one.partition, one.offset)):
        version = json.loads(record.value or b"")["version"]
        assert version == versions.get(record.key, 0) + 1
        versions[record.key] = version


def test_an_upper_bound_is_frozen_when_the_replay_is_planned(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 3))
    body: dict[str, Any] = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    before = dt.datetime.now(dt.UTC)
    shop.command("bounded", after=["gate-of-bounded"], **body)
    waiting = shop.wait_for("bounded", "waiting")
    planned = dt.datetime.now(dt.UTC)
    end = dt.datetime.fromisoformat(waiting["plan"]["end"])
    tolerance = dt.timedelta(seconds=5)  # the bound comes from the store's clock
    assert before - tolerance < end < planned + tolerance
    # An event of the same type, stored after the plan and before the first read.
    (later,) = events_of(f"{kind}-later", 1, event_type=kind, timestamp=end)
    shop.insert([later])
    shop.run("gate-of-bounded", max_events=1, dry_run=True, filter=SHOP_HISTORY)
    assert shop.wait_for("bounded", "completed")["counters"]["published"] == 3
    assert sorted(map(event_id_of, read(shop, topic))) == [f"{kind}-{n}" for n in range(3)]
    again = shop.run("bounded-later", **body)
    assert again["counters"]["published"] == 4  # so the event itself can be replayed


# Marks


def test_records_are_marked_and_bodies_are_not_changed(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 2))
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    shop.run("marked", name="rebuild", reason="view lost", **body)
    records = read(shop, topic)
    assert_published_exactly(records, shop.stored({"event_type": kind}), "marked", {kind: topic})
    for record in records:
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
    ids = [f"{kind}-0", f"{kind}-1"]
    assert sorted(map(event_id_of, read(shop, topic))) == ids
    unguarded = shop.run(unique_name("guard"), include_replayed=True, **body)
    assert unguarded["counters"] == {"read": 4, "published": 4, "skipped": 0, "dead_lettered": 0}
    of_both = [*ids, *ids, *(f"{one}-again" for one in ids)]
    assert sorted(map(event_id_of, read(shop, topic))) == sorted(of_both)


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
    published: list[str] = []
    for partition in range(2):
        records = [one for one in read(shop, topic) if one.partition == partition]
        begin, *events, end = sorted(records, key=lambda one: one.offset)
        for control, name in ((begin, b"begin"), (end, b"end")):
            assert (control.key, control.value) == (None, None)
            assert control.headers["replay-id"] == b"controlled"
            assert control.headers["replay-control"] == name
            assert control.headers["replay-partitions"] == b"2"
        assert not any("replay-control" in one.headers for one in events)
        published += map(event_id_of, events)
    assert sorted(published) == [f"{kind}-{number}" for number in range(6)]


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


def test_a_replay_is_followed_step_by_step_and_a_dead_worker_takes_no_step_more(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 12))
    replay_id = unique_name("steps")

    def ids() -> list[str]:
        found = map(event_id_of, read(shop, topic))
        return sorted(found, key=lambda one: (len(one), one))

    target = {"topic": topic}
    shop.command(replay_id, paused=True, filter={"event_types": [kind]}, target=target)
    session = shop.wait_for(replay_id, "paused")
    assert session["plan"] is None
    done = 0
    for events in (1, 3, 5):
        step = {"events": events, "published": done}
        for _ in range(2):  # a client may send a command twice
            shop.command(replay_id, "step", **step)
        if events == 5:
            shop.workers[0].kill()
            shop.start_worker(0).wait_until_ready()
        done += events
        session = shop.wait_for(
            replay_id,
            "paused",
            counters={"read": done, "published": done, "skipped": 0, "dead_lettered": 0},
        )
        assert ids() == [f"{kind}-{number}" for number in range(done)]
    shop.command(replay_id, "resume")
    session = shop.wait_for(replay_id, "completed")
    assert session["counters"]["published"] == 12
    assert ids() == [f"{kind}-{number}" for number in range(12)]


def _with_bad_ones(kind: str, *bad: int) -> list[dict[str, Any]]:
    events = events_of(kind, 8)
    for number in bad:
        events[number]["body"] = Regex("^x")
    return events


def test_retries_skip_one_event_and_then_bury_all_that_fail(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(_with_bad_ones(kind, 1, 3, 4, 6))
    replay_id = unique_name("leaving")
    session = shop.run(replay_id, filter={"event_types": [kind]}, target={"topic": topic})
    assert f"event '{kind}-1'" in session["error"]
    assert "retry with skip_events, or with on_error skip, dead-letter or park" in session["error"]
    # The third event is skipped only if it fails: it fails at once behind the first.
    shop.command(replay_id, "retry", skip_events=[f"{kind}-1", f"{kind}-3", f"{kind}-7"])
    session = shop.wait_for(replay_id, "failed", attempt=2)
    assert f"event '{kind}-4'" in session["error"]
    assert session["counters"] == {"read": 4, "published": 2, "skipped": 2, "dead_lettered": 0}
    assert session["skipped_events"] == [f"{kind}-1", f"{kind}-3", f"{kind}-7"]
    shop.command(replay_id, "retry", on_error="dead-letter")
    session = shop.wait_for(replay_id, "completed_with_errors")
    assert session["counters"] == {"read": 8, "published": 4, "skipped": 2, "dead_lettered": 2}
    assert (session["retry_on_error"], session["start"]["on_error"]) == ("dead-letter", "fail")
    failed = [f"{kind}-{number}" for number in (1, 3, 4, 6)]
    assert [one["event_id"] for one in session["receipt"]["failures"]] == failed
    ids = sorted(map(event_id_of, read(shop, topic)))
    assert ids == [f"{kind}-{number}" for number in (0, 2, 5, 7)]
    letters = [
        one.key
        for one in read(shop, f"{shop.prefix}dead-letters")
        if one.headers.get("replay-id") == replay_id.encode()
    ]
    assert len(letters) == 2
    assert set(letters) == {f"{kind}-4".encode(), f"{kind}-6".encode()}


def test_a_retry_counts_again_what_matches_up_to_the_same_bound(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(_with_a_bad_one(kind))
    replay_id = unique_name("recount")
    session = shop.run(
        replay_id,
        filter={"event_types": [kind]},
        target={"topic": topic},
        preflight="full",
    )
    assert (session["state"], session["matched"]) == ("failed", 5)
    with shop.store() as events:
        events.delete_one({"event_id": f"{kind}-2"})
    shop.command(replay_id, "retry")
    again = shop.wait_for(replay_id, "completed")
    assert (again["matched"], again["counters"]["published"]) == (4, 4)
    assert again["plan"]["by_type"] == {kind: 4}
    assert again["plan"]["end"] == session["plan"]["end"]
    changed = "the plan counted 5, then 4 events: the store has changed between two attempts"
    assert changed in again["warnings"]


def test_a_dry_run_in_which_no_event_can_be_replayed_fails(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert([{**event, "body": Regex("x")} for event in events_of(kind, 3)])
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}, "dry_run": True}
    session = shop.run(unique_name("dry"), **body)
    assert session["state"] == "failed"
    assert (
        f"none of the 3 events could be replayed. The first, event '{kind}-0'" in session["error"]
    )


def test_under_skip_bad_events_are_counted_and_named(shop: Cluster, topic: str, kind: str) -> None:
    shop.insert(_with_a_bad_one(kind))
    session = shop.run(
        "skipping", on_error="skip", filter={"event_types": [kind]}, target={"topic": topic}
    )
    assert session["state"] == "completed_with_errors"
    assert session["counters"] == {"read": 5, "published": 4, "skipped": 1, "dead_lettered": 0}
    assert [one["event_id"] for one in session["receipt"]["failures"]] == [f"{kind}-2"]
    ids = sorted(map(event_id_of, read(shop, topic)))
    assert ids == [f"{kind}-{number}" for number in (0, 1, 3, 4)]


@pytest.mark.parametrize("ordering", ["global", "aggregate"])
def test_a_redacted_replay_shows_its_fields_nowhere(
    shop: Cluster, topic: str, kind: str, ordering: str
) -> None:
    events = events_of(kind, 6)
    for number, one in enumerate(events):
        lines = [{"email": f"{MAIL}{number % 2}", "sku": "a"}]
        one |= {"customer": {"email": MAIL, "name": "Ana"}, "lines": lines, "odd": 1}
    events[4]["body"] = Regex("^x")  # fails
    shop.insert(events)
    replay_id = unique_name("redacted")
    session = shop.run(
        replay_id,
        filter={"event_types": [kind]},
        target={"topic": topic},
        ordering=ordering,
        on_error="dead-letter",
        redact={
            "customer.email": "mask",
            "customer.name": "drop",
            "lines.email": "hash",
            "odd": "null",
            "none.such": "mask",
        },
    )
    assert session["state"] == "completed_with_errors"
    assert session["counters"] == {"read": 6, "published": 5, "skipped": 0, "dead_lettered": 1}
    (warning,) = [one for one in session["warnings"] if one.startswith("redact")]
    assert "no matching event has the field 'none.such'" in warning
    found = {json.loads(one.value or b"")["event_id"]: one for one in read(shop, topic)}
    values = [json.loads(one.value or b"") for one in found.values()]
    assert all(value["customer"] == {"email": "***"} for value in values)
    assert all(value["odd"] is None for value in values)
    hashes = {value["event_id"]: value["lines"][0]["email"] for value in values}
    keyed = [
        hmac.new(SECRET_WORD.encode(), f"{MAIL}{number}".encode(), hashlib.sha256).hexdigest()
        for number in (0, 1)
    ]
    assert hashes == {f"{kind}-{number}": keyed[number % 2] for number in (0, 1, 2, 3, 5)}

    (letter,) = [
        one
        for one in read(shop, f"{shop.prefix}dead-letters")
        if one.headers.get("replay-id") == replay_id.encode()
    ]
    document = json.loads(letter.value or b"")
    assert document["customer"] == {"email": "***"}
    assert document["lines"] == [{"email": "***", "sku": "a"}]
    shown = json.dumps(session, default=str) + repr([*found.values(), letter])
    assert MAIL not in shown
    assert session["plan"]["source"]["REPLAY_REDACT_KEY"].startswith("hmac:")


def test_a_redaction_that_cannot_be_kept_fails_the_plan(shop: Cluster, kind: str) -> None:
    shop.insert(events_of(kind, 1))
    session = shop.run(
        unique_name("redacted"), filter={"event_types": [kind]}, redact={"aggregate_id": "hash"}
    )
    assert session["state"] == "failed"
    assert "redact: 'aggregate_id' cannot be redacted: the mapping reads" in session["error"]
    assert session["counters"]["published"] == 0


def test_dead_letters_hold_the_bad_events_with_the_reason(
    shop: Cluster, topic: str, kind: str, tmp_path: Path
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
        if one.headers.get("replay-id") == b"burying"  # other tests write records of strangers
    }
    assert len(letters) == 2
    ids = sorted(map(event_id_of, read(shop, topic)))
    assert ids == [f"{kind}-{number}" for number in (0, 1, 4)]
    odd, large = letters[f"{kind}-2".encode()], letters[f"{kind}-3".encode()]
    assert json.loads(odd.value or b"")["body"] == {
        "$regularExpression": {"pattern": "^x", "options": ""}
    }
    assert b"type Regex" in (odd.headers["replay-error"] or b"")
    assert large.value is None
    assert b"REPLAY_MAX_RECORD_BYTES" in (large.headers["replay-error"] or b"")
    replay_app = CommandLine(shop.environment, tmp_path)
    groups = json.loads(replay_app("dead-letters", "burying", "--json"))
    assert {(one["event_type"], one["count"], *one["event_ids"]) for one in groups} == {
        (kind, 1, f"{kind}-2"),
        ("(unreadable)", 1, f"{kind}-3"),
    }
    shown = replay_app("dead-letters", "burying")
    assert "type Regex" in shown
    assert f"{kind}-2" in shown
    assert sorted(replay_app("dead-letters", "burying", "--ids").split()) == [
        f"{kind}-2",
        f"{kind}-3",
    ]
    assert "has no dead letter of replay 'unknown'" in replay_app("dead-letters", "unknown")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"timestamp": "yesterday"}, "it has no date time"),
        ({"timestamp": None}, "it has no date time"),
        ({"aggregate_id": ["a"]}, "has no text form"),
        ({"topic": "no topic"}, "which is not a topic name"),
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
    session = shop.run("nowhere", filter=wanted, target={}, preflight="full")
    assert session["state"] == "failed"
    assert f"missing destination topics: {missing!r}" in session["error"]
    assert read(shop, topic) == []
    create_topics(shop.stack.kafka, {missing: 1})
    shop.command("nowhere", "retry")
    assert shop.wait_for("nowhere", "completed")["counters"]["published"] == 4
    ids = sorted(map(event_id_of, read(shop, topic)))
    assert ids == [f"{kind}-{number}" for number in range(3)]
    assert list(map(event_id_of, read(shop, missing))) == [f"{kind}-b-0"]


# Commands


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"command": "start", "replay_id": "ID"}', "filter: name at least one condition"),
        (b'{"command": "start", "replay_id": "ID", "filtr": {}}', "filtr: unknown field"),
        (b'{"command": "start", "replay_id": "ID", "filter": {"typ": 1}}', "typ: unknown field"),
        (b'{"command": "begin", "replay_id": "ID"}', "'begin' is not one of start"),
        (b'{"command": "start", "replay_id": "ID", "rate": -1}', "rate: Input should"),
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
    (answer,) = wait_until(lambda: _rejections(shop, replay_id), 30)
    assert why in answer["rejected"]
    assert shop.session(replay_id) is None


def test_rubbish_on_the_requests_topic_is_refused_and_stops_nothing(
    shop: Cluster, topic: str
) -> None:
    def count_refusals() -> float:
        return shop.workers[0].metrics()["replay_refused_commands_total", "malformed"]

    before = count_refusals()
    noise = (None, b"", b"\x00\xff", b"{", b"[]", b"5", b'"start"', b"{}", b"[" * 20_000)
    for value in noise:
        shop.produce(value, b"x")
    faults = {"event_types": [1] * 20_000}
    shop.produce(json.dumps({"command": "start", "replay_id": "x", "filter": faults}).encode())
    wrong_ids = ("a/b", "a b", "", "x" * 10_000)
    for replay_id in wrong_ids:
        shop.produce(json.dumps({"command": "start", "replay_id": replay_id}).encode())
    session = shop.run(unique_name("after"), max_events=5, **everything(topic))
    assert (session["state"], session["counters"]["published"]) == ("completed", 5)
    commands = len(noise) + 1 + len(wrong_ids)
    wait_until(lambda: count_refusals() - before >= commands, 30)
    assert count_refusals() - before == commands


def test_rubbish_on_the_internal_topics_stops_nothing(cluster: Cluster) -> None:
    cluster.seed(200)
    cluster.start_worker().wait_until_ready()
    for topic in ("work", "progress", "checkpoints", "status"):
        for partition in range(cluster.partitions):
            for rubbish in (None, b"{}", b"\x00\xff", b'{"token": 5}'):
                cluster.produce(rubbish, b"x", topic, partition)
    cluster.workers[0].kill()
    cluster.start_worker(0).wait_until_ready()
    cluster.run("after-rubbish")
    records, events = cluster.published(), cluster.stored()
    assert_published_exactly(records, events, "after-rubbish", cluster.target_prefix)


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
    shop.command("steered", rate=SHOP_EVENTS / 10, **everything(topic))
    wait_until(lambda: _published(shop, "steered"), 60)
    shop.command("steered", "pause", requested_by="ana")
    paused = shop.wait_for("steered", "paused")
    at_rest = len(read(shop, topic))
    assert at_rest == paused["counters"]["published"] < SHOP_EVENTS
    shop.command("steered", "pause")  # again: changes nothing
    shop.command("steered", "set-rate", rate=None)
    shop.wait_for("steered", "paused", rate=None)
    assert len(read(shop, topic)) == at_rest
    shop.command("steered", "resume")
    done = shop.wait_for("steered", "completed")
    assert done["counters"]["published"] == SHOP_EVENTS
    kinds = {event["event_type"]: topic for event in stored(shop, {})}
    assert_published_exactly(read(shop, topic), stored(shop, {}), "steered", kinds)


def test_a_cancelled_replay_publishes_nothing_more_and_cannot_be_resumed(
    shop: Cluster, topic: str
) -> None:
    shop.command("stopped", rate=SHOP_EVENTS / 15, control_records=True, **everything(topic))
    wait_until(lambda: _published(shop, "stopped"), 60)
    shop.command("stopped", "cancel")
    session = shop.wait_for("stopped", "cancelled")
    records = read(shop, topic)
    events = [one for one in records if one.value is not None]
    assert len(events) == session["receipt"]["counters"]["published"] < SHOP_EVENTS
    controls = [one.headers["replay-control"] for one in records if one.value is None]
    assert Counter(controls) == {b"begin": 2, b"cancelled": 2}
    shop.command("stopped", "resume")
    (answer,) = wait_until(lambda: _rejections(shop, "stopped"), 30)
    assert "it is cancelled" in answer["rejected"]
    assert len(read(shop, topic)) == len(records)


def test_a_replay_waits_for_those_before_it(shop: Cluster, topic: str) -> None:
    shop.command("second", after=["one"], max_events=5, **everything(topic))
    waiting = shop.wait_for("second", "waiting")
    wait_until(lambda: "'one' (unknown)" in ((shop.session("second") or {})["reason"] or ""), 30)
    assert waiting["counters"]["read"] == 0
    shop.command("one", max_events=3, **everything(topic))
    assert shop.wait_for("second", "completed")["counters"]["published"] == 5
    records = {
        replay_id: [one for one in read(shop, topic) if one.headers["replay-id"] == replay_id]
        for replay_id in (b"one", b"second")
    }
    events = stored(shop, {})
    kinds = {event["event_type"]: topic for event in events}
    assert_published_exactly(records[b"one"], events[:3], "one", kinds)
    assert_published_exactly(records[b"second"], events[:5], "second", kinds)
    for partition in {one.partition for one in records[b"one"]}:
        last = max(one.offset for one in records[b"one"] if one.partition == partition)
        first = min(one.offset for one in records[b"second"] if one.partition == partition)
        assert last < first
    assert max(one.timestamp_ms for one in records[b"one"]) <= min(
        one.timestamp_ms for one in records[b"second"]
    )


def test_many_small_replays_finish_beside_a_large_throttled_one(shop: Cluster, topic: str) -> None:
    shop.command("large", rate=SHOP_EVENTS / 300, **everything(topic))
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
    """The BSON types of the shop; the unit tests have the others."""
    shop.run("json", max_events=50, **everything(topic))
    events = {event["event_id"]: event for event in stored(shop, {})[:50]}
    records = read(shop, topic)
    assert len(records) == len(events) == 50
    for record in records:
        event = events[event_id_of(record)]
        assert_same_json(
            json.loads(record.value or b""), {k: v for k, v in event.items() if k != "_id"}
        )


def test_a_redrive_publishes_mended_events_in_order_and_only_once(
    shop: Cluster, worker: Worker, topic: str, kind: str, tmp_path: Path
) -> None:
    events = events_of(kind, 6)
    for number in (1, 3, 4):
        events[number]["body"] = Regex("^x")
    shop.insert(events)
    replay_id = unique_name("buried")
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    session = shop.run(replay_id, on_error="dead-letter", redact={"note": "null"}, **body)
    assert session["counters"]["dead_lettered"] == 3
    replay_app = CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)

    def mend(*numbers: int) -> None:
        ids = [f"{kind}-{number}" for number in numbers]
        with shop.store() as collection:
            collection.update_many({"event_id": {"$in": ids}}, {"$set": {"body": "x", "note": "y"}})

    def redrive(number: int, *options: str) -> dict[str, Any]:
        name = f"{replay_id}.redrive-{number}"
        told = json.loads(replay_app("redrive", replay_id, "--json", *options))
        assert told["replay_id"] == name
        return dict(shop.wait_for(name))

    mend(1, 4)
    dry = redrive(1, "--dry-run")
    assert (dry["counters"]["read"], dry["counters"]["published"]) == (3, 0)
    first = redrive(2)
    assert first["state"] == "completed_with_errors"
    assert (first["counters"]["published"], first["counters"]["dead_lettered"]) == (2, 1)
    assert (first["start"]["target"]["topic"], first["start"]["reason"]) == (
        topic,
        f"redrive of {replay_id}",
    )
    mend(3)
    second = redrive(3, "--reason", "type Regex", "--event-type", kind)
    assert second["start"]["filter"]["event_ids"] == [f"{kind}-3"]
    assert (second["state"], second["counters"]["published"]) == ("completed", 1)
    told = replay_app("redrive", replay_id, code=1)
    assert "of the dead letters of replay" in told
    assert "all are published by a redrive" in told
    assert "none fit" in replay_app("redrive", replay_id, "--event-type", "other", code=1)

    found = read(shop, topic)
    for name, numbers in (("redrive-2", [1, 4]), ("redrive-3", [3])):
        own = [one for one in found if one.headers["replay-id"] == f"{replay_id}.{name}".encode()]
        assert [event_id_of(one) for one in own] == [f"{kind}-{number}" for number in numbers]
    assert sorted(map(event_id_of, found)) == [f"{kind}-{number}" for number in range(6)]
    notes = {json.loads(one.value or b"").get("note", "-") for one in found}
    assert notes == {"-", None}


def test_a_discarded_dead_letter_is_not_listed_and_not_redriven(
    shop: Cluster, worker: Worker, topic: str, kind: str, tmp_path: Path
) -> None:
    events = events_of(kind, 3, body=Regex("^x"))
    shop.insert(events)
    replay_id = unique_name("buried")
    body = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    shop.run(replay_id, on_error="dead-letter", **body)
    replay_app = CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)
    one = ("--event-id", f"{kind}-1", "--reason", "a test order")
    assert "1 dead letters" in replay_app("discard", replay_id, *one)
    left = sorted(replay_app("dead-letters", replay_id, "--ids").split())
    assert left == [f"{kind}-0", f"{kind}-2"]
    (group,) = json.loads(replay_app("dead-letters", replay_id, "--discarded", "--json"))
    assert (group["event_ids"], group["discarded"]) == ([f"{kind}-1"], "a test order")
    assert "a test order" in replay_app("dead-letters", replay_id, "--discarded")
    assert "has no such dead letters" in replay_app("discard", replay_id, *one, code=1)
    with shop.store() as collection:
        collection.update_many({"event_type": kind}, {"$set": {"body": "x"}})
    told = json.loads(replay_app("redrive", replay_id, "--json"))
    assert sorted(told["event_ids"]) == left
    session = shop.wait_for(told["replay_id"], "completed")
    assert session["counters"]["published"] == 2
    replay_app("discard", replay_id, "--reason", "all done")
    assert "has no dead letter of replay" in replay_app("dead-letters", replay_id)


def test_a_redrive_waits_for_the_one_before(
    shop: Cluster, worker: Worker, topic: str, kind: str, tmp_path: Path
) -> None:
    events = events_of(kind, 1, body=Regex("^x"))
    shop.insert(events)
    replay_id = unique_name("buried")
    body: dict[str, Any] = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    shop.command(replay_id, on_error="dead-letter", paused=True, **body)
    shop.wait_for(replay_id, "paused")
    replay_app = CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)
    told = replay_app("redrive", replay_id, code=3)
    assert "is paused: a redrive comes after all that it publishes" in told
    shop.command(replay_id, "resume")
    shop.wait_for(replay_id, "completed_with_errors")
    shop.command(f"{replay_id}.redrive-1", paused=True, **body)
    shop.wait_for(f"{replay_id}.redrive-1", "paused")
    told = replay_app("redrive", replay_id, code=3)
    assert f"redrive {replay_id}.redrive-1 is paused: let it complete, or cancel it" in told
    shop.command(f"{replay_id}.redrive-1", "cancel")
    shop.wait_for(f"{replay_id}.redrive-1", "cancelled")
    assert "is requested for 1 of 1 dead letters" in replay_app("redrive", replay_id)
    shop.wait_for(f"{replay_id}.redrive-2", "completed_with_errors")
    with shop.store() as collection:
        collection.delete_many({"event_type": kind})
    replay_app("redrive", replay_id)
    shop.wait_for(f"{replay_id}.redrive-3", "completed")
    told = replay_app("redrive", replay_id, code=1)
    assert f"redrive {replay_id}.redrive-3 was to publish 1 events, and has published 0" in told


def test_a_replay_keeps_the_pace_of_its_events_over_a_pause_and_a_slower_rate(
    shop: Cluster, topic: str, kind: str
) -> None:
    events = events_of(kind, 6)
    first = events[0]["timestamp"]
    for one, seconds in zip(events, (0, 0, 4, 6, 10_000, 10_001), strict=True):
        one["timestamp"] = first + dt.timedelta(seconds=seconds)
    shop.insert(events)
    replay_id = unique_name("paced")
    where: dict[str, Any] = {"filter": {"event_types": [kind]}, "target": {"topic": topic}}
    shop.command(replay_id, **where, speed=2, max_gap_seconds=3, rate=1_000)
    wait_until(lambda: len(read(shop, topic)) >= 3, 60.0)
    shop.command(replay_id, "pause")
    shop.wait_for(replay_id, "paused")
    shop.command(replay_id, "resume")
    session = shop.wait_for(replay_id, "completed")
    assert session["counters"]["published"] == 6
    records = sorted(read(shop, topic), key=event_id_of)
    assert [event_id_of(one) for one in records] == [one["event_id"] for one in events]
    sent = [one.timestamp_ms / 1000 for one in records]
    gaps = [after - before for before, after in itertools.pairwise(sent)]
    # Never too early. A slice that was late by up to half a second may make up for that.
    for gap, least in zip(gaps, (0, 2, 1, 3, 0.5), strict=True):
        assert gap >= least - 0.6
