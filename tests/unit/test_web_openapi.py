"""The API's description is consistent and names every path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from replay_app.app import create_app
from replay_app.settings import Settings
from replay_app.web.openapi import openapi

NOT_DESCRIBED = {"/static", "/metrics"}
"""The files of the status page, and the metrics, which are not JSON."""


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
