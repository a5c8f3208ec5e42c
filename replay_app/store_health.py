"""Whether the event store can be used: asked at the start and for ``/readyz``, and remembered."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from replay_app.exceptions import ReplayError
from replay_app.store import StoreUnavailable

if TYPE_CHECKING:
    from replay_app.store import EventStore

logger = logging.getLogger(__name__)

REMEMBER_SECONDS = 3.0
"""How long an answer is used again: a probe must not load the store."""
LOOK_AGAIN_SECONDS = 10.0


class StoreHealth:
    """What is wrong with the event store, if anything. Each change is a line of the log."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._problem: ReplayError | None = None
        self._asked_at = float("-inf")
        """Monotonic seconds of the last answer."""
        self._said: str | None = None
        """What the log said last; None before the first line."""
        self._lock = asyncio.Lock()

    async def problem(self) -> ReplayError | None:
        """Return what is wrong, at most `REMEMBER_SECONDS` old; None if the store can be used.

        The store is asked once, however many callers wait.
        """
        async with self._lock:
            if time.monotonic() - self._asked_at >= REMEMBER_SECONDS:
                self._problem = await self._ask()
                self._asked_at = time.monotonic()
            return self._problem

    async def watch(self) -> None:
        """Look until the store can be used for the first time."""
        while await self.problem() is not None:  # noqa: ASYNC110 - the store has no event for this
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _ask(self) -> ReplayError | None:
        problem = None
        try:
            await self._store.check()
        except ReplayError as error:
            problem = error
        said = str(problem or "")
        if said != self._said:
            self._said = said
            if problem is None:
                logger.info("the event store %r answers", self._store.name)
            elif isinstance(problem, StoreUnavailable):
                logger.warning("%s; replays wait for the store (REPLAY_MONGO)", problem)
            else:
                logger.warning("%s", problem)
        return problem
