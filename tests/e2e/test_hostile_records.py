"""Records of strangers on every internal topic, beside a running replay."""

from __future__ import annotations

import pytest
from oracle import event_id_of
from strangers import GARBAGE, write_hostile_records
from support import unique_name
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker


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
    strangers = write_hostile_records(shop, shop.session(running))

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
    assert not ids & strangers

    def ignored(topic: str) -> float:
        sample = "replay_ignored_records_total", f"{shop.prefix}{topic}"
        return worker.metrics()[sample] - before.get(sample, 0)

    # The token and the report without members are noops by their defaults, and are not odd.
    assert ignored("status") >= len(strangers)
    assert ignored("work") >= len(GARBAGE)
    assert ignored("progress") >= len(GARBAGE)
    assert ignored("requests") >= len(GARBAGE)
