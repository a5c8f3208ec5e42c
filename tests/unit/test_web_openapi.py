"""The API's description is consistent and names every path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from replay_app.app import create_app
from replay_app.chains import read_chain
from replay_app.commands import parse_command
from replay_app.exceptions import InvalidCommand
from replay_app.settings import Settings
from replay_app.web.access import OPEN_PATHS, is_guarded
from replay_app.web.openapi import openapi

EVERY = {"all": True}
NOT_DESCRIBED = {"/static/{name}"}
"""The files of the console."""


def test_every_reference_leads_to_a_schema() -> None:
    document = openapi()
    references = list(_references(document))
    assert references
    for reference in references:
        place = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_it_describes_exactly_the_paths_that_are_served() -> None:
    web_app = create_app(Settings()).web.web_app  # type: ignore[attr-defined]
    served: dict[str, set[str]] = {}
    for route in web_app.router.routes():
        path = route.resource.canonical
        if path not in NOT_DESCRIBED and route.method not in {"HEAD", "OPTIONS"}:
            for name in _spelled_out(route.resource.get_info().get("pattern"), path):
                served.setdefault(name, set()).add(route.method.lower())
    described = {
        path: set(item) - {"parameters", "summary"} for path, item in openapi()["paths"].items()
    }
    assert described == served


def test_a_start_over_http_needs_no_replay_id() -> None:
    body = openapi()["paths"]["/replays"]["post"]["requestBody"]["content"]["application/json"]
    name = body["schema"]["$ref"].rpartition("/")[2]
    assert "replay_id" not in openapi()["components"]["schemas"][name]["required"]


@pytest.mark.parametrize(
    ("options", "guarded"),
    [
        ({}, set()),
        ({"token": True}, {"get", "post", "patch"}),
        ({"token": True, "public_reads": True}, {"post", "patch"}),
    ],
)
def test_it_says_which_requests_need_the_token(options: Any, guarded: set[str]) -> None:
    for path, item in openapi(**options)["paths"].items():
        for method in {"get", "post", "patch"} & set(item):
            is_named = method in guarded or (bool(guarded) and is_guarded(path))
            needs = is_named and path not in OPEN_PATHS
            assert item[method]["security"] == ([{"bearer": []}] if needs else []), path
            assert ("401" in item[method]["responses"]) is needs, path


@pytest.mark.parametrize(
    ("path", "method", "statuses"),
    [
        ("/replays", "get", "200 304 400 403 414 431 500 503"),
        ("/replays", "post", "202 400 403 408 409 413 414 422 431 500 503"),
        ("/replays/{replay_id}", "get", "200 400 403 404 414 431 500 503"),
        ("/replays/{replay_id}", "patch", "202 400 403 404 408 409 413 414 431 500 503"),
        ("/replays/{replay_id}/pause", "post", "202 400 403 404 408 409 413 414 431 500 503"),
        ("/replays/{replay_id}/events", "get", "200 204 400 403 404 414 431 500 503"),
        ("/plans", "post", "200 400 403 408 413 414 422 431 500 503"),
        ("/chains", "post", "202 400 403 408 409 413 414 422 431 500 503"),
        ("/readyz", "get", "200 400 403 414 431 500 503"),
        ("/metrics", "get", "200 400 403 414 431 500"),
    ],
)
def test_it_names_every_answer(path: str, method: str, statuses: str) -> None:
    answers = openapi()["paths"][path][method]["responses"]
    assert sorted(answers) == statuses.split()
    for status, answer in answers.items():
        assert answer["description"]
        if status not in {"204", "304"}:
            assert all(content["schema"] for content in answer["content"].values())


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({}, False),
        ({"filter": {}}, False),
        ({"filter": {"all": False}}, False),
        ({"filter": {"event_ids": [], "fields": {}, "end": None}}, False),
        ({"filter": {"all": True, "event_ids": [], "fields": {}, "end": None}}, True),
        ({"filter": {"all": True, "event_ids": ["e"]}}, False),
        ({"filter": {"all": True, "end": "2026-01-01T00:00:00Z"}}, False),
        ({"filter": {"all": False, "exclude_event_types": ["e"]}}, True),
        ({"filter": EVERY}, True),
        ({"filter": EVERY, "replay_id": "a b"}, False),
        ({"filter": EVERY, "after": ["../a"]}, False),
        ({"filter": EVERY, "after": ["a", {"replay": "b", "consumed": True}]}, True),
        ({"filter": EVERY, "after": [{"replay": "../a"}]}, False),
        ({"filter": EVERY, "after": [{"replay": "a", "read": True}]}, False),
        ({"filter": EVERY, "chain": "a"}, True),
        ({"filter": EVERY, "chain": "a b"}, False),
        ({"filter": EVERY, "shards": 2, "ordering": "aggregate"}, True),
        ({"filter": EVERY, "shards": 2}, False),
        ({"filter": EVERY, "shards": None}, True),
        ({"filter": EVERY, "max_events": 2}, True),
        ({"filter": EVERY, "max_events": 2, "ordering": "aggregate"}, False),
        ({"filter": EVERY, "target": {"topic": "a", "prefix": None}}, True),
        ({"filter": EVERY, "target": {"topic": "a", "prefix": "b"}}, False),
        ({"filter": {"fields": {"a.b": 1}}}, True),
        ({"filter": {"fields": {"a..b": 1}}}, False),
        ({"filter": {"fields": {"$where": 1}}}, False),
        ({"filter": {"fields": {"a.$b": 1}}}, False),
        ({"filter": {"fields": {"a\0": 1}}}, False),
        ({"filter": {"start": "0000-01-01T00:00:00Z"}}, False),
        ({"filter": {"start": "10000-01-01T00:00:00Z"}}, False),
        ({"filter": {"start": "2026-01-01T00:00:00Z"}}, True),
    ],
)
def test_the_schema_of_a_start_says_what_the_parser_checks(body: Any, is_valid: bool) -> None:
    document = openapi()
    schema = document["paths"]["/replays"]["post"]["requestBody"]["content"]["application/json"]
    validator = jsonschema_rs.validator_for({**document, **schema["schema"]})
    assert validator.is_valid(body) is is_valid
    whole = {"replay_id": "r", **body, "command": "start"}
    try:
        parse_command(json.dumps(whole).encode())
    except InvalidCommand:
        assert not is_valid
    else:
        assert is_valid


@pytest.mark.parametrize(
    ("body", "is_valid"),
    [
        ({"chain": "c", "replays": {"a": {"filter": EVERY}}}, True),
        ({"chain": "c", "defaults": {"filter": EVERY}, "replays": {"a": None}}, True),
        ({"chain": "c", "defaults": None, "replays": {"a": {"filter": EVERY}}}, True),
        (
            {"chain": "c", "replays": {"a": {"filter": EVERY}, "b": {"filter": EVERY,
             "after": ["a", {"replay": "a"}]}}},
            True,
        ),
        ({"chain": "c", "replays": {}}, False),
        ({"chain": "c"}, False),
        ({"replays": {"a": {"filter": EVERY}}}, False),
        ({"chain": "a b", "replays": {"a": {"filter": EVERY}}}, False),
        ({"chain": "c", "replays": {"a b": {"filter": EVERY}}}, False),
        ({"chain": "c", "replays": {"a": []}}, False),
        ({"chain": "c", "replays": {"a": {"filter": EVERY}}, "more": 1}, False),
        ({"chain": "c", "replays": {"a": {"filter": EVERY, "replay_id": "a"}}}, False),
        ({"chain": "c", "replays": {"a": {"filter": EVERY, "rate": "5"}}}, False),
        ({"chain": "c", "defaults": {"after": []}, "replays": {"a": {"filter": EVERY}}}, False),
        ({"chain": "c", "defaults": {"ratio": 5}, "replays": {"a": {"filter": EVERY}}}, False),
        ({"chain": "c", "defaults": [], "replays": {"a": {"filter": EVERY}}}, False),
        (
            {"chain": "c", "replays": {str(n): {"filter": EVERY} for n in range(1001)}},
            False,
        ),
    ],
)  # fmt: skip
def test_the_schema_of_a_chain_says_what_the_parser_checks(body: Any, is_valid: bool) -> None:
    document = openapi()
    schema = document["paths"]["/chains"]["post"]["requestBody"]["content"]["application/json"]
    validator = jsonschema_rs.validator_for({**document, **schema["schema"]})
    assert validator.is_valid(body) is is_valid
    try:
        read_chain(body)
    except InvalidCommand:
        assert not is_valid
    else:
        assert is_valid


def test_it_is_json() -> None:
    document = json.loads(json.dumps(openapi()))
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["title"]


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _spelled_out(pattern: re.Pattern[str] | None, path: str) -> list[str]:
    """Return the paths of a pattern with a choice of words, such as ``{verb}``."""
    choice = re.search(r"\(\?P<(\w+)>((?:[a-z]+\|)+[a-z]+)\)", pattern.pattern if pattern else "")
    if choice is None:
        return [path]
    return [path.replace(f"{{{choice[1]}}}", name) for name in choice[2].split("|")]
