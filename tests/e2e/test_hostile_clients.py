"""Clients that mean harm, against a real worker: half-sent requests, floods, malformed headers."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator

from secret_values import SECRET_TOKEN, assert_no_secret
from support import unique_name, wait_until
from workers import SHOP_HISTORY, Cluster, Worker

HALF_SENT = 1000
ANSWER_SECONDS = 20.0
STREAMS = 200


@contextlib.contextmanager
def _half_sent(worker: Worker, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open connections that never send a whole request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * count)), hard))
    with contextlib.ExitStack() as opened:
        opened.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        yield [opened.enter_context(_sending(worker, sent)) for _ in range(count)]


def _sending(worker: Worker, sent: bytes) -> socket.socket:
    port = int(worker.url.rpartition(":")[2])
    client = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
    with contextlib.suppress(ConnectionError):  # the worker may have closed it already
        client.sendall(sent)
    return client


def _answer(worker: Worker, sent: bytes) -> bytes:
    """Send bytes; return all that comes back until the worker closes the connection."""
    received = b""
    with _sending(worker, sent) as client, contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            received += part
    return received


def _descriptors(worker: Worker) -> int:
    return len(os.listdir(f"/proc/{worker.process.pid}/fd"))  # noqa: PTH208 - counted only


def test_a_thousand_half_sent_requests_take_nothing_from_others(
    shop: Cluster, worker: Worker
) -> None:
    before = _descriptors(worker)
    head = b"POST /replays HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    with (
        _half_sent(worker, HALF_SENT // 2, head),
        _half_sent(worker, HALF_SENT // 2, head + b"\r\n{"),
    ):
        assert worker.request("GET", "/healthz")[0] == 200
        assert worker.request("GET", "/readyz")[0] == 200
        assert _descriptors(worker) - before <= 400  # the limit, and the connections to accept
        replay_id = unique_name("besieged")
        body = {"replay_id": replay_id, "filter": SHOP_HISTORY, "dry_run": True}
        body["target"] = {"prefix": shop.target_prefix}
        assert worker.request("POST", "/replays", body)[0] == 202
        shop.wait_for(replay_id, "completed")
    assert "Too many open files" not in worker.log.read_text()
    wait_until(lambda: _descriptors(worker) < before + 64, ANSWER_SECONDS, "not given back")


def test_streams_have_a_limit_and_leave_room_for_other_requests(
    shop: Cluster, worker: Worker
) -> None:
    replay_id = unique_name("watched")
    body = {"replay_id": replay_id, "filter": SHOP_HISTORY, "after": ["not-there-yet"]}
    body["target"] = {"prefix": shop.target_prefix}
    assert worker.request("POST", "/replays", body)[0] == 202
    shop.wait_for(replay_id, "waiting")
    path = f"/replays/{replay_id}/events"
    with _half_sent(worker, STREAMS, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()):

        def is_refused() -> bool:
            with _sending(worker, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()) as s:
                return b" 503 " in s.recv(100)

        wait_until(is_refused, ANSWER_SECONDS)
        status, problem = worker.request("GET", path)
        assert status == 503
        assert "streams of events are open" in problem["detail"]
        assert worker.request("GET", f"/replays/{replay_id}")[0] == 200
    # The places of clients that have left are free again.
    wait_until(lambda: not is_refused(), ANSWER_SECONDS)
    assert worker.request("POST", f"/replays/{replay_id}/cancel")[0] == 202
    shop.wait_for(replay_id, "cancelled")


PATHS = ("/", "/replays", "/replays/x", "/replays/x/events", "/readyz", "/static/main.js", "/plans")
HEADERS = (
    *("Range: bytes=abc", "Range: bytes=9-1", "Range: bytes=-99999999999999999999"),
    *("Range: pages=1", "If-Range: odd", "If-Match: odd", "If-Modified-Since: odd"),
    *('If-None-Match: "', 'If-None-Match: odd,,"a"', "If-None-Match: *"),
    "If-Modified-Since: Sat, 99 Foo 99999 99:99:99 GMT",
    *("Cookie: odd;;=;\xff", "Accept: \xff", "Accept-Encoding: odd;q=x", "Last-Event-ID: \xff"),
    *('Content-Type: odd/;;;charset="', "Content-Type: a/b; charset=odd", "Content-Type: \xff"),
    *("Content-Encoding: br", "Connection: Upgrade\r\nUpgrade: websocket", "Expect: odd"),
    *("Origin: \xff", "Origin: http://[", "Origin: null", "Authorization: Basic \xff"),
    *("Host: [", "Host: \xff", "Host: localhost:99999", "Host: a:b:c", "Replay-Routed: 1"),
)
TARGETS = (
    *("/static/" + "a" * 4000, "/static/" + "a/" * 2000, "/static/%00", "/static/", "/static/.."),
    *("/static/%2e%2e%2fviews.py", "/static/..%5c", "/static/index.html", "/static/%FF"),
    *("//replays", "/replays//", "/replays/%", "/replays/%zz", "/replays/%FF/events", "/*", "*"),
    *("/replays?state=%00", "/replays?limit=%FF", "/replays?" + "state=running&" * 500),
    *("/replays/" + "%41" * 1000, "/readyz?exclude=%00", "/replays#x", "http://[/", "http:///x"),
)
METHODS = ("GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS", "TRACE", "ODD", "CONNECT")


def test_no_odd_header_path_or_method_is_a_fault_of_the_worker(worker: Worker) -> None:
    requests = [
        (method, path, version, header)
        for path in PATHS
        for method in (["GET", "POST"] if path in {"/replays", "/plans"} else ["GET"])
        for header in HEADERS
        for version in ("1.1", "1.0")
    ]
    requests += [(method, target, "1.1", "X: y") for method in METHODS for target in TARGETS]
    for method, target, version, header in requests:
        host = "" if header.startswith("Host") else "Host: localhost\r\n"
        sent = f"{method} {target} HTTP/{version}\r\n{host}{header}\r\nConnection: close\r\n\r\n"
        answer = _answer(worker, sent.encode("latin-1"))
        assert answer.startswith(b"HTTP/1."), (sent, answer)
        assert 200 <= int(answer.split()[1]) < 500, (sent, answer)
    text = worker.log.read_text()
    assert "Traceback" not in text
    assert "replay_app.web.server: the HTTP server failed" not in text


def test_refused_requests_leave_neither_the_token_nor_a_line_each(cluster: Cluster) -> None:
    cluster.environment |= {
        "REPLAY_API_TOKEN": SECRET_TOKEN,
        "REPLAY_WEB_HOST": "127.0.0.1",
        "REPLAY_LOG_LEVEL": "DEBUG",
    }
    worker = cluster.start_worker()
    worker.wait_until_ready()
    lines = worker.log.read_text().count(" replay_app.web")
    for number in range(100):
        for line in (
            f"Authorization Bearer {SECRET_TOKEN}",
            f"Authorization: Bearer {SECRET_TOKEN}\0",
            f"Authorization: Bearer {SECRET_TOKEN}\r\nno colon {number}",
        ):
            sent = f"GET /replays HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n"
            answer = _answer(worker, sent.encode())
            assert answer.startswith(b"HTTP/1.0 400 ")
            assert_no_secret(answer.decode(), "the answer")
        assert worker.request("POST", "/replays", {}, {"Authorization": "Bearer x"})[0] == 401
    text = worker.log.read_text()
    assert_no_secret(text, "the log")
    assert "Traceback" not in text
    assert text.count(" replay_app.web") - lines <= 2
    right = {"Authorization": f"Bearer {SECRET_TOKEN}"}
    assert worker.request("GET", "/replays", headers=right)[0] == 200
