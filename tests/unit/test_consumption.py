"""Consumer groups of a session: looks, lags, and how far ahead of the groups a replay publishes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from replay_app.commands import Start
from replay_app.consumer_groups import GroupFound, assigned_partitions
from replay_app.consumption import (
    CHECKED_SECONDS,
    NOT_WATCHED,
    WATCHED_DAYS,
    allowance,
    group_lag,
    is_watched,
    with_growth,
    with_hold,
)
from replay_app.group_watch import (
    believed,
    finished_places,
    is_over,
    look_report,
)
from replay_app.reports import (
    MAX_LISTED_OFFSETS,
    Counters,
    GroupLook,
    Offsets,
    Plan,
    Report,
    ShardPlan,
    ShardProgress,
    offsets_written,
)
from replay_app.sessions import Consumption, Session, Shard
from replay_app.transitions import on_look, on_report

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = timedelta(seconds=300)
WRITTEN: Offsets = {"orders": {0: (100, 149), 2: (7, 16)}}
"""60 offsets."""


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def session(state: Any = "running", shards: int = 2, **fields: Any) -> Session:
    start = {
        "consumers": fields.pop("consumers", ("view",)),
        "max_lag": fields.pop("max_lag", None),
    }
    plan = ShardPlan(match={}, sort=("timestamp", "_id"))
    return Session(
        replay_id="r",
        state=state,
        start=Start(replay_id="r", **start),
        created_at=T0,
        updated_at=T0,
        progressed_at=T0,
        heard_at=T0,
        plan=Plan(end=T0, matched=10, shards=(plan,) * shards),
        shards=(Shard(),) * shards,
        **({"offsets": WRITTEN} | fields),
    )


def look(given: Session, seconds: float = 1, *, group: str = "view", **found: Any) -> Session:
    """Return the session after a look at its newest offsets."""
    report = Report(
        replay_id="r",
        kind="consumers",
        state="done" if given.state in {"completed", "completed_with_errors"} else "live",
        written=offsets_written(given.offsets),
        consumers={group: GroupLook(**found)},
    )
    after = on_look(given, report, at(seconds), PATIENCE).session
    assert after is not None
    return after


@pytest.mark.parametrize(
    ("committed", "lag"),
    [
        ({}, 60),
        ({0: 100, 2: 7}, 60),
        ({0: 90, 2: 7}, 70),  # records before the replay's first one are unread, too
        ({0: 149, 2: 17}, 1),
        ({0: 150, 2: 17}, 0),
        ({0: 151, 2: 18}, 0),  # behind the markers
        ({0: 500, 2: 16}, 1),  # what is read in one partition does not count for another
    ],
)
def test_the_lag_counts_the_unread_records_of_each_published_partition(
    committed: dict[int, int], lag: int
) -> None:
    assert group_lag(WRITTEN, {("orders", number): n for number, n in committed.items()}) == lag


def test_the_lag_of_a_replay_that_published_nothing_is_zero() -> None:
    assert group_lag({}, {("orders", 0): 5}) == 0


@pytest.mark.parametrize(
    ("assignment", "topics"),
    [
        (
            ConsumerProtocolMemberAssignment(0, [("a", [0, 1]), ("b", [2])], b"").encode(),
            ("a", "b"),
        ),
        (ConsumerProtocolMemberAssignment(0, [], b"").encode(), ()),
        (b"", ()),
        (b"{}", ()),
        (b"\x00\x00\x7f\xff\xff\xffx", ()),
        (b"\x00\x00\x00\x00\x00\x01\x00\x02\xff\xff", ()),
    ],
)
def test_an_assignment_that_cannot_be_read_names_no_topic(
    assignment: bytes, topics: tuple[str, ...]
) -> None:
    assert tuple(assigned_partitions(assignment)) == topics


# Looks


def test_a_look_is_noted_in_the_session() -> None:
    found = look(session(), state="empty", lag=3).consumption["view"]
    assert found == Consumption(state="empty", lag=3, checked_at=at(1))


def test_a_look_that_finds_no_change_changes_nothing_until_its_time_is_old() -> None:
    before = look(session(), state="active", lag=3)
    assert look(before, 1 + CHECKED_SECONDS - 1, state="active", lag=3) is before
    after = look(before, 1 + CHECKED_SECONDS, state="active", lag=3)
    assert after.consumption["view"].checked_at == at(1 + CHECKED_SECONDS)


def test_a_group_that_cannot_be_looked_at_keeps_what_is_known_and_says_why() -> None:
    before = look(session(), state="active", lag=3)
    found = look(before, 2, reason="no right").consumption["view"]
    assert (found.state, found.lag, found.reason) == ("active", 3, "no right")
    assert look(before, 3, state="active", lag=3).consumption["view"].reason is None


def test_groups_that_the_command_does_not_name_are_passed_over() -> None:
    before = session()
    assert look(before, group="stranger", lag=3) is before
    plain = session(consumers=())
    assert look(plain, lag=3) is plain


def test_what_was_published_after_the_look_began_is_added_to_its_lag() -> None:
    report = Report(kind="consumers", written=50, consumers={"view": GroupLook(lag=4)})
    after = on_look(session(), report, at(1), PATIENCE).session
    assert after is not None
    assert after.consumption["view"].lag == 14


def test_a_shard_that_publishes_adds_to_every_known_lag() -> None:
    before = look(session(consumers=("view", "other")), state="active", lag=4)
    progress = ShardProgress(counters=Counters(read=5), offsets={"orders": {0: (100, 160)}})
    report = Report(replay_id="r", kind="shard", epoch=1, slice=1, shard=0, progress=progress)
    after = on_report(before, report, at(2)).session
    assert after is not None
    assert after.consumption["view"].lag == 15
    assert "other" not in after.consumption


# The end


@pytest.mark.parametrize("state", ["completed", "completed_with_errors"])
def test_a_completed_replay_is_consumed_once_the_group_has_read_all(state: Any) -> None:
    ended = session(state, ended_at=T0)
    behind = look(ended, 1, state="active", lag=1)
    assert (behind.is_consumed, behind.consumption["view"].consumed_at) == (False, None)
    consumed = look(behind, 2, state="active", lag=0)
    assert consumed.is_consumed
    assert consumed.consumption["view"].consumed_at == at(2)
    assert consumed.updated_at == ended.updated_at  # from then on the retention counts
    assert not is_watched(consumed)
    assert look(consumed, 3, state="unseen", lag=60) is consumed


def test_every_group_must_have_read_all() -> None:
    first = look(session("completed", consumers=("view", "other")), state="active", lag=0)
    assert not first.is_consumed
    assert is_watched(first)
    assert look(first, 2, group="other", lag=0).is_consumed


@pytest.mark.parametrize("state", ["running", "pausing", "paused", "failed"])
def test_a_replay_that_has_not_completed_is_not_consumed(state: Any) -> None:
    after = look(session(state), state="active", lag=0)
    assert after.consumption["view"].consumed_at is None


def test_a_look_that_began_before_the_end_does_not_count_as_the_end() -> None:
    report = Report(kind="consumers", written=60, consumers={"view": GroupLook(lag=0)})
    after = on_look(session("completed"), report, at(1), PATIENCE).session
    assert after is not None
    assert after.consumption["view"].consumed_at is None


def test_a_cancelled_or_forgotten_replay_is_not_looked_at() -> None:
    cancelled = session("cancelled")
    assert look(cancelled, lag=1) is cancelled
    assert not on_look(None, Report(kind="consumers"), at(1), PATIENCE).changed


# What a look reports


def test_a_replay_that_published_nothing_is_consumed_whatever_kafka_says() -> None:
    empty = session("completed", offsets={})
    report = look_report(empty, {"view": GroupFound(error="no right")})
    assert report.consumers["view"].lag == 0
    after = on_look(empty, report, at(1), PATIENCE).session
    assert after is not None
    assert after.is_consumed


def test_a_replay_whose_partitions_are_not_all_listed_has_no_lag() -> None:
    some = {"orders": dict.fromkeys(range(MAX_LISTED_OFFSETS), (0, 0))}
    shortened = session("completed", offsets={}).model_copy(
        update={"shards": (Shard(progress=ShardProgress(counters=Counters(published=9))),)}
    )
    for given in (session("completed", offsets=some), shortened):
        found = look_report(given, {"view": GroupFound("active")}).consumers["view"]
        assert found.lag is None
        assert "more partitions" in (found.reason or "")


def test_an_error_is_a_reason_of_bounded_length() -> None:
    found = look_report(session(), {"view": GroupFound(error="x" * 10_000)}).consumers["view"]
    assert found.lag is None
    assert (found.reason or "").endswith("x…")


def test_an_offset_behind_the_end_of_its_partition_is_of_an_older_topic() -> None:
    places = TopicPartition("orders", 0), TopicPartition("orders", 2)
    read = GroupFound("active", dict(zip(places, (150, 9_000), strict=True)))
    part = GroupFound("active", {places[0]: 149})
    ended = session("completed")
    assert finished_places([ended], {"view": read}) == set(places)
    assert finished_places([ended], {"view": part}) == set()
    assert finished_places([session("running")], {"view": read}) == set()

    assert believed("view", read, dict(zip(places, (150, 9_000), strict=True))) is read
    assert believed("view", read, {}) is read  # its ends were not asked for
    odd = believed("view", read, dict(zip(places, (150, 17), strict=True)))
    assert "'view' stands at offset 9000 of orders[2], which ends at 17" in (odd.error or "")
    after = on_look(ended, look_report(ended, {"view": odd}), at(1), PATIENCE).session
    assert after is not None
    assert not after.is_consumed
    again = on_look(after, look_report(ended, {"view": read}), at(2), PATIENCE).session
    assert again is not None
    assert again.is_consumed


def test_the_looks_end_some_days_after_the_replay() -> None:
    ended = session("completed", ended_at=T0)
    end = T0 + timedelta(days=WATCHED_DAYS)
    assert not is_over(session(), end)
    assert not is_over(ended, end - timedelta(seconds=1))
    assert is_over(ended, end)
    report = look_report(ended, None)
    assert report.consumers["view"].reason == NOT_WATCHED
    told = on_look(ended, report, end, PATIENCE).session
    assert not on_look(told, report, end + timedelta(seconds=30), PATIENCE).changed


# max_lag


def held(lag: int = 60, **fields: Any) -> Session:
    return look(session(max_lag=40, **fields), 0, state="active", lag=lag)


def test_a_replay_is_held_at_max_lag_and_released_well_below() -> None:
    assert held(39).hold is None
    hold = held(1_040).hold
    assert hold == "consumer group 'view' is 1,040 records behind, and max_lag is 40"
    assert allowance(held(40), 0, 0) == 0
    assert look(held(40), lag=31, state="active").hold is not None
    assert look(held(40), lag=30, state="active").hold is None


def test_the_group_that_is_furthest_behind_holds_the_replay() -> None:
    both = look(held(5, consumers=("view", "slow")), group="slow", state="active", lag=50)
    assert "'slow' is 50" in (both.hold or "")


def test_a_group_that_was_never_looked_at_has_read_nothing() -> None:
    assert allowance(session(max_lag=100), 0, 0) == 20  # (100 - 60) / 2 shards
    assert "'view' is 60" in (with_hold(session(max_lag=40)).hold or "")


def test_without_max_lag_and_in_other_states_nothing_is_held() -> None:
    plain = look(session(), state="active", lag=10**9)
    assert (plain.hold, allowance(plain, 0, 10**9)) == (None, None)
    assert look(session("paused", max_lag=1), state="active", lag=60).hold is None


@pytest.mark.parametrize(
    ("max_lag", "lag", "shards", "unheard", "allowed"),
    [
        (100, 0, 1, 0, 100),
        (100, 40, 1, 0, 60),
        (100, 40, 3, 0, 20),
        (100, 40, 1, 25, 35),  # the session has not heard of 25 records
        (100, 40, 1, 60, 0),
        (100, 40, 1, 90, 0),
        (2, 0, 8, 0, 1),  # fewer records than shards: each moves all the same
        (1, 0, 1, 0, 1),
    ],
)
def test_the_shards_share_what_may_be_published(
    max_lag: int, lag: int, shards: int, unheard: int, allowed: int
) -> None:
    given = look(session(max_lag=max_lag, shards=shards), state="active", lag=lag)
    assert allowance(given, 0, unheard) == allowed


def test_shards_that_are_done_take_no_share() -> None:
    done = Shard(progress=ShardProgress(state="done"))
    given = held(0).model_copy(update={"shards": (done, Shard())})
    assert allowance(given, 1, 0) == 40


def test_a_report_of_a_shard_may_begin_the_hold() -> None:
    before = held(20)
    grown = before.model_copy(update={"offsets": {"orders": {0: (100, 169), 2: (7, 16)}}})
    assert "'view' is 40" in (with_growth(grown, before.offsets).hold or "")


def test_a_group_that_does_not_move_is_given_up_with_a_warning_that_names_it() -> None:
    one = held()
    for seconds in (0, 100, 299):
        one = look(one, seconds, state="empty", lag=60)
        assert one.hold is not None
    assert one.warnings == ()
    given_up = look(one, 300, state="empty", lag=60)
    assert (given_up.hold, allowance(given_up, 0, 10**6)) == (None, None)
    (warning,) = given_up.warnings
    assert "'view' read nothing for 300 s (REPLAY_MAX_LAG_PATIENCE_SECONDS)" in warning
    # The group comes back: max_lag waits again, and the warning is not repeated.
    back = look(given_up, 400, state="active", lag=59)
    assert back.hold is not None
    again = look(look(back, 500, state="active", lag=59), 700, state="active", lag=59)
    assert (again.hold, again.warnings) == (None, (warning,))


def test_a_group_that_moves_slowly_is_awaited() -> None:
    one = held()
    for seconds in range(0, 1_000, 200):
        one = look(one, seconds, state="active", lag=60 - seconds // 200)
        assert one.hold is not None
    assert one.warnings == ()


def test_a_group_that_cannot_be_looked_at_is_given_up_too() -> None:
    one = look(session(max_lag=40), 0, reason="no right")
    assert (one.hold or "").endswith("(no right)")
    assert look(one, 300, reason="no right").hold is None


def test_time_in_which_nothing_holds_the_replay_does_not_count_as_silence() -> None:
    idle = held(0)
    late = look(idle, 10_000, state="active", lag=60)
    assert late.hold is not None
    paused = look(late.model_copy(update={"state": "paused"}), 10_100, state="active", lag=60)
    assert paused.consumption["view"].late_since is None
