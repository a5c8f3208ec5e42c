"""Raw documents, read without the driver."""

from __future__ import annotations

import datetime as dt
from typing import Any

import bson
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from support import raw_document, raw_field, raw_text

from replay_app.elements import (
    StoredValue,
    elements,
    faults,
    require_bson,
    values_at,
)

VALUES: list[Any] = [
    1.5,
    "text",
    {"a": {"b": 1}},
    [1, "a", {"c": []}],
    b"bytes",
    Binary(b"old", 2),
    ObjectId(),
    True,
    dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    None,
    Regex("^a", "im"),
    Code("f()"),
    Code("f()", {"a": 1}),
    7,
    Timestamp(1, 2),
    Int64(7),
    Decimal128("1.5"),
    MinKey(),
    MaxKey(),
]
POINTER = raw_field("p", 0x0C, b"\x02\0\0\0a\0" + bytes(12))
SYMBOL = raw_field("s", 0x0E, b"\x02\0\0\0a\0")
UNDEFINED = raw_field("u", 0x06)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_of_each_type_is_cut_out_whole(value: Any) -> None:
    document = raw_document(("before", 1), ("v", value), POINTER, SYMBOL, UNDEFINED, ("after", 2))
    found = dict(elements(document))
    assert list(found) == [b"before", b"v", b"p", b"s", b"u", b"after"]
    assert found[b"v"].under(b"v") == bson.encode({"v": value})
    assert StoredValue.of(found[b"v"].under(b"")) == found[b"v"]
    require_bson(document)


def test_every_cut_and_every_wrong_length_is_an_error() -> None:
    document = raw_document(
        ("s", "abc"), ("d", {"x": "abc"}), ("b", b"abc"), ("r", Regex("a")), UNDEFINED
    )
    require_bson(document)
    for end in range(len(document)):
        with pytest.raises(ValueError, match=r"wrong|not found|bytes"):
            require_bson(document[:end])
    for text in (b"\x04\0\0\0abc", b"\x10\0\0\0\x02x"):
        for length in (b"\0\0\0\x7f", b"\xff\xff\xff\xff"):
            with pytest.raises(ValueError, match=r"wrong|not found|bytes"):
                require_bson(document.replace(text, length + text[4:]))


@pytest.mark.parametrize(
    ("fields", "path", "found"),
    [
        ([("a", 1), ("b", 2)], "b", [2]),
        ([("a", 1)], "b", [None]),
        ([("a", 1), ("a", 2)], "a", [1, 2]),
        ([("a", 1), ("a", 1)], "a", [1]),
        ([("a", {"b": 1})], "a.b", [1]),
        ([("a", {"b": 1}), ("a", {"b": 2})], "a.b", [1, 2]),
        ([("a", {"b": 1}), ("a", {"c": 2})], "a.b", [1, None]),
        ([("a", {"b": 1}), ("a", 5)], "a.b", [1, None]),
        ([("a", [{"b": 1}])], "a.b", [None]),
        ([("a.b", 1)], "a.b", [None]),
    ],
)
def test_a_path_has_a_value_for_each_reading(
    fields: list[tuple[str, Any]], path: str, found: list[Any]
) -> None:
    values = values_at(raw_document(*fields), path)
    read = [None if one is None else bson.decode(one.under(b"v"))["v"] for one in values]
    assert read == found


def test_a_name_that_occurs_twice_inside_a_document_of_a_path_is_found_too() -> None:
    inner = raw_document(("b", 1), ("b", 2))
    assert len(values_at(raw_document(raw_field("a", 0x03, inner)), "a.b")) == 2


TWICE = raw_document(("x", 1), ("x", 2))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ([("a", 1), ("a", 2)], "a"),
        ([("a", 1), ("a", 1)], "a"),
        ([("a", 1), ("b", 2), raw_text("a", b"x")], "a"),
        ([raw_field("d", 0x03, TWICE)], "d.x"),
        ([raw_field("l", 0x04, raw_document(raw_field("0", 0x03, TWICE)))], "l.0.x"),
        ([raw_field("u", 0x06)], "u"),
        ([raw_field("l", 0x04, raw_document(("0", 1), raw_field("7", 0x06)))], "l.1"),
    ],
)
def test_a_fault_is_named_by_its_path(fields: list[Any], path: str) -> None:
    document = raw_document(("ok", [1, 1, {"ok": None}]), *fields)
    (fault,) = faults(document, lambda _path: True)
    assert f"field '{path}'" in fault
    assert list(faults(document, lambda one: one != path)) == []


def test_the_names_in_an_array_may_be_equal_and_a_good_document_has_no_fault() -> None:
    array = raw_field("l", 0x04, raw_document(("0", 1), ("0", 2)))
    fields = [(str(number), value) for number, value in enumerate(VALUES)]
    assert list(faults(raw_document(array, *fields, POINTER, SYMBOL), lambda _path: True)) == []
