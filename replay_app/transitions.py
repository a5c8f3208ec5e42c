"""The state machine of a session: pure functions, without I/O and without a clock.

`on_command`, `on_report`, `on_look` and `on_nudge` take a session and an input. They return a
`Step`: the new session and the tokens to send. `replay_app.sessions_agent` carries a step out in
the order that survives crashes (docs/protocol.md, "A step of the sessions agent").
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from replay_app.checkpoints import Token
from replay_app.commands import (
    MAX_SKIPPED,
    Cancel,
    Command,
    NoteVerification,
    Pause,
    Release,
    Resume,
    Retry,
    SetRate,
    Start,
    StepOn,
    Verification,
)
from replay_app.consumption import note_look, with_growth
from replay_app.exceptions import CommandConflict
from replay_app.reports import (
    ACCEPTED,
    MAX_LISTED_FAILURES,
    NEXT_EVENT,
    UNKNOWN_HANDOVER,
    Plan,
    Report,
    ShardId,
    ShardProgress,
    changes_of,
    most_common,
)
from replay_app.sessions import Session, Shard, make_receipt, merge_offsets
from replay_app.states import COMPLETED, TERMINAL, State

SPEED_WINDOW_SECONDS = 5.0
"""The speed is measured over the last one to two of these."""
MAX_SILENCE_FACTOR = 8
"""Each repair waits twice as long as the one before, up to the stall time multiplied by this.
Where many replays share a worker, silence may only mean a long queue, and a repair makes the queue
longer."""
STOP_SLICE = 2**31
"""The slice number of a stop token: higher than every other slice of its epoch. A crash before a
session's publication can leave emit tokens of the same epoch on Kafka. The stop ends them too."""
KEPT_BY_RETRY = ("end", "shards")
"""Members of a plan that a retry does not change."""
COUNTED = ("matched", "untimed", "by_type", "by_topic")
"""Members of a plan that a count brings."""
HANDED_OVER = ("topic_ids", "handover", "handover_time", "live_ids")
"""Members of a plan that a retry, a count and the finish step add to, and never change."""
CLOCKS_DIFFER = timedelta(minutes=5)
"""How far the clocks of two machines may be apart."""
MAX_SESSION_NAMES = 1000
"""Types, and topics, that a session counts by name over all shards: a session must fit into one
record."""


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of one input."""

    session: Session | None
    """The new session. None: the session is forgotten."""
    tokens: tuple[Token, ...] = ()
    urgent: bool = True
    """Publish at once. False: only counters changed, and the publication may wait."""
    changed: bool = True

    @classmethod
    def nothing(cls, session: Session | None) -> Step:
        """Return the step that changes nothing."""
        return cls(session, urgent=False, changed=False)


# Commands


def on_command(session: Session | None, command: Command, now: datetime) -> Step:
    """Apply a command.

    Raises
    ------
    CommandConflict
        When the state does not allow the command. Nothing changes then.

    """
    if isinstance(command, Start):
        return _on_start(session, command, now)
    if session is None:
        msg = f"there is no replay {command.replay_id!r}; start it first"
        raise CommandConflict(msg)
    match command:
        case Pause() | Resume() | Cancel() | Release():
            step = _PLAIN[command.command](session, now)
        case StepOn():
            step = _on_step(session, command, now)
        case Retry():
            step = _on_retry(session, command, now)
        case SetRate(rate=rate):
            step = _on_set_rate(session, rate, now)
        case NoteVerification(verification=verification):
            step = _on_verification(session, verification, now)
    return step


def _on_start(session: Session | None, start: Start, now: datetime) -> Step:
    if session is not None:
        if session.start.canonical() == start.canonical():
            return Step.nothing(session)
        msg = (
            f"replay {start.replay_id!r} exists with another body (state {session.state}); "
            "choose a new replay_id"
        )
        raise CommandConflict(msg)
    session = Session(
        replay_id=start.replay_id,
        start=start,
        rate=start.rate,
        created_at=now,
        updated_at=now,
        progressed_at=now,
        heard_at=now,
    )
    if start.paused:
        return Step(session.model_copy(update={"state": "paused"}))
    return Step(session, first_tokens(session))


def _on_pause(session: Session, now: datetime) -> Step:
    match session.state:
        case "pausing" | "paused":
            return Step.nothing(session)
        case "pending" | "planning" | "waiting" if session.started_at is None:
            return Step(_raise_epoch(session, now, "paused"))
        case "pending" | "planning" | "running" if not session.finishing:
            session = _raise_epoch(session, now, "pausing")
            return _settle(Step(session, _stop_tokens(session)), now)
        case _:
            raise _conflict(session, "pause")


def _on_plain_resume(session: Session, now: datetime) -> Step:
    """Go on to the end, whatever the last step was."""
    resumed = _on_resume(session.model_copy(update={"step_to": None}), now)
    if resumed.changed or session.step_to is None:
        return resumed
    # The replay runs: its step becomes the way to the end. The shards see the newest session.
    return Step(session.model_copy(update={"step_to": None, "updated_at": now}))


def _on_resume(session: Session, now: datetime) -> Step:
    match session.state:
        case "pending" | "planning" | "waiting" | "running":
            return Step.nothing(session)
        case "paused" | "pausing":
            return _settle(_restart(session, now), now)
        case "failed":
            raise _conflict(session, "resume", "use retry")
        case _:
            raise _conflict(session, "resume")


def _on_step(session: Session, step: StepOn, now: datetime) -> Step:
    """Resume a paused replay until it has published some more events."""
    published, target = session.counters.published, step.published + step.events
    if not session.can_step:
        raise _conflict(session, "step", "a step needs the ordering global, and no dry run")
    if session.state != "paused":
        if session.step_to == target:
            return Step.nothing(session)  # the same command again
        goes_on = session.state in {"pending", "planning", "waiting", "running", "pausing"}
        raise _conflict(session, "step", *(["pause it first"] if goes_on else []))
    if step.published != published:
        why = f"it has published {published:,} events, not {step.published:,}: look again"
        raise _conflict(session, "step", why)
    return _on_resume(session.model_copy(update={"step_to": target}), now)


def _on_retry(session: Session, retry: Retry, now: datetime) -> Step:
    skipped = tuple(dict.fromkeys((*session.skipped_events, *retry.skip_events)))
    changes: dict[str, Any] = {
        "retry_on_error": retry.on_error or session.retry_on_error,
        "skipped_events": skipped,
    }
    if len(skipped) > MAX_SKIPPED:
        msg = f"at most {MAX_SKIPPED} events can be skipped by their ids; use on_error skip"
        raise CommandConflict(msg)
    match session.state:
        case "failed":
            update = changes | {
                "accepts_changes": retry.accept_changes,
                "attempt": session.attempt + 1,
                "error": None,
                "ended_at": None,
            }
            unfinished = any(shard.progress.state != "done" for shard in session.shards)
            if unfinished or retry.accept_changes:
                # Planned again first, with the same bound and shards: what is true now counts.
                session = _raise_epoch(session, now, "pending", **update)
                return Step(session, first_tokens(session))
            return _settle(_restart(session, now, **update), now)
        case "pending" | "planning" | "waiting" | "running":
            if (retry.accept_changes and not session.accepts_changes) or any(
                getattr(session, name) != value for name, value in changes.items()
            ):
                why = "only a failed replay takes on_error, skip_events and accept_changes"
                raise _conflict(session, "retry", why)
            return Step.nothing(session)
        case "paused" | "pausing":
            raise _conflict(session, "retry", "use resume")
        case _:
            raise _conflict(session, "retry")


def _on_cancel(session: Session, now: datetime) -> Step:
    match session.state:
        case "cancelling" | "cancelled":
            return Step.nothing(session)
        case "completed" | "completed_with_errors":
            raise _conflict(session, "cancel")
        case "running" if session.finishing:
            raise _conflict(session, "cancel")
        case _:
            session = _raise_epoch(session, now, "cancelling", ended_at=None)
            return _settle(Step(session, _stop_tokens(session)), now)


def _on_release(session: Session, now: datetime) -> Step:
    """Open the gate. The gate's token is woken by the new session, or looks within seconds."""
    if not session.start.after:
        raise _conflict(session, "release", "it waits for no other replay")
    match session.state:
        case "pending" | "planning" | "waiting" if session.waits_for_others:
            update = {"released": True, "reason": None, "updated_at": now}
            return Step(session.model_copy(update=update))
        case "pending" | "planning" | "waiting" if session.released:
            return Step.nothing(session)
        case "running":
            return Step.nothing(session)
        case "paused" | "pausing" if session.waits_for_others:
            raise _conflict(session, "release", "use resume, then release")
        case "failed" if session.waits_for_others:
            raise _conflict(session, "release", "use retry, then release")
        case _:
            raise _conflict(session, "release")


_PLAIN = {
    "pause": _on_pause,
    "resume": _on_plain_resume,
    "cancel": _on_cancel,
    "release": _on_release,
}
"""The verbs that need only the session."""


def _on_set_rate(session: Session, rate: float | None, now: datetime) -> Step:
    if session.state in TERMINAL or session.state == "cancelling":
        raise _conflict(session, "set-rate")
    if session.rate == rate:
        return Step.nothing(session)
    update: dict[str, Any] = {"rate": rate, "updated_at": now}
    if session.state == "running":
        update |= {"speed_marks": ((now, session.counters.read),), "events_per_second": None}
    return Step(session.model_copy(update=update))


def _on_verification(session: Session, verification: Verification, now: datetime) -> Step:
    """Keep the verdict. An ended replay changes in nothing else."""
    if session.state not in COMPLETED:
        raise _conflict(session, "note a verification of", "only a completed replay is verified")
    if verification.at - now > CLOCKS_DIFFER:
        msg = (
            f"the verification of replay {session.replay_id!r} lies in the future "
            f"({verification.at.isoformat()}), and would hide every later one: correct the clock "
            "of its machine, then verify again"
        )
        raise CommandConflict(msg)
    known = session.verification
    if known is not None and known.at >= verification.at:
        return Step.nothing(session)
    return Step(session.model_copy(update={"verification": verification, "updated_at": now}))


def _conflict(session: Session, command: str, remedy: str | None = None) -> CommandConflict:
    if session.finishing and session.state == "running":
        remedy = "its last event is published and its end is being written"
    return CommandConflict(
        f"cannot {command} replay {session.replay_id!r}: it is {session.state}"
        + (f"; {remedy}" if remedy else "")
    )


# Reports


def on_report(session: Session | None, report: Report, now: datetime) -> Step:
    """Apply a worker's report. A late, repeated or unknown report changes nothing."""
    step = Step.nothing(session)
    if session is None or session.state in TERMINAL:
        return step
    is_current = report.epoch == session.epoch
    match report.kind:
        case "plan" if is_current and session.state in {"pending", "planning"}:
            step = _on_plan(session, report, now)
        case "count" if is_current and session.is_counting and report.state != "live":
            step = _on_count(session, report, now)
        case "gate" if is_current and session.state == "waiting":
            step = _on_gate(session, report, now)
        case "gate" if report.state == "done" and session.plan and session.started_at is None:
            step = _on_late_gate(session, now)
        case "finish" if is_current and session.finishing:
            step = _on_finish(session, report, now)
        case "shard" if isinstance(report.shard, int) and report.shard < len(session.shards):
            step = _on_shard(session, report, report.shard, now)
    return step


def _on_plan(session: Session, report: Report, now: datetime) -> Step:
    session = _advance(session, now, state="planning", reason=report.reason)
    if report.state == "failed":
        return Step(_fail(session, now, report.error))
    plan = report.plan
    if plan is None:
        return Step(session)
    session = _with_plan(session, plan, now)
    if session.is_gated and session.started_at is None:
        session = session.model_copy(update={"state": "waiting"})
        return Step(session, first_tokens(session))
    return _settle(_run(session, now), now)


def _with_plan(session: Session, plan: Plan, now: datetime) -> Session:
    """Return the session with a plan; after a retry the bound and the shards stay as they were."""
    warnings, old, shards = plan.warnings, session.plan, session.shards
    kept_warnings = [one for one in session.warnings if one.startswith(ACCEPTED)]
    warnings = (*kept_warnings, *(one for one in warnings if one not in kept_warnings))
    has_changed = session.has_changed
    if old is None:
        shards = tuple(Shard(heard_at=now) for _ in plan.shards)
    else:
        kept: dict[str, Any] = {name: getattr(old, name) for name in KEPT_BY_RETRY}
        is_other = session.counters.published > 0 and changes_of(old.source, plan.source)
        has_changed = has_changed or bool(is_other)
        # A retry may be the first attempt that writes dead letters.
        kept["dead_letters"] = old.dead_letters or plan.dead_letters
        if plan.matched is None and plan.counted == "running":  # until the events are counted again
            kept |= {name: getattr(old, name) for name in ("matched", "by_type", "by_topic")}
        plan = plan.model_copy(update=kept)
        plan = keep_handover(old, plan)
        session = _note_total(session, old.matched)
    update = {"plan": plan, "warnings": warnings, "shards": shards, "has_changed": has_changed}
    return _note_total(session.model_copy(update=update), plan.matched)


def keep_handover(old: Plan, new: Plan) -> Plan:
    """Return the new plan with what the old one knows of topic ids and of the hand-over.

    A destination topic that was deleted and made again keeps its old id here: the offsets that the
    session lists are not those of the new topic.
    """
    known = {topic: offsets for topic, offsets in old.handover.items() if offsets is not None}
    return new.model_copy(
        update={
            "topic_ids": new.topic_ids | old.topic_ids,
            "handover": old.handover | new.handover | known,
            "handover_time": old.handover_time or new.handover_time,
            "live_ids": new.live_ids | old.live_ids,
        }
    )


def _forget_unknown(session: Session) -> Session:
    """Return the session without warnings of an unknown hand-over, if it is known now."""
    if not session.handover or None in session.handover.values():
        return session
    warnings = (one for one in session.warnings if not one.startswith(UNKNOWN_HANDOVER))
    return session.model_copy(update={"warnings": tuple(warnings)})


def _note_total(session: Session, total: int | None) -> Session:
    """Return the session with a count of the matching events, and with a warning if it differs."""
    found = (*session.planned_matches, total)
    totals = tuple(dict.fromkeys(one for one in found if one is not None))
    update: dict[str, Any] = {"planned_matches": totals}
    if len(totals) > 1:
        numbers = ", then ".join(f"{one:,}" for one in totals)
        change = f"the plan counted {numbers} events: the store has changed between two attempts"
        update["warnings"] = (*(w for w in session.warnings if w != change), change)
    return session.model_copy(update=update)


def _on_count(session: Session, report: Report, now: datetime) -> Step:
    """Add the counts, which were made beside the shards, to the plan."""
    plan, counted = session.plan, report.plan
    update: dict[str, Any] = {"counted": "beside"}
    warnings: tuple[str, ...] = (f"the matching events could not be counted: {report.error}",)
    total = None
    if plan is not None and counted is not None:
        total, warnings = counted.matched, counted.warnings
        update |= {name: getattr(counted, name) for name in COUNTED}
        # The partitions of the time before the first event stay: topics may grow meanwhile.
        update["partitions"] = counted.partitions | plan.partitions
        kept = keep_handover(plan, counted)
        update |= {name: getattr(kept, name) for name in HANDED_OVER}
    more = tuple(warning for warning in warnings if warning not in session.warnings)
    session = session.model_copy(
        update={
            "plan": plan and plan.model_copy(update=update),
            "warnings": (*session.warnings, *more),
            "updated_at": now,
        }
    )
    return Step(_note_total(_forget_unknown(session), total))


def _on_gate(session: Session, report: Report, now: datetime) -> Step:
    session = _advance(session, now, reason=report.reason)
    if report.state == "failed":
        return Step(_fail(session, now, report.error))
    return _settle(_run(session, now), now) if report.state == "done" else Step(session)


def _on_late_gate(session: Session, now: datetime) -> Step:
    """Note, in any state, that the gate is open and the begin records are written.

    A later resume then does not write the begin records again.
    """
    session = session.model_copy(update={"started_at": now, "updated_at": now})
    return _settle(_restart(session, now), now) if session.state == "waiting" else Step(session)


def _run(session: Session, now: datetime) -> Step:
    session = _advance(session, now, state="running", reason=None)
    if session.started_at is None:
        session = session.model_copy(update={"started_at": now})
    session = _without_outrun_count(session)
    return Step(session, first_tokens(session))


def _without_outrun_count(session: Session) -> Session:
    """Return the session without its count, if the shards have read all before the count was there.

    The counters of the shards are the count then (`_end`).
    """
    return _without_count(session) if session.has_outrun_count else session


def _without_count(session: Session) -> Session:
    if session.plan is None or session.plan.counted != "running":
        return session
    return session.model_copy(update={"plan": session.plan.model_copy(update={"counted": "after"})})


def _on_shard(session: Session, report: Report, number: int, now: datetime) -> Step:
    before, old, progress = session, session.shards[number], report.progress
    if progress is None or (report.epoch, report.slice) <= (old.epoch, old.slice):
        return Step.nothing(session)
    shard = Shard(
        epoch=report.epoch,
        slice=report.slice,
        progress=_trim(progress, len(session.shards)),
        worker=report.worker or old.worker,
        heard_at=now,
    )
    update: dict[str, Any] = {
        "shards": (*session.shards[:number], shard, *session.shards[number + 1 :]),
        "offsets": merge_offsets(session.offsets, progress.offsets),
        "updated_at": now,
        "heard_at": now,
    }
    if (progress.counters, progress.state) != (old.progress.counters, old.progress.state):
        update |= {"progressed_at": now, "stalled": False}
        if session.state == "running":
            read = session.counters.read + progress.counters.read - old.progress.counters.read
            since = old.heard_at or session.heard_at
            update |= _measure_speed(session, since, read, now)
    if session.state == "running":
        update["reason"] = progress.reason or report.reason
    more = tuple(warning for warning in report.warnings if warning not in session.warnings)
    session = session.model_copy(update=update | {"warnings": (*session.warnings, *more)})
    session = _without_outrun_count(with_growth(session, before.offsets))
    # A failure of an older epoch decides nothing: the shard has a newer token.
    failed = progress.state == "failed" and report.epoch == session.epoch
    if failed and session.state in {"running", "pausing"}:
        session = _fail(session, now, progress.error)
        session = session.model_copy(update={"epoch": session.epoch + 1})
        return Step(session, _stop_tokens(session))
    if session.has_made_step:
        session = _raise_epoch(session, now, "pausing")
        return _settle(Step(session, _stop_tokens(session)), now)
    shown = ("stalled", "reason", "hold", "is_counting")
    is_visible = bool(more) or any(
        getattr(before, name) != getattr(session, name) for name in shown
    )
    return _settle(Step(session, urgent=is_visible), now)


def _trim(progress: ShardProgress, shards: int) -> ShardProgress:
    """Return a shard's progress, small enough for a session with this number of shards."""
    names = max(10, MAX_SESSION_NAMES // shards)
    return progress.model_copy(
        update={
            "offsets": {},
            "failures": progress.failures[: max(1, MAX_LISTED_FAILURES // shards)],
            "by_type": most_common(progress.by_type, names),
            "by_topic": most_common(progress.by_topic, names),
        }
    )


def _on_finish(session: Session, report: Report, now: datetime) -> Step:
    if report.state == "live":
        return Step(_advance(session, now, reason=report.reason))
    if report.state == "failed" and session.state != "cancelling":
        return Step(_fail(session, now, report.error))
    if report.state == "failed":  # a cancelled replay publishes nothing more in any case
        warning = f"the cancellation could not be announced: {report.error}"
        session = session.model_copy(update={"warnings": (*session.warnings, warning)})
    more = tuple(one for one in report.warnings if one not in session.warnings)
    update: dict[str, Any] = {"warnings": (*session.warnings, *more)}
    if session.plan is not None and report.plan is not None:  # it has further live topics
        kept = keep_handover(session.plan, report.plan)
        found = {name: getattr(kept, name) for name in HANDED_OVER}
        update["plan"] = session.plan.model_copy(update=found)
    return Step(_end(_forget_unknown(session.model_copy(update=update)), now, report))


def _settle(step: Step, now: datetime) -> Step:
    """Return the step that follows if every shard has answered; otherwise ``step``."""
    session = step.session
    if session is None or session.finishing:
        return step
    done = all(shard.progress.state == "done" for shard in session.shards)
    if session.state in {"running", "pausing"} and done:
        # A pause that comes after the last event has nothing left to stop.
        session = _advance(session, now, state="running", finishing=True, reason=None)
        session = _without_count(session)
        return Step(session, first_tokens(session))
    if session.state not in {"pausing", "cancelling"} or any(
        _must_answer(session, shard) for shard in session.shards
    ):
        return step
    if session.state == "pausing":
        return Step(_advance(session, now, state="paused", reason=None))
    if session.start.control_records and session.plan is not None:
        # The begin records may already be in the topics: write the cancelled records in any case.
        session = _advance(session, now, finishing=True)
        return Step(session, first_tokens(session))
    return Step(_end(session, now))


def _must_answer(session: Session, shard: Shard) -> bool:
    """Whether the session waits for a report of a shard, in its present epoch."""
    if shard.progress.state == "done":
        return False
    return (
        session.state == "running" or shard.progress.state == "live" or shard.epoch < session.epoch
    )


# Looks at consumers


def on_look(session: Session | None, report: Report, now: datetime, patience: timedelta) -> Step:
    """Apply what a look at the consumer groups has found, in any state, also after the end.

    ``patience`` is how long ``max_lag`` waits for a group that does not move.
    """
    looked = None if session is None else note_look(session, report, now, patience)
    return Step.nothing(session) if looked is session else Step(looked)


# Nudges


def on_nudge(
    session: Session | None,
    now: datetime,
    stall: timedelta,
    retention: timedelta,
    reason: str | None = None,
) -> Step:
    """Apply the passing of time: repair a silent replay, forget an old session.

    ``reason`` is why a worker cannot begin with the replay's work, if one says so.
    """
    if session is None or session.state == "paused":
        return Step.nothing(session)
    if session.state in TERMINAL or session.state == "failed":
        old = now - session.updated_at >= retention
        return Step(None, _forget_tokens(session)) if old else Step.nothing(session)
    is_paced = session.reason is not None and session.reason.startswith(NEXT_EVENT)
    may_stall = session.state != "waiting" and not is_paced
    stalled = may_stall and now - session.progressed_at >= stall
    silence = now - _last_heard(session)
    is_told = reason is not None and reason != session.reason
    if is_told:
        session = session.model_copy(update={"reason": reason, "updated_at": now})
    factor = min(2**session.repairs, MAX_SILENCE_FACTOR)
    if session.state == "waiting" and session.waits_for_others:
        factor = MAX_SILENCE_FACTOR  # a closed gate reports seldom
    if silence < stall * factor:
        if stalled == session.stalled:
            return Step(session) if is_told else Step.nothing(session)
        return Step(_flag_stall(session, now, stalled=stalled))
    session = _flag_stall(session, now, stalled=stalled).model_copy(
        update={
            "epoch": session.epoch + 1,
            "repairs": session.repairs + 1,
            "heard_at": now,
            "shards": _hear_shards(session, now),
            "reason": reason
            or f"no worker was heard for {silence.total_seconds():.0f} s; the work was "
            "sent out again. Are enough workers running?",
        }
    )
    return Step(session, first_tokens(session))


def _flag_stall(session: Session, now: datetime, *, stalled: bool) -> Session:
    speed = None if stalled else session.events_per_second
    return session.model_copy(
        update={"stalled": stalled, "updated_at": now, "events_per_second": speed}
    )


def _last_heard(session: Session) -> datetime:
    """Return when the session last heard of its present step, or of its most silent shard."""
    if session.state not in {"running", "pausing", "cancelling"} or session.finishing:
        return session.heard_at
    return min(
        (
            shard.heard_at or session.heard_at
            for shard in session.shards
            if _must_answer(session, shard)
        ),
        default=session.heard_at,
    )


# Sessions


def _advance(session: Session, now: datetime, **update: Any) -> Session:
    """Return the session with new fields, and with the times of a change of state."""
    times: dict[str, Any] = {
        "updated_at": now,
        "progressed_at": now,
        "heard_at": now,
        "stalled": False,
        "shards": _hear_shards(session, now),
    }
    state = update.get("state", session.state)
    if state != "running":
        times |= {"events_per_second": None, "speed_marks": (), "hold": None}
    return session.model_copy(update=times | update)


def _hear_shards(session: Session, now: datetime) -> tuple[Shard, ...]:
    """Return the shards, each with ``heard_at`` set to now: they are about to get tokens."""
    return tuple(shard.model_copy(update={"heard_at": now}) for shard in session.shards)


def _raise_epoch(session: Session, now: datetime, state: State, **update: Any) -> Session:
    """Return the session in a new state and epoch, in which every shard must answer again."""
    return _advance(session, now, state=state, epoch=session.epoch + 1, reason=None, **update)


def _measure_speed(session: Session, since: datetime, read: int, now: datetime) -> dict[str, Any]:
    """Return the fields of the speed, now that ``read`` events are read over all shards.

    Without marks, the speed counts from ``since``: when the shard was last heard of. The change of
    state may be much older, because the store may need time for the first event. A throttled shard
    publishes in bursts, so the speed is never more than the rate.
    """
    marks = session.speed_marks or ((since, session.counters.read),)
    if (now - marks[-1][0]).total_seconds() >= SPEED_WINDOW_SECONDS:
        marks = (marks[-1], (now, read))
    begin, read_before = marks[0]
    speed = (read - read_before) / max((now - begin).total_seconds(), 1e-3)
    if session.rate is not None:
        speed = min(speed, session.rate)
    return {"speed_marks": marks, "events_per_second": speed}


def _fail(session: Session, now: datetime, error: str | None) -> Session:
    return _advance(
        session,
        now,
        state="failed",
        finishing=False,
        error=error or "the worker gave no reason",
        reason=None,
        ended_at=now,
    )


def _end(session: Session, now: datetime, finish: Report | None = None) -> Session:
    """Return the session in its terminal state, with the receipt.

    ``finish`` is the report of the finish step, if there was one.
    """
    if session.state == "cancelling":
        state = "cancelled"
    elif any(shard.progress.failed for shard in session.shards):
        state = "completed_with_errors"
    else:
        state = "completed"
    receipt, plan = make_receipt(session, now, finish), session.plan
    if state != "cancelled" and plan is not None and plan.counted == "after":
        if plan.matched is None:
            update = {name: getattr(receipt, name) for name in ("by_type", "by_topic")}
            plan = plan.model_copy(update=update | {"matched": receipt.counters.read})
        session = session.model_copy(update={"plan": plan})
    return _advance(
        session,
        now,
        state=state,
        reason=None,
        finishing=False,
        ended_at=now,
        receipt=receipt,
    )


def _restart(session: Session, now: datetime, **update: Any) -> Step:
    """Start every unfinished step again, in a higher epoch."""
    plan = session.plan
    state: State = "pending"
    if plan is not None:
        state = "waiting" if session.is_gated and session.started_at is None else "running"
    session = _raise_epoch(session, now, state, **update)
    if state == "running":
        return _run(session, now)
    return Step(session, first_tokens(session))


# Tokens


def _token(session: Session, kind: Any, shard: ShardId, **fields: Any) -> Token:
    return Token(replay_id=session.replay_id, shard=shard, epoch=session.epoch, kind=kind, **fields)


def first_tokens(session: Session) -> tuple[Token, ...]:
    """Return the tokens that start what the session's state waits for."""
    if session.finishing:
        outcome = "cancelled" if session.state == "cancelling" else "end"
        return (_token(session, "finish", "finish", outcome=outcome),)
    match session.state:
        case "pending" | "planning":
            return (_token(session, "plan", "plan"),)
        case "waiting":
            return (_token(session, "gate", "gate"), *_count_tokens(session))
        case "running":
            return (*_shard_tokens(session, "emit"), *_count_tokens(session))
        case "pausing" | "cancelling":
            return _stop_tokens(session)
        case _:
            return ()


def _count_tokens(session: Session) -> tuple[Token, ...]:
    return (_token(session, "count", "count"),) if session.is_counting else ()


def _shard_tokens(
    session: Session, kind: Literal["emit", "stop"], **fields: Any
) -> tuple[Token, ...]:
    """Return a token for each unfinished shard."""
    return tuple(
        _token(session, kind, number, **fields)
        for number, shard in enumerate(session.shards)
        if shard.progress.state != "done"
    )


def _stop_tokens(session: Session) -> tuple[Token, ...]:
    return _shard_tokens(session, "stop", slice=STOP_SLICE)


def _forget_tokens(session: Session) -> tuple[Token, ...]:
    parts: tuple[ShardId, ...] = ("plan", "count", "gate", "finish", *range(len(session.shards)))
    return tuple(_token(session, "forget", part) for part in parts)
