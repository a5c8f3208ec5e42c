"""The HTTP API of real workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from secret_values import SECRET_TOKEN
from support import unique_name, wait_until
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker

from replay_app.commands import MAX_COMMAND_BYTES
from replay_app.partitioner import partition_of

TWO_FILTERS = b'{"filter": {"event_types": ["order_placed"]}, "filter": {}}'
REFUSED = ("replay_refused_commands_total", "malformed")


def test_a_replay_is_started_followed_and_found_completed(shop: Cluster, worker: Worker) -> None:
    body = {
        "target": {"prefix": shop.target_prefix},
        "filter": SHOP_HISTORY,
        "requested_by": "ana",
        "dry_run": True,
    }
    status, answer = worker.request("POST", "/replays", body)
    assert status == 202
    replay_id = answer["replay_id"]
    session = shop.wait_for(replay_id, "completed")
    assert 1 <= answer["revision"] < session["revision"]
    assert session["counters"]["read"] == SHOP_EVENTS
    assert session["start"]["requested_by"] == "ana"

    def is_listed() -> bool:  # the list comes from the status topic, a moment later than the table
        listed = worker.get("/replays?state=completed")["replays"]
        return replay_id in [one["replay_id"] for one in listed]

    wait_until(is_listed, 10)


def test_the_same_start_again_is_accepted_and_another_body_is_not(
    shop: Cluster, worker: Worker
) -> None:
    replay_id = unique_name("r")
    body = _start(shop, replay_id, dry_run=True)
    assert worker.request("POST", "/replays", body)[0] == 202
    assert worker.request("POST", "/replays", {**body, "command": "start"})[0] == 202
    session = shop.wait_for(replay_id, "completed")
    status, problem = worker.request("POST", "/replays", {**body, "rate": 7})
    assert (status, problem["state"]) == (409, "completed")
    assert "choose a new replay_id" in problem["detail"]
    assert shop.session(replay_id)["revision"] == session["revision"]


def test_a_running_replay_is_paused_slowed_resumed_and_cancelled(
    shop: Cluster, worker: Worker
) -> None:
    replay_id = _run_slowly(shop, worker)
    path = f"/replays/{replay_id}"
    assert worker.request("POST", f"{path}/pause", {"requested_by": "ana"})[0] == 202
    shop.wait_for(replay_id, "paused")
    status, problem = worker.request("POST", f"{path}/retry")
    assert (status, problem["state"]) == (409, "paused")
    for rate in (None, 12.5):
        assert worker.request("PATCH", path, {"rate": rate})[0] == 202
        shop.wait_for(replay_id, "paused", rate=rate)
    assert worker.request("POST", f"{path}/resume")[0] == 202
    shop.wait_for(replay_id, "running")
    assert worker.request("POST", f"{path}/cancel")[0] == 202
    assert shop.wait_for(replay_id, "cancelled")["counters"]["published"] < SHOP_EVENTS


def test_events_tell_every_state_until_the_end_and_end_then(shop: Cluster, worker: Worker) -> None:
    replay_id = _run_slowly(shop, worker)
    connection = _connection(worker)
    connection.request("GET", f"/replays/{replay_id}/events")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.readline().startswith(b"retry: ")
    worker.request("POST", f"/replays/{replay_id}/cancel")
    events = _events(answer.read().decode())
    connection.close()
    revisions = [int(event["id"]) for event in events]
    assert revisions == sorted(set(revisions))
    sessions = [json.loads(event["data"]) for event in events]
    assert revisions == [one["revision"] for one in sessions]
    states = [one["state"] for one in sessions]
    assert (states[0], states[-1]) == ("running", "cancelled")
    assert states == sorted(states, key=["running", "cancelling", "cancelled"].index)

    connection = _connection(worker)
    headers = {"Last-Event-ID": str(revisions[-1])}
    connection.request("GET", f"/replays/{replay_id}/events", headers=headers)
    assert connection.getresponse().status == 204  # tells an EventSource not to connect again
    connection.close()


def test_metrics_count_what_this_worker_has_done(shop: Cluster, worker: Worker) -> None:
    before = worker.metrics()

    def increase(name: str, label: str = "") -> float:
        return worker.metrics()[name, label] - before.get((name, label), 0)

    replay_id = unique_name("counted")
    assert worker.request("POST", "/replays", _start(shop, replay_id))[0] == 202
    assert worker.request("POST", "/replays", _start(shop, replay_id, rate=7))[0] == 409
    shop.produce(b"{")
    session = shop.wait_for(replay_id, "completed")
    wait_until(lambda: increase("replay_refused_commands_total", "malformed"), 30)
    assert increase("replay_refused_commands_total", "malformed") == 1
    assert increase("replay_events_total", "published") == SHOP_EVENTS
    assert increase("replay_published_bytes_total") == session["receipt"]["bytes"]
    assert increase("replay_slice_seconds_count", "emit") >= 1
    for stage in ("read", "encode", "send", "commit"):
        assert increase("replay_stage_seconds_count", stage) >= 1
        assert increase("replay_stage_seconds_sum", stage) > 0

    def gauge_is_right() -> bool:  # the worker is the only one, so every session is counted
        listed = worker.get("/replays?state=completed&limit=1000")["replays"]
        is_listed = replay_id in {one["replay_id"] for one in listed}
        return is_listed and worker.metrics()["replay_sessions", "completed"] == len(listed)

    wait_until(gauge_is_right, 10)


def test_a_plan_tells_what_would_happen_and_starts_nothing(shop: Cluster, worker: Worker) -> None:
    def listed() -> list[str]:
        return [one["replay_id"] for one in worker.get("/replays?limit=1000")["replays"]]

    before = listed()
    body = {"target": {"prefix": shop.target_prefix}, "filter": SHOP_HISTORY}
    status, plan = worker.request("POST", "/plans", body)
    assert (status, plan["matched"]) == (200, SHOP_EVENTS)
    assert set(plan["by_topic"]) == set(shop.topics())
    assert sum(plan["by_topic"].values()) == SHOP_EVENTS
    missing = unique_name("not-there")
    status, problem = worker.request("POST", "/plans", {**body, "target": {"topic": missing}})
    assert status == 422
    assert f"missing destination topics: {missing!r}" in problem["detail"]
    assert listed() == before


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        ("POST", "/replays", b"{", 400, "not JSON"),
        ("POST", "/replays", b"[]", 400, "not a JSON object"),
        ("POST", "/replays", b"", 400, "the command is empty"),
        ("POST", "/replays", {}, 400, "filter: name at least one condition"),
        ("POST", "/replays", {"filter": {}, "rate": 1}, 400, '{"all": true}'),
        ("POST", "/plans", {"filter": {"event_ids": []}}, 400, '{"all": true}'),
        ("POST", "/replays", b"\xff\xfe{", 400, "not JSON"),
        ("POST", "/replays", b'{"reason": "\\ud800"}', 400, "surrogate"),
        ("POST", "/replays", b"[" * 100_000, 400, "not JSON"),
        ("POST", "/replays", b'{"rate": NaN}', 400, "rate: "),
        ("POST", "/replays", TWO_FILTERS, 400, "filter: given more than once"),
        ("POST", "/plans", TWO_FILTERS, 400, "filter: given more than once"),
        ("PATCH", "/replays/unknown", b'{"rate": 1, "rate": 2}', 400, "rate: given more"),
        (
            "POST",
            "/replays/unknown/pause",
            b'{"requested_by": "a", "requested_by": "b"}',
            400,
            "requested_by: given more than once",
        ),
        ("POST", "/replays", {"filter": {"event_type": "x"}}, 400, "filter.event_type: unknown"),
        ("POST", "/replays", {"filter": {"start": "2026-01-01T00:00:00"}}, 400, "timezone"),
        ("POST", "/replays", {"replay_id": "a/b"}, 400, "replay_id"),
        ("POST", "/replays", {"replay_id": None}, 400, "replay_id"),
        ("POST", "/replays", {"command": "pause"}, 400, "command: must be 'start'"),
        ("POST", "/replays", b" " * (MAX_COMMAND_BYTES + 1), 413, "bytes"),
        ("POST", "/plans", {"rate": -1}, 400, "rate"),
        ("GET", "/replays?state=busy", None, 400, "busy"),
        ("GET", "/replays?limit=0", None, 400, "limit"),
        ("GET", "/replays?limit=%C2%B2", None, 400, "limit"),
        ("GET", "/replays/unknown", None, 404, "no replay 'unknown'"),
        ("GET", "/replays/unknown/events", None, 404, "no replay 'unknown'"),
        ("POST", "/replays/unknown/pause", None, 404, "no replay 'unknown'"),
        ("PATCH", "/replays/unknown", {"rate": 1}, 404, "no replay 'unknown'"),
        ("PATCH", "/replays/unknown", {}, 400, "rate: missing"),
        ("POST", "/replays/unknown/pause", {"replay_id": "other"}, 400, "replay_id: must be"),
        ("POST", "/replays/unknown/pause", {"rate": 1}, 400, "rate: unknown field"),
        ("GET", "/replays/a%2Fb", None, 404, "no replay"),
        ("GET", "/replays/%FF", None, 404, "no replay"),
        ("GET", "/replays/%00", None, 404, "no replay"),
        ("GET", "/replays/%E2%80%AE", None, 404, "no replay"),
        ("GET", "/replays/..%2f..%2fetc", None, 404, "no replay"),
        ("POST", "/replays/%0A/pause", None, 404, "no replay"),
        ("GET", f"/replays/{'a' * 129}", None, 404, "no replay"),
        ("DELETE", "/replays/unknown", None, 405, "GET"),
        ("GET", "/table/sessions/unknown/", None, 404, "nothing at"),
        ("GET", "/static/../views.py", None, 404, "nothing at"),
    ],
)
def test_a_wrong_request_is_a_problem_that_says_why(
    worker: Worker, method: str, path: str, body: Any, status: int, sentence: str
) -> None:
    answered, problem = worker.request(method, path, body)
    assert answered == status, problem
    assert problem["status"] == status
    assert sentence in problem["detail"]


def test_an_endless_body_is_cut_off(worker: Worker) -> None:
    connection = _connection(worker)
    body = iter([b" " * 65_536] * (2 * MAX_COMMAND_BYTES // 65_536))
    connection.request("POST", "/replays", body, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("limit", [1, 1000])
def test_an_unchanged_list_is_not_sent_again(shop: Cluster, worker: Worker, limit: int) -> None:
    for _ in range(2):  # so that a page of one replay is not the last one
        shop.run(unique_name("r"), dry_run=True, filter=SHOP_HISTORY)
    connection = _connection(worker)
    connection.request("GET", f"/replays?limit={limit}")
    answer = connection.getresponse()
    answer.read()
    tag = answer.headers["ETag"]

    def unchanged() -> bool:
        nonlocal tag
        connection.request("GET", f"/replays?limit={limit}", headers={"If-None-Match": tag})
        answer = connection.getresponse()
        answer.read()
        tag = answer.headers["ETag"]
        return answer.status == 304

    with contextlib.closing(connection):
        wait_until(unchanged, 10)


def test_probes_and_the_description_answer(worker: Worker) -> None:
    assert worker.get("/healthz")["status"] == "ok"
    assert worker.get("/readyz") == {"status": "ready", "missing": []}
    assert worker.get("/openapi.json")["openapi"].startswith("3.1.")


def test_every_answer_forbids_foreign_scripts(worker: Worker) -> None:
    for path in ("/", "/replays", "/static/main.js", "/replays/unknown"):
        connection = _connection(worker)
        connection.request("GET", path)
        headers = connection.getresponse().headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        connection.close()


def test_a_worker_with_a_token_asks_for_it(cluster: Cluster) -> None:
    cluster.environment |= {"REPLAY_API_TOKEN": SECRET_TOKEN, "REPLAY_WEB_HOST": "127.0.0.1"}
    worker = cluster.start_worker()
    worker.wait_until_ready()  # the probes need no token
    right = {"Authorization": f"Bearer {SECRET_TOKEN}"}
    for method, path in (("GET", "/replays"), ("GET", "/replays/x"), ("POST", "/plans")):
        status, problem = worker.request(method, path, {} if method == "POST" else None)
        assert status == 401
        assert "REPLAY_API_TOKEN" in problem["detail"]
    assert worker.request("GET", "/replays", headers={"Authorization": "Bearer wrong"})[0] == 401
    assert worker.request("GET", "/replays", headers=right)[0] == 200
    assert worker.request("GET", "/replays/x", headers=right)[0] == 404


def test_a_worker_that_starts_or_ends_never_fails_a_request(cluster: Cluster) -> None:
    cluster.seed(10)
    worker = cluster.start_worker()
    seen = set()

    def ready() -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        try:
            status, body = worker.request("GET", "/replays/x")
        except OSError:
            return False  # the port is not open yet
        seen.add(status)
        assert status in {404, 503}, body
        return worker.is_ready()

    wait_until(ready, 60)
    assert 503 in seen
    assert worker.request("GET", "/replays/x")[0] == 404
    replay_id = unique_name("r")
    cluster.command(replay_id, after=["not-there-yet"])
    cluster.wait_for(replay_id, "waiting")
    connection = _connection(worker)
    connection.request("GET", f"/replays/{replay_id}/events")
    stream = connection.getresponse()
    assert stream.readline().startswith(b"retry: ")
    assert worker.terminate() == 0  # an open stream does not stop the worker from ending
    assert json.loads(_events(stream.read().decode())[-1]["data"])["state"] == "waiting"
    connection.close()


def test_any_of_two_workers_answers_for_every_replay(cluster: Cluster) -> None:
    cluster.seed(100)
    workers = [cluster.start_worker(), cluster.start_worker()]
    for worker in workers:
        worker.wait_until_ready()
    # One replay for each partition, so that each worker owns some.
    names = {partition_of(name.encode(), cluster.partitions): name for name in map(str, range(99))}
    ids = list(names.values())
    assert len(ids) == cluster.partitions
    for number, replay_id in enumerate(ids):
        body = _start(cluster, replay_id, dry_run=True)
        assert workers[number % 2].request("POST", "/replays", body)[0] == 202
    for replay_id in ids:
        cluster.wait_for(replay_id, "completed")

    def same_from_both() -> bool:
        # During a rebalance a worker answers 503.
        answers = [[w.request("GET", f"/replays/{one}") for one in ids] for w in workers]
        assert {status for part in answers for status, _ in part} <= {200, 503}
        return answers[0] == answers[1] and all(status == 200 for status, _ in answers[0])

    wait_until(same_from_both, 30)

    # While one worker is stopped, the other answers for its sessions, and 503 for the rest.
    workers[1].signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(len(ids)) as pool:
            answers = list(pool.map(lambda one: _ask(workers[0], f"/replays/{one}"), ids))
    finally:
        workers[1].signal(signal.SIGCONT)
    assert sorted(status for status, _ in answers) == [200, 200, 503, 503]
    assert all(int(headers["Retry-After"]) > 0 for status, headers in answers if status == 503)

    workers[1].kill()
    wait_until(
        lambda: all(workers[0].request("GET", f"/replays/{one}")[0] == 200 for one in ids),
        120,  # usually 10 s; once, on a busy machine, 60 s were not enough
        "no worker took over",
    )


def _start(cluster: Cluster, replay_id: str, **body: Any) -> dict[str, Any]:
    target = {"prefix": cluster.target_prefix}
    return {"replay_id": replay_id, "target": target, "filter": SHOP_HISTORY, **body}


def _run_slowly(cluster: Cluster, worker: Worker) -> str:
    """Start a replay that would take a minute, and return its id once it runs."""
    replay_id = unique_name("r")
    body = _start(cluster, replay_id, rate=SHOP_EVENTS / 60)
    assert worker.request("POST", "/replays", body)[0] == 202
    # The worker's own board, which may be behind the one of the test.
    wait_until(lambda: worker.get(f"/replays/{replay_id}")["state"] == "running", 30)
    return replay_id


def _connection(worker: Worker) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(worker.url.removeprefix("http://"), timeout=30)


def _ask(worker: Worker, path: str) -> tuple[int, Any]:
    connection = _connection(worker)
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.headers


def _events(text: str) -> list[dict[str, str]]:
    """Parse server-sent events; leave comments out."""
    blocks = [block for block in text.split("\n\n") if "data: " in block]
    return [dict(line.split(": ", 1) for line in block.strip().splitlines()) for block in blocks]


def test_a_start_and_a_plan_need_a_body(worker: Worker) -> None:
    for path in ("/replays", "/plans"):
        status, answer = worker.request("POST", path, b"")
        assert (status, answer["detail"]) == (400, "the command is empty; send a JSON object")
