"""The table of BSON types in docs/mapping.md says what the encoders do."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from bson import (
    Binary,
    Code,
    DatetimeMS,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from support import raw_document, raw_field, raw_text

from replay_app.commands import Target
from replay_app.encoders import make_encoder
from replay_app.events import EventMapping
from replay_app.pages import EncodeSpec

MAPPING = Path(__file__).parents[2] / "docs" / "mapping.md"
SPEC = EncodeSpec(
    mapping=EventMapping(),
    target=Target(),
    replay_id="r",
    attempt=1,
    name=None,
    reason=None,
    partitions={"a": 1, "placed": 1},
    cursor_fields=("_id",),
    stop_at_failure=False,
    include_replayed=False,
    record_timestamp="append",
    compression="none",
    max_record_bytes=100_000,
)
GOOD: dict[str, Any] = {
    "_id": 1,
    "event_id": "e-1",
    "event_type": "placed",
    "topic": "a",
    "aggregate_id": "o-1",
    "timestamp": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
}
ABC = b"\x02\0\0\0a\0"
LEGACY = b"abcdefghijklmnop"
VALUES: dict[str, Any] = {
    "string": "a",
    "empty string": "",
    "boolean": True,
    "null": None,
    "32-bit integer": 7,
    "64-bit integer": Int64(2**53 + 1),
    "double": 2.0,
    "NaN": float("nan"),
    "infinity": float("-inf"),
    "document": {"a": 1},
    "array": [1],
    "date": dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC),
    "date outside the years 1 to 9999": DatetimeMS(2**60),
    "ObjectId": ObjectId("65920080000001000000002a"),
    "UUID (binary subtype 4)": uuid.UUID("de305d54-75b4-431b-adb2-eb6b9e546014"),
    "UUID of another length than 16 bytes": lambda name: raw_field(name, 5, b"\x03\0\0\0\x04abc"),
    "UUID of a legacy driver (binary subtype 3)": Binary(LEGACY, 3),
    "any other binary": b"abc",
    "Decimal128": Decimal128("1.10"),
    "symbol (an old type for text)": lambda name: raw_field(name, 0x0E, ABC),
    "regular expression": Regex("a"),
    "code": Code("a"),
    "code with scope": Code("a", {}),
    "timestamp (the internal type)": Timestamp(1, 2),
    "DBRef": DBRef("c", 1),
    "DBPointer": lambda name: raw_field(name, 0x0C, ABC + bytes(12)),
    "MinKey": MinKey(),
    "MaxKey": MaxKey(),
    "undefined": lambda name: raw_field(name, 0x06),
    "invalid UTF-8": lambda name: raw_text(name, b"\xff"),
    "in a text or in a name": lambda name: raw_field(name, 0x03, raw_document(b"\x0a\xff\0")),
    "a name that occurs more than once in one document": lambda name: raw_document(
        (name, "a"), (name, "a")
    )[4:-1],
}
COLUMNS = {"value": "v", "key": "aggregate_id", "type": "event_type", "topic": "topic"}
THE_BYTES = {"any other binary": b"abc", "UUID of a legacy driver (binary subtype 3)": LEGACY}


def rows() -> list[tuple[str, dict[str, str]]]:
    """Return each name in the first column, with the cells of the others by `COLUMNS`."""
    section = MAPPING.read_text().partition("\n## BSON to JSON\n")[2].partition("\n## ")[0]
    found = []
    for line in re.findall(r"(?m)^\| .* \|$", section)[1:]:
        names, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
        found += [(name, dict(zip(COLUMNS, cells, strict=True))) for name in names.split(", ")]
    return found


def test_the_table_has_every_bson_type() -> None:
    assert [name for name, _ in rows()] == list(VALUES)
    kinds = {raw(value, "v")[0] for value in VALUES.values()}
    assert kinds == {*range(0x01, 0x14), 0x7F, 0xFF}


def raw(value: Any, name: str) -> bytes:
    """Return a value as a raw field."""
    return value(name) if callable(value) else raw_document((name, value))[4:-1]


@pytest.mark.parametrize("encoder", ["python", pytest.param("native", marks=pytest.mark.native)])
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(("name", "cells"), rows(), ids=lambda value: str(value)[:30])
def test_what_the_table_says_of_a_value_is_true(
    name: str, cells: dict[str, str], column: str, encoder: str
) -> None:
    field, cell = COLUMNS[column], cells[column]
    good = [(one, value) for one, value in GOOD.items() if one != field]
    document = raw_document(*good, raw(VALUES[name], field))
    page = make_encoder(SPEC, encoder).encode(document, 0)
    if cell == "fails":
        assert [failure.event_id for failure in page.failures] == ["e-1"]
        assert page.encoded == 0
        return
    assert page.failures == []
    ((topic, _),) = ((batch.topic, batch.partition) for batch in page.batches)
    (record,) = DefaultRecordBatch(bytes(page.batches[0].builder._build()))
    match column, cell:
        case "value", _:
            assert record.value.endswith(f'"v":{cell.strip("`")}}}'.encode())
        case "key", "missing":
            assert record.key == b"e-1"
        case "key", "empty":
            assert record.key == b""
        case "key", "the bytes":
            assert record.key == THE_BYTES[name]
        case "key", _:
            assert record.key == cell.strip("`").encode()
        case "type", _:
            assert list(page.by_type) == [cell.strip("`")]
        case _, "next rule":
            assert topic == GOOD["event_type"]
        case _:
            assert topic == cell.strip("`")
