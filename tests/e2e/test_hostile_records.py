"""Records of strangers on every internal topic, beside a running replay."""

from __future__ import annotations

import asyncio

import pytest
from oracle import event_id_of
from strangers import GARBAGE, write_hostile_records
from support import unique_name, wait_until
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker

from replay_app.settings import load_settings
from replay_app.topics import ensure_topics


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
    for replay_id in strangers:
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
