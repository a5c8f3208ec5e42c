"""Replays to topics with their own limits, and to topics that change in mid-run."""

from __future__ import annotations

import datetime as dt

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]
from oracle import event_id_of
from support import create_topics, read_topic, unique_name, wait_until
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster

SECONDS = 30.0


def test_batches_and_events_follow_the_limit_of_the_topic(shop: Cluster) -> None:
    topic, kind = unique_name("small"), unique_name("kind")
    create_topics(shop.stack.kafka, {topic: 2}, {"max.message.bytes": "5000"})
    session = shop.run(topic, filter=SHOP_HISTORY, target={"topic": topic})
    assert (session["state"], session["error"]) == ("completed", None)
    assert session["counters"]["published"] == SHOP_EVENTS
    assert len(read_topic(shop.stack.kafka, topic)) == SHOP_EVENTS
    large = {
        "_id": f"{kind}-1",
        "event_type": kind,
        "aggregate_id": "a",
        "timestamp": dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
        "body": "".join(map(str, range(5_000))),  # snappy makes less than half of it
    }
    shop.insert([large])
    session = shop.run(kind, filter={"event_types": [kind]}, target={"topic": topic})
    assert session["state"] == "failed"
    assert f"event '{kind}-1': as a batch it has" in session["error"]
    assert (
        f"too many for its topic '{topic}': raise the topic's max.message.bytes=5000"
        in (session["error"])
    )


def test_a_topic_that_grows_in_mid_run_is_a_warning_told_once(shop: Cluster) -> None:
    topic = unique_name("grows")
    create_topics(shop.stack.kafka, {topic: 2})
    shop.command(topic, rate=SHOP_EVENTS / 300, filter=SHOP_HISTORY, target={"topic": topic})
    shop.wait_for(topic, "running")
    wait_until(lambda: shop.session(topic)["counters"]["read"], 60)
    admin = AdminClient({"bootstrap.servers": shop.stack.kafka})
    admin.create_partitions([NewPartitions(topic, 4)])[topic].result(SECONDS)
    told = f"topic '{topic}' had 2 partitions when the replay was planned, and has more now"

    def count_told() -> int:
        return sum(told in warning for warning in shop.session(topic)["warnings"])

    wait_until(count_told, 60)
    shop.command(topic, "set-rate", rate=None)
    shop.wait_for(topic, "completed")
    assert count_told() == 1
    records = read_topic(shop.stack.kafka, topic)
    assert len({event_id_of(record) for record in records}) == len(records) == SHOP_EVENTS
    assert {record.partition for record in records} == {0, 1, 2, 3}


@pytest.mark.parametrize("on_error", ["skip", "dead-letter", "fail"])
def test_types_without_a_legal_topic_name_fail_one_by_one(shop: Cluster, on_error: str) -> None:
    good = unique_name("good")
    create_topics(shop.stack.kafka, {good: 2})
    types = [good, "a b/c", good, "x" * 300, good, ".", "..", "größe", good]
    first = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    shop.insert(
        {
            "_id": f"{good}-{number}",
            "event_id": f"e-{number}",
            "event_type": kind,
            "timestamp": first + dt.timedelta(seconds=number),
            "run": good,
        }
        for number, kind in enumerate(types)
    )
    wanted = {"fields": {"run": good}}
    session = shop.run(good, filter=wanted, target={}, on_error=on_error, preflight="full")
    (warning,) = [one for one in session["warnings"] if "have no topic" in one]
    assert warning.startswith("5 events have no topic, and each of them fails under")
    assert "'a b/c' (1)" in warning
    names = [event_id_of(record) for record in read_topic(shop.stack.kafka, good)]
    if on_error == "fail":
        assert session["state"] == "failed"
        assert "event 'e-1': its topic would be 'a b/c', which is not a topic" in session["error"]
        assert names == ["e-0"]
        return
    assert session["state"] == "completed_with_errors", session["error"]
    assert sorted(names) == ["e-0", "e-2", "e-4", "e-8"]
    counters = session["counters"]
    assert (counters["read"], counters["published"]) == (9, 4)
    assert counters["skipped" if on_error == "skip" else "dead_lettered"] == 5
    failures = [one for shard in session["shards"] for one in shard["progress"]["failures"]]
    assert [one["event_id"] for one in failures] == ["e-1", "e-3", "e-5", "e-6", "e-7"]
