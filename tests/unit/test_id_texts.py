"""The texts of ids, and what is looked for when a text is given."""

from __future__ import annotations

import datetime as dt
import itertools
import uuid
from typing import Any

import bson
import pytest
from bson import Binary, DatetimeMS, Decimal128, Int64, ObjectId
from support import AWARE

from replay_app.exceptions import EventError
from replay_app.id_texts import delivery_text, spellings, stored_values

OID = ObjectId("65920080000001000000002a")
UID = uuid.UUID("12345678-1234-4234-8234-123456789abc")
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)

TEXTS: list[tuple[Any, str]] = [
    ("e-1", "e-1"),
    ("1", "1"),
    ("", ""),
    ("true", "true"),
    (OID, "65920080000001000000002a"),
    (UID, "12345678-1234-4234-8234-123456789abc"),
    (1, '{"$numberInt":"1"}'),
    (Int64(1), '{"$numberLong":"1"}'),
    (1.0, '{"$numberDouble":"1.0"}'),
    (Decimal128("1"), '{"$numberDecimal":"1"}'),
    (True, '{"$bool":true}'),
    (NOON, '{"$date":{"$numberLong":"1767355200000"}}'),
    (b"1", '{"$binary":{"base64":"MQ==","subType":"00"}}'),
    (Binary(UID.bytes, 3), '{"$binary":{"base64":"EjRWeBI0QjSCNBI0VniavA==","subType":"03"}}'),
    ({"stream": "ü", "version": 3}, '{"stream":"ü","version":{"$numberInt":"3"}}'),
    ({"version": 3, "stream": "ü"}, '{"version":{"$numberInt":"3"},"stream":"ü"}'),
    ({"a": {"b": [None, "x"]}}, '{"a":{"b":[null,"x"]}}'),
    ({"t": DatetimeMS(2**60)}, '{"t":{"$date":{"$numberLong":"1152921504606846976"}}}'),
    ({}, "{}"),
    ("{}", '"{}"'),
    ('{"$numberInt":"1"}', '"{\\"$numberInt\\":\\"1\\"}"'),
    ('"{}"', '"\\"{}\\""'),
]


@pytest.mark.parametrize(("stored", "text"), TEXTS)
def test_an_id_has_one_text_in_a_delivery_id(stored: Any, text: str) -> None:
    assert delivery_text(stored) == text


def test_no_two_ids_of_the_table_share_a_text() -> None:
    for (_, one), (_, other) in itertools.combinations(TEXTS, 2):
        assert one != other


@pytest.mark.parametrize(("stored", "text"), TEXTS)
def test_the_text_of_a_delivery_id_finds_the_id(stored: Any, text: str) -> None:
    def as_bson(value: Any) -> bytes:
        return bson.encode({"v": value}, codec_options=AWARE)

    assert as_bson(stored) in map(as_bson, stored_values([text]))


@pytest.mark.parametrize("value", [None, ["a"], DatetimeMS(2**60), bson.MinKey(), bson.Regex("a")])
def test_an_id_without_a_text_is_an_error(value: Any) -> None:
    with pytest.raises(EventError, match="has no text form"):
        delivery_text(value)


@pytest.mark.parametrize(
    "text",
    [
        '{"$ne": null}',
        '{"$gt": ""}',
        '{"a": 1, "$where": "1"}',
        '{"$regularExpression": {"pattern": ".*", "options": ""}}',
        '{"$ref": "c", "$id": 1}',
        '{"$oid": "zz"}',
        '{"$binary": "x"}',
        '{"$numberLong": "99999999999999999999"}',
        "{",
        '"',
        '{"a": 1} x',
        "[" * 10_000,
        '{"a":' * 10_000,
    ],
)
def test_a_text_that_is_no_value_is_looked_for_as_the_text_only(text: str) -> None:
    assert stored_values([text]) == [text]


def test_relaxed_extended_json_with_spaces_is_read_too() -> None:
    text = '{"stream": "o-1", "version": 3, "at": {"$date": "2026-01-02T12:00:00Z"}}'
    assert stored_values([text]) == [text, {"stream": "o-1", "version": 3, "at": NOON}]


# What each driver stores for this UUID: Python, C#, Java; see the tests of the BSON libraries'
# "uuid" specification.
LEGACY = [
    bytes.fromhex("00112233445566778899aabbccddeeff"),
    bytes.fromhex("33221100554477668899aabbccddeeff"),
    bytes.fromhex("7766554433221100ffeeddccbbaa9988"),
]


def test_a_uuid_is_looked_for_in_the_byte_orders_of_all_drivers() -> None:
    text = "00112233-4455-6677-8899-aabbccddeeff"
    found = spellings(text)
    assert found == [text, uuid.UUID(text), *(Binary(one, 3) for one in LEGACY)]
