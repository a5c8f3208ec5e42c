"""The sessions agent's shell: it keeps the order that survives crashes (design section 5).

For each record: 1. take the row, or the session on the board if that one is newer; 2. compute the
step; 3. send its tokens and await them; 4. publish the session on ``replay.status`` in a fenced
transaction; 5. write the row. A crash between any two repeats the step and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aiokafka.errors import MessageSizeTooLargeError

from replay_app import crashpoints
from replay_app.commands import parse_command, usable_replay_id
from replay_app.exceptions import CommandConflict, InvalidCommand
from replay_app.progress import Progress, decode_progress
from replay_app.publisher import HEARTBEAT_SECONDS, PRODUCER_ERRORS, FencedProducer
from replay_app.sessions import (
    SETTLED,
    Session,
    Step,
    decode_session,
    fitted,
    on_command,
    on_nudge,
    on_progress,
)
from replay_app.status import Rejection
from replay_app.topics import NOOP, partition_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from replay_app.slices import Worker

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.3
"""Progress that changes no state is published no more often, for each session."""
WATCH_SECONDS = 1.0
MAX_REASON = 2000
"""Characters of a rejection's reason."""


@dataclass
class SessionPartition:
    """One owned partition of ``replay.requests`` and ``replay.progress``."""

    producer: FencedProducer
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: bool = False
    not_before: float = 0.0
    """Monotonic seconds before which it is not opened again."""
    latest: dict[str, Session] = field(default_factory=dict)
    """The newest state, published or not, of each session that is not settled, or whose row could
    not be written."""
    published_at: dict[str, float] = field(default_factory=dict)
    """Monotonic seconds."""
    unpublished: set[str] = field(default_factory=set)


class SessionPartitions:
    """The decisions of this worker: commands and progress in, sessions and tokens out."""

    def __init__(self, worker: Worker, table: MutableMapping[bytes, bytes]) -> None:
        self._worker = worker
        self._table = table
        self._owned: dict[int, SessionPartition] = {}
        worker.metrics.show_sessions(self._owned_by_state)

    # Ownership

    async def assign(self, partitions: Iterable[int]) -> None:
        """Own exactly these from now on."""
        await self.revoke()
        for partition in partitions:
            self._owned[partition] = self._new(partition)

    async def revoke(self) -> None:
        """Close every partition."""
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.producer.discard() for partition in owned.values()))

    def _new(self, partition: int) -> SessionPartition:
        settings = self._worker.settings
        name = f"{settings.app_id}-sessions-{partition}"
        return SessionPartition(FencedProducer(settings, settings.kafka, name))

    def _own(self, partition: int) -> SessionPartition:
        if partition not in self._owned:  # a record came before the listener had ended
            self._owned[partition] = self._new(partition)
        return self._owned[partition]

    async def _open(self, owned: SessionPartition, partition: int) -> None:
        """Fence the former owner, then read its last word."""
        await asyncio.sleep(max(0.0, owned.not_before - time.monotonic()))
        await owned.producer.start()
        await self._worker.board.caught_up(partition)
        owned.opened = True

    async def _close(self, owned: SessionPartition) -> None:
        """Give the producer up; the next use opens a new one, later than an eviction is known."""
        owned.opened = False
        owned.not_before = time.monotonic() + HEARTBEAT_SECONDS + 0.5
        await owned.producer.discard()
        owned.producer = owned.producer.renewed()

    # Records

    async def handle_request(self, partition: int, offset: int, value: bytes | None) -> None:
        """Apply one record of ``replay.requests``."""
        if value == NOOP:
            return
        try:
            command = parse_command(value or b"")
        except InvalidCommand as error:
            await self._refuse_malformed(partition, offset, value, str(error))
            return
        replay_id = command.replay_id
        settings = self._worker.settings
        home = partition_of(replay_id.encode(), settings.partitions)
        if home != partition:
            # Another client's partitioner: all that concerns a replay goes through one partition.
            await self._worker.outbox.send(
                self._worker.topics.requests.name, replay_id, value or b"", home
            )
            return
        try:
            await self._apply(
                partition, replay_id, lambda session, now: on_command(session, command, now)
            )
        except CommandConflict as error:
            logger.info("refused %s: %s", command.command, error)
            self._worker.metrics.refused_commands.labels("conflict").inc()
            await self._reject(partition, offset, replay_id, str(error), command.command)

    async def _refuse_malformed(
        self, partition: int, offset: int, value: bytes | None, error: str
    ) -> None:
        self._worker.metrics.refused_commands.labels("malformed").inc()
        topic = self._worker.topics.requests.name
        logger.error("%s %d:%d is no command: %s", topic, partition, offset, error)
        replay_id = usable_replay_id(value)
        if replay_id is not None:
            await self._reject(partition, offset, replay_id, error, None)

    async def handle_progress(self, partition: int, offset: int, value: bytes | None) -> None:
        """Apply one record of ``replay.progress``."""
        record = decode_progress(value)
        if record is None:
            topic = self._worker.topics.progress.name
            logger.error("%s %d:%d is no progress and was passed over", topic, partition, offset)
            return
        if record.kind == "noop":
            return
        if record.kind == "nudge":
            settings = self._worker.settings
            stall = timedelta(seconds=settings.stall_seconds)
            retention = timedelta(days=settings.retention_days)
            await self._apply(
                partition,
                record.replay_id,
                lambda session, now: on_nudge(session, now, stall, retention),
                flush=True,
            )
            return
        await self._apply(
            partition, record.replay_id, lambda session, now: on_progress(session, record, now)
        )

    # Steps

    async def _apply(
        self,
        partition: int,
        replay_id: str,
        decide: Callable[[Session | None, datetime], Step],
        *,
        flush: bool = False,
    ) -> None:
        await self._durably(
            partition,
            lambda owned: self._step(owned, partition, replay_id, decide, flush=flush),
        )

    async def _durably(
        self, partition: int, write: Callable[[SessionPartition], Awaitable[None]]
    ) -> None:
        """Do one step as the partition's only writer, again and again until it is durable.

        Each try opens the producer first if need be, so that it starts from the newest state.
        """
        owned = self._own(partition)
        async with owned.lock:
            while True:
                try:
                    if not owned.opened:
                        await self._open(owned, partition)
                    await write(owned)
                except MessageSizeTooLargeError:
                    # It would never fit, and the whole partition would wait for it.
                    logger.exception("sessions of partition %d: a record is too large", partition)
                    await self._close(owned)
                    return
                except PRODUCER_ERRORS as error:
                    logger.warning("sessions of partition %d: %r; trying again", partition, error)
                    await self._close(owned)
                else:
                    return

    async def _step(
        self,
        owned: SessionPartition,
        partition: int,
        replay_id: str,
        decide: Callable[[Session | None, datetime], Step],
        *,
        flush: bool,
    ) -> None:
        before = self._take(owned, replay_id)
        step = decide(before, datetime.now(UTC))
        if not step.changed and not (flush and replay_id in owned.unpublished):
            if before is not None and before.state not in SETTLED:
                owned.latest.setdefault(replay_id, before)
            return
        work = self._worker.topics.work
        await asyncio.gather(
            *(
                self._worker.outbox.send(
                    work.name,
                    token.key,
                    token.encode(),
                    partition_of(token.key.encode(), work.partitions),
                )
                for token in step.tokens
            )
        )
        crashpoints.reach("after-tokens")
        session, value = step.session, None
        since = time.monotonic() - owned.published_at.get(replay_id, 0.0)
        is_due = step.urgent or flush or since >= PUBLISH_SECONDS
        if session is not None:
            if is_due:
                session = session.model_copy(update={"revision": session.revision + 1})
            session, value = fitted(session)
        if is_due:
            await self._publish(owned, partition, replay_id, value)
            owned.published_at[replay_id] = time.monotonic()
            owned.unpublished.discard(replay_id)
            crashpoints.reach("after-status")
        else:
            owned.unpublished.add(replay_id)
        self._put(owned, replay_id, session, value)

    def _take(self, owned: SessionPartition, replay_id: str) -> Session | None:
        """Return the row, or the session on the board if that one is newer.

        Also newer is what could not be written into the row, and is not read from the board yet.
        """
        row = decode_session(self._table.get(replay_id.encode()))
        published = self._worker.board.sessions.get(replay_id)
        found = [known for known in (owned.latest.get(replay_id), row, published) if known]
        return max(found, key=lambda session: session.revision, default=None)

    def _put(
        self,
        owned: SessionPartition,
        replay_id: str,
        session: Session | None,
        value: bytes | None,
    ) -> None:
        is_written = True
        try:
            if value is None:
                self._table.pop(replay_id.encode(), None)
            else:
                self._table[replay_id.encode()] = value
        except Exception:
            # A row is a cache. To fail here would make Faust ack the record all the same.
            logger.exception(
                "the row of replay %r cannot be written: is the disk of REPLAY_DATA_DIR full? "
                "The replay goes on; the state that counts is on replay.status",
                replay_id,
            )
            is_written = False
        if session is None or (is_written and session.state in SETTLED):
            owned.latest.pop(replay_id, None)
            owned.published_at.pop(replay_id, None)
        else:
            owned.latest[replay_id] = session

    async def _publish(
        self, owned: SessionPartition, partition: int, key: str, value: bytes | None
    ) -> None:
        await owned.producer.begin()
        await owned.producer.send(
            self._worker.topics.status.name, partition=partition, key=key.encode(), value=value
        )
        await owned.producer.commit()

    async def _reject(
        self, partition: int, offset: int, replay_id: str, why: str, command: str | None
    ) -> None:
        rejection = Rejection(
            replay_id=replay_id,
            rejected=why[:MAX_REASON],
            command=command,
            partition=partition,
            offset=offset,
            at=datetime.now(UTC),
        )
        value = rejection.model_dump_json().encode()
        await self._durably(
            partition, lambda owned: self._publish(owned, partition, rejection.key, value)
        )

    # Looking on

    def _owned_by_state(self) -> Counter[str]:
        partitions = self._worker.settings.partitions
        return Counter(
            session.state
            for replay_id, session in self._worker.board.sessions.items()
            if partition_of(replay_id.encode(), partitions) in self._owned
        )

    # The watchdog

    async def watch(self) -> None:
        """Send a nudge for each session that time alone changes; only the agent writes."""
        stall = timedelta(seconds=self._worker.settings.stall_seconds)
        retention = timedelta(days=self._worker.settings.retention_days)
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = datetime.now(UTC)
            for replay_id, session in list(self._worker.board.sessions.items()):
                partition = partition_of(replay_id.encode(), self._worker.settings.partitions)
                owned = self._owned.get(partition)
                if owned is None:
                    continue
                newest = owned.latest.get(replay_id, session)
                late = (
                    replay_id in owned.unpublished
                    and time.monotonic() - owned.published_at.get(replay_id, 0.0) > PUBLISH_SECONDS
                )
                if late or on_nudge(newest, now, stall, retention).changed:
                    await self._worker.outbox.send(
                        self._worker.topics.progress.name,
                        replay_id,
                        Progress(replay_id=replay_id, kind="nudge").encode(),
                        partition,
                    )
