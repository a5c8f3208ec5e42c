"""The slice protocol: what a worker does with a token (design section 6).

Faust delivers tokens at least once. Exactly once comes from Kafka: each owned partition of
``replay.work`` has one fenced transactional producer, and a slice publishes its events and its
checkpoint in one transaction. The order of a slice:

1. judge the token against the checkpoint; 2. begin; 3. publish from the checkpoint's cursor;
4. write the checkpoint; 5. commit; 6. await the report to the sessions agent; 7. await the
continuation; 8. only then let the Faust event end, which acks the token.

A crash before 5 leaves nothing; one after 5 is mended by the redelivered token (6 and 7 are done
again) or by whoever opens the partition next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    InvalidTopicError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from bson import json_util
from bson.errors import InvalidBSON
from pydantic import ValidationError

from replay_app import crashpoints
from replay_app.checkpoints import (
    Checkpoint,
    Origin,
    Token,
    Verdict,
    decode_checkpoint,
    decode_token,
    judge,
)
from replay_app.encoder import (
    Batch,
    EncodedPage,
    EncodeSpec,
    FailedEvent,
    PageEncoder,
    count_documents,
    make_encoder,
    split_page,
)
from replay_app.events import LENIENT
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.metrics import Metrics
from replay_app.pacing import allowance, charge, due
from replay_app.plans import make_plan
from replay_app.progress import (
    Progress,
    ShardPlan,
    ShardProgress,
)
from replay_app.publisher import HEARTBEAT_SECONDS, PRODUCER_ERRORS, FencedProducer, Outbox
from replay_app.queries import encode_cursor
from replay_app.readers import Readers
from replay_app.store import EventStore, PageReader
from replay_app.tally import Tally
from replay_app.topics import Topics, partition_counts, partition_of

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.sessions import Session
    from replay_app.settings import Settings
    from replay_app.status import Board

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.25
"""How long a slice waits for its first page before it lets its neighbours work."""
PLAN_PATIENCE_SECONDS = 0.05
"""How long it waits for a plan; longer, and the shards' readers are opened meanwhile."""
MAX_DELAY_SECONDS = 5.0
"""Longest pause between two slices; the session hears of the shard at least that often."""
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
SESSION_SECONDS = 0.5
"""How long a token waits for its session to appear on the board, before it is requeued."""
MAX_REQUEUES = 60
"""A token whose session does not appear is dropped then; the watchdog repairs the chain."""
REOPEN_SECONDS = HEARTBEAT_SECONDS + 0.5
TURN = "waiting for its turn at the store"
#: Answers of the broker that trying again does not change.
REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    InvalidTopicError,
)
CHECKPOINT_KEY = re.compile(r"[^/]+/(\d+|plan|gate|finish)")
TOPICS_SECONDS = 10.0
"""How long partition counts of destination topics are remembered."""


@dataclass
class Worker:
    """What the partitions of one worker share."""

    settings: Settings
    topics: Topics
    store: EventStore
    outbox: Outbox
    board: Board
    is_leaving: Callable[[], bool]
    """The worker stops or rebalances: end the slice at the next page."""
    metrics: Metrics = field(default_factory=Metrics)
    _partitions: dict[str, tuple[float, int]] = field(default_factory=dict)

    async def partitions_of(self, names: Iterable[str]) -> dict[str, int]:
        """Return the partition counts of those destination topics that exist."""
        wanted, now = set(names), time.monotonic()
        fresh = {
            name: count
            for name, (until, count) in self._partitions.items()
            if name in wanted and now < until
        }
        if wanted - set(fresh):
            found = await partition_counts(
                self.settings, self.settings.target_bootstrap, wanted - set(fresh)
            )
            self._partitions |= {n: (now + TOPICS_SECONDS, count) for n, count in found.items()}
            fresh |= found
        return fresh


class Planning:
    """A plan in the making."""

    def __init__(self, worker: Worker, start: Start) -> None:
        self.draft: tuple[ShardPlan, ...] = ()
        self._drafted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(
            make_plan(start, worker.settings, worker.store, worker.partitions_of, self._on_draft)
        )

    def _on_draft(self, shards: tuple[ShardPlan, ...]) -> None:
        self.draft = shards
        if shards:
            self._drafted.set_result(None)

    async def news(self, draft: tuple[ShardPlan, ...]) -> None:
        """Wait for the plan; also for a draft, if none was told yet."""
        waits: list[asyncio.Future[Any]] = [self.task]
        if not draft:
            waits.append(self._drafted)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


class WorkPartition:
    """One owned partition of ``replay.work``: its producer, checkpoints, and open readers."""

    def __init__(self, worker: Worker, partition: int) -> None:
        self.worker = worker
        self.partition = partition
        self.checkpoints: dict[str, Checkpoint] = {}
        self.producer = FencedProducer(
            worker.settings,
            worker.settings.target_bootstrap,
            f"{worker.settings.app_id}-work-{partition}",
        )
        self.readers = Readers(worker.settings, worker.store, partition, self._wake_up)
        self._plans: dict[str, Planning] = {}
        self._delayed: dict[str, asyncio.Task[None]] = {}
        self._wake: dict[str, asyncio.Event] = {}
        self._failures: dict[str, int] = {}
        self._opened: asyncio.Task[None] | None = None

    # Opening and closing

    def open(self, delay_seconds: float = 0.0) -> None:
        """Start opening in the background; `opened` waits for it."""
        self._opened = asyncio.create_task(self._open(delay_seconds))

    async def opened(self) -> None:
        """Wait until the former owner is fenced and the checkpoints are read."""
        if self._opened is None:
            self.open()
        await asyncio.shield(self._opened)  # type: ignore[arg-type]

    async def _open(self, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        while True:
            try:
                await self.producer.start()  # first fence, then read: nothing can come in between
                self.checkpoints = await self._read_checkpoints()
            except Exception as error:  # noqa: BLE001 - who waits for the opening must not be failed
                logger.warning("partition %d cannot be opened: %r", self.partition, error)
                await self.producer.discard()
                self.producer = self.producer.renewed()
                await asyncio.sleep(BACKOFF_SECONDS[2])
            else:
                break
        # Once for all: each of these asks the broker.
        homes = {self._home(checkpoint.token.replay_id) for checkpoint in self.checkpoints.values()}
        await asyncio.gather(*map(self.worker.board.caught_up, homes))
        for checkpoint in list(self.checkpoints.values()):
            await self._repair(checkpoint)

    def _home(self, replay_id: str) -> int:
        """Return the partition to which the commands, progress and sessions of a replay go."""
        return partition_of(replay_id.encode(), self.worker.settings.partitions)

    async def _read_checkpoints(self) -> dict[str, Checkpoint]:
        settings = self.worker.settings
        tp = TopicPartition(self.worker.topics.checkpoints.name, self.partition)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.target_bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
            **settings.kafka_security(),
        )
        found: dict[str, Checkpoint] = {}
        try:
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                records = await consumer.getmany(tp, timeout_ms=200)
                for record in records.get(tp, []):
                    _take_checkpoint(found, record)
        finally:
            await consumer.stop()
        return found

    async def _repair(self, checkpoint: Checkpoint) -> None:
        """Send again what a crash after the commit may have lost."""
        token = checkpoint.token
        session = self.worker.board.sessions.get(token.replay_id)
        if session is None or session.has_heard(checkpoint.report):
            live = session is not None and session.epoch <= token.epoch
        else:
            await self._report(checkpoint)
            live = session.epoch <= token.epoch
        if live and checkpoint.continuation is not None:
            await self._send_token(checkpoint.continuation)

    async def close(self) -> None:
        """Stop everything; what was not committed is nobody's any more."""
        plans = [planning.task for planning in self._plans.values()]
        tasks = [task for task in (self._opened, *self._delayed.values(), *plans) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.readers.close()
        await self.producer.discard()

    def on_session(self, session: Session) -> None:
        """Act on the new orders of a session.

        Delayed tokens are woken; what was begun for a plan that is not wanted any more is dropped.
        """
        if session.state not in {"pending", "planning"}:
            planning = self._plans.pop(f"{session.replay_id}/plan", None)
            if planning is not None:
                planning.task.cancel()
        self.readers.on_session(session)
        for key, wake in self._wake.items():
            replay_id, _, part = key.rpartition("/")
            waiting = self.worker.board.sessions.get(replay_id) if part == "gate" else None
            if replay_id == session.replay_id or (
                waiting is not None and session.replay_id in waiting.start.after
            ):
                wake.set()

    # Tokens

    async def run(self, token: Token, origin: Origin) -> None:
        """Do what a token asks for; see the module's docstring for the order.

        Raises one of PRODUCER_ERRORS when this partition must be closed and the token requeued.
        """
        if token.kind == "forget":
            await self._forget(token)
            return
        checkpoint = self.checkpoints.get(token.key)
        match judge(token, origin, checkpoint):
            case Verdict.DROP:
                logger.debug("dropped %s", token)
            case Verdict.RESEND if checkpoint is not None:
                await self._report(checkpoint)
                await self._continue(checkpoint)
            case _:
                await self._run(token, origin, checkpoint)

    async def _run(self, token: Token, origin: Origin, old: Checkpoint | None) -> None:
        session = await self.worker.board.session_for(token, SESSION_SECONDS)
        if session is None:
            if token.requeues < MAX_REQUEUES:
                await self.requeue(token, origin, token.requeues + 1)
            else:
                logger.warning("dropped %s: its session is unknown", token)
            return
        if not session.wants(token):
            return  # the tokens of the newer epoch, or state, are on their way
        began = time.monotonic()
        try:
            new = await self._slice(session, token, origin, old)
        except REFUSALS as error:
            await self._abandon(token.key)
            new = _failed(token, origin, old, _refusal(error))
        except (asyncio.CancelledError, *PRODUCER_ERRORS):
            raise
        except Unavailable as error:  # of a gate or a finish; the others see to it themselves
            await self._abandon(token.key)
            new = _step(token, origin, reason=str(error))
        except Exception as error:
            # Nothing that an event or a command holds may stop the worker or lose the token.
            if not isinstance(error, ReplayFailed):
                logger.exception("replay %s, shard %s failed", token.replay_id, token.shard)
            await self._abandon(token.key)
            new = _failed(token, origin, old, str(error) or repr(error))
        with self.worker.metrics.waiting("commit"):
            await self._commit(new)
        before, after = _progress_of(old), _progress_of(new)
        self.worker.metrics.committed(
            token.kind,
            time.monotonic() - began,
            after.counters - before.counters,
            after.bytes - before.bytes,
        )
        await self._report(new)
        crashpoints.reach("after-progress")
        await self._continue(new)
        crashpoints.reach("after-continuation")

    async def _slice(
        self, session: Session, token: Token, origin: Origin, old: Checkpoint | None
    ) -> Checkpoint:
        """Do the slice's work; the checkpoint is yet to be committed."""
        match token.kind:
            case "plan":
                return await self._plan(session, token, origin)
            case "gate":
                return await self._gate(session, token, origin)
            case "stop":
                return await self._stop(token, origin, old)
            case "finish":
                return await self._finish(session, token, origin)
            case _ if _progress_of(old).state == "done":  # only the news of it was lost
                return _shard_checkpoint(token, origin, old, _progress_of(old))
            case _:
                return await EmitSlice(self, session, token, origin, old).run()

    async def _abandon(self, key: str) -> None:
        """Drop what the failed slice has begun."""
        await self.readers.drop(key)
        if self.producer.in_transaction:
            await self.producer.abort()

    async def requeue(self, token: Token, origin: Origin, requeues: int = 0) -> None:
        """Put a token back durably, so that its event may end."""
        await self._send_token(token.model_copy(update={"origin": origin, "requeues": requeues}))

    async def _send_token(self, token: Token) -> None:
        await self.worker.outbox.send(
            self.worker.topics.work.name, token.key, token.encode(), self.partition
        )

    async def _commit(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint as the last record of its slice's transaction, and commit."""
        if not self.producer.in_transaction:
            await self.producer.begin()
        key = checkpoint.token.key
        if not self.producer.transactional:
            await self.producer.acked()  # else it could stand there without its dead letters
        await self.producer.send(
            self.worker.topics.checkpoints.name,
            partition=self.partition,
            key=key.encode(),
            value=checkpoint.encode(),
        )
        crashpoints.reach("before-commit")
        await self.producer.commit()
        self.checkpoints[key] = checkpoint
        crashpoints.reach("after-commit")

    async def _report(self, checkpoint: Checkpoint) -> None:
        report = checkpoint.report
        await self.worker.outbox.send(
            self.worker.topics.progress.name,
            report.replay_id,
            report.encode(),
            self._home(report.replay_id),
        )

    async def _continue(self, checkpoint: Checkpoint) -> None:
        """Send the continuation, or put it off; the checkpoint stands for it until it is sent."""
        token = checkpoint.continuation
        if token is None:
            return
        reader = self.readers.get(token.key)
        plan = self._plans.get(token.key)
        delay = min(checkpoint.due_at - time.time(), MAX_DELAY_SECONDS)
        if delay > 0:
            self._put_off(token, delay)
        elif not checkpoint.report.is_waiting:
            await self._send_token(token)
        elif reader is not None:
            self._put_off(token, MAX_DELAY_SECONDS, self._first_page(reader))
        elif plan is not None:
            self._put_off(token, MAX_DELAY_SECONDS, plan.news(checkpoint.report.draft))
        elif token.kind == "gate" or self.readers.is_waiting(token.key):
            self._put_off(token, MAX_DELAY_SECONDS)
        else:
            self._put_off(token, self._backoff(token.key))

    async def _first_page(self, reader: PageReader) -> None:
        with self.worker.metrics.waiting("read"):
            await reader.ready()

    def _backoff(self, key: str) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        return BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]

    def _wake_up(self, key: str) -> bool:
        """Let a delayed token go now; False: there is none."""
        wake = self._wake.get(key)
        if wake is not None:
            wake.set()
        return wake is not None

    def worked(self, key: str) -> None:
        """Forget the backoff of a shard that moves again."""
        self._failures.pop(key, None)

    def _put_off(self, token: Token, seconds: float, sooner: Awaitable[Any] | None = None) -> None:
        key = token.key
        former = self._delayed.pop(key, None)
        if former is not None:
            former.cancel()
        wake = self._wake[key] = asyncio.Event()

        async def send_later() -> None:
            waits = [asyncio.ensure_future(wake.wait())]
            if sooner is not None:
                waits.append(asyncio.ensure_future(sooner))
            try:
                await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in waits:
                    waiting.cancel()
            await self._send_token(token)
            self._delayed.pop(key, None)
            self._wake.pop(key, None)

        self._delayed[key] = asyncio.create_task(send_later())

    # The kinds of slices but emit

    async def _plan(self, session: Session, token: Token, origin: Origin) -> Checkpoint:
        planning = self._plans.get(token.key)
        if planning is None:
            planning = self._plans[token.key] = Planning(self.worker, session.start)
        await asyncio.wait([planning.task], timeout=PLAN_PATIENCE_SECONDS)
        if not planning.task.done() or planning.task.cancelled():  # which `on_session` does
            reason = "counting the matching events"
            return _step(token, origin, reason=reason, draft=planning.draft)
        self._plans.pop(token.key, None)
        try:
            return _step(token, origin, "done", plan=planning.task.result())
        except Unavailable as error:
            return _step(token, origin, reason=str(error))

    async def _gate(self, session: Session, token: Token, origin: Origin) -> Checkpoint:
        waiting_for: list[str] = []
        for replay_id in session.start.after:
            other = self.worker.board.sessions.get(replay_id)
            state = "unknown" if other is None else other.state
            if state == "cancelled":
                msg = f"replay {replay_id!r}, which this one waits for, was cancelled"
                raise ReplayFailed(msg)
            if state not in {"completed", "completed_with_errors"}:
                waiting_for.append(f"{replay_id!r} ({state})")
        if waiting_for:
            return _step(token, origin, reason=f"waiting for replay {', '.join(waiting_for)}")
        await self._announce(session, "begin")
        return _step(token, origin, "done")

    async def _finish(self, session: Session, token: Token, origin: Origin) -> Checkpoint:
        await self._announce(session, token.outcome)
        return _step(token, origin, "done")

    async def _announce(self, session: Session, what: str) -> None:
        """Write a control record to every partition of every destination topic."""
        if not session.start.control_records or session.start.dry_run or session.plan is None:
            return
        partitions = await self.worker.partitions_of(session.plan.partitions)
        headers = [("replay-id", session.replay_id.encode()), ("replay-control", what.encode())]
        batches: list[Batch] = []
        for topic, count in partitions.items():
            for partition in range(count):
                builder = BatchBuilder(4096, 0, is_transactional=self.producer.transactional)
                builder.append(timestamp=None, key=None, value=None, headers=headers)
                batches.append(Batch(topic, partition, builder, 1, builder.size()))
        await self.producer.begin()
        await self.producer.send_batches(batches, {})

    async def _stop(self, token: Token, origin: Origin, old: Checkpoint | None) -> Checkpoint:
        await self.readers.drop(token.key)
        progress = _progress_of(old)
        if progress.state != "done":
            progress = progress.model_copy(update={"state": "stopped", "reason": None})
        return _shard_checkpoint(token, origin, old, progress)

    async def _forget(self, token: Token) -> None:
        if token.key not in self.checkpoints:
            return
        await self.producer.begin()
        await self.producer.send(
            self.worker.topics.checkpoints.name,
            partition=self.partition,
            key=token.key.encode(),
            value=None,
        )
        await self.producer.commit()
        del self.checkpoints[token.key]


class EmitSlice:
    """One slice of one shard: publish from the checkpoint's cursor until a limit is reached.

    Pages are read ahead, and one is encoded while the one before is being sent.
    """

    def __init__(
        self,
        partition: WorkPartition,
        session: Session,
        token: Token,
        origin: Origin,
        old: Checkpoint | None,
    ) -> None:
        self._partition = partition
        self._worker = partition.worker
        self._session = session
        self._token = token
        self._origin = origin
        self._old = old
        if session.plan is None or not isinstance(token.shard, int):
            msg = f"replay {session.replay_id!r} has no plan"
            raise ReplayFailed(msg)
        self._shard = session.plan.shards[token.shard]
        self._known_topics = set(session.plan.partitions)
        self._cursor = old.cursor if old else None
        self._tally = Tally(_progress_of(old))
        self._sending: asyncio.Task[None] | None = None
        self._events = 0
        self._bytes = 0
        self._due_at = old.due_at if old else 0.0

    async def run(self) -> Checkpoint:
        """Publish, and return the checkpoint to commit; the transaction is left open.

        Raises
        ------
        ReplayFailed
            When nothing can be published; what was before the failure is in the checkpoint.

        """
        state, error, reason = "live", None, None
        try:
            state, error, reason = await self._pages()
        except Unavailable as away:
            await self._partition.readers.drop(self._token.key)
            reason = str(away)
        except ReplayFailed as failure:
            state, error = "failed", str(failure)
        except BaseException:
            await self._drop_sending()
            raise
        await self._sent()
        if state != "live":
            await self._partition.readers.drop(self._token.key)
        if self._events:
            self._partition.worked(self._token.key)
            self._partition.readers.had_turn()
        progress = self._tally.progress(state=state, error=error, reason=reason)
        return _shard_checkpoint(
            self._token,
            self._origin,
            self._old,
            progress,
            cursor=self._cursor,
            due_at=self._due_at,
        )

    async def _pages(self) -> tuple[str, str | None, str | None]:
        """Publish page after page; return the shard's state, its error, and why it waits."""
        settings = self._worker.settings
        reader: PageReader | None = None
        encoder = await self._encoder()
        deadline = time.monotonic() + settings.slice_seconds
        while True:
            limit = self._limit()
            if limit == 0:
                return ("done", None, None) if self._is_at_max() else ("live", None, None)
            # Not before it may read: another one might lose its reader for nothing.
            reader = reader or self._partition.readers.take(
                self._token.key, self._session.start, self._shard, self._cursor
            )
            if reader is None:
                return "live", None, TURN
            try:
                with self._worker.metrics.waiting("read"):
                    page = await reader.next(PATIENCE_SECONDS)
            except TimeoutError:
                waiting = None if self._events else "waiting for the store's first events"
                return "live", None, waiting
            if page is None:
                return "done", None, None
            page, rest = self._cut(page, limit, reader)
            encoded = await self._encoded(encoder, page)
            if any(failure.missing_topic for failure in encoded.failures):
                encoder, encoded = await self._encode_again(page, encoded)
            reader.put_back(rest)
            error = self._fatal(encoded)
            await self._take(encoded, reader)
            if error is not None:
                return "failed", error, None
            if self._is_over(deadline):
                return "live", None, None

    def _cut(self, page: bytes, limit: int, reader: PageReader) -> tuple[bytes, bytes]:
        """Return what of a page may be published now, and the rest."""
        rest = b""
        if limit < reader.page_events:  # else it is not longer: counting takes its time
            page, rest = split_page(page, limit)
        most = self._worker.settings.slice_bytes
        if len(page) > most:  # keep the transaction small
            share = count_documents(page) * most // len(page)
            page, more = split_page(page, max(1, share))
            rest = more + rest
        return page, rest

    def _limit(self) -> int:
        """Return how many events may be read now."""
        settings, session = self._worker.settings, self._session
        limit = settings.slice_events - self._events
        if session.start.max_events is not None:
            limit = min(limit, session.start.max_events - self._tally.read)
        rate, now = self._rate(), time.time()
        self._due_at = due(rate, self._due_at, now)
        allowed = allowance(rate, self._due_at, now)
        return max(0, limit if allowed is None else min(limit, allowed))

    def _rate(self) -> float | None:
        """Return this shard's part of the replay's rate."""
        session = self._worker.board.sessions.get(self._session.replay_id, self._session)
        if session.rate is None:
            return None
        busy = sum(shard.progress.state != "done" for shard in session.shards)
        return session.rate / max(1, busy)

    def _is_at_max(self) -> bool:
        most = self._session.start.max_events
        return most is not None and self._tally.read >= most

    def _is_over(self, deadline: float) -> bool:
        """Whether the slice ends here: time, size, a changed session, or a leaving worker."""
        settings = self._worker.settings
        board = self._worker.board.sessions.get(self._session.replay_id)
        return (
            time.monotonic() >= deadline
            or self._events >= settings.slice_events
            or self._bytes >= settings.slice_bytes
            or board is None
            or board.epoch != self._token.epoch
            or self._worker.is_leaving()
        )

    async def _encoder(self) -> PageEncoder:
        session, settings = self._session, self._worker.settings
        start = session.start
        known = self._known_topics | set(self._tally.by_topic)
        spec = EncodeSpec(
            mapping=settings.mapping,
            target=start.target.for_events(),
            replay_id=session.replay_id,
            attempt=session.attempt,
            name=start.name,
            reason=start.reason,
            # Looked up for each slice: a topic may have grown.
            partitions=await self._worker.partitions_of(known),
            cursor_fields=self._shard.sort,
            stop_at_failure=start.on_error == "fail" and not start.dry_run,
            include_replayed=start.include_replayed,
            record_timestamp=settings.record_timestamp,
            compression=settings.compression,
            transactional=self._partition.producer.transactional,
            max_record_bytes=settings.max_record_bytes,
        )
        return make_encoder(spec, settings.encoder)

    async def _encode_again(
        self, page: bytes, encoded: EncodedPage
    ) -> tuple[PageEncoder, EncodedPage]:
        """Look for topics that the plan did not know; end the page before one that is missing."""
        wanted = {f.missing_topic for f in encoded.failures if f.missing_topic}
        found = await self._worker.partitions_of(wanted)
        self._tally.by_topic |= dict.fromkeys(set(found) - set(self._tally.by_topic), 0)
        encoder = await self._encoder()
        encoded = await self._encoded(encoder, page)
        missing = next((f for f in encoded.failures if f.missing_topic), None)
        if missing is None or self._session.start.dry_run:
            return encoder, encoded
        before, _ = split_page(page, missing.index)
        encoded = await self._encoded(encoder, before)
        encoded.failures.append(missing)
        return encoder, encoded

    async def _encoded(self, encoder: PageEncoder, page: bytes) -> EncodedPage:
        """Encode a page beside the loop, which sends the one before and reads the next."""
        with self._worker.metrics.waiting("encode"):
            return await asyncio.to_thread(encoder.encode, page, now_ms())

    def _fatal(self, encoded: EncodedPage) -> str | None:
        """Return the error of the event before which the page ends, if it ends the replay."""
        start = self._session.start
        if not encoded.failures or start.dry_run:
            return None
        failure = encoded.failures[-1]
        if failure.missing_topic:
            # Whatever on_error says: the events are good, and nothing may be lost silently.
            return f"event {failure.event_id!r}: {failure.reason}; create the topic, then retry"
        if start.on_error == "fail":
            return (
                f"event {failure.event_id!r}: {failure.reason}; mend it and retry, or start "
                "again with on_error skip or dead-letter"
            )
        return None

    async def _take(self, encoded: EncodedPage, reader: PageReader) -> None:
        """Hand a page's batches to the producer and move the cursor behind them."""
        start = self._session.start
        await self._sent()
        if not start.dry_run:
            if not self._partition.producer.in_transaction:
                await self._partition.producer.begin()
            self._sending = asyncio.create_task(self._send(encoded))
        if encoded.cursor is not None:
            self._cursor = encode_cursor(encoded.cursor)
        reader.position = self._cursor
        self._tally.add(encoded, dry_run=start.dry_run, on_error=start.on_error)
        self._events += encoded.read
        self._bytes += encoded.bytes
        self._due_at = charge(self._rate(), self._due_at, time.time(), encoded.read)

    async def _send(self, encoded: EncodedPage) -> None:
        producer = self._partition.producer
        await producer.send_batches(encoded.batches, self._tally.offsets)
        if self._session.start.on_error == "dead-letter":
            for failure in encoded.failures:
                await self._send_dead_letter(failure)

    async def _send_dead_letter(self, failure: FailedEvent) -> None:
        key = (failure.event_id or "").encode()
        value: bytes | None = _readable(failure.document)
        reason = failure.reason
        if value is not None and len(value) + len(key) > self._worker.settings.max_record_bytes:
            value = None
            reason += " (the document is too large to be kept here: find it in the store by its id)"
        await self._partition.producer.send(
            self._worker.topics.dead_letters.name,
            partition=partition_of(key, self._worker.settings.partitions),
            key=key,
            value=value,
            headers=[
                ("replay-id", self._session.replay_id.encode()),
                ("replay-error", reason.encode()),
            ],
        )

    async def _sent(self) -> None:
        """Await the page that is being sent."""
        if self._sending is not None:
            sending, self._sending = self._sending, None
            with self._worker.metrics.waiting("send"):
                await sending

    async def _drop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, *PRODUCER_ERRORS):
                await self._sending


def now_ms() -> int:
    """Return the time as Kafka's record timestamps count it."""
    return time.time_ns() // 1_000_000


def _readable(document: bytes) -> bytes:
    """Return a stored event as extended JSON; as it is if it cannot be decoded."""
    try:
        return json_util.dumps(bson.decode(document, codec_options=LENIENT)).encode()
    except (InvalidBSON, ValueError, OverflowError):
        return document


def _step(token: Token, origin: Origin, state: Any = "live", **report: Any) -> Checkpoint:
    """Return the checkpoint of a plan, gate or finish step."""
    return Checkpoint(
        token=token,
        src=origin,
        report=Progress(
            replay_id=token.replay_id,
            kind=token.kind,
            epoch=token.epoch,
            slice=token.slice,
            shard=token.shard,
            state=state,
            **report,
        ),
    )


def _refusal(error: BaseException) -> str:
    if isinstance(error, MessageSizeTooLargeError):
        return (
            f"the broker refuses a batch of this size: set REPLAY_MAX_RECORD_BYTES below the "
            f"topic's max.message.bytes and retry ({error})"
        )
    return f"the broker refuses to take the events: {error!r}; allow it, then retry"


def _take_checkpoint(found: dict[str, Checkpoint], record: ConsumerRecord) -> None:
    key = (record.key or b"").decode(errors="replace")
    try:
        checkpoint = decode_checkpoint(record.value)
    except ValidationError as error:
        if CHECKPOINT_KEY.fullmatch(key):
            # Another version's, perhaps. To go on from the one before it would publish twice.
            msg = (
                f"the checkpoint {key!r} ({record.topic} {record.partition}:{record.offset}) "
                "cannot be read: was it written by a newer version? Run that one"
            )
            raise ReplayFailed(msg) from error
        logger.exception(
            "%s %d:%d, the record %r, is no checkpoint and was passed over",
            record.topic,
            record.partition,
            record.offset,
            key,
        )
        return
    if checkpoint is None:
        found.pop(key, None)
    else:
        found[key] = checkpoint


def _failed(token: Token, origin: Origin, old: Checkpoint | None, error: str) -> Checkpoint:
    if token.kind in {"plan", "gate", "finish"}:
        return _step(token, origin, "failed", error=error)
    progress = _progress_of(old).model_copy(
        update={"state": "failed", "error": error, "reason": None}
    )
    return _shard_checkpoint(token, origin, old, progress)


def _progress_of(checkpoint: Checkpoint | None) -> ShardProgress:
    return (checkpoint and checkpoint.report.progress) or ShardProgress()


def _shard_checkpoint(
    token: Token,
    origin: Origin,
    old: Checkpoint | None,
    progress: ShardProgress,
    **update: Any,
) -> Checkpoint:
    """Return the checkpoint of a shard, which stays where it was unless ``update`` moves it."""
    place = {"cursor": old.cursor, "due_at": old.due_at} if old else {}
    report = Progress(
        replay_id=token.replay_id,
        kind="shard",
        epoch=token.epoch,
        slice=token.slice,
        shard=token.shard,
        progress=progress,
    )
    return Checkpoint(token=token, src=origin, report=report, **(place | update))


class WorkPartitions:
    """All partitions of ``replay.work`` that this worker owns right now."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._owned: dict[int, WorkPartition] = {}
        worker.board.on_session(self._on_session)

    def _on_session(self, session: Session) -> None:
        for owned in self._owned.values():
            owned.on_session(session)

    async def assign(self, partitions: Iterable[int]) -> None:
        """Own exactly these from now on; they open in the background.

        All are opened anew, also kept ones: another worker may have owned them in between.
        """
        await self.revoke()
        for partition in partitions:
            self._open(partition)

    async def revoke(self) -> None:
        """Close every partition."""
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.close() for partition in owned.values()))

    def _open(self, partition: int, delay_seconds: float = 0.0) -> WorkPartition:
        opening = self._owned[partition] = WorkPartition(self._worker, partition)
        opening.open(delay_seconds)
        return opening

    async def handle(self, partition: int, offset: int, value: bytes | None) -> None:
        """Do what one record of ``replay.work`` asks for; when this returns it may be acked."""
        token = decode_token(value)
        if token is None:
            logger.error("replay.work %d:%d is no token and was passed over", partition, offset)
            return
        if token.kind == "noop":
            return
        origin = token.origin or Origin(partition, offset)
        # A record can come before the listener of the assignment has ended.
        owned = self._owned.get(partition) or self._open(partition)
        try:
            await owned.opened()
            await owned.run(token, origin)
        except (asyncio.CancelledError, *PRODUCER_ERRORS) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            logger.warning("partition %d gives a token back: %r", partition, error)
            self._worker.metrics.requeued_tokens.inc()
            await owned.requeue(token, origin)
            if self._owned.get(partition) is owned:
                # Only after the next heartbeat: a worker that was evicted learns of it first,
                # and does not fence the new owner.
                self._open(partition, delay_seconds=REOPEN_SECONDS)
            await owned.close()
