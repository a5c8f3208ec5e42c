"""Records of strangers: what no worker has written, for every internal topic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from confluent_kafka import Producer
from support import unique_name
from workers import Cluster

from replay_app.settings import load_settings
from replay_app.topics import Topics

Keyed = tuple[str, bytes | None]
"""The key and the value of a record."""
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


def sessions_of_strangers(session: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
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


def _write(cluster: Cluster, topic: str, records: Sequence[Keyed]) -> None:
    """Write each record to a partition of its key's choice and to partition 0."""
    producer = Producer({"bootstrap.servers": cluster.stack.kafka, "partitioner": "murmur2_random"})
    for key, value in records:
        for partition in (-1, 0):
            producer.produce(topic, value, key.encode(), partition)
    assert producer.flush(30) == 0


def _tokens_of_strangers(session: dict[str, Any]) -> Iterator[Keyed]:
    running, epoch = session["replay_id"], session["epoch"]
    tokens: list[dict[str, Any]] = [
        {"replay_id": unique_name("unknown"), "epoch": 1, "kind": "emit"} for _ in range(100)
    ]
    tokens += [
        {"replay_id": running, "shard": 999, "epoch": epoch, "kind": "emit"},
        {"replay_id": running, "shard": HUGE, "epoch": epoch, "kind": "emit"},
        {"replay_id": running, "shard": 0, "epoch": HUGE, "kind": "emit"},
        {"replay_id": running, "shard": 0, "epoch": epoch - 1, "kind": "stop"},
    ]
    for token in tokens:
        yield token["replay_id"], json.dumps(token).encode()


def _reports_of_strangers(session: dict[str, Any]) -> Iterator[Keyed]:
    running = session["replay_id"]
    reports: list[dict[str, Any]] = [
        {"replay_id": running, "kind": "shard", "epoch": 1, "slice": HUGE, "progress": {}},
        {"replay_id": running, "kind": "shard", "shard": 998, "epoch": 1, "progress": {}},
        {"replay_id": running, "kind": "shard", "epoch": 1, "progress": {"last_time": NAIVE}},
        {"replay_id": running, "kind": "plan", "epoch": 1, "plan": {"end": NAIVE, "matched": 1}},
        {"replay_id": "nobody", "kind": "nudge"},
    ]
    for report in reports:
        yield report["replay_id"], json.dumps(report).encode()


def write_hostile_records(cluster: Cluster, session: dict[str, Any]) -> set[str]:
    """Write records of every kind to every internal topic, beside a running replay's session.

    Return the ids of the sessions that are not whole.
    """
    topics = Topics.of(
        load_settings(
            app_id=cluster.name, topic_prefix=cluster.prefix, partitions=cluster.partitions
        )
    )
    running = session["replay_id"]
    strangers = list(sessions_of_strangers(session))
    beside: list[Keyed] = [(running, value) for value in GARBAGE]
    # With the replay's own key, a record without a value would be its end.
    alone: list[Keyed] = [(unique_name("odd"), value) for value in GARBAGE]
    for topic, records in (
        (topics.requests, beside),
        (topics.work, [*beside, *_tokens_of_strangers(session)]),
        (topics.progress, [*beside, *_reports_of_strangers(session)]),
        (topics.status, [*strangers, *alone]),
        (topics.checkpoints, alone),
        (topics.dead_letters, alone),
        (topics.table_changelog, [*strangers, *alone]),
    ):
        _write(cluster, topic.name, records)
    return {key for key, _ in strangers}
