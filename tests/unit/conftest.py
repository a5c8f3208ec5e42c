"""What several tests of the command line share: a clean environment, and a canned worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from canned import Canned, Serve

from replay_app.settings import Settings


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take away every setting, and name the user."""
    monkeypatch.chdir(tmp_path)  # no .env
    for name in (*Settings.model_fields, "url"):
        monkeypatch.delenv(f"REPLAY_{name.upper()}", raising=False)
    monkeypatch.setenv("USER", "ana")
    monkeypatch.setenv("LOGNAME", "ana")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a server with answers; the command line is pointed at it."""
    started: list[ThreadingHTTPServer] = []

    def start(*answers: tuple[int, Any]) -> type[Canned]:
        canned = type("Answers", (Canned,), {"answers": list(answers), "asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), canned)
        started.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        monkeypatch.setenv("REPLAY_URL", f"http://127.0.0.1:{server.server_port}")
        return canned

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
