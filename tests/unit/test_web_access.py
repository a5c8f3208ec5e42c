"""Who may ask: the token, the page's origin, and the host name."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import SecretStr

from replay_app.settings import Settings
from replay_app.web.access import require_access
from replay_app.web.problems import Problem

TOKEN: dict[str, Any] = {"api_token": SecretStr("s3cret-ä")}
RIGHT = "Bearer s3cret-ä"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic s3cret-ä", "s3cret-ä"]
)
async def test_without_the_token_nothing_is_answered(method: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    assert await _status(method, "/replays", headers, **TOKEN) == 401


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
async def test_the_token_lets_in(method: str) -> None:
    assert await _status(method, "/replays", {"Authorization": RIGHT}, **TOKEN) == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/openapi.json", "/static/app.js"])
async def test_probes_and_the_page_need_no_token(path: str) -> None:
    assert await _status("GET", path, **TOKEN) == 200


async def test_public_reads_open_reads_only() -> None:
    assert await _status("GET", "/replays", public_reads=True, **TOKEN) == 200
    assert await _status("POST", "/replays", public_reads=True, **TOKEN) == 401


async def test_without_a_token_set_everything_is_open_on_the_machine() -> None:
    for host in ("localhost:6066", "127.0.0.1:6066", "[::1]:6066"):
        assert await _status("POST", "/replays", {"Host": host}) == 200


@pytest.mark.parametrize("host", ["evil.example:6066", "[", "127.0.0.1.evil.example", "a:b:c"])
async def test_without_a_token_set_a_strange_host_name_is_refused(host: str) -> None:
    assert await _status("GET", "/replays", {"Host": host}) == 403


async def test_the_canonical_name_is_not_strange() -> None:
    headers = {"Host": "worker-1:6066"}
    assert await _status("GET", "/", headers, canonical_url="http://worker-1:6066") == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
async def test_another_sites_page_gives_no_commands(origin: str) -> None:
    headers = {"Origin": origin, "Host": "127.0.0.1:6066"}
    assert await _status("POST", "/replays", headers) == 403
    assert await _status("GET", "/replays", headers) == 200


async def test_the_own_page_gives_commands() -> None:
    headers = {"Origin": "http://127.0.0.1:6066", "Host": "127.0.0.1:6066"}
    assert await _status("POST", "/replays", headers) == 200


async def _status(
    method: str, path: str, headers: dict[str, str] | None = None, **settings: Any
) -> int:
    async def view(_: web.Request) -> web.StreamResponse:
        return web.Response()

    request = make_mocked_request(method, path, {"Host": "localhost:6066", **(headers or {})})
    try:
        answer = await require_access(Settings(**settings))(request, view)
    except Problem as problem:
        return problem.status
    return answer.status
