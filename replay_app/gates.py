"""The gate: for which other replays a replay still waits, and which of them block the replay."""

from __future__ import annotations

from collections.abc import Mapping

from replay_app.commands import Start
from replay_app.exceptions import CommandConflict, ReplayFailed
from replay_app.reports import few
from replay_app.sessions import Session
from replay_app.states import COMPLETED, TERMINAL

UNKNOWN_SECONDS = 60.0
"""How long a replay waits for a replay that is not known. The command that starts the other one may
still be on its way."""
REMEDIES = {
    "failed": "retry that replay, or release this one",
    "cancelled": "a cancelled replay never completes: release this one, or cancel this one",
}
"""What to do about a parent that blocks its children, by the parent's state."""
LOOK_SECONDS = 60.0
"""Longest pause between two looks at a gate whose replays are known and have not completed. Every
change of their states wakes the gate. A chain may have a thousand closed gates, and each look is a
slice with a commit."""
SOON_SECONDS = 5.0
"""Pause between two looks at any other closed gate."""
AT_ONCE_SECONDS = 0.2
"""Pause before the next look if the reason has changed since the look before."""
BLOCKED, WAITING, UNREAD = (
    "blocked by replay ",
    "waiting for replay ",
    "waiting until the consumers have read replay ",
)
"""How the reasons of a closed gate begin."""
MAX_NAMED = 5
"""Replays of each kind that a reason names."""


def gate_reason(
    session: Session, sessions: Mapping[str, Session], unknown_seconds: float
) -> str | None:
    """Return why the gate is closed; None if it is open.

    The gate is open once every replay of ``after`` has completed, and is consumed where ``after``
    asks for that; and once the session is released. A replay of ``after`` that has failed or is
    cancelled blocks this one: the gate stays closed until a person acts.

    ``sessions`` are the newest sessions. ``unknown_seconds`` is how long a replay of ``after`` has
    been unknown.

    Raises
    ------
    ReplayFailed
        When a replay of ``after`` is still unknown after UNKNOWN_SECONDS, or is to be consumed and
        names no consumers.

    """
    if session.released:
        return None
    blocked: list[str] = []
    waiting: list[str] = []
    unread: list[str] = []
    for parent in session.start.parents:
        name, other = f"{parent.replay!r}", sessions.get(parent.replay)
        if other is None:
            if unknown_seconds >= UNKNOWN_SECONDS:
                raise ReplayFailed(_unknown(name))
            waiting.append(f"{name} (unknown)")
            continue
        if parent.consumed and not other.start.consumers:
            raise ReplayFailed(_without_consumers(name))
        if other.state in REMEDIES:
            blocked.append(f"{name} ({other.state}: {REMEDIES[other.state]})")
        elif other.state not in COMPLETED:
            waiting.append(f"{name} ({other.state})")
        elif parent.consumed and not other.is_consumed:
            unread.append(f"{name} ({_unread_groups(other)})")
    parts = (
        blocked and f"{BLOCKED}{few(blocked, MAX_NAMED)}",
        waiting and f"{WAITING}{few(waiting, MAX_NAMED)}",
        unread and f"{UNREAD}{few(unread, MAX_NAMED)}",
    )
    return "; ".join(part for part in parts if part) or None


def next_look(
    session: Session, sessions: Mapping[str, Session], said: str | None, stall_seconds: float
) -> float:
    """Return the seconds after which a closed gate is looked at again, unless somebody wakes it.

    ``said`` is the reason of the look before. A change since then must not wait for the next one.
    """
    if said is None or not said.startswith((BLOCKED, WAITING, UNREAD)):
        return SOON_SECONDS  # the gate is open, and something else fails: not too often
    try:
        reason = gate_reason(session, sessions, 0.0)
    except ReplayFailed:
        return AT_ONCE_SECONDS
    if reason != said:
        return AT_ONCE_SECONDS
    others = [sessions.get(parent.replay) for parent in session.start.parents]
    are_on_their_way = all(other and other.state not in COMPLETED for other in others)
    # The watchdog takes a longer silence for a lost token, see `transitions.on_nudge`.
    return min(LOOK_SECONDS, 2 * stall_seconds) if are_on_their_way else SOON_SECONDS


def _unread_groups(parent: Session) -> str:
    """Return the groups that have not read all of a completed replay, each with its lag.

    A group of which the last look found nothing comes with the reason: what is known is old, and
    without an act of a person the gate may stay closed.
    """
    found = []
    for group in parent.start.consumers:
        known = parent.consumption.get(group)
        if known is not None and known.consumed_at is None and known.reason is not None:
            found.append(f"group {group!r}: {known.reason}")
        elif known is None or known.state == "unseen":
            found.append(f"group {group!r} is not seen yet")
        elif known.consumed_at is None:
            lag = "an unknown number of" if known.lag is None else f"{known.lag:,}"
            found.append(f"group {group!r} is {lag} records behind")
    return few(found, MAX_NAMED)


def _unknown(name: str) -> str:
    return (
        f"replay {name}, which this one waits for, is not known: it was never started, or it is "
        "forgotten (REPLAY_RETENTION_DAYS). Start it, then retry this one; or retry this one and "
        "release it"
    )


def _without_consumers(name: str) -> str:
    return (
        f"replay {name}, which is to be consumed before this one begins, names no consumers: "
        "nobody can tell when it is consumed. Retry this one and release it; or start this one "
        "under a new id, without `consumed`"
    )


def require_possible(start: Start, sessions: Mapping[str, Session]) -> None:
    """Refuse a start whose gate could never open, as far as the sessions tell.

    Raises
    ------
    CommandConflict
        When a replay is to be consumed that names no consumers, or when a replay of ``after`` waits
        for this one.

    """
    if (circle := _circle(start, sessions)) is not None:
        msg = (
            f"after: these replays would wait for each other for ever: {_path(circle)}; "
            "cancel or release one of them, or leave it out"
        )
        raise CommandConflict(msg)
    for parent in start.parents:
        other = sessions.get(parent.replay)
        if parent.consumed and other is not None and not other.start.consumers:
            msg = (
                f"after: replay {parent.replay!r} names no consumers, so nobody can tell when it "
                "is consumed: leave `consumed` out"
            )
            raise CommandConflict(msg)


def _path(names: list[str]) -> str:
    more = len(names) - 2 * MAX_NAMED
    some = names if more <= 0 else [*names[:MAX_NAMED], f"{more} more", *names[-MAX_NAMED:]]
    return " -> ".join(some)


def _circle(start: Start, sessions: Mapping[str, Session]) -> list[str] | None:
    """Return the replays from the new one back to itself, each waiting for the next; else None."""
    paths: dict[str, str] = {}
    """By replay: the one that waits for it."""
    open_ = [(parent.replay, start.replay_id) for parent in start.parents]
    while open_:
        name, child = open_.pop()
        if name in paths:
            continue
        paths[name] = child
        if name == start.replay_id:
            circle = [name]
            while (name := paths[name]) != start.replay_id:
                circle.append(name)
            return [start.replay_id, *reversed(circle)]
        other = sessions.get(name)
        if other is not None and other.waits_for_others and other.state not in TERMINAL:
            open_ += [(parent.replay, name) for parent in other.start.parents]
    return None
