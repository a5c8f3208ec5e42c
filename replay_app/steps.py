"""The steps that a replay has once: plan, count, gate and finish."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from replay_app.audits import audit, lost_dead_letters, unknown_redactions
from replay_app.checkpoints import Checkpoint
from replay_app.dropped_slices import explain_dropped, find_dropped_records
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.gates import SOON_SECONDS, gate_reason, next_look
from replay_app.handover import complete_handover, find_handover, handover_header
from replay_app.internals import BatchBuilder
from replay_app.pages import Batch
from replay_app.plans import Planner
from replay_app.publisher import BatchesRefused
from replay_app.stable_offsets import find_hidden_records

if TYPE_CHECKING:
    from replay_app.checkpoints import Origin, Token, TokenKind
    from replay_app.commands import Start
    from replay_app.context import WorkerContext
    from replay_app.publisher import FencedProducer
    from replay_app.reports import Plan
    from replay_app.sessions import Session
    from replay_app.settings import Settings
    from replay_app.stable_offsets import Hidden, LostMarkers

PLAN_WAIT_SECONDS = 0.5
"""How long a plan step waits for a plan that does not count first."""
COUNT_WAIT_SECONDS = 0.05
"""How long a step waits for a count. A longer plan, or count, goes on between two slices."""
SHARDS_FIRST_SECONDS = 30.0
"""How long a count lets the shards go first, until one of them has read. Count and first page would
slow each other down."""
SHARDS_ALONE_SECONDS = 5.0
"""How long a count leaves the store to the shards after that. A replay that has read all by then
needs no count."""
SHARDS_LOOK_SECONDS = 0.1
HIDDEN_SECONDS = 60.0
"""How long a replay waits at its end until consumers can see every record. A transaction of another
producer ends within its own time limit, one minute by default."""
CONTROL_BATCH_BYTES = 4096
"""Room for a control record without a hand-over: the ids and names in its headers are shorter."""


def counts_first(start: Start, settings: Settings) -> bool:
    """Return whether nothing may be published before every event is counted.

    Control records go to every partition, so all topics must be known, unless the command names
    them all. Where live topics are forbidden, the count tells which topics are live.
    """
    if start.preflight == "full" or not (settings.allow_original or start.dry_run):
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
        counts = token.kind == "count" or counts_first(session.start, self._context.settings)
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
        settings, store = context.reads(session.start)
        planner = Planner(session.rules, settings, store, context.describe)
        if kind == "count" and plan is not None:
            await self._let_shards_go_first(session)
            made = await planner.count(plan)
        else:
            made = await planner.plan(
                plan,
                at_once=not counts_first(session.start, settings),
                accept_changes=session.accepts_changes,
            )
        return await find_handover(settings, session.start, made, plan)

    async def _let_shards_go_first(self, session: Session) -> None:
        """Wait, not for long, until the store has time for the count."""
        until, has_begun = time.monotonic() + SHARDS_FIRST_SECONDS, False
        while time.monotonic() < until:
            newest = self._context.board.sessions.get(session.replay_id, session)
            if newest.state != "running":
                return
            if newest.counters.read and not has_begun:
                until, has_begun = time.monotonic() + SHARDS_ALONE_SECONDS, True
            await asyncio.sleep(SHARDS_LOOK_SECONDS)

    async def gate(
        self, session: Session, token: Token, origin: Origin, producer: FencedProducer
    ) -> Checkpoint:
        """Wait until the replays of ``after`` let this one begin, then announce the begin.

        Raises
        ------
        ReplayFailed
            When a replay of ``after`` can never be waited for (see `gate_reason`), or when a topic
            does not take control records.

        """
        # Not the token's session: a release gives no new token.
        newest = self._context.board.sessions.get(session.replay_id, session)
        unknown_seconds = self._unknown_seconds(session, token)
        reason = gate_reason(newest, self._context.board.sessions, unknown_seconds)
        if reason is not None:
            return Checkpoint.of_step(token, origin, reason=reason)
        await self._announce(session, "begin", producer)
        return Checkpoint.of_step(token, origin, "done")

    def next_look(self, token: Token, said: str | None) -> float:
        """Return the seconds until a closed gate is looked at again (see `gates.next_look`)."""
        sessions = self._context.board.sessions
        session = sessions.get(token.replay_id)
        if session is None:
            return SOON_SECONDS
        return next_look(session, sessions, said, self._context.settings.stall_seconds)

    def _unknown_seconds(self, session: Session, token: Token) -> float:
        """Return how long a gate has waited for a replay that is not known."""
        board, key = self._context.board, f"{token.key}/{token.epoch}"
        if not board.is_complete or all(
            one.replay in board.sessions for one in session.start.parents
        ):
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
        found: dict[str, Any] = {}
        if token.outcome == "end":
            settings, known = self._context.settings, old.lost_markers if old else {}
            hidden = await find_hidden_records(settings, session.offsets, session.replay_id)
            if hidden is not None:
                return self._wait_for_consumers(token, origin, hidden, known)
            self._hidden_since.pop(token.key, None)
            if dropped := known and await find_dropped_records(settings, known):
                raise ReplayFailed(explain_dropped(dropped))
            are_seen = session.lists_all_offsets
            if are_seen and not session.start.dry_run:
                found["visible_at"] = datetime.now(UTC)
            session, more = await self._audit(session)
            found |= more
        await self._announce(session, token.outcome, producer)
        return Checkpoint.of_step(token, origin, "done", **found)

    async def _audit(self, session: Session) -> tuple[Session, dict[str, Any]]:
        """Return the session with its whole hand-over, and what the step's report says."""
        context = self._context
        found = await audit(session, context)
        warnings = found.warnings + await lost_dead_letters(session, context)
        warnings += await unknown_redactions(session, context)
        settings, _ = context.reads(session.start)
        more = await complete_handover(session, settings)
        if more is not None:
            warnings += more.warnings
            plan = session.plan and session.plan.model_copy(update={"handover": more.handover})
            session = session.model_copy(update={"plan": plan})
        return session, {"warnings": warnings, "behind": found.behind, "plan": more}

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


async def control_batches(session: Session, context: WorkerContext, outcome: str) -> list[Batch]:
    """Return a control record for every partition of every destination topic.

    The list is empty if the command did not ask for control records, and in a dry run.
    """
    if not session.start.control_records or session.start.dry_run or session.plan is None:
        return []
    # Not what the worker remembers: a topic may have more partitions since a moment.
    topics = await context.describe(session.plan.partitions)
    batches: list[Batch] = []
    for topic, destination in topics.items():
        room = CONTROL_BATCH_BYTES
        headers = [
            ("replay-id", session.replay_id.encode()),
            ("replay-control", outcome.encode()),
            # A consumer cannot tell by itself which partitions a topic had at the end.
            ("replay-partitions", b"%d" % destination.partitions),
        ]
        if outcome == "end":
            text = handover_header(session.handover, session.start.target.prefix, topic)
            if text is not None:
                headers.append(("replay-handover", text))
                room += len(text)
        for partition in range(destination.partitions):
            builder = BatchBuilder(room, 0, is_transactional=1)
            builder.append(timestamp=None, key=None, value=None, headers=headers)
            batches.append(Batch(topic, partition, builder, 1, builder.size()))
    return batches
