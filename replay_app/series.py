"""The series of a replay: its counters and its waits over time, enough for a chart.

A session keeps the points as one short text, because each worker holds thousands of sessions in
memory. When the text has too many points, every second one goes: the points always span the whole
replay.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

from replay_app.records import Moment, Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.reports import Counters, Waits

MAX_POINTS = 120
FIRST_GAP_MS = 1000
"""Least time between two points of a short replay. In a long one, the least time is its length
so far by half of MAX_POINTS. A change of the state is a point whenever it comes."""
MAX_NUMBER = 2**53
_POINT = r"\d{1,16}( \d{1,16}){5}"
MEMBERS = ("ms", "read", "published", "store_ms", "encoder_ms", "broker_ms")
"""The numbers of a point, in their order. The first one counts from the series' begin."""


class Series(Record):
    """The points of one replay."""

    model_config = ConfigDict(extra="ignore")  # a newer version may have written more members

    begin: Moment
    text: Annotated[str, Field(max_length=20_000, pattern=f"^({_POINT}(;{_POINT})*)?$")] = ""
    """Points, with semicolons between them. A point has the numbers of `MEMBERS`."""


@dataclass(frozen=True, order=True, slots=True)
class SeriesPoint:
    """What a replay had done at a moment, and for what its shards together had waited."""

    at: datetime
    read: int
    published: int
    store_seconds: float
    encoder_seconds: float
    broker_seconds: float


def points_of(series: Series | None) -> list[SeriesPoint]:
    """Return the points, the oldest first."""
    if series is None or not series.text:
        return []
    return [
        SeriesPoint(
            series.begin + timedelta(milliseconds=ms),
            read,
            published,
            store / 1000,
            encoder / 1000,
            broker / 1000,
        )
        for ms, read, published, store, encoder, broker in _numbers(series.text)
    ]


def add_point(
    series: Series | None, now: datetime, counters: Counters, waits: Iterable[Waits], *, must: bool
) -> Series:
    """Return the series with a point of this moment, if one is due, or if it ``must`` come.

    ``waits`` are those of all shards.
    """
    series = series or Series(begin=now)
    points = list(_numbers(series.text)) if series.text else []
    last = points[-1][0] if points else 0
    # The clock of another worker may be behind.
    ms = max(last, round((now - series.begin).total_seconds() * 1000))
    gap_ms = max(FIRST_GAP_MS, 2 * ms // MAX_POINTS)
    if points and not must and ms - last < gap_ms:
        return series
    each = [*waits]
    seconds = (
        sum(one.store for one in each),
        sum(one.encoder for one in each),
        sum(one.broker for one in each),
    )
    numbers = (ms, counters.read, counters.published, *(round(1000 * one) for one in seconds))
    points.append(tuple(min(one, MAX_NUMBER) for one in numbers))
    if len(points) > MAX_POINTS:
        points = [*points[:-1:2], points[-1]]
    text = ";".join(" ".join(map(str, one)) for one in points)
    return series.model_copy(update={"text": text})


def _numbers(text: str) -> Iterable[tuple[int, ...]]:
    return (tuple(map(int, point.split(" "))) for point in text.split(";"))
