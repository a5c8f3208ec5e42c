"""A replay that goes on reads the events of its plan, or says why it cannot."""

from __future__ import annotations

from functools import partial

from support import wait_until
from workers import Cluster

from replay_app.demo.shop import seed_store

EVENTS = 1_500
A_MINUTE = 60.0


def pause_in_mid_run(cluster: Cluster, *replay_ids: str) -> None:
    cluster.environment |= {"REPLAY_SLICE_EVENTS": "200", "REPLAY_PAGE_EVENTS": "100"}
    cluster.seed(EVENTS)
    cluster.start_worker()
    for name in replay_ids:
        # Counted before the first event: a count beside the replay begins again after a pause.
        cluster.command(name, rate=200, preflight="full")
    for name in replay_ids:
        wait_until(partial(has_read, cluster, name), A_MINUTE)
        cluster.command(name, "pause")
        cluster.wait_for(name, "paused")
        cluster.command(name, "set-rate", rate=None)


def has_read(cluster: Cluster, replay_id: str) -> bool:
    session = cluster.session(replay_id)
    return bool(session and session["counters"]["read"])


def test_a_pause_during_which_store_or_mapping_change_ends_with_both_values(
    cluster: Cluster,
) -> None:
    pause_in_mid_run(cluster, "store", "mapping", "untouched")
    other = f"{cluster.name}-other"
    changes = {
        "store": ("REPLAY_MONGO_DATABASE", cluster.name, other),
        "mapping": ("REPLAY_FIELD_KEY", "", "order_id"),
    }
    seed_store(cluster.stack.mongo, other, "events", EVENTS * 2)
    for name, (variable, before, now) in changes.items():
        cluster.workers[0].terminate()
        cluster.start_worker(0, **{variable: now}).wait_until_ready()
        for command in ("resume", "retry"):
            cluster.command(name, command)
            session = cluster.wait_for(name, "failed", attempt=1 if command == "resume" else 2)
            told = f"{variable} was {before!r}, and is {now!r} now"
            assert told in session["error"]
        assert 0 < session["counters"]["published"] < EVENTS
        assert len(cluster.published_by(name)) == session["counters"]["published"]
    cluster.workers[0].terminate()
    cluster.start_worker(0).wait_until_ready()
    for name in changes:
        cluster.command(name, "retry")
    cluster.command("untouched", "resume")
    for name in ("store", "mapping", "untouched"):
        assert cluster.wait_for(name, "completed")["counters"]["published"] == EVENTS
    cluster.assert_exact("store", "mapping", "untouched")


def test_a_collection_that_was_dropped_and_filled_again_is_another_one(cluster: Cluster) -> None:
    pause_in_mid_run(cluster, "r")
    with cluster.store() as events:
        events.drop()
    cluster.insert({"_id": number, "event_id": str(number)} for number in range(10))
    cluster.command("r", "resume")
    error = cluster.wait_for("r", "failed")["error"]
    assert "UUID of the collection was '" in error
    assert "start a new replay" in error


def test_the_receipt_says_that_the_store_has_lost_events_during_a_pause(cluster: Cluster) -> None:
    pause_in_mid_run(cluster, "r")
    lost = [event["_id"] for event in cluster.stored()[-500:]]
    with cluster.store() as events:
        events.delete_many({"_id": {"$in": lost}})
    cluster.command("r", "resume")
    session = cluster.wait_for("r", "completed")
    assert session["receipt"]["counters"]["published"] == EVENTS - 500
    (warning,) = [one for one in session["warnings"] if "the plan counted" in one]
    assert warning.startswith(
        "the plan counted 1,500 events, the replay has read 1,000, and the store now has 1,000: "
        "events were stored, changed or deleted during the replay"
    )
    cluster.assert_exact("r")
