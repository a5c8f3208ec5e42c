"""The console: its frame, its files, and which requests ask for the frame.

The frame is one HTML file without data. The console's own addresses, such as ``/replays/ID``, all
answer with the frame; its modules then show what the address says and ask the API for the data.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent / "static"
FRAME = "index.html"
STATIC_PREFIX = "/static/"
PAGES = ("/", "/history", "/new")
"""Addresses that always answer with the frame."""
_REPLAY = re.compile(r"/replays/[^/]+")
_MEDIA_RANGE = re.compile(
    r"\s*([\w*.+-]+/[\w*.+-]+)\s*(?:;[^,]*?\bq\s*=\s*([01](?:\.[0-9]*)?)[^,]*|;[^,]*)?"
)

FILES: Mapping[str, Path] = MappingProxyType(
    {path.name: path for path in FOLDER.iterdir() if path.is_file() and path.name != FRAME}
)
"""The files that a browser may load, listed once: no name from outside reaches the disk."""


def wants_frame(request: web.Request) -> bool:
    """Return whether a request asks for the console's frame, which holds no data.

    At ``/replays/ID`` a browser that opens the address gets the frame, and a program the session:
    a browser likes ``text/html`` better than ``application/json``, and a program does not say so.
    """
    if request.path in PAGES:
        return True
    return _REPLAY.fullmatch(request.path) is not None and prefers_html(
        request.headers.get("Accept", "")
    )


def prefers_html(accept: str) -> bool:
    """Return whether an ``Accept`` header likes HTML better than JSON (RFC 9110, 12.5.1)."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        if found := _MEDIA_RANGE.fullmatch(part):
            weights[found[1].lower()] = float(found[2] or 1)

    def weight(kind: str) -> float:
        for name in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
            if name in weights:
                return weights[name]
        return 0.0

    return weight("text/html") > weight("application/json")


def frame_answer(request: web.Request) -> web.Response:
    """Return the frame. Its addresses are relative, so it also works behind a path prefix."""
    text = (FOLDER / FRAME).read_text()
    if request.path not in PAGES:  # one folder deeper
        text = text.replace('"static/', '"../static/')
    headers = {"Vary": "Accept"}
    return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)
