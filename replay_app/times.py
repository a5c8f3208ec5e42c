"""Times as people write and read them: with zone names, relative to now, in the local time zone.

The program's own times are in UTC. This module stands between them and people: `parse_time` reads
what a person types, `local` shows a time. A time without a zone is local: of ``TZ``, or of the
machine.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as clock_time
from zoneinfo import ZoneInfo

FORMS = (
    "a time such as 2026-01-10, '2026-01-10 14:00', 2026-01-10T14:00:00Z, "
    "'2026-01-10 14:00 Europe/Berlin', 2h, '3d ago', yesterday or now"
)
"""What an option for a time takes."""
OUTSIDE = "lies outside the years 1 to 9999 in UTC"
UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
"""A day is 24 hours, also where clocks are changed."""
DAYS = {"today": 0, "yesterday": 1, "tomorrow": -1}
"""How many days ago each word is."""
_UNIT = r"(?:s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?|w|weeks?)"
_AGO = re.compile(rf"((?:\d{{1,9}}(?:\.\d{{1,9}})? ?{_UNIT} ?)+)(?<! )(?: ?ago)?", re.IGNORECASE)
_PART = re.compile(r"([\d.]+) ?([smhdw])", re.IGNORECASE)
_WRITTEN = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d|(?i:today|yesterday|tomorrow))"
    r"(?:[Tt ](?P<clock>\d{1,2}:\d\d(?::\d\d(?:\.\d{1,9})?)?))?"
    r" ?(?![Tt]\d|(?i:[ap]m\b))(?P<zone>[Zz]|[+-]\d\d:?\d\d|[A-Za-z][A-Za-z0-9_+/-]*)?"
)
_OTHER_YEAR = re.compile(r"(?:[+-]\d+|\d{5,}|0000)-\d\d-\d\d")


class WrongTime(ValueError):
    """The text is no time; the message is the rest of a sentence that begins with the option."""


def parse_time(text: str, now: datetime) -> datetime:
    """Return the time that a person has written, in UTC.

    ``now`` is the present time with a zone: ``2h`` and ``yesterday`` count from it. A day without
    a time begins with its first moment, also where clocks skip midnight.

    Raises
    ------
    WrongTime
        The text is no time, no zone has the name, or the clocks of the zone show the time twice or
        never.

    """
    text = " ".join(text.split())
    try:
        if text.casefold() == "now":
            return now.astimezone(UTC)
        if ago := _AGO.fullmatch(text):
            return (now - _duration(ago[1])).astimezone(UTC)
        if _OTHER_YEAR.match(text):
            raise WrongTime(f"{text!r} {OUTSIDE}")
        return _written(text, now)
    except OverflowError:
        raise WrongTime(f"{text!r} {OUTSIDE}") from None


def _duration(text: str) -> timedelta:
    parts = _PART.findall(text)
    return sum((float(number) * UNITS[unit.lower()] for number, unit in parts), timedelta())


def _written(text: str, now: datetime) -> datetime:
    found = _WRITTEN.fullmatch(text)
    if found is None:
        raise WrongTime(f"takes {FORMS}, not {text!r}")
    zone = None if found["zone"] is None else _zone(found["zone"])
    try:
        word = found["day"].lower()
        if word in DAYS:
            day = now.astimezone(zone).date() - timedelta(days=DAYS[word])
        else:
            day = date.fromisoformat(found["day"])
        written = found["clock"] or "00:00"
        clock = clock_time.fromisoformat(written if written[1] != ":" else f"0{written}")
    except ValueError as error:
        raise WrongTime(f"takes {FORMS}, not {text!r}: {error}") from None
    naive = datetime.combine(day, clock)
    try:
        return _only(naive, zone) if found["clock"] else _begin_of_day(naive, zone)
    except ValueError as error:  # `astimezone` says so of the first and the last year
        raise error if isinstance(error, WrongTime) else WrongTime(f"{text!r} {OUTSIDE}") from None


def _zone(name: str) -> tzinfo:
    if name in {"Z", "z"}:
        return UTC
    try:
        if name[0] in "+-":
            return datetime.strptime(name, "%z").tzinfo or UTC
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise WrongTime(
            f"names the time zone {name!r}, which nobody knows: write a name such as "
            "Europe/Berlin, or an offset such as +01:00"
        ) from None


def _in_utc(naive: datetime, zone: tzinfo | None, fold: int) -> datetime:
    """Return a local time in UTC. A ``zone`` of None is the local one."""
    return naive.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _begin_of_day(midnight: datetime, zone: tzinfo | None) -> datetime:
    """Return the first moment of a day, in UTC. Some zones skip a midnight, or have it twice."""
    candidates = sorted(_in_utc(midnight, zone, fold) for fold in (0, 1))
    days = [one.astimezone(zone).date() for one in candidates]
    if midnight.date() not in days:
        where = str(zone) if zone else "the local time zone"
        raise WrongTime(f"names {midnight:%Y-%m-%d}, a day that the calendar of {where} skips")
    return candidates[days.index(midnight.date())]


def _only(naive: datetime, zone: tzinfo | None) -> datetime:
    """Return a local time in UTC. Raises `WrongTime` if it is no one moment."""
    first, second = (_in_utc(naive, zone, fold) for fold in (0, 1))
    if first == second:
        return first
    written = f"{naive:%Y-%m-%d %H:%M:%S}".removesuffix(":00")
    where = str(zone) if zone else "the local time zone"
    # The gap: nothing in UTC is shown as this time.
    if first.astimezone(zone).replace(tzinfo=None) != naive:
        raise WrongTime(
            f"names {written!r}, which no clock of {where} shows: the clocks are set forward over "
            "it; write another time, or an offset such as +01:00"
        )
    offsets = " or ".join(one.astimezone(zone).isoformat()[-6:] for one in (first, second))
    raise WrongTime(
        f"names {written!r}, which the clocks of {where} show twice, as they are set back: write "
        f"the offset, {offsets}"
    )


def utc_text(moment: datetime) -> str:
    """Return a time as bodies and JSON have it, such as "2026-01-10T14:00:00Z"."""
    return moment.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def local(text: str) -> str:
    """Return a time of the API as people read it, such as "2026-01-10 15:00:00 CET"."""
    return f"{_shown(text):%Y-%m-%d %H:%M:%S %Z}"


def local_exact(text: str) -> str:
    """Return a time as `local`, with its milliseconds, such as "2026-01-10 15:00:00.250 CET"."""
    shown = _shown(text)
    return f"{shown:%Y-%m-%d %H:%M:%S}.{shown.microsecond // 1000:03} {shown:%Z}"


def local_minute(text: str) -> str:
    """Return a time of the API without seconds and zone, such as "2026-01-10 15:00"."""
    return f"{_shown(text):%Y-%m-%d %H:%M}"


def zone_of(text: str) -> str:
    """Return the name of the local zone at a time of the API, such as "CET"."""
    return f"{_shown(text):%Z}"


def _shown(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    try:
        return moment.astimezone()
    except (OverflowError, ValueError):  # the first and the last day of the calendar
        return moment


def age(text: str, now: datetime) -> str:
    """Return how long ago a time of the API is, in one unit, such as "5m" or "12d"."""
    seconds = max(0.0, (now - datetime.fromisoformat(text)).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"
