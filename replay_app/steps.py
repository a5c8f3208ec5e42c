"""The steps that a replay has once: plan, gate and finish."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from replay_app.exceptions import ReplayFailed
from replay_app.internals import BatchBuilder
from replay_app.pages import Batch
from replay_app.plans import Planner

if TYPE_CHECKING:
    from replay_app.board import Board
    from replay_app.context import WorkerContext
    from replay_app.reports import ShardPlan
    from replay_app.sessions import Session

CONTROL_BATCH_BYTES = 4096
"""Room for a control record: the ids and names in its headers are shorter."""
UNKNOWN_SECONDS = 60.0
"""How long a replay waits for a replay that is not known. The command that starts the other one may
still be on its way."""


class Planning:
    """A plan that is being made, in a task; or made again, from a plan whose bound stays."""

    def __init__(self, context: WorkerContext, session: Session) -> None:
        start = session.start
        self.draft: tuple[ShardPlan, ...] = ()
        self._drafted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        planner = Planner(start, context.settings, context.store, context.describe)
        self.task = asyncio.create_task(planner.plan(self._on_draft, session.plan))

    def _on_draft(self, shards: tuple[ShardPlan, ...]) -> None:
        self.draft = shards
        if shards:
            self._drafted.set_result(None)

    async def news(self, draft: tuple[ShardPlan, ...]) -> None:
        """Wait for the plan. Without a known ``draft``, wait for plan or draft."""
        waits: list[asyncio.Future[Any]] = [self.task]
        if not draft:
            waits.append(self._drafted)
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)


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
    now = await planner.count_again(plan.end)
    numbers = f"the plan counted {plan.matched:,} events, the replay has read {read:,}"
    if now is None:
        return (f"{numbers}; why they differ is unknown: the events could not be counted again",)
    if {now} >= {plan.matched, *session.planned_matches}:
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
