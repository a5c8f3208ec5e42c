"""The HTTP server and its clients: slow ones, silent ones, endless ones, and too many."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from aiohttp import web
from secret_values import SECRET_TOKEN

from replay_app.demo.stack import free_port
from replay_app.metrics import Metrics
from replay_app.settings import Settings
from replay_app.tokens import Tokens
from replay_app.web.access import require_access
from replay_app.web.server import (
    LIMITS,
    MAX_FIELD_BYTES,
    MAX_HEADERS,
    MAX_LINE_BYTES,
    HttpServer,
    Limits,
    read_body,
)

SHORT = Limits(
    connections=8, streams=2, idle_seconds=1, body_seconds=1, answer_seconds=1, close_seconds=1
)
DEADLINE_SECONDS = 20.0
MAX_BODY_BYTES = 1000
SMALL_BUFFER = 2048
ENTERED = web.AppKey("entered", list[str])
"""The paths of the requests that a view has seen."""

BOTH_LENGTHS = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
)

Start = Callable[..., Awaitable["Server"]]


class Server:
    """A server with a few views, and what it counts."""

    def __init__(self, limits: Limits) -> None:
        self.port = free_port()
        self.metrics = Metrics()
        self.app = web.Application()
        self.app[LIMITS] = limits
        self.app[ENTERED] = []
        self.app.router.add_get("/healthz", _small)
        self.app.router.add_get("/large", _large)
        self.app.router.add_get("/last", _last)
        self.app.router.add_get("/waiting", _waiting)
        self.app.router.add_post("/replays", _echo)
        settings = Settings(api_token=SECRET_TOKEN, web_port=self.port)
        self.http = HttpServer(
            self.app,
            require_access(settings, Tokens(settings)),
            self.metrics,
            "127.0.0.1",
            self.port,
        )

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> bytes:
        """Send bytes, and return all that comes back until the server closes the connection."""
        reader, writer = await self.connect()
        writer.write(request)
        return await _rest(reader, writer)

    def refused(self, why: str) -> float:
        return (
            self.metrics.registry.get_sample_value("replay_http_refused_total", {"why": why}) or 0
        )


async def _small(request: web.Request) -> web.Response:
    request.app[ENTERED].append(request.path)
    return web.Response(text="fine")


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=b"x" * 50_000_000)


async def _last(request: web.Request) -> web.Response:
    """Answer with what the system's buffers do not hold, but the server's buffer does."""
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
    request.app[ENTERED].append(request.path)
    return web.Response(body=b"x" * 60_000)


async def _waiting(_: web.Request) -> web.Response:
    await asyncio.sleep(DEADLINE_SECONDS)  # as long as the test
    return web.Response()


async def _echo(request: web.Request) -> web.Response:
    request.app[ENTERED].append(request.path)
    return web.Response(body=await read_body(request, MAX_BODY_BYTES))


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Server] = []

    async def start(limits: Limits = SHORT) -> Server:
        server = Server(limits)
        await server.http.start()
        started.append(server)
        return server

    yield start
    for server in started:
        await server.http.stop()


def _head(line: str, *headers: str, token: str = SECRET_TOKEN) -> bytes:
    given = [f"Authorization: Bearer {token}", *headers]
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *given, "", ""]).encode()


async def _rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Return what comes until the end of the connection, which must come in time."""
    received = b""
    async with asyncio.timeout(DEADLINE_SECONDS):
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                received += part
    writer.close()
    return received


async def test_a_connection_without_a_whole_head_ends(start: Start) -> None:
    server = await start()
    for sent in (b"", b"GET", b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"\r\n\r\n"):
        assert await server.ask(sent) == b""


async def test_a_client_that_sends_a_byte_now_and_then_ends_too(start: Start) -> None:
    server = await start()
    reader, writer = await server.connect()

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in _head("GET /healthz", *(f"X-{n}: {'y' * 50}" for n in range(50))):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(SHORT.idle_seconds / 10)

    dripping = asyncio.create_task(drip())
    assert await _rest(reader, writer) == b""
    dripping.cancel()


async def test_an_idle_connection_ends(start: Start) -> None:
    server = await start()
    assert b"fine" in await server.ask(_head("GET /healthz"))


@pytest.mark.parametrize("sent", [b"", b"{"])
async def test_a_body_that_does_not_come_is_given_up(start: Start, sent: bytes) -> None:
    server = await start()
    answer = await server.ask(_head("POST /replays", "Content-Length: 100") + sent)
    assert _status(answer) == 408
    assert b"did not come within 1 s" in answer


async def test_a_body_that_is_too_large_is_refused_and_the_connection_ends(start: Start) -> None:
    server = await start()
    size = MAX_BODY_BYTES + 1
    answer = await server.ask(_head("POST /replays", f"Content-Length: {size}") + b"x" * size)
    assert _status(answer) == 413


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Transfer-Encoding: chunked", b"zz\r\n"),
        ("Transfer-Encoding: chunked", b"5\r\nabcdefgh\r\n"),
        ("Transfer-Encoding: chunked", b"-1\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", b"3\r\nabc\r\n0\r\n\r\n"),
        ("Content-Length: 3\r\nContent-Encoding: gzip", b"abc"),
        ("Content-Length: 3\r\nContent-Encoding: deflate", b"abc"),
    ],
)
async def test_a_malformed_body_is_refused_in_words(
    start: Start, caplog: pytest.LogCaptureFixture, headers: str, body: bytes
) -> None:
    server = await start()
    answer = await server.ask(_head("POST /replays", headers) + body)
    assert _status(answer) == 400
    assert "Traceback" not in caplog.text


async def test_a_client_that_leaves_inside_a_body_leaves_no_traceback(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start()
    for _ in range(5):
        _, writer = await server.connect()
        writer.write(_head("POST /replays", "Content-Length: 100") + b"{")
        await writer.drain()
        writer.transport.abort()
    await _until(lambda: not server.http._open)
    assert "Traceback" not in caplog.text


async def test_a_client_that_takes_no_answer_loses_its_connection(start: Start) -> None:
    server = await start()
    _, writer = await server.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(_head("GET /large"))
    await _until(lambda: server.http._open)
    await _until(lambda: not server.http._open)
    writer.close()


async def test_a_client_that_takes_no_last_answer_loses_its_connection(start: Start) -> None:
    server = await start()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        client.connect(("127.0.0.1", server.port))
        client.send(_head("GET /last", "Connection: close"))
        await _until(lambda: server.app[ENTERED])
        await _until(lambda: not server.http._open)


async def test_half_sent_requests_give_way_to_whole_ones(start: Start) -> None:
    server = await start(replace(SHORT, idle_seconds=DEADLINE_SECONDS * 2))
    half = [await server.connect() for _ in range(SHORT.connections)]
    for number, (_, writer) in enumerate(half):
        # Each second one is inside a body, the others are inside a head.
        writer.write(_head("POST /replays", "Content-Length: 9") if number % 2 else b"GET ")
    await _until(lambda: len(server.http._open) == SHORT.connections)
    whole = [await server.connect() for _ in range(3)]
    for reader, writer in whole:
        writer.write(_head("GET /healthz"))
        assert b" 200 OK" in await reader.readline()
    assert server.refused("too_many") == 3
    assert len(server.http._open) == SHORT.connections
    for reader, writer in half[:3]:  # the oldest ones
        assert await _rest(reader, writer) == b""
    for _, writer in half + whole:
        writer.close()


async def test_requests_at_work_keep_their_connections(start: Start) -> None:
    server = await start()
    busy = [await server.connect() for _ in range(SHORT.connections)]
    for _, writer in busy:
        writer.write(_head("GET /waiting"))

    def at_work() -> int:
        return sum(not one.awaits_its_client for one in server.http._open)

    await _until(lambda: at_work() == SHORT.connections)
    assert await server.ask(_head("GET /healthz")) == b""
    assert len(server.http._open) == SHORT.connections
    for _, writer in busy:
        writer.close()


@pytest.mark.parametrize(
    "token", ["", "wrong", "\xff", "Bearer", pytest.param(f"{SECRET_TOKEN}x", id="almost")]
)
async def test_without_the_token_nothing_is_read_and_nothing_else_happens(
    start: Start, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start()
    heads = [
        _head("POST /replays", "Content-Length: 100000000", more, token=token)
        for more in ("Expect: 100-continue", "Expect: nothing", "X-A: b")
    ]
    for answer in await asyncio.gather(*map(server.ask, heads)):
        assert _status(answer) == 401
        assert b"Content-Security-Policy" in answer
        assert b"WWW-Authenticate: Bearer" in answer
    assert not server.app[ENTERED]
    assert server.refused("unauthorized") == 3
    assert len(caplog.records) <= 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /" + b"a" * 2 * MAX_LINE_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2 * MAX_FIELD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X" * 10_000 + b": y\r\n\r\n", 431),
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, 400),
        (b"\x00\x00\x00\x00\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\x00Y: z\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: z\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (BOTH_LENGTHS, 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: odd\r\n\r\n", 400),
    ],
)
async def test_a_malformed_request_is_a_problem_without_its_bytes(
    start: Start, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: int
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start()
    answer = await server.ask(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert _status(answer) == status
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status
    assert server.refused("malformed") == 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "around",
    [
        b"Authorization Bearer %s",
        b"Authorization: Bearer %s\x00",
        b"Authorization: Bearer %s\x01",
        b"Authorization: Bearer\r\n%s",
        b"Authorization\x00: Bearer %s",
        b"Authorization: Bearer %s\r\nno colon",
        b"Authorization: Bearer %s\n\rX",
        b"Authorization : Bearer %s",
        b"X-\xff: \xff\r\nAuthorization: Bearer %s\r\n\x00",
        b"Authorization: Bearer %s" + b"a" * MAX_FIELD_BYTES,
    ],
)
async def test_a_malformed_header_never_shows_the_token(
    start: Start, caplog: pytest.LogCaptureFixture, around: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    server = await start()
    line = around.replace(b"%s", SECRET_TOKEN.encode())
    answer = await server.ask(b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\n")
    assert _status(answer) in {400, 431}
    assert SECRET_TOKEN.encode() not in answer
    assert SECRET_TOKEN not in caplog.text
    assert "Traceback" not in caplog.text


async def test_many_refused_requests_make_one_line(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start()
    for _ in range(20):
        await server.ask(b"GARBAGE\r\n\r\n")
        await server.ask(_head("GET /replays", "Connection: close", token="wrong"))  # noqa: S106
    assert (server.refused("malformed"), server.refused("unauthorized")) == (20, 20)
    assert len(caplog.records) <= 1


@pytest.mark.parametrize(
    "line",
    [
        "OPTIONS *",
        "CONNECT localhost:80",
        "TRACE /",
        "GET http://other/healthz",
        "GET //",
        "GET  /",
    ],
)
async def test_an_odd_request_has_a_status(
    start: Start, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    server = await start()
    answer = await server.ask(_head(line, "Connection: close"))
    assert 200 <= _status(answer) < 500
    assert "Traceback" not in caplog.text


def _status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1."), answer
    return int(answer.split()[1])


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)
