"""One owned partition of ``replay.work``: what a worker does with a token (see `work_agent`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from replay_app import crashpoints
from replay_app.broker_errors import Kind, Refused, TopicGone, explain, explain_topic
from replay_app.checkpoints import (
    Checkpoint,
    Checkpoints,
    Origin,
    Token,
    Verdict,
    judge,
    lost_progress,
    progress_of,
)
from replay_app.compacted import CompactedReader
from replay_app.consumption import allowance
from replay_app.delays import (
    BACKOFF_SECONDS,
    MAX_DELAY_SECONDS,
    DelayedTokens,
    UnknownTokens,
)
from replay_app.dropped_slices import LastSlices
from replay_app.emit import EmitSlice
from replay_app.exceptions import ReplayError, ReplayFailed, Unavailable
from replay_app.faults import TRIES_BEFORE_REASON, Faults
from replay_app.installations import is_installation
from replay_app.publisher import PRODUCER_ERRORS, BatchesRefused, FencedProducer
from replay_app.readers import PageReader, Readers
from replay_app.refusals import Refusals
from replay_app.reports import MAX_ERROR, MAX_INTERNAL_BYTES, MAX_SHOWN_ID, Report, shorten
from replay_app.steps import Steps, consumers_wait
from replay_app.transitions import first_tokens
from replay_app.waits import WaitClock

if TYPE_CHECKING:
    from replay_app.context import WorkerContext
    from replay_app.sessions import Session

logger = logging.getLogger(__name__)

UNTIMED_WAIT_SECONDS = 4.0
"""Interval at which a shard that awaits the count reports. The count's end wakes the shard."""
HELD_WAIT_SECONDS = 4.0
"""Interval at which a shard that waits for a consumer group reports. The end of the hold wakes the
shard."""
UNHEARD_WAIT_SECONDS = 0.3
"""How long a shard waits until the session has heard of what the shard has published."""
REFUSED_ROUNDS = 10
"""How often one token starts its slice again because the broker refuses events. Then the next token
goes on: a token must be short."""


TELL_SECONDS = 2.0
"""How long the broker may take for the record that says why a partition cannot be opened."""


class WorkPartition:
    """One owned partition of ``replay.work``: its producer, checkpoints and open readers."""

    def __init__(
        self, context: WorkerContext, partition: int, faults: Faults | None = None
    ) -> None:
        self.context = context
        self.partition = partition
        self.checkpoints = Checkpoints()
        self.budget = context.budgets[partition]
        self.faults = faults or Faults()
        """The failures of this producer, and of the producers before it."""
        self.producer = FencedProducer(
            context.settings,
            context.settings.target_bootstrap,
            f"{context.settings.app_id}-work-{partition}",
            context.is_leaving,
        )
        self.delays = DelayedTokens(self._send_token)
        self.unknown = UnknownTokens(context.board, self.requeue)
        self.readers = Readers(context.reads, self.delays.wake)
        self._steps = Steps(context)
        self._last_slices = LastSlices(context.settings, context.describe)
        self._refusals: dict[str, Refusals] = {}
        """By token key: what the broker has refused of the shard."""
        self._clocks: defaultdict[str, WaitClock] = defaultdict(lambda: WaitClock(context.metrics))
        """By token key: the waits of the shard that its progress does not have yet."""
        self._opening: asyncio.Task[None] | None = None

    # Opening and closing

    def open(self, delay_seconds: float = 0.0) -> None:
        """Start opening in the background; `wait_until_open` waits for the end."""
        self._opening = asyncio.create_task(self._open(delay_seconds))

    async def wait_until_open(self) -> None:
        """Wait until the former owner is fenced and the checkpoints are read."""
        if self._opening is None:
            self.open()
        await asyncio.shield(self._opening)  # type: ignore[arg-type]

    async def is_open_within(self, seconds: float) -> bool:
        """Wait until the partition is open. Return False if opening takes longer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait_until_open()
                return True
        return False

    async def _open(self, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        failures = 0
        while True:
            try:
                await self.producer.start()  # first fence, then read: nothing comes in between
                self.checkpoints = await self._read_checkpoints()
                await self._read_sessions()
            except Exception as error:  # noqa: BLE001 - tokens wait for the opening: it must not fail
                failures += 1
                why = f"{self._name} cannot be opened: {explain(error)}"
                logger.warning("%s", why)
                self.context.obstacles[self._name] = why
                await self.producer.discard()
                self.producer = self.producer.renewed()
                if failures >= TRIES_BEFORE_REASON:
                    await self._tell_all(why)
                await asyncio.sleep(BACKOFF_SECONDS[2])
            else:
                break
        self.context.obstacles.pop(self._name, None)
        for checkpoint in list(self.checkpoints.newest.values()):
            await self._resend(checkpoint)
        for key in self.checkpoints.unreadable:
            await self._fail_unreadable(key)

    async def _read_checkpoints(self) -> Checkpoints:
        reader = CompactedReader(
            self.context.settings,
            self.context.settings.target_bootstrap,
            self.context.topics.checkpoints.name,
            [self.partition],
        )
        found = Checkpoints()
        try:
            await reader.start()
            async for record in reader.read_to_end():
                if is_installation(record.key):
                    continue
                try:
                    found.add(record)
                except ValueError as error:
                    place = record.topic, record.partition, record.offset
                    self.context.ignored.add(*place, error)
        finally:
            await reader.stop()
        return found

    async def _tell_all(self, why: str) -> None:
        """Let the replays that wait for this partition show why they wait."""
        work = self.context.topics.work
        for session in list(self.context.board.sessions.values()):
            keys = [token.key for token in first_tokens(session)]
            if any(work.partition(key) == self.partition for key in keys):
                await self.tell(session, why)

    async def tell(self, session: Session, why: str) -> None:
        """Let a replay show why it waits, although no slice can be committed."""
        reason, progress = shorten(why, MAX_ERROR), self.context.topics.progress
        if session.reason == reason:
            return
        nudge = Report(replay_id=session.replay_id, kind="nudge", reason=reason)
        with contextlib.suppress(ReplayError):  # the next try says so again
            await self.context.outbox.try_send(
                progress, session.replay_id, nudge.encode(), TELL_SECONDS
            )

    async def _read_sessions(self) -> None:
        """Wait until the board has the newest session of each checkpoint."""
        # A set, because every call asks the broker.
        status = self.context.topics.status
        keys = (*self.checkpoints.newest, *self.checkpoints.unreadable)
        partitions = {status.partition(key.rpartition("/")[0]) for key in keys}
        await asyncio.gather(*map(self.context.board.caught_up, partitions))

    async def _resend(self, checkpoint: Checkpoint) -> None:
        """Send the report and the continuation again, if a crash may have lost them."""
        token = checkpoint.token
        session = self.context.board.sessions.get(token.replay_id)
        if session is None:
            return
        if not session.has_heard(checkpoint.report):
            await self._report(checkpoint)
        if session.epoch <= token.epoch and checkpoint.continuation is not None:
            await self._send_token(checkpoint.continuation)

    async def _fail_unreadable(self, key: str) -> None:
        """Fail the step or shard of an unreadable checkpoint, if its replay waits for it."""
        session = self.context.board.sessions.get(key.rpartition("/")[0])
        if session is None:
            return
        for token in first_tokens(session):
            if token.key == key:
                heard = session.shards[token.shard].slice if isinstance(token.shard, int) else 0
                newer = token.model_copy(update={"slice": max(token.slice, heard + 1)})
                await self._report_unreadable(session, newer, self.checkpoints.unreadable[key])

    async def _report_unreadable(self, session: Session, token: Token, why: str) -> None:
        """Report that a step or shard cannot go on. The unreadable checkpoint stays as it is."""
        origin = Origin(self.partition, 0)
        if isinstance(token.shard, int) and token.shard < len(session.shards):
            known = session.shards[token.shard].progress
            state = "stopped" if token.kind == "stop" else "failed"
            error = why if state == "failed" else None
            progress = known.model_copy(update={"state": state, "error": error, "reason": None})
            checkpoint = Checkpoint.of_shard(token, origin, None, progress)
        else:
            checkpoint = Checkpoint.of_failure(token, origin, None, why)
        await self._report(checkpoint)

    async def close(self) -> None:
        """Stop everything. Uncommitted work is discarded."""
        await self.unknown.close()
        tasks = [
            task for task in (self._opening, *self.delays.tasks(), *self._steps.tasks()) if task
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.readers.close()
        await self.producer.discard()
        self.context.obstacles.pop(self._name, None)

    @property
    def _name(self) -> str:
        return f"partition {self.partition} of {self.context.topics.work.name}"

    def on_session(self, session: Session) -> None:
        """Act on a session with new orders: end an unwanted plan or count, wake delayed tokens."""
        self._steps.on_session(session)
        self.unknown.on_session(session)
        for key in self.delays.waiting():
            replay_id, _, part = key.rpartition("/")
            gated = self.context.board.sessions.get(replay_id) if part == "gate" else None
            if replay_id == session.replay_id or (
                gated is not None
                and any(one.replay == session.replay_id for one in gated.start.parents)
            ):
                self.delays.wake(key)

    # Tokens

    async def run(self, token: Token, origin: Origin) -> None:
        """Do what a token asks for, in the order of the module's docstring.

        Raises
        ------
        Exception
            One of PRODUCER_ERRORS, when the partition must be closed and the token requeued.

        """
        if token.kind == "forget":
            await self._forget(token)
            return
        checkpoint = self.checkpoints.newest.get(token.key)
        match judge(token, origin, checkpoint):
            case Verdict.DROP:
                logger.debug("dropped %s", token)
            case Verdict.RESEND if checkpoint is not None:
                await self._report(checkpoint)
                await self._continue(checkpoint)
            case _:
                await self._run(token, origin, checkpoint)

    async def _run(self, token: Token, origin: Origin, old: Checkpoint | None) -> None:
        session = await self.unknown.session_of(token, origin)
        if session is None or not session.wants(token):
            return  # the tokens of the newer epoch, or state, are on their way
        why = self.checkpoints.unreadable.get(token.key)
        if token.kind in {"emit", "stop"} and isinstance(token.shard, int):
            if not session.has_shard(token.shard):
                self.context.ignored.add(
                    self.context.topics.work.name,
                    *origin,
                    f"{token.key!r} is no shard of the replay",
                )
                return
            why = why or lost_progress(old, session.shards[token.shard].progress)
        if why is not None:
            await self._report_unreadable(session, token, why)
            return
        began = time.monotonic()
        verdict, said = self.faults.judge(token, session.attempt, began)
        match verdict:
            case "fail":
                new = Checkpoint.of_failure(token, origin, old, said)
            case "tell":
                new = Checkpoint.of_waiting(token, origin, old, said)
            case "run":
                new = await self._attempt(session, token, origin, old)
        if old is not None and old.lost_markers and not new.lost_markers:
            # Whatever the step came to: every later retry must know them too.
            new = new.model_copy(update={"lost_markers": old.lost_markers})
        new = await self._commit_or_fail(new, old)
        if verdict == "tell":
            self.faults.told(token)
        else:
            self.faults.clear(token)
        before, after = progress_of(old), progress_of(new)
        self.context.metrics.count_slice(
            token.kind,
            time.monotonic() - began,
            after.counters - before.counters,
            after.bytes - before.bytes,
        )
        await self._report(new)
        crashpoints.reach("after-progress")
        await self._continue(new)
        crashpoints.reach("after-continuation")

    async def _attempt(
        self, session: Session, token: Token, origin: Origin, old: Checkpoint | None
    ) -> Checkpoint:
        """Do the slice's work. Return its checkpoint, or the checkpoint of its failure."""
        try:
            return await self._slice(session, token, origin, old)
        except Refused as error:
            # The producer of a topic that is gone still tries to send: another one must write why.
            if error.kind is not Kind.TOPIC or isinstance(error, TopicGone):
                raise
            await self._abandon(token.key)
            return Checkpoint.of_failure(token, origin, old, explain_topic(error))
        except (asyncio.CancelledError, *PRODUCER_ERRORS):
            raise
        except Unavailable as error:  # of a gate or finish step; plan and emit catch it
            await self._abandon(token.key)
            return Checkpoint.of_waiting(token, origin, old, str(error))
        except Exception as error:
            # Whatever an event or a command holds: the worker must go on and keep the token.
            if not isinstance(error, ReplayFailed):
                logger.exception("replay %s, shard %s failed", token.replay_id, token.shard)
            await self._abandon(token.key)
            return Checkpoint.of_failure(token, origin, old, str(error) or repr(error))

    async def _slice(
        self, session: Session, token: Token, origin: Origin, old: Checkpoint | None
    ) -> Checkpoint:
        """Do the slice's work, and return the checkpoint to commit."""
        if session.plan is not None and (
            token.kind in {"emit", "count"} or (token.kind == "finish" and token.outcome == "end")
        ):
            self.context.require_same_source(session.start, session.plan)
        match token.kind:
            case "plan" | "count":
                return await self._steps.plan_or_count(session, token, origin)
            case "gate":
                return await self._steps.gate(session, token, origin, self.producer)
            case "stop":
                return await self._stop(token, origin, old)
            case "finish":
                return await self._steps.finish(session, token, origin, old, self.producer)
            case _ if progress_of(old).state == "done":  # only the report was lost
                return Checkpoint.of_shard(token, origin, old, progress_of(old))
            case _:
                return await self._emit(session, token, origin, old)

    async def _abandon(self, key: str) -> None:
        """Undo the work of a failed slice: close the reader, abort the transaction."""
        await self.readers.drop(key)
        if self.producer.in_transaction:
            await self._abort()

    async def _abort(self) -> None:
        self._last_slices.aborted()
        await self.producer.abort()

    async def requeue(self, token: Token, origin: Origin, requeues: int = 0) -> None:
        """Put a token back on Kafka, so that its Faust event may end."""
        await self._send_token(token.model_copy(update={"origin": origin, "requeues": requeues}))

    async def _send_token(self, token: Token) -> None:
        await self.context.outbox.send(self.context.topics.work, token.key, token.encode())

    async def _commit_or_fail(self, new: Checkpoint, old: Checkpoint | None) -> Checkpoint:
        """Commit a checkpoint; the checkpoint of a failure instead if the broker refuses a record.

        Return the checkpoint that is committed.
        """
        token, origin = new.token, new.src
        try:
            size = len(new.encode())
        except ValueError as error:
            await self._abandon(token.key)
            why = f"its checkpoint could not be read again: {error}"
            new, size = Checkpoint.of_failure(token, origin, old, why), 0
        if size > MAX_INTERNAL_BYTES:
            await self._abandon(token.key)
            why = (
                f"its checkpoint has {size:,} bytes, more than the {MAX_INTERNAL_BYTES:,} of a "
                "record: too many or too long names of types and topics; replay fewer of them at a "
                "time, by event types"
            )
            new = Checkpoint.of_failure(token, origin, old, why)
        try:
            await self._commit(new)
        except Refused as error:
            if error.kind not in {Kind.EVENT, Kind.TOPIC} or isinstance(error, TopicGone):
                raise
            await self._abandon(token.key)
            why = f"the broker refuses a record for {error.topic!r}: {error}; allow it, then retry"
            new = Checkpoint.of_failure(token, origin, old, why)
            await self._commit(new)
        return new

    async def _commit(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint as the last record of the slice's transaction, and commit."""
        if not self.producer.in_transaction:
            await self.producer.begin()
        key = checkpoint.token.key
        began = time.monotonic()
        try:
            is_emitting = checkpoint.token.kind == "emit" and checkpoint.report.is_live
            clock = self._clocks[key] if is_emitting else self.context.metrics
            with clock.waiting("commit"):
                await self.producer.send(
                    self.context.topics.checkpoints.name,
                    partition=self.partition,
                    key=key.encode(),
                    value=checkpoint.encode(),
                )
                crashpoints.reach("before-commit")
                await self.producer.commit()
        except PRODUCER_ERRORS:
            self.budget.wait(time.monotonic() - began)
            self.budget.fail()
            raise
        self.budget.wait(time.monotonic() - began)
        self.budget.commit()
        self.checkpoints.newest[key] = checkpoint
        crashpoints.reach("after-commit")

    async def _report(self, checkpoint: Checkpoint) -> None:
        await self._send_report(checkpoint.report)

    async def _send_report(self, report: Report) -> None:
        """Send a report; a short report of the failure if the report is too large for its topic."""
        outbox, progress = self.context.outbox, self.context.topics.progress
        name = shorten(self.context.settings.worker_name, MAX_SHOWN_ID)
        report = report.model_copy(update={"worker": name})
        try:
            await outbox.send(progress, report.replay_id, report.encode())
        except ReplayFailed as error:
            short = report.of_failure(str(error))
            await outbox.send(progress, report.replay_id, short.encode())

    async def give_up(self, token: Token, origin: Origin) -> bool:
        """Report the failure of a token whose failure cannot be committed either.

        The checkpoint stays as it was, so a retry goes on from there. Return False if the token is
        to be tried again.
        """
        session = self.context.board.sessions.get(token.replay_id)
        if session is None or not session.wants(token):
            return False
        verdict, said = self.faults.judge(token, session.attempt, time.monotonic())
        if verdict != "fail":
            return False
        old = self.checkpoints.newest.get(token.key)
        await self._report(Checkpoint.of_failure(token, origin, old, said))
        return True

    async def _continue(self, checkpoint: Checkpoint) -> None:
        """Send the continuation, now or later. Until then the checkpoint stands for the token."""
        token = checkpoint.continuation
        if token is None:
            return
        reader = self.readers.get(token.key)
        task = self._steps.task(token.key)
        delay = min(checkpoint.due_at - time.time(), MAX_DELAY_SECONDS)
        if delay > 0:
            self.delays.put_off(token, delay)
        elif not checkpoint.report.is_waiting:
            await self._send_token(token)
        elif reader is not None:
            self.delays.put_off(token, MAX_DELAY_SECONDS, self._first_page(token.key, reader))
        elif task is not None:
            self.delays.put_off(token, MAX_DELAY_SECONDS, asyncio.wait([task]))
        elif token.kind == "gate":
            self.delays.put_off(token, self._steps.next_look(token, checkpoint.report.reason))
        elif self.readers.is_waiting(token.key):
            self.delays.put_off(token, MAX_DELAY_SECONDS)
        else:
            self.delays.put_off(token, self.delays.back_off(token.key))

    async def _first_page(self, key: str, reader: PageReader) -> None:
        with self._clocks[key].waiting("read"):
            await reader.ready()

    # The kinds of slices

    async def _emit(
        self, session: Session, token: Token, origin: Origin, old: Checkpoint | None
    ) -> Checkpoint:
        plan, shard = session.plan, token.shard
        if plan is not None and isinstance(shard, int) and plan.shards[shard].is_untimed:
            progress = progress_of(old)
            if session.awaits_count(shard):
                due_at = time.time() + UNTIMED_WAIT_SECONDS
                return Checkpoint.of_shard(token, origin, old, progress, due_at=due_at)
            if plan.counted == "beside" and plan.untimed == 0:
                done = progress.model_copy(update={"state": "done", "reason": None})
                return Checkpoint.of_shard(token, origin, old, done)
        if isinstance(shard, int) and (held := self._hold(token, origin, old, shard)):
            return held
        refusals = self._refusals.setdefault(token.key, Refusals())
        for _ in range(REFUSED_ROUNDS):
            await self._last_slices.require(token.key, progress_of(old).offsets)
            emit = EmitSlice(
                self.context,
                self.producer,
                self.readers,
                session,
                token,
                old,
                self.budget,
                refusals,
            )
            try:
                emitted = await emit.run()
                break
            except BatchesRefused as error:  # `refusals` has learnt from the answer
                logger.info("%s, partition %d: %s", token.key, self.partition, error)
                await self._abort()
        else:
            return Checkpoint.of_shard(token, origin, old, progress_of(old))
        if emitted.progress.state != "live":
            del self._refusals[token.key]
        if emitted.read:
            self.delays.reset(token.key)
            self.readers.wake_next()
        hidden = self.context.watch.hidden_records(session.replay_id, session.offsets)
        progress = emitted.progress
        if clock := self._clocks.pop(token.key, None):
            progress = progress.model_copy(update={"waits": progress.waits + clock.waits})
        return Checkpoint.of_shard(
            token,
            origin,
            old,
            progress,
            reason=hidden and consumers_wait(hidden),
            warnings=emitted.warnings,
            cursor=emitted.cursor,
            due_at=emitted.due_at,
            paced_at=emitted.paced_at,
            event_due_at=emitted.event_due_at,
            parked=emitted.parked,
        )

    def _hold(
        self, token: Token, origin: Origin, old: Checkpoint | None, shard: int
    ) -> Checkpoint | None:
        """Return the checkpoint of a shard that waits for a consumer group; None if none waits."""
        session, progress = self.context.board.sessions.get(token.replay_id), progress_of(old)
        published = progress.counters.published
        if session is None or not session.has_shard(shard):
            return None
        if allowance(session, shard, published) != 0:
            return None
        seconds = UNHEARD_WAIT_SECONDS if session.hold is None else HELD_WAIT_SECONDS
        waiting = progress.model_copy(update={"state": "live", "reason": session.hold})
        return Checkpoint.of_shard(token, origin, old, waiting, due_at=time.time() + seconds)

    async def _stop(self, token: Token, origin: Origin, old: Checkpoint | None) -> Checkpoint:
        await self.readers.drop(token.key)
        self._clocks.pop(token.key, None)
        progress = progress_of(old)
        if progress.state != "done":
            progress = progress.model_copy(update={"state": "stopped", "reason": None})
        return Checkpoint.of_shard(token, origin, old, progress)

    async def _forget(self, token: Token) -> None:
        if token.key not in (*self.checkpoints.newest, *self.checkpoints.unreadable):
            return
        await self.producer.begin()
        await self.producer.send(
            self.context.topics.checkpoints.name,
            partition=self.partition,
            key=token.key.encode(),
            value=None,
        )
        await self.producer.commit()
        self.checkpoints.remove(token.key)
        self._clocks.pop(token.key, None)
        self._last_slices.forget(token.key)
