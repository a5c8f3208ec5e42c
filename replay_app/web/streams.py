"""Streams of server-sent events, and one replay as such a stream."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web

from replay_app.states import TERMINAL
from replay_app.web.access import is_still_allowed
from replay_app.web.problems import Problem
from replay_app.web.server import LIMITS, Limits
from replay_app.web.shared import ApiView, Shared, require_session, require_usable, shared_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KEEPALIVE = ": still here\n\n"
"""A comment: the client passes it over."""
KEEPALIVE_SECONDS = 15.0
"""The longest silence on a stream of events."""
GONE_SECONDS = 1.0
"""Interval at which a stream looks whether its client has left."""
RECONNECT_MS = 2000


class Events(ApiView):
    """A replay as server-sent events."""

    async def get(self, request: web.Request, replay_id: str) -> web.StreamResponse:
        """Send the whole session now and at each change, until a terminal state."""
        shared = shared_of(request)
        require_usable(replay_id)
        session = await require_session(shared, replay_id)
        if session.state in TERMINAL and request.headers.get("Last-Event-ID") == str(
            session.revision
        ):
            return web.Response(status=HTTPStatus.NO_CONTENT)  # tells EventSource to stop
        texts = _event_texts(shared, replay_id, request)
        return await answer_stream(request, texts, f"ask GET /replays/{replay_id} instead")


async def answer_stream(
    request: web.Request, texts: AsyncGenerator[str], instead: str
) -> web.StreamResponse:
    """Answer with the texts as a stream of server-sent events.

    ``instead`` tells a client what to do where too many streams are open. The stream ends, without
    one more text, when the client's token is not in force any more.

    Raises
    ------
    Problem
        When the worker has as many streams as it may have (503).

    """
    shared, limits = shared_of(request), request.app[LIMITS]
    if shared.streams >= limits.streams:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{limits.streams} streams of events are open, as many as a worker has; "
            f"{instead}, or another worker",
        )
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
    )
    shared.streams += 1
    try:
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        # TimeoutError: the client does not read.
        with suppress(ConnectionError, TimeoutError):
            await _write(response, f"retry: {RECONNECT_MS}\n\n", limits)
            async with aclosing(texts):
                async for text in texts:
                    context = shared.context
                    is_public = context.settings.public_reads
                    if not is_still_allowed(request, context.tokens, public_reads=is_public):
                        break  # the client comes back, and hears why
                    await _write(response, text, limits)
    finally:
        shared.streams -= 1
    return response


async def _write(response: web.StreamResponse, text: str, limits: Limits) -> None:
    async with asyncio.timeout(limits.answer_seconds):
        await response.write(text.encode())


async def _event_texts(shared: Shared, replay_id: str, request: web.Request) -> AsyncGenerator[str]:
    changes = shared.context.board.changes(replay_id)
    stopping = asyncio.ensure_future(shared.stopping.wait())
    change = asyncio.ensure_future(anext(changes))
    heard = time.monotonic()
    try:
        while not stopping.done() and request.transport is not None:  # None: the client has left
            await asyncio.wait(
                {change, stopping}, timeout=GONE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not change.done():
                if time.monotonic() - heard >= KEEPALIVE_SECONDS:
                    heard = time.monotonic()
                    yield KEEPALIVE
                continue
            session = change.result()
            if session is None:  # the replay is forgotten
                return
            heard = time.monotonic()
            yield f"id: {session.revision}\ndata: {shared.answer_of(session)}\n\n"
            if session.state in TERMINAL:
                return
            change = asyncio.ensure_future(anext(changes))
    finally:
        stopping.cancel()
        change.cancel()
