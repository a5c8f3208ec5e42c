"""The board: every session as last published on ``replay.status``, kept in memory on each worker.

``replay.status`` is compacted and written in fenced transactions, so a read_committed reader that
has reached the end knows the newest durable state of every session. The list view, the control
broadcast and the healing of a lost table row all come from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import datetime
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ConfigDict, ValidationError

from replay_app.sessions import Session, decode_session
from replay_app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from replay_app.checkpoints import Token
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

REJECTED = "/rejected/"
"""In the key of a rejection: replay_id, this, partition-offset of the command."""
MAX_REJECTIONS = 1000
RETRY_SECONDS = 1.0
FETCH_MS = 100
"""How long the broker may hold a fetch when there is nothing new. `caught_up` asks over the same
connection, and every first command of a partition waits for it."""


class Rejection(BaseModel):
    """The answer to a command that changed nothing."""

    model_config = ConfigDict(frozen=True)

    replay_id: str
    rejected: str
    """Why."""
    command: str | None
    partition: int
    offset: int
    at: datetime

    @property
    def key(self) -> str:
        """The record's key, of its own, so that it never replaces a session."""
        return f"{self.replay_id}{REJECTED}{self.partition}-{self.offset}"


class Board:
    """The sessions of ``replay.status``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = Topics.of(settings).status.name
        self._partitions = [
            TopicPartition(self._topic, number) for number in range(settings.partitions)
        ]
        self.sessions: dict[str, Session] = {}
        self.rejections: dict[str, Rejection] = {}
        self.is_complete = False
        """Whether all that was published before this worker's start has been read."""
        self._changed = asyncio.Condition()
        self._positions: dict[int, int] = {}
        self._consumer: AIOKafkaConsumer | None = None
        self._listeners: list[Callable[[Session], None]] = []

    def on_session(self, listener: Callable[[Session], None]) -> None:
        """Call ``listener`` with every session whose orders are new from now on."""
        self._listeners.append(listener)

    async def follow(self) -> None:
        """Read the topic for ever."""
        while True:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self._settings.kafka,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=FETCH_MS,
                **self._settings.kafka_security(),
            )
            try:
                await consumer.start()
                consumer.assign(self._partitions)
                for tp in self._partitions:
                    if tp.partition in self._positions:  # an earlier connection stopped there
                        consumer.seek(tp, self._positions[tp.partition])
                    else:
                        await consumer.seek_to_beginning(tp)
                self._consumer = consumer
                await self._read(consumer)
            except KafkaError as error:
                logger.warning("cannot read %s: %r; trying again", self._topic, error)
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                self._consumer = None
                with contextlib.suppress(KafkaError):
                    await consumer.stop()

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        ends = await consumer.end_offsets(self._partitions)
        while True:
            batches = await consumer.getmany(timeout_ms=200)
            for records in batches.values():
                for record in records:
                    self._take((record.key or b"").decode(errors="replace"), record.value)
            for tp in self._partitions:
                self._positions[tp.partition] = await consumer.position(tp)
            if not self.is_complete:
                self.is_complete = all(
                    self._positions[tp.partition] >= end for tp, end in ends.items()
                )
            async with self._changed:
                self._changed.notify_all()

    def _take(self, key: str, value: bytes | None) -> None:
        try:
            if REJECTED in key:
                self.rejections.pop(key, None)
                if value is not None:
                    self.rejections[key] = Rejection.model_validate_json(value)
                    if len(self.rejections) > MAX_REJECTIONS:
                        self.rejections.pop(next(iter(self.rejections)))
                return
            session = decode_session(value)
        except ValidationError:
            logger.exception(
                "%s: the record %r is unreadable and was passed over", self._topic, key
            )
            return
        if session is None:
            self.sessions.pop(key, None)
            return
        before, self.sessions[key] = self.sessions.get(key), session
        if before is None or before.orders != session.orders:
            for listener in self._listeners:
                listener(session)

    async def caught_up(self, partition: int) -> None:
        """Wait until all that was committed on a partition up to now has been read."""
        tp = TopicPartition(self._topic, partition)
        while True:
            consumer = self._consumer
            if consumer is not None:
                with contextlib.suppress(KafkaError):
                    end = (await consumer.end_offsets([tp]))[tp]
                    break
            await asyncio.sleep(RETRY_SECONDS / 10)
        async with self._changed:
            await self._changed.wait_for(lambda: self._positions.get(partition, -1) >= end)

    async def session_for(self, token: Token, seconds: float) -> Session | None:
        """Return the session once it is as new as the token; None if it is not in that time.

        Tokens are sent before the session that they belong to is published.
        """

        def has_it() -> bool:
            session = self.sessions.get(token.replay_id)
            return session is not None and session.has_sent(token)

        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(has_it)
        return self.sessions.get(token.replay_id) if has_it() else None

    async def changes(self, replay_id: str) -> AsyncIterator[Session | None]:
        """Yield the session now and after each change; None once it is not there."""
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
