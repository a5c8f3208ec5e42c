"""Errors as ``application/problem+json`` (RFC 9457). Each error says what to do."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web

from replay_app.exceptions import (
    CommandConflict,
    InvalidCommand,
    ReplayError,
    ReplayFailed,
    Unavailable,
)
from replay_app.store import StoreUnavailable

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2

_STATUSES: dict[type, HTTPStatus] = {
    InvalidCommand: HTTPStatus.BAD_REQUEST,
    CommandConflict: HTTPStatus.CONFLICT,
    ReplayFailed: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(Exception):
    """An answer that is an error; ``members`` are added to the JSON object of the answer."""

    def __init__(self, status: int, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members


def problem(status: int, detail: str, **members: Any) -> web.Response:
    """Return the answer for an error; ``type`` is about:blank, as the status says the kind."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        **members,
    }
    text = json.dumps(body, ensure_ascii=False)
    # The detail may quote a header or a path with bytes that are not UTF-8.
    text = text.encode(errors="replace").decode()
    response = web.Response(status=status, text=text, content_type=CONTENT_TYPE)
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with a problem when a view raises an error; a bug's text stays in the log."""
    try:
        response = await handler(request)
    except Problem as error:
        response = problem(error.status, error.detail, **error.members)
    except ReplayError as error:
        # The command line waits for a worker that starts, but not for a store.
        members = {"unavailable": "event store"} if isinstance(error, StoreUnavailable) else {}
        response = problem(_status_of(error), str(error), **members)
    except web.HTTPException as error:
        response = _of_aiohttp(request, error)
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        response = problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, "the worker failed to answer; its log says why"
        )
    # Another worker's answer needs the header too: Faust does not pass headers on.
    if response.status == HTTPStatus.SERVICE_UNAVAILABLE and not response.prepared:
        response.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return response


def _status_of(error: ReplayError) -> HTTPStatus:
    """Return the status of the error's class, or of the nearest base class that has a status."""
    for kind in type(error).__mro__:
        if kind in _STATUSES:
            return _STATUSES[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if error.status < HTTPStatus.BAD_REQUEST:
        raise error
    match error.status:
        case HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.path}; /openapi.json lists the paths"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = error.headers.get("Allow", "")
            detail = f"{request.path} does not take {request.method}, only {allowed}"
        case _:
            detail = error.text or error.reason
    response = problem(error.status, detail)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
