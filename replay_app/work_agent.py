"""The work agent: what a worker does with a token of ``replay.work`` (docs/protocol.md, "A slice").

Faust delivers a token at least once. Exactly once comes from Kafka: each owned partition of
``replay.work`` has one fenced transactional producer, and a slice publishes its events and its
checkpoint in one transaction. The steps of a slice:

1. compare the token with the checkpoint; 2. begin; 3. publish from the checkpoint's cursor;
4. write the checkpoint; 5. commit; 6. send the report and await its ack; 7. send the continuation
and await its ack; 8. let the Faust event end, which acks the token.

A crash before step 5 leaves nothing behind. After a crash behind step 5, steps 6 and 7 are done
again: by the redelivered token, or by the worker that opens the partition next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from replay_app import crashpoints
from replay_app.broker_errors import Kind, Refused, TopicGone, explain, explain_topic
from replay_app.checkpoints import (
    Checkpoint,
    Checkpoints,
    Origin,
    Token,
    Verdict,
    decode_token,
    judge,
    progress_of,
)
from replay_app.compacted import CompactedReader
from replay_app.delays import (
    BACKOFF_SECONDS,
    MAX_DELAY_SECONDS,
    DelayedTokens,
    UnknownTokens,
)
from replay_app.emit import EmitSlice
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.faults import Faults
from replay_app.publisher import PRODUCER_ERRORS, REOPEN_SECONDS, BatchesRefused, FencedProducer
from replay_app.readers import PageReader, Readers
from replay_app.refusals import Refusals
from replay_app.reports import MAX_INTERNAL_BYTES, Report
from replay_app.stable_offsets import (
    Hidden,
    LostMarkers,
    find_dropped_records,
    find_hidden_records,
)
from replay_app.steps import Planning, audit, control_batches, gate_reason
from replay_app.transitions import first_tokens

if TYPE_CHECKING:
    from replay_app.context import WorkerContext
    from replay_app.sessions import Session

logger = logging.getLogger(__name__)

PLAN_WAIT_SECONDS = 0.05
"""How long a plan step waits for the plan. A longer plan reports its draft meanwhile."""
OPEN_WAIT_SECONDS = 20.0
"""How long a token waits for its partition to open, before the token is requeued. A longer wait
would hold up rebalances and the end of the worker."""
HIDDEN_SECONDS = 60.0
"""How long a replay waits at its end until consumers can see every record. A transaction of another
producer ends within its own time limit, one minute by default."""
REFUSED_ROUNDS = 10
"""How often one token starts its slice again because the broker refuses events. Then the next token
goes on: a token must be short."""


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
        self.readers = Readers(context.settings, context.store, partition, self.delays.wake)
        self._plans: dict[str, Planning] = {}
        self._refusals: dict[str, Refusals] = {}
        """By token key: what the broker has refused of the shard."""
        self._hidden_since: dict[str, float] = {}
        """By token key: monotonic time at which the finish step first found hidden records."""
        self._unknown_since: dict[str, float] = {}
        """By token key and epoch: monotonic time at which a gate first missed a replay."""
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
        while True:
            try:
                await self.producer.start()  # first fence, then read: nothing comes in between
                self.checkpoints = await self._read_checkpoints()
            except Exception as error:  # noqa: BLE001 - tokens wait for the opening: it must not fail
                logger.warning("partition %d cannot be opened: %s", self.partition, explain(error))
                self.context.obstacles[self._name] = (
                    f"{self._name} cannot be opened: {explain(error)}"
                )
                await self.producer.discard()
                self.producer = self.producer.renewed()
                await asyncio.sleep(BACKOFF_SECONDS[2])
            else:
                break
        self.context.obstacles.pop(self._name, None)
        # A set, because every call asks the broker.
        status = self.context.topics.status
        keys = (*self.checkpoints.newest, *self.checkpoints.unreadable)
        partitions = {status.partition(key.rpartition("/")[0]) for key in keys}
        await asyncio.gather(*map(self.context.board.caught_up, partitions))
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
                try:
                    found.add(record)
                except ValueError as error:
                    place = record.topic, record.partition, record.offset
                    self.context.ignored.add(*place, error)
        finally:
            await reader.stop()
        return found

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
        for token in first_tokens(session) if session else ():
            if token.key == key and session is not None:
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
        plans = [planning.task for planning in self._plans.values()]
        tasks = [task for task in (self._opening, *self.delays.tasks(), *plans) if task]
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
        """Act on a session with new orders: end an unwanted plan, wake delayed tokens."""
        if session.state not in {"pending", "planning"}:
            planning = self._plans.pop(f"{session.replay_id}/plan", None)
            if planning is not None:
                planning.task.cancel()
        self.readers.on_session(session)
        self.unknown.on_session(session)
        for key in self.delays.waiting():
            replay_id, _, part = key.rpartition("/")
            gated = self.context.board.sessions.get(replay_id) if part == "gate" else None
            if replay_id == session.replay_id or (
                gated is not None and session.replay_id in gated.start.after
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
        if token.kind in {"emit", "stop"} and not session.has_shard(token.shard):
            self.context.ignored.add(
                self.context.topics.work.name, *origin, f"{token.key!r} is no shard of the replay"
            )
            return
        why = self.checkpoints.unreadable.get(token.key)
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
            # Also after a step that failed for another reason.
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
        match token.kind:
            case "plan":
                return await self._plan(session, token, origin)
            case "gate":
                return await self._gate(session, token, origin)
            case "stop":
                return await self._stop(token, origin, old)
            case "finish":
                return await self._finish(session, token, origin, old)
            case _ if progress_of(old).state == "done":  # only the report was lost
                return Checkpoint.of_shard(token, origin, old, progress_of(old))
            case _:
                return await self._emit(session, token, origin, old)

    async def _abandon(self, key: str) -> None:
        """Undo the work of a failed slice: close the reader, abort the transaction."""
        await self.readers.drop(key)
        if self.producer.in_transaction:
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
            with self.context.metrics.waiting("commit"):
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
        plan = self._plans.get(token.key)
        delay = min(checkpoint.due_at - time.time(), MAX_DELAY_SECONDS)
        if delay > 0:
            self.delays.put_off(token, delay)
        elif not checkpoint.report.is_waiting:
            await self._send_token(token)
        elif reader is not None:
            self.delays.put_off(token, MAX_DELAY_SECONDS, self._first_page(reader))
        elif plan is not None:
            self.delays.put_off(token, MAX_DELAY_SECONDS, plan.news(checkpoint.report.draft))
        elif token.kind == "gate" or self.readers.is_waiting(token.key):
            self.delays.put_off(token, MAX_DELAY_SECONDS)
        else:
            self.delays.put_off(token, self.delays.back_off(token.key))

    async def _first_page(self, reader: PageReader) -> None:
        with self.context.metrics.waiting("read"):
            await reader.ready()

    # The kinds of slices

    async def _plan(self, session: Session, token: Token, origin: Origin) -> Checkpoint:
        planning = self._plans.get(token.key)
        if planning is None:
            planning = self._plans[token.key] = Planning(self.context, session)
        await asyncio.wait([planning.task], timeout=PLAN_WAIT_SECONDS)
        if not planning.task.done() or planning.task.cancelled():  # `on_session` cancels the task
            reason = "counting the matching events"
            return Checkpoint.of_step(token, origin, reason=reason, draft=planning.draft)
        self._plans.pop(token.key, None)
        try:
            return Checkpoint.of_step(token, origin, "done", plan=planning.task.result())
        except Unavailable as error:
            return Checkpoint.of_step(token, origin, reason=str(error))

    async def _gate(self, session: Session, token: Token, origin: Origin) -> Checkpoint:
        reason = gate_reason(session, self.context.board, self._unknown_seconds(session, token))
        if reason is not None:
            return Checkpoint.of_step(token, origin, reason=reason)
        await self._announce(session, "begin")
        return Checkpoint.of_step(token, origin, "done")

    def _unknown_seconds(self, session: Session, token: Token) -> float:
        """Return how long a gate has waited for a replay that is not known."""
        board, key = self.context.board, f"{token.key}/{token.epoch}"
        if not board.is_complete or all(one in board.sessions for one in session.start.after):
            self._unknown_since.pop(key, None)
            return 0.0
        return time.monotonic() - self._unknown_since.setdefault(key, time.monotonic())

    async def _finish(
        self, session: Session, token: Token, origin: Origin, old: Checkpoint | None
    ) -> Checkpoint:
        warnings: tuple[str, ...] = ()
        if token.outcome == "end":
            settings, known = self.context.settings, old.lost_markers if old else {}
            hidden = await find_hidden_records(settings, session.offsets, session.replay_id)
            if hidden is not None:
                return self._wait_for_consumers(token, origin, hidden, known)
            self._hidden_since.pop(token.key, None)
            if dropped := known and await find_dropped_records(settings, known):
                # Not an exception: every later retry must know it too.
                error = (
                    "the broker had lost the marker of a committed slice, and the slice was ended "
                    f"without it: consumers never see the events in {', '.join(dropped)}. Start "
                    "the replay again under a new replay_id"
                )
                step = Checkpoint.of_step(token, origin, "failed", error=error)
                return step.model_copy(update={"lost_markers": known})
            warnings = await audit(session, self.context)
        await self._announce(session, token.outcome)
        return Checkpoint.of_step(token, origin, "done", warnings=warnings)

    def _wait_for_consumers(
        self, token: Token, origin: Origin, hidden: Hidden, known: LostMarkers
    ) -> Checkpoint:
        """Wait until consumers can see every record; fail the replay after HIDDEN_SECONDS."""
        since = self._hidden_since.setdefault(token.key, time.monotonic())
        if time.monotonic() - since < HIDDEN_SECONDS:
            reason = _consumers_wait(hidden.explanation)
            step = Checkpoint.of_step(token, origin, reason=reason)
        else:
            del self._hidden_since[token.key]
            error = (
                f"all events are published, but read_committed consumers do not see all of them: "
                f"{hidden.explanation}"
            )
            error += "" if hidden.lost_markers else "; then retry"
            step = Checkpoint.of_step(token, origin, "failed", error=error)
        found = hidden.lost_markers
        lost = {
            topic: known.get(topic, {}) | found.get(topic, {})
            for topic in known.keys() | found.keys()
        }
        return step.model_copy(update={"lost_markers": lost})

    async def _announce(self, session: Session, outcome: str) -> None:
        batches = await control_batches(session, self.context, outcome)
        if not batches:
            return
        await self.producer.begin()
        try:
            await self.producer.send_batches(batches, {})
        except BatchesRefused as error:
            _, refused = error.refusals[0]
            msg = (
                f"topic {refused.topic!r} does not take control records: {refused}; start the "
                "replay again under a new id, without control_records"
            )
            raise ReplayFailed(msg) from error

    async def _emit(
        self, session: Session, token: Token, origin: Origin, old: Checkpoint | None
    ) -> Checkpoint:
        refusals = self._refusals.setdefault(token.key, Refusals())
        for _ in range(REFUSED_ROUNDS):
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
                await self.producer.abort()
        else:
            return Checkpoint.of_shard(token, origin, old, progress_of(old))
        if emitted.progress.state != "live":
            del self._refusals[token.key]
        if emitted.read:
            self.delays.reset(token.key)
            self.readers.wake_next()
        hidden = self.context.watch.hidden_records(session.replay_id, session.offsets)
        return Checkpoint.of_shard(
            token,
            origin,
            old,
            emitted.progress,
            reason=hidden and _consumers_wait(hidden),
            warnings=emitted.warnings,
            cursor=emitted.cursor,
            due_at=emitted.due_at,
        )

    async def _stop(self, token: Token, origin: Origin, old: Checkpoint | None) -> Checkpoint:
        await self.readers.drop(token.key)
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


def _consumers_wait(hidden: str) -> str:
    return f"consumers do not see all: {hidden}"


class WorkPartitions:
    """All partitions of ``replay.work`` that this worker owns now."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._owned: dict[int, WorkPartition] = {}
        self._faults: dict[int, Faults] = {}
        """By partition: they outlive a partition that is opened again."""
        context.board.on_session(self._on_session)
        context.metrics.show_unreadable(lambda: sum(map(len, self.unreadable().values())))

    def _on_session(self, session: Session) -> None:
        if session.state != "running" or session.finishing:
            self._context.watch.forget(session.replay_id)
        for owned in self._owned.values():
            owned.on_session(session)

    def count(self) -> int:
        """Return the number of owned partitions."""
        return len(self._owned)

    def unreadable(self) -> dict[int, tuple[str, ...]]:
        """Return the keys of unreadable checkpoints by owned partition, where there are any."""
        return {
            number: tuple(owned.checkpoints.unreadable)
            for number, owned in self._owned.items()
            if owned.checkpoints.unreadable
        }

    async def assign(self, partitions: Iterable[int]) -> None:
        """Own exactly these partitions from now on. They open in the background.

        A partition that the worker keeps is opened again: another worker may have owned the
        partition in between.
        """
        await self.revoke()
        for partition in partitions:
            self._open(partition)

    async def revoke(self) -> None:
        """Close every partition."""
        self._context.watch.forget()
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.close() for partition in owned.values()))

    def _open(self, partition: int, delay_seconds: float = 0.0) -> WorkPartition:
        faults = self._faults.setdefault(partition, Faults())
        opening = self._owned[partition] = WorkPartition(self._context, partition, faults)
        opening.open(delay_seconds)
        return opening

    async def handle(self, partition: int, offset: int, value: bytes | None) -> None:
        """Do what one record of ``replay.work`` asks for. The record may be acked afterwards."""
        token = decode_token(value)
        if token is None:
            topic = self._context.topics.work.name
            self._context.ignored.add(topic, partition, offset, "not a token")
            return
        if token.kind == "noop":
            return
        origin = token.origin or Origin(partition, offset)
        # A record may come before Faust's listener has assigned the partition.
        owned = self._owned.get(partition) or self._open(partition)
        try:
            if not await owned.is_open_within(OPEN_WAIT_SECONDS):
                await owned.requeue(token, origin, token.requeues)
                return
            await owned.run(token, origin)
        except (asyncio.CancelledError, *PRODUCER_ERRORS) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            logger.warning("partition %d gives a token back: %s", partition, explain(error))
            if not await owned.give_up(token, origin):
                self._note(owned, token, error)
                self._context.metrics.requeued_tokens.inc()
                await owned.requeue(token, origin)
            if self._owned.get(partition) is owned:
                self._open(partition, delay_seconds=REOPEN_SECONDS)
            await owned.close()

    def _note(self, owned: WorkPartition, token: Token, error: BaseException) -> None:
        session = self._context.board.sessions.get(token.replay_id)
        if session is not None and not isinstance(error, asyncio.CancelledError):
            owned.faults.note(token, session.attempt, error, time.monotonic())
