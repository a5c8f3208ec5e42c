"""Whatever goes wrong is answered as a problem, and tells nothing of the program's insides."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from replay_app.exceptions import (
    CommandConflict,
    EventError,
    InvalidCommand,
    ReplayFailed,
    Unavailable,
)
from replay_app.store import TimeLimitExceeded
from replay_app.web.problems import Problem, answer_problems


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (InvalidCommand("rate: missing"), 400, "rate: missing"),
        (CommandConflict("it is paused"), 409, "it is paused"),
        (ReplayFailed("topic missing"), 422, "topic missing"),
        (Unavailable("store away"), 503, "store away"),
        (TimeLimitExceeded("too slow"), 503, "too slow"),
        (EventError("unexpected here"), 500, "unexpected here"),
        (Problem(404, "there is no replay"), 404, "there is no replay"),
    ],
)
async def test_an_error_is_answered_with_its_status_and_sentence(
    error: Exception, status: int, detail: str
) -> None:
    answer, body = await _answer(error)
    assert answer.status == status
    assert answer.content_type == "application/problem+json"
    assert body["status"] == status
    assert body["detail"] == detail
    assert body["type"] == "about:blank"
    assert body["title"]


async def test_a_problem_may_quote_bytes_that_are_not_utf_8() -> None:
    answer, body = await _answer(Problem(403, "pages of \udcff may not"))
    assert answer.body is not None
    assert body["detail"] == "pages of ? may not"


async def test_a_problem_carries_its_members() -> None:
    _, body = await _answer(Problem(409, "it is paused", state="paused"))
    assert body["state"] == "paused"


async def test_a_503_says_when_to_try_again() -> None:
    answer, _ = await _answer(Unavailable("away"))
    assert int(answer.headers["Retry-After"]) > 0


async def test_a_401_says_how_to_authenticate() -> None:
    answer, _ = await _answer(Problem(401, "send a token"))
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_bug_is_a_500_without_its_text() -> None:
    answer, body = await _answer(RuntimeError("password=secret"))
    assert answer.status == 500
    assert "secret" not in json.dumps(body)


async def test_a_wrong_method_names_the_right_ones() -> None:
    answer, body = await _answer(web.HTTPMethodNotAllowed("PUT", ["GET", "POST"]))
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET,POST"
    assert "GET,POST" in body["detail"]


async def test_an_unknown_path_leads_to_the_description() -> None:
    answer, body = await _answer(web.HTTPNotFound())
    assert answer.status == 404
    assert "/openapi.json" in body["detail"]


async def _answer(error: Exception) -> tuple[web.Response, dict[str, Any]]:
    async def view(_: web.Request) -> web.StreamResponse:
        raise error

    answer = await answer_problems(make_mocked_request("GET", "/somewhere"), view)
    assert isinstance(answer, web.Response)
    return answer, json.loads(answer.text or "")
