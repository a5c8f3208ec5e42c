"""The session of a replay as a pure state machine (design section 5).

`on_command`, `on_progress` and `on_nudge` take a session and an input and return a `Step`: the
new session and the tokens to send. No I/O, no clock; the agent around it keeps the order that
survives crashes.

::

    pending -> planning -> [waiting] -> running -> completed | completed_with_errors | failed
    running -> pausing -> paused -> running;  any but terminal -> [cancelling] -> cancelled
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, computed_field

from replay_app.checkpoints import Token
from replay_app.commands import Cancel, Command, Pause, Resume, Retry, SetRate, Start, Verb
from replay_app.exceptions import CommandConflict
from replay_app.progress import (
    MAX_INTERNAL_BYTES,
    MAX_LISTED_FAILURES,
    Counters,
    Failure,
    Offsets,
    Plan,
    Progress,
    ShardId,
    ShardPlan,
    ShardProgress,
    listed_offsets,
    most_common,
)

State = Literal[
    "pending",
    "planning",
    "waiting",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "cancelled",
    "completed",
    "completed_with_errors",
    "failed",
]
TERMINAL: frozenset[State] = frozenset({"completed", "completed_with_errors", "cancelled"})
SETTLED: frozenset[State] = TERMINAL | {"failed", "paused"}
"""States in which no worker has anything to do."""
VERBS_OF_STATE: dict[State, tuple[Verb, ...]] = {
    "pending": ("pause", "cancel", "set-rate"),
    "planning": ("pause", "cancel", "set-rate"),
    "waiting": ("pause", "cancel", "set-rate"),
    "running": ("pause", "cancel", "set-rate"),
    "pausing": ("resume", "cancel", "set-rate"),
    "paused": ("resume", "cancel", "set-rate"),
    "cancelling": (),
    "cancelled": (),
    "completed": (),
    "completed_with_errors": (),
    "failed": ("cancel", "retry", "set-rate"),
}
"""The commands that change a replay in each state."""
VERBS_AT_THE_END: tuple[Verb, ...] = ("set-rate",)
"""The commands that change a running replay whose last event is published."""
SMOOTHING_SECONDS = 5.0
"""Over about so long a time the shown events per second are averaged."""
MAX_PATIENCE = 8
"""Each repair waits twice as long as the one before it, up to so many times the stall time: where
many replays share a worker, silence may only mean a long queue, and a repair makes it longer."""
STOP_SLICE = 2**31
"""The slice of a stop: behind all others of its epoch. A step whose session was never published,
because of a crash, may have sent out an emit chain of the same epoch; the stop ends that too."""
MAX_NAMES = 1000
"""Types, and topics, counted one by one over all shards: a session must fit into one record."""
SHORT_LIST = 20
"""Names counted one by one over all shards, in a session that would be larger."""


_Counted = TypeVar("_Counted", "Plan", "ShardProgress", "Receipt")


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Shard(_Record):
    """What the session knows of one shard."""

    epoch: int = 0
    slice: int = 0
    progress: ShardProgress = Field(default_factory=ShardProgress)
    """Without its offsets, which the session keeps for all shards together."""
    heard_at: datetime | None = None
    """When a worker was heard of last about this shard, or asked."""


class Receipt(_Record):
    """The final account of a replay."""

    counters: Counters
    by_type: dict[str, int]
    by_topic: dict[str, int]
    bytes: int
    offsets: Offsets
    failures: tuple[Failure, ...]
    seconds: float
    """From the first token to the end, pauses included."""


class Session(_Record):
    """The whole state of one replay; the row in the table and the record on ``replay.status``."""

    replay_id: str
    revision: int = 0
    """Grows by one with each publication on ``replay.status``."""
    state: State = "pending"
    desired: Literal["running", "paused", "cancelled"] = "running"
    """What was asked for last; ``state`` is what has been reached."""
    epoch: int = 1
    attempt: int = 1
    """1, and one more for each retry; the header ``replay-attempt``."""
    start: Start
    rate: float | None = None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    progressed_at: datetime
    """When a counter moved or the state changed last."""
    heard_at: datetime
    """When a worker was heard of last."""
    draft: tuple[ShardPlan, ...] = ()
    """The shards, while events are still being counted: their owners open their readers then."""
    plan: Plan | None = None
    shards: tuple[Shard, ...] = ()
    offsets: Offsets = Field(default_factory=dict)
    finishing: bool = False
    """All shards are done and the finish token is out."""
    stalled: bool = False
    repairs: int = 0
    """How often the watchdog started the chain again."""
    reason: str | None = None
    """Why it is not moving, while it is not."""
    error: str | None = None
    """Why it failed."""
    warnings: tuple[str, ...] = ()
    receipt: Receipt | None = None
    events_per_second: float | None = None
    """Events read, averaged over the last seconds; None while nothing moves."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def counters(self) -> Counters:
        """The sum over the shards."""
        return sum((shard.progress.counters for shard in self.shards), Counters())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def matched(self) -> int | None:
        """How many events match; None when unknown."""
        return self.plan.matched if self.plan else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def percent(self) -> float | None:
        """Read of matched, 0 to 100; None when unknown."""
        if self.state == "completed":
            return 100.0
        if not self.matched:
            return None
        return round(min(100.0, 100 * self.counters.read / self.matched), 1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present pace; None when unknown."""
        if self.matched is None or not self.events_per_second or self.state != "running":
            return None
        return round(max(0, self.matched - self.counters.read) / self.events_per_second, 1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verbs(self) -> tuple[Verb, ...]:
        """The commands that would change this replay now."""
        if self.state == "running" and self.finishing:
            return VERBS_AT_THE_END
        return VERBS_OF_STATE[self.state]

    def has_heard(self, report: Progress) -> bool:
        """Whether a worker's report is in here already, or is too old to matter."""
        if self.state in TERMINAL:
            return True
        if not isinstance(report.shard, int):
            return report.epoch < self.epoch
        if report.shard >= len(self.shards):
            return False
        shard = self.shards[report.shard]
        return (report.epoch, report.slice) <= (shard.epoch, shard.slice)

    def has_sent(self, token: Token) -> bool:
        """Whether this is the session that sent a token, or a later one."""
        if self.epoch != token.epoch:
            return self.epoch > token.epoch
        match token.kind:
            case "gate":
                return self.plan is not None
            case "emit":
                return self.state not in {"pending", "planning", "waiting"}
            case "finish":
                return self.finishing or self.state in TERMINAL
            case _:
                return True

    def wants(self, token: Token) -> bool:
        """Whether a token that it, or an earlier session, `has_sent` is still to be run.

        A step that a crash kept from being published may have sent out an emit chain of an epoch
        which the session then reached in another way.
        """
        return self.epoch == token.epoch and (token.kind != "emit" or self.state == "running")

    @property
    def is_gated(self) -> bool:
        """Whether something comes between the plan and the first event."""
        return bool(self.start.after or self.start.control_records)

    @property
    def orders(self) -> tuple[Any, ...]:
        """What a worker must hear of at once; counters are none of it."""
        return self.state, self.epoch, self.rate, self.draft

    def encode(self) -> bytes:
        """Return the record's value on Kafka."""
        return self.model_dump_json().encode()


def fitted(session: Session) -> tuple[Session, bytes]:
    """Return the session and its record; without its long lists, if it is too large for one."""
    record = session.encode()
    if len(record) <= MAX_INTERNAL_BYTES:
        return session, record

    def short(counted: _Counted, names: int = SHORT_LIST) -> _Counted:
        lists = {"by_type": counted.by_type, "by_topic": counted.by_topic}
        return counted.model_copy(
            update={name: most_common(counts, names) for name, counts in lists.items()}
        )

    warning = "too many types, topics and partitions to list them all: the lists are shortened"
    session = session.model_copy(
        update={
            "plan": session.plan and short(session.plan),
            "shards": tuple(
                shard.model_copy(
                    update={"progress": short(shard.progress, SHORT_LIST // len(session.shards))}
                )
                for shard in session.shards
            ),
            "offsets": {},
            "receipt": session.receipt
            and short(session.receipt).model_copy(update={"offsets": {}}),
            "warnings": (*(w for w in session.warnings if w != warning), warning),
        }
    )
    return session, session.encode()


def decode_session(value: bytes | None) -> Session | None:
    """Return the session of a row or status record; None for a tombstone."""
    return None if value is None else Session.model_validate_json(value)


@dataclass(frozen=True, slots=True)
class Step:
    """What one input does."""

    session: Session | None
    """The new session; None: it is forgotten."""
    tokens: tuple[Token, ...] = ()
    urgent: bool = True
    """Publish now; False: counters only, which may be coalesced."""
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
        When the state does not allow it; nothing changes then.

    """
    if isinstance(command, Start):
        return _on_start(session, command, now)
    if session is None:
        msg = f"there is no replay {command.replay_id!r}; start it first"
        raise CommandConflict(msg)
    match command:
        case Pause():
            return _on_pause(session, now)
        case Resume():
            return _on_resume(session, now)
        case Cancel():
            return _on_cancel(session, now)
        case Retry():
            return _on_retry(session, now)
        case SetRate(rate=rate):
            return _on_set_rate(session, rate, now)


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
    return Step(session, _chain(session))


def _on_pause(session: Session, now: datetime) -> Step:
    match session.state:
        case "pausing" | "paused":
            return Step.nothing(session)
        case "pending" | "planning" | "waiting":
            return Step(_asked(session, now, "paused", desired="paused"))
        case "running" if not session.finishing:
            session = _asked(session, now, "pausing", desired="paused")
            return _settle(Step(session, _stops(session)), now)
        case _:
            raise _conflict(session, "pause")


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


def _on_retry(session: Session, now: datetime) -> Step:
    match session.state:
        case "failed":
            step = _restart(session, now, attempt=session.attempt + 1, error=None, ended_at=None)
            return _settle(step, now)
        case "pending" | "planning" | "waiting" | "running":
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
            session = _asked(session, now, "cancelling", desired="cancelled", ended_at=None)
            return _settle(Step(session, _stops(session)), now)


def _on_set_rate(session: Session, rate: float | None, now: datetime) -> Step:
    if session.state in TERMINAL or session.state == "cancelling":
        raise _conflict(session, "set-rate")
    if session.rate == rate:
        return Step.nothing(session)
    return Step(session.model_copy(update={"rate": rate, "updated_at": now}))


def _asked(session: Session, now: datetime, state: State, **update: Any) -> Session:
    """Return the session under a new epoch, in which every shard has to answer anew."""
    return _moved(session, now, state=state, epoch=_up(session), reason=None, **update)


def _conflict(session: Session, command: str, remedy: str | None = None) -> CommandConflict:
    if session.finishing and session.state == "running":
        remedy = "its last event is published and its end is being written"
    return CommandConflict(
        f"cannot {command} replay {session.replay_id!r}: it is {session.state}"
        + (f"; {remedy}" if remedy else "")
    )


# Progress


def on_progress(session: Session | None, record: Progress, now: datetime) -> Step:
    """Apply what a worker reports; late, repeated and unknown reports change nothing."""
    step = Step.nothing(session)
    if session is None or session.state in TERMINAL:
        return step
    current = record.epoch == session.epoch
    match record.kind:
        case "plan" if current and session.state in {"pending", "planning"}:
            step = _on_plan(session, record, now)
        case "gate" if current and session.state == "waiting":
            step = _on_gate(session, record, now)
        case "gate" if record.state == "done" and session.plan and session.started_at is None:
            step = _on_late_gate(session, now)
        case "finish" if current and session.finishing:
            step = _on_finish(session, record, now)
        case "shard" if isinstance(record.shard, int) and record.shard < len(session.shards):
            step = _on_shard(session, record, record.shard, now)
    return step


def _on_plan(session: Session, record: Progress, now: datetime) -> Step:
    session = _moved(session, now, state="planning", reason=record.reason)
    if record.state == "failed":
        return Step(_failed(session, now, record.error))
    plan = record.plan
    if plan is None:
        draft = () if session.is_gated else record.draft or session.draft
        return Step(session.model_copy(update={"draft": draft}))
    session = session.model_copy(
        update={
            "plan": plan,
            "warnings": plan.warnings,
            "shards": tuple(Shard(heard_at=now) for _ in plan.shards),
        }
    )
    if session.is_gated:
        session = session.model_copy(update={"state": "waiting"})
        return Step(session, _chain(session))
    return _settle(_run(session, now), now)


def _on_gate(session: Session, record: Progress, now: datetime) -> Step:
    session = _moved(session, now, reason=record.reason)
    if record.state == "failed":
        return Step(_failed(session, now, record.error))
    return _settle(_run(session, now), now) if record.state == "done" else Step(session)


def _on_late_gate(session: Session, now: datetime) -> Step:
    """Note that the way is free and the beginning announced, in whatever state that is heard of.

    So a resume does not announce it again.
    """
    session = session.model_copy(update={"started_at": now, "updated_at": now})
    return _settle(_restart(session, now), now) if session.state == "waiting" else Step(session)


def _run(session: Session, now: datetime) -> Step:
    session = _moved(session, now, state="running", reason=None)
    if session.started_at is None:
        session = session.model_copy(update={"started_at": now})
    return Step(session, _chain(session))


def _on_shard(session: Session, record: Progress, number: int, now: datetime) -> Step:
    before, old, progress = session, session.shards[number], record.progress
    if progress is None or (record.epoch, record.slice) <= (old.epoch, old.slice):
        return Step.nothing(session)
    shard = Shard(
        epoch=record.epoch,
        slice=record.slice,
        progress=_kept(progress, len(session.shards)),
        heard_at=now,
    )
    update: dict[str, Any] = {
        "shards": (*session.shards[:number], shard, *session.shards[number + 1 :]),
        "offsets": merged_offsets(session.offsets, progress.offsets),
        "updated_at": now,
        "heard_at": now,
    }
    if (progress.counters, progress.state) != (old.progress.counters, old.progress.state):
        update |= {"progressed_at": now, "stalled": False}
        if session.state == "running":
            read = progress.counters.read - old.progress.counters.read
            update["events_per_second"] = _pace(session, old, read, now)
    if session.state == "running":
        update["reason"] = progress.reason
    session = session.model_copy(update=update)
    # A failure of an older epoch decides nothing: the shard was asked again since.
    failed = progress.state == "failed" and record.epoch == session.epoch
    if failed and session.state in {"running", "pausing"}:
        session = _failed(session, now, progress.error).model_copy(update={"epoch": _up(session)})
        return Step(session, _stops(session))
    visible = (before.stalled, before.reason) != (session.stalled, session.reason)
    return _settle(Step(session, urgent=visible), now)


def _kept(progress: ShardProgress, shards: int) -> ShardProgress:
    """Return what the session keeps of a shard's progress, small enough beside all the others."""
    names = max(10, MAX_NAMES // shards)
    return progress.model_copy(
        update={
            "offsets": {},
            "failures": progress.failures[: max(1, MAX_LISTED_FAILURES // shards)],
            "by_type": most_common(progress.by_type, names),
            "by_topic": most_common(progress.by_topic, names),
        }
    )


def _on_finish(session: Session, record: Progress, now: datetime) -> Step:
    if record.state == "live":
        return Step(_moved(session, now, reason=record.reason))
    if record.state == "failed" and session.state != "cancelling":
        return Step(_failed(session, now, record.error))
    if record.state == "failed":  # nothing is published any more, whether that was announced or not
        warning = f"the cancellation could not be announced: {record.error}"
        session = session.model_copy(update={"warnings": (*session.warnings, warning)})
    return Step(_ended(session, now))


def _settle(step: Step, now: datetime) -> Step:
    """Take the step that follows by itself once every shard has answered."""
    session = step.session
    if session is None or session.finishing:
        return step
    done = all(shard.progress.state == "done" for shard in session.shards)
    if session.state in {"running", "pausing"} and done:
        # A pause that came after the last event was published has nothing left to stop.
        session = _moved(
            session, now, state="running", desired="running", finishing=True, reason=None
        )
        return Step(session, _chain(session))
    if session.state not in {"pausing", "cancelling"} or any(
        _must_answer(session, shard) for shard in session.shards
    ):
        return step
    if session.state == "pausing":
        return Step(_moved(session, now, state="paused", reason=None))
    if session.start.control_records and session.plan is not None:
        # The beginning may have been announced, even if that was not heard yet.
        session = _moved(session, now, finishing=True)
        return Step(session, _chain(session))
    return Step(_ended(session, now))


def _must_answer(session: Session, shard: Shard) -> bool:
    """Whether a token of a shard is under way; an answer to an older epoch is none."""
    if shard.progress.state == "done":
        return False
    return (
        session.state == "running" or shard.progress.state == "live" or shard.epoch < session.epoch
    )


# Nudges


def on_nudge(
    session: Session | None, now: datetime, stall: timedelta, retention: timedelta
) -> Step:
    """Look at a session because time has passed: repair a silent chain, forget an old session."""
    if session is None or session.state == "paused":
        return Step.nothing(session)
    if session.state in TERMINAL or session.state == "failed":
        old = now - session.updated_at >= retention
        return Step(None, _forgets(session)) if old else Step.nothing(session)
    stalled = session.state != "waiting" and now - session.progressed_at >= stall
    silence = now - _last_heard(session)
    if silence < stall * min(2**session.repairs, MAX_PATIENCE):
        if stalled == session.stalled:
            return Step.nothing(session)
        return Step(_flagged(session, now, stalled=stalled))
    session = _flagged(session, now, stalled=stalled).model_copy(
        update={
            "epoch": _up(session),
            "repairs": session.repairs + 1,
            "heard_at": now,
            "shards": _asked_shards(session, now),
            "reason": f"no worker was heard for {silence.total_seconds():.0f} s; the work was "
            "sent out again. Are enough workers running?",
        }
    )
    return Step(session, _chain(session))


def _flagged(session: Session, now: datetime, *, stalled: bool) -> Session:
    pace = None if stalled else session.events_per_second
    return session.model_copy(
        update={"stalled": stalled, "updated_at": now, "events_per_second": pace}
    )


def _last_heard(session: Session) -> datetime:
    """Return when the step, or the most silent of the shards, that is under way was heard of."""
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


# The parts


def _up(session: Session) -> int:
    return session.epoch + 1


def _moved(session: Session, now: datetime, **update: Any) -> Session:
    """Return the session after something happened to it."""
    moved: dict[str, Any] = {
        "updated_at": now,
        "progressed_at": now,
        "heard_at": now,
        "stalled": False,
        "shards": _asked_shards(session, now),
    }
    state = update.get("state", session.state)
    if state != "running":
        moved["events_per_second"] = None
    if state != "planning":
        moved["draft"] = ()
    return session.model_copy(update=moved | update)


def _asked_shards(session: Session, now: datetime) -> tuple[Shard, ...]:
    return tuple(shard.model_copy(update={"heard_at": now}) for shard in session.shards)


def _pace(session: Session, shard: Shard, read: int, now: datetime) -> float:
    """Return the new average after ``read`` more events; shards may report in any rhythm."""
    seconds = max((now - session.progressed_at).total_seconds(), 1e-3)
    if session.events_per_second is None:
        # Not since the state changed: the store may have taken its time to the first event.
        since = max((now - (shard.heard_at or session.heard_at)).total_seconds(), 1e-3)
        return read / min(seconds, since)
    kept = math.exp(-seconds / SMOOTHING_SECONDS)
    return session.events_per_second * kept + read / seconds * (1 - kept)


def _failed(session: Session, now: datetime, error: str | None) -> Session:
    return _moved(
        session,
        now,
        state="failed",
        finishing=False,
        error=error or "the worker gave no reason",
        reason=None,
        ended_at=now,
    )


def _ended(session: Session, now: datetime) -> Session:
    """Return the session in its terminal state, with the receipt."""
    if session.state == "cancelling":
        state = "cancelled"
    elif any(shard.progress.failed for shard in session.shards):
        state = "completed_with_errors"
    else:
        state = "completed"
    return _moved(
        session,
        now,
        state=state,
        reason=None,
        finishing=False,
        ended_at=now,
        receipt=receipt(session, now),
    )


def _restart(session: Session, now: datetime, **update: Any) -> Step:
    """Start every unfinished step again under a higher epoch."""
    plan = session.plan
    state: State = "pending"
    if plan is not None:
        state = "waiting" if session.is_gated and session.started_at is None else "running"
    session = _moved(
        session, now, state=state, desired="running", epoch=_up(session), reason=None, **update
    )
    if state == "running":
        return _run(session, now)
    return Step(session, _chain(session))


def _token(session: Session, kind: Any, shard: ShardId, **fields: Any) -> Token:
    return Token(replay_id=session.replay_id, shard=shard, epoch=session.epoch, kind=kind, **fields)


def _chain(session: Session) -> tuple[Token, ...]:
    """Return the first tokens of whatever the session's state waits for."""
    if session.finishing:
        outcome = "cancelled" if session.state == "cancelling" else "end"
        return (_token(session, "finish", "finish", outcome=outcome),)
    match session.state:
        case "pending" | "planning":
            return (_token(session, "plan", "plan"),)
        case "waiting":
            return (_token(session, "gate", "gate"),)
        case "running":
            return _unfinished(session, "emit")
        case "pausing" | "cancelling":
            return _stops(session)
        case _:
            return ()


def _unfinished(
    session: Session, kind: Literal["emit", "stop"], **fields: Any
) -> tuple[Token, ...]:
    return tuple(
        _token(session, kind, number, **fields)
        for number, shard in enumerate(session.shards)
        if shard.progress.state != "done"
    )


def _stops(session: Session) -> tuple[Token, ...]:
    return _unfinished(session, "stop", slice=STOP_SLICE)


def _forgets(session: Session) -> tuple[Token, ...]:
    parts: tuple[ShardId, ...] = ("plan", "gate", "finish", *range(len(session.shards)))
    return tuple(_token(session, "forget", part) for part in parts)


def receipt(session: Session, now: datetime) -> Receipt:
    """Add up the shards."""
    by_type: Counter[str] = Counter()
    by_topic: Counter[str] = Counter()
    for shard in session.shards:
        by_type.update(shard.progress.by_type)
        by_topic.update(shard.progress.by_topic)
    return Receipt(
        counters=session.counters,
        by_type=dict(by_type),
        by_topic=dict(by_topic),
        bytes=sum(shard.progress.bytes for shard in session.shards),
        offsets=session.offsets,
        failures=tuple(f for shard in session.shards for f in shard.progress.failures),
        seconds=(now - session.created_at).total_seconds(),
    )


def merged_offsets(known: Offsets, more: Offsets) -> Offsets:
    """Return the ranges of ``known``, widened by those of ``more``."""
    merged = {topic: dict(partitions) for topic, partitions in known.items()}
    for topic, partitions in more.items():
        into = merged.setdefault(topic, {})
        for partition, (first, last) in partitions.items():
            low, high = into.get(partition, (first, last))
            into[partition] = (min(low, first), max(high, last))
    return listed_offsets(merged)
