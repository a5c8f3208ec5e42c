"""Records of strangers on every internal topic, beside a running replay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from oracle import event_id_of
from support import unique_name, wait_until
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker

from replay_app.settings import load_settings
from replay_app.topics import ensure_topics

HUGE = 2**62
NAIVE = "2026-01-01T00:00:00"
GARBAGE: tuple[bytes | None, ...] = (
    None,
    b"",
    b"\xff\x00",
    b"{",
    b"null",
    b"[]" * 1000,
    b"[" * 100_000,
    b'"text"',
    b'{"replay_id": {}}',
    b"x" * 900_000,
    json.dumps({"epoch": HUGE, "slice": HUGE, "shard": HUGE}).encode(),
    json.dumps({str(number): number for number in range(50_000)}).encode(),
)


def _sessions_of_strangers(session: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield status records that are a session in all but one member."""
    odd: dict[str, Any] = {
        "created_at": NAIVE,
        "updated_at": NAIVE,
        "progressed_at": "0001-01-01T00:00:00+23:59",
        "heard_at": "soon",
        "revision": HUGE,
        "epoch": -1,
        "attempt": 10**400,
        "rate": 5e-324,
        "shards": [{}] * 100_000,
        "warnings": ["odd"] * 100_000,
        "speed_marks": [[NAIVE, 1]] * 10,
        "state": "lost",
        "start": {},
        "events_per_second": "many",
    }
    for name, value in odd.items():
        replay_id = unique_name("stranger")
        whole = {**session, "replay_id": replay_id, name: value}
        yield replay_id, json.dumps(whole).encode()
    # Each counter is within its bounds, and their sum is not.
    shard = {"progress": {"counters": {"read": 2**53}}}
    replay_id = unique_name("sum")
    yield replay_id, json.dumps({**session, "replay_id": replay_id, "shards": [shard] * 2}).encode()
    yield unique_name("other-key"), json.dumps(session).encode()


def _write(cluster: Cluster, topic: str, records: list[tuple[str, bytes | None]]) -> None:
    """Write each record to a partition of its key's choice and to partition 0."""
    producer = Producer({"bootstrap.servers": cluster.stack.kafka, "partitioner": "murmur2_random"})
    for key, value in records:
        for partition in (-1, 0):
            producer.produce(f"{cluster.prefix}{topic}", value, key.encode(), partition)
    assert producer.flush(30) == 0


@pytest.fixture
def running(shop: Cluster) -> str:
    """The id of a replay that runs while strangers write."""
    replay_id = unique_name("beside")
    shop.command(replay_id, filter=SHOP_HISTORY, rate=SHOP_EVENTS / 20)
    shop.wait_for(replay_id, "running")
    return replay_id


def test_records_of_strangers_are_passed_over_and_counted(
    shop: Cluster, worker: Worker, running: str
) -> None:
    before = worker.metrics()
    session = shop.session(running)
    tokens: list[dict[str, Any]] = [
        {"replay_id": unique_name("unknown"), "epoch": 1, "kind": "emit"} for _ in range(100)
    ]
    tokens += [
        {"replay_id": running, "shard": 999, "epoch": session["epoch"], "kind": "emit"},
        {"replay_id": running, "shard": HUGE, "epoch": session["epoch"], "kind": "emit"},
        {"replay_id": running, "shard": 0, "epoch": HUGE, "kind": "emit"},
        {"replay_id": running, "shard": 0, "epoch": session["epoch"] - 1, "kind": "stop"},
    ]
    reports: list[dict[str, Any]] = [
        {"replay_id": running, "kind": "shard", "epoch": 1, "slice": HUGE, "progress": {}},
        {"replay_id": running, "kind": "shard", "shard": 998, "epoch": 1, "progress": {}},
        {"replay_id": running, "kind": "shard", "epoch": 1, "progress": {"last_time": NAIVE}},
        {"replay_id": running, "kind": "plan", "epoch": 1, "plan": {"end": NAIVE, "matched": 1}},
        {"replay_id": "nobody", "kind": "nudge"},
    ]
    nothing: list[dict[str, Any]] = []
    for topic, odd in (("requests", nothing), ("work", tokens), ("progress", reports)):
        records: list[tuple[str, bytes | None]] = [(running, value) for value in GARBAGE]
        records += [(one["replay_id"], json.dumps(one).encode()) for one in odd]
        _write(shop, topic, records)
    strangers = [(key, value) for key, value in _sessions_of_strangers(session)]
    _write(shop, "status", [*strangers, *((unique_name("odd"), value) for value in GARBAGE)])
    _write(shop, "checkpoints", [(unique_name("odd"), value) for value in GARBAGE])

    other = unique_name("meanwhile")
    shop.command(other, filter=SHOP_HISTORY)
    shop.wait_for(other, "completed")
    shop.wait_for(running, "completed")
    for replay_id in (other, running):
        published = [event_id_of(record) for record in shop.published_by(replay_id)]
        assert len(published) == len(set(published)) == SHOP_EVENTS
    assert worker.request("GET", "/readyz")[0] == 200
    status, listed = worker.request("GET", "/replays?limit=1000")
    assert status == 200
    ids = {one["replay_id"] for one in listed["replays"]}
    assert {running, other} <= ids
    assert not ids & {key for key, _ in strangers}
    for replay_id, _ in strangers:
        assert worker.request("GET", f"/replays/{replay_id}/events")[0] == 404

    def ignored(topic: str) -> float:
        sample = "replay_ignored_records_total", f"{shop.prefix}{topic}"
        return worker.metrics()[sample] - before.get(sample, 0)

    # The token and the report without members are noops by their defaults, and are not odd.
    assert ignored("status") >= len(strangers)
    assert ignored("work") >= len(GARBAGE)
    assert ignored("progress") >= len(GARBAGE)
    assert ignored("requests") >= len(GARBAGE)


def test_readyz_warns_of_checkpoints_that_cannot_be_read(cluster: Cluster) -> None:
    settings = load_settings(
        kafka=cluster.stack.kafka,
        app_id=cluster.name,
        topic_prefix=cluster.prefix,
        partitions=cluster.partitions,
    )
    asyncio.run(ensure_topics(settings))
    keys = [f"bad-{number}/0" for number in range(12)]
    for key in keys:
        cluster.produce(b"{", key.encode(), "checkpoints")
    cluster.seed(10)
    worker = cluster.start_worker()
    worker.wait_until_ready()

    def warnings() -> list[str]:
        status, body = worker.request("GET", "/readyz")
        assert (status, body["missing"]) == (200, []), body
        return body.get("warnings", [])  # type: ignore[no-any-return]

    def tells_all() -> bool:  # each partition opens by itself
        return any(one.startswith("12 checkpoints cannot be read") for one in warnings())

    wait_until(tells_all, 30)
    (warning,) = warnings()
    assert sum(key in warning for key in keys) == 10
    assert "the errors of their replays say what to do" in warning
    assert worker.metrics()["replay_unreadable_checkpoints", ""] == 12
    assert cluster.run("good", dry_run=True, filter={"event_types": ["order_placed"]})["matched"]
