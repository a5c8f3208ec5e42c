"""The records of one replay are told from all others by their headers."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from replay_app.commands import Start
from replay_app.published_records import Marks
from replay_app.sessions import Session

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIME = ("replay-original-time", b"2026-01-01T00:00:00.000Z")
DELIVERY = ("replay-delivery-id", b"r:e")
ID, FIRST, SECOND = ("replay-id", b"r"), ("replay-attempt", b"1"), ("replay-attempt", b"2")
TITLE, WHY = ("replay-name", b"N"), ("replay-reason", b"W")
GOOD = (ID, SECOND, TITLE, WHY, TIME, DELIVERY)


def marks() -> Marks:
    times = dict.fromkeys(("created_at", "updated_at", "progressed_at", "heard_at"), NOW)
    start = Start(replay_id="r", name="N", reason="W")
    return Marks(Session(replay_id="r", start=start, attempt=2, **times))


def record(*headers: tuple[str, bytes | None]) -> Any:
    return SimpleNamespace(offset=7, key=b"k", value=b"v", timestamp=3, headers=headers)


@pytest.mark.parametrize(
    ("headers", "is_found", "is_unmarked"),
    [
        (GOOD, True, False),
        ((ID, FIRST, TITLE, WHY, TIME, DELIVERY), True, False),
        ((), False, False),  # a live record
        ((("trace", b"x"),), False, False),
        ((("replay-id", b"other"), *GOOD[1:]), False, False),
        ((ID, ("replay-control", b"end")), False, False),
        ((ID, ("replay-control", b"end"), ("replay-handover", b"{}")), False, False),
        ((ID, ("replay-attempt", b"3"), TITLE, WHY, TIME, DELIVERY), True, True),
        ((ID, SECOND, TIME, DELIVERY), True, True),  # without name and reason
        ((ID, SECOND, WHY, TITLE, TIME, DELIVERY), True, True),  # in another order
        ((*GOOD, ("trace", b"x")), True, True),
        ((("schema", b"1"), ("none", None), *GOOD), True, False),  # original headers
        ((("replay-id", b"old"), *GOOD), True, True),
        ((("schema", b"1"), ("traceparent", b"x"), *GOOD), True, True),
        ((ID, SECOND, TITLE, WHY, DELIVERY, TIME), True, True),
        ((ID,), True, True),
        ((ID, DELIVERY), True, True),
        ((ID, SECOND, TITLE, WHY, TIME, ("replay-delivery-id", None)), True, False),
    ],
)
def test_a_record_of_the_replay_is_found_and_wrong_headers_are_counted(
    headers: tuple[tuple[str, bytes | None], ...], is_found: bool, is_unmarked: bool
) -> None:
    found = marks()
    assert bool(found.select([record(*headers)], 0)) is is_found
    assert (found.unmarked_count == 1) is is_unmarked
    assert (len(found.unmarked) == 1) is is_unmarked


def test_control_records_are_counted_apart() -> None:
    found = marks()
    found.select([record(ID, ("replay-control", b"begin")), record(*GOOD)], 0)
    assert found.controls == 1


def test_a_record_is_found_with_all_that_is_compared() -> None:
    (found,) = marks().select([record(*GOOD)], 4)
    assert found == (b"r:e", 4, 7, b"k", b"v", TIME[1], 0)
