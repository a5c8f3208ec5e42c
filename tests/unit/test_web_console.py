"""The console's frame: who gets it, and that it needs nothing but its own files."""

from __future__ import annotations

import re

import pytest
from aiohttp.test_utils import make_mocked_request

from replay_app.web.console import FILES, FOLDER, FRAME, frame_answer, prefers_html, wants_frame

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "is_html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/*", True),
        ("TEXT/HTML; charset=utf-8", True),
        ("text/html;q=0.5, application/json;q=0.4", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0.4, application/json;q=0.5", False),
        ("text/html;q=0, */*", False),
        ("text/event-stream", False),
        ("text/html;q=high", True),
        ("nonsense,,;;=", False),
    ],
)
def test_html_is_for_those_who_like_it_better_than_json(accept: str, *, is_html: bool) -> None:
    assert prefers_html(accept) is is_html


@pytest.mark.parametrize(
    ("path", "accept", "is_frame"),
    [
        ("/", "*/*", True),
        ("/history", "application/json", True),
        ("/new", "", True),
        ("/replays/r-1", BROWSER, True),
        ("/replays/r-1", "*/*", False),
        ("/replays", BROWSER, False),
        ("/replays/r-1/events", BROWSER, False),
        ("/replays/r-1/pause", BROWSER, False),
        ("/workers", BROWSER, False),
        ("/metrics", BROWSER, False),
    ],
)
def test_only_the_consoles_addresses_get_the_frame(
    path: str, accept: str, *, is_frame: bool
) -> None:
    request = make_mocked_request("GET", path, {"Accept": accept})
    assert wants_frame(request) is is_frame


def test_the_frame_finds_its_files_one_folder_deeper_too() -> None:
    for path, folder in (("/history", "static/"), ("/replays/r-1", "../static/")):
        text = frame_answer(make_mocked_request("GET", path)).text or ""
        found = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert {one for one in found if not one.startswith("#")}
        assert all(one.startswith(folder) for one in found if not one.startswith("#")), found


def test_every_file_of_the_folder_is_served_and_imported_by_its_name() -> None:
    assert {*FILES, FRAME} == {path.name for path in FOLDER.iterdir()}
    for path in FOLDER.glob("*.js"):
        text = path.read_text()
        imported = re.findall(
            r'^(?:import|export)\b.*? from "\./([\w.-]+)";$|^import "\./([\w.-]+)";$',
            text,
            re.MULTILINE,
        )
        assert {name for pair in imported for name in pair if name} <= FILES.keys()
        assert "innerHTML" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
