"""Tokens that a partition sends later.

They belong to throttled shards, to steps and shards that wait, or to sessions that are not known
yet. A delayed token is in memory only. The checkpoint stands for the token: whoever opens the
partition next sends the token (docs/decisions.md, 9). A token without a session has no checkpoint.
Such a token is sent when its partition closes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from replay_app.board import Board
    from replay_app.checkpoints import Origin, Token
    from replay_app.sessions import Session

logger = logging.getLogger(__name__)

MAX_DELAY_SECONDS = 5.0
"""Longest pause between two slices. The session hears of a live shard at least that often."""
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after the first, second, ... failure in a row."""

SESSION_WAIT_SECONDS = 0.2
"""How long a token waits in front of others for its session. A token is sent just before its
session is published."""
NO_WAIT_SECONDS = 10.0
"""After a wait for nothing, no token waits in front of others for this time: strangers may write
thousands of tokens."""
MAX_UNKNOWN = 1000
"""Tokens of unknown sessions that a partition keeps."""
CLOSE_SECONDS = 5.0
"""Longest time for which a closing partition sends the tokens of unknown sessions."""
MAX_REQUEUES = 60
"""How many owners of its partition put a token back on Kafka because its session was unknown. Then
the token is dropped, and the watchdog repairs the replay."""


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


class UnknownTokens:
    """The tokens of one partition whose sessions are not on the board yet."""

    def __init__(
        self, board: Board, requeue: Callable[[Token, Origin, int], Coroutine[Any, Any, None]]
    ) -> None:
        self._board = board
        self._requeue = requeue
        self._tokens: dict[tuple[Token, Origin], None] = {}
        self._no_wait_until = 0.0
        self._sending: set[asyncio.Task[None]] = set()

    async def session_of(self, token: Token, origin: Origin) -> Session | None:
        """Return the session that sent a token.

        None if the session is unknown. The token then waits here, and is sent again when its
        session appears on the board.
        """
        seconds = SESSION_WAIT_SECONDS if time.monotonic() >= self._no_wait_until else 0.0
        session = await self._board.session_for(token, seconds)
        if session is not None:
            return session
        if seconds:
            self._no_wait_until = time.monotonic() + NO_WAIT_SECONDS
        if token.requeues >= MAX_REQUEUES:
            logger.warning("dropped %s: its session is unknown", token)
            return None
        self._tokens[token, origin] = None
        if len(self._tokens) > MAX_UNKNOWN:
            oldest = next(iter(self._tokens))
            del self._tokens[oldest]
            logger.warning("dropped %s: too many tokens of unknown sessions", oldest[0])
        return None

    def on_session(self, session: Session) -> None:
        """Send the tokens of a session that is known now."""
        for token, origin in list(self._tokens):
            if token.replay_id == session.replay_id and session.has_sent(token):
                del self._tokens[token, origin]
                self._send(token, origin, token.requeues)

    async def close(self) -> None:
        """Send every token: whoever owns the partition next may know the session."""
        for token, origin in self._tokens:
            self._send(token, origin, token.requeues + 1)
        self._tokens.clear()
        if self._sending:
            # The watchdog repairs a replay whose token is lost here.
            _, late = await asyncio.wait(self._sending, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()

    def _send(self, token: Token, origin: Origin, requeues: int) -> None:
        task = asyncio.create_task(self._requeue(token, origin, requeues))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
