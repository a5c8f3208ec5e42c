"""The ranges of aggregate ids: whatever the sample, each id is in exactly one range."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Code, Decimal128, ObjectId
from hypothesis import given
from hypothesis import strategies as st

from replay_app.cuts import ID_TYPES, Range, id_type, in_order, quantiles, ranges
from replay_app.id_texts import stored_values
from replay_app.queries import Query

T0 = datetime(2026, 1, 1, tzinfo=UTC)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "number": st.integers(-(2**40), 2**40) | st.floats(allow_nan=False),
    "string": st.text(max_size=4),
    "binData": st.uuids() | st.binary(max_size=3),
    "objectId": st.binary(min_size=12, max_size=12).map(ObjectId),
    "date": st.integers(0, 10**6).map(lambda seconds: T0 + timedelta(seconds=seconds)),
}
ODD: tuple[Any, ...] = (None, math.nan, Decimal128("1.5"), Code("x"), ("an", "array"))
IDS = st.one_of(*KINDS.values(), st.sampled_from(ODD))


def matches(query: Query, value: Any) -> bool:
    """Return whether an aggregate id matches the query of a range, as a store decides it."""
    return all(
        all(matches(part, value) for part in condition)
        if name == "$and"
        else not any(matches(part, value) for part in condition)
        if name == "$nor"
        else _meets(condition, value)
        for name, condition in query.items()
    )


def _meets(condition: dict[str, Any], value: Any) -> bool:
    operators: dict[str, Callable[[Any], bool]] = {
        "$type": lambda kind: (
            id_type(value) == kind or (kind == "number" and _is_odd_number(value))
        ),
        "$not": lambda _: not isinstance(value, tuple),
        "$ne": lambda _: value == value,  # noqa: PLR0124 - the number that is left out is NaN
        "$gte": lambda low: not _is_odd_number(value) and place(value) >= place(low),
        "$lt": lambda high: _is_odd_number(value) or place(value) < place(high),
    }
    return all(operators[name](operand) for name, operand in condition.items())


def _is_odd_number(value: Any) -> bool:
    return isinstance(value, Decimal128) or (isinstance(value, float) and math.isnan(value))


def place(value: Any) -> Any:
    """Return what decides on the order of ids of one type: of bytes, the length comes first."""
    if isinstance(value, uuid.UUID):
        return 16, 4, value.bytes
    return (len(value), 0, value) if isinstance(value, bytes) else value


def holders(found: list[Range], value: Any) -> list[int]:
    """Return the numbers of the ranges that hold an aggregate id."""
    return [number for number, one in enumerate(found) if matches(one.match, value)]


def sampled(values: list[Any]) -> list[Any]:
    """Return a sample as the store sends one: the ids of each type in order."""
    by_type = {kind: [one for one in values if id_type(one) == kind] for kind in ID_TYPES}
    others = [one for one in values if id_type(one) is None]
    return [*others, *(one for same in by_type.values() for one in sorted(same, key=place))]


@given(st.lists(IDS, max_size=30), st.lists(IDS, max_size=10), st.integers(1, 9))
def test_each_id_is_in_one_range_also_an_id_that_the_sample_does_not_have(
    sample: list[Any], later: list[Any], wanted: int
) -> None:
    found = ranges("aggregate_id", sampled(sample), wanted)
    for value in [*sample, *later]:
        assert len(holders(found, value)) == 1, value


@given(st.sets(st.sampled_from([*ID_TYPES])), st.lists(IDS, min_size=1, max_size=20))
def test_without_a_sample_there_is_a_range_for_each_type_that_is_named(
    kinds: set[str], values: list[Any]
) -> None:
    found = ranges("aggregate_id", [], 8, kinds)
    assert [one.order for one in found] == [("aggregate_id",)] * len(kinds) + [()]
    for value in values:
        assert len(holders(found, value)) == 1, value


def test_without_any_knowledge_all_events_are_one_range_in_the_order_of_time() -> None:
    assert ranges("aggregate_id", [], 8) == [Range({}, ())]
    assert ranges("aggregate_id", [None, math.nan], 8) == [Range({}, ())]


@given(
    st.sampled_from(["number", "string", "objectId", "date", "uuid"]).flatmap(
        lambda kind: st.lists(KINDS.get(kind, st.uuids()), min_size=1, max_size=99, unique=True)
    ),
    st.integers(1, 20),
)
def test_a_sample_is_cut_into_equal_parts(values: list[Any], wanted: int) -> None:
    found = ranges("aggregate_id", sampled(values), wanted)
    sizes = Counter(number for value in values for number in holders(found, value))
    assert len(found) == min(wanted, len(values)) + 1
    assert max(sizes.values()) <= math.ceil(len(values) / wanted)
    assert len(found) - 1 not in sizes  # nothing is left for the last range


def test_each_type_has_ranges_by_its_part_of_the_sample() -> None:
    sample = [*range(25), *(f"o-{number:02}" for number in range(75))]
    found = ranges("aggregate_id", sample, 4)
    assert [len(holders(found, value)) for value in sample] == [1] * 100
    assert {holders(found, value)[0] for value in range(25)} == {0}
    assert {holders(found, f"o-{number:02}")[0] for number in range(75)} == {1, 2, 3}


def test_bytes_of_unequal_lengths_are_not_cut() -> None:
    bytes_too = [*(uuid.UUID(int=number) for number in range(9)), b"7"]
    assert len(ranges("aggregate_id", bytes_too, 4)) == 2
    assert len(ranges("aggregate_id", bytes_too[:-1], 4)) == 5


@given(st.lists(IDS, max_size=40))
def test_named_ids_are_distinct_and_each_type_is_in_order(values: list[Any]) -> None:
    values = [one for one in values if not isinstance(one, tuple)]
    found = in_order(values)
    for kind in ID_TYPES:
        same = [one for one in found if id_type(one) == kind]
        assert len(same) == len(set(same))
        assert set(same) == {one for one in values if id_type(one) == kind}
        assert same == sorted(same, key=place)


def test_named_ids_are_cut_in_each_type_in_which_they_may_be_stored() -> None:
    ids = [str(uuid.UUID(int=number << 90)) for number in range(40)]
    found = ranges("aggregate_id", in_order(stored_values(ids)), 20)
    assert len({holders(found, one)[0] for one in ids}) == 4  # text is one of five spellings
    assert len({holders(found, uuid.UUID(one))[0] for one in ids}) == 1


@pytest.mark.parametrize(
    ("ordered", "parts", "cuts"),
    [
        ([], 4, []),
        (["a"], 4, []),
        (["a"] * 100, 4, []),
        ([1, 2, 3, 4], 1, []),
        ([1, 2, 3, 4], 2, [3]),
        ([1, 2, 3, 4], 4, [2, 3, 4]),
        ([1, 2], 8, [2]),
        (["a"] * 9 + ["b"], 4, ["b"]),
        (["a"] + ["b"] * 9, 4, ["b"]),
        (["a"] + ["b"] * 8 + ["c"], 3, ["b", "c"]),
        (["a", "b"] + ["c"] * 7 + ["d"], 2, ["c"]),  # nearer than the begin of d
        (["b", "B", "a", "A"], 4, ["B", "a", "A"]),  # the store's order, not Python's
    ],
)
def test_cuts_are_distinct_and_keep_the_order(
    ordered: list[Any], parts: int, cuts: list[Any]
) -> None:
    assert quantiles(ordered, parts) == cuts
