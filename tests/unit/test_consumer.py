"""Telling replayed records from live ones, as each client library gives their headers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_app.consumer import Provenance, ReplayReader, SeenIds, provenance

PAIRS = (
    ("trace", b"t-1"),
    ("replay-id", b"rebuild-1"),
    ("replay-original-time", b"2026-01-02T03:04:05.678Z"),
    ("replay-delivery-id", b"rebuild-1:e-1"),
    ("replay-attempt", b"2"),
    ("replay-name", "Aufträge".encode()),
    ("replay-reason", b"view lost"),
)
EXPECTED = Provenance(
    replay_id="rebuild-1",
    original_time=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
    delivery_id="rebuild-1:e-1",
    attempt=2,
    name="Aufträge",
    reason="view lost",
)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(PAIRS, id="aiokafka"),
        pytest.param(list(PAIRS), id="confluent-kafka"),
        pytest.param([(name, value.decode()) for name, value in PAIRS], id="texts"),
        pytest.param([list(pair) for pair in PAIRS], id="lists"),
        pytest.param(dict(PAIRS), id="Faust, a mapping"),
        pytest.param(iter(PAIRS), id="an iterator"),
    ],
)
def test_a_replayed_record_says_where_it_comes_from_in_every_library(headers: Any) -> None:
    assert provenance(headers) == EXPECTED


@pytest.mark.parametrize("headers", [None, (), [], {}, {"trace": b"t"}, [("trace", None)]])
def test_a_live_record_has_no_provenance(headers: Any) -> None:
    assert provenance(headers) is None


@pytest.mark.parametrize("control", ["begin", "end", "cancelled"])
def test_a_control_record_is_recognized(control: str) -> None:
    headers = [("replay-id", b"r"), ("replay-control", control.encode())]
    assert provenance(headers) == Provenance(replay_id="r", control=control)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replay-original-time", b"yesterday"),
        ("replay-original-time", b"2026-01-02T03:04:05"),  # without a timezone it is not an instant
        ("replay-original-time", b"0001-01-01T00:00:00+23:00"),
        ("replay-attempt", b"two"),
        ("replay-attempt", "²".encode()),
        ("replay-attempt", b"9" * 5000),
        ("replay-control", b"pause"),
        ("replay-name", None),
        ("replay-reason", 7),
    ],
)
def test_a_header_that_cannot_be_read_is_left_out(name: str, value: Any) -> None:
    assert provenance([("replay-id", b"r"), (name, value)]) == Provenance(replay_id="r")


@pytest.mark.parametrize(
    ("value", "replay_id"),
    [(None, ""), (b"", ""), (b"a\xff", "a\N{REPLACEMENT CHARACTER}"), (7, "")],
)
def test_a_record_with_a_broken_replay_id_is_still_a_replayed_one(
    value: Any, replay_id: str
) -> None:
    assert provenance([("replay-id", value)]) == Provenance(replay_id=replay_id)


def test_of_a_header_that_is_there_twice_the_last_one_counts() -> None:
    found = provenance([("replay-id", b"first"), ("replay-id", b"second")])
    assert found == Provenance(replay_id="second")


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)
_NAMES = st.sampled_from(
    [*(name for name, _ in PAIRS), "replay-control", "replay-partitions", "replay-handover"]
)


@given(_ANYTHING | st.lists(st.tuples(_NAMES, _ANYTHING)))
def test_nothing_makes_it_raise(headers: Any) -> None:
    found = provenance(headers)
    assert found is None or isinstance(found, Provenance)


def test_it_needs_nothing_but_python() -> None:
    loaded = "import sys, replay_app.consumer; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    modules = result.stdout.split()
    assert [name for name in modules if name.split(".")[0] == "replay_app"] == [
        "replay_app",
        "replay_app.consumer",
    ]
    assert not {"aiokafka", "faust", "confluent_kafka", "pydantic"} & set(modules)


# Reading one replay


def event(number: int, replay_id: str = "r1", attempt: int = 1) -> list[tuple[str, bytes]]:
    """Return the headers of an event."""
    return [
        ("replay-id", replay_id.encode()),
        ("replay-delivery-id", f"{replay_id}:e-{number}".encode()),
        ("replay-attempt", b"%d" % attempt),
    ]


def control(
    kind: str, partitions: int | None = 2, replay_id: str = "r1"
) -> list[tuple[str, bytes]]:
    """Return the headers of a control record; an older worker does not send ``partitions``."""
    count = [] if partitions is None else [("replay-partitions", b"%d" % partitions)]
    return [("replay-id", replay_id.encode()), ("replay-control", kind.encode()), *count]


LIVE_HEADERS: list[tuple[str, bytes]] = [("trace", b"t-1")]
ORDERS = [("orders", 0), ("orders", 1)]


def kinds(reader: ReplayReader, *records: tuple[int, int, Any], topic: str = "orders") -> list[str]:
    """Let the reader take records: partition, offset, headers."""
    return [
        reader.take(topic, partition, offset, headers) for partition, offset, headers in records
    ]


def test_a_replay_is_complete_with_the_end_of_every_partition() -> None:
    reader = ReplayReader("r1", ORDERS)
    first = ((0, 5, control("begin")), (0, 6, event(1)), (0, 9, control("end")))
    assert kinds(reader, *first) == ["begin", "event", "end"]
    assert reader.open == {("orders", 1)}
    assert kinds(reader, (1, 3, control("begin")), (1, 4, control("end"))) == ["begin", "end"]
    assert reader.is_complete
    assert not reader.is_cancelled
    assert reader.open == frozenset()
    assert reader.next_offsets == {("orders", 0): 10, ("orders", 1): 5}


def test_records_of_other_replays_and_live_ones_change_nothing() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    others = [
        (0, 0, event(1, "r2")),
        (0, 1, control("end", 1, "r2")),
        (0, 2, control("cancelled", 1, "r2")),
        (0, 3, LIVE_HEADERS),
        (0, 4, None),
        (0, 5, event(1)),
        (0, 6, control("end", 1, "r2")),
    ]
    assert kinds(reader, *others) == ["other"] * 3 + ["live"] * 2 + ["event", "other"]
    assert not reader.is_complete
    assert reader.next_offsets == {("orders", 0): 6}


def test_a_retry_begins_again_and_repeats_no_event() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    records = [
        (0, 0, control("begin", 1)),
        (0, 1, event(1)),
        (0, 7, control("begin", 1)),
        (0, 8, event(2, attempt=2)),
        (0, 9, control("end", 1)),
    ]
    assert kinds(reader, *records) == ["begin", "event", "begin", "event", "end"]
    assert reader.is_complete


def test_a_begin_without_an_end_is_never_complete() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    kinds(reader, (0, 0, control("begin", 1)), (0, 1, event(1)))
    assert not reader.is_complete
    assert not reader.is_cancelled
    assert reader.open == {("orders", 0)}


def test_a_reader_that_starts_behind_the_begin_needs_only_the_end() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    assert kinds(reader, (0, 70, event(1)), (0, 71, control("end", 1))) == ["event", "end"]
    assert reader.is_complete


def test_a_cancelled_replay_is_known_by_its_first_record_and_never_complete() -> None:
    reader = ReplayReader("r1", ORDERS)
    assert kinds(reader, (0, 0, event(1)), (0, 1, control("cancelled"))) == ["event", "cancelled"]
    assert reader.is_cancelled
    kinds(reader, (1, 0, control("cancelled")))
    assert reader.is_cancelled
    assert reader.open == frozenset()
    assert not reader.is_complete


def test_a_partition_that_came_during_the_replay_must_be_read_too() -> None:
    reader = ReplayReader("r1", ORDERS)
    kinds(reader, (0, 5, control("end", 4)), (1, 5, control("end", 4)))
    assert not reader.is_complete
    assert reader.open == {("orders", 2), ("orders", 3)}
    assert kinds(reader, (2, 0, event(1)), (2, 1, control("end", 4))) == ["event", "end"]
    kinds(reader, (3, 0, control("end", 4)))
    assert reader.is_complete


def test_a_record_from_a_new_partition_makes_the_reader_wait_for_the_partition() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    kinds(reader, (1, 0, event(1)), (0, 5, control("end", None)))
    assert reader.open == {("orders", 1)}
    kinds(reader, (1, 1, control("end", None)))
    assert reader.is_complete


def test_a_partition_that_came_after_the_end_is_not_waited_for() -> None:
    reader = ReplayReader("r1", [*ORDERS, ("orders", 2)])
    kinds(reader, (0, 5, control("end")), (1, 5, control("end")))
    assert reader.is_complete


def test_a_number_of_partitions_that_no_topic_has_is_ignored() -> None:
    reader = ReplayReader("r1", ORDERS)
    kinds(reader, (0, 5, control("end", 999_999_999)))
    assert reader.open == {("orders", 1)}


def test_without_the_number_of_partitions_the_ones_that_are_read_count() -> None:
    reader = ReplayReader("r1", ORDERS)
    kinds(reader, (0, 5, control("end", None)))
    assert reader.open == {("orders", 1)}
    kinds(reader, (1, 5, control("end", None)))
    assert reader.is_complete


def test_every_topic_that_is_read_needs_its_end() -> None:
    reader = ReplayReader("r1", [("orders", 0), ("customers", 0)])
    kinds(reader, (0, 0, control("end", 1)))
    assert reader.open == {("customers", 0)}
    kinds(reader, (0, 0, control("end", 1)), topic="customers")
    assert reader.is_complete


def test_one_of_several_consumers_has_done_its_part_before_the_replay_is_complete() -> None:
    reader = ReplayReader("r1", [("orders", 1)])
    kinds(reader, (1, 0, event(1)), (1, 1, control("end")))
    assert not reader.is_complete
    assert reader.open.isdisjoint({("orders", 1)})


def test_records_behind_the_end_belong_to_a_later_replay_of_the_same_id() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    kinds(reader, (0, 0, event(1)), (0, 1, control("end", 1)))
    later = ((0, 2, control("begin", 1)), (0, 3, event(1)), (0, 4, control("end", 1)))
    assert kinds(reader, *later) == ["other"] * 3
    assert reader.is_complete


def test_a_record_without_a_readable_delivery_id_is_still_an_event() -> None:
    reader = ReplayReader("r1", [("orders", 0)])
    assert kinds(reader, (0, 0, [("replay-id", b"r1")])) == ["event"]


RECORDS = [
    (0, 0, control("begin")),
    (1, 0, control("begin")),
    (0, 1, event(1)),
    (1, 1, event(2)),
    (0, 2, event(3, "r2")),
    (0, 3, event(4)),
    (1, 2, control("end")),
    (0, 4, control("end")),
]


@pytest.mark.parametrize("saved", range(len(RECORDS) + 1))
@pytest.mark.parametrize("read_again_from", range(len(RECORDS) + 1))
def test_a_restart_anywhere_gives_every_event_once(saved: int, read_again_from: int) -> None:
    """The state was saved after some records; then the consumer goes on at an older offset."""
    if read_again_from > saved:
        return
    reader = ReplayReader("r1", ORDERS)
    before = kinds(reader, *RECORDS[:saved])
    again = ReplayReader.from_state(json.loads(json.dumps(reader.state())))
    assert again.state() == reader.state()
    after = kinds(again, *RECORDS[read_again_from:])
    assert (before + after).count("event") == 3
    assert again.is_complete
    # A record of this replay that was taken before the restart is told from a new one.
    own = [
        headers
        for _, _, headers in RECORDS[read_again_from:saved]
        if ("replay-id", b"r1") in headers
    ]
    assert after.count("repeated") == len(own)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"replay_id": "r1"},
        {"replay_id": "r1", "partitions": [], "counts": {}, "handover": {}},
        {"replay_id": "r1", "partitions": [["orders", 0]], "counts": {}, "handover": {}},
        {"replay_id": "r1", "partitions": [["orders", "x", 0, None]], "counts": {}, "handover": {}},
        {"replay_id": "r1", "partitions": 7, "counts": {}, "handover": {}},
        {"replay_id": "r1", "partitions": [["orders", 0, 0, None]], "counts": [], "handover": {}},
        {"replay_id": "r1", "partitions": [["orders", 0, 0, None]], "counts": {}, "handover": 7},
        {"replay_id": "r1", "partitions": [["a", 0, math.inf, None]], "counts": {}, "handover": {}},
        {"replay_id": "r1", "partitions": [["a", 0, 9, "begin"]], "counts": {}, "handover": {}},
        {"replay_id": "r1", "partitions": [["a", 0, 9, ["end"]]], "counts": {}, "handover": {}},
    ],
)
def test_something_else_is_not_taken_for_a_state(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"state|partitions|invalid literal|unpack"):
        ReplayReader.from_state(state)


def test_the_end_says_from_where_to_read_on_live() -> None:
    reader = ReplayReader("r1", [("rebuild.orders", 0), ("rebuild.customers", 0)])
    assert reader.handover == {}
    for topic, text in (
        ("rebuild.orders", b'{"orders":{"0":17,"1":4}}'),
        ("rebuild.customers", b'{"customers":null}'),
    ):
        reader.take(topic, 0, 9, [*control("end", 1), ("replay-handover", text)])
    expected = {"orders": {0: 17, 1: 4}, "customers": None}
    assert reader.handover == expected
    again = ReplayReader.from_state(json.loads(json.dumps(reader.state())))
    assert again.handover == expected


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"[]", b"7", b'{"a":7}', b'{"a":{"x":1}}', b'{"a":{"0":null}}', b"[" * 9999),
        *(b'{"a":{"0":1e999}}', b'{"a":{"0":Infinity}}', b'{"a":{"0":NaN}}'),
    ],
)
def test_a_hand_over_that_cannot_be_read_is_left_out(text: bytes) -> None:
    found = provenance([*control("end", 1), ("replay-handover", text)])
    assert found is not None
    assert found.handover is None
    assert found.control == "end"


def test_a_reader_without_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the partitions that it reads"):
        ReplayReader("r1", [])


@pytest.mark.parametrize(
    ("delivery_id", "event_id"),
    [
        (b"r1:4711", "4711"),
        (b"r1:a:b", "a:b"),
        (b'r1:{"$numberInt":"4711"}', '{"$numberInt":"4711"}'),
        (b"r2:4711", None),
        (b"4711", None),
        (None, None),
    ],
)
def test_the_event_id_is_what_follows_the_replay_id(
    delivery_id: bytes | None, event_id: str | None
) -> None:
    found = provenance([("replay-id", b"r1"), ("replay-delivery-id", delivery_id)])
    assert found is not None
    assert found.event_id == event_id


# What was seen


def test_an_id_is_new_once() -> None:
    seen = SeenIds(10)
    assert [seen.add(one) for one in ("a", "b", "a", "b", "c")] == [True, True, False, False, True]
    assert "a" in seen
    assert "d" not in seen


def test_only_the_newest_ids_are_remembered() -> None:
    seen = SeenIds(2, ["a", "b"])
    assert seen.add("c")
    assert len(seen) == 2
    assert seen.state() == ["b", "c"]
    assert seen.add("a"), "the oldest id is forgotten"


def test_seen_ids_go_on_from_their_state() -> None:
    seen = SeenIds(3, ["a", "b", "c", "d"])
    again = SeenIds(3, json.loads(json.dumps(seen.state())))
    assert again.state() == ["b", "c", "d"]
    assert not again.add("d")


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        SeenIds(0)
