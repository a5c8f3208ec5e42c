"""Parking in workers that are killed: each aggregate stays in order, before and after a redrive."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
from bson import Regex
from command_line import CommandLine
from oracle import event_id_of
from support import create_topics, read_topic, unique_name, wait_until
from workers import Cluster, events_of

EVENTS, AGGREGATES = 600, 20
POISONED = {3: 63, 7: 207, 11: 11}
"""By aggregate: the number of its failed event."""


@pytest.mark.parametrize("ordering", ["global", "aggregate"])
def test_an_aggregate_waits_behind_its_failed_event_over_kills_and_is_redriven_in_order(
    cluster: Cluster, tmp_path: Path, ordering: str
) -> None:
    kind, topic = unique_name("kind"), unique_name("to")
    events = events_of(kind, EVENTS)
    for number, one in enumerate(events):
        one["aggregate_id"] = f"a-{number % AGGREGATES}"
    for number in POISONED.values():
        events[number]["body"] = Regex("x")
    cluster.insert(events)
    create_topics(cluster.stack.kafka, {topic: 3})
    cluster.environment |= {"REPLAY_PAGE_EVENTS": "50", "REPLAY_SLICE_EVENTS": "50"}
    worker = cluster.start_worker()
    cluster.command("r", target={"topic": topic}, ordering=ordering, on_error="park", rate=150)
    for least in (150, 350):
        wait_until(partial(cluster.has_read, "r", least), 60.0)
        worker.kill()
        worker = cluster.start_worker(0)
    cluster.command("r", "set-rate", rate=None)
    session = cluster.wait_for("r", "completed_with_errors")
    waiting = {
        number for number in range(EVENTS) if number >= POISONED.get(number % AGGREGATES, EVENTS)
    }
    assert session["counters"] == {
        "read": EVENTS,
        "published": EVENTS - len(waiting),
        "skipped": 0,
        "dead_lettered": len(waiting),
    }
    assert session["receipt"]["parked"] == len(waiting) - len(POISONED)
    expected = [number for number in range(EVENTS) if number not in waiting]
    assert_in_order(cluster, topic, "r", expected)

    replay_app = CommandLine({**cluster.environment, "REPLAY_URL": worker.url}, tmp_path)
    assert "parked behind failed events" in replay_app("receipt", "r")
    assert "equal" in replay_app("verify", "r")
    letters = json.loads(replay_app("dead-letters", "r", "--json"))
    parked = [one for one in letters if "it is parked behind event" in one["reason"]]
    assert len(parked) == len(POISONED)
    with cluster.store() as stored:  # two of three are mended
        mended = [f"{kind}-{number}" for number in list(POISONED.values())[:2]]
        stored.update_many({"event_id": {"$in": mended}}, {"$set": {"body": "x"}})
    (chain,) = [one for one in parked if f"event '{mended[0]}'" in one["reason"]]
    told = replay_app("redrive", "r", "--event-id", chain["event_ids"][0], code=1)
    assert f"events that are parked behind '{mended[0]}' are redriven together" in told
    replay_app("redrive", "r")
    cluster.wait_for("r.redrive-1", "completed_with_errors")
    still = {number for number in waiting if number % AGGREGATES == list(POISONED)[2]}
    assert_in_order(cluster, topic, "r.redrive-1", sorted(waiting - still))
    with cluster.store() as stored:
        stored.update_many({"event_type": kind}, {"$set": {"body": "x"}})
    replay_app("redrive", "r")
    cluster.wait_for("r.redrive-2", "completed")
    assert_in_order(cluster, topic, "r.redrive-2", sorted(still))


def assert_in_order(cluster: Cluster, topic: str, replay_id: str, numbers: list[int]) -> None:
    """Check that a replay has published these events once, each aggregate in order."""
    expected, found = (defaultdict[int, list[int]](list) for _ in range(2))
    for number in numbers:
        expected[number % AGGREGATES].append(number)
    for record in read_topic(cluster.stack.kafka, [topic]):
        if record.headers["replay-id"] == replay_id.encode():
            number = int(event_id_of(record).rpartition("-")[2])
            found[number % AGGREGATES].append(number)
    assert found == expected
