"""Who may ask: the token and its role, the page's origin, and the host name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import SecretStr
from secret_values import MARK

from replay_app.commands import Start
from replay_app.settings import Settings
from replay_app.tokens import Caller, Tokens
from replay_app.web.access import (
    CALLER,
    READS,
    passed_on,
    require_access,
    require_consent,
    require_target,
)
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


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/openapi.json", "/static/main.js"])
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


@pytest.mark.parametrize("settings", [{}, TOKEN, {"public_reads": True, **TOKEN}])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", ""])
async def test_another_sites_page_gets_nothing(origin: str, settings: dict[str, Any]) -> None:
    headers = {"Origin": origin, "Host": "127.0.0.1:6066", "Authorization": RIGHT}
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        for path in ("/", "/replays", "/readyz", "/static/main.js"):
            assert await _status(method, path, headers, **settings) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    "more",
    [
        {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {},
    ],
)
async def test_another_sites_page_shows_no_part_of_it(site: str, more: dict[str, str]) -> None:
    for path in ("/", "/replays", "/static/main.js"):
        assert await _status("GET", path, {"Sec-Fetch-Site": site, **more}) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "same-origin", "none"])
async def test_a_link_opens_the_page_but_gives_no_command(site: str) -> None:
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": site}
    assert await _status("GET", "/", link) == 200
    if site not in {"same-origin", "none"}:
        assert await _status("POST", "/replays", link) == 403


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://127.0.0.1:6066"}, {"Sec-Fetch-Site": "same-origin"}, {}]
)
async def test_the_own_page_reads_and_gives_commands(headers: dict[str, str]) -> None:
    headers = {"Host": "127.0.0.1:6066", **headers}
    assert await _status("POST", "/replays", headers) == 200
    assert await _status("GET", "/replays", headers) == 200


# Roles


@pytest.fixture
def file(tmp_path: Path) -> dict[str, Any]:
    """The settings of a worker with a file of tokens."""
    path = tmp_path / "tokens.json"
    path.write_text(
        json.dumps(
            {
                "tokens": [
                    {"name": "ana", "token": f"{MARK}-of-ana-12345", "role": "operate"},
                    {"name": "wall", "token": f"{MARK}-of-wall-1234", "role": "read"},
                ]
            }
        )
    )
    return {"tokens_file": path}


OPERATE = {"Authorization": f"Bearer {MARK}-of-ana-12345"}
READ = {"Authorization": f"bearer  {MARK}-of-wall-1234"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/replays", 200),
        ("HEAD", "/replays/r", 200),
        ("POST", "/plans", 200),
        ("POST", "/replays", 403),
        ("POST", "/chains", 403),
        ("PATCH", "/replays/r", 403),
        ("POST", "/replays/r/pause", 403),
        ("DELETE", "/plans", 403),
    ],
)
async def test_a_token_to_read_gives_no_command(
    file: dict[str, Any], method: str, path: str, status: int
) -> None:
    assert await _status(method, path, READ, **file) == status
    assert await _status(method, path, OPERATE, **file) == 200
    assert await _status(method, path, **file) == 401
    public = {"public_reads": True, **file}
    assert await _status(method, path, **public) == (200 if method in READS else 401)


async def test_a_file_of_tokens_lets_any_host_name_in(file: dict[str, Any]) -> None:
    assert await _status("GET", "/replays", {"Host": "replay.example", **READ}, **file) == 200


@pytest.mark.parametrize(
    ("headers", "caller"),
    [
        (OPERATE, Caller("ana", "operate")),
        (READ, Caller("wall", "read")),
        ({}, Caller(None, "read")),
        ({"Authorization": "Bearer wrong"}, Caller(None, "read")),
    ],
)
async def test_every_request_has_its_caller(
    file: dict[str, Any], headers: dict[str, str], caller: Caller
) -> None:
    assert await _caller("GET", "/replays", headers, public_reads=True, **file) == caller


@pytest.mark.parametrize("odd", ["Bearer wrong", "Basic x", "odd"])
async def test_only_a_header_that_opens_something_is_passed_on(
    file: dict[str, Any], odd: str
) -> None:
    assert await _passed_on(OPERATE, **file) == OPERATE
    assert await _passed_on({"Authorization": odd}, public_reads=True, **file) == {}
    assert await _passed_on({"Authorization": odd}) == {}


async def test_without_tokens_everybody_on_the_machine_may_operate() -> None:
    assert await _caller("GET", "/replays") == Caller()


@pytest.mark.parametrize(
    ("members", "allowed", "words"),
    [
        ({}, True, '"to_original": true'),
        ({"to_original": True}, True, None),
        ({"to_original": True}, False, "REPLAY_ALLOW_ORIGINAL=false"),
        ({"target": {"topics": {"a": "b"}}}, True, '"to_original": true'),
        ({"target": {"topic": "b"}}, False, None),
        ({"target": {"prefix": "b."}}, False, None),
        ({"dry_run": True}, False, None),
    ],
)
def test_a_start_to_original_topics_needs_consent(
    members: dict[str, Any], allowed: bool, words: str | None
) -> None:
    start = Start.model_validate({"replay_id": "r", "filter": {"all": True}, **members})
    settings = Settings(allow_original=allowed)
    if words is None:
        require_consent(start, settings)
        return
    with pytest.raises(Problem) as refused:
        require_consent(start, settings)
    assert refused.value.status == 422
    assert words in refused.value.detail


def test_a_target_beyond_the_prefixes_is_refused_with_the_reason() -> None:
    start = Start.model_validate({"replay_id": "r", "target": {"topic": "orders"}})
    with pytest.raises(Problem) as refused:
        require_target(Caller("ana", "operate", ("rebuild.",)), start)
    assert refused.value.status == 403
    for words in ("'ana'", "'rebuild.'", "the target names 'orders'"):
        assert words in refused.value.detail


async def _passed_on(headers: dict[str, str], **settings: Any) -> dict[str, str]:
    seen: list[web.Request] = []
    assert await _status("GET", "/replays/r", headers, seen, **settings) == 200
    return passed_on(seen[0])


async def _caller(
    method: str, path: str, headers: dict[str, str] | None = None, **settings: Any
) -> Caller:
    seen: list[web.Request] = []
    assert await _status(method, path, headers, seen, **settings) == 200
    return seen[0][CALLER]


async def _status(
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    seen: list[web.Request] | None = None,
    **settings: Any,
) -> int:
    async def view(request: web.Request) -> web.StreamResponse:
        if seen is not None:
            seen.append(request)
        return web.Response()

    request = make_mocked_request(method, path, {"Host": "localhost:6066", **(headers or {})})
    try:
        known = Settings(**settings)
        answer = await require_access(known, Tokens(known))(request, view)
    except Problem as problem:
        return problem.status
    return answer.status
