"""Consumers of a replay: how far its groups have read, and how far ahead of them it may publish.

Pure functions, without I/O and without a clock. A look compares a group's committed offsets with
the session's offsets at the time of the look. Whatever shards report later is added to the lag. So
the lag never leaves out what the replay has published, and each look makes the lag exact again.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from replay_app.reports import GroupLook, Report, offsets_written
from replay_app.sessions import Consumption, Session
from replay_app.states import COMPLETED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replay_app.reports import Offsets

RELEASE_PERCENT = 75
"""Held shards go on when the lag is down to this share of ``max_lag``. They would publish in tiny
slices otherwise."""
CHECKED_SECONDS = 600.0
"""A look that finds no change is noted in the session this often."""
TOO_MANY = "the replay has published to more partitions than its session lists"
WATCHED_DAYS = 7
"""How long after its end a replay's groups are looked at."""
NOT_WATCHED = (
    f"the group had not read everything {WATCHED_DAYS} days after the end of the replay, and is "
    "not looked at any more"
)
FINAL = frozenset({TOO_MANY, NOT_WATCHED})
"""Reasons why nobody will ever see that a group has read everything of an ended replay."""


def group_lag(offsets: Offsets, committed: Mapping[tuple[str, int], int]) -> int:
    """Return how many published offsets a group has not read. 0 means that it has read everything.

    ``committed`` has the offset of the next record to read, by topic and partition. A consumer
    that reads ``read_committed`` may stand behind the marker that follows the last record.
    """
    return sum(
        max(0, last + 1 - committed.get((topic, partition), first))
        for topic, ranges in offsets.items()
        for partition, (first, last) in ranges.items()
    )


def is_watched(session: Session) -> bool:
    """Whether the groups of a session are to be looked at."""
    return (
        bool(session.start.consumers) and session.state != "cancelled" and not session.is_consumed
    )


def note_look(session: Session, report: Report, now: datetime, patience: timedelta) -> Session:
    """Return the session with what a look at its groups has found; the same one without a change.

    ``patience`` is how long ``max_lag`` waits for a group that does not move.
    """
    if not is_watched(session):
        return session
    published = offsets_written(session.offsets)
    since = max(0, published - report.written)
    is_ended = report.state == "done" and session.state in COMPLETED
    consumption, warnings = dict(session.consumption), list(session.warnings)
    for group in session.start.consumers:
        look, old = report.consumers.get(group), consumption.get(group, Consumption())
        if look is None or old.consumed_at is not None:
            continue
        new = _with_look(old, look, since, now)
        if is_ended and look.lag == 0:
            new = new.model_copy(update={"consumed_at": now})
        new = _with_patience(session, old, new, published, now, patience)
        if old.is_awaited and not new.is_awaited:
            warning = _gave_up(group, patience)
            warnings += [] if warning in warnings else [warning]
        if group not in consumption or _differs(old, new):
            consumption[group] = new
    if consumption == session.consumption:
        return session
    update = {"consumption": consumption, "warnings": tuple(warnings)}
    return with_hold(session.model_copy(update=update))


def _with_look(old: Consumption, look: GroupLook, since: int, now: datetime) -> Consumption:
    if look.reason is not None:
        return old.model_copy(update={"reason": look.reason, "checked_at": now})
    lag = None if look.lag is None else look.lag + since
    found = {"state": look.state, "lag": lag, "reason": None, "checked_at": now}
    return old.model_copy(update=found)


def _with_patience(  # noqa: PLR0913, PLR0917 - a group before and after a look, and the rule's limits
    session: Session,
    old: Consumption,
    new: Consumption,
    published: int,
    now: datetime,
    patience: timedelta,
) -> Consumption:
    """Return the group with the time since which it holds the replay up without moving."""
    most = session.start.max_lag
    lag = published if new.lag is None else new.lag
    if most is None or session.state != "running" or lag <= _release(most):
        return new.model_copy(update={"late_since": None, "is_awaited": True})
    has_moved = old.lag is not None and new.lag is not None and new.lag < old.lag
    if has_moved or old.late_since is None:
        return new.model_copy(update={"late_since": now, "is_awaited": True})
    is_awaited = old.is_awaited and now - old.late_since < patience
    return new.model_copy(update={"is_awaited": is_awaited})


def _gave_up(group: str, patience: timedelta) -> str:
    return (
        f"consumer group {group!r} read nothing for {patience.total_seconds():g} s "
        "(REPLAY_MAX_LAG_PATIENCE_SECONDS): max_lag waits for the group no more, until it reads "
        "again. Is its consumer running?"
    )


def _differs(old: Consumption, new: Consumption) -> bool:
    """Whether a look has found more than the time of the look."""
    if old.model_copy(update={"checked_at": new.checked_at}) != new:
        return True
    return (
        old.checked_at is None
        or new.checked_at is None
        or (new.checked_at - old.checked_at).total_seconds() >= CHECKED_SECONDS
    )


def with_growth(session: Session, before: Offsets) -> Session:
    """Return a session whose offsets have grown, with the growth added to each group's lag."""
    if not session.start.consumers:
        return session
    growth = offsets_written(session.offsets) - offsets_written(before)
    if growth <= 0:
        return session
    consumption = {
        group: one
        if one.lag is None or one.consumed_at is not None
        else one.model_copy(update={"lag": one.lag + growth})
        for group, one in session.consumption.items()
    }
    return with_hold(session.model_copy(update={"consumption": consumption}))


# How far ahead


def _release(max_lag: int) -> int:
    return max_lag * RELEASE_PERCENT // 100


def _behind(session: Session) -> tuple[int, str] | None:
    """Return the largest lag, and its group, of the groups that ``max_lag`` waits for."""
    published = offsets_written(session.offsets)
    lags: list[tuple[int, str]] = []
    for group in session.start.consumers:
        known = session.consumption.get(group, Consumption())
        if known.is_awaited:
            lags.append((published if known.lag is None else known.lag, group))
    return max(lags, default=None)


def with_hold(session: Session) -> Session:
    """Return the session with the reason why its shards publish nothing for now, or without."""
    most, hold = session.start.max_lag, None
    behind = _behind(session) if most is not None and session.state == "running" else None
    if most is not None and behind is not None:
        lag, group = behind
        if lag >= most or (session.hold is not None and lag > _release(most)):
            known = session.consumption.get(group, Consumption())
            words = f"consumer group {group!r} is {lag:,} records behind, and max_lag is {most:,}"
            more = " (the group is not seen yet)" if known.state == "unseen" else ""
            hold = f"{words}{more}" if known.reason is None else f"{words} ({known.reason})"
    return session if hold == session.hold else session.model_copy(update={"hold": hold})


def allowance(session: Session, shard: int, published: int) -> int | None:
    """Return how many records a shard may publish now; None: there is no limit.

    ``published`` is what the shard has published, and the session may not have heard of yet. A step
    of the replay is the limit, and a consumer group that is too far behind (`_lag_allowance`).
    """
    limit = _lag_allowance(session, shard, published)
    if session.step_to is None:
        return limit
    known = session.shards[shard].progress.counters.published
    left = session.step_to - session.counters.published + known - published
    return max(0, left if limit is None else min(left, limit))


def _lag_allowance(session: Session, shard: int, published: int) -> int | None:
    """Return how many records a shard may publish before a group is too far behind.

    0 to 1 record is left for each shard if the limit is smaller than their number, so that the
    replay moves.
    """
    most = session.start.max_lag
    behind = None if most is None else _behind(session)
    if most is None or behind is None:
        return None
    if session.hold is not None:
        return 0
    unfinished = sum(
        one.progress.state != "done" and not session.awaits_count(number)
        for number, one in enumerate(session.shards)
    )
    share = -((behind[0] - most) // max(1, unfinished))  # rounded up
    unheard = published - session.shards[shard].progress.counters.published
    return max(0, share - max(0, unheard))
