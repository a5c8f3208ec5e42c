"""The rate limiter and the original pace, with a clock made of numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_app.pacing import CHUNK_SECONDS, Pace, allowance, charge, due

NOW = 1_000_000.0


@pytest.mark.parametrize(
    ("rate", "due_at", "allowed"),
    [
        (None, 0.0, None),
        (None, NOW + 60, None),
        (100.0, 0.0, 50),
        (100.0, NOW, 50),
        (100.0, NOW + 0.001, 0),
        (1.0, NOW, 1),
        (0.01, NOW, 1),
        (0.01, NOW + 99, 0),
        (3.0, NOW - 60, 1),
        (1e9, NOW, 500_000_000),
    ],
)
def test_a_chunk_is_allowed_once_the_last_one_is_paid_for(
    rate: float | None, due_at: float, allowed: int | None
) -> None:
    assert allowance(rate, due_at, NOW) == allowed


@pytest.mark.parametrize(
    ("rate", "due_at", "events", "expected"),
    [
        (None, NOW + 9, 1000, 0.0),
        (100.0, NOW, 50, NOW + 0.5),
        (100.0, NOW + 0.2, 50, NOW + 0.7),
        (100.0, NOW - 0.1, 50, NOW + 0.4),  # a little late: the time is made up for
        (100.0, NOW - 3600, 50, NOW + 0.5 - CHUNK_SECONDS),  # an idle hour is not saved up
        (0.01, NOW, 1, NOW + 100),
        (100.0, NOW, 0, NOW),
    ],
)
def test_events_are_paid_for_in_time(
    rate: float | None, due_at: float, events: int, expected: float
) -> None:
    assert charge(rate, due_at, NOW, events) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("rate", "due_at", "expected"),
    [
        (None, NOW + 100, 0.0),  # the rate was lifted
        (100.0, NOW + 100, NOW + CHUNK_SECONDS),  # the rate was 0.01 before
        (0.1, NOW + 100, NOW + 10),
        (0.01, NOW + 100, NOW + 100),
        (100.0, NOW + 0.1, NOW + 0.1),
        (100.0, 0.0, 0.0),
    ],
)
def test_a_raised_rate_takes_effect_at_once(
    rate: float | None, due_at: float, expected: float
) -> None:
    assert due(rate, due_at, NOW) == expected


@given(
    rate=st.floats(0.05, 1e5),
    naps=st.lists(st.floats(0.0, 0.3), min_size=1, max_size=200),
)
def test_the_rate_is_met_and_never_exceeded_by_more_than_two_chunks(
    rate: float, naps: list[float]
) -> None:
    now, due_at, published = NOW, 0.0, 0
    for nap in naps:
        due_at = due(rate, due_at, now)
        allowed = allowance(rate, due_at, now)
        assert allowed is not None
        if allowed:
            published += allowed
            due_at = charge(rate, due_at, now, allowed)
        now += nap
    most = rate * (now - NOW) + 2 * max(1.0, rate * CHUNK_SECONDS)
    assert published <= most + 1


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0, 7.7, 100.0, 12_345.0])
def test_over_a_minute_the_rate_is_met(rate: float) -> None:
    now, due_at, published = NOW, 0.0, 0
    while now < NOW + 60:
        due_at = due(rate, due_at, now)
        allowed = allowance(rate, due_at, now) or 0
        published += allowed
        due_at = charge(rate, due_at, now, allowed) if allowed else due_at
        now += 0.013
    assert published == pytest.approx(rate * 60, abs=2 * max(1.0, rate * CHUNK_SECONDS))


# The original pace

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("pace", "times", "dues"),
    [
        (Pace(1), [0, 2, 5], [0, 2]),
        (Pace(2), [0, 2, 5], [0, 1]),
        (Pace(0.5), [0, 2], [0, 4]),
        (Pace(1, max_gap=1), [0, 100, 101], [0, 1]),
        (Pace(2, max_gap=1), [0, 1], [0, 0.5]),
        (Pace(1), [0, 0, 0], [0, 0, 0]),
        (Pace(1), [5, 3, 5], [0, 0, 2]),  # an order by something else than time does not wait
        (Pace(1), [None, None], [0, 0]),
        (Pace(1), [0, None, 3], [0, 0, 3]),
    ],
)
def test_events_are_due_after_their_gaps_up_to_the_first_that_is_not_due(
    pace: Pace, times: list[float | None], dues: list[float]
) -> None:
    moments = [None if one is None else at(one) for one in times]
    found = pace.due_times(0.0, None, moments, NOW)
    assert found == [NOW - CHUNK_SECONDS + due for due in dues]


def test_the_gap_to_the_event_before_counts_from_when_that_event_was_due() -> None:
    assert Pace(1).due_times(NOW, at(0), [at(3)], NOW + 1) == [NOW + 3]
    # A slice that comes late finds the next events due by the same clock.
    assert Pace(1).due_times(NOW, at(0), [at(3), at(3.2), at(9)], NOW + 3.3) == [
        NOW + 3,
        pytest.approx(NOW + 3.2),
        pytest.approx(NOW + 9),
    ]


def test_after_a_pause_the_events_do_not_come_in_a_burst() -> None:
    times = [at(second) for second in range(1, 100)]
    found = Pace(1).due_times(NOW, at(0), times, NOW + 3600)
    assert found == [NOW + 3600 - CHUNK_SECONDS, NOW + 3600 - CHUNK_SECONDS + 1]


@given(
    gaps=st.lists(st.floats(0, 10), min_size=1, max_size=40),
    speed=st.floats(0.1, 10),
    waits=st.lists(st.floats(0, 30), min_size=1, max_size=10),
)
def test_slices_and_their_delays_never_publish_an_event_early(
    gaps: list[float], speed: float, waits: list[float]
) -> None:
    times = [at(sum(gaps[: number + 1])) for number in range(len(gaps))]
    pace, now, paced_at, last = Pace(speed), NOW, 0.0, None
    published: list[tuple[float, float]] = []
    for number in range(10_000):
        if len(published) == len(times):
            break
        dues = pace.due_times(paced_at, last, times[len(published) :], now)
        for due_at in (one for one in dues if one <= now):
            paced_at, last = due_at, times[len(published)]
            published.append((now, due_at))
        now = max(now, dues[-1]) + waits[number % len(waits)]
    assert len(published) == len(times)
    for (_, before), (_, due_at), gap in zip(published, published[1:], gaps[1:], strict=False):
        assert due_at >= before + gap / speed - 1e-3
