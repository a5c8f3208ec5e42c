"""The hand-over from a replay to the live topics, with a worker and real consumer groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from support import (
    KAFKA_SECONDS,
    create_topics,
    delete_topics,
    read_topic,
    unique_name,
    wait_until,
)
from workers import Cluster, Worker

from replay_app.cli import run

EVENTS = 40
T0 = datetime(2026, 5, 1, tzinfo=UTC)
"""The time of the first event, beyond SHOP_HISTORY. Each further event comes STEP later."""
STEP = timedelta(seconds=10)
END = T0 + EVENTS * STEP
IN_OVERLAP = EVENTS - 6
"""The first event of the last minute before END."""


class Live:
    """An event type with its own live topic, which is also sent to Kafka as it is stored."""

    def __init__(self, shop: Cluster) -> None:
        self.shop, self.topic = shop, unique_name("live")
        self.new_topic = shop.target_prefix + self.topic
        # Else the broker may delete the live records, whose timestamps are old.
        keep = {"retention.ms": "-1"}
        create_topics(shop.stack.kafka, {self.topic: 2, self.new_topic: 2}, keep)

    def store(self, *numbers: int) -> None:
        self.shop.insert(
            {
                "event_id": f"{self.topic}-{number}",
                "timestamp": T0 + number * STEP,
                "event_type": self.topic,
                "aggregate_id": str(number),
            }
            for number in numbers
        )

    def send(self, *numbers: int) -> None:
        """Send live records; the number of an event decides on the partition and the time."""
        producer = Producer({"bootstrap.servers": self.shop.stack.kafka})
        for number in numbers:
            producer.produce(
                self.topic,
                f"{self.topic}-{number}",
                partition=number % 2,
                timestamp=round((T0 + number * STEP).timestamp() * 1000),
            )
        assert producer.flush(KAFKA_SECONDS) == 0

    def replay(self, replay_id: str, **body: Any) -> None:
        wanted = {"event_types": [self.topic], "end": END.isoformat()}
        self.shop.command(replay_id, filter=wanted, **body)

    def read_on(self, group: str) -> set[str]:
        """Return the values that a group reads from its offsets on, up to the topic's end."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.shop.stack.kafka,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "log_level": 3,
            }
        )
        places = [TopicPartition(self.topic, number) for number in range(2)]
        ends = {
            one.partition: consumer.get_watermark_offsets(one, KAFKA_SECONDS)[1] for one in places
        }
        at = {one.partition: one.offset for one in consumer.committed(places, KAFKA_SECONDS)}
        consumer.assign(consumer.committed(places, KAFKA_SECONDS))
        found: set[str] = set()

        def is_read() -> bool:
            for message in consumer.consume(100, timeout=0.2):
                assert message.error() is None
                found.add((message.value() or b"").decode())
                at[message.partition() or 0] = (message.offset() or 0) + 1
            return at == ends

        wait_until(is_read, KAFKA_SECONDS)
        consumer.close()
        return found


@pytest.fixture
def live(shop: Cluster) -> Live:
    return Live(shop)


@pytest.fixture
def offsets(
    shop: Cluster,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, Any]]:
    """Run ``replay-app offsets`` and return its exit code and its answer."""
    monkeypatch.setenv("REPLAY_KAFKA", shop.stack.kafka)

    def call(*arguments: str) -> tuple[int, Any]:
        code = run(["offsets", "--url", worker.url, "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    return call


def ids(live: Live, *numbers: int) -> set[str]:
    return {f"{live.topic}-{number}" for number in numbers}


def test_replay_and_live_stream_together_have_every_event(
    shop: Cluster, live: Live, offsets: Callable[..., tuple[int, Any]]
) -> None:
    # The last event before the bound is stored only after the replay; live it comes in time.
    live.store(*range(EVENTS - 1))
    live.send(*range(EVENTS + 20))
    replay_id, group = unique_name("handed"), unique_name("group")
    live.replay(replay_id, control_records=True)
    session = shop.wait_for(replay_id, "completed")
    live.store(EVENTS - 1, *range(EVENTS, EVENTS + 20))

    assert datetime.fromisoformat(session["plan"]["handover_time"]) == T0 + IN_OVERLAP * STEP
    first = {"0": IN_OVERLAP // 2, "1": IN_OVERLAP // 2}
    assert session["handover"] == {live.topic: first}
    receipt = session["receipt"]
    assert receipt["handover"] == session["handover"]
    assert (receipt["visible"], receipt["behind"]) == (True, 0)
    assert session["created_at"] < receipt["visible_at"] < session["ended_at"]

    # The end records of all partitions say the same.
    records = read_topic(shop.stack.kafka, live.new_topic)
    ends = [one for one in records if one.headers.get("replay-control") == b"end"]
    assert [one.partition for one in sorted(ends, key=lambda one: one.partition)] == [0, 1]
    for end in ends:
        assert json.loads(end.headers["replay-handover"] or b"") == session["handover"]
    begins = [one for one in records if one.headers.get("replay-control") == b"begin"]
    assert all("replay-handover" not in one.headers for one in begins)

    replayed = {
        (one.headers["replay-delivery-id"] or b"").decode().partition(":")[2]
        for one in records
        if one.value is not None
    }
    code, shown = offsets(replay_id, "--group", group, "--to", "handover")
    assert (code, shown["executed"]) == (0, False)
    assert shown["partitions"] == [
        {"topic": live.topic, "partition": number, "now": None, "then": IN_OVERLAP // 2}
        for number in range(2)
    ]
    code, shown = offsets(replay_id, "--group", group, "--to", "handover", "--execute")
    assert (code, shown["executed"]) == (0, True)
    assert replayed == ids(live, *range(EVENTS - 1))
    assert live.read_on(group) == ids(live, *range(IN_OVERLAP, EVENTS + 20))

    # The group can also read the replay itself, from its first records on.
    code, shown = offsets(replay_id, "--group", group, "--to", "begin", "--execute")
    assert code == 0
    firsts = {str(one["partition"]): one["then"] for one in shown["partitions"]}
    assert firsts == {
        number: first for number, (first, _) in session["offsets"][live.new_topic].items()
    }


def test_offsets_are_refused_with_the_reason_and_change_nothing(
    shop: Cluster, live: Live, offsets: Callable[..., tuple[int, Any]]
) -> None:
    live.store(*range(5))
    replay_id, group = unique_name("refused"), unique_name("group")
    code, answer = offsets(replay_id, "--group", group, "--to", "begin")
    assert (code, answer["status"]) == (10, 404)
    live.replay(replay_id)
    shop.wait_for(replay_id, "completed")
    consumer = Consumer({"bootstrap.servers": shop.stack.kafka, "group.id": group, "log_level": 3})
    consumer.subscribe([live.topic])
    wait_until(lambda: consumer.poll(0.1) or consumer.assignment(), KAFKA_SECONDS)
    for to in ("begin", "handover"):
        code, answer = offsets(replay_id, "--group", group, "--to", to, "--execute")
        assert code == 3
        assert f"the group '{group}' has 1 members" in answer["error"]
    consumer.close()
    delete_topics(shop.stack.kafka, [live.new_topic, live.topic])
    code, answer = offsets(replay_id, "--group", group, "--to", "begin")
    assert (code, "does not exist on Kafka" in answer["error"]) == (3, True)
    create_topics(shop.stack.kafka, {live.new_topic: 2, live.topic: 2})
    for to in ("begin", "handover"):
        code, answer = offsets(replay_id, "--group", group, "--to", to)
        assert (code, "was deleted and made again" in answer["error"]) == (3, True)


def test_events_that_are_stored_behind_the_position_are_counted_at_the_end(
    shop: Cluster, live: Live
) -> None:
    live.store(*range(10, EVENTS))
    replay_id = unique_name("behind")
    live.replay(replay_id, rate=5)

    def has_read() -> bool:
        session = shop.session(replay_id)
        return bool(session and session["counters"]["read"])

    wait_until(has_read, KAFKA_SECONDS)
    live.store(1, 2, 3)  # older than all that the replay has read
    shop.command(replay_id, "set-rate", rate=None)
    session = shop.wait_for(replay_id, "completed")
    assert session["receipt"]["behind"] == 3
    assert session["receipt"]["counters"]["published"] == EVENTS - 10
    (warning,) = [one for one in session["warnings"] if "behind the replay's position" in one]
    assert warning.startswith("3 matching events lie behind the replay's position")


def test_a_plan_shows_the_hand_over_and_a_dry_run_says_nothing_of_consumers(
    shop: Cluster, worker: Worker, live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    live.store(*range(5))
    live.send(*range(5))
    body = {"filter": {"event_types": [live.topic]}, "target": {"prefix": shop.target_prefix}}
    status, plan = worker.request("POST", "/plans", body)
    assert status == 200
    # The bound is the store's clock, and all these records are older.
    assert plan["handover"] == {live.topic: {"0": 3, "1": 2}}
    assert (
        run(
            [
                "plan",
                "--url",
                worker.url,
                "--event-type",
                live.topic,
                "--prefix",
                shop.target_prefix,
            ]
        )
        == 0
    )
    assert f"{live.topic}[0]" in capsys.readouterr().out
    replay_id = unique_name("dry")
    live.replay(replay_id, dry_run=True)
    receipt = shop.wait_for(replay_id, "completed")["receipt"]
    assert (receipt["visible"], receipt["behind"]) == (False, None)
