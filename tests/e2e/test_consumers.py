"""Consumer groups of a replay: what the session tells of them, and how a replay waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer
from support import create_topics, unique_name, wait_until
from workers import REPLAY_END_SECONDS, SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker

SEEN_SECONDS = 180.0
MAX_LAG = 400
SMALL = {"filter": {"event_types": ["order_paid"]}}


@dataclass
class Group:
    """A consumer group with one member, which reads and commits only when a test says so."""

    bootstrap: str
    topics: list[str]
    name: str = field(default_factory=lambda: unique_name("view"))

    def __post_init__(self) -> None:
        self.consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": self.name,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 3,
            }
        )
        self.consumer.subscribe(self.topics)

    def read(self, most: int = 100, seconds: float = 0.5) -> int:
        """Read up to a number of records, commit them, and return how many there were."""
        messages = self.consumer.consume(most, seconds)
        good = [one for one in messages if not one.error()]
        if good:
            self.consumer.commit(asynchronous=False)
        return len(good)


@contextlib.contextmanager
def group_of(shop: Cluster, *topics: str) -> Iterator[Group]:
    """Give a group that reads some topics; by default those of the shop."""
    group = Group(shop.stack.kafka, list(topics) or shop.topics())
    try:
        yield group
    finally:
        group.consumer.close()


def consumption(shop: Cluster, replay_id: str, group: str) -> dict[str, Any]:
    session = shop.session(replay_id)
    return dict((session or {}).get("consumption", {}).get(group) or {})


def wait_for_group(shop: Cluster, replay_id: str, group: str, **facts: Any) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        found = consumption(shop, replay_id, group)
        return found if found and all(found[name] == facts[name] for name in facts) else None

    return wait_until(
        reached, SEEN_SECONDS, f"{group} never was {facts}: {shop.session(replay_id)}"
    )


def test_the_session_tells_how_far_a_group_has_read_and_when_it_had_read_all(
    shop: Cluster, worker: Worker
) -> None:
    replay_id, late = unique_name("consumed"), unique_name("late")
    with group_of(shop) as group:
        session = shop.run(replay_id, consumers=[group.name, late], **SMALL)
        assert session["state"] == "completed"
        published = session["counters"]["published"]
        assert published > 0
        unread = wait_for_group(shop, replay_id, late, state="unseen")
        assert unread["lag"] >= published
        assert unread["consumed_at"] is None
        # The group reads the records of all tests before, too.
        wait_until(lambda: group.read(5_000) or None, SEEN_SECONDS)
        wait_for_group(shop, replay_id, group.name, state="active")
        assert ("replay_consumer_lag_records", late) in worker.metrics()
        body = {**SMALL, "target": {"prefix": shop.target_prefix}}
        _, plan = worker.request("POST", "/plans", body)
        assert plan["consumers"][group.name]["state"] == "active"
        assert plan["consumers"][group.name]["topics"] == sorted(plan["by_topic"])
        assert late not in plan["consumers"]

        def has_read_all() -> bool:
            group.read(5_000)
            return consumption(shop, replay_id, group.name).get("consumed_at") is not None

        wait_until(has_read_all, SEEN_SECONDS)
    found = consumption(shop, replay_id, group.name)
    assert (found["lag"], found["reason"]) == (0, None)
    session = shop.session(replay_id)
    assert session["state"] == "completed"
    assert consumption(shop, replay_id, late)["consumed_at"] is None


def test_max_lag_keeps_a_replay_close_to_its_slowest_group(shop: Cluster) -> None:
    replay_id, topic = unique_name("lag"), unique_name("lag")
    create_topics(shop.stack.kafka, {topic: 3})
    reasons, ahead, read = set(), 0, 0

    def step() -> bool:
        nonlocal ahead, read
        session = shop.session(replay_id)
        if session is None:
            return False
        ahead = max(ahead, session["counters"]["published"] - read)
        reasons.add(session["reason"] or "")
        read += group.read(most=100)
        return bool(session["state"] == "completed") and read == SHOP_EVENTS

    with group_of(shop, topic) as group:
        shop.command(
            replay_id,
            filter=SHOP_HISTORY,
            target={"topic": topic},
            consumers=[group.name],
            max_lag=MAX_LAG,
        )
        wait_until(step, REPLAY_END_SECONDS, "the group never read everything")
    assert 0 < ahead <= MAX_LAG
    assert any(f"consumer group {group.name!r} is " in reason for reason in reasons), reasons
    session = shop.session(replay_id)
    assert session["counters"]["published"] == SHOP_EVENTS
    assert (session["reason"], session["hold"]) == (None, None)
    wait_for_group(shop, replay_id, group.name, lag=0)


def test_a_replay_that_waits_for_a_group_is_paused_resumed_and_cancelled(shop: Cluster) -> None:
    replay_id, topic, absent = unique_name("held"), unique_name("held"), unique_name("absent")
    create_topics(shop.stack.kafka, {topic: 1})
    shop.command(
        replay_id,
        filter=SHOP_HISTORY,
        target={"topic": topic},
        ordering="aggregate",
        shards=4,
        consumers=[absent],
        max_lag=2,  # fewer than there are shards
    )
    wait_until(
        lambda: "not seen yet" in ((shop.session(replay_id) or {}).get("reason") or ""),
        SEEN_SECONDS,
        "the replay never waited",
    )
    for command, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        shop.command(replay_id, command)
        session = shop.wait_for(replay_id, state)
    assert 0 < session["counters"]["published"] < 20
    assert (session["reason"], session["hold"]) == (None, None)


def test_a_hold_survives_its_worker_and_ends_with_a_warning_if_the_group_never_reads(
    cluster: Cluster,
) -> None:
    cluster.seed(SHOP_EVENTS)
    cluster.environment["REPLAY_MAX_LAG_PATIENCE_SECONDS"] = "15"
    worker = cluster.start_worker().wait_until_ready()
    absent = unique_name("absent")
    cluster.command("r", consumers=[absent], max_lag=MAX_LAG)
    session = wait_until(
        lambda: (one := cluster.session("r")) and one["hold"] and one, SEEN_SECONDS
    )
    assert absent in session["hold"]
    assert session["counters"]["published"] <= MAX_LAG
    worker.kill()
    cluster.start_worker(0).wait_until_ready()
    session = cluster.wait_for("r", "completed")
    cluster.assert_exact("r")
    (warning,) = [one for one in session["warnings"] if absent in one]
    assert "REPLAY_MAX_LAG_PATIENCE_SECONDS" in warning
    assert session["consumption"][absent]["consumed_at"] is None
