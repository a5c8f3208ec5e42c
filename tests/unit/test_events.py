"""The mapping: ids, types, times, topics, keys and values of stored documents."""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import uuid
from dataclasses import replace
from typing import Any

import bson
import pytest
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from bson import Timestamp as BsonTimestamp
from hypothesis import given
from hypothesis import strategies as st

from replay_app.commands import Target
from replay_app.events import (
    STRICT,
    EventMapping,
    as_text,
    decimal_text,
    destination,
    encode_json,
    event_id,
    event_key,
    event_time,
    event_type,
    event_value,
    field_at,
    has_field,
    is_marked,
    remove_field,
    rfc3339,
    strip,
)
from replay_app.exceptions import EventError

MAPPING = EventMapping()
NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 5_000, tzinfo=dt.UTC)
OID = ObjectId("65920080000001000000002a")
UID = uuid.UUID("12345678-1234-4234-8234-123456789abc")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (NOON, '"2026-01-02T12:00:00.005000Z"'),
        (dt.datetime(1, 1, 1, tzinfo=dt.UTC), '"0001-01-01T00:00:00Z"'),
        (
            dt.datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=dt.UTC),
            '"9999-12-31T23:59:59.999000Z"',
        ),
        (OID, '"65920080000001000000002a"'),
        (UID, '"12345678-1234-4234-8234-123456789abc"'),
        (Decimal128("10.50"), '"10.50"'),
        (Decimal128("-1.5E+30"), '"-1.5E+30"'),
        (Decimal128("NaN"), '"NaN"'),
        (Int64(2**53 + 1), "9007199254740993"),
        (Int64(-(2**63)), "-9223372036854775808"),
        (5, "5"),
        (True, "true"),
        (None, "null"),
        (0.1, "0.1"),
        (-0.0, "-0.0"),
        (b"\x00\xff", '"AP8="'),
        (Binary(b"\x00\xff", 128), '"AP8="'),
        (Binary(b"0123456789abcdef", 3), '"MDEyMzQ1Njc4OWFiY2RlZg=="'),
        ("Zoë 🎁 \u0000 \u2028", '"Zoë 🎁 \\u0000 \u2028"'),
        ([1, [2, {"b": None}]], '[1,[2,{"b":null}]]'),
        ({}, "{}"),
    ],
)
def test_each_bson_type_has_one_json_form(value: Any, shown: str) -> None:
    stored: dict[str, Any] = bson.decode(
        bson.encode({"a": value}, codec_options=STRICT), codec_options=STRICT
    )
    assert encode_json(stored) == b'{"a":' + shown.encode() + b"}"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "'a' holds nan"),
        (float("inf"), "'a' holds inf"),
        ({"b": [1, float("-inf")]}, r"'a\.b\.1' holds -inf"),
        (Regex("^a"), "type Regex"),
        (Code("f()"), "type Code"),
        (Code("f()", {}), "type Code"),
        (BsonTimestamp(1, 2), "type Timestamp"),
        (MinKey(), "type MinKey"),
        (MaxKey(), "type MaxKey"),
        (DatetimeMS(253_402_300_800_000), "253402300800000 ms after 1970"),
        (bson.DBRef("c", 1), "type DBRef"),
    ],
)
def test_a_value_that_json_cannot_hold_is_an_error_never_a_null(value: Any, reason: str) -> None:
    stored = bson.decode(bson.encode({"a": value, "b": None}), codec_options=STRICT)
    with pytest.raises(EventError, match=reason):
        encode_json(stored)


def test_a_document_nested_too_deeply_is_an_error() -> None:
    document: dict[str, Any] = {}
    for _ in range(5_000):
        document = {"a": document}
    with pytest.raises(EventError, match="cannot be written as JSON"):
        encode_json(document)


_BSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.builds(ObjectId, st.binary(min_size=12, max_size=12))
    | st.uuids()
    | st.datetimes(timezones=st.just(dt.UTC)).map(
        lambda time: time.replace(microsecond=time.microsecond // 1000 * 1000)
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abc.$ü", min_size=1, max_size=5), _BSON, max_size=6))
def test_any_document_of_mapped_types_becomes_json_with_nothing_lost(
    document: dict[str, Any],
) -> None:
    raw = bson.encode(document, codec_options=STRICT)
    found = json.loads(encode_json(bson.decode(raw, codec_options=STRICT)))
    assert found == _expected(document)


def _expected(value: Any) -> Any:
    """Apply the table of docs/mapping.md, written a second time for this test."""
    match value:
        case dict():
            return {name: _expected(inner) for name, inner in value.items()}
        case list():
            return [_expected(inner) for inner in value]
        case bytes():
            return base64.b64encode(value).decode()
        case ObjectId() | uuid.UUID():
            return str(value)
        case dt.datetime():
            digits = f".{value.microsecond:06d}" if value.microsecond else ""
            return f"{value.year:04d}{value:-%m-%dT%H:%M:%S}{digits}Z"
        case _:
            return value


@pytest.mark.parametrize(
    ("document", "mapping", "found"),
    [
        ({"_id": OID, "event_id": "e-1"}, MAPPING, "e-1"),
        ({"_id": OID}, MAPPING, str(OID)),
        ({"_id": OID, "event_id": None}, MAPPING, str(OID)),
        ({"_id": 7}, MAPPING, "7"),
        ({"_id": UID}, MAPPING, str(UID)),
        ({"_id": 1, "meta": {"id": Int64(9)}}, EventMapping(field_id="meta.id"), "9"),
        ({"_id": {"s": "a", "v": 1}}, MAPPING, '{"s":"a","v":{"$numberInt":"1"}}'),
    ],
)
def test_the_event_id_is_found(document: dict[str, Any], mapping: EventMapping, found: str) -> None:
    assert event_id(document, mapping) == found


@pytest.mark.parametrize(
    ("document", "mapping", "reason"),
    [
        ({}, MAPPING, "has no id in field '_id'"),
        ({"_id": 1}, EventMapping(field_id="meta.id"), "no id in field 'meta.id'"),
        ({"_id": [1]}, MAPPING, "has no text form"),
    ],
)
def test_an_event_without_a_usable_id_is_an_error(
    document: dict[str, Any], mapping: EventMapping, reason: str
) -> None:
    with pytest.raises(EventError, match=reason):
        event_id(document, mapping)


@pytest.mark.parametrize("value", [None, "", 5, ["a"], {"b": 1}])
def test_a_type_must_be_text(value: Any) -> None:
    with pytest.raises(EventError, match="it has no type: field 'event_type'"):
        event_type({"event_type": value}, MAPPING)


@pytest.mark.parametrize(
    ("kind", "value", "time"),
    [
        ("date", NOON, NOON),
        ("iso", "2026-01-02T12:00:00.005Z", NOON),
        ("iso", "2026-01-02T13:00:00.005+01:00", NOON),
        ("iso", "2026-01-02T12:00:00.005", NOON),
        ("epoch_ms", 1_767_355_200_005, NOON),
        ("epoch_ms", Int64(1_767_355_200_005), NOON),
        ("epoch_ms", 1_767_355_200_005.0, NOON),
    ],
)
def test_times_are_read_in_each_configured_form(kind: Any, value: Any, time: dt.datetime) -> None:
    stored = bson.decode(bson.encode({"timestamp": value}), codec_options=STRICT)
    found = event_time(stored, EventMapping(timestamp_type=kind))
    assert found == time.replace(tzinfo=None)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("date", None),
        ("date", "2026-01-02T12:00:00Z"),
        ("date", 1_767_355_200_005),
        ("date", DatetimeMS(253_402_300_800_000)),
        ("date", [NOON]),
        ("iso", "yesterday"),
        ("iso", NOON),
        ("epoch_ms", "1767355200005"),
        ("epoch_ms", True),
        ("epoch_ms", 1e300),
        ("epoch_ms", float("nan")),
    ],
)
def test_what_is_no_time_is_an_error(kind: Any, value: Any) -> None:
    with pytest.raises(EventError, match=rf"it has no {kind} time: field 'timestamp'"):
        event_time({"timestamp": value}, EventMapping(timestamp_type=kind))


def test_the_key_is_the_aggregate_else_the_event_id_else_the_configured_field() -> None:
    assert event_key({"aggregate_id": "o-1"}, MAPPING, "e-1") == b"o-1"
    assert event_key({"aggregate_id": Int64(7)}, MAPPING, "e-1") == b"7"
    assert event_key({"aggregate_id": b"\x01"}, MAPPING, "e-1") == b"\x01"
    assert event_key({"aggregate_id": None}, MAPPING, "e-1") == b"e-1"
    assert event_key({}, MAPPING, "e-1") == b"e-1"
    keyed = EventMapping(field_key="data.customer")
    assert event_key({"data": {"customer": "ü"}}, keyed, "e-1") == "ü".encode()
    with pytest.raises(EventError, match=r"field 'data.customer' \(REPLAY_FIELD_KEY\) is missing"):
        event_key({"aggregate_id": "o-1"}, keyed, "e-1")
    with pytest.raises(EventError, match="has no text form"):
        event_key({"aggregate_id": ["o-1"]}, MAPPING, "e-1")


@pytest.mark.parametrize(
    ("own_topic", "mapping", "target", "topic"),
    [
        ("shop.orders", MAPPING, Target(), "shop.orders"),
        (None, MAPPING, Target(), "order_placed"),
        ("", MAPPING, Target(), "order_placed"),
        (None, EventMapping(topics={"order_placed": "o"}), Target(), "o"),
        (None, EventMapping(topic_template="t.{event_type}"), Target(), "t.order_placed"),
        ("shop.orders", MAPPING, Target(topic="all"), "all"),
        ("shop.orders", MAPPING, Target(topic="all", topics={"order_placed": "o"}), "o"),
        ("shop.orders", MAPPING, Target(topics={"other": "o"}), "shop.orders"),
        ("shop.orders", MAPPING, Target(prefix="test."), "test.shop.orders"),
        ("shop.orders", MAPPING, Target(prefix="test.", topics={"order_placed": "o"}), "o"),
    ],
)
def test_the_first_rule_that_gives_a_topic_wins(
    own_topic: str | None, mapping: EventMapping, target: Target, topic: str
) -> None:
    assert destination("order_placed", own_topic, mapping, target) == topic


@pytest.mark.parametrize("kind", ["order placed", "größe", "a/b", "x" * 250, ".", ".."])
def test_what_is_no_topic_name_is_an_error(kind: str) -> None:
    with pytest.raises(EventError, match="which is not a topic name"):
        destination(kind, None, MAPPING, Target())


def test_without_type_and_topic_there_is_no_destination() -> None:
    with pytest.raises(EventError, match="neither a topic nor a type"):
        destination(None, None, MAPPING, Target())


def test_excluded_fields_are_left_out_at_any_depth() -> None:
    mapping = EventMapping(exclude_fields=("_id", "data.secret", "no.such.field", "a.b"))
    document = {"_id": 1, "data": {"secret": 2, "open": 3}, "a": 5}
    strip(document, mapping)
    assert json.loads(event_value(document, mapping) or b"") == {"data": {"open": 3}, "a": 5}


@pytest.mark.parametrize("stored", [b"\x00raw", Binary(b"\x00raw", 5), "\x00raw"])
def test_a_kept_body_passes_through_as_it_is(stored: Any) -> None:
    mapping = EventMapping(field_value="body.bytes")
    assert event_value({"body": {"bytes": stored}}, mapping) == b"\x00raw"


@pytest.mark.parametrize("stored", [None, 5, {"a": 1}])
def test_a_kept_body_that_is_no_body_is_an_error(stored: Any) -> None:
    with pytest.raises(EventError, match="only bytes and text can be passed through"):
        event_value({"body": stored}, EventMapping(field_value="body"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (True, "true"),
        (Int64(5), "5"),
        (1.5, "1.5"),
        (OID, str(OID)),
        (Decimal128("1.0"), "1.0"),
        (NOON, "2026-01-02T12:00:00.005Z"),
        (b"\xab", "ab"),
    ],
)
def test_ids_of_many_types_have_one_text_form(value: Any, text: str) -> None:
    assert as_text(value, "id") == text


def test_dotted_paths_reach_into_documents_only() -> None:
    document = {"a": {"b": None}, "c": [{"d": 1}]}
    assert field_at(document, "a.b") is None
    assert has_field(document, "a.b")
    assert not has_field(document, "a.b.c")
    assert not has_field(document, "c.d")
    assert field_at(document, "c.0") is None
    remove_field(document, "a.b")
    assert document == {"a": {}, "c": [{"d": 1}]}


@pytest.mark.parametrize(
    "headers",
    [
        {"replay-id": "r"},
        {"replay-id": None},
        [["replay-id", "r"]],
        [["trace", "x"], ["replay-id", None]],
        [["replay-id"]],
        [{"key": "replay-id", "value": "r"}],
        [{"k": "replay-id", "v": "r"}],
        [{"name": "trace"}, {"name": "replay-id", "value": "r"}],
        [{"trace": "x"}, {"replay-id": "r"}],
    ],
)
def test_a_header_is_found_in_a_document_and_in_an_array_of_pairs(headers: Any) -> None:
    assert is_marked({"headers": headers}, "headers.replay-id")
    assert is_marked({"meta": {"headers": headers}}, "meta.headers.replay-id")
    assert not is_marked({"headers": headers}, "headers.replay")
    assert not is_marked({"headers": [headers]}, "headers.replay-i")


@pytest.mark.parametrize(
    "headers",
    [
        None,
        "replay-id",
        {},
        {"trace": "replay-id"},
        [],
        ["replay-id"],
        [["trace", "replay-id"]],
        [{"value": "replay-id"}],
        [{"key": "trace", "value": "replay-id"}],
        [[["replay-id"]], {"key": {"replay-id": 1}}, [], [None], 5],
    ],
)
def test_what_is_no_header_is_not_taken_for_one(headers: Any) -> None:
    assert not is_marked({"headers": headers}, "headers.replay-id")
    assert not is_marked({"replay-id": headers}, "headers.replay-id")


def test_without_dots_the_path_is_a_field() -> None:
    assert is_marked({"replayed": None}, "replayed")
    assert not is_marked({"other": [["replayed", 1]]}, "replayed")


@given(st.decimals() | st.decimals(places=2, min_value=-1_000, max_value=1_000))
def test_decimals_are_written_as_the_driver_writes_them(amount: decimal.Decimal) -> None:
    try:
        value = Decimal128(amount)
    except decimal.DecimalException:
        return  # more digits than BSON holds
    assert decimal_text(value) == str(value)


@given(st.datetimes(timezones=st.just(dt.UTC)), st.booleans())
def test_header_times_have_milliseconds_and_a_z(time: dt.datetime, is_naive: bool) -> None:
    shown = rfc3339(time.replace(tzinfo=None) if is_naive else time).decode()
    assert len(shown) == len("2026-01-02T12:00:00.005Z")
    assert dt.datetime.fromisoformat(shown) == time.replace(
        microsecond=time.microsecond // 1000 * 1000
    )


def test_a_mapping_is_a_value() -> None:
    assert replace(MAPPING, field_type="kind") != MAPPING
