"""Pacing: how many events a throttled shard may publish now.

A generic cell rate algorithm: each event costs ``1 / rate`` seconds, and ``due_at`` says until
when the published ones have been paid for. Pure: the caller gives the time.
"""

from __future__ import annotations

import math

CHUNK_SECONDS = 0.5
"""A throttled shard publishes as much as it may in this time, then lets its neighbours work."""


def due(rate: float | None, due_at: float, now: float) -> float:
    """Return when the next event may be published, after the rate may have changed."""
    if rate is None:
        return 0.0
    # No longer than one chunk takes at this rate, whatever a slower one before has left.
    return min(due_at, now + max(CHUNK_SECONDS, 1 / rate))


def allowance(rate: float | None, due_at: float, now: float) -> int | None:
    """Return how many events may be published now; None: no limit."""
    if rate is None:
        return None
    return 0 if now < due_at else max(1, math.floor(rate * CHUNK_SECONDS))


def charge(rate: float | None, due_at: float, now: float, events: int) -> float:
    """Return the new ``due_at`` after publishing ``events``; idle time is not saved up."""
    if rate is None:
        return 0.0
    # A little lateness is made up for, so that the rate is met in spite of scheduling.
    return max(due_at, now - CHUNK_SECONDS) + events / rate
