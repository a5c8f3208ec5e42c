"""Pacing: how many events a shard may publish now, by a rate and by the events' own pace.

The rate is a generic cell rate algorithm: each event costs ``1 / rate`` seconds. ``due_at`` is the
time up to which the published events are paid for. The functions are pure: the caller passes the
time. Times are seconds since 1970, rates are events per second, and a rate of None is no limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

CHUNK_SECONDS = 0.5
"""A throttled shard publishes as many events as its rate allows in this time. Then the other shards
of the partition may work."""


def due(rate: float | None, due_at: float, now: float) -> float:
    """Return the time of the next event, at the present rate; 0 without a rate.

    ``due_at`` is the former answer, at a rate that may have been another one.
    """
    if rate is None:
        return 0.0
    # A slower rate may have put due_at far ahead: wait no longer than for one chunk at this rate.
    return min(due_at, now + max(CHUNK_SECONDS, 1 / rate))


def allowance(rate: float | None, due_at: float, now: float) -> int | None:
    """Return how many events may be published now; None without a rate."""
    if rate is None:
        return None
    return 0 if now < due_at else max(1, math.floor(rate * CHUNK_SECONDS))


def charge(rate: float | None, due_at: float, now: float, events: int) -> float:
    """Return the new ``due_at`` after ``events`` more events. Idle time is not saved up."""
    if rate is None:
        return 0.0
    # A shard that is late by up to one chunk makes up for it: a busy worker still meets the rate.
    return max(due_at, now - CHUNK_SECONDS) + events / rate


@dataclass(frozen=True, slots=True)
class Pace:
    """The original pace of the events, or a multiple of it."""

    speed: float
    """How many times faster than the events have happened."""
    max_gap: float | None = None
    """Most seconds between two events; None: no limit."""

    def due_times(
        self, paced_at: float, last: datetime | None, times: Iterable[datetime | None], now: float
    ) -> list[float]:
        """Return when each of the next events is due, up to the first one that is not due yet.

        ``last`` is the time of the event before them, which was due at ``paced_at``. An event whose
        time is unknown is due with the event before. A shard that is late, such as after a pause,
        makes up for CHUNK_SECONDS only: the events do not come in a burst.
        """
        found: list[float] = []
        for time in times:
            gap = 0.0 if time is None or last is None else (time - last).total_seconds()
            gap = max(0.0, gap) / self.speed
            paced_at += gap if self.max_gap is None else min(gap, self.max_gap)
            if not found:
                paced_at = max(paced_at, now - CHUNK_SECONDS)
            found.append(paced_at)
            if paced_at > now:
                break
            last = time or last
        return found
