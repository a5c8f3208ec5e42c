"""A worker that gives prepared answers, and the sessions that it tells of."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any


class Canned(BaseHTTPRequestHandler):
    """Gives the answers of a list, the last one for ever, and keeps what was asked."""

    answers: list[tuple[int, Any]]
    asked: list[tuple[str, str, Any, str | None]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append(
            (
                self.command,
                self.path,
                json.loads(body) if body else None,
                self.headers.get("Authorization"),
            )
        )
        status, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815 - names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - inherited
        """Write nothing."""


Serve = Callable[..., type[Canned]]
"""Starts the server with some answers, each a status and a body; the last answer stays."""


def session(state: str = "running", **facts: Any) -> dict[str, Any]:
    """Return a session as the API answers it."""
    facts["start"] = {
        "command": "start",
        "replay_id": "r-1",
        "name": None,
        "reason": None,
        "requested_by": None,
        "filter": {},
        "target": {},
        "ordering": "global",
        "dry_run": False,
        "after": [],
        "consumers": [],
        **facts.get("start", {}),
    }
    return {
        "replay_id": "r-1",
        "revision": 1,
        "state": state,
        **dict.fromkeys(("created_at", "updated_at", "progressed_at", "heard_at"), MORNING),
        **dict.fromkeys(("started_at", "ended_at", "plan", "receipt", "rate", "position")),
        "attempt": 1,
        "shards": [],
        "stalled": False,
        "reason": None,
        "error": None,
        "matched": 1000,
        "percent": 50.0,
        "eta_seconds": None,
        "events_per_second": None,
        "counters": {"read": 500, "published": 500, "skipped": 0, "dead_lettered": 0},
        "warnings": [],
        **facts,
    }


MORNING = "2026-01-01T08:00:00Z"
