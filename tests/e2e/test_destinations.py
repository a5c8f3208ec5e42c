"""Replays to topics with their own limits, and to topics that change in mid-run."""

from __future__ import annotations

import datetime as dt

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
    shop.command(topic, rate=50, filter=SHOP_HISTORY, target={"topic": topic})
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
