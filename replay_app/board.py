"""The board: the newest session of each replay from ``replay.status``, in memory on each worker.

``replay.status`` is compacted and written in fenced transactions. A read_committed reader at its
end knows the newest durable state of every session. The board gives the list of replays, tells
workers of new orders, and restores a table row that was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from replay_app.commands import ReplayId
from replay_app.compacted import OBSTACLE_SECONDS, CompactedReader
from replay_app.exceptions import Unavailable
from replay_app.ignored import IgnoredRecords
from replay_app.installations import is_installation
from replay_app.records import Count, Moment, Record
from replay_app.sessions import Session, decode_session
from replay_app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiokafka import ConsumerRecord

    from replay_app.checkpoints import Token
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

REJECTED = "/rejected/"
"""Part of a rejection's key: replay_id, this text, partition-offset of the command."""
MAX_REJECTIONS = 1000
MAX_FORGOTTEN = 1000
"""Sessions and rejections that are forgotten, and whose last change is still known."""
RECONNECT_SECONDS = 1.0
CAUGHT_UP_SECONDS = 30.0
"""Longest wait until the board has read a partition to its end."""
FETCH_MS = 100
"""How long the broker may hold a fetch without new records."""


class Rejection(Record):
    """The answer to a command that changed nothing."""

    leaves_out_defaults = False  # clients read rejections too

    replay_id: ReplayId
    rejected: str
    """Why the command was rejected."""
    command: str | None
    partition: Count
    offset: Count
    at: Moment

    @property
    def key(self) -> str:
        """The record's key. It differs from the session's key, so no session is replaced."""
        return f"{self.replay_id}{REJECTED}{self.partition}-{self.offset}"


class Board:
    """The sessions of ``replay.status``."""

    def __init__(self, settings: Settings, ignored: IgnoredRecords | None = None) -> None:
        self._settings = settings
        self._ignored = ignored or IgnoredRecords()
        self._topic = Topics.of(settings).status
        self.sessions: dict[str, Session] = {}
        self.rejections: dict[str, Rejection] = {}
        self.is_complete = False
        """Whether the board has read all that was published before this worker's start."""
        self.changes_so_far = 0
        """How often a session or a rejection has changed since this worker's start."""
        self._last_changes: dict[str, int] = {}
        """By key of a session or a rejection: the number of its last change, in this order."""
        self._dropped_change = 0
        """The number of the last change of a forgotten key that is not known any more."""
        self._changed = asyncio.Condition()
        self._positions: dict[int, int] = {}
        self._reader: CompactedReader | None = None
        self._is_stale = False
        """Whether the connection is to be opened again."""
        self._held: dict[int, str] = {}
        """By partition: why the board has not read it to its end, if it is known."""
        self._listeners: list[Callable[[Session], None]] = []

    def on_session(self, listener: Callable[[Session], None]) -> None:
        """Call ``listener`` with each session whose orders have changed, from now on."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Read the topic until the task is cancelled, over as many connections as needed."""
        while True:
            reader = CompactedReader(
                self._settings,
                self._settings.kafka,
                self._topic.name,
                range(self._topic.partitions),
                fetch_max_wait_ms=FETCH_MS,
            )
            try:
                await reader.start(self._positions)
                self._reader = reader
                await self._read(reader)
            except KafkaError as error:
                logger.warning("cannot read %s: %r; trying again", self._topic.name, error)
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                self._reader = None
                await reader.stop()

    async def _read(self, reader: CompactedReader) -> None:
        ends = await reader.ends()
        self._is_stale = False
        while not self._is_stale:
            for record in await reader.read():
                self._add(record)
            self._positions |= reader.positions
            if not self.is_complete:
                self.is_complete = all(
                    self._positions[number] >= end for number, end in ends.items()
                )
            async with self._changed:
                self._changed.notify_all()

    def _add(self, record: ConsumerRecord) -> None:
        if is_installation(record.key):
            return
        key = (record.key or b"").decode(errors="replace")
        try:
            if REJECTED in key:
                self._add_rejection(key, record.value)
            else:
                self._add_session(key, record.value)
        except ValueError as error:
            self._ignored.add(record.topic, record.partition, record.offset, error)
        else:
            self._note_change(key)

    def _note_change(self, key: str) -> None:
        self.changes_so_far += 1
        self._last_changes.pop(key, None)
        self._last_changes[key] = self.changes_so_far
        if len(self._last_changes) > len(self.sessions) + len(self.rejections) + MAX_FORGOTTEN:
            forgotten = [
                one
                for one in self._last_changes
                if one not in self.sessions and one not in self.rejections
            ]
            for one in forgotten[: len(forgotten) - MAX_FORGOTTEN // 2]:
                self._dropped_change = self._last_changes.pop(one)

    def changed_since(self, number: int) -> list[str] | None:
        """Return the keys that have changed after ``changes_so_far`` had this value, oldest first.

        A key may belong to a session, to a rejection (`REJECTED`), or to one that is forgotten.
        None: too many were forgotten since, and which ones is not known any more.
        """
        if number < self._dropped_change:
            return None
        keys = []
        for key, changed in reversed(self._last_changes.items()):
            if changed <= number:
                break
            keys.append(key)
        return keys[::-1]

    def _add_rejection(self, key: str, value: bytes | None) -> None:
        rejection = None if value is None else Rejection.model_validate_json(value)
        if rejection is not None and rejection.key != key:
            msg = "the rejection belongs to another key"
            raise ValueError(msg)
        self.rejections.pop(key, None)
        if rejection is not None:
            self.rejections[key] = rejection
            if len(self.rejections) > MAX_REJECTIONS:
                self.rejections.pop(next(iter(self.rejections)))

    def _add_session(self, key: str, value: bytes | None) -> None:
        session = decode_session(value)
        if session is None:
            self.sessions.pop(key, None)
            return
        if session.replay_id != key:
            msg = "the session belongs to another key"
            raise ValueError(msg)
        before, self.sessions[key] = self.sessions.get(key), session
        if before is None or before.orders != session.orders:
            for listener in self._listeners:
                listener(session)

    async def caught_up(self, partition: int) -> None:
        """Wait until the board has read all that is written to a partition up to now.

        Raises
        ------
        Unavailable
            When the board is not there after CAUGHT_UP_SECONDS, such as behind an open transaction
            on the partition. An older session must not be taken for the newest: the caller waits
            again. The board reads on over a new connection.

        """
        try:
            async with asyncio.timeout(CAUGHT_UP_SECONDS):
                await self._catch_up(partition)
        except TimeoutError as error:
            self._is_stale = True
            why = self._held.get(partition, "the broker gives no more records")
            msg = (
                f"partition {partition} of {self._topic.name!r} is not read to its end within "
                f"{CAUGHT_UP_SECONDS:g} s: {why}"
            )
            raise Unavailable(msg) from error

    async def _catch_up(self, partition: int) -> None:
        self._held.pop(partition, None)
        while True:
            reader = self._reader
            if reader is not None:
                with contextlib.suppress(KafkaError):
                    end = (await reader.ends(partition))[partition]
                    break
            await asyncio.sleep(RECONNECT_SECONDS / 10)
        while self._positions.get(partition, -1) < end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OBSTACLE_SECONDS), self._changed:
                    await self._changed.wait_for(lambda: self._positions.get(partition, -1) >= end)
                break
            if self._reader is not None and (why := await self._reader.explain(partition, end)):
                logger.warning("%s", why)
                self._held[partition] = why

    async def session_for(self, token: Token, seconds: float) -> Session | None:
        """Return the session that sent a token, or a later state of this session.

        Tokens are sent before their session is published. None if the session does not come within
        ``seconds``.
        """

        def has_session() -> bool:
            session = self.sessions.get(token.replay_id)
            return session is not None and session.has_sent(token)

        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(has_session)
        return self.sessions.get(token.replay_id) if has_session() else None

    async def changes(self, replay_id: str) -> AsyncIterator[Session | None]:
        """Yield the session now and after each change; None, as the last, once it is forgotten."""
        last: Session | None = None
        first = True
        while True:
            session = self.sessions.get(replay_id)
            if first or session is not last:
                first, last = False, session
                yield session
                if session is None:
                    return
            async with self._changed:
                await self._changed.wait()
