"""The series of a replay: its counters and its waits over time, enough for a chart.

A session keeps the points as one short text, because each worker holds thousands of sessions in
memory. When the text has too many points, every second one goes, and the next ones come half as
often: the points always span the whole replay.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import ConfigDict, Field

from replay_app.records import Moment, Record
from replay_app.reports import Waits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.reports import Counters

MAX_POINTS = 120
FIRST_GAP_SECONDS = 1.0
"""Least time between two points of a new series."""
MEMBERS = ("ms", "read", "published", "store_ms", "encoder_ms", "broker_ms")
"""The numbers of a point, in their order. The first one counts from the series' begin."""


class Series(Record):
    """The points of one replay."""

    model_config = ConfigDict(extra="ignore")  # a newer version may have written more members

    begin: Moment
    gap_seconds: Annotated[float, Field(gt=0, le=1e9)] = FIRST_GAP_SECONDS
    """Least time between two points."""
    text: Annotated[str, Field(max_length=20_000, pattern=r"^(\d{1,16}( \d{1,16}){5}(;|$))*$")] = ""
    """Points, with semicolons between them. A point has the numbers of `MEMBERS`."""


class Point(NamedTuple):
    """What a replay has done, and how long its shards together have waited, since its begin."""

    at: datetime
    read: int
    published: int
    store_seconds: float
    encoder_seconds: float
    broker_seconds: float


def points_of(series: Series | None) -> list[Point]:
    """Return the points, the oldest first."""
    if series is None or not series.text:
        return []
    return [
        Point(
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
    ms = max(0, round((now - series.begin).total_seconds() * 1000))
    if points and not must and ms - points[-1][0] < series.gap_seconds * 1000:
        return series
    total = sum(waits, Waits())
    seconds = (total.store, total.encoder, total.broker)
    points.append((ms, counters.read, counters.published, *(round(1000 * one) for one in seconds)))
    gap = series.gap_seconds
    while len(points) > MAX_POINTS:
        points = [*points[:-1:2], points[-1]]
        gap *= 2
    text = ";".join(" ".join(map(str, one)) for one in points)
    return series.model_copy(update={"text": text, "gap_seconds": gap})


def _numbers(text: str) -> Iterable[tuple[int, ...]]:
    return (tuple(map(int, point.split(" "))) for point in text.split(";"))
