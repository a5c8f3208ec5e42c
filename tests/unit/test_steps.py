"""Steps: a paused replay publishes some more events, and pauses again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replay_app.commands import Pause, Resume, Start, StepOn
from replay_app.consumption import allowance
from replay_app.exceptions import CommandConflict
from replay_app.reports import Counters, Plan, Report, ShardPlan, ShardProgress
from replay_app.sessions import Session
from replay_app.transitions import on_command, on_report

T0 = datetime(2026, 1, 1, tzinfo=UTC)
STOP_SLICE = 2**31


def step_on(events: int, published: int = 0) -> StepOn:
    return StepOn(replay_id="r", events=events, published=published)


def applied(session: Session | None, *changes: Any) -> Session:
    for number, change in enumerate(changes, 1):
        at = T0 + timedelta(seconds=number)
        step = (on_report if isinstance(change, Report) else on_command)(session, change, at)
        session = step.session
    assert session is not None
    return session


def planned(session: Session, shards: int = 1) -> Report:
    shard = ShardPlan(match={}, sort=("_id",))
    plan = Plan(end=T0, matched=9, shards=(shard,) * shards)
    return Report(replay_id="r", kind="plan", epoch=session.epoch, state="done", plan=plan)


def progress(session: Session, published: int, state: Any = "live", number: int = 1) -> Report:
    counters = Counters(read=published, published=published)
    return Report(
        replay_id="r",
        kind="shard",
        shard=0,
        epoch=session.epoch,
        slice=number,
        progress=ShardProgress(state=state, counters=counters),
    )


def stopped(session: Session, published: int) -> Report:
    return progress(session, published, "stopped", STOP_SLICE)


def started(**fields: Any) -> Session:
    return applied(None, Start.model_validate({"replay_id": "r", "paused": True, **fields}))


def test_a_replay_that_starts_paused_sends_nothing_and_is_planned_by_its_first_step() -> None:
    step = on_command(None, Start(replay_id="r", paused=True), T0)
    assert step.session is not None
    assert (step.session.state, step.tokens) == ("paused", ())
    step = on_command(step.session, step_on(2, 0), T0)
    assert step.session is not None
    assert (step.session.state, step.session.step_to) == ("pending", 2)
    assert [token.kind for token in step.tokens] == ["plan"]


def test_a_step_pauses_when_its_events_are_published_and_the_next_one_goes_on() -> None:
    session = applied(started(), step_on(2, 0))
    session = applied(session, planned(session))
    assert (session.state, allowance(session, 0, 0), allowance(session, 0, 1)) == ("running", 2, 1)
    session = applied(session, progress(session, 1))
    assert (session.state, allowance(session, 0, 1), allowance(session, 0, 2)) == ("running", 1, 0)
    session = applied(session, progress(session, 2, number=2))
    assert (session.state, allowance(session, 0, 2)) == ("pausing", 0)
    session = applied(session, stopped(session, 2))
    assert session.state == "paused"
    session = applied(session, step_on(3, 2))
    assert (session.state, session.step_to, allowance(session, 0, 2)) == ("running", 5, 3)


def test_the_last_event_of_a_replay_needs_no_further_step() -> None:
    session = applied(started(), step_on(2, 0))
    session = applied(session, planned(session))
    session = applied(session, progress(session, 2, "done"))
    assert (session.state, session.finishing) == ("running", True)


def test_a_resume_goes_on_to_the_end_and_a_pause_keeps_the_limit_until_then() -> None:
    session = applied(started(), step_on(5, 0))
    session = applied(session, planned(session), Pause(replay_id="r"))
    assert allowance(session, 0, 5) == 0
    session = applied(session, stopped(session, 1), Resume(replay_id="r"))
    assert (session.step_to, allowance(session, 0, 1)) == (None, None)


def test_a_resume_while_a_step_runs_is_the_way_to_the_end() -> None:
    session = applied(started(), step_on(3))
    session = applied(session, planned(session), progress(session, 0))
    assert "resume" in session.verbs
    session = applied(session, Resume(replay_id="r"))
    assert (session.state, session.step_to) == ("running", None)
    assert "resume" not in session.verbs
    assert on_command(session, Resume(replay_id="r"), T0).changed is False


def test_the_same_step_twice_is_carried_out_once() -> None:
    once = applied(started(), step_on(2, 0))
    assert applied(once, step_on(2, 0)) == once
    session = applied(once, planned(once))
    session = applied(session, progress(session, 2))
    assert on_command(session, step_on(2), T0).changed is False
    session = applied(session, stopped(session, 2))
    with pytest.raises(CommandConflict, match="it has published 2 events, not 0: look again"):
        on_command(session, step_on(2, 0), T0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"ordering": "aggregate"}, "a step needs the ordering global"),
        ({"dry_run": True}, "and no dry run"),
    ],
)
def test_where_no_next_event_can_be_told_a_step_is_refused(
    fields: dict[str, Any], told: str
) -> None:
    session = started(**fields)
    assert "step" not in session.verbs
    with pytest.raises(CommandConflict, match=told):
        on_command(session, step_on(1), T0)


def test_only_a_paused_replay_takes_a_step() -> None:
    session = applied(None, Start(replay_id="r"))
    assert "step" not in session.verbs
    with pytest.raises(CommandConflict, match="pause it first"):
        on_command(session, step_on(1), T0)
    session = applied(session, Pause(replay_id="r"))
    assert "step" in session.verbs


def test_a_report_of_a_paused_replay_does_not_pause_it_again() -> None:
    session = applied(started(), step_on(1, 0))
    session = applied(session, planned(session))
    session = applied(session, progress(session, 1))
    late = progress(session, 1, number=2).model_copy(update={"epoch": session.epoch - 1})
    assert applied(session, late).state == "pausing"
