"""What the looks at the store find: text times that do not sort, a mapping that fits nothing."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replay_app.events import EventMapping
from replay_app.queries import bound_text
from replay_app.store_checks import (
    contents,
    example,
    is_customized,
    mapping_faults,
    text_time_fault,
)

TEN = datetime(2026, 1, 31, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("texts", "bound", "fault"),
    [
        ([], TEN, None),
        (["2026-01-31T10:00:00Z", "2026-01-31T10:00:01Z"], TEN, None),
        (["2026-01-31T10:00:00.000Z", "2026-01-31T10:00:01.500Z"], TEN, None),
        (["2026-01-31T10:00:00", "2026-01-31T10:00:00.5"], TEN, None),
        (["2026-01-31T10:00:00+00:00", "2026-01-31T10:00:00.25+00:00"], TEN, None),
        (["2026-01-31T10:00:00Z", "2026-01-31T10:00:00+00:00", "2026-01-31T10:00:00"], TEN, None),
        (["yesterday", "", "2026-01-31T10:00:00Z"], TEN, None),  # no times: they fail one by one
        (["2026-01-31 10:00:00"], TEN, "has not the form"),
        (["2026-01-31"], TEN, "has not the form"),
        (["2026-01-31T10:00"], TEN, "has not the form"),
        (["20260131T100000Z"], TEN, "has not the form"),
        (["2026-W05-6T10:00:00Z"], TEN, "has not the form"),
        (["2026-01-31T10:00:00,5Z"], TEN, "has not the form"),
        (["2026-01-31T10:00:00+01:00"], TEN, "has not the form"),
        (["2026-01-31T10:00:00-08:00"], TEN, "has not the form"),
        (["2026-01-31T10:00:00Z", "2026-01-31T10:00:00.500Z"], TEN, "different lengths"),
        (["2026-01-31T10:00:00.5", "2026-01-31T10:00:00Z"], TEN, "different lengths"),
        (["2026-01-31T10:00:00Z"], TEN + timedelta(milliseconds=500), "more digits"),
        (["2026-01-31T10:00:00.000Z"], TEN + timedelta(milliseconds=500), None),
        (["2026-01-31T10:00:00.000Z"], TEN + timedelta(microseconds=500), "more digits"),
        (["2026-01-31T10:00:00+00:00"], TEN + timedelta(microseconds=500), None),
    ],
)
def test_text_times_that_do_not_sort_by_time_are_found(
    texts: list[str], bound: datetime, fault: str | None
) -> None:
    found = text_time_fault(texts, [bound])
    if fault is None:
        assert found is None
    else:
        assert found is not None
        assert fault in found
        assert any(repr(text) in found for text in texts)


SUFFIXES = ("", "Z", "+00:00", "-00:00", "+00")


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_refused_sorts_by_time_and_beside_its_bounds(seed: int) -> None:
    chance = random.Random(seed)
    accepted = 0
    for _ in range(400):
        digits = chance.sample(range(4), chance.choice([1, 1, 2]))
        suffixes = chance.sample(SUFFIXES, chance.choice([1, 2]))
        times: dict[str, datetime] = {}
        for _ in range(4):
            count = chance.choice(digits)
            fraction = f"{chance.randrange(10**count):0{count}}" if count else ""
            text = f"2026-01-31T10:00:0{chance.randrange(2)}{'.' if count else ''}{fraction}"
            micros = int((fraction or "0").ljust(6, "0"))
            times[text + chance.choice(suffixes)] = TEN.replace(
                second=int(text[18]), microsecond=micros
            )
        bound = TEN + timedelta(milliseconds=chance.choice([0, 500, 520, 523, 1000]))
        if text_time_fault(times, [bound]) is not None:
            continue
        accepted += 1
        for one, other in itertools.pairwise(sorted(times)):
            assert times[one] <= times[other], (one, other)
        for text, time in times.items():
            assert (text >= bound_text(bound)) == (time >= bound), (text, bound)
    assert accepted > 20


TIME_SETTINGS = "REPLAY_FIELD_TIMESTAMP, REPLAY_TIMESTAMP_TYPE"
GOOD: dict[str, Any] = {"_id": 1, "timestamp": TEN, "event_type": "a", "aggregate_id": "o-1"}


@pytest.mark.parametrize(
    ("mapping", "documents", "faults"),
    [
        ({}, [GOOD], []),
        ({}, [{"_id": 1, "timestamp": TEN, "event_type": "a"}], []),  # neither aggregate nor topic
        ({}, [{"event_type": 5}, GOOD], []),
        ({"field_id": "x"}, [GOOD], ["an id in field 'x' (REPLAY_FIELD_ID)"]),
        ({"field_type": "x"}, [GOOD], ["a type in field 'x' (REPLAY_FIELD_TYPE)"]),
        ({"field_key": "x"}, [GOOD], ["a key in field 'x' (REPLAY_FIELD_KEY)"]),
        ({"field_value": "x"}, [GOOD], ["a value in field 'x' (REPLAY_FIELD_VALUE)"]),
        ({"field_topic": "x"}, [GOOD], ["a topic in field 'x' (REPLAY_FIELD_TOPIC)"]),
        (
            {"field_aggregate": "x"},
            [GOOD],
            ["an aggregate id in field 'x' (REPLAY_FIELD_AGGREGATE)"],
        ),
        (
            {"timestamp_type": "epoch_ms"},
            [GOOD, {**GOOD, "timestamp": "5"}, {**GOOD, "timestamp": True}],
            [f"a time of the type epoch_ms in field 'timestamp' ({TIME_SETTINGS})"],
        ),
        ({"timestamp_type": "epoch_ms"}, [{**GOOD, "timestamp": 10**18}], []),
    ],
)
def test_the_parts_of_the_mapping_that_no_event_has_are_named(
    mapping: dict[str, Any], documents: list[dict[str, Any]], faults: list[str]
) -> None:
    assert mapping_faults(documents, EventMapping(**mapping), needs_topic=True) == faults


def test_the_topic_is_not_needed_where_the_target_gives_it() -> None:
    assert mapping_faults([GOOD], EventMapping(field_topic="x"), needs_topic=False) == []


@pytest.mark.parametrize(
    ("mapping", "customized"),
    [
        ({}, False),
        ({"field_type": "x", "field_timestamp": "y", "timestamp_type": "iso"}, False),
        ({"field_id": "x"}, True),
        ({"field_key": "x"}, True),
        ({"field_value": "x"}, True),
        ({"field_topic": "x"}, True),
        ({"field_aggregate": "x"}, True),
    ],
)
def test_some_settings_need_a_look_at_the_events(
    mapping: dict[str, Any], *, customized: bool
) -> None:
    assert is_customized(EventMapping(**mapping)) == customized


def test_the_contents_of_a_sample_are_few_and_short() -> None:
    documents = [{**GOOD, "event_type": f"type-{n}", "aggregate_id": n} for n in range(9)]
    found = contents(documents, EventMapping())
    assert "the types 'type-0', 'type-1', 'type-2', 'type-3', 'type-4' and 4 more" in found
    assert "aggregate ids such as '0', '1', '2' and 6 more" in found
    assert "times from 2026-01-31T10:00:00Z to 2026-01-31T10:00:00Z" in found
    without = contents([{"x": 1}], EventMapping())
    assert without == "no types in 'event_type', no date times in 'timestamp'"
    assert len(example({"_id": 1, "text": "x" * 5000})) == 400
