"""The feed: every replay in one stream of server-sent events, for a page that stays open.

A client that comes back gets everything again, so the stream needs no memory of its clients. At
most once a second, a client gets the newest state of what has changed: a slow client gets fewer
states, and never older ones.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from replay_app.board import REJECTED
from replay_app.states import TERMINAL
from replay_app.web.access import CALLER
from replay_app.web.installation import LOOKS
from replay_app.web.shared import ApiView, shared_of
from replay_app.web.streams import KEEPALIVE, KEEPALIVE_SECONDS, answer_stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from aiohttp import web

    from replay_app.web.shared import Shared

TICK_SECONDS = 1.0
WORKERS_SECONDS = 5.0
"""Interval at which a stream looks whether there are other workers."""


class Feed(ApiView):
    """Every replay as server-sent events."""

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Send what there is now, then each change, until the client leaves."""
        shared = shared_of(request)
        return await answer_stream(request, _messages(shared, request), "ask GET /replays instead")


async def _messages(shared: Shared, request: web.Request) -> AsyncGenerator[str]:
    board, looks = shared.context.board, request.app[LOOKS]
    installation = await looks.installation(request[CALLER])
    yield message("hello", installation.model_dump_json())
    while not board.is_complete:
        if await _ends(shared, request):
            return
        yield KEEPALIVE
    seen = board.changes_so_far
    for text in _under_way(shared):
        yield text
    yield message("ready", "{}")
    heard = asked = time.monotonic()
    while not await _ends(shared, request):
        keys, seen = board.changed_since(seen), board.changes_so_far
        if keys is None:
            return  # the client comes back, and gets everything
        for key in keys:
            heard = time.monotonic()
            yield _change(shared, key)
        if time.monotonic() - asked >= WORKERS_SECONDS:
            before, installation = installation, await looks.installation(request[CALLER])
            asked = time.monotonic()
            if installation != before:
                yield message("workers", installation.model_dump_json())
        if time.monotonic() - heard >= KEEPALIVE_SECONDS:
            heard = time.monotonic()
            yield KEEPALIVE


def _under_way(shared: Shared) -> Iterator[str]:
    """Yield each replay that has not ended, as it is when the client takes the message."""
    sessions = shared.context.board.sessions
    for replay_id in list(sessions):
        session = sessions.get(replay_id)
        if session is not None and session.state not in TERMINAL:
            yield message("replay", shared.answer_of(session))


async def _ends(shared: Shared, request: web.Request) -> bool:
    """Wait for the next moment of the stream. Return whether client or worker are leaving."""
    try:
        async with asyncio.timeout(TICK_SECONDS):
            await shared.stopping.wait()
    except TimeoutError:
        return request.transport is None
    return True


def _change(shared: Shared, key: str) -> str:
    board = shared.context.board
    if rejection := board.rejections.get(key):
        return message("rejection", rejection.model_dump_json())
    if session := board.sessions.get(key):
        return message("replay", shared.answer_of(session))
    if REJECTED in key:  # too many rejections: the oldest one is gone
        return KEEPALIVE
    return message("forgotten", json.dumps({"replay_id": key}))


def message(event: str, data: str) -> str:
    """Return an event of the stream. JSON in ``data`` has no line breaks."""
    return f"event: {event}\ndata: {data}\n\n"
