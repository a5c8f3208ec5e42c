"""Times as people write and read them, in several time zones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from replay_app.times import WrongTime, age, local, local_exact, local_minute, parse_time, utc_text

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
SetZone = Callable[[str], None]


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetZone]:
    """Yield a function that sets the local time zone."""

    def change(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


def read(text: str) -> str:
    return utc_text(parse_time(text, NOW))


@pytest.mark.parametrize(
    ("local_zone", "text", "expected"),
    [
        ("UTC", "2026-01-10", "2026-01-10T00:00:00Z"),
        ("Europe/Berlin", "2026-01-10", "2026-01-09T23:00:00Z"),
        ("America/New_York", "2026-01-10", "2026-01-10T05:00:00Z"),
        ("Asia/Kolkata", "2026-01-10T14:00", "2026-01-10T08:30:00Z"),
        ("Europe/Berlin", "2026-01-10 14:00", "2026-01-10T13:00:00Z"),
        ("Europe/Berlin", "2026-07-10 14:00:30", "2026-07-10T12:00:30Z"),
        ("CET-1CEST", "2026-01-10 14:00", "2026-01-10T13:00:00Z"),  # no name of a place
        ("Europe/Berlin", "2026-01-10T14:00Z", "2026-01-10T14:00:00Z"),
        ("Europe/Berlin", "2026-01-10t14:00z", "2026-01-10T14:00:00Z"),
        ("Europe/Berlin", "2026-01-10T14:00:00.250+05:30", "2026-01-10T08:30:00.250000Z"),
        ("UTC", "2026-01-10 14:00 -0500", "2026-01-10T19:00:00Z"),
        ("UTC", "2026-01-10T14:00 Europe/Berlin", "2026-01-10T13:00:00Z"),
        ("Europe/Berlin", "2026-01-10 14:00 UTC", "2026-01-10T14:00:00Z"),
        ("UTC", "2026-01-10 Asia/Tokyo", "2026-01-09T15:00:00Z"),
        ("UTC", "2h", "2026-03-10T10:30:00Z"),
        ("Asia/Tokyo", "2h ago", "2026-03-10T10:30:00Z"),
        ("UTC", "90m", "2026-03-10T11:00:00Z"),
        ("Europe/Berlin", "3d", "2026-03-07T12:30:00Z"),
        ("UTC", "1h30m", "2026-03-10T11:00:00Z"),
        ("UTC", "1.5h", "2026-03-10T11:00:00Z"),
        ("UTC", "1w ago", "2026-03-03T12:30:00Z"),
        ("UTC", "2 hours ago", "2026-03-10T10:30:00Z"),
        ("UTC", "2 h ago", "2026-03-10T10:30:00Z"),
        ("UTC", "1 day 30 min ago", "2026-03-09T12:00:00Z"),
        ("UTC", "2H", "2026-03-10T10:30:00Z"),
        ("UTC", "NOW", "2026-03-10T12:30:00Z"),
        ("UTC", "Yesterday 9:05", "2026-03-09T09:05:00Z"),
        ("UTC", "2026-01-10 9:00", "2026-01-10T09:00:00Z"),
        ("UTC", "now", "2026-03-10T12:30:00Z"),
        ("UTC", "today", "2026-03-10T00:00:00Z"),
        ("Pacific/Auckland", "today", "2026-03-10T11:00:00Z"),  # it is the 11th there
        ("Pacific/Auckland", "yesterday", "2026-03-09T11:00:00Z"),
        ("UTC", "yesterday 14:00", "2026-03-09T14:00:00Z"),
        ("UTC", "yesterday Europe/Berlin", "2026-03-08T23:00:00Z"),
        ("UTC", "  2026-01-10   14:00 ", "2026-01-10T14:00:00Z"),
        ("Europe/Berlin", "2026-03-29 03:00", "2026-03-29T01:00:00Z"),  # the end of the gap
        ("Europe/Berlin", "2026-10-25 02:30 +02:00", "2026-10-25T00:30:00Z"),
        ("America/Havana", "2026-03-08", "2026-03-08T05:00:00Z"),  # this day begins at 01:00
        ("America/Havana", "2026-11-01", "2026-11-01T04:00:00Z"),  # this midnight comes twice
    ],
)
def test_a_time_is_read_as_people_write_it(
    local_zone: str, text: str, expected: str, zone: SetZone
) -> None:
    zone(local_zone)
    assert read(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2026-03-29 02:30", "'2026-03-29 02:30', which no clock of the local time zone shows"),
        ("2026-03-29T02:30 Europe/Paris", "which no clock of Europe/Paris shows"),
        ("2026-10-25 02:30", "twice, as they are set back: write the offset, +02:00 or +01:00"),
        ("2026-10-25 02:30:10 Europe/Paris", "'2026-10-25 02:30:10', which the clocks of Europe/P"),
        ("2026-01-10 14:00 Europe/Berln", "the time zone 'Europe/Berln', which nobody knows"),
        ("2026-01-10 14:00 ../etc/passwd", "takes a time such as 2026-01-10"),
        ("2026-13-10", "takes a time such as 2026-01-10"),
        ("2026-02-30", "not '2026-02-30': day is out of range for month"),
        ("2026-01-10 25:00", "takes a time such as"),
        ("2026-01-10 14:00 +99:00", "the time zone '+99:00', which nobody knows"),
        ("2026-01-10T14", "takes a time such as 2026-01-10"),
        ("2026-01-10 14:00 PM", "takes a time such as 2026-01-10"),
        ("2011-12-30 Pacific/Apia", "a day that the calendar of Pacific/Apia skips"),
        ("2 months ago", "takes a time such as"),
        ("soon", "takes a time such as"),
        ("2 fortnights", "takes a time such as"),
        ("2026", "takes a time such as"),
        ("1768053600", "takes a time such as"),
        ("", "takes a time such as"),
        ("0000-01-01T00:00:00Z", "lies outside the years 1 to 9999"),
        ("10000-01-01", "lies outside the years 1 to 9999"),
        ("0001-01-01T00:00:00+01:00", "lies outside the years 1 to 9999"),
        ("9999-12-31T23:59:59-01:00", "lies outside the years 1 to 9999"),
        ("999999999w", "lies outside the years 1 to 9999"),
    ],
)
def test_what_is_no_one_moment_is_refused_with_the_remedy(
    text: str, words: str, zone: SetZone
) -> None:
    zone("Europe/Berlin")
    with pytest.raises(WrongTime) as refused:
        read(text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("local_zone", "shown", "minute"),
    [
        ("UTC", "2026-01-10 23:30:05 UTC", "2026-01-10 23:30"),
        ("Europe/Berlin", "2026-01-11 00:30:05 CET", "2026-01-11 00:30"),
        ("America/New_York", "2026-01-10 18:30:05 EST", "2026-01-10 18:30"),
        ("Asia/Dubai", "2026-01-11 03:30:05 +04", "2026-01-11 03:30"),
    ],
)
def test_people_read_times_in_their_own_zone(
    local_zone: str, shown: str, minute: str, zone: SetZone
) -> None:
    zone(local_zone)
    assert local("2026-01-10T23:30:05.123Z") == shown
    assert local_minute("2026-01-10T23:30:05.123Z") == minute
    assert local_exact("2026-01-10T23:30:05.123Z") == shown.replace(":05 ", ":05.123 ")


def test_the_ends_of_the_calendar_can_be_shown(zone: SetZone) -> None:
    zone("Asia/Tokyo")
    assert local("9999-12-31T23:59:59Z").startswith("9999-12-31 23:59:59")


@pytest.mark.parametrize(
    ("then", "shown"),
    [
        ("2026-03-10T12:29:55Z", "5s"),
        ("2026-03-10T12:00:00Z", "30m"),
        ("2026-03-10T09:00:00Z", "3h"),
        ("2026-02-26T12:30:00Z", "12d"),
        ("2026-03-10T12:30:05Z", "0s"),  # the worker's clock goes before ours
    ],
)
def test_an_age_has_one_unit(then: str, shown: str) -> None:
    assert age(then, NOW) == shown
