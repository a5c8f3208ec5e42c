"""The API of the console, on a real worker: the feed, the course of a replay, workers and types."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from feeds import Feed
from secret_values import SECRET_TOKEN
from support import unique_name
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker, events_of

from replay_app.partitioner import partition_of
from replay_app.web.server import Limits


@pytest.fixture
def feed(worker: Worker) -> Iterator[Feed]:
    feed = Feed(worker)
    yield feed
    feed.close()


def test_the_feed_begins_with_the_workers_and_what_is_under_way(
    shop: Cluster, worker: Worker
) -> None:
    ended = shop.run(unique_name("r"), dry_run=True, filter=SHOP_HISTORY)
    assert ended["state"] == "completed"
    running = unique_name("r")
    shop.command(running, rate=20, filter=SHOP_HISTORY)
    shop.wait_for(running, "running")
    feed = Feed(worker)
    try:
        assert feed.answer.headers["Content-Type"].startswith("text/event-stream")
        first = feed.until("ready")
        assert first[0][0] == "hello"
        assert [one["worker_id"] for one in first[0][1]["workers"]] == ["worker-0"]
        listed = {data["replay_id"]: data["state"] for name, data in first if name == "replay"}
        assert running in listed
        assert ended["replay_id"] not in listed
        shop.command(running, "cancel")
        later = feed.until("replay", replay_id=running, state="cancelled")
        assert {name for name, _ in later} <= {"replay", "rejection", "workers"}
    finally:
        feed.close()


def test_the_feed_sends_each_replay_at_most_once_a_second(shop: Cluster, feed: Feed) -> None:
    feed.until("ready")
    replay_id = unique_name("r")
    began = time.monotonic()
    shop.command(replay_id, rate=100, filter=SHOP_HISTORY)
    messages = feed.until("replay", replay_id=replay_id, state="completed")
    seconds = time.monotonic() - began
    states = [data for name, data in messages if data.get("replay_id") == replay_id]
    assert 1 <= len(states) <= seconds + 2
    revisions = [one["revision"] for one in states]
    assert revisions == sorted(set(revisions))
    assert states[-1]["counters"]["published"] == SHOP_EVENTS


def test_the_feed_tells_refused_commands_and_forgotten_replays(shop: Cluster, feed: Feed) -> None:
    feed.until("ready")
    replay_id = unique_name("unknown")
    shop.command(replay_id, "pause")
    refused = feed.until("rejection", replay_id=replay_id)[-1][1]
    assert "start it first" in refused["rejected"]
    gone = unique_name("r")
    shop.run(gone, dry_run=True, filter=SHOP_HISTORY)
    feed.until("replay", replay_id=gone, state="completed")
    shop.produce(
        None, gone.encode(), topic="status", partition=partition_of(gone.encode(), shop.partitions)
    )
    feed.until("forgotten", replay_id=gone)


def test_more_clients_than_a_worker_takes_are_told_when_to_come_back(worker: Worker) -> None:
    feeds: list[Feed] = []
    try:
        while len(feeds) <= Limits.of_this_process().streams:
            feeds.append(Feed(worker))
            if feeds[-1].answer.status != 200:
                break
        refused = feeds[-1].answer
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "GET /replays" in json.loads(refused.read())["detail"]
    finally:
        for feed in feeds:
            feed.close()


def test_history_and_series_tell_the_course_of_a_replay(shop: Cluster, worker: Worker) -> None:
    replay_id = unique_name("r")
    shop.command(replay_id, rate=20, requested_by="ana", reason="a lost view", filter=SHOP_HISTORY)
    shop.wait_for(replay_id, "running")
    shop.command(replay_id, "pause", requested_by="ben")
    shop.wait_for(replay_id, "paused")
    shop.command(replay_id, "set-rate", rate=None, requested_by="ben")
    shop.wait_for(replay_id, "paused", rate=None)
    shop.command(replay_id, "resume", requested_by="ana")
    session = shop.wait_for(replay_id, "completed")
    found = worker.get(f"/replays/{replay_id}/history")
    assert found["dropped"] == 0
    told = [(one["command"], one["by"], one["state"]) for one in found["changes"]]
    assert told[0] == ("start", "ana", "pending")
    assert found["changes"][0]["detail"] == "a lost view"
    assert ("pause", "ben", "pausing") in told or ("pause", "ben", "paused") in told
    assert [one["rate"] for one in found["changes"] if one["command"] == "set-rate"] == [None]
    assert ("resume", "ana", "running") in told
    assert told[-1] == (None, None, "completed")
    points = worker.get(f"/replays/{replay_id}/series")["points"]
    assert points == sorted(points, key=lambda one: one["at"])
    assert points[-1]["read"] == session["counters"]["read"] == SHOP_EVENTS
    assert points[-1]["store_seconds"] > 0
    assert points[-1]["broker_seconds"] > 0
    assert session["shards"][0]["worker"] == "worker-0"
    for path in ("history", "series"):
        assert worker.request("GET", f"/replays/no-such/{path}")[0] == 404


def test_the_list_is_searched_and_paged(shop: Cluster, worker: Worker) -> None:
    mark = unique_name("mark")
    names = [f"{mark}-{number}" for number in range(3)]
    for name in names:
        shop.run(name, dry_run=True, filter=SHOP_HISTORY)
    first = worker.get(f"/replays?text={mark.upper()}&limit=2")
    assert [one["replay_id"] for one in first["replays"]] == names[:0:-1]
    assert first["total"] == 3
    last = worker.get(f"/replays?text={mark}&limit=2&cursor={first['next']}")
    assert [one["replay_id"] for one in last["replays"]] == names[:1]
    assert last["next"] is None


def test_workers_and_types_tell_what_there_is(shop: Cluster, worker: Worker) -> None:
    found = worker.get("/workers")
    (one,) = found["workers"]
    assert one["worker_id"] == "worker-0"
    assert one["url"] == worker.url.replace("localhost", "127.0.0.1")
    assert one["is_this"]
    assert one["partitions"] == int(shop.environment["REPLAY_PARTITIONS"])
    assert found["trouble"] is None
    assert found["store"] == f"{shop.name}.events"
    assert (found["environment"], found["allow_original"]) == (None, True)
    assert found["you"] == {"name": None, "role": "operate", "target_prefixes": None}
    types = worker.get("/types")
    assert types["looked_at"] > 0
    names = {kind["name"]: kind for kind in types["types"]}
    assert "order_placed" in names
    stored = next(event for event in shop.stored() if event["event_type"] == "order_placed")
    assert names["order_placed"]["topic"] == stored["topic"]
    paths = {field["path"]: field for field in types["fields"]}
    assert "string" in paths["event_type"]["types"]
    assert paths["event_type"]["example"]


def test_types_of_a_source_that_is_not_allowed_are_refused(worker: Worker) -> None:
    status, problem = worker.request("GET", "/types?database=admin&collection=users")
    assert status == 422
    assert "REPLAY_SOURCES" in problem["detail"]
    assert SECRET_TOKEN not in json.dumps(problem)


def test_the_document_of_a_failed_event_is_shown_and_redacted(
    shop: Cluster, worker: Worker
) -> None:
    kind = unique_name("odd")
    (event,) = events_of(kind, 1)
    event |= {"aggregate_id": [1], "city": "Zürich"}
    shop.insert([event])
    for redact, city in (({}, "Zürich"), ({"city": "mask"}, "***")):
        replay_id = unique_name("r")
        members = {"filter": {"event_types": [kind]}, "redact": redact}
        assert shop.run(replay_id, **members)["state"] == "failed"
        path = f"/replays/{replay_id}/document?event_id={event['event_id']}"
        found = worker.get(path)
        document = json.loads(found["document"])
        assert (document["event_type"], document["aggregate_id"]) == (kind, [1])
        assert (document["city"], found["is_cut"]) == (city, False)
        status, problem = worker.request("GET", f"/replays/{replay_id}/document?event_id=gone")
        assert (status, "no event 'gone'" in problem["detail"]) == (404, True)
        assert worker.request("GET", f"/replays/{replay_id}/document")[0] == 400
        shop.command(replay_id, "cancel")
