"""The steps that a replay has once: plan, count, gate and finish."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from replay_app.checkpoints import Checkpoint
from replay_app.dropped_slices import explain_dropped, find_dropped_records
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.internals import BatchBuilder
from replay_app.pages import Batch
from replay_app.plans import Planner
from replay_app.publisher import BatchesRefused
from replay_app.stable_offsets import find_hidden_records

if TYPE_CHECKING:
    from replay_app.board import Board
    from replay_app.checkpoints import Origin, Token, TokenKind
    from replay_app.commands import Start
    from replay_app.context import WorkerContext
    from replay_app.publisher import FencedProducer
    from replay_app.reports import Plan
    from replay_app.sessions import Session
    from replay_app.stable_offsets import Hidden, LostMarkers

PLAN_WAIT_SECONDS = 0.5
"""How long a plan step waits for a plan that does not count first."""
COUNT_WAIT_SECONDS = 0.05
"""How long a step waits for a count. A longer plan, or count, goes on between two slices."""
SHARDS_FIRST_SECONDS = 30.0
"""How long a count lets the shards go first. Count and first page would slow each other down."""
SHARDS_LOOK_SECONDS = 0.1
HIDDEN_SECONDS = 60.0
"""How long a replay waits at its end until consumers can see every record. A transaction of another
producer ends within its own time limit, one minute by default."""
CONTROL_BATCH_BYTES = 4096
"""Room for a control record: the ids and names in its headers are shorter."""
UNKNOWN_SECONDS = 60.0
"""How long a replay waits for a replay that is not known. The command that starts the other one may
still be on its way."""


def counts_first(start: Start) -> bool:
    """Return whether nothing may be published before every event is counted.

    Control records go to every partition, so all topics must be known, unless the command names
    them all.
    """
    if start.preflight == "full":
        return True
    wanted, target = start.filter.event_types, start.target
    names_all = target.topic or (wanted and set(wanted) <= set(target.topics))
    return start.control_records and not names_all


class Steps:
    """The plan, count, gate and finish steps of the replays of one partition of ``replay.work``."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._tasks: dict[str, asyncio.Task[Plan]] = {}
        """By token key: the plans and counts that are being made."""
        self._hidden_since: dict[str, float] = {}
        """By token key: monotonic time at which the finish step first found hidden records."""
        self._unknown_since: dict[str, float] = {}
        """By token key and epoch: monotonic time at which a gate first missed a replay."""

    def task(self, key: str) -> asyncio.Task[Plan] | None:
        """Return the task that makes the plan, or the count, of a token's key."""
        return self._tasks.get(key)

    def on_session(self, session: Session) -> None:
        """End a plan or a count that nobody wants any more."""
        unwanted = []
        if session.state not in {"pending", "planning"}:
            unwanted.append("plan")
        if not session.is_counting:
            unwanted.append("count")
        for step in unwanted:
            task = self._tasks.pop(f"{session.replay_id}/{step}", None)
            if task is not None:
                task.cancel()

    def tasks(self) -> list[asyncio.Task[Plan]]:
        """Return the tasks that make plans and counts."""
        return list(self._tasks.values())

    async def plan_or_count(self, session: Session, token: Token, origin: Origin) -> Checkpoint:
        """Wait shortly for the plan, or for the count of a replay that runs already.

        A longer one goes on between two slices.

        Raises
        ------
        ReplayFailed
            When the replay cannot succeed, or when the events cannot be counted.

        """
        task = self._tasks.get(token.key)
        if task is None:
            task = self._tasks[token.key] = asyncio.create_task(self._make(session, token.kind))
        counts = token.kind == "count" or counts_first(session.start)
        await asyncio.wait([task], timeout=COUNT_WAIT_SECONDS if counts else PLAN_WAIT_SECONDS)
        if not task.done() or task.cancelled():  # `on_session` cancels the task
            reason = "counting the matching events" if counts else "looking at events and topics"
            return Checkpoint.of_step(token, origin, reason=reason)
        self._tasks.pop(token.key, None)
        try:
            return Checkpoint.of_step(token, origin, "done", plan=task.result())
        except Unavailable as error:
            return Checkpoint.of_step(token, origin, reason=str(error))

    async def _make(self, session: Session, kind: TokenKind) -> Plan:
        context, plan = self._context, session.plan
        planner = Planner(session.start, context.settings, context.store, context.describe)
        if kind == "count" and plan is not None:
            await self._let_shards_begin(session)
            return await planner.count(plan)
        return await planner.plan(plan, at_once=not counts_first(session.start))

    async def _let_shards_begin(self, session: Session) -> None:
        """Wait, not for long, until a shard has read: the store then has time for the count."""
        until = time.monotonic() + SHARDS_FIRST_SECONDS
        while time.monotonic() < until:
            newest = self._context.board.sessions.get(session.replay_id, session)
            if newest.state != "running" or newest.counters.read:
                return
            await asyncio.sleep(SHARDS_LOOK_SECONDS)

    async def gate(
        self, session: Session, token: Token, origin: Origin, producer: FencedProducer
    ) -> Checkpoint:
        """Wait until every replay of ``after`` has completed, then announce the begin.

        Raises
        ------
        ReplayFailed
            When a replay of ``after`` was cancelled or is not known, or when a topic does not take
            control records.

        """
        reason = gate_reason(session, self._context.board, self._unknown_seconds(session, token))
        if reason is not None:
            return Checkpoint.of_step(token, origin, reason=reason)
        await self._announce(session, "begin", producer)
        return Checkpoint.of_step(token, origin, "done")

    def _unknown_seconds(self, session: Session, token: Token) -> float:
        """Return how long a gate has waited for a replay that is not known."""
        board, key = self._context.board, f"{token.key}/{token.epoch}"
        if not board.is_complete or all(one in board.sessions for one in session.start.after):
            self._unknown_since.pop(key, None)
            return 0.0
        return time.monotonic() - self._unknown_since.setdefault(key, time.monotonic())

    async def finish(
        self,
        session: Session,
        token: Token,
        origin: Origin,
        old: Checkpoint | None,
        producer: FencedProducer,
    ) -> Checkpoint:
        """Make sure that ``completed`` is true, and announce the end.

        Raises
        ------
        ReplayFailed
            When events were missed or dropped, or when a topic does not take control records.
        Unavailable
            When the broker or the store does not answer.

        """
        warnings: tuple[str, ...] = ()
        if token.outcome == "end":
            settings, known = self._context.settings, old.lost_markers if old else {}
            hidden = await find_hidden_records(settings, session.offsets, session.replay_id)
            if hidden is not None:
                return self._wait_for_consumers(token, origin, hidden, known)
            self._hidden_since.pop(token.key, None)
            if dropped := known and await find_dropped_records(settings, known):
                raise ReplayFailed(explain_dropped(dropped))
            warnings = await audit(session, self._context)
            warnings += await lost_dead_letters(session, self._context)
        await self._announce(session, token.outcome, producer)
        return Checkpoint.of_step(token, origin, "done", warnings=warnings)

    def _wait_for_consumers(
        self, token: Token, origin: Origin, hidden: Hidden, known: LostMarkers
    ) -> Checkpoint:
        """Wait until consumers can see every record; fail the replay after HIDDEN_SECONDS."""
        since = self._hidden_since.setdefault(token.key, time.monotonic())
        if time.monotonic() - since < HIDDEN_SECONDS:
            reason = consumers_wait(hidden.explanation)
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

    async def _announce(self, session: Session, outcome: str, producer: FencedProducer) -> None:
        batches = await control_batches(session, self._context, outcome)
        if not batches:
            return
        await producer.begin()
        try:
            await producer.send_batches(batches, {})
        except BatchesRefused as error:
            _, refused = error.refusals[0]
            msg = (
                f"topic {refused.topic!r} does not take control records: {refused}; start the "
                "replay again under a new id, without control_records"
            )
            raise ReplayFailed(msg) from error


def consumers_wait(hidden: str) -> str:
    """Return why consumers wait, as a reason."""
    return f"consumers do not see all: {hidden}"


def gate_reason(session: Session, board: Board, unknown_seconds: float) -> str | None:
    """Return why the gate is closed; None once every replay of ``after`` has completed.

    ``unknown_seconds`` is how long a replay of ``after`` has been unknown.

    Raises
    ------
    ReplayFailed
        When a replay of ``after`` was cancelled, or is still unknown after UNKNOWN_SECONDS.

    """
    waiting_for: list[str] = []
    for replay_id in session.start.after:
        other = board.sessions.get(replay_id)
        if other is None and unknown_seconds >= UNKNOWN_SECONDS:
            msg = (
                f"replay {replay_id!r}, which this one waits for, is not known: it was never "
                "started, or it is forgotten (REPLAY_RETENTION_DAYS). Start it, then retry; or "
                "start this replay without `after`, under a new id"
            )
            raise ReplayFailed(msg)
        state = "unknown" if other is None else other.state
        if state == "cancelled":
            msg = f"replay {replay_id!r}, which this one waits for, was cancelled"
            raise ReplayFailed(msg)
        if state not in {"completed", "completed_with_errors"}:
            waiting_for.append(f"{replay_id!r} ({state})")
    return f"waiting for replay {', '.join(waiting_for)}" if waiting_for else None


async def audit(session: Session, context: WorkerContext) -> tuple[str, ...]:
    """Compare what the replay has read with what the plan counted. Return warnings.

    Where the numbers differ, the events are counted again, within ``REPLAY_PLAN_SECONDS``. If the
    counts of the plan, of the recounts after retries, and of now are not all the same, the store
    has changed meanwhile: a warning says so.

    Raises
    ------
    ReplayFailed
        When the store has not changed: events were missed or read twice. Also when a dry run could
        not map a single event.

    """
    if session.start.dry_run:
        _require_valid_event(session)
    plan, read = session.plan, session.counters.read
    if plan is None or plan.matched is None or plan.matched == read:
        return ()
    planner = Planner(session.start, context.settings, context.store, context.describe)
    now = await planner.count_again(plan)
    numbers = f"the plan counted {plan.matched:,} events, the replay has read {read:,}"
    if now is None:
        return (f"{numbers}; why they differ is unknown: the events could not be counted again",)
    if {now} >= {plan.matched, *session.planned_matches}:
        if plan.counted == "beside":
            warning = (
                f"{numbers}, and the store still has {now:,}. The events were counted while the "
                "replay ran: events were stored, changed or deleted behind its position meanwhile, "
                "and some of them may be missing. To be sure, replay again with preflight full, "
                "which counts before the first event"
            )
            return (warning,)
        msg = (
            f"{numbers}, and the store still has {now:,}: events were missed or read twice. An "
            "event whose time was mended meanwhile lies behind the cursor: replay it by its id. In "
            "any other case keep the workers' log, and start the replay again under a new replay_id"
        )
        raise ReplayFailed(msg)
    warning = (
        f"{numbers}, and the store now has {now:,}: events were stored, changed or deleted during "
        "the replay, and some of them may be missing"
    )
    return (warning,)


async def lost_dead_letters(session: Session, context: WorkerContext) -> tuple[str, ...]:
    """Return a warning if the topic of the dead letters is not the one that the plan found.

    Raises
    ------
    Unavailable
        When the broker does not answer.

    """
    planned = session.plan.dead_letters if session.plan else ""
    if not planned or not session.counters.dead_lettered:
        return ()
    name = context.topics.dead_letters.name
    found = await context.describe([name])
    if name in found and found[name].topic_id == planned:
        return ()
    warning = (
        f"topic {name!r} was deleted during the replay: dead letters may be lost with it. The "
        "receipt lists the first failed events"
    )
    return (warning,)


def _require_valid_event(session: Session) -> None:
    progress = [shard.progress for shard in session.shards]
    failed = sum(one.failed for one in progress)
    if failed and not any(one.valid for one in progress):
        first = next(failure for one in progress for failure in one.failures)
        msg = (
            f"none of the {failed:,} events could be replayed. The first, event "
            f"{first.event_id!r}: {first.reason}. Correct the mapping or the events, then start "
            "again under a new replay_id"
        )
        raise ReplayFailed(msg)


async def control_batches(session: Session, context: WorkerContext, outcome: str) -> list[Batch]:
    """Return a control record for every partition of every destination topic.

    The list is empty if the command did not ask for control records, and in a dry run.
    """
    if not session.start.control_records or session.start.dry_run or session.plan is None:
        return []
    # Not what the worker remembers: a topic may have more partitions since a moment.
    topics = await context.describe(session.plan.partitions)
    headers = [("replay-id", session.replay_id.encode()), ("replay-control", outcome.encode())]
    batches: list[Batch] = []
    for topic, destination in topics.items():
        for partition in range(destination.partitions):
            builder = BatchBuilder(CONTROL_BATCH_BYTES, 0, is_transactional=1)
            builder.append(timestamp=None, key=None, value=None, headers=headers)
            batches.append(Batch(topic, partition, builder, 1, builder.size()))
    return batches
