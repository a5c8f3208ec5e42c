"""A cluster of three brokers: each may die, one for good, and destination topics may grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from brokers import Brokers
from oracle import Ordering, event_id_of
from support import wait_until
from workers import Cluster

from replay_app.demo.stack import REPLICAS, EmbeddedServers

EVENTS = 6_000
RATE = 25
"""Events per second of each replay: both are still running when the last broker dies."""
RECOVERY_SECONDS = 90.0
PARTITIONS, MORE_PARTITIONS = 3, 5
REPLAYS: dict[str, Ordering] = {"in-time": "global", "by-aggregate": "aggregate"}


@pytest.fixture
def three_brokers() -> Iterator[EmbeddedServers]:
    with EmbeddedServers(brokers=3) as servers:
        yield servers


@pytest.fixture
def installation(three_brokers: EmbeddedServers, tmp_path: Path) -> Iterator[Cluster]:
    installation = Cluster(three_brokers, tmp_path, partitions=1)
    yield installation
    for worker in installation.workers:
        worker.kill()


def published(installation: Cluster, replay_id: str) -> int:
    session = installation.session(replay_id)
    return int(session["counters"]["published"]) if session else 0


def await_progress(installation: Cluster) -> None:
    """Wait until every replay has published two seconds' worth of events more than now."""
    wanted = {name: published(installation, name) + 2 * RATE for name in REPLAYS}
    for name, count in wanted.items():
        wait_until(
            lambda name=name, count=count: published(installation, name) >= count,  # type: ignore[misc]
            RECOVERY_SECONDS,
            f"{name} stands still",
        )


def test_replays_survive_the_loss_of_each_broker_and_the_growth_of_their_topics(
    three_brokers: EmbeddedServers, installation: Cluster
) -> None:
    installation.environment |= {"REPLAY_SLICE_EVENTS": "300", "REPLAY_PAGE_EVENTS": "50"}
    installation.seed(EVENTS)
    worker = installation.start_worker().wait_until_ready()
    for name, ordering in REPLAYS.items():
        installation.command(name, rate=RATE, ordering=ordering)
    await_progress(installation)
    brokers = Brokers(three_brokers.kafka)

    def lose(number: int) -> None:
        """Kill a broker; the replays go on without the broker."""
        three_brokers.kill_broker(number)
        await_progress(installation)

    def lose_and_bring_back(number: int) -> None:
        lose(number)
        three_brokers.start_broker(number)
        brokers.wait_until_replicated(REPLICAS)

    first = brokers.coordinator("transaction", f"{installation.name}-work-0")
    lose_and_bring_back(first)
    brokers.grow(dict.fromkeys(installation.topics(), MORE_PARTITIONS))
    second = brokers.coordinator("group", installation.name)
    lose_and_bring_back(second)
    *others, last = set(three_brokers.brokers) - {first, second}
    for number in others:  # if one broker was coordinator of both
        lose_and_bring_back(number)
    destination = installation.topics()[0]
    assert last in {brokers.leader(destination, number) for number in range(PARTITIONS)}
    lose(last)  # for good

    for name in REPLAYS:
        assert installation.session(name)["state"] == "running"
        installation.command(name, "set-rate", rate=None)
    for name, ordering in REPLAYS.items():
        session = installation.wait_for(name, "completed")
        assert session["counters"]["published"] == session["matched"] == EVENTS
        installation.assert_exact(name, ordering=ordering, partitions_of_key=2)
    assert worker.process.poll() is None
    internal = [installation.prefix + topic for topic in ("checkpoints", "status")]
    assert brokers.hidden([*installation.topics(), *internal], 30) == {}
    assert_keys_move_once(installation)


def assert_keys_move_once(installation: Cluster) -> None:
    """Check that a key's later events may be in another partition, and then stay there."""
    number_of = {event["event_id"]: number for number, event in enumerate(installation.stored())}
    for name, ordering in REPLAYS.items():
        lanes: dict[tuple[str, bytes | None], list[tuple[int, int]]] = defaultdict(list)
        for record in installation.published_by(name):
            place = (number_of[event_id_of(record)], record.partition)
            lanes[record.topic, record.key].append(place)
        moves = [
            sum(old != new for (_, old), (_, new) in pairwise(sorted(lane)))
            for lane in lanes.values()
        ]
        # By aggregate, all events of a key are published within a moment: mostly no key moves.
        assert max(moves) == 1 or (ordering == "aggregate" and max(moves) == 0)
        assert {place for lane in lanes.values() for _, place in lane} == set(
            range(MORE_PARTITIONS)
        )
