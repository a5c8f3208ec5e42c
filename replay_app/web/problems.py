"""Errors as ``application/problem+json`` (RFC 9457), each with a sentence that says what to do."""

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

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2

_STATUSES: dict[type[ReplayError], HTTPStatus] = {
    InvalidCommand: HTTPStatus.BAD_REQUEST,
    CommandConflict: HTTPStatus.CONFLICT,
    ReplayFailed: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}


class Problem(Exception):
    """An answer that is an error; further members go into its body as they are."""

    def __init__(self, status: int, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members


def problem(status: int, detail: str, **members: Any) -> web.Response:
    """Return the answer for an error. Its ``type`` is about:blank: the status says it all."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "detail": detail,
        **members,
    }
    response = web.Response(
        status=status, text=json.dumps(body, ensure_ascii=False), content_type=CONTENT_TYPE
    )
    if status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a view raises into a problem; no answer tells of the program's insides."""
    try:
        response = await handler(request)
    except Problem as error:
        response = problem(error.status, error.detail, **error.members)
    except ReplayError as error:
        status = _STATUSES.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
        response = problem(status, str(error))
    except web.HTTPException as error:
        response = _of_aiohttp(request, error)
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        response = problem(
            HTTPStatus.INTERNAL_SERVER_ERROR, "the worker failed to answer; its log says why"
        )
    # Also on an answer that came from another worker: Faust passes on no headers.
    if response.status == HTTPStatus.SERVICE_UNAVAILABLE and not response.prepared:
        response.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return response


def _of_aiohttp(request: web.Request, error: web.HTTPException) -> web.StreamResponse:
    if error.status < HTTPStatus.BAD_REQUEST:
        raise error
    match error.status:
        case HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.path}; /openapi.json lists what there is"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = error.headers.get("Allow", "")
            detail = f"{request.path} does not take {request.method}; it takes {allowed}"
        case _:
            detail = error.text or error.reason
    response = problem(error.status, detail)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
