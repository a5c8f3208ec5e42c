"""A lone broker that was killed may lose the marker of a committed slice: the replay must say so.

A real kill loses a marker once in some tens of times. Here the marker is cut off the partition's
log while the broker is dead, so that the broker finds what it finds after such a kill.
"""

from __future__ import annotations

import datetime as dt
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Brokers
from support import wait_until
from workers import Cluster

from replay_app.crashpoints import VARIABLE
from replay_app.demo.stack import EmbeddedServers

EVENTS, EARLY_EVENTS = 600, 30
T0 = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
BATCH = struct.Struct(">qiiBiH")
"""A record batch: base offset, length of the rest, leader epoch, magic, checksum, attributes."""
BATCH_START = 12
"""Bytes before the part that the length counts."""
CONTROL = 0x20
"""The attribute of a batch that holds a transaction's marker."""
TRANSACTIONS_TOOL = "org.apache.kafka.tools.TransactionsCommand"


@pytest.fixture
def installation(own_stack: EmbeddedServers, tmp_path: Path) -> Iterator[Cluster]:
    installation = Cluster(own_stack, tmp_path)
    yield installation
    for worker in installation.workers:
        worker.kill()


def cut_last_marker(folder: Path) -> None:
    """Remove the last batch of a partition, which is a marker, while the broker is dead."""
    (segment,) = folder.glob("*.log")
    content, last, position = segment.read_bytes(), 0, 0
    while position + BATCH.size <= len(content):
        last = position
        _, length, _, _, _, attributes = BATCH.unpack_from(content, position)
        position += BATCH_START + length
    assert attributes & CONTROL, "the partition does not end with a marker"
    with segment.open("r+b") as file:
        file.truncate(last)
    for derived in folder.iterdir():  # the broker makes these files again from the segment
        if derived.suffix in {".snapshot", ".index", ".timeindex", ".txnindex"}:
            derived.unlink()


def no_marker_is_due(stack: EmbeddedServers) -> bool:
    """Say whether the coordinator has ended each transaction, and written all its markers."""
    listed = stack.run_tool(TRANSACTIONS_TOOL, "--bootstrap-server", stack.kafka, "list")
    assert "CompleteCommit" in listed
    return re.search(r"Ongoing|Prepare", listed) is None


def replay_until_a_marker_is_lost(
    own_stack: EmbeddedServers, installation: Cluster, early: str, late: str
) -> Brokers:
    """Pause a replay after EARLY_EVENTS in one topic and some in another; lose the first's marker.

    Return a view of the broker, which has started again.
    """
    installation.create_shop_topics(partitions=1)
    installation.insert(
        {
            "event_id": str(number),
            "event_type": "placed",
            "aggregate_id": None,
            "timestamp": T0 + dt.timedelta(seconds=number),
            "topic": (early if number < EARLY_EVENTS else late).removeprefix(
                installation.target_prefix
            ),
        }
        for number in range(EVENTS)
    )
    installation.start_worker().wait_until_ready()
    installation.command("r", rate=10)
    wait_until(lambda: len(installation.published()) > EARLY_EVENTS, 60)
    installation.command("r", "pause")
    installation.wait_for("r", "paused")
    # A kill before the markers of a commit are written would lose them as well, in other topics.
    wait_until(lambda: no_marker_is_due(own_stack), 60)
    own_stack.kill_broker()
    cut_last_marker(own_stack.folder / "broker-1" / f"{early}-0")
    own_stack.start_broker()
    return Brokers(own_stack.kafka)


def test_a_replay_does_not_complete_over_a_lost_marker(
    own_stack: EmbeddedServers, installation: Cluster
) -> None:
    early, late = installation.topics()[:2]
    brokers = replay_until_a_marker_is_lost(own_stack, installation, early, late)
    hidden = brokers.hidden([early, late], 5)
    assert list(hidden) == [(early, 0)]
    installation.command("r", "set-rate", rate=None)
    installation.command("r", "resume")
    session = installation.wait_for("r", "completed", "failed")
    assert session["state"] == "failed"
    assert session["counters"]["published"] == EVENTS
    assert f"partition 0 of {early!r} stands still at offset {hidden[early, 0]}" in session["error"]
    assert "lost the marker of a committed slice" in session["error"]
    assert re.search(r"of producer id \d+", session["error"])

    # Kafka's tool can only drop the slice. The replay does not complete over this either.
    own_stack.run_tool(
        TRANSACTIONS_TOOL,
        *("--bootstrap-server", own_stack.kafka, "abort", "--topic", early, "--partition", "0"),
        *("--start-offset", str(hidden[early, 0])),
    )
    assert brokers.hidden([early], 30) == {}
    assert len(installation.published()) < EVENTS
    installation.command("r", "retry")
    session = installation.wait_for("r", "completed", "failed", attempt=2)
    assert session["state"] == "failed"
    assert f"consumers never see the events in partition 0 of {early!r}" in session["error"]


def test_a_replay_does_not_go_on_when_a_dying_worker_takes_the_slice_before_along(
    own_stack: EmbeddedServers, installation: Cluster
) -> None:
    # The slice without marker and the next slice are in one partition: the abort drops both.
    topic = installation.topics()[0]
    brokers = replay_until_a_marker_is_lost(own_stack, installation, topic, topic)
    before = len(installation.published())
    assert list(brokers.hidden([topic], 5)) == [(topic, 0)]
    installation.workers[0].kill()
    # Not "before-commit": the first commit may be one of a slice that only waits for the store.
    dying = installation.start_worker(0, **{VARIABLE: "after-acks"})
    dying.wait_until_ready()
    installation.command("r", "resume")
    wait_until(lambda: dying.process.poll() is not None, 60)
    installation.start_worker(0).wait_until_ready()
    session = installation.wait_for("r", "completed", "failed")
    assert session["state"] == "failed"
    assert f"consumers never see the events in partition 0 of {topic!r}" in session["error"]
    assert "under a new replay_id" in session["error"]
    assert brokers.hidden([topic], 30) == {}
    assert len(installation.published()) < before + EARLY_EVENTS
    installation.command("r", "retry")
    session = installation.wait_for("r", "completed", "failed", attempt=2)
    assert session["state"] == "failed"
