"""How much a transaction may hold, by the pace of the transactions before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_app.budgets import FIRST_BYTES, GROWTH, SHRINKAGE, ByteBudget

TARGET = 15.0
LIMIT = 60.0


def after(size: int, seconds: float, *, committed: bool = True) -> ByteBudget:
    budget = ByteBudget(TARGET)
    budget.start()
    budget.spend(size)
    budget.wait(seconds)
    if committed:
        budget.commit()
    else:
        budget.fail()
    return budget


@pytest.mark.parametrize(
    ("size", "seconds", "limit"),
    [
        (FIRST_BYTES, 0.02, GROWTH * FIRST_BYTES),  # fast: more, but not all at once
        (FIRST_BYTES, 30.0, FIRST_BYTES // 2),  # slow: as much as fits
        (1000, 0.05, 300_000),
        (1, 900.0, 1),  # never less than one byte: a slice takes at least one event
        (0, 20.0, FIRST_BYTES),  # nothing was sent, nothing is learned
    ],
)
def test_the_budget_follows_the_pace(size: int, seconds: float, limit: int) -> None:
    assert after(size, seconds).limit == limit


@pytest.mark.parametrize(
    ("size", "seconds", "limit"),
    [
        (FIRST_BYTES, 40.0, FIRST_BYTES // SHRINKAGE),
        (FIRST_BYTES, 2.0, FIRST_BYTES),  # it failed for another reason
        (5, 40.0, 1),
        (0, 40.0, FIRST_BYTES),
    ],
)
def test_what_took_too_long_is_tried_with_less(size: int, seconds: float, limit: int) -> None:
    assert after(size, seconds, committed=False).limit == limit


def test_the_next_transaction_starts_anew() -> None:
    budget = after(FIRST_BYTES, 30.0)
    assert (budget.left, budget.is_late, budget.is_spent) == (budget.limit, False, False)
    budget.spend(budget.limit - 100)
    budget.wait(TARGET)
    assert (budget.left, budget.is_late, budget.is_spent) == (100, True, True)
    budget.start()
    assert budget.left == budget.limit


@given(st.integers(100, 10**9))
def test_at_any_pace_transactions_soon_fit_into_their_time(pace: int) -> None:
    budget = ByteBudget(TARGET)
    for _ in range(12):
        budget.start()
        size = budget.limit
        budget.spend(size)
        seconds = min(size / pace, LIMIT)
        budget.wait(seconds)
        if seconds < LIMIT:
            budget.commit()
        else:
            budget.fail()
    assert budget.limit / pace <= TARGET * 1.01


@given(st.integers(20_000, 10**9), st.floats(1, 20))
def test_a_quota_with_a_burst_never_stops_the_replay(quota: int, window: float) -> None:
    """A quota lets ``quota * window`` bytes through at once, and then none until they are paid."""
    budget = ByteBudget(TARGET)
    debt, failures = 0.0, 0
    for _ in range(60):
        budget.start()
        size = budget.limit
        budget.spend(size)
        seconds = max(0.0, (debt + size) / quota - window)
        budget.wait(min(seconds, LIMIT))
        if seconds < LIMIT:
            budget.commit()
            debt = max(0.0, debt + size - seconds * quota)
        else:
            budget.fail()
            failures += 1
            debt = 0.0  # a new connection, a minute later
    assert failures <= 12
