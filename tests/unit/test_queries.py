"""The filter compiler, time ranges and cursors, as plain documents."""

from __future__ import annotations

import math
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import bson
import pytest
from bson import (
    Binary,
    Code,
    DatetimeMS,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.codec_options import CodecOptions
from hypothesis import given
from hypothesis import strategies as st
from support import raw_document, raw_field, raw_text

from replay_app.commands import Filter
from replay_app.elements import values_at
from replay_app.events import EventMapping
from replay_app.exceptions import ReplayFailed
from replay_app.queries import (
    advance,
    after,
    all_of,
    compile_filter,
    decode_cursor,
    encode_cursor,
    from_json,
    of_type,
    sort_value,
    time_range,
    to_json,
    untimed,
)

MAPPING = EventMapping()
OID = "65920080000001000000002a"
UID = "12345678-1234-4234-8234-123456789abc"
LEGACY_UUIDS = [
    Binary(bytes.fromhex(one), 3)
    for one in (
        "12345678123442348234123456789abc",
        "78563412341234428234123456789abc",
        "3442341278563412bc9a785634123482",
    )
]
"""What drivers in Python, C# and Java have stored for the UUID."""
NO_ARRAY = {"$not": {"$type": "array"}}
TEN = datetime(2026, 1, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wanted", "query"),
    [
        ({}, {}),
        ({"event_types": ("a", "b")}, {"event_type": {"$in": ["a", "b"]}}),
        ({"exclude_event_types": ("a",)}, {"event_type": {"$nin": ["a"]}}),
        (
            {"event_types": ("a",), "exclude_event_types": ("b",)},
            {"$and": [{"event_type": {"$in": ["a"]}}, {"event_type": {"$nin": ["b"]}}]},
        ),
        ({"aggregate_ids": ("o-1", 7)}, {"aggregate_id": {"$in": ["o-1", 7]}}),
        (
            {"event_ids": ("e-1",)},
            {
                "$or": [
                    {"event_id": {"$in": ["e-1"]}},
                    {"event_id": None, "_id": {"$in": ["e-1"]}},
                ]
            },
        ),
        ({"fields": {"a.b": "x"}}, {"a.b": {"$eq": "x"}}),
        (
            {"fields": {"b": None, "a": True}},
            {"$and": [{"a": {"$eq": True}}, {"b": {"$eq": None}}]},
        ),
        # Values that look like operators or patterns are values.
        ({"fields": {"a": "$where"}}, {"a": {"$eq": "$where"}}),
        ({"fields": {"a": '{"$gt": ""}'}}, {"a": {"$eq": '{"$gt": ""}'}}),
        ({"fields": {"a": "/.*/"}}, {"a": {"$eq": "/.*/"}}),
        ({"fields": {"a": UID}}, {"a": {"$in": [UID, uuid.UUID(UID), *LEGACY_UUIDS]}}),
        ({"fields": {"a": OID}}, {"a": {"$in": [OID, ObjectId(OID)]}}),
        ({"fields": {"a": "42"}}, {"a": {"$eq": "42"}}),
        ({"fields": {"a": '{"b": 1}'}}, {"a": {"$eq": '{"b": 1}'}}),
        ({"aggregate_ids": ("$ne",)}, {"aggregate_id": {"$in": ["$ne"]}}),
        ({"event_types": ("/.*/",)}, {"event_type": {"$in": ["/.*/"]}}),
    ],
)
def test_a_filter_becomes_a_query(wanted: dict[str, Any], query: dict[str, Any]) -> None:
    assert compile_filter(Filter(**wanted), MAPPING) == query


def test_a_filter_goes_by_the_mapping() -> None:
    mapping = replace(MAPPING, field_id="meta.id", field_type="meta.type", field_aggregate="stream")
    wanted = Filter(event_types=("a",), aggregate_ids=("s",), event_ids=("e",))
    assert compile_filter(wanted, mapping) == {
        "$and": [
            {"meta.type": {"$in": ["a"]}},
            {"stream": {"$in": ["s"]}},
            {"meta.id": {"$in": ["e"]}},
        ]
    }


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("o-1", ["o-1"]),
        ("", [""]),
        (7, [7]),
        ("7", ["7", 7]),
        ("0", ["0", 0]),
        ("-7", ["-7", -7]),
        ("007", ["007"]),
        ("-0", ["-0"]),
        ("7.0", ["7.0"]),
        ("\u0667", ["\u0667"]),
        ("9223372036854775807", ["9223372036854775807", 2**63 - 1]),
        ("9223372036854775808", ["9223372036854775808"]),
        (OID, [OID, ObjectId(OID)]),
        (OID.upper(), [OID.upper(), ObjectId(OID)]),
        (UID, [UID, uuid.UUID(UID), *LEGACY_UUIDS]),
        ('{"s": "a", "v": 1}', ['{"s": "a", "v": 1}', {"s": "a", "v": 1}]),
        ('{"$ne": 1}', ['{"$ne": 1}']),
        (
            "aaaaaaaaaaaa",
            ["aaaaaaaaaaaa"],
        ),  # an ObjectId is written as 24 hex digits, not as twelve letters
    ],
)
def test_an_id_is_looked_for_in_every_type_in_which_it_may_be_stored(
    written: str | int, found: list[Any]
) -> None:
    assert compile_filter(Filter(aggregate_ids=(written,)), MAPPING) == {
        "aggregate_id": {"$in": found}
    }


@pytest.mark.parametrize(
    ("parts", "query"),
    [
        ([], {}),
        ([{}, {}], {}),
        ([{}, {"a": 1}], {"a": 1}),
        ([{"a": 1}, {"a": 2}], {"$and": [{"a": 1}, {"a": 2}]}),
    ],
)
def test_a_conjunction_is_as_short_as_it_can_be(
    parts: list[dict[str, Any]], query: dict[str, Any]
) -> None:
    assert all_of(*parts) == query


@pytest.mark.parametrize(
    ("kind", "start", "bound"),
    [
        ("date", TEN, TEN),
        ("date", TEN.astimezone(timezone(timedelta(hours=5))), TEN),
        ("date", TEN.replace(microsecond=500_000), TEN.replace(microsecond=500_000)),
        ("date", TEN.replace(microsecond=1), TEN.replace(microsecond=1_000)),
        ("date", TEN.replace(microsecond=999_001), TEN.replace(second=1)),
        ("iso", TEN, "2026-01-01T10:00:00"),
        ("iso", TEN.astimezone(timezone(timedelta(hours=5))), "2026-01-01T10:00:00"),
        ("iso", TEN.replace(microsecond=500_000), "2026-01-01T10:00:00.5"),
        ("iso", TEN.replace(microsecond=10), "2026-01-01T10:00:00.00001"),
        ("iso", TEN.replace(second=10), "2026-01-01T10:00:10"),
        ("epoch_ms", TEN, 1767261600000),
        ("epoch_ms", TEN.replace(microsecond=1_500), 1767261600001.5),
        ("epoch_ms", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), -1000),
    ],
)
def test_a_time_range_is_in_the_stores_kind_of_time(
    kind: Any, start: datetime, bound: object
) -> None:
    mapping = replace(MAPPING, timestamp_type=kind)
    end = datetime(2027, 1, 1, tzinfo=UTC)
    latest = {"date": end, "iso": "2027-01-01T00:00:00", "epoch_ms": 1798761600000}[kind]
    assert time_range(start, end, mapping) == {
        "timestamp": {"$gte": bound, "$lt": latest, **NO_ARRAY}
    }
    assert time_range(None, end, mapping) == {"timestamp": {"$lt": latest, **NO_ARRAY}}


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-01T10:00:00Z",
        "2026-01-01T10:00:00.5Z",
        "2026-01-01T10:00:00.500Z",
        "2026-01-01T10:00:00.500000Z",
        "2026-01-01T10:00:00+00:00",
        "2026-01-01T10:00:00.500+00:00",
        "2026-01-01T10:00:00",
    ],
)
def test_a_bound_sorts_before_every_spelling_of_its_instant(written: str) -> None:
    instant = datetime.fromisoformat(written).replace(tzinfo=UTC)
    mapping = replace(MAPPING, timestamp_type="iso")
    bounds = time_range(instant, instant + timedelta(seconds=1), mapping)["timestamp"]
    assert bounds["$gte"] <= written < bounds["$lt"]
    earlier = time_range(None, instant, mapping)["timestamp"]
    assert not written < earlier["$lt"]


@pytest.mark.parametrize(
    ("kind", "bson_type"), [("date", "date"), ("iso", "string"), ("epoch_ms", "number")]
)
def test_untimed_is_every_value_that_is_not_a_time(kind: Any, bson_type: str) -> None:
    mapping = replace(MAPPING, timestamp_type=kind)
    assert untimed(mapping) == {"$nor": [of_type("timestamp", bson_type)]}


def test_nan_has_no_place_in_an_order() -> None:
    condition = of_type("n", "number")["n"]
    assert condition["$type"] == "number"
    assert math.isnan(condition["$ne"])
    assert of_type("s", "string") == {"s": {"$type": "string", **NO_ARRAY}}


def test_after_no_cursor_is_everything() -> None:
    assert after(None, ("timestamp", "_id")) == {}


def test_after_a_cursor_starts_at_its_first_value() -> None:
    assert after(encode_cursor([TEN, "e-1"]), ("timestamp", "_id")) == {
        "$and": [
            {"timestamp": {"$gte": TEN}},
            {
                "$nor": [
                    {"timestamp": {"$eq": TEN}, "$expr": {"$lte": ["$_id", {"$literal": "e-1"}]}}
                ]
            },
        ]
    }


def test_after_a_cursor_over_aggregates_leaves_out_all_that_comes_before() -> None:
    cursor = encode_cursor(["o-1", TEN, 5])
    assert after(cursor, ("aggregate_id", "timestamp", "_id"))["$and"][1]["$nor"] == [
        {"aggregate_id": {"$eq": "o-1"}, "timestamp": {"$lt": TEN}},
        {
            "aggregate_id": {"$eq": "o-1"},
            "timestamp": {"$eq": TEN},
            "$expr": {"$lte": ["$_id", {"$literal": 5}]},
        },
    ]


def test_a_cursor_on_null_has_no_lower_bound() -> None:
    query = after(encode_cursor([None, 5]), ("timestamp", "_id"))
    assert list(query) == ["$nor"]


def test_the_id_alone_can_be_the_order() -> None:
    query = after(encode_cursor(["$a"]), ("_id",))
    assert query == {"$nor": [{"$expr": {"$lte": ["$_id", {"$literal": "$a"}]}}]}


FAR_PAST, FAR = DatetimeMS(-(2**60)), DatetimeMS(2**60)


def test_a_cursor_on_a_date_that_python_does_not_have_is_sent_as_this_date() -> None:
    query = after(encode_cursor([FAR_PAST, {"at": FAR}]), ("timestamp", "_id"))
    assert query == {
        "$and": [
            {"timestamp": {"$gte": FAR_PAST}},
            {
                "$nor": [
                    {
                        "timestamp": {"$eq": FAR_PAST},
                        "$expr": {"$lte": ["$_id", {"$literal": {"at": FAR}}]},
                    }
                ]
            },
        ]
    }
    bson.encode(query)


@pytest.mark.parametrize(
    "field",
    [
        raw_text("v", b"a\xff"),
        raw_field("v", 0x06),  # undefined
        raw_field("v", 0x0E, b"\x02\0\0\0a\0"),  # symbol
        raw_field("v", 0x0C, b"\x02\0\0\0a\0" + bytes(12)),  # DBPointer
        raw_field("v", 0x05, b"\x02\0\0\0\x04ab"),  # a UUID of two bytes
        raw_field("v", 0x01, bytes.fromhex("010000000000f8ff")),  # NaN with other bits
        raw_field("v", 0x03, raw_document(("a", 1), ("a", 2))),
        raw_field("v", 0x03, raw_document(("$bson", b"x"))),
        ("v", Binary(bytes(16), 3)),
        ("v", Binary(b"ab", 2)),
        ("v", FAR),
        ("v", {"at": [FAR_PAST, math.nan]}),
        ("v", {"$numberLong": "5"}),
        ("v", {"$oid": "no"}),
        ("v", MinKey()),
        ("v", Regex("a", "ix")),
        ("v", Decimal128("1.50")),
        ("v", math.nan),
        ("v", Code("f()", {"a": 1})),
        ("v", "é"),
        ("v", None),
        ("v", TEN),
    ],
)
def test_a_cursor_gives_the_store_the_bytes_that_the_store_sent(field: Any) -> None:
    stored = raw_document(field)
    (value,) = values_at(stored, "v")
    query = after(encode_cursor([sort_value(value), sort_value(value)]), ("a", "_id"))
    sent = bson.encode(query, codec_options=OPTIONS)
    content = stored[4:-1].partition(b"\0")[2]
    kind = stored[4:5]
    assert kind + b"$literal\0" + content in sent
    assert kind + b"$eq\0" + content in sent


def test_a_missing_sort_field_is_null() -> None:
    assert sort_value(None) is None


def test_a_cursor_leaves_out_the_events_whose_place_is_not_known() -> None:
    sort = ("timestamp", "_id")
    earlier, later = TEN - timedelta(seconds=1), TEN + timedelta(seconds=5)
    start = advance(None, None, [[TEN, 1], [later, 1]])
    assert after(start, sort) == {
        "$nor": [
            {"timestamp": {"$eq": TEN}, "_id": {"$eq": 1}},
            {"timestamp": {"$eq": later}, "_id": {"$eq": 1}},
        ]
    }
    more = advance(start, None, [[TEN, 2]])
    assert more is not None
    assert len(after(more, sort)["$nor"]) == 3
    assert decode_cursor(more) == []
    placed = advance(more, [earlier, 3], [[TEN, 4]])
    assert placed == encode_cursor([earlier, 3], [[TEN, 4]])
    assert after(placed, sort)["$and"][1]["$nor"] == [
        {"timestamp": {"$eq": TEN}, "_id": {"$eq": 4}},
        {"timestamp": {"$eq": earlier}, "$expr": {"$lte": ["$_id", {"$literal": 3}]}},
    ]
    assert advance(placed, [TEN, 5], []) == encode_cursor([TEN, 5])
    assert advance(placed, None, []) == placed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([TEN, 1], [TEN - timedelta(milliseconds=1), 5]),
        ([TEN, 2], [TEN, 1]),
        ([TEN, 2.5], [TEN, 2]),
        ([TEN, 1], [FAR_PAST, 1]),
        ([FAR, 1], [TEN, 1]),
        ([5, "a"], [4.5, "b"]),
        ([math.inf, "a"], [4.5, "b"]),
        (["o-1", TEN, 1], ["o-1", TEN - timedelta(seconds=1), 1]),
        ([TEN, ObjectId(OID)], [TEN, ObjectId("6" + "0" * 23)]),
    ],
)
def test_a_cursor_never_moves_backwards(old: list[Any], new: list[Any]) -> None:
    with pytest.raises(ReplayFailed, match="after the one with"):
        advance(encode_cursor(old), new, [])
    assert advance(encode_cursor(new), old, []) == encode_cursor(old)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([TEN, "b"], [TEN, "B"]),  # with a collation, the store may sort so
        ([TEN, "z"], [TEN, 1]),  # the store knows the order of the types
        (["o-2", TEN], ["o-1", TEN - timedelta(seconds=1)]),
        ([None, TEN], [1, FAR_PAST]),
        ([True, TEN], [False, FAR_PAST]),
        ([math.nan, 5], [1, 4]),
        ([Decimal128("2"), 5], [Decimal128("1"), 4]),
    ],
)
def test_only_the_store_compares_other_values(old: list[Any], new: list[Any]) -> None:
    assert advance(encode_cursor(old), new, []) == encode_cursor(new)


def test_too_many_events_without_a_place_fail_the_replay_by_name() -> None:
    places = [[TEN, f"{number}-{'x' * 1_000}"] for number in range(150)]
    cursor = advance(encode_cursor([TEN, 0]), None, places)
    with pytest.raises(ReplayFailed, match="300 events in a row have a sort field more than once"):
        advance(cursor, None, places)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(max_size=16),
    st.uuids(),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.integers(-(10**13), 10**13).map(
        lambda milliseconds: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    ),
    st.decimals(allow_nan=False, places=3, min_value=-1e9, max_value=1e9).map(Decimal128),
    st.sampled_from(
        [MinKey(), MaxKey(), Timestamp(5, 1), Regex("a.*", 2), Binary(b"x", 128), math.inf]
    ),
)
DOCUMENTS = st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), VALUES, max_size=3)
OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True, uuid_representation=bson.binary.UuidRepresentation.STANDARD
)


def as_bson(value: Any) -> bytes:
    return bson.encode({"v": value}, codec_options=OPTIONS)


@given(st.lists(VALUES | DOCUMENTS, min_size=1, max_size=3))
def test_a_cursor_keeps_every_bson_type(values: list[Any]) -> None:
    assert [as_bson(value) for value in decode_cursor(encode_cursor(values))] == [
        as_bson(value) for value in values
    ]


@given(st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | DOCUMENTS, max_leaves=5))
def test_values_survive_plain_json(value: Any) -> None:
    plain = to_json(value)
    assert isinstance(plain, dict | list | str | bool | None)
    assert as_bson(from_json(plain)) == as_bson(value)


def test_a_query_survives_plain_json() -> None:
    query = all_of(
        of_type("aggregate_id", "binData"),
        {"aggregate_id": {"$gte": uuid.UUID(UID), "$lt": b"\xff"}},
        time_range(None, TEN, MAPPING),
        {"$nor": [{"a": {"$in": [ObjectId(OID), 7, 2.5, None]}}]},
    )
    assert from_json(to_json(query)) == query
    assert math.isnan(from_json(to_json(of_type("n", "number")))["n"]["$ne"])
