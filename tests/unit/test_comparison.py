"""The comparison of records that the store says with the records of the topics."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_app.comparison import OTHER_VALUE, Comparison, Expected, Found
from replay_app.partitioner import partition_of

PARTITIONS = [("a", 0), ("a", 1), ("b", 0)]


def expected(number: int, partition: int = 0, lane: int = 0, **changes: Any) -> Expected:
    """Return the record that the store says for an event; its place is its number."""
    record = Expected(b"r:%d" % number, lane, number, partition, b"k", b"v%d" % number, b"t")
    return record._replace(**changes)


def found(number: int, offset: int, partition: int = 0, **changes: Any) -> Found:
    record = Found(b"r:%d" % number, partition, offset, b"k", b"v%d" % number, b"t")
    return record._replace(**changes)


def in_order(numbers: Iterable[int], partition: int = 0) -> list[Found]:
    """Return the records of events at rising offsets."""
    return [found(number, 10 + at, partition) for at, number in enumerate(numbers)]


def counts(comparison: Comparison) -> dict[str, int]:
    """Return the counts that are not 0."""
    named = {
        "waiting": len(comparison.waiting),
        "early": len(comparison.early),
        **{
            name: getattr(comparison, name)
            for name in ("differing", "misplaced", "unordered", "lost_waiting", "lost_early")
        },
    }
    return {name: count for name, count in named.items() if count}


def compare(store: Sequence[Expected], topic: Sequence[Found]) -> Comparison:
    comparison = Comparison(list(PARTITIONS))
    comparison.expect(store)
    comparison.take(topic)
    return comparison


STORE = [expected(number) for number in range(5)]


@pytest.mark.parametrize(
    ("changes", "is_all"),
    [
        ([{"timestamp": 7}] * 5, True),
        ([{"timestamp": 7}] * 4, True),  # one record is missing
        ([{"timestamp": 7}] * 4 + [{}], False),
        ([{"timestamp": 7}] * 4 + [{"timestamp": 7, "value": b"x"}], False),
        ([{}] * 5, False),
        ([], False),
    ],
)
def test_records_that_all_have_another_timestamp_are_told_from_altered_ones(
    changes: list[dict[str, Any]], is_all: bool
) -> None:
    topic = [found(number, 10 + number, **one) for number, one in enumerate(changes)]
    assert compare(STORE, topic).has_other_timestamps is is_all


@pytest.mark.parametrize(
    ("topic", "differences"),
    [
        (in_order(range(5)), {}),
        (in_order([0, 1, 3, 4]), {"waiting": 1}),
        (in_order([]), {"waiting": 5}),
        (in_order([0, 1, 2, 2, 3, 4]), {"early": 1}),
        (in_order([0, 1, 2, 9, 3, 4]), {"early": 1}),
        (in_order([0, 2, 1, 3, 4]), {"unordered": 1}),
        (in_order([4, 0, 1, 2, 3]), {"unordered": 4}),
        ([*in_order(range(4)), found(4, 20, value=b"x")], {"differing": 1}),
        ([*in_order(range(4)), found(4, 20, key=b"x")], {"differing": 1}),
        ([*in_order(range(4)), found(4, 20, key=None)], {"differing": 1}),
        ([*in_order(range(4)), found(4, 20, value=None)], {"differing": 1}),
        ([*in_order(range(4)), found(4, 20, time=b"x")], {"differing": 1}),
        ([*in_order(range(4)), found(4, 20, time=None)], {"differing": 1}),
        ([*in_order(range(4)), found(4, 20, timestamp=7)], {"differing": 1}),
        # A later event that differs does not make the others unordered.
        ([found(4, 1, value=b"x"), *in_order(range(4))], {"differing": 1}),
    ],
)
def test_each_kind_of_difference_is_counted(
    topic: list[Found], differences: dict[str, int]
) -> None:
    assert counts(compare(STORE, topic)) == differences


def test_what_differs_is_named_with_its_place() -> None:
    comparison = compare(STORE, [found(0, 7, value=b"x", time=b"y")])
    (difference,) = comparison.differences
    assert difference[:5] == (OTHER_VALUE, "0", "a", 0, 7)
    assert (
        difference.detail == "another value and header replay-original-time than the stored event"
    )


def test_a_record_in_another_partition_than_its_keys_is_misplaced() -> None:
    comparison = compare([expected(1)], in_order([1], partition=1))
    assert counts(comparison) == {"misplaced": 1}
    assert comparison.differences[0].detail == "its partition is a[0]"
    assert counts(compare([expected(1)], in_order([1], partition=2))) == {"misplaced": 1}


@pytest.mark.parametrize(("partitions", "misplaced"), [((2, 4), 0), ((2, 3), 1), (None, 1)])
def test_a_key_may_have_moved_if_its_topic_grew(
    partitions: tuple[int, int] | None, misplaced: int
) -> None:
    key = next(b"%d" % n for n in range(100) if partition_of(b"%d" % n, 4) == 3)
    numbers = {count: partition_of(key, count) for count in (2, 3, 4)}
    comparison = Comparison(
        [("a", number) for number in range(4)], {} if partitions is None else {"a": partitions}
    )
    comparison.expect([expected(1, numbers[2], key=key)])
    comparison.take([found(1, 5, 3, key=key)])
    assert comparison.misplaced == misplaced


def test_events_with_one_id_are_matched_one_by_one_and_in_their_order() -> None:
    twins = [expected(7, place=place, value=b"v%d" % place) for place in range(3)]
    topic = [found(7, place, value=b"v%d" % place) for place in range(3)]
    assert counts(compare(twins, topic)) == {}
    assert counts(compare(twins, topic[:2])) == {"waiting": 1}
    assert counts(compare(twins[:2], topic)) == {"early": 1}
    early = Comparison(list(PARTITIONS))
    early.take(topic)
    early.expect(twins)
    assert counts(early) == {}


def test_tied_events_may_come_in_any_order() -> None:
    tied = [expected(number, place=0) for number in range(3)]
    assert counts(compare(tied, in_order([2, 0, 1]))) == {}


def test_each_shard_has_its_own_order_within_a_partition() -> None:
    store = [expected(n, lane=0, place=n) for n in (0, 1)]
    store += [expected(n, lane=1, place=n - 2) for n in (2, 3)]
    for mixed in ([0, 1, 2, 3], [2, 0, 3, 1], [2, 3, 0, 1]):
        assert counts(compare(store, in_order(mixed))) == {}
    assert counts(compare(store, in_order([3, 0, 2, 1]))) == {"unordered": 1}


def test_memory_is_bounded_and_all_records_are_counted() -> None:
    comparison = Comparison(list(PARTITIONS), max_waiting=10)
    comparison.expect([expected(number) for number in range(100)])
    comparison.take([found(number, number) for number in range(1000, 1100)])
    assert counts(comparison) == {
        "waiting": 10,
        "early": 10,
        "lost_waiting": 90,
        "lost_early": 90,
    }
    assert (comparison.expected, comparison.records) == (100, 100)
    assert sum(comparison.waiting_in.values()) == sum(comparison.waiting_of.values()) == 10
    comparison.take([found(number, 2000 + number) for number in range(90, 100)])
    assert counts(comparison) == {"early": 10, "lost_waiting": 90, "lost_early": 90}


def test_memory_is_bounded_by_bytes_too() -> None:
    comparison = Comparison(list(PARTITIONS), max_waiting_bytes=1000)
    for number in range(50):
        comparison.expect([expected(number, value=bytes(100))])
        comparison.take([found(number, number, value=bytes(100))])
    assert counts(comparison) == {}
    comparison.expect([expected(number, value=bytes(100)) for number in range(100, 120)])
    assert len(comparison.waiting) == 9
    comparison.expect([expected(999, value=bytes(5000))])
    assert [one.place for one in comparison.waiting] == [999]  # one record may be of any size


@given(st.integers(0, 2**32))
def test_the_pace_of_the_two_sides_changes_nothing(seed: int) -> None:
    """Records that are in order stay so, and a swapped pair is found, however the sides meet."""
    rng = random.Random(seed)
    lanes = [
        [expected(lane * 100 + n, rng.randrange(3), lane) for n in range(20)] for lane in range(3)
    ]
    queues, topics = [list(lane) for lane in lanes], [list[Found](), list[Found](), list[Found]()]
    while any(queues):
        one = rng.choice([queue for queue in queues if queue]).pop(0)
        topic = topics[one.partition]
        topic.append(Found(one.delivery_id, one.partition, len(topic), *one[4:]))
    swap = rng.random() < 0.5
    if swap:
        topic = max(topics, key=len)
        pairs = [
            (low, high)
            for low, a in enumerate(topic)
            for high, b in enumerate(topic)
            if low < high and int(a.delivery_id[2:]) // 100 == int(b.delivery_id[2:]) // 100
        ]
        low, high = rng.choice(pairs)
        topic[low], topic[high] = (
            topic[high]._replace(offset=low),
            topic[low]._replace(offset=high),
        )
    comparison = Comparison(list(PARTITIONS))
    sides: list[list[Any]] = [*lanes, *topics]
    while any(sides):
        side = rng.choice([one for one in sides if one])
        some = [side.pop(0) for _ in range(min(len(side), rng.randrange(1, 6)))]
        if isinstance(some[0], Expected):
            comparison.expect(some)
        else:
            comparison.take(some)
    assert (comparison.unordered > 0) is swap
    assert set(counts(comparison)) <= {"unordered"}
