"""The session's state machine: every input in every state, and sequences with a lossy worker."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from replay_app.checkpoints import Token
from replay_app.commands import (
    MAX_SKIPPED,
    VERBS,
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
from replay_app.exceptions import CommandConflict
from replay_app.reports import (
    ACCEPTED,
    MAX_INTERNAL_BYTES,
    MAX_LISTED_FAILURES,
    MAX_LISTED_OFFSETS,
    NEXT_EVENT,
    OTHER,
    UNKNOWN_HANDOVER,
    Counters,
    Failure,
    Plan,
    Report,
    ShardPlan,
    ShardProgress,
    bound_offsets,
)
from replay_app.sessions import Session, Shard, decode_session, fit_record
from replay_app.states import TERMINAL, State
from replay_app.transitions import (
    MAX_SILENCE_FACTOR,
    STOP_SLICE,
    Step,
    on_command,
    on_nudge,
    on_report,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
STALL = timedelta(seconds=30)
RETENTION = timedelta(days=30)
REPLAY = "rebuild-orders-1"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def start(**fields: Any) -> Start:
    return Start(replay_id=REPLAY, **fields)


def plan(shards: int = 2, matched: int | None = 10, **fields: Any) -> Plan:
    return Plan(
        end=T0,
        matched=matched,
        shards=tuple(ShardPlan(match={}, sort=("timestamp", "_id")) for _ in range(shards)),
        **fields,
    )


def step_report(session: Session, kind: Any, state: Any = "done", **fields: Any) -> Report:
    return Report(
        **{"replay_id": REPLAY, "kind": kind, "shard": kind, "state": state, "slice": 1}
        | {"epoch": session.epoch}
        | fields
    )


def shard_report(
    session: Session,
    shard: int,
    state: Any = "live",
    *,
    read: int = 0,
    slice: int = 1,  # noqa: A002 - the field's name
    epoch: int | None = None,
    **fields: Any,
) -> Report:
    return Report(
        replay_id=REPLAY,
        kind="shard",
        epoch=session.epoch if epoch is None else epoch,
        slice=slice,
        shard=shard,
        progress=ShardProgress(state=state, counters=Counters(read=read, published=read), **fields),
    )


def after(session: Session | None, *inputs: Command | Report, seconds: float = 1) -> Session:
    """Return the session after the inputs."""
    for given in inputs:
        decide: Any = on_report if isinstance(given, Report) else on_command
        session = decide(session, given, at(seconds)).session
    assert session is not None
    return session


def running(shards: int = 2, **fields: Any) -> Session:
    session = after(None, start(**fields))
    return after(session, step_report(session, "plan", plan=plan(shards)))


def answer_all(session: Session, state: str, read: int = 0) -> Session:
    """Return the session after every shard has answered its present epoch."""
    for number in range(len(session.shards)):
        report = shard_report(session, number, state, read=read, slice=STOP_SLICE)
        session = after(session, report)
    return session


def waiting() -> Session:
    session = after(None, start(control_records=True))
    return after(session, step_report(session, "plan", plan=plan()))


def planning() -> Session:
    session = after(None, start())
    return after(session, step_report(session, "plan", "live", reason="counting"))


def completed(failed: int = 0) -> Session:
    session = running()
    session = after(session, shard_report(session, 0, "done", read=5, failed=failed))
    session = after(session, shard_report(session, 1, "done", read=5))
    return after(session, step_report(session, "finish"))


def failed() -> Session:
    session = running()
    return after(session, shard_report(session, 0, "failed", error="no topic 'orders'"))


def counting(**fields: Any) -> Session:
    """Return a session whose shards, or whose gate, run while the events are counted."""
    session = after(None, start(**fields))
    return after(session, step_report(session, "plan", plan=uncounted()))


def uncounted(**fields: Any) -> Plan:
    return plan(matched=None, counted="running", **fields)


SESSIONS: dict[str, Callable[[], Session]] = {
    "pending": lambda: after(None, start()),
    "planning": planning,
    "waiting": waiting,
    "running": running,
    "counting": counting,
    "finishing": lambda: answer_all(running(), "done"),
    "pausing": lambda: after(running(), Pause(replay_id=REPLAY)),
    "paused": lambda: answer_all(after(running(), Pause(replay_id=REPLAY)), "stopped"),
    "paused unplanned": lambda: after(None, start(), Pause(replay_id=REPLAY)),
    "cancelling": lambda: after(running(), Cancel(replay_id=REPLAY)),
    "cancelled": lambda: answer_all(after(running(), Cancel(replay_id=REPLAY)), "stopped"),
    "completed": completed,
    "completed_with_errors": lambda: completed(failed=1),
    "failed": failed,
    "retried": lambda: after(failed(), Retry(replay_id=REPLAY)),
}
COMMANDS: dict[str, Command] = {
    "start another": start(dry_run=True),
    "pause": Pause(replay_id=REPLAY),
    "resume": Resume(replay_id=REPLAY),
    "cancel": Cancel(replay_id=REPLAY),
    "retry": Retry(replay_id=REPLAY),
    "release": Release(replay_id=REPLAY),
    "step": StepOn(replay_id=REPLAY, events=1, published=0),
    "set-rate": SetRate(replay_id=REPLAY, rate=5),
}


@dataclass(frozen=True)
class To:
    """What a command is expected to do."""

    state: str
    tokens: tuple[str, ...] = ()
    epochs: int = 1


SAME, REFUSED = "nothing happens", "refused"
RATED = "only the rate changes"
PAUSED = To("paused")
CANCELLED = To("cancelled")
CANCELLING = To("cancelling", ("stop", "stop"))
PLANNED_AGAIN = To("pending", ("plan",))
EMITTING = To("running", ("emit", "emit"))

# fmt: off
OUTCOMES: dict[str, tuple[To | str, ...]] = {
    # state               pause    resume         cancel      retry     set-rate
    "pending":           (PAUSED,  SAME,          CANCELLED,  SAME,     RATED),
    "planning":          (PAUSED,  SAME,          CANCELLED,  SAME,     RATED),
    "waiting":           (PAUSED,  SAME,          CANCELLING, SAME,     RATED),
    "running":           (To("pausing", ("stop", "stop")),
                                   SAME,          CANCELLING, SAME,     RATED),
    "counting":          (To("pausing", ("stop", "stop")),
                                   SAME,          CANCELLING, SAME,     RATED),
    "finishing":         (REFUSED, SAME,          REFUSED,    SAME,     RATED),
    "pausing":           (SAME,    EMITTING,      CANCELLING, REFUSED,  RATED),
    "paused":            (SAME,    EMITTING,      CANCELLING, REFUSED,  RATED),
    "paused unplanned":  (SAME,    PLANNED_AGAIN, CANCELLED,  REFUSED,  RATED),
    "cancelling":        (REFUSED, REFUSED,       SAME,       REFUSED,  REFUSED),
    "cancelled":         (REFUSED, REFUSED,       SAME,       REFUSED,  REFUSED),
    "completed":         (REFUSED, REFUSED,       REFUSED,    REFUSED,  REFUSED),
    "completed_with_errors":
                         (REFUSED, REFUSED,       REFUSED,    REFUSED,  REFUSED),
    "failed":            (REFUSED, REFUSED,       CANCELLING, PLANNED_AGAIN, RATED),
    "retried":           (To("pausing", ("stop", "stop")),
                                   SAME,          CANCELLING, SAME,     RATED),
}
# fmt: on
CASES = [
    (state, command, outcome)
    for state, outcomes in OUTCOMES.items()
    for command, outcome in (
        ("start", SAME),
        ("start another", REFUSED),
        ("release", REFUSED),  # they wait for no other replay; see "Gates" for those that do
        *zip(("pause", "resume", "cancel", "retry", "set-rate"), outcomes, strict=True),
    )
]


@pytest.mark.parametrize(("state", "command", "outcome"), CASES)
def test_every_command_in_every_state(state: str, command: str, outcome: To | str) -> None:
    session = SESSIONS[state]()
    given = session.start if command == "start" else COMMANDS[command]
    if outcome == REFUSED:
        with pytest.raises(CommandConflict, match=session.state):
            on_command(session, given, at(2))
        return
    step = on_command(session, given, at(2))
    assert step.session is not None
    match outcome:
        case To():
            found = To(
                step.session.state,
                tuple(token.kind for token in step.tokens),
                step.session.epoch - session.epoch,
            )
            assert found == outcome
            assert all(token.epoch == step.session.epoch for token in step.tokens)
            assert step.urgent
        case "nothing happens":
            assert step == Step.nothing(session)
        case _:
            changed: dict[str, Any] = {"rate": 5, "updated_at": at(2)}
            if session.state == "running":  # the speed is measured anew
                changed |= {
                    "speed_marks": ((at(2), session.counters.read),),
                    "events_per_second": None,
                }
            assert step.session == session.model_copy(update=changed)
            assert step.tokens == ()


@pytest.mark.parametrize(
    ("state", "command"), [(state, command) for state, command, out in CASES if out != REFUSED]
)
def test_a_command_that_comes_again_changes_nothing_more(state: str, command: str) -> None:
    session = SESSIONS[state]()
    given = session.start if command == "start" else COMMANDS[command]
    once = on_command(session, given, at(2)).session
    assert on_command(once, given, at(3)) == Step.nothing(once)


@pytest.mark.parametrize("command", ["pause", "resume", "cancel", "retry", "release", "set-rate"])
def test_a_command_for_no_session_is_refused(command: str) -> None:
    with pytest.raises(CommandConflict, match="there is no replay 'rebuild-orders-1'"):
        on_command(None, COMMANDS[command], T0)


def test_a_start_makes_a_session_and_asks_for_its_plan() -> None:
    step = on_command(None, start(rate=100), T0)
    assert step.session is not None
    assert step.session.state == "pending"
    assert (step.session.epoch, step.session.attempt, step.session.rate) == (1, 1, 100)
    assert [(t.kind, t.shard, t.epoch, t.slice) for t in step.tokens] == [("plan", "plan", 1, 1)]


@pytest.mark.parametrize(
    ("state", "command", "remedy"),
    [
        ("failed", "resume", "use retry"),
        ("paused", "retry", "use resume"),
        ("pausing", "retry", "use resume"),
        ("finishing", "pause", "its last event is published"),
        ("finishing", "cancel", "its last event is published"),
        ("completed", "start another", "choose a new replay_id"),
    ],
)
def test_a_refusal_names_the_remedy(state: str, command: str, remedy: str) -> None:
    with pytest.raises(CommandConflict, match=remedy):
        on_command(SESSIONS[state](), COMMANDS[command], at(2))


def report_of(name: str, session: Session) -> Report:
    kind, state = name.split()
    if kind == "shard":
        return shard_report(session, 0, state, read=3, slice=STOP_SLICE + 1, error="bad")
    fields = {"plan": plan()} if name in {"plan done", "count done"} else {}
    return step_report(session, kind, state, error="bad" if state == "failed" else None, **fields)


STEP_STATES = ("live", "done", "failed")
SHARD_STATES = ("live", "done", "stopped", "failed")
SHARD_REPORTS = [f"shard {state}" for state in SHARD_STATES]
# The state after a report of the present epoch; a report that is not named changes nothing.
EFFECTS: dict[str, dict[str, str]] = {
    "pending": {"plan live": "planning", "plan done": "running", "plan failed": "failed"},
    "planning": {"plan live": "planning", "plan done": "running", "plan failed": "failed"},
    "waiting": {
        "gate live": "waiting",
        "gate done": "running",
        "gate failed": "failed",
        **dict.fromkeys(SHARD_REPORTS, "waiting"),
    },
    "running": {
        **dict.fromkeys(["shard live", "shard done", "shard stopped"], "running"),
        "shard failed": "failed",
    },
    "counting": {
        "count done": "running",
        "count failed": "running",
        **dict.fromkeys(["shard live", "shard done", "shard stopped"], "running"),
        "shard failed": "failed",
    },
    "finishing": {
        "finish live": "running",
        "finish done": "completed",
        "finish failed": "failed",
    },
    "pausing": {
        **dict.fromkeys(["shard live", "shard done", "shard stopped"], "pausing"),
        "shard failed": "failed",
    },
    "paused": dict.fromkeys(SHARD_REPORTS, "paused"),
    "cancelling": dict.fromkeys(SHARD_REPORTS, "cancelling"),
    "failed": dict.fromkeys(SHARD_REPORTS, "failed"),
    "retried": {
        "plan live": "planning",
        "plan done": "running",
        "plan failed": "failed",
        **dict.fromkeys(SHARD_REPORTS, "pending"),
    },
}
REPORTS = [
    *(f"{kind} {state}" for kind in ("plan", "count", "gate", "finish") for state in STEP_STATES),
    *(f"shard {state}" for state in SHARD_STATES),
]
REPORT_CASES = [
    (state, name)
    for state in SESSIONS
    for name in REPORTS
    # Each shard of a finishing replay is done, and reports only that.
    if not (state == "finishing" and name.startswith("shard"))
]


@pytest.mark.parametrize(("state", "name"), REPORT_CASES)
def test_every_report_in_every_state(state: str, name: str) -> None:
    session = SESSIONS[state]()
    step = on_report(session, report_of(name, session), at(2))
    expected = EFFECTS.get(state, {}).get(name)
    if expected is None:
        assert step == Step.nothing(session)
    else:
        assert step.session is not None
        assert (step.session.state, step.changed) == (expected, True)


@pytest.mark.parametrize(("state", "name"), REPORT_CASES)
def test_a_report_that_comes_again_changes_nothing_more(state: str, name: str) -> None:
    session = SESSIONS[state]()
    report = report_of(name, session)
    once = on_report(session, report, at(2))
    twice = on_report(once.session, report, at(2))
    assert twice.session == once.session
    assert twice.tokens == ()


@pytest.mark.parametrize("name", ["plan done", "plan failed", "finish done", "finish failed"])
@pytest.mark.parametrize("state", SESSIONS)
def test_a_step_of_an_older_epoch_changes_nothing(state: str, name: str) -> None:
    session = SESSIONS[state]()
    report = report_of(name, session).model_copy(update={"epoch": session.epoch - 1})
    assert on_report(session, report, at(2)) == Step.nothing(session)


def test_reports_about_unknown_replays_and_shards_change_nothing() -> None:
    session = running()
    assert on_report(None, shard_report(session, 0), T0) == Step.nothing(None)
    assert on_report(session, shard_report(session, 2), T0) == Step.nothing(session)
    no_progress = shard_report(session, 0).model_copy(update={"progress": None})
    assert on_report(session, no_progress, T0) == Step.nothing(session)
    for kind in ("noop", "nudge"):
        assert on_report(session, Report(replay_id=REPLAY, kind=kind), T0) == Step.nothing(session)


def test_late_and_repeated_shard_reports_change_nothing() -> None:
    session = running()
    second = shard_report(session, 0, read=4, slice=2)
    session = after(session, second)
    assert on_report(session, second, at(9)) == Step.nothing(session)
    first = shard_report(session, 0, read=2, slice=1)
    assert on_report(session, first, at(9)) == Step.nothing(session)
    assert session.has_heard(second)
    assert session.has_heard(first)
    assert not session.has_heard(shard_report(session, 0, slice=3))


def test_after_a_retry_equal_slice_numbers_of_the_old_epoch_are_late() -> None:
    session = running()
    session = after(session, shard_report(session, 0, "failed", slice=5, error="bad", read=5))
    session = after(session, Retry(replay_id=REPLAY))
    session = after(session, shard_report(session, 0, slice=1, read=7))
    late = shard_report(session, 0, "failed", slice=6, epoch=1, error="bad", read=6)
    assert on_report(session, late, at(9)) == Step.nothing(session)


def test_counters_alone_are_not_urgent_but_a_new_reason_is() -> None:
    session = running()
    assert not on_report(session, shard_report(session, 0, read=3), at(2)).urgent
    waiting_for_store = shard_report(session, 0, reason="the store does not answer")
    step = on_report(session, waiting_for_store, at(2))
    assert step.urgent
    assert step.session is not None
    assert step.session.reason == "the store does not answer"


# The way of a replay


def test_zero_matches_complete_without_a_shard() -> None:
    session = after(None, start())
    step = on_report(session, step_report(session, "plan", plan=plan(0, 0)), at(1))
    assert [token.kind for token in step.tokens] == ["finish"]
    session = after(step.session, step_report(session, "finish"))
    assert (session.state, session.percent, session.matched) == ("completed", 100.0, 0)


def test_all_shards_done_ask_for_the_end_and_then_it_is_completed() -> None:
    session = running()
    session = after(session, shard_report(session, 0, "done", read=4, bytes=40))
    step = on_report(session, shard_report(session, 1, "done", read=6, bytes=60), at(5))
    assert [(token.kind, token.outcome) for token in step.tokens] == [("finish", "end")]
    assert step.session is not None
    assert step.session.state == "running"
    ended = after(step.session, step_report(session, "finish"), seconds=7)
    assert ended.state == "completed"
    assert ended.ended_at == at(7)
    assert ended.receipt is not None
    assert ended.receipt.counters == Counters(read=10, published=10)
    assert ended.receipt.bytes == 100
    assert ended.receipt.seconds == 6  # from the command, at second 1


def test_failed_events_make_it_completed_with_errors() -> None:
    assert completed(failed=1).state == "completed_with_errors"
    assert completed(failed=0).state == "completed"


def test_the_plan_gives_the_totals_and_warnings() -> None:
    session = after(None, start())
    report = step_report(session, "plan", plan=plan(1, 200, warnings=("no index",)))
    session = after(session, report)
    session = after(session, shard_report(session, 0, read=50), seconds=11)
    assert (session.matched, session.percent) == (200, 25.0)
    assert (session.events_per_second, session.eta_seconds) == (5.0, 30.0)
    assert session.warnings == ("no index",)


def test_what_is_unknown_is_none_and_not_zero() -> None:
    session = after(None, start())
    assert (session.matched, session.percent, session.eta_seconds) == (None, None, None)
    session = after(session, step_report(session, "plan", plan=plan(1, None)))
    session = after(session, shard_report(session, 0, read=50), seconds=11)
    assert (session.matched, session.percent, session.eta_seconds) == (None, None, None)


def test_the_count_comes_while_the_shards_run() -> None:
    session = after(None, start())
    step = on_report(session, step_report(session, "plan", plan=uncounted()), at(1))
    assert [token.key for token in step.tokens] == [f"{REPLAY}/{one}" for one in (0, 1, "count")]
    session = after(step.session, shard_report(counting(), 0, read=3))
    assert (session.matched, session.percent, session.eta_seconds) == (None, None, None)
    counted = plan(0, 10, by_type={"a": 10}, by_topic={"t": 10}, partitions={"t": 2})
    counted = counted.model_copy(update={"warnings": ("odd",), "counted": "beside"})
    step = on_report(session, step_report(session, "count", plan=counted), at(2))
    assert (step.urgent, step.tokens) == (True, ())
    session = after(session, step_report(session, "count", plan=counted))
    assert session.plan is not None
    assert (session.plan.counted, len(session.plan.shards)) == ("beside", 2)
    assert (session.matched, session.percent, session.warnings) == (10, 30.0, ("odd",))
    assert (session.plan.by_type, session.plan.by_topic) == ({"a": 10}, {"t": 10})
    assert session.plan.partitions == {"t": 2}
    assert not session.is_counting


def test_a_count_that_fails_is_a_warning() -> None:
    session = counting()
    session = after(session, step_report(session, "count", "failed", error="no right"))
    assert (session.state, session.matched, session.is_counting) == ("running", None, False)
    assert session.warnings == ("the matching events could not be counted: no right",)


def test_a_count_that_waits_does_not_hide_why_the_shards_wait() -> None:
    session = after(counting(), shard_report(counting(), 0, reason="the store is away"))
    waits = step_report(session, "count", "live", reason="counting")
    assert on_report(session, waits, at(2)) == Step.nothing(session)


def test_a_replay_that_is_faster_than_its_count_is_the_count() -> None:
    session = answer_all(counting(), "done", read=4)
    assert session.finishing
    assert not session.wants(Token(replay_id=REPLAY, epoch=session.epoch, kind="count"))
    late = step_report(session, "count", plan=plan(0, 9))
    assert on_report(session, late, at(2)) == Step.nothing(session)
    session = after(session, step_report(session, "finish"))
    assert (session.state, session.matched, session.percent) == ("completed", 8, 100.0)
    assert session.plan is not None
    assert session.plan.counted == "after"


def test_the_last_shard_with_times_stops_the_count_and_starts_the_shard_without() -> None:
    session = with_untimed_shard()
    step = on_report(session, shard_report(session, 0, "done", read=4), at(2))
    assert (step.urgent, step.tokens) == (True, ())
    session = after(session, shard_report(session, 0, "done", read=4))
    assert not session.is_counting
    assert not session.awaits_count(1)
    late = step_report(session, "count", plan=plan(0, 9))
    assert on_report(session, late, at(3)) == Step.nothing(session)
    session = after(session, shard_report(session, 1, "done", read=1))
    assert session.finishing
    session = after(session, step_report(session, "finish"))
    assert (session.state, session.matched) == ("completed", 5)


def test_a_resume_does_not_count_what_is_read_already() -> None:
    session = with_untimed_shard()
    session = after(session, Pause(replay_id=REPLAY))
    session = after(session, shard_report(session, 0, "done", read=4))
    session = after(session, shard_report(session, 1, "stopped"))
    assert session.state == "paused"
    step = on_command(session, Resume(replay_id=REPLAY), at(2))
    assert [(token.kind, token.shard) for token in step.tokens] == [("emit", 1)]


def with_untimed_shard() -> Session:
    """Return a replay that is being counted, with a shard of the events without a time."""
    session = after(None, start())
    shards = (*plan(1).shards, ShardPlan(match={}, sort=("_id",)))
    made = uncounted().model_copy(update={"shards": shards})
    return after(session, step_report(session, "plan", plan=made))


def test_a_pause_stops_the_count_and_a_resume_counts_again() -> None:
    session = after(counting(), Pause(replay_id=REPLAY))
    assert not session.wants(Token(replay_id=REPLAY, epoch=session.epoch, kind="count"))
    late = step_report(session, "count", plan=plan(0, 9))
    assert on_report(session, late, at(2)) == Step.nothing(session)
    step = on_command(session, Resume(replay_id=REPLAY), at(2))
    assert [token.kind for token in step.tokens] == ["emit", "emit", "count"]


def test_a_replay_that_waits_at_its_gate_is_counted_meanwhile() -> None:
    session = after(None, start(after=("r0",)))
    step = on_report(session, step_report(session, "plan", plan=uncounted()), at(1))
    assert [token.kind for token in step.tokens] == ["gate", "count"]
    assert step.session is not None
    counted = after(step.session, step_report(step.session, "count", plan=plan(0, 7)))
    assert (counted.state, counted.matched) == ("waiting", 7)
    opened = on_report(counted, step_report(counted, "gate"), at(2))
    assert [token.kind for token in opened.tokens] == ["emit", "emit"]


def test_a_retry_counts_again_and_shows_the_old_count_until_then() -> None:
    session = after(counting(), step_report(counting(), "count", plan=plan(0, 10)))
    session = after(session, shard_report(session, 0, "failed", error="no topic"))
    session = after(session, Retry(replay_id=REPLAY))
    step = on_report(session, step_report(session, "plan", plan=uncounted()), at(1))
    assert [token.kind for token in step.tokens] == ["emit", "emit", "count"]
    assert step.session is not None
    assert step.session.matched == 10
    session = after(step.session, step_report(step.session, "count", plan=plan(0, 12)))
    assert (session.matched, session.planned_matches) == (12, (10, 12))
    assert "counted 10, then 12 events" in session.warnings[-1]


def test_a_count_tells_the_shard_of_events_without_a_time_whether_it_has_any() -> None:
    session = with_untimed_shard()
    assert [session.awaits_count(number) for number in range(2)] == [False, True]
    orders = session.orders
    session = after(session, step_report(session, "count", plan=plan(0, 9, untimed=0)))
    assert not session.awaits_count(1)
    assert session.orders != orders  # wakes the shard
    assert session.plan is not None
    assert session.plan.untimed == 0


def test_the_position_is_the_time_of_the_last_event_in_global_order() -> None:
    session = running(1)
    assert session.position is None
    session = after(session, shard_report(session, 0, read=3, last_time=at(-60)))
    assert session.position is not None
    assert session.position.model_dump() == {"time": at(-60), "start": None, "end": T0}
    session = after(running(1, ordering="aggregate"), shard_report(session, 0, last_time=at(-60)))
    assert session.position is None


def test_a_failed_shard_stops_the_others_under_a_new_epoch() -> None:
    session = running(3)
    session = after(session, shard_report(session, 1, "done", read=2))
    step = on_report(session, shard_report(session, 0, "failed", error="no topic"), at(4))
    assert step.session is not None
    assert (step.session.state, step.session.error) == ("failed", "no topic")
    assert step.session.epoch == session.epoch + 1
    assert step.session.ended_at == at(4)
    assert [(token.kind, token.shard) for token in step.tokens] == [("stop", 0), ("stop", 2)]
    assert {token.epoch for token in step.tokens} == {session.epoch + 1}


def test_a_retry_goes_on_from_there() -> None:
    session = running(3)
    session = after(session, shard_report(session, 1, "done", read=2))
    session = after(session, shard_report(session, 0, "failed", read=3, error="no topic"))
    step = on_command(session, Retry(replay_id=REPLAY), at(9))
    assert step.session is not None
    assert (step.session.state, step.session.attempt) == ("pending", 2)
    assert (step.session.error, step.session.ended_at) == (None, None)
    assert [token.kind for token in step.tokens] == ["plan"]
    step = on_report(step.session, step_report(step.session, "plan", plan=plan(3)), at(10))
    assert step.session is not None
    assert step.session.state == "running"
    assert step.session.counters.read == 5
    assert [(token.kind, token.shard) for token in step.tokens] == [("emit", 0), ("emit", 2)]


def test_a_retry_changes_what_is_done_about_failing_events_from_then_on() -> None:
    session = after(failed(), Retry(replay_id=REPLAY, skip_events=("e-1",)))
    assert (session.rules, session.skipped_events) == (session.start, ("e-1",))
    session = after(session, step_report(session, "plan", plan=plan(2)))
    session = after(session, shard_report(session, 0, "failed", slice=2, error="odd"))
    again = Retry(replay_id=REPLAY, on_error="skip", skip_events=("e-2", "e-1"))
    session = after(session, again)
    assert (session.rules.on_error, session.start.on_error) == ("skip", "fail")
    assert session.skipped_events == ("e-1", "e-2")
    assert after(session, again) == session  # the same command again changes nothing
    assert after(session, Retry(replay_id=REPLAY)) == session
    with pytest.raises(CommandConflict, match="only a failed replay takes on_error"):
        on_command(session, Retry(replay_id=REPLAY, on_error="dead-letter"), at(9))


def test_the_events_that_retries_skip_are_bounded() -> None:
    session, ids = failed(), [f"e-{number}" for number in range(MAX_SKIPPED)]
    session = after(session, Retry(replay_id=REPLAY, skip_events=tuple(ids)))
    session = after(session, step_report(session, "plan", plan=plan(2)))
    session = after(session, shard_report(session, 0, "failed", slice=2, error="odd"))
    with pytest.raises(CommandConflict, match="at most 100 events can be skipped"):
        on_command(session, Retry(replay_id=REPLAY, skip_events=("one more",)), at(9))


def test_the_first_retry_with_dead_letters_knows_their_topic() -> None:
    session = after(failed(), Retry(replay_id=REPLAY, on_error="dead-letter"))
    fresh = plan(2).model_copy(update={"dead_letters": "id"})
    session = after(session, step_report(session, "plan", plan=fresh))
    assert session.plan is not None
    assert session.plan.dead_letters == "id"


def test_a_retry_shows_what_matches_now_and_keeps_bound_and_shards() -> None:
    session = after(running(), Pause(replay_id=REPLAY))
    session = after(session, shard_report(session, 0, "failed", read=3, error="no topic"))
    old = session.plan
    assert old is not None
    session = after(session, Retry(replay_id=REPLAY))
    assert session.matched == 10
    fresh = plan(5, 12, by_type={"a": 12}, warnings=("one",)).model_copy(update={"end": at(99)})
    session = after(session, step_report(session, "plan", plan=fresh))
    assert session.plan == fresh.model_copy(update={"end": old.end, "shards": old.shards})
    assert len(session.shards) == 2
    assert session.planned_matches == (10, 12)
    changed = "the plan counted 10, then 12 events: the store has changed between two attempts"
    assert session.warnings == ("one", changed)
    session = after(session, shard_report(session, 0, "failed", slice=2, error="no topic"))
    session = after(session, Retry(replay_id=REPLAY))
    session = after(session, step_report(session, "plan", plan=plan(2, 12)))
    assert (session.planned_matches, session.warnings) == ((10, 12), (changed,))


def test_a_retry_of_a_session_of_an_older_version_knows_its_first_total() -> None:
    session = failed().model_copy(update={"planned_matches": ()})
    session = after(session, Retry(replay_id=REPLAY))
    session = after(session, step_report(session, "plan", plan=plan(2, 9)))
    assert session.planned_matches == (10, 9)


def test_a_pause_of_a_retry_that_is_being_planned_waits_for_every_shard() -> None:
    session = after(failed(), Retry(replay_id=REPLAY), Pause(replay_id=REPLAY))
    late = step_report(session, "plan", epoch=session.epoch - 1, plan=plan())
    session = after(session, late, shard_report(session, 0, "stopped", slice=STOP_SLICE))
    assert session.state == "pausing"  # a slice of shard 1 may still run
    session = after(session, shard_report(session, 1, "stopped", slice=STOP_SLICE))
    assert session.state == "paused"
    assert after(session, Resume(replay_id=REPLAY)).state == "running"


def test_a_retry_of_a_failed_plan_plans_again() -> None:
    session = after(None, start())
    session = after(session, step_report(session, "plan", "failed", error="no collection"))
    assert (session.state, session.error) == ("failed", "no collection")
    step = on_command(session, Retry(replay_id=REPLAY), at(9))
    assert [(token.kind, token.epoch) for token in step.tokens] == [("plan", 2)]


def test_a_retry_of_a_failed_end_asks_for_the_end_only() -> None:
    session = answer_all(running(), "done", read=5)
    session = after(session, step_report(session, "finish", "failed", error="no topic"))
    assert session.state == "failed"
    step = on_command(session, Retry(replay_id=REPLAY), at(9))
    assert [(token.kind, token.epoch) for token in step.tokens] == [("finish", 2)]


def test_a_failure_of_an_older_epoch_does_not_fail_a_retried_replay() -> None:
    session = running()
    both_failed = [shard_report(session, n, "failed", error="no topic") for n in (0, 1)]
    session = after(session, both_failed[0], Retry(replay_id=REPLAY))
    session = after(session, both_failed[1], step_report(session, "plan", plan=plan()))
    assert session.state == "running"
    assert not session.finishing


def test_it_is_paused_once_every_shard_has_answered() -> None:
    session = after(running(), Pause(replay_id=REPLAY))
    session = after(session, shard_report(session, 0, "stopped", read=3))
    assert session.state == "pausing"
    session = after(session, shard_report(session, 1, "stopped", read=4))
    assert (session.state, session.counters.read) == ("paused", 7)


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_an_answer_to_an_older_epoch_does_not_count(state: str) -> None:
    session = running()
    late = [shard_report(session, n, state, slice=7) for n in (0, 1)]
    session = after(session, Pause(replay_id=REPLAY), *late)
    assert session.state == "pausing"
    session = after(running(), Cancel(replay_id=REPLAY), *late)
    assert session.state == "cancelling"


def test_a_late_slice_that_ends_a_shard_while_pausing_ends_the_replay() -> None:
    session = running()
    last = [shard_report(session, n, "done", slice=7, read=5) for n in (0, 1)]
    session = after(session, Pause(replay_id=REPLAY), *last)
    assert (session.state, session.finishing) == ("running", True)


def test_shards_that_are_done_need_no_stop() -> None:
    session = running()
    session = after(session, shard_report(session, 0, "done", read=5))
    step = on_command(session, Pause(replay_id=REPLAY), at(2))
    assert [(token.kind, token.shard) for token in step.tokens] == [("stop", 1)]
    session = after(step.session, shard_report(step.session or session, 1, "stopped"))
    assert session.state == "paused"


def test_a_resume_while_pausing_goes_on_and_late_stops_do_not_matter() -> None:
    pausing = after(running(), Pause(replay_id=REPLAY))
    late = [shard_report(pausing, n, "stopped", read=2, slice=STOP_SLICE) for n in (0, 1)]
    session = after(pausing, Resume(replay_id=REPLAY), *late)
    assert (session.state, session.epoch) == ("running", 3)
    session = after(session, shard_report(session, 0, "done", read=5))
    session = after(session, shard_report(session, 1, "done", read=5))
    assert session.finishing


def test_a_retry_while_others_are_still_stopping_goes_on() -> None:
    session = failed()
    late = shard_report(session, 1, "stopped", read=2, slice=STOP_SLICE)
    session = after(session, Retry(replay_id=REPLAY), late)
    session = after(session, step_report(session, "plan", plan=plan()))
    assert session.state == "running"


def test_a_cancel_right_after_a_retry_waits_for_the_retried_shard() -> None:
    session = after(failed(), Retry(replay_id=REPLAY), Cancel(replay_id=REPLAY))
    session = after(session, shard_report(session, 1, "stopped", slice=STOP_SLICE))
    assert session.state == "cancelling"  # shard 0 has failed, but runs again
    session = after(session, shard_report(session, 0, "stopped", slice=STOP_SLICE))
    assert session.state == "cancelled"


def test_a_cancel_while_planning_cancels_at_once_and_the_plan_comes_too_late() -> None:
    session = planning()
    late = step_report(session, "plan", plan=plan())
    session = after(session, Cancel(replay_id=REPLAY))
    assert session.state == "cancelled"
    assert session.receipt is not None
    assert on_report(session, late, at(9)) == Step.nothing(session)


def test_a_stop_has_a_higher_number_than_every_slice_of_its_epoch() -> None:
    session = running()
    step = on_command(session, Pause(replay_id=REPLAY), at(2))
    assert {token.slice for token in step.tokens} == {STOP_SLICE}


# Gates and control records


def test_control_records_begin_before_the_first_event() -> None:
    session = after(None, start(control_records=True))
    step = on_report(session, step_report(session, "plan", plan=plan()), at(1))
    assert step.session is not None
    assert step.session.state == "waiting"
    assert [token.kind for token in step.tokens] == ["gate"]
    step = on_report(step.session, step_report(session, "gate"), at(2))
    assert step.session is not None
    assert (step.session.state, step.session.started_at) == ("running", at(2))
    assert [token.kind for token in step.tokens] == ["emit", "emit"]


def test_after_waits_with_a_reason_until_the_gate_opens() -> None:
    session = after(None, start(after=("first",)))
    session = after(session, step_report(session, "plan", plan=plan()))
    session = after(session, step_report(session, "gate", "live", reason="waiting for 'first'"))
    assert (session.state, session.reason) == ("waiting", "waiting for 'first'")
    session = after(session, step_report(session, "gate", slice=2))
    assert (session.state, session.reason) == ("running", None)


def behind(state: str) -> Session:
    """Return a session in a state before its first event, which waits for another replay."""
    session = after(None, start(after=("first",)))
    if state == "planning":
        session = after(session, step_report(session, "plan", "live"))
    elif state not in {"pending", "paused unplanned"}:
        session = after(session, step_report(session, "plan", plan=plan()))
    match state:
        case "paused" | "paused unplanned":
            return after(session, Pause(replay_id=REPLAY))
        case "failed":
            return after(session, step_report(session, "gate", "failed", error="unknown"))
        case "retried":
            session = after(session, step_report(session, "gate", "failed", error="unknown"))
            return after(session, Retry(replay_id=REPLAY))
        case "running":
            return after(session, step_report(session, "gate"))
        case "cancelled":
            return answer_all(after(session, Cancel(replay_id=REPLAY)), "stopped")
        case _:
            return session


@pytest.mark.parametrize("state", ["pending", "planning", "waiting", "retried"])
def test_a_release_opens_the_gate_of_a_replay_that_has_not_begun(state: str) -> None:
    session = behind(state)
    session = session.model_copy(update={"reason": "blocked by replay 'first'"})
    assert "release" in session.verbs
    step = on_command(session, Release(replay_id=REPLAY), at(5))
    released = {"released": True, "reason": None, "updated_at": at(5)}
    assert step == Step(session.model_copy(update=released))
    assert step.session is not None
    assert step.session.orders != session.orders  # the worker that holds the gate's token hears
    assert "release" not in step.session.verbs
    again = on_command(step.session, Release(replay_id=REPLAY), at(6))
    assert again == Step.nothing(step.session)
    assert decode_session(step.session.encode()) == step.session


def test_a_release_outlives_a_pause_and_a_retry() -> None:
    session = after(behind("waiting"), Release(replay_id=REPLAY), Pause(replay_id=REPLAY))
    session = after(session, Resume(replay_id=REPLAY))
    assert (session.state, session.released) == ("waiting", True)
    session = after(session, step_report(session, "gate", "failed", error="no topic"))
    assert after(session, Retry(replay_id=REPLAY)).released


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        ("paused", "use resume, then release"),
        ("paused unplanned", "use resume, then release"),
        ("failed", "use retry, then release"),
        ("cancelled", "it is cancelled"),
    ],
)
def test_a_release_that_is_refused_names_the_remedy(state: str, remedy: str) -> None:
    session = behind(state)
    assert "release" not in session.verbs
    with pytest.raises(CommandConflict, match=remedy):
        on_command(session, Release(replay_id=REPLAY), at(5))


def test_a_replay_that_has_begun_needs_no_release() -> None:
    session = behind("running")
    assert "release" not in session.verbs
    assert on_command(session, Release(replay_id=REPLAY), at(5)) == Step.nothing(session)


def test_a_replay_that_nobody_lets_begin_is_not_stalled_as_long_as_its_gate_reports() -> None:
    session = behind("waiting")
    for second in range(10, 1000, 60):
        step = on_report(
            session, step_report(session, "gate", "live", slice=second, reason="b"), at(second)
        )
        assert step.session is not None
        session = step.session
        assert on_nudge(session, at(second + 59), STALL, RETENTION) == Step.nothing(session)
    assert (session.state, session.stalled, session.repairs) == ("waiting", False, 0)
    repaired = on_nudge(session, at(second + 30 * MAX_SILENCE_FACTOR), STALL, RETENTION)
    assert [token.kind for token in repaired.tokens] == ["gate"]


def test_a_resumed_replay_waits_again_only_if_it_had_not_begun() -> None:
    paused = after(waiting(), Pause(replay_id=REPLAY))
    step = on_command(paused, Resume(replay_id=REPLAY), at(5))
    assert [(token.kind, token.epoch) for token in step.tokens] == [("gate", 3)]

    begun = waiting()
    begun = after(begun, step_report(begun, "gate"), Pause(replay_id=REPLAY))
    step = on_command(begun, Resume(replay_id=REPLAY), at(5))
    assert [token.kind for token in step.tokens] == ["emit", "emit"]


def test_a_beginning_announced_while_pausing_is_not_announced_again() -> None:
    session = waiting()
    late = step_report(session, "gate")
    session = after(session, Pause(replay_id=REPLAY), late)
    assert session.state == "paused"
    step = on_command(session, Resume(replay_id=REPLAY), at(5))
    assert [token.kind for token in step.tokens] == ["emit", "emit"]


def test_a_beginning_that_may_have_been_announced_gets_its_end() -> None:
    session = after(waiting(), Cancel(replay_id=REPLAY))
    session = answer_all(session, "stopped")
    assert (session.state, session.finishing) == ("cancelling", True)


def test_a_gate_passed_under_an_older_epoch_opens_the_way() -> None:
    session = waiting()
    late = step_report(session, "gate")
    repaired = on_nudge(session, at(100), STALL, RETENTION).session
    step = on_report(repaired, late, at(101))
    assert step.session is not None
    assert repaired is not None
    assert (step.session.state, step.session.epoch) == ("running", repaired.epoch + 1)
    assert [token.kind for token in step.tokens] == ["emit", "emit"]


def test_a_cancel_is_announced_where_the_beginning_was() -> None:
    session = waiting()
    session = after(session, step_report(session, "gate"), Cancel(replay_id=REPLAY))
    session = after(session, shard_report(session, 0, "stopped", slice=STOP_SLICE))
    step = on_report(session, shard_report(session, 1, "stopped", slice=STOP_SLICE), at(2))
    assert step.session is not None
    assert [(token.kind, token.outcome) for token in step.tokens] == [("finish", "cancelled")]
    assert after(step.session, step_report(session, "finish")).state == "cancelled"


def test_a_cancel_that_cannot_be_announced_is_a_cancel_all_the_same() -> None:
    session = waiting()
    session = after(session, step_report(session, "gate"), Cancel(replay_id=REPLAY))
    session = answer_all(session, "stopped")
    session = after(session, step_report(session, "finish", "failed", error="no topic 'orders'"))
    assert session.state == "cancelled"
    assert session.warnings == ("the cancellation could not be announced: no topic 'orders'",)


# What is shown


def test_what_consumers_do_not_see_is_the_reason_of_a_replay_that_goes_on() -> None:
    session = running()
    hidden = shard_report(session, 0, read=1).model_copy(update={"reason": "consumers wait"})
    assert not hidden.is_waiting  # the shard goes on
    step = on_report(session, hidden, at(3))
    assert step.session is not None
    assert (step.session.reason, step.urgent) == ("consumers wait", True)
    waiting = shard_report(session, 0, read=1, slice=2, reason="the store does not answer")
    both = after(step.session, waiting.model_copy(update={"reason": "consumers wait"}))
    assert both.reason == "the store does not answer"
    assert after(both, shard_report(session, 0, read=2, slice=3)).reason is None


def test_a_slice_s_warnings_stay_and_are_told_once() -> None:
    session = running()
    for number in (1, 2):
        report = shard_report(session, 0, read=number, slice=number)
        step = on_report(session, report.model_copy(update={"warnings": ("it grew",)}), at(3))
        assert step.session is not None
        assert (step.session.warnings, step.urgent) == (("it grew",), number == 1)
        session = step.session
    assert after(session, Pause(replay_id=REPLAY)).warnings == ("it grew",)


def test_a_reason_goes_when_the_state_changes() -> None:
    session = running()
    session = after(session, shard_report(session, 0, reason="the store does not answer"))
    assert session.reason == "the store does not answer"
    session = after(session, Pause(replay_id=REPLAY))
    assert session.reason is None
    assert answer_all(session, "stopped").reason is None


def test_a_pace_is_shown_only_while_it_runs() -> None:
    session = running()
    session = after(session, shard_report(session, 0, read=10), seconds=2)
    assert session.events_per_second
    session = after(session, Pause(replay_id=REPLAY))
    session = after(session, shard_report(session, 1, read=5, slice=9, epoch=1), seconds=3)
    assert session.events_per_second is None


def test_the_pace_follows_a_change_within_some_seconds() -> None:
    session = running(1)
    for second in range(2, 12):
        session = after(
            session, shard_report(session, 0, read=100 * second, slice=second), seconds=second
        )
    assert session.events_per_second == pytest.approx(100, rel=0.2)
    for second in range(12, 42):
        session = after(
            session,
            shard_report(session, 0, read=1100 + 10 * (second - 11), slice=second),
            seconds=second,
        )
    assert session.events_per_second == pytest.approx(10, rel=0.2)


def test_the_speed_of_a_throttled_replay_is_never_above_its_rate() -> None:
    session = after(None, start(rate=500))
    session = after(session, step_report(session, "plan", plan=plan(1, 30_000)))
    for half in range(1, 41):  # a burst of half a second's events at the begin of each half second
        report = shard_report(session, 0, read=250 * half, slice=half)
        session = after(session, report, seconds=1 + (half - 1) / 2 + 0.05)
        assert session.events_per_second is not None
        assert session.events_per_second <= 500
        left = 30_000 - 250 * half
        assert session.eta_seconds is not None
        assert session.eta_seconds >= round(left / 500, 1)
    assert session.events_per_second == pytest.approx(500, rel=0.1)


def test_a_new_rate_starts_the_measurement_of_the_speed_again() -> None:
    session = running(1)
    for second in range(2, 12):
        report = shard_report(session, 0, read=500 * second, slice=second)
        session = after(session, report, seconds=second)
    session = after(session, SetRate(replay_id=REPLAY, rate=100), seconds=12)
    assert (session.events_per_second, session.eta_seconds) == (None, None)
    session = after(session, shard_report(session, 0, read=5550, slice=12), seconds=12.5)
    assert session.events_per_second == 100


def test_offsets_of_all_shards_are_one_range_per_partition() -> None:
    session = running()
    session = after(session, shard_report(session, 0, "done", offsets={"orders": {0: (5, 9)}}))
    session = after(
        session,
        shard_report(
            session, 1, "done", offsets={"orders": {0: (2, 7), 1: (0, 0)}, "x": {0: (1, 1)}}
        ),
    )
    session = after(session, step_report(session, "finish"))
    assert session.receipt is not None
    assert session.receipt.offsets == {"orders": {0: (2, 9), 1: (0, 0)}, "x": {0: (1, 1)}}


def test_a_session_of_many_shards_types_and_failures_fits_into_a_record() -> None:
    session = running(256)
    for number in range(256):
        session = after(
            session,
            shard_report(
                session,
                number,
                "done",
                read=1000,
                failed=MAX_LISTED_FAILURES,
                failures=tuple(Failure(event_id="e", reason="r" * 200) for _ in range(100)),
                by_type={f"some.type.of.events.{n}": n + 1 for n in range(500)},
                by_topic={f"some.topic.of.events.{n}": n + 1 for n in range(500)},
                offsets={"some.topic": dict.fromkeys(range(100), (0, 10**9))},
            ),
        )
    session = after(session, step_report(session, "finish"))
    assert len(session.encode()) < 900_000
    assert session.receipt is not None
    assert sum(session.receipt.by_type.values()) == 256 * sum(range(1, 501))
    assert OTHER in session.receipt.by_type


def test_a_session_too_large_for_a_record_loses_its_long_lists_but_no_counter() -> None:
    session = running(2)
    names = {f"{n:04}".rjust(249, "t"): 1 for n in range(500)}
    offsets = {topic: {n: (n, n) for n in range(10)} for topic in names}
    for number in range(2):
        session = after(
            session,
            shard_report(
                session, number, "done", by_type=names, by_topic=names, offsets=offsets, read=500
            ),
        )
    session = after(session, step_report(session, "finish"))
    assert len(session.encode()) > MAX_INTERNAL_BYTES
    small, record = fit_record(session)
    assert record == small.encode()
    assert len(small.encode()) < MAX_INTERNAL_BYTES / 10
    assert small.counters == session.counters
    assert small.receipt is not None
    assert sum(small.receipt.by_type.values()) == 1000
    assert "the lists are shortened" in small.warnings[-1]
    assert fit_record(small) == (small, record)


# The hand-over


def handed(**fields: Any) -> Plan:
    """Return a plan that knows from where one live topic is read on."""
    known: dict[str, Any] = {"handover": {"a": {0: 5}, "b": None}, "live_ids": {"a": "01"}}
    known |= {"topic_ids": {"new.a": "02"}, "handover_time": T0}
    return plan(**known | fields)


def test_the_hand_over_of_the_plan_is_in_the_session_and_in_the_receipt() -> None:
    session = after(None, start())
    assert session.handover == {}
    session = after(session, step_report(session, "plan", plan=handed()))
    assert session.handover == {"a": {0: 5}, "b": None}
    session = answer_all(session, "done")
    seen = step_report(session, "finish", visible_at=at(3), behind=2)
    receipt = after(session, seen).receipt
    assert receipt is not None
    assert (receipt.handover, receipt.handover_time) == ({"a": {0: 5}, "b": None}, T0)
    assert (receipt.visible, receipt.visible_at, receipt.behind) == (True, at(3), 2)


def test_a_retry_keeps_the_hand_over_and_adds_what_was_unknown() -> None:
    session = after(None, start())
    session = after(session, step_report(session, "plan", plan=handed()))
    session = after(session, shard_report(session, 0, "failed", error="no topic"))
    session = after(session, Retry(replay_id=REPLAY))
    later = handed(
        handover={"a": {0: 99}, "b": {0: 7}, "c": {0: 8}},
        handover_time=at(60),
        live_ids={"a": "0a", "b": "0b"},
        topic_ids={"new.a": "0c"},
    )
    session = after(session, step_report(session, "plan", plan=later))
    assert session.handover == {"a": {0: 5}, "b": {0: 7}, "c": {0: 8}}
    assert session.plan is not None
    assert session.plan.handover_time == T0
    assert session.plan.live_ids == {"a": "01", "b": "0b"}
    assert session.plan.topic_ids == {"new.a": "02"}  # the offsets are those of the old topic


@pytest.mark.parametrize("kind", ["count", "finish"])
def test_a_count_and_the_finish_step_add_live_topics(kind: str) -> None:
    session = after(None, start())
    unknown = f"{UNKNOWN_HANDOVER} 'b': no answer"
    first = handed(matched=None, counted="running", warnings=("odd", unknown))
    session = after(session, step_report(session, "plan", plan=first))
    session = answer_all(session, "done") if kind == "finish" else session
    more = handed(shards=0, handover={"a": {0: 99}, "b": {0: 7}, "c": {}}, handover_time=at(60))
    session = after(session, step_report(session, kind, plan=more))
    assert session.handover == {"a": {0: 5}, "b": {0: 7}, "c": {}}
    assert session.warnings == ("odd",)  # and no longer that a hand-over is unknown
    assert session.plan is not None
    assert (session.plan.handover_time, len(session.plan.shards)) == (T0, 2)


def test_a_cancelled_replay_does_not_say_that_consumers_see_all() -> None:
    session = after(None, start())
    session = after(session, step_report(session, "plan", plan=handed()))
    session = answer_all(after(session, Cancel(replay_id=REPLAY)), "stopped")
    assert session.receipt is not None
    assert (session.receipt.visible, session.receipt.behind) == (False, None)
    assert session.receipt.handover == {"a": {0: 5}, "b": None}


def test_a_session_of_an_older_version_has_no_hand_over() -> None:
    value = json.loads(completed().encode())
    for part, names in (
        (value["plan"], ("handover", "handover_time", "live_ids", "topic_ids")),
        (value["receipt"], ("handover", "handover_time", "visible", "visible_at", "behind")),
        (value, ("handover",)),
    ):
        for name in names:
            del part[name]
    session = decode_session(json.dumps(value).encode())
    assert session == completed()


def test_a_session_too_large_for_a_record_loses_its_hand_over() -> None:
    names = [f"{n:04}".rjust(249, "t") for n in range(500)]
    wide = handed(handover={name: dict.fromkeys(range(4), 10**12) for name in names})
    session = after(None, start())
    session = after(session, step_report(session, "plan", plan=wide))
    session = after(answer_all(session, "done"), step_report(session, "finish"))
    assert len(session.encode()) < MAX_INTERNAL_BYTES  # the largest hand-over fits by itself
    small, _ = fit_record(session, max_bytes=100_000)
    assert (small.handover, small.receipt and small.receipt.handover) == ({}, {})
    assert "the lists are shortened" in small.warnings[-1]


def test_a_usual_session_is_published_as_it_is() -> None:
    session = running()
    assert fit_record(session) == (session, session.encode())


def test_offsets_of_more_partitions_than_a_record_holds_are_left_out() -> None:
    many = {topic: {n: (0, n) for n in range(3000)} for topic in ("a", "b")}
    listed = bound_offsets(many)
    assert listed["a"] == many["a"]
    assert sum(map(len, listed.values())) == MAX_LISTED_OFFSETS


@pytest.mark.parametrize(
    ("state", "kind", "sent"),
    [
        ("pending", "plan", True),
        (
            "planning",
            "emit",
            False,
        ),  # the plan has come, and the session with the plan is not published yet
        ("planning", "gate", False),
        ("waiting", "gate", True),
        ("waiting", "emit", False),
        ("running", "emit", True),
        ("running", "count", True),
        ("running", "finish", False),
        ("finishing", "finish", True),
        ("completed", "finish", True),
        ("pausing", "stop", True),
        ("paused", "stop", True),
    ],
)
def test_a_token_can_come_before_the_session_that_sent_it(
    state: str, kind: Any, sent: bool
) -> None:
    session = SESSIONS[state]()
    token = Token(replay_id=REPLAY, epoch=session.epoch, kind=kind)
    assert session.has_sent(token) is sent
    assert not session.has_sent(token.model_copy(update={"epoch": session.epoch + 1}))
    assert session.has_sent(token.model_copy(update={"epoch": session.epoch - 1}))


def test_a_session_survives_its_record() -> None:
    for make in SESSIONS.values():
        session = make()
        assert decode_session(session.encode()) == session
    assert decode_session(None) is None


def test_a_session_that_cannot_be_shown_is_no_session() -> None:
    shard = {"progress": {"counters": {"read": 2**53}}}  # the sum of two is too large
    odd = json.loads(SESSIONS["running"]().encode()) | {"shards": [shard, shard]}
    with pytest.raises(ValueError, match="read"):
        decode_session(json.dumps(odd).encode())


# Nudges


@pytest.mark.parametrize("state", SESSIONS)
def test_a_nudge_in_time_changes_nothing(state: str) -> None:
    session = SESSIONS[state]()
    assert on_nudge(session, at(20), STALL, RETENTION) == Step.nothing(session)
    assert on_nudge(None, at(20), STALL, RETENTION) == Step.nothing(None)


def test_why_a_worker_cannot_begin_is_shown_until_it_reports() -> None:
    session = running()
    told = on_nudge(session, at(20), STALL, RETENTION, "no right")
    assert told.session is not None
    assert (told.session.reason, told.urgent, told.tokens) == ("no right", True, ())
    assert not on_nudge(told.session, at(21), STALL, RETENTION, "no right").changed
    repaired = on_nudge(told.session, at(100), STALL, RETENTION, "no right")
    assert repaired.tokens
    assert repaired.session is not None
    assert repaired.session.reason == "no right"
    paused = session.model_copy(update={"state": "paused"})
    assert not on_nudge(paused, at(20), STALL, RETENTION, "no right").changed


@pytest.mark.parametrize(
    ("state", "tokens"),
    [
        ("pending", ["plan"]),
        ("planning", ["plan"]),
        ("waiting", ["gate"]),
        ("running", ["emit", "emit"]),
        ("counting", ["emit", "emit", "count"]),
        ("finishing", ["finish"]),
        ("pausing", ["stop", "stop"]),
        ("cancelling", ["stop", "stop"]),
        ("paused", []),
        ("cancelled", []),
        ("completed", []),
        ("failed", []),
    ],
)
def test_a_silent_chain_starts_again_under_a_new_epoch(state: str, tokens: list[str]) -> None:
    session = SESSIONS[state]()
    step = on_nudge(session, at(40), STALL, RETENTION)
    assert [token.kind for token in step.tokens] == tokens
    assert step.session is not None
    if tokens:
        assert (step.session.epoch, step.session.repairs) == (session.epoch + 1, 1)
        assert {token.epoch for token in step.tokens} == {session.epoch + 1}
        assert "no worker was heard for 39 s" in (step.session.reason or "")
        assert step.session.state == session.state
    else:
        assert step == Step.nothing(session)


def test_one_silent_shard_among_busy_ones_is_enough() -> None:
    session = running()
    for second in range(2, 40):
        session = after(
            session, shard_report(session, 0, read=second, slice=second), seconds=second
        )
    step = on_nudge(session, at(40), STALL, RETENTION)
    assert [(token.kind, token.shard) for token in step.tokens] == [("emit", 0), ("emit", 1)]
    assert step.session is not None
    assert not step.session.stalled


def test_a_shard_that_is_done_or_has_answered_may_be_silent() -> None:
    session = running()
    session = after(session, shard_report(session, 1, "done"))
    session = after(session, shard_report(session, 0, read=1), seconds=39)
    assert on_nudge(session, at(40), STALL, RETENTION) == Step.nothing(session)
    session = after(running(), Pause(replay_id=REPLAY))
    session = after(session, shard_report(session, 1, "stopped"))
    session = after(session, shard_report(session, 0, "live", slice=3, epoch=1), seconds=39)
    assert on_nudge(session, at(40), STALL, RETENTION).tokens == ()


def test_each_repair_waits_longer_up_to_a_limit() -> None:
    session, now, waits = running(), 1, []
    for _ in range(6):
        began = now
        while True:
            now += 1
            step = on_nudge(session, at(now), STALL, RETENTION)
            assert step.session is not None
            repaired = step.session.epoch > session.epoch
            session = step.session
            if repaired:
                break
        waits.append(now - began)
    assert waits == [30, 60, 120, 240, 30 * MAX_SILENCE_FACTOR, 30 * MAX_SILENCE_FACTOR]


def test_a_replay_that_waits_for_the_time_of_its_next_event_is_not_stalled() -> None:
    session = running(1)
    waits = shard_report(session, 0, reason=f"{NEXT_EVENT} 2026-01-02T00:00:00Z")
    session = on_report(session, waits, at(200)).session or session
    step = on_nudge(session, at(201), STALL, RETENTION)
    assert step.session is not None
    assert (step.session.stalled, step.session.repairs) == (False, 0)


def test_it_is_stalled_while_workers_answer_and_nothing_moves() -> None:
    session = running(1)
    for second in range(2, 40):
        report = shard_report(session, 0, slice=second, reason="the store does not answer")
        session = after(session, report, seconds=second)
    step = on_nudge(session, at(40), STALL, RETENTION)
    assert step.session is not None
    assert (step.session.stalled, step.session.epoch) == (True, session.epoch)
    assert step.session.events_per_second is None
    assert step.session.reason == "the store does not answer"
    assert on_nudge(step.session, at(41), STALL, RETENTION) == Step.nothing(step.session)
    moved = on_report(step.session, shard_report(session, 0, read=5, slice=50), at(42))
    assert moved.session is not None
    assert (moved.session.stalled, moved.urgent) == (False, True)


@pytest.mark.parametrize("state", ["cancelled", "completed", "completed_with_errors", "failed"])
def test_an_ended_session_is_forgotten_with_its_checkpoints_after_its_retention(
    state: str,
) -> None:
    session = SESSIONS[state]()
    before = T0 + RETENTION
    assert on_nudge(session, before, STALL, RETENTION) == Step.nothing(session)
    step = on_nudge(session, before + timedelta(seconds=1), STALL, RETENTION)
    assert step.session is None
    assert [(token.kind, token.shard) for token in step.tokens] == [
        ("forget", part) for part in ("plan", "count", "gate", "finish", 0, 1)
    ]


@pytest.mark.parametrize("state", sorted(set(SESSIONS) - set(TERMINAL) - {"failed"}))
def test_a_session_that_can_go_on_by_itself_or_by_a_resume_is_never_forgotten(state: str) -> None:
    step = on_nudge(SESSIONS[state](), T0 + 10 * RETENTION, STALL, RETENTION)
    assert step.session is not None


def test_a_waiting_shard_is_woken_by_a_state_an_epoch_or_a_rate_but_not_by_counters() -> None:
    session = running()
    moved = after(session, shard_report(session, 0, read=5))
    assert moved.counters != session.counters
    assert moved.orders == session.orders
    for command in (SetRate(replay_id=REPLAY, rate=5), Pause(replay_id=REPLAY)):
        assert after(session, command).orders != session.orders


def test_a_shard_that_waits_says_so_like_a_step() -> None:
    session = running()
    assert not shard_report(session, 0).is_waiting
    assert shard_report(session, 0, reason="the store is away").is_waiting
    assert step_report(session, "gate", "live", reason="waiting for replay 'x'").is_waiting


# The verbs that a session offers


VERB_COMMANDS: dict[str, Command] = {
    "pause": Pause(replay_id=REPLAY),
    "resume": Resume(replay_id=REPLAY),
    "cancel": Cancel(replay_id=REPLAY),
    "retry": Retry(replay_id=REPLAY),
    "release": Release(replay_id=REPLAY),
    "step": StepOn(replay_id=REPLAY, events=1, published=0),
    "set-rate": SetRate(replay_id=REPLAY, rate=7),
}


@pytest.mark.parametrize("others", [(), ("first",)])
@pytest.mark.parametrize("finishing", [False, True])
@pytest.mark.parametrize("state", get_args(State))
def test_a_session_offers_the_verbs_that_would_change_it(
    state: State, others: tuple[str, ...], *, finishing: bool
) -> None:
    session = Session(
        replay_id=REPLAY,
        state=state,
        finishing=finishing,
        start=start(after=others),
        plan=plan(),
        shards=(Shard(), Shard()),
        created_at=T0,
        updated_at=T0,
        progressed_at=T0,
        heard_at=T0,
    )

    def changes(command: Command) -> bool:
        try:
            return on_command(session, command, at(1)).changed
        except CommandConflict:
            return False

    assert set(VERB_COMMANDS) == set(VERBS)
    assert set(session.verbs) == {v for v, command in VERB_COMMANDS.items() if changes(command)}
    assert json.loads(session.encode())["verbs"] == list(session.verbs)


# Verdicts


def noted(seconds: float = 100, **found: Any) -> NoteVerification:
    verification = Verification(verdict="equal", at=at(seconds), seconds=1.0, **found)
    return NoteVerification(replay_id=REPLAY, verification=verification)


@pytest.mark.parametrize("state", get_args(State))
def test_a_verdict_is_kept_with_a_completed_replay_only(state: State) -> None:
    session = running(2).model_copy(update={"state": state})
    if state not in {"completed", "completed_with_errors"}:
        with pytest.raises(CommandConflict, match="only a completed replay is verified"):
            on_command(session, noted(), at(200))
        return
    step = on_command(session, noted(records=7), at(200))
    assert step.session is not None
    assert (step.tokens, step.urgent) == ((), True)
    assert step.session.verification == noted(records=7).verification
    changed = {"verification": step.session.verification, "updated_at": at(200)}
    assert step.session == session.model_copy(update=changed)
    assert decode_session(step.session.encode()) == step.session


def test_a_verdict_replaces_an_older_one_and_no_newer_one() -> None:
    session = running(2).model_copy(update={"state": "completed"})
    first = on_command(session, noted(100), at(200)).session
    assert not on_command(first, noted(100), at(201)).changed  # Kafka may bring a command again
    assert not on_command(first, noted(99), at(201)).changed
    newer = on_command(first, noted(101, missing=1), at(201)).session
    assert newer is not None
    assert newer.verification == noted(101, missing=1).verification


def test_a_verdict_of_the_future_is_refused_since_no_later_one_could_replace_it() -> None:
    session = running(2).model_copy(update={"state": "completed"})
    assert on_command(session, noted(200 + 300), at(200)).changed  # clocks differ
    with pytest.raises(CommandConflict, match="lies in the future"):
        on_command(session, noted(200 + 301), at(200))


def test_a_session_of_an_older_version_has_no_verdict() -> None:
    members = json.loads(running(2).encode())
    del members["verification"]
    session = decode_session(json.dumps(members).encode())
    assert session is not None
    assert session.verification is None


def test_a_plan_that_no_record_can_hold_fails_the_replay_before_its_first_event() -> None:
    session = running(2)
    assert session.plan is not None
    huge = session.plan.shards[0].model_copy(update={"match": {"a": "x" * MAX_INTERNAL_BYTES}})
    plan = session.plan.model_copy(update={"shards": (huge, huge)})
    small, record = fit_record(session.model_copy(update={"plan": plan}))
    assert len(record) <= MAX_INTERNAL_BYTES
    assert (small.state, small.shards, small.plan) == ("failed", (), None)
    assert "larger than the 1,000,000 bytes of a record" in (small.error or "")


def test_long_texts_do_not_fail_a_replay_that_runs() -> None:
    session = running(2)
    failures = tuple(Failure(event_id=None, reason="x" * 100_000) for _ in range(10))
    session = after(session, shard_report(session, 0, read=10, failures=failures))
    small, record = fit_record(session)
    assert len(record) <= MAX_INTERNAL_BYTES
    assert small.state == "running"
    assert small.counters == session.counters
    assert small.plan is not None
    assert session.plan is not None
    assert small.plan.partitions == session.plan.partitions


# Accepted changes


def test_a_retry_that_accepts_changes_plans_again_and_says_so_only_if_there_are_any() -> None:
    def planned(source: dict[str, str], *warnings: str) -> Plan:
        return plan(1).model_copy(update={"source": source, "warnings": warnings})

    session = after(None, start())
    session = after(session, step_report(session, "plan", plan=planned({"a": "1"})))
    session = after(session, shard_report(session, 0, "failed", error="a was 1", read=3))
    accepting = Retry(replay_id=REPLAY, accept_changes=True)
    step = on_command(session, accepting, at(2))
    assert [token.kind for token in step.tokens] == ["plan"]
    assert step.session is not None
    again = step.session
    assert (again.accepts_changes, again.has_changed) == (True, False)
    for repeated in (accepting, Retry(replay_id=REPLAY)):
        assert on_command(again, repeated, at(3)) == Step.nothing(again)
    same = after(again, step_report(again, "plan", plan=planned({"a": "1"})))
    assert not same.has_changed
    warning = f"{ACCEPTED}, which count from there on: a"
    other = after(again, step_report(again, "plan", plan=planned({"a": "2"}, warning)))
    assert other.has_changed
    assert warning in other.warnings
    # A further retry accepts nothing new, and does not hide what was accepted.
    other = after(other, shard_report(other, 0, "failed", error="no topic"))
    other = after(other, Retry(replay_id=REPLAY))
    assert not other.accepts_changes
    other = after(other, step_report(other, "plan", plan=planned({"a": "2"})))
    assert (other.has_changed, other.warnings.count(warning)) == (True, 1)
