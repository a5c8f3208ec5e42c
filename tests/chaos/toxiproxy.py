"""Toxiproxy 2 between a worker and the broker: a network that can be cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Self

from support import wait_until

from replay_app.demo.stack import free_port

VERSION = "2.12.0"
MODULE = f"github.com/Shopify/toxiproxy/v2/cmd/server@v{VERSION}"
FOLDER = Path(__file__).parents[2] / ".stack" / f"toxiproxy-{VERSION}"
START_SECONDS = 20.0


class ToxiproxyMissing(Exception):
    """Toxiproxy is not there and cannot be built."""


def server_command() -> str:
    """Return Toxiproxy's server, built on first use.

    Raises
    ------
    ToxiproxyMissing
        Without Go, or when Go cannot fetch it.

    """
    command = FOLDER / "server"
    if not command.exists():
        go = shutil.which("go")
        if go is None:
            raise ToxiproxyMissing("Toxiproxy is built by Go, and Go is not installed")
        built = subprocess.run(
            ["/usr/bin/env", f"GOBIN={FOLDER}", go, "install", MODULE],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise ToxiproxyMissing(f"Go cannot install Toxiproxy: {built.stderr.strip()[-300:]}")
    return str(command)


class Toxiproxy:
    """A running server with one proxy, from ``port`` to ``upstream``."""

    def __init__(self, port: int, upstream: str) -> None:
        self._api = f"http://127.0.0.1:{(api_port := free_port())}"
        self._process = subprocess.Popen(
            [server_command(), "-host", "127.0.0.1", "-port", str(api_port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, START_SECONDS, "Toxiproxy does not start")
        self._post("/proxies", {"name": "p", "listen": f"127.0.0.1:{port}", "upstream": upstream})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def fall_silent(self) -> None:
        """Forward nothing in either direction; the connections stay open, as with a cut cable."""
        for stream in ("upstream", "downstream"):
            toxic = {"name": stream, "type": "timeout", "stream": stream}
            self._post("/proxies/p/toxics", {**toxic, "attributes": {"timeout": 0}})

    def refuse(self) -> None:
        """Close every connection and accept no new connection."""
        self._post("/proxies/p", {"enabled": False})

    def heal(self) -> None:
        """Forward everything again; silent connections are closed."""
        self._post("/reset", {})

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._api}/version", timeout=1):  # noqa: S310 - our own
                return True
        except OSError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(  # noqa: S310 - our own
            self._api + path, data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - our own
            pass
