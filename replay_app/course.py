"""The course of a replay: how its history and its series grow with each step of the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay_app.commands import Command, NoteVerification, Retry, Start, StepOn
from replay_app.history import MAX_BY, MAX_DETAIL, Change, add_change
from replay_app.reports import shorten
from replay_app.series import add_point

if TYPE_CHECKING:
    from datetime import datetime

    from replay_app.sessions import Session


def note_course(
    before: Session | None, after: Session, command: Command | None, now: datetime
) -> Session:
    """Return the session of a step with what the step adds to its history and its series.

    ``command`` is what the step carries out; None for a report and for the watchdog.
    """
    is_change = before is None or before.state != after.state
    if is_change or command is not None:
        after = _with_change(after, command, now)
    if after.plan is None:
        return after
    waits = (shard.progress.waits for shard in after.shards)
    # A change of the state is always a point: else a pause would look like slow work.
    series = add_point(after.series, now, after.counters, waits, must=is_change)
    return after.model_copy(update={"series": series})


def _with_change(session: Session, command: Command | None, now: datetime) -> Session:
    change = Change(
        at=now,
        command=command and command.command,
        by=shorten(command.requested_by, MAX_BY) if command and command.requested_by else None,
        state=session.state,
        rate=session.rate,
        detail=shorten(_detail(session, command), MAX_DETAIL) or None,
    )
    changes = add_change(session.history, change)
    dropped = session.history_dropped + len(session.history) + 1 - len(changes)
    return session.model_copy(update={"history": changes, "history_dropped": dropped})


def _detail(session: Session, command: Command | None) -> str:
    """Return what the command asked for, or why the state has changed."""
    match command:
        case StepOn():
            return f"{command.events:,} events"
        case Retry():
            asked = (
                command.on_error and f"on_error {command.on_error}",
                command.skip_events and f"skip {', '.join(command.skip_events)}",
                command.accept_changes and "accept changes",
            )
            return "; ".join(one for one in asked if one)
        case NoteVerification():
            return command.verification.verdict
        case Start(reason=str(reason)):
            return reason
        case _:
            return session.error or session.reason or ""
