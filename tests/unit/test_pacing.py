"""The rate limiter, with a clock made of numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_app.pacing import CHUNK_SECONDS, allowance, charge, due

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
