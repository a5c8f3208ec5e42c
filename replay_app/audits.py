"""The audit at the end of a replay: what it has read, compared with what the store has.

Events that are stored behind the position of a running replay are not published. The audit counts
them, within a limit of time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from replay_app.bounds import bounds_of
from replay_app.counts import count_timed
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.plans import Planner
from replay_app.reports import OTHER
from replay_app.store import TimeLimitExceeded

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.context import WorkerContext
    from replay_app.reports import Plan
    from replay_app.sessions import Session

BEHIND_SECONDS = 2.0
"""How long the count at the end may take, whatever the length of the replay."""
BEHIND_SHARE = 0.05
"""How much longer it may take, as a share of the time for which the replay has run."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What the audit of a replay has found."""

    warnings: tuple[str, ...] = ()
    behind: int | None = None
    """Matching events of the range that were stored behind the replay's position. None if
    unknown."""


async def audit(session: Session, context: WorkerContext) -> Audit:
    """Compare what the replay has read with what the plan counted, and with what the store has.

    Where the plan counted another number, the events are counted again, within
    ``REPLAY_PLAN_SECONDS``. If the counts of the plan, of the recounts after retries, and of now
    are not all the same, the store has changed meanwhile: a warning says so. Where the numbers are
    equal, or if the replay was faster than its count, a shorter count finds the events that were
    stored behind the replay's position.

    Raises
    ------
    ReplayFailed
        When the store has not changed: events were missed or read twice. Also when a dry run could
        not map a single event.

    """
    if session.start.dry_run:
        _require_valid_event(session)
    plan, read = session.plan, session.counters.read
    if plan is None:
        return Audit()
    planner = Planner(session.start, *context.reads(session.start), context.describe)
    if plan.matched is None or plan.matched == read:
        return await _look_behind(session, plan, planner, context)
    now = await planner.count_again(plan)
    numbers = f"the plan counted {plan.matched:,} events, the replay has read {read:,}"
    if now is None:
        why = "why they differ is unknown: the events could not be counted again"
        return Audit((f"{numbers}; {why}",))
    if {now} >= {plan.matched, *session.planned_matches}:
        if plan.counted == "before":
            msg = (
                f"{numbers}, and the store still has {now:,}: events were missed or read twice. An "
                "event whose time was mended meanwhile lies behind the cursor: replay it by its "
                "id. In any other case keep the workers' log, and start the replay again under a "
                "new replay_id"
            )
            raise ReplayFailed(msg)
        warning = (
            f"{numbers}, and the store still has {now:,}. The events were counted while the "
            "replay ran: events were stored, changed or deleted behind its position meanwhile, "
            "and some of them may be missing. To be sure, replay again with preflight full, "
            "which counts before the first event"
        )
    else:
        warning = (
            f"{numbers}, and the store now has {now:,}: events were stored, changed or deleted "
            "during the replay, and some of them may be missing"
        )
    return _audit_of(session.start, now, read, warning)


async def _look_behind(
    session: Session, plan: Plan, planner: Planner, context: WorkerContext
) -> Audit:
    """Count the events again, for a small part of the time for which the replay has run.

    If the replay was faster than its count, this is also the time for what the count warns of.
    """
    start, (settings, store) = session.start, context.reads(session.start)
    began = session.started_at or session.created_at
    ran_seconds = max(0.0, (datetime.now(UTC) - began).total_seconds())
    seconds = min(settings.plan_seconds, BEHIND_SECONDS + BEHIND_SHARE * ran_seconds)
    read = sum(shard.progress.counters.read for shard in session.timed_shards)
    topics = {name for shard in session.shards for name in shard.progress.by_topic}

    # Whatever fails here: all events are published, and the replay completes.
    is_outrun = plan.counted == "after"

    async def count() -> Audit:
        if start.dry_run and not is_outrun:
            return Audit()
        bounds = bounds_of(start, plan)
        try:
            now = await count_timed(start, settings, store, bounds, read, seconds)
        except TimeLimitExceeded:
            late = (
                "how many events lie behind the replay's position is unknown: the events could not "
                f"be counted within {seconds:.0f} s"
            )
            return Audit((late,) if is_outrun else ())
        except (ReplayFailed, Unavailable) as error:
            warning = f"how many events lie behind the replay's position is unknown: {error}"
            return Audit((warning,))
        if is_outrun and now < read:  # no other count can tell
            fewer = (
                f"the replay has read {read:,} events with a time, and the store now has {now:,}: "
                "events were deleted during the replay, or some were read twice"
            )
            return Audit((fewer,))
        return _audit_of(start, now, read)

    async def look() -> list[str]:
        if not is_outrun:
            return []
        try:
            return await planner.look_back(plan, session.counters.read, topics - {OTHER}, seconds)
        except (ReplayFailed, Unavailable) as error:
            return [f"what the times of the filter leave out is unknown: {error}"]

    found, warnings = await asyncio.gather(count(), look())
    return Audit((*warnings, *found.warnings), found.behind)


def _audit_of(start: Start, now: int, read: int, *warnings: str) -> Audit:
    """Return an audit with the number of events behind the replay's position.

    ``now`` is how many events match. If these are fewer than were read, events were deleted: how
    many were stored meanwhile is unknown. So it is where ``max_events`` ended the replay. A dry run
    has no position to which consumers could have read.
    """
    if start.dry_run or now < read or (start.max_events is not None and now >= start.max_events):
        return Audit(warnings)
    behind = now - read
    if behind:
        warning = (
            f"{behind:,} matching events lie behind the replay's position and are not published: "
            "they were stored too late. Consumers that read on live from the hand-over get those "
            "of them that came to the live topics after it. For the others, replay the same range "
            "again under a new replay_id: consumers know repeated events by their ids"
        )
        warnings = (*warnings, warning)
    return Audit(warnings, behind)


async def unknown_redactions(session: Session, context: WorkerContext) -> tuple[str, ...]:
    """Return warnings of fields that were to be redacted and that no event has."""
    if session.plan is None or not session.start.redact or not session.counters.read:
        return ()
    planner = Planner(session.start, *context.reads(session.start), context.describe)
    try:
        return tuple(await planner.unknown_redactions(session.plan))
    except (ReplayFailed, Unavailable) as error:  # all events are published: the replay completes
        return (f"redact: whether the events have all these fields is unknown: {error}",)


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
