"""What the views of a worker share: the worker's parts, the base of a view, and the session."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import faust
from aiohttp import web
from faust.web import View
from faust.web.exceptions import WebError

from replay_app.commands import REPLAY_ID
from replay_app.context import WorkerContext
from replay_app.sessions import Session
from replay_app.web.problems import Problem, problem

if TYPE_CHECKING:
    from faust.types.tables import TableT

BOARD_SECONDS = 1.0
"""How long an answer waits until the board has the newest session."""
MAX_ANSWERS = 500
"""Sessions whose answers are remembered."""
MAX_NAMED = 10
"""Unreadable checkpoints that `/readyz` names."""
BEING_READ = "the sessions on the status topic are being read"


@dataclass
class Shared:
    """What the views of one worker share."""

    app: faust.App
    context: WorkerContext
    table: TableT[bytes, bytes]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    streams: int = 0
    """Streams of events that are open now."""
    _answers: dict[str, tuple[Session, str]] = field(default_factory=dict)
    """By replay: a session, and the session as the API answers it."""

    def missing(self) -> list[str]:
        """Return what the worker waits for, in words; nothing if the worker is ready."""
        missing = []
        if self.app.rebalancing:
            missing.append("the group is rebalancing")
        elif not self.app.tables.actives_ready:
            missing.append("the sessions table is being recovered")
        if not self.context.board.is_complete:
            missing.append(BEING_READ)
        return missing

    def answer_of(self, session: Session) -> str:
        """Return the session as the API answers it. Many streams ask for the same one."""
        known = self._answers.get(session.replay_id)
        if known is not None and known[0] is session:
            return known[1]
        if len(self._answers) >= MAX_ANSWERS:
            self._answers.clear()
        answer = session.answer()
        self._answers[session.replay_id] = session, answer
        return answer

    def obstacles(self) -> list[str]:
        """Return what holds the worker's partitions up, in words."""
        sending = self.context.outbox.obstacle
        return [*self.context.obstacles.values(), *([sending] if sending else [])]

    def unreadable(self) -> str | None:
        """Return which shards cannot go on because of their checkpoints; None if there are none."""
        keys = [key for part in self.context.unreadable().values() for key in part]
        if not keys:
            return None
        more = ", ..." if len(keys) > MAX_NAMED else ""
        return (
            f"{len(keys)} checkpoints cannot be read, so these shards cannot go on: "
            f"{', '.join(keys[:MAX_NAMED])}{more}; the errors of their replays say what to do"
        )


SHARED = web.AppKey("shared", Shared)


class ApiView(View):
    """A view whose errors are problems."""

    async def on_request_error(self, request: Any, exc: WebError) -> Any:
        """Answer a request that Faust itself refuses."""
        return problem(exc.code, f"{request.path}: {exc.detail}")


def shared_of(request: web.Request) -> Shared:
    """Return what the views of the request's worker share."""
    return request.app[SHARED]


def json_answer(text: str) -> web.Response:
    """Return an answer whose body is JSON text."""
    return web.Response(text=text, content_type="application/json")


def require_usable(replay_id: str) -> None:
    """Refuse an id from the path that no replay can have."""
    if not REPLAY_ID.match(replay_id):
        raise not_found(replay_id)


def not_found(replay_id: str) -> Problem:
    """Return the answer for a replay that does not exist (404)."""
    return Problem(HTTPStatus.NOT_FOUND, f"there is no replay {replay_id!r}")


async def require_session(shared: Shared, replay_id: str) -> Session:
    """Return a published session.

    Raises
    ------
    Problem
        The replay does not exist, or the board is not complete yet.

    """
    board = shared.context.board
    if replay_id not in board.sessions:
        await catch_up(shared, replay_id)
    session = board.sessions.get(replay_id)
    if session is not None:
        return session
    require_every_session(shared)
    raise not_found(replay_id)


def require_every_session(shared: Shared) -> None:
    """Refuse a request whose answer needs every session, until the board is complete (503)."""
    if not shared.context.board.is_complete:
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, BEING_READ)


async def catch_up(shared: Shared, replay_id: str) -> None:
    """Wait for the board: on another worker, the client may have seen a newer session."""
    partition = shared.context.topics.status.partition(replay_id)
    with suppress(TimeoutError):
        async with asyncio.timeout(BOARD_SECONDS):
            await shared.context.board.caught_up(partition)
