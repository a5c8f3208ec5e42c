"""The HTTP server of a worker: aiohttp's, with limits on what clients can take from the worker.

Kafka and the store come first: HTTP connections take a quarter of the process's file descriptors
at most. A client that is slow, silent or endless loses its connection. What a client sends is never
logged or sent back, because any part of a request may hold the token.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from replay_app.logs import RateLimit
from replay_app.web.problems import Problem, answer_problems, problem

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

    from replay_app.metrics import Metrics

logger = logging.getLogger(__name__)
logger.addFilter(RateLimit(burst=1, window_seconds=60.0))

MAX_CONNECTIONS = 256
SHARE_OF_DESCRIPTORS = 4
"""HTTP connections take one descriptor in this number at most."""
BACKLOG = 128
"""Connections that wait to be accepted. All of them may be accepted before the first is closed."""
MAX_LINE_BYTES = 8_190
"""Of the request's first line."""
MAX_FIELD_BYTES = 8_192
"""Of a header. Another number than MAX_LINE_BYTES: aiohttp's error tells one from the other so."""
MAX_HEADERS = 64
MAX_DRAINED_BYTES = 1 << 20
"""Of a body that nobody wants. A client that is still sending does not see the answer otherwise."""
SHUTDOWN_SECONDS = 2.0
"""For requests under way when the worker ends, and again once they are cancelled."""
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _connection_limit() -> int:
    """Return how many HTTP connections this process may hold."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, descriptors // SHARE_OF_DESCRIPTORS))


@dataclass(frozen=True)
class Limits:
    """What the clients of one worker may take."""

    connections: int
    streams: int
    """Streams of events that are open at the same time."""
    idle_seconds: float = 30.0
    """From the start of a connection, or from an answer, to the end of the next request's head.
    Longer than the 15 s for which aiohttp's clients, so other workers, keep a connection."""
    body_seconds: float = 30.0
    """For a body to come, once a view reads the body."""
    answer_seconds: float = 120.0
    """For a client to take an answer, or one message of a stream; and for the last bytes of the
    last answer."""
    close_seconds: float = 2.0
    """For a client that is refused to stop sending."""

    @classmethod
    def of_this_process(cls) -> Limits:
        """Return the limits that fit this process's number of file descriptors."""
        connections = _connection_limit()
        return cls(connections, max(1, connections // 4))


LIMITS = web.AppKey("limits", Limits)


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """Return a request's body.

    Raises
    ------
    Problem
        400, 408 or 413: the body is malformed, too slow or too large.

    """
    seconds = request.app[LIMITS].body_seconds
    chunks, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            if (request.content_length or 0) <= max_bytes:
                async for chunk in request.content.iter_any():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > max_bytes:
                        break
                else:
                    return b"".join(chunks)
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {seconds:g} s"
        ) from None
    except (web.RequestPayloadError, OSError):  # malformed, or the client has left
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "the body is not as the headers say: it ends too early, or its chunks or its "
            "Content-Encoding are malformed",
        ) from None
    raise Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"a command has at most {max_bytes} bytes; to name more events, use a wider filter or "
        "several replays",
    )


class HttpServer:
    """The server of one web application.

    ``check`` is the middleware that refuses requests without access. The server asks it before
    anything else happens for a request, so such a request costs nothing more.
    """

    def __init__(
        self, web_app: web.Application, check: Middleware, metrics: Metrics, host: str, port: int
    ) -> None:
        self.limits = web_app[LIMITS]
        self._check = check
        self._metrics = metrics
        self._address = (host, port)
        self._runner = web.AppRunner(
            web_app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS, handle_signals=False
        )
        self._handle: Any = None
        """The application's own handler of requests."""
        self._listener: asyncio.Server | None = None
        self._open: dict[_Connection, None] = {}
        """The oldest first."""
        self._refused: Counter[str] = Counter()

    async def start(self) -> None:
        """Listen. Raises OSError if the address is taken."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # noqa: S101 - setup has made it
        self._handle, server.request_handler = server.request_handler, self._answer
        loop = asyncio.get_running_loop()
        host, port = self._address
        self._listener = await loop.create_server(
            lambda: _Connection(self, server),
            host,
            port,
            backlog=min(BACKLOG, self.limits.connections),
        )

    async def stop(self) -> None:
        """End the streams and the requests under way, within a few seconds."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()

    def admit(self, connection: _Connection) -> bool:
        """Take a new connection. At the limit, the oldest one that waits for its client goes."""
        if len(self._open) >= self.limits.connections:
            oldest = next((one for one in self._open if one.awaits_its_client), None)
            self.count_refused("too_many")
            if oldest is None:
                return False
            oldest.abort()
            self.forget(oldest)
        self._open[connection] = None
        return True

    def forget(self, connection: _Connection) -> None:
        """Forget a connection that has ended."""
        self._open.pop(connection, None)

    def count_refused(self, why: str) -> None:
        """Count a refused request or connection. The log has one line a minute for all of them."""
        self._metrics.refused_requests.labels(why).inc()
        self._refused[why] += 1
        so_far = ", ".join(f"{count} {name}" for name, count in sorted(self._refused.items()))
        logger.warning("HTTP requests refused since the start: %s", so_far)

    async def _answer(self, request: Any) -> web.StreamResponse:
        connection: _Connection = request.protocol
        connection.request = request
        response = await answer_problems(request, self._checked)
        if response.status == HTTPStatus.UNAUTHORIZED:
            self.count_refused("unauthorized")
        if not response.prepared:
            add_security_headers(response)
            if not request.content.is_eof():
                response.force_close()  # what comes next is still this request's body
        return response

    async def _checked(self, request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await self._check(request, self._handle)
        return response


class _Connection(web.RequestHandler):
    """One client's connection, with time limits.

    aiohttp's ``keepalive_timeout`` ends a connection on which no whole request head has come in
    time, however many bytes have come.
    """

    __slots__ = ("_server", "request")

    def __init__(self, server: HttpServer, aiohttp_server: web.Server) -> None:
        super().__init__(
            aiohttp_server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=server.limits.idle_seconds,
            lingering_time=0,  # see `_drain`
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_HEADERS,
            access_log=None,  # type: ignore[arg-type]  # as `AppRunner` passes it
        )
        self._server = server
        self.request: web.BaseRequest | None = None
        """The request that is being answered."""

    @property
    def awaits_its_client(self) -> bool:
        """Whether the client has the next step: to send a request, or to take an answer."""
        return self.request is None or self.writing_paused or not self.request.content.is_eof()

    def abort(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or close the connection if there are too many."""
        if self._server.admit(self):
            super().connection_made(transport)
        else:
            transport.abort()  # type: ignore[attr-defined]

    def connection_lost(self, exc: BaseException | None) -> None:
        """Free the connection's place."""
        self._server.forget(self)
        super().connection_lost(exc)

    async def start(self) -> None:
        """Answer the connection's requests; then close, also if the client takes no answer."""
        transport: Any = self.transport
        try:
            await super().start()
        finally:
            loop = asyncio.get_running_loop()
            loop.call_later(self._server.limits.answer_seconds, transport.abort)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; return it, and whether the client has left."""
        try:
            async with asyncio.timeout(self._server.limits.answer_seconds):
                answered = await super().finish_response(request, resp, start_time)
            await self._drain(request)
        except TimeoutError:
            self.abort()
            return resp, True
        finally:
            self.request = None
        return answered

    async def _drain(self, request: web.BaseRequest) -> None:
        """Read some more of a body that nobody wants, so that its sender sees the answer."""
        left = MAX_DRAINED_BYTES
        with suppress(web.RequestPayloadError, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(self._server.limits.close_seconds):
                while left > 0 and not request.content.is_eof():
                    left -= len(await request.content.readany())

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes the request
    ) -> web.StreamResponse:
        """Answer a request that cannot be read. aiohttp would log its bytes and send them back."""
        if request.writer.output_size > 0:
            raise ConnectionError
        if isinstance(exc, HttpProcessingError):
            self._server.count_refused("malformed")
            response = problem(*_refusal(exc))
        else:
            logger.error("the HTTP server failed: %s", type(exc).__name__)
            response = problem(status, "the worker failed to answer; its log says why")
        add_security_headers(response)
        response.force_close()
        return response


def _refusal(error: HttpProcessingError) -> tuple[HTTPStatus, str]:
    """Return status and sentence for a malformed request, without any of its bytes."""
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_LINE_BYTES:
            return (
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"the first line of a request has at most {MAX_LINE_BYTES} bytes",
            )
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"a header has at most {MAX_FIELD_BYTES} bytes",
        )
    if "Too many headers" in error.message:
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"a request has at most {MAX_HEADERS} headers",
        )
    return HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1 (RFC 9112)"


def add_security_headers(response: web.StreamResponse) -> None:
    """Add the headers that every answer has."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
