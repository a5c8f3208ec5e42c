"""The sessions agent: it carries out the steps of `replay_app.transitions`.

For each record: 1. take the newest session, from the row or from the board; 2. compute the step;
3. send the step's tokens and await their acks; 4. publish the session on ``replay.status`` in a
fenced transaction; 5. write the row. After a crash between two of these, the record comes again:
the step is repeated, and the repetition changes nothing.

Source: docs/protocol.md, "A step of the sessions agent".
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from replay_app import crashpoints
from replay_app.board import Rejection
from replay_app.broker_errors import Kind, Refused, explain
from replay_app.commands import NOT_TO_ORIGINAL, Start, parse_command, usable_replay_id
from replay_app.course import note_course
from replay_app.exceptions import CommandConflict, InvalidCommand, Unavailable
from replay_app.publisher import BATCH_OVERHEAD, PRODUCER_ERRORS, REOPEN_SECONDS, FencedProducer
from replay_app.reports import MAX_INTERNAL_BYTES, Report, decode_report
from replay_app.sessions import Session, decode_session, fit_record
from replay_app.states import SETTLED
from replay_app.topics import NOOP
from replay_app.transitions import Step, on_command, on_look, on_nudge, on_report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from replay_app.commands import Command
    from replay_app.context import WorkerContext

    Decide = Callable[[Session | None, datetime], Step]

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 0.3
"""Least time between two publications of a session if only its counters changed."""
WATCH_SECONDS = 1.0
"""Interval at which the watchdog looks at the sessions."""
TABLE = "the sessions table"
TOO_LARGE = (10, 18)
"""Kafka's error codes MESSAGE_TOO_LARGE and RECORD_LIST_TOO_LARGE."""
MAX_REASON = 2000
"""Characters of a rejection's reason."""


class SessionPartition:
    """One owned partition of ``replay.requests`` and ``replay.progress``."""

    def __init__(
        self, context: WorkerContext, table: MutableMapping[bytes, bytes], partition: int
    ) -> None:
        self._context = context
        self._table = table
        self._partition = partition
        settings = context.settings
        self._producer = FencedProducer(
            settings,
            settings.kafka,
            f"{settings.app_id}-sessions-{partition}",
            context.is_leaving,
        )
        self._lock = asyncio.Lock()
        self._is_open = False
        self._open_after = 0.0
        """Monotonic seconds. The producer is not started again before this time."""
        self._latest: dict[str, Session] = {}
        """The newest state, published or not, of each session that is not settled, or whose row
        could not be written."""
        self._published_at: dict[str, float] = {}
        """By replay: monotonic seconds of the last publication."""
        self._max_bytes = MAX_INTERNAL_BYTES
        """The largest record to publish. The topic may take less than this program expects."""
        self._sent_bytes = 0
        """Size of the last value that was sent."""
        self._unpublished: set[str] = set()
        """Replays whose newest state is not published yet."""

    async def discard(self) -> None:
        """Give the partition up."""
        await self._producer.discard()
        self._context.obstacles.pop(self._name, None)

    async def apply(
        self,
        replay_id: str,
        decide: Decide,
        *,
        command: Command | None = None,
        flush: bool = False,
    ) -> None:
        """Take one step of a session, and return when the step is durable.

        ``command`` is what the step carries out, for the history and the log. ``flush`` publishes
        the session even if the step changes nothing.
        """
        await self._durably(lambda: self._step(replay_id, decide, command=command, flush=flush))

    async def reject(self, offset: int, replay_id: str, why: str, command: str | None) -> None:
        """Publish why a command changes nothing."""
        rejection = Rejection(
            replay_id=replay_id,
            rejected=why[:MAX_REASON],
            command=command,
            partition=self._partition,
            offset=offset,
            at=datetime.now(UTC),
        )
        value = rejection.encode()
        with suppress(CommandConflict):  # the log and /readyz say why
            await self._durably(lambda: self._publish(rejection.key, value))

    def publish_again(self, replay_id: str) -> None:
        """Let the next nudge publish the session of the row, even if nothing changes."""
        self._unpublished.add(replay_id)

    def needs_nudge(
        self, session: Session, now: datetime, stall: timedelta, retention: timedelta
    ) -> bool:
        """Whether time alone changes a session, or its counters wait too long for publication."""
        replay_id = session.replay_id
        if (
            replay_id in self._unpublished
            and time.monotonic() - self._published_at.get(replay_id, 0.0) > PUBLISH_SECONDS
        ):
            return True
        newest = self._latest.get(replay_id, session)
        return on_nudge(newest, now, stall, retention).changed

    async def _durably(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write as the partition's only writer, and try until the broker has committed.

        Each try starts the producer first, if needed, and so begins with the newest state.

        Raises
        ------
        CommandConflict
            When the record would never fit its topic. The whole partition must not wait for it.

        """
        refused_bytes = sys.maxsize
        async with self._lock:
            while True:
                try:
                    if not self._is_open:
                        await self._open()
                    await write()
                except ValidationError as error:
                    await self._close()
                    why = f"a session cannot be written: {error}"
                    self._say(why)
                    raise CommandConflict(why) from error
                except Refused as error:
                    await self._close()
                    self._say(f"the broker refuses a session: {explain(error)}")
                    if error.kind is not Kind.EVENT:
                        continue
                    if self._sent_bytes >= refused_bytes or error.code not in TOO_LARGE:
                        raise CommandConflict(self._explain_refusal(error)) from error
                    refused_bytes = self._sent_bytes
                    self._max_bytes = refused_bytes // 2
                except Unavailable as error:  # of the board
                    await self._close()
                    self._say(f"{error}; trying again")
                except PRODUCER_ERRORS as error:
                    await self._close()
                    self._say(f"no session can be published: {explain(error)}; trying again")
                else:
                    self._context.obstacles.pop(self._name, None)
                    return

    def _explain_refusal(self, error: Refused) -> str:
        topic = self._context.topics.status.name
        return (
            f"topic {topic!r} takes no record of {self._sent_bytes:,} bytes: {error}. Raise the "
            f"topic's max.message.bytes to {MAX_INTERNAL_BYTES + BATCH_OVERHEAD:,}, or name fewer "
            "ids in the filter"
        )

    def _say(self, why: str) -> None:
        logger.warning("%s: %s", self._name, why)
        self._context.obstacles[self._name] = f"{self._name}: {why}"

    @property
    def _name(self) -> str:
        return f"partition {self._partition} of {self._context.topics.status.name}"

    async def _open(self) -> None:
        """Fence the former owner, then read what the former owner published last."""
        await asyncio.sleep(max(0.0, self._open_after - time.monotonic()))
        await self._producer.start()
        await self._context.board.caught_up(self._partition)
        self._is_open = True

    async def _close(self) -> None:
        """Discard the producer. The next write starts a new one."""
        self._is_open = False
        self._open_after = time.monotonic() + REOPEN_SECONDS
        await self._producer.discard()
        self._producer = self._producer.renewed()

    async def _step(
        self, replay_id: str, decide: Decide, *, command: Command | None, flush: bool
    ) -> None:
        before, now = self._take(replay_id), datetime.now(UTC)
        step = decide(before, now)
        if not step.changed and not (flush and replay_id in self._unpublished):
            if before is not None and before.state not in SETTLED:
                self._latest.setdefault(replay_id, before)
            return
        outbox, work = self._context.outbox, self._context.topics.work
        await asyncio.gather(
            *(outbox.send(work, token.key, token.encode()) for token in step.tokens)
        )
        crashpoints.reach("after-tokens")
        session, value = step.session, None
        if session is not None:
            session = note_course(before, session, command, now)
        since = time.monotonic() - self._published_at.get(replay_id, 0.0)
        is_due = step.urgent or flush or since >= PUBLISH_SECONDS
        if session is not None:
            if is_due:
                session = session.model_copy(update={"revision": session.revision + 1})
            session, value = fit_record(session, self._max_bytes)
        if is_due:
            await self._publish(replay_id, value)
            who = command.requested_by if command else None
            log_change(replay_id, before, session, who)
            self._published_at[replay_id] = time.monotonic()
            self._unpublished.discard(replay_id)
            crashpoints.reach("after-status")
        else:
            self._unpublished.add(replay_id)
        self._put(replay_id, session, value)

    def _take(self, replay_id: str) -> Session | None:
        """Return the newest of: the state in memory, the row, the session on the board."""
        row = self._row(replay_id)
        published = self._context.board.sessions.get(replay_id)
        known = [one for one in (self._latest.get(replay_id), row, published) if one]
        return max(known, key=lambda session: session.revision, default=None)

    def _row(self, replay_id: str) -> Session | None:
        """Return the session of the table. None if the row is missing, or is no such session."""
        try:
            row = decode_session(self._table.get(replay_id.encode()))
        except Exception as error:  # noqa: BLE001 - RocksDB's error about a damaged row has no class
            # The row is a cache: the board has the session.
            self._context.ignored.add(TABLE, self._partition, 0, error)
            return None
        return row if row is None or row.replay_id == replay_id else None

    def _put(self, replay_id: str, session: Session | None, value: bytes | None) -> None:
        """Write or remove the row."""
        is_written = True
        try:
            if value is None:
                self._table.pop(replay_id.encode(), None)
            else:
                self._table[replay_id.encode()] = value
        except Exception:
            # The row is a cache. Faust would ack the record even after an exception here.
            logger.exception(
                "the row of replay %r cannot be written: is the disk of REPLAY_DATA_DIR full? "
                "The replay goes on; the state that counts is on replay.status",
                replay_id,
            )
            is_written = False
        if session is None or (is_written and session.state in SETTLED):
            self._latest.pop(replay_id, None)
            self._published_at.pop(replay_id, None)
        else:
            self._latest[replay_id] = session

    async def _publish(self, key: str, value: bytes | None) -> None:
        self._sent_bytes = len(value or b"")
        await self._producer.begin()
        await self._producer.send(
            self._context.topics.status.name,
            partition=self._partition,
            key=key.encode(),
            value=value,
        )
        await self._producer.commit()


def log_change(
    replay_id: str, before: Session | None, after: Session | None, who: str | None
) -> None:
    """Write one line if a replay's state or rate has changed, or if the replay is released.

    ``who`` gave the command.
    """
    old = before.state if before else "new"
    new = after.state if after else "forgotten"
    if old != new:
        what = f"{old} -> {new}"
    elif before and after and before.released != after.released:
        what = f"{new}, released"
    elif before and after and before.rate != after.rate:
        what = "no rate limit" if after.rate is None else f"rate {after.rate:g} events/s"
    else:
        return
    why = after and (after.error or after.reason or (None if before else after.start.reason))
    by = f", requested by {who}" if who else ""
    logger.info(
        "replay %s: %s%s%s",
        replay_id,
        what,
        by,
        f": {why}" if why else "",
        extra={"replay_id": replay_id, "state": new, "requested_by": who, "reason": why},
    )


class SessionPartitions:
    """The partitions of ``replay.requests`` and ``replay.progress`` that this worker owns now."""

    def __init__(
        self,
        context: WorkerContext,
        table: MutableMapping[bytes, bytes],
        is_recovered: Callable[[], bool],
    ) -> None:
        self._context = context
        self._table = table
        self._is_recovered = is_recovered
        """Whether the table has all rows of the owned partitions."""
        self._owned: dict[int, SessionPartition] = {}
        self._unhealed: set[int] = set()
        """Owned partitions whose rows have not been compared with the board yet."""
        context.metrics.show_sessions(self._count_by_state)

    async def assign(self, partitions: Iterable[int]) -> None:
        """Own exactly these partitions from now on."""
        await self.revoke()
        for partition in partitions:
            self._own(partition)
        self._unhealed = set(self._owned)

    async def revoke(self) -> None:
        """Give every partition up."""
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.discard() for partition in owned.values()))

    def _own(self, partition: int) -> SessionPartition:
        # A record may come before Faust's listener has assigned the partition.
        if partition not in self._owned:
            self._owned[partition] = SessionPartition(self._context, self._table, partition)
        return self._owned[partition]

    async def handle_request(self, partition: int, offset: int, value: bytes | None) -> None:
        """Apply one record of ``replay.requests``. The record may be acked afterwards."""
        if value == NOOP:
            return
        try:
            command = parse_command(value or b"")
        except InvalidCommand as error:
            await self._refuse_malformed(partition, offset, value, str(error))
            return
        replay_id, requests = command.replay_id, self._context.topics.requests
        if requests.partition(replay_id) != partition:
            # A client with another partitioner sent the command to a wrong partition.
            await self._context.outbox.send(requests, replay_id, value or b"")
            return
        allow_original = self._context.settings.allow_original

        def decide(session: Session | None, now: datetime) -> Step:
            # A start that comes again changes nothing, whatever the setting is by now.
            start = command if isinstance(command, Start) and session is None else None
            if start is not None and start.reaches_originals and not allow_original:
                raise CommandConflict(NOT_TO_ORIGINAL)
            return on_command(session, command, now)

        try:
            await self._own(partition).apply(replay_id, decide, command=command)
        except CommandConflict as error:
            logger.info("refused %s: %s", command.command, error)
            self._context.metrics.refused_commands.labels("conflict").inc()
            # Perhaps another owner object: a rebalance may have come in between.
            await self._own(partition).reject(offset, replay_id, str(error), command.command)

    async def _refuse_malformed(
        self, partition: int, offset: int, value: bytes | None, error: str
    ) -> None:
        self._context.metrics.refused_commands.labels("malformed").inc()
        topic = self._context.topics.requests.name
        self._context.ignored.add(topic, partition, offset, f"not a command: {error}")
        replay_id = usable_replay_id(value)
        if replay_id is not None:
            await self._own(partition).reject(offset, replay_id, error, None)

    async def handle_report(self, partition: int, offset: int, value: bytes | None) -> None:
        """Apply one record of ``replay.progress``. The record may be acked afterwards."""
        report = decode_report(value)
        if report is None:
            topic = self._context.topics.progress.name
            self._context.ignored.add(topic, partition, offset, "not a report")
            return
        if report.kind == "noop":
            return
        owned = self._own(partition)
        stall, retention = self._limits()
        patience = timedelta(seconds=self._context.settings.max_lag_patience_seconds)

        def decide(session: Session | None, now: datetime) -> Step:
            if report.kind == "nudge":
                return on_nudge(session, now, stall, retention, report.reason)
            if report.kind == "consumers":
                return on_look(session, report, now, patience)
            return on_report(session, report, now)

        with suppress(CommandConflict):  # the log and /readyz say why
            await owned.apply(report.replay_id, decide, flush=report.kind == "nudge")

    def _limits(self) -> tuple[timedelta, timedelta]:
        """Return the time without progress until a replay is stalled, and the retention."""
        settings = self._context.settings
        return (
            timedelta(seconds=settings.stall_seconds),
            timedelta(days=settings.retention_days),
        )

    def owned(self) -> list[Session]:
        """Return the sessions of the owned partitions, as the board has them."""
        status = self._context.topics.status
        return [
            session
            for replay_id, session in self._context.board.sessions.items()
            if status.partition(replay_id) in self._owned
        ]

    def _count_by_state(self) -> Counter[str]:
        """Return the number of owned sessions in each state."""
        return Counter(session.state for session in self.owned())

    async def watch(self) -> None:
        """Be the watchdog: send a nudge for each session that time alone changes.

        Only an agent can write a table, so the nudge is a record on ``replay.progress``.
        """
        stall, retention = self._limits()
        progress = self._context.topics.progress
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._unhealed and self._context.board.is_complete and self._is_recovered():
                await self._heal()
            now = datetime.now(UTC)
            for replay_id, session in list(self._context.board.sessions.items()):
                owned = self._owned.get(progress.partition(replay_id))
                if owned is not None and owned.needs_nudge(session, now, stall, retention):
                    nudge = Report(replay_id=replay_id, kind="nudge")
                    await self._context.outbox.send(progress, replay_id, nudge.encode())

    async def _heal(self) -> None:
        """Let the rows that are newer than the board be published: the status topic was lost."""
        unhealed, self._unhealed = self._unhealed, set()
        progress, board = self._context.topics.progress, self._context.board
        newer = self._newer_rows(unhealed)
        try:
            # The board may be a moment behind: a row is written right after its session.
            for partition in {progress.partition(row.replay_id) for row in newer}:
                await board.caught_up(partition)
        except Unavailable as error:
            logger.warning("%s; lost sessions are looked for again", error)
            self._unhealed |= unhealed & set(self._owned)
            return
        for row in newer:
            published = board.sessions.get(row.replay_id)
            if published is None or published.revision < row.revision:
                logger.warning("replay %s is published again: its session was lost", row.replay_id)
                self._own(progress.partition(row.replay_id)).publish_again(row.replay_id)
                nudge = Report(replay_id=row.replay_id, kind="nudge")
                await self._context.outbox.send(progress, row.replay_id, nudge.encode())

    def _newer_rows(self, partitions: set[int]) -> list[Session]:
        """Return the rows of these partitions that are newer than the sessions on the board."""
        progress, published = self._context.topics.progress, self._context.board.sessions
        try:
            values = list(self._table.values())
        except Exception as error:  # noqa: BLE001 - as in `_row`
            logger.warning("the local rows cannot be read: %s; lost sessions stay lost", error)
            return []
        newer = []
        for value in values:
            try:
                row = decode_session(value)
            except ValueError:  # also the record that says to which installation the topic belongs
                continue
            if row is None or progress.partition(row.replay_id) not in partitions:
                continue
            known = published.get(row.replay_id)
            if known is None or known.revision < row.revision:
                newer.append(row)
        return newer
