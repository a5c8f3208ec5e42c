"""The views: what a worker answers over HTTP (docs/protocol.md).

The worker that owns a replay's partition answers with the replay's row of the table. Any worker
answers everything else: lists and events come from the board, commands are produced to
``replay.requests``. A view checks a command against the board first, so that a client hears of most
mistakes at once. The sessions agent checks the command again, and the agent decides.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import faust
from aiohttp import web
from faust.exceptions import NotReady
from faust.web.exceptions import ServiceUnavailable
from prometheus_client import CONTENT_TYPE_LATEST

from replay_app import __version__
from replay_app.commands import (
    MAX_COMMAND_BYTES,
    PLAIN_VERBS,
    POSTED_VERBS,
    Command,
    Start,
    new_replay_id,
    parse_command,
)
from replay_app.context import WorkerContext
from replay_app.encoders import encoder_name
from replay_app.exceptions import CommandConflict, InvalidCommand, Unavailable
from replay_app.gates import require_possible
from replay_app.offers import offer_plan
from replay_app.sessions import Session, decode_session
from replay_app.states import SETTLED
from replay_app.store import NoCollection, StoreUnavailable
from replay_app.topic_watch import OBSTACLE
from replay_app.transitions import on_command
from replay_app.web.access import CALLER, passed_on, require_consent, require_target
from replay_app.web.chains import Chains
from replay_app.web.console import FILES, PAGES, STATIC_PREFIX, frame_answer, wants_frame
from replay_app.web.course import HistoryView, SeriesView
from replay_app.web.documents import DocumentView
from replay_app.web.feed import Feed
from replay_app.web.installation import LOOKS, Looks, Types, Workers
from replay_app.web.lists import list_replays
from replay_app.web.openapi import EXCLUDABLE, openapi
from replay_app.web.problems import Problem
from replay_app.web.server import LIMITS, Limits, add_security_headers, read_body
from replay_app.web.shared import (
    BOARD_SECONDS,
    SHARED,
    ApiView,
    Shared,
    catch_up,
    json_answer,
    require_session,
    require_usable,
    shared_of,
)
from replay_app.web.streams import Events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from faust.types.tables import TableT

    from replay_app.board import Board

OWNER_SECONDS = 5.0
"""How long the owner of a replay may take to answer."""
PRODUCE_SECONDS = 5.0
ROUTED = "Replay-Routed"
"""Header of a request from another worker: such a request is not passed on again, as two workers
may name each other as the owner."""


def add_views(app: faust.App, context: WorkerContext, table: TableT[bytes, bytes]) -> None:
    """Add every path to the app's web server."""
    web_app: web.Application = app.web.web_app  # type: ignore[attr-defined]
    shared = web_app[SHARED] = Shared(app, context, table)
    web_app[LIMITS] = Limits.of_this_process()
    web_app[LOOKS] = Looks(context)

    async def end_streams(_: web.Application) -> None:
        shared.stopping.set()

    web_app.on_response_prepare.append(_add_headers)
    web_app.on_shutdown.append(end_streams)

    _add_console(app)
    app.page("/healthz")(Health)
    app.page("/readyz")(Ready)
    app.page("/metrics")(Metrics)
    app.page("/openapi.json")(Description)
    app.page("/replays")(Replays)
    app.page("/plans")(Plans)
    app.page("/chains")(Chains)
    app.page("/events")(Feed)
    app.page("/workers")(Workers)
    app.page("/types")(Types)
    app.page("/replays/{replay_id}/events")(Events)
    app.page("/replays/{replay_id}/history")(HistoryView)
    app.page("/replays/{replay_id}/series")(SeriesView)
    app.page("/replays/{replay_id}/document")(DocumentView)
    app.page(f"/replays/{{replay_id}}/{{verb:{'|'.join(POSTED_VERBS)}}}")(Verbs)
    app.page("/replays/{replay_id}/verification")(Verifications)

    @app.page("/replays/{replay_id}")
    class Replay(ApiView):
        """One replay."""

        async def get(self, request: web.Request, replay_id: str) -> web.StreamResponse:
            """Answer with the session, from the owner; with the console's frame in a browser."""
            if wants_frame(request):
                return frame_answer(request)
            require_usable(replay_id)
            if ROUTED in request.headers:
                return await _session_answer(shared_of(request), replay_id)
            headers = {ROUTED: "1", **passed_on(request)}
            try:
                async with asyncio.timeout(OWNER_SECONDS):
                    routed: Any = self.routed
                    answer: web.StreamResponse = await routed(
                        request.clone(headers=headers), replay_id=replay_id
                    )
            except (
                TypeError,  # from Faust's router, before the worker has joined the group
                NotReady,
                ServiceUnavailable,
                aiohttp.ClientError,
                TimeoutError,
            ) as error:
                raise Problem(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"the worker that owns replay {replay_id!r} does not answer; another worker "
                    "takes over within seconds",
                ) from error
            if answer.status == HTTPStatus.UNAUTHORIZED:  # here the token is known
                raise Problem(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"the worker that owns replay {replay_id!r} does not know this token yet: all "
                    "workers need the same tokens",
                )
            return answer

        @app.table_route(table=table, match_info="replay_id")  # type: ignore[arg-type]
        async def routed(self, request: web.Request, replay_id: str) -> web.Response:
            """Answer with the session; Faust calls this on the owner only."""
            return await _session_answer(shared_of(request), replay_id)

        async def patch(self, request: web.Request, replay_id: str) -> web.Response:
            """Change the rate."""
            require_usable(replay_id)
            command = await _read_command(
                request, fixed={"command": "set-rate", "replay_id": replay_id}
            )
            return await _accept(request, command)


def _add_console(app: faust.App) -> None:
    for path in PAGES:
        app.page(path)(Console)
    app.page(f"{STATIC_PREFIX}{{name}}")(Static)


class Console(ApiView):
    """The console; an address of one of its pages."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with the frame; its modules fetch the data."""
        return frame_answer(request)


class Static(ApiView):
    """The files of the console, and nothing else."""

    async def get(self, _: web.Request, name: str) -> web.FileResponse:
        """Answer with a file."""
        if name not in FILES:
            raise web.HTTPNotFound
        return web.FileResponse(FILES[name])


class Health(ApiView):
    """Liveness."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with 200: a worker that answers is alive."""
        encoder = encoder_name(shared_of(request).context.settings.encoder)
        return web.json_response({"status": "ok", "encoder": encoder, "version": __version__})


class Ready(ApiView):
    """Readiness."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with 200 if the worker is ready, otherwise with 503 and what is missing.

        ``?exclude=store`` leaves the store out: without the store this worker can plan and read
        nothing, but commands, lists and sessions need Kafka only.
        """
        shared, warnings = shared_of(request), []
        missing = [*shared.missing(), *shared.obstacles()]
        excluded = set(request.query.getall("exclude", []))
        if unknown := excluded - set(EXCLUDABLE):
            msg = f"exclude: {min(unknown)!r} is not one of {', '.join(EXCLUDABLE)}"
            raise InvalidCommand(msg)
        if "store" not in excluded:
            trouble = await shared.context.store_health.problem()
            if isinstance(trouble, NoCollection):
                warnings.append(str(trouble))  # the first event creates the collection
            elif trouble is not None:
                missing.append(str(trouble))
        warnings += filter(None, (shared.unreadable(), shared.context.tokens.trouble()))
        body: dict[str, Any] = {"status": "not ready" if missing else "ready", "missing": missing}
        if warnings:
            body["warnings"] = warnings
        status = HTTPStatus.SERVICE_UNAVAILABLE if missing else HTTPStatus.OK
        return web.json_response(body, status=status)


class Metrics(ApiView):
    """Metrics."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with the metrics in Prometheus' text format."""
        body = shared_of(request).context.metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


class Description(ApiView):
    """The API's description."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with the OpenAPI document of this worker."""
        settings = shared_of(request).context.settings
        document = openapi(token=settings.has_tokens, public_reads=settings.public_reads)
        return web.json_response(document)


class Replays(ApiView):
    """All replays."""

    async def get(self, request: web.Request) -> web.Response:
        """List the newest replays, those under way, and refused commands."""
        return await list_replays(request)

    async def post(self, request: web.Request) -> web.Response:
        """Start a replay."""
        start = await _read_start(request)
        require_consent(start, shared_of(request).context.settings)
        return await _accept(request, start)


class Plans(ApiView):
    """Plans of replays that are not started."""

    async def post(self, request: web.Request) -> web.Response:
        """Plan a start without starting it."""
        context = shared_of(request).context
        start = await _read_start(request)
        trouble = await context.store_health.problem()
        if isinstance(trouble, StoreUnavailable):  # the planner would wait longer to say so
            raise trouble
        offered = await offer_plan(start, context)
        return json_answer(offered.model_dump_json())


class Verbs(ApiView):
    """The commands that change a replay, but for its rate."""

    async def post(self, request: web.Request, replay_id: str, verb: str) -> web.Response:
        """Pause, resume, step, cancel, retry or release."""
        require_usable(replay_id)
        command = await _read_command(request, fixed={"command": verb, "replay_id": replay_id})
        return await _accept(request, command)


class Verifications(ApiView):
    """The verdict of a verification."""

    async def post(self, request: web.Request, replay_id: str) -> web.Response:
        """Keep a verdict with a completed replay."""
        require_usable(replay_id)
        fixed = {"command": "note-verification", "replay_id": replay_id}
        return await _accept(request, await _read_command(request, fixed=fixed))


async def _session_answer(shared: Shared, replay_id: str) -> web.Response:
    """Answer with the row, or with the board's session if it is newer than the row."""
    if missing := shared.missing():
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(missing))
    try:
        row = decode_session(shared.table[replay_id.encode()])
    except Exception:  # noqa: BLE001 - missing or damaged; the row is a cache: the board has the session
        row = None
    published = shared.context.board.sessions.get(replay_id)
    if row is None or (published is not None and published.revision > row.revision):
        row = published or await require_session(shared, replay_id)
    sending = shared.context.obstacles.get(OBSTACLE) or shared.context.outbox.obstacle
    if sending is not None and row.state not in SETTLED:
        row = row.model_copy(update={"reason": sending})  # it cannot be published now
    return json_answer(row.answer())


# Commands


async def _read_start(request: web.Request) -> Start:
    command = await _read_command(
        request, fixed={"command": "start"}, defaults={"replay_id": new_replay_id()}
    )
    if not isinstance(command, Start):  # `command` is fixed above
        raise TypeError(command)
    return command


async def _read_command(request: web.Request, **members: Mapping[str, Any]) -> Command:
    """Read a command from the body, and sign it. The body of a plain verb may be empty."""
    body = await read_body(request, MAX_COMMAND_BYTES)
    verb = members.get("fixed", {}).get("command")
    command = parse_command(body or (b"{}" if verb in PLAIN_VERBS else b""), **members)
    return request[CALLER].sign(command)


async def _accept(request: web.Request, command: Command) -> web.Response:
    """Produce a command that caller and session allow, and answer with 202."""
    shared, replay_id = shared_of(request), command.replay_id
    context = shared.context
    sessions = context.board.sessions
    if isinstance(command, Start):
        start = command
    else:
        start = (await require_session(shared, replay_id)).start
    require_target(request[CALLER], start)
    try:
        _judge(sessions.get(replay_id), command)
    except Problem:
        await catch_up(shared, replay_id)
        _judge(sessions.get(replay_id), command)
    if isinstance(command, Start) and replay_id not in sessions:
        require_possible(command, sessions)
    value = command.model_dump_json(exclude_unset=True).encode()
    try:
        await context.outbox.try_send(context.topics.requests, replay_id, value, PRODUCE_SECONDS)
    except Unavailable as error:
        # The broker may have the command all the same; a repeated command changes nothing.
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{error}; repeat the command with this replay_id: it is done only once",
            replay_id=replay_id,
        ) from error
    answer: dict[str, Any] = {"replay_id": replay_id}
    if isinstance(command, Start):
        session = await _new_session(context.board, replay_id)
        _judge(session, command)  # another start may have been faster
        answer["revision"] = session.revision if session else None
    return web.json_response(
        answer, status=HTTPStatus.ACCEPTED, headers={"Location": f"/replays/{replay_id}"}
    )


async def _new_session(board: Board, replay_id: str) -> Session | None:
    """Return a new replay's session; None if it is not published within `BOARD_SECONDS`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BOARD_SECONDS):
            while replay_id not in board.sessions:  # noqa: ASYNC110 - a second at most
                await asyncio.sleep(0.02)
    return board.sessions.get(replay_id)


def _judge(session: Session | None, command: Command) -> None:
    try:
        on_command(session, command, datetime.now(UTC))
    except CommandConflict as conflict:
        state = session.state if session else None
        raise Problem(HTTPStatus.CONFLICT, str(conflict), state=state) from conflict


# The parts


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    add_security_headers(response)
