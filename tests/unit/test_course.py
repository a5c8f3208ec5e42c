"""The history and the series of a replay: what they keep, and that they stay small."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replay_app.commands import Command, Filter, Pause, Retry, SetRate, Start, StepOn
from replay_app.course import note_course
from replay_app.history import KEPT_FIRST, MAX_CHANGES, MAX_DETAIL, changes_of
from replay_app.reports import Counters, Plan, ShardProgress, Waits
from replay_app.series import MAX_POINTS, points_of
from replay_app.sessions import Session, Shard, decode_session, fit_record

T0 = datetime(2026, 1, 1, tzinfo=UTC)
REPLAY = "orders-1"


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def session(read: int = 0, store: float = 0.0, **fields: Any) -> Session:
    progress = ShardProgress(
        counters=Counters(read=read, published=read), waits=Waits(store=store, broker=2 * store)
    )
    members: dict[str, Any] = {
        "state": "running",
        "start": Start(replay_id=REPLAY, reason="a corrupt view"),
        "plan": Plan(end=T0, matched=None),
        "shards": (Shard(progress=progress),),
    }
    times = dict.fromkeys(("created_at", "updated_at", "progressed_at", "heard_at"), T0)
    return Session(replay_id=REPLAY, **(times | members | fields))


def grown(steps: int, gap: float = 1.0) -> Session:
    """Return a session after some steps, each of which has read ten more events."""
    now = session()
    for number in range(steps):
        nxt = session(10 * number, number / 10, history=now.history, series=now.series)
        now = note_course(now, nxt, None, at(number * gap))
    return now


def test_a_change_of_the_state_is_noted_with_its_reason() -> None:
    after = note_course(session(), session(state="failed", error="no topic"), None, at(5))
    (change,) = changes_of(after.history)
    assert (change.at, change.command, change.by) == (at(5), None, None)
    assert (change.state, change.detail) == ("failed", "no topic")


def test_counters_alone_are_no_change() -> None:
    assert grown(5).history == ()


@pytest.mark.parametrize(
    ("command", "detail"),
    [
        (Start(replay_id=REPLAY, reason="a corrupt view", requested_by="ana"), "a corrupt view"),
        (Pause(replay_id=REPLAY, requested_by="ana"), None),
        (SetRate(replay_id=REPLAY, rate=5, requested_by="ana"), None),
        (StepOn(replay_id=REPLAY, events=3, published=0, requested_by="ana"), "3 events"),
        (
            Retry(
                replay_id=REPLAY,
                on_error="skip",
                skip_events=("e1", "e2"),
                accept_changes=True,
                requested_by="ana",
            ),
            "on_error skip; skip e1, e2; accept changes",
        ),
    ],
)
def test_a_command_is_noted_with_who_gave_it(command: Command, detail: str | None) -> None:
    after = note_course(session(), session(rate=5.0), command, at(1))
    (change,) = changes_of(after.history)
    assert (change.command, change.by, change.rate) == (command.command, "ana", 5.0)
    assert change.detail == detail


def test_a_long_detail_is_cut() -> None:
    after = note_course(session(), session(state="failed", error="x" * 5000), None, at(1))
    assert len(changes_of(after.history)[0].detail or "") == MAX_DETAIL


def test_the_history_keeps_the_first_and_the_last_changes_and_counts_the_lost_ones() -> None:
    now = session()
    for number in range(250):
        now = note_course(now, now, SetRate(replay_id=REPLAY, rate=number + 1), at(number))
        now = now.model_copy(update={"rate": float(number + 2)})
    rates = [change.at for change in changes_of(now.history)]
    assert len(rates) == MAX_CHANGES
    assert rates[:KEPT_FIRST] == [at(number) for number in range(KEPT_FIRST)]
    assert rates[KEPT_FIRST:] == [at(n) for n in range(250 - MAX_CHANGES + KEPT_FIRST, 250)]
    assert now.history_dropped == 250 - MAX_CHANGES


def test_the_series_begins_with_the_plan() -> None:
    assert note_course(None, session(plan=None), None, T0).series is None


def test_points_are_due_once_a_second_and_at_each_change_of_the_state() -> None:
    often = grown(10, gap=0.3)
    assert [round((one.at - T0).total_seconds(), 1) for one in points_of(often.series)] == [
        0.0,
        1.2,
        2.4,
    ]
    paused = note_course(often, often.model_copy(update={"state": "paused"}), None, at(2.8))
    assert len(points_of(paused.series)) == 4


def test_a_point_has_the_counters_and_waits_of_all_shards() -> None:
    last = points_of(grown(4).series)[-1]
    assert (last.at, last.read, last.published) == (at(3), 30, 30)
    assert (last.store_seconds, last.encoder_seconds, last.broker_seconds) == (0.3, 0.0, 0.6)


@pytest.mark.parametrize("steps", [120, 121, 500, 5000])
def test_a_long_series_stays_small_and_spans_the_whole_replay(steps: int) -> None:
    points = points_of(grown(steps).series)
    assert MAX_POINTS / 4 < len(points) <= MAX_POINTS
    assert points[0].at == T0
    assert points == sorted(points)
    assert (at(steps - 1) - points[-1].at).total_seconds() <= 2 * steps / MAX_POINTS + 1


def test_a_session_with_a_full_course_is_read_again_and_stays_small() -> None:
    now = grown(2000).model_copy(update={"offsets": {}})
    for number in range(MAX_CHANGES):
        now = note_course(now, now, Pause(replay_id=REPLAY, requested_by="x" * 100), at(number))
    _, record = fit_record(now)
    assert decode_session(record) == now
    assert len(record) < 60_000


def test_a_replay_changes_its_state_as_often_as_anybody_wants() -> None:
    now = session()
    for number in range(5000):
        nxt = session(number, state="paused" if number % 2 else "running", series=now.series)
        now = note_course(now, nxt, None, at(number * 60))
    points = points_of(now.series)
    assert MAX_POINTS / 4 < len(points) <= MAX_POINTS
    assert decode_session(now.encode()) == now
    # Points between the changes come as often as before.
    later = note_course(now, session(6000, series=now.series, state=now.state), None, at(310_000))
    assert points_of(later.series)[-1].read == 6000


def test_a_clock_that_goes_back_keeps_the_points_in_order() -> None:
    now = note_course(session(), session(10, state="paused"), None, at(100))
    now = note_course(now, session(20, series=now.series), None, at(130))
    now = note_course(now, session(30, series=now.series, state="paused"), None, at(110))
    assert [one.read for one in points_of(now.series)] == [10, 20, 30]
    assert [one.at for one in points_of(now.series)] == [at(100), at(130), at(130)]


def test_hostile_waits_fit_the_series() -> None:
    shards = (Shard(progress=ShardProgress(waits=Waits(store=1e12))),) * 100
    now = note_course(None, session(shards=shards), None, T0)
    assert decode_session(now.encode()) == now


def test_a_session_that_is_too_large_loses_its_course_before_it_fails() -> None:
    full = grown(500)
    for number in range(MAX_CHANGES):
        full = note_course(full, full, Pause(replay_id=REPLAY), at(number))
    small, _ = fit_record(full, 4_000)
    assert small.state == "running"
    assert small.history == (full.history[0], *full.history[1 - KEPT_FIRST :])
    assert small.series is None
    assert small.history_dropped == MAX_CHANGES - KEPT_FIRST
    assert small.plan == full.plan


def test_the_answer_of_a_session_leaves_the_course_out() -> None:
    answer = note_course(None, session(), None, T0).answer()
    assert "history" not in answer
    assert "series" not in answer


@pytest.mark.parametrize(
    ("members", "seconds"),
    [
        ({"speed": 60.0}, 120.0),
        ({"speed": 60.0, "max_gap_seconds": 1.0}, None),
        ({"speed": 60.0, "filter": Filter(start=at(0))}, None),
        ({}, 45.0),
    ],
)
def test_the_time_left_is_that_of_the_pace_where_the_events_set_the_pace(
    members: dict[str, Any], seconds: float | None
) -> None:
    wanted = {"filter": Filter(end=at(10_800))} | members
    now = session(
        100,
        start=Start(replay_id=REPLAY, **wanted),
        plan=Plan(end=at(10_800), matched=1000),
        shards=(
            Shard(
                progress=ShardProgress(
                    counters=Counters(read=100, published=100), last_time=at(3600)
                )
            ),
        ),
        events_per_second=20.0,
    )
    assert now.eta_seconds == seconds
