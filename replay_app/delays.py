"""Tokens that a partition sends later: of throttled shards, and of steps and shards that wait.

A delayed token is in memory only. The checkpoint stands for the token: whoever opens the partition
next sends the token (docs/decisions.md, 9).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from replay_app.checkpoints import Token

MAX_DELAY_SECONDS = 5.0
"""Longest pause between two slices. The session hears of a live shard at least that often."""
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after the first, second, ... failure in a row."""


class DelayedTokens:
    """The delayed tokens of one partition, by the tokens' keys."""

    def __init__(self, send: Callable[[Token], Awaitable[None]]) -> None:
        self._send = send
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wakes: dict[str, asyncio.Event] = {}
        self._failures: dict[str, int] = {}

    def put_off(self, token: Token, seconds: float, sooner: Awaitable[Any] | None = None) -> None:
        """Send a token after ``seconds``, or when `wake` is called, or when ``sooner`` is done."""
        key = token.key
        former = self._tasks.pop(key, None)
        if former is not None:
            former.cancel()
        wake = self._wakes[key] = asyncio.Event()

        async def send_later() -> None:
            waits = [asyncio.ensure_future(wake.wait())]
            if sooner is not None:
                waits.append(asyncio.ensure_future(sooner))
            try:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in waits:
                    waiting.cancel()
            await self._send(token)
            self._tasks.pop(key, None)
            self._wakes.pop(key, None)

        self._tasks[key] = asyncio.create_task(send_later())

    def waiting(self) -> tuple[str, ...]:
        """Return the keys of the delayed tokens."""
        return tuple(self._wakes)

    def wake(self, key: str) -> bool:
        """Send a delayed token now. Return False if no token of this key is delayed."""
        wake = self._wakes.get(key)
        if wake is not None:
            wake.set()
        return wake is not None

    def back_off(self, key: str) -> float:
        """Return the seconds to wait after one more failure in a row."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]

    def reset(self, key: str) -> None:
        """Forget the failures: the shard moves again."""
        self._failures.pop(key, None)

    def tasks(self) -> tuple[asyncio.Task[None], ...]:
        """Return the tasks that send the tokens; who cancels them drops the tokens."""
        return tuple(self._tasks.values())
