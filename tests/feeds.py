"""A client of a worker's feed, the stream of every replay."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from workers import Worker

SECONDS = 60.0
"""The longest wait for one message of a feed."""


class Feed:
    """An open feed."""

    def __init__(self, worker: Worker, headers: Mapping[str, str] | None = None) -> None:
        address = worker.url.removeprefix("http://")
        self.connection = http.client.HTTPConnection(address, timeout=SECONDS)
        self.connection.request("GET", "/events", headers=dict(headers or {}))
        self.answer = self.connection.getresponse()

    def close(self) -> None:
        self.answer.close()  # it holds the socket, too
        self.connection.close()

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield name and data of each message."""
        name = ""
        for raw in self.answer:
            line = raw.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    def until(self, wanted: str, **members: Any) -> list[tuple[str, Any]]:
        """Return the messages up to the first one with this name and these members."""
        found = []
        deadline = time.monotonic() + SECONDS
        for name, data in self.messages():
            found.append((name, data))
            if name == wanted and all(data.get(key) == value for key, value in members.items()):
                return found
            assert time.monotonic() < deadline, f"no {wanted} {members} in {found}"
        raise AssertionError(f"the feed has ended: {found}")
