"""What every page encoder does: batches, counts, failures and the cursor of a raw page."""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import bson
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from bson import Binary, Code, DatetimeMS, Int64, ObjectId
from hypothesis import given
from hypothesis import strategies as st
from support import raw_document, raw_field, raw_text

from replay_app import encoders
from replay_app.commands import Target
from replay_app.demo.shop import SHOP_TOPICS, shop_events
from replay_app.elements import values_at
from replay_app.encoders import codec_name, encoder_name, make_encoder
from replay_app.events import STRICT, EventMapping
from replay_app.exceptions import InvalidSettings, ReplayFailed
from replay_app.id_texts import delivery_text
from replay_app.internals import batch_bytes
from replay_app.pages import (
    PAGE_BYTES,
    EncodedPage,
    EncodeSpec,
    count_documents,
    next_page_events,
    split_page,
)
from replay_app.partitioner import partition_of
from replay_app.queries import after, encode_cursor
from replay_app.settings import Settings

NOW_MS = 1_790_000_000_000
NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
SPEC = EncodeSpec(
    mapping=EventMapping(field_replayed="headers.replay-id"),
    target=Target(),
    replay_id="r-1",
    attempt=2,
    name="rebuild",
    reason="lost ü",
    partitions={"t": 3, "u": 1, **dict.fromkeys(SHOP_TOPICS, 3)},
    cursor_fields=("timestamp", "_id"),
    stop_at_failure=True,
    include_replayed=False,
    record_timestamp="append",
    compression="none",
    max_record_bytes=100_000,
)


def event(number: int, **fields: Any) -> dict[str, Any]:
    event = {"_id": number, "event_type": "t", "aggregate_id": f"a-{number % 5}"}
    event |= {"timestamp": NOON, "body": "x"}
    return {name: value for name, value in (event | fields).items() if value is not ...}


def page_of(*events: dict[str, Any]) -> bytes:
    return b"".join(bson.encode(one) for one in events)


Encode = Callable[..., EncodedPage]


@pytest.fixture(params=["python", pytest.param("native", marks=pytest.mark.native)])
def encode(request: pytest.FixtureRequest) -> Encode:
    """Encode a page by one of the encoders, under `SPEC` with some changes."""

    def encode(page: bytes, **changes: Any) -> EncodedPage:
        chosen = make_encoder(replace(SPEC, **changes), request.param)
        assert chosen.name == request.param
        return chosen.encode(page, NOW_MS)

    return encode


def records(encoded: EncodedPage) -> list[tuple[str, int, Any]]:
    """Return (topic, partition, record) of all batches, in the order of each partition."""
    found = []
    for batch in encoded.batches:
        read = list(DefaultRecordBatch(bytes(batch.builder._build())))
        assert len(read) == batch.records
        found += [(batch.topic, batch.partition, record) for record in read]
    return found


def test_a_page_becomes_records_with_key_value_headers_and_the_append_time(encode: Encode) -> None:
    (found,) = records(encode(page_of(event(1, event_id="e-1", aggregate_id="ü"))))
    topic, partition, record = found
    assert (topic, partition) == ("t", partition_of("ü".encode(), 3))
    assert record.key == "ü".encode()
    assert json.loads(record.value) == {
        "event_id": "e-1",
        "event_type": "t",
        "aggregate_id": "ü",
        "timestamp": "2026-01-02T12:00:00Z",
        "body": "x",
    }
    assert dict(record.headers) == {
        "replay-id": b"r-1",
        "replay-attempt": b"2",
        "replay-name": b"rebuild",
        "replay-reason": "lost ü".encode(),
        "replay-original-time": b"2026-01-02T12:00:00.000Z",
        "replay-delivery-id": b"r-1:e-1",
    }
    assert record.timestamp == NOW_MS


def test_name_and_reason_are_headers_only_where_given(encode: Encode) -> None:
    ((_, _, record),) = records(encode(page_of(event(1)), name=None, reason=None))
    assert {name for name, _ in record.headers} == {
        "replay-id",
        "replay-attempt",
        "replay-original-time",
        "replay-delivery-id",
    }


def test_the_record_may_carry_the_original_time(encode: Encode) -> None:
    ((_, _, record),) = records(encode(page_of(event(1)), record_timestamp="original"))
    assert record.timestamp == int(NOON.timestamp() * 1000)


def test_a_shop_keeps_its_order_in_each_partition_over_many_batches(encode: Encode) -> None:
    events = list(shop_events(3_000))
    encoded = encode(page_of(*events), max_record_bytes=20_000)
    assert (encoded.read, encoded.encoded, encoded.failures) == (3_000, 3_000, [])
    assert len(encoded.batches) > 30
    assert encoded.cursor == [events[-1]["timestamp"], events[-1]["_id"]]
    assert sum(encoded.by_type.values()) == sum(encoded.by_topic.values()) == 3_000
    place = {one["event_id"]: number for number, one in enumerate(events)}
    last: dict[tuple[str, int], int] = {}
    total = 0
    for topic, partition, record in records(encoded):
        body = json.loads(record.value)
        assert body["topic"] == topic
        assert partition == partition_of(record.key, 3)
        assert last.get((topic, partition), -1) < place[body["event_id"]]
        last[topic, partition] = place[body["event_id"]]
        total += len(record.value)
    assert encoded.bytes == total
    assert {batch.builder.size() < 20_100 for batch in encoded.batches} == {True}


BAD: dict[str, dict[str, Any]] = {
    "an id": {"_id": ...},
    "a type": {"event_type": 5},
    "a type that is text": {"event_type": Code("placed")},
    "a time": {"timestamp": "now"},
}


@pytest.mark.parametrize("missing", BAD)
def test_under_fail_the_page_ends_before_the_bad_event(encode: Encode, missing: str) -> None:
    encoded = encode(page_of(event(1), event(2), event(3, **BAD[missing]), event(4)))
    assert (encoded.read, encoded.encoded) == (2, 2)
    assert encoded.cursor == [NOON, 2]
    assert [(one.index, one.event_id) for one in encoded.failures] == [
        (2, None if missing == "an id" else "3")
    ]


@pytest.mark.parametrize("missing", BAD)
def test_otherwise_bad_events_are_listed_and_the_page_goes_on(encode: Encode, missing: str) -> None:
    bad = event(3, **BAD[missing])
    encoded = encode(page_of(event(1), event(2), bad, event(4)), stop_at_failure=False)
    assert (encoded.read, encoded.encoded) == (4, 3)
    assert encoded.cursor == [NOON, 4]
    assert [bson.decode(one.document) for one in encoded.failures] == [
        bson.decode(bson.encode(bad))
    ]


def test_a_bad_first_event_leaves_the_cursor_where_it_was(encode: Encode) -> None:
    encoded = encode(page_of(event(1, event_type=...), event(2)))
    assert (encoded.read, encoded.cursor, encoded.batches) == (0, None, [])


def test_invalid_utf8_is_an_error_for_that_event_alone(encode: Encode) -> None:
    bad = bson.encode(event(2, body="xyz")).replace(b"xyz", b"x\xffz")
    page = page_of(event(1)) + bad + page_of(event(3))
    encoded = encode(page, stop_at_failure=False)
    assert (encoded.read, encoded.encoded) == (3, 2)
    assert [one.event_id for one in encoded.failures] == ["2"]
    assert "it is not valid BSON" in encoded.failures[0].reason


def damaged_document(kind: str) -> bytes:
    """Return a document with a good length and an inside that cannot be decoded."""
    if kind == "deep":
        inner = b"\5\0\0\0\0"
        for _ in range(5_000):
            inner = (len(inner) + 8).to_bytes(4, "little") + b"\x03a\0" + inner + b"\0"
        return inner
    good = bson.encode(event(2, inner={"a": "xyz"}))
    length = b"\5\0\0\0" if kind == "a length" else b"\xff\xff\xff\x7f"
    return good.replace(b"\4\0\0\0xyz", length + b"xyz")


@pytest.mark.parametrize("kind", ["deep", "a length", "a huge length"])
def test_a_damaged_document_is_an_error_for_that_event_alone(encode: Encode, kind: str) -> None:
    page = page_of(event(1)) + damaged_document(kind) + page_of(event(3))
    skipped, stopped = encode(page, stop_at_failure=False), encode(page)
    assert (skipped.read, skipped.encoded, skipped.cursor) == (3, 2, [NOON, 3])
    assert (stopped.read, stopped.encoded, stopped.cursor) == (1, 1, [NOON, 1])
    assert skipped.failures == stopped.failures
    (failure,) = skipped.failures
    assert (failure.index, failure.event_id, failure.document) == (1, None, damaged_document(kind))
    assert "it is not valid BSON" in failure.reason


def test_a_damaged_document_gives_no_cursor(encode: Encode) -> None:
    with pytest.raises(ReplayFailed, match="a document that is not BSON"):
        encode(page_of(event(1)) + damaged_document("deep"), stop_at_failure=False)


def test_a_missing_topic_is_named(encode: Encode) -> None:
    encoded = encode(page_of(event(1), event(2, event_type="nowhere"), event(3)))
    assert encoded.read == 1
    (failure,) = encoded.failures
    assert (failure.missing_topic, failure.event_id) == ("nowhere", "2")


def test_batches_follow_the_limit_of_their_topic(encode: Encode) -> None:
    events = [event(number, event_type="tu"[number % 2], body="x" * 500) for number in range(200)]
    encoded = encode(page_of(*events), batch_bytes={"u": 2_000})
    assert (encoded.encoded, encoded.failures) == (200, [])
    sizes = {"t": 0, "u": 0}
    for batch in encoded.batches:
        sizes[batch.topic] = max(sizes[batch.topic], batch.builder.size())
    assert sizes["u"] <= 2_000 < sizes["t"]


def test_an_event_larger_than_its_topic_takes_fails_by_name(encode: Encode) -> None:
    noise = random.Random(1).randbytes(2_000)  # no codec makes this smaller
    page = page_of(event(1), event(2, event_type="u", body=noise), event(3, body=noise))
    for compression in ("none", "snappy", "gzip"):
        encoded = encode(
            page, batch_bytes={"u": 2_000}, compression=compression, stop_at_failure=False
        )
        assert (encoded.read, encoded.encoded) == (3, 2)
        (failure,) = encoded.failures
        assert failure.event_id == "2"
        assert "too many for its topic 'u': raise the topic's max.message.bytes=2000" in (
            failure.reason
        )


def test_a_topic_s_limit_is_compared_with_the_compressed_batch(encode: Encode) -> None:
    events = [event(number, event_type="u", body="x" * 20_000) for number in range(3)]
    encoded = encode(page_of(*events), batch_bytes={"u": 4_000}, compression="gzip")
    assert (encoded.encoded, encoded.failures) == (3, [])
    assert [batch.records for batch in encoded.batches] == [1, 1, 1]
    assert max(batch_bytes(batch.builder) for batch in encoded.batches) < 4_000
    (failure,) = encode(page_of(*events), batch_bytes={"u": 4_000}).failures
    assert "too many for its topic 'u'" in failure.reason


def test_an_event_larger_than_the_broker_takes_is_an_error(encode: Encode) -> None:
    encoded = encode(page_of(event(1, body="x" * 200_000), event(2)), stop_at_failure=False)
    assert [one.event_id for one in encoded.failures] == ["1"]
    assert "REPLAY_MAX_RECORD_BYTES=100000" in encoded.failures[0].reason
    assert encoded.encoded == 1


def test_replayed_events_are_left_out_unless_asked_for(encode: Encode) -> None:
    page = page_of(event(1, headers={"replay-id": "old"}), event(2, headers={"trace": "x"}))
    guarded, asked = encode(page), encode(page, include_replayed=True)
    assert (guarded.read, guarded.encoded, guarded.skipped_replays) == (2, 1, 1)
    assert (asked.read, asked.encoded, asked.skipped_replays) == (2, 2, 0)


@pytest.mark.parametrize(
    ("headers", "is_replayed"),
    [
        ([["replay-id", "old"]], True),
        ([["trace", "x"], {"k": "replay-id", "v": None}], True),
        ([{"key": "replay-id", "value": b"old"}], True),
        ([{"name": "replay-id", "value": "old"}], True),
        ([["trace", "replay-id"]], False),
        ([], False),
    ],
)
def test_the_mark_is_seen_in_headers_that_are_pairs(
    encode: Encode, headers: Any, is_replayed: bool
) -> None:
    encoded = encode(page_of(event(1, headers=headers), event(2)))
    assert (encoded.read, encoded.skipped_replays) == (2, int(is_replayed))


# Ids


@pytest.mark.parametrize(
    ("fields", "delivery_id", "key"),
    [
        ({"event_id": "1"}, "1", "1"),
        ({"event_id": 1}, '{"$numberInt":"1"}', "1"),
        ({"event_id": Int64(1)}, '{"$numberLong":"1"}', "1"),
        ({"event_id": True}, '{"$bool":true}', "true"),
        ({"event_id": b"\xab"}, '{"$binary":{"base64":"qw==","subType":"00"}}', "ab"),
        ({"event_id": Binary(b"\xab", 3)}, '{"$binary":{"base64":"qw==","subType":"03"}}', "ab"),
        ({"event_id": 1.5}, '{"$numberDouble":"1.5"}', "1.5"),
        (
            {"event_id": NOON},
            '{"$date":{"$numberLong":"1767355200000"}}',
            f"{NOON:%F}T12:00:00.000Z",
        ),
        ({"event_id": ObjectId("6" * 24)}, "6" * 24, "6" * 24),
        ({"event_id": uuid.UUID(int=1)}, str(uuid.UUID(int=1)), str(uuid.UUID(int=1))),
        (
            {"_id": {"stream": 'o"\n-ü', "version": 3}},
            '{"stream":"o\\"\\n-ü","version":{"$numberInt":"3"}}',
            None,
        ),
        ({"_id": {"v": Int64(3), "s": {"n": None, "o": ObjectId("6" * 24)}}}, None, None),
        ({"_id": {"t": NOON, "f": 0.5, "b": True}}, None, None),
        ({"event_id": '{"a":1}'}, '"{\\"a\\":1}"', '{"a":1}'),
        ({"event_id": {}}, "{}", "{}"),
    ],
)
def test_each_id_has_its_delivery_id_and_a_key_of_last_resort(
    encode: Encode, fields: dict[str, Any], delivery_id: str | None, key: str | None
) -> None:
    stored = event(1, aggregate_id=..., **fields)
    page = bson.encode(stored, codec_options=STRICT)
    ((_, _, record),) = records(encode(page))
    wanted = delivery_id or delivery_text(stored["_id"])
    assert dict(record.headers)["replay-delivery-id"].decode() == f"r-1:{wanted}"
    assert record.key.decode() == (key or wanted)


# What the driver hides

EARLIER, LATER = NOON - dt.timedelta(hours=1), NOON + dt.timedelta(hours=1)


def raw_event(number: int, *more: tuple[str, Any] | bytes, without: str = "") -> bytes:
    fields = event(number)
    return raw_document(*((name, fields[name]) for name in fields if name != without), *more)


INNER = [raw_field("meta", 0x03, raw_document(("at", NOON), ("at", EARLIER)))]
ODD: dict[str, tuple[bytes, str]] = {
    "time": (raw_event(2, ("timestamp", EARLIER)), "'timestamp' 2 times"),
    "time, equal": (raw_event(2, ("timestamp", NOON)), "'timestamp' 2 times"),
    "id": (raw_event(2, ("_id", 0)), "'_id' 2 times"),
    "aggregate": (raw_event(2, ("aggregate_id", "a-0")), "'aggregate_id' 2 times"),
    "path": (raw_event(2, *INNER), "'meta.at' 2 times"),
    "parent": (raw_event(2, ("meta", {"at": NOON}), ("meta", {"a": 1})), "'meta' 2 times"),
    "body": (raw_event(2, ("body", "y")), "'body' 2 times"),
    "mark": (raw_event(2, ("headers", {"replay-id": "x"}), ("headers", {})), "'headers' 2 times"),
    "undefined": (raw_event(2, raw_field("u", 0x06)), "'u' is undefined"),
    "undefined inside": (
        raw_event(2, raw_field("l", 0x04, raw_document(raw_field("0", 0x06)))),
        "'l.0' is undefined",
    ),
    "undefined id": (raw_event(2, raw_field("event_id", 0x06)), "'event_id' is undefined"),
}
BY_ALL = ("aggregate_id", "timestamp", "meta.at", "_id")


@pytest.mark.parametrize("kind", ODD)
def test_what_the_driver_hides_fails_by_name(encode: Encode, kind: str) -> None:
    odd, reason = ODD[kind]
    page = page_of(event(1)) + odd + page_of(event(3))
    passed, stopped = encode(page, stop_at_failure=False), encode(page)
    assert (passed.read, passed.encoded, passed.cursor) == (3, 2, [NOON, 3])
    assert (stopped.read, stopped.encoded, stopped.cursor) == (1, 1, [NOON, 1])
    assert passed.failures == stopped.failures
    (failure,) = passed.failures
    assert (failure.index, failure.document) == (1, odd)
    assert failure.event_id == ("0" if kind == "id" else "2")
    assert reason in failure.reason
    assert not passed.unplaced
    assert not stopped.unplaced


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("time", [["a-2", NOON, None, 2], ["a-2", EARLIER, None, 2]]),
        ("id", [["a-2", NOON, None, 2], ["a-2", NOON, None, 0]]),
        ("aggregate", [["a-2", NOON, None, 2], ["a-0", NOON, None, 2]]),
        ("path", [["a-2", NOON, NOON, 2], ["a-2", NOON, EARLIER, 2]]),
        ("parent", [["a-2", NOON, NOON, 2], ["a-2", NOON, None, 2]]),
    ],
)
def test_the_cursor_stays_before_events_whose_place_is_not_known(
    encode: Encode, kind: str, places: list[list[Any]]
) -> None:
    odd, _ = ODD[kind]
    options: dict[str, Any] = {"cursor_fields": BY_ALL, "stop_at_failure": False}
    place = ["a-1", NOON, None, 1]
    last = encode(page_of(event(1)) + odd, **options)
    assert (last.read, last.cursor, last.unplaced) == (2, place, places)
    two = encode(page_of(event(1)) + odd + odd, **options)
    assert (two.read, two.cursor, two.unplaced) == (3, place, places + places)
    alone = encode(odd, **options)
    assert (alone.read, alone.cursor, alone.unplaced) == (1, None, places)
    before = encode(odd + page_of(event(3)), **options)
    assert (before.cursor, before.unplaced) == (["a-3", NOON, None, 3], [])


def test_an_event_with_a_sort_field_a_thousand_times_fails_the_replay(encode: Encode) -> None:
    many = [("timestamp", NOON + dt.timedelta(seconds=number)) for number in range(1_000)]
    with pytest.raises(ReplayFailed, match="has the sort fields timestamp, _id too many times"):
        encode(raw_event(2, *many), stop_at_failure=False)
    assert "'timestamp' 1001 times" in encode(raw_event(2, *many)).failures[0].reason


@pytest.mark.parametrize("kind", ["time, equal", "body", "undefined", "undefined inside"])
def test_an_odd_event_with_a_known_place_moves_the_cursor(encode: Encode, kind: str) -> None:
    encoded = encode(page_of(event(1)) + ODD[kind][0], stop_at_failure=False)
    assert (encoded.read, encoded.cursor, encoded.unplaced) == (2, [NOON, 2], [])


def test_what_is_not_published_and_not_read_may_be_odd(encode: Encode) -> None:
    odd = raw_event(1, ("x", 1), ("x", 2), raw_field("u", 0x06), ("m", {"x": 1}))
    mapping = replace(SPEC.mapping, exclude_fields=("_id", "x", "u"))
    assert encode(odd, mapping=mapping).encoded == 1
    kept = replace(SPEC.mapping, field_value="body")
    ((_, _, record),) = records(encode(odd, mapping=kept))
    assert record.value == b"x"
    assert encode(odd).failures
    used = replace(mapping, field_key="x")
    assert "'x' 2 times" in encode(odd, mapping=used).failures[0].reason


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_null_value_is_a_tombstone_if_the_mapping_says_so(
    encode: Encode, compression: str
) -> None:
    page = page_of(event(1, body="x"), event(2, body=None), event(3, body=""))
    mapping = replace(SPEC.mapping, field_value="body", null_values="tombstone")
    encoded = encode(page, mapping=mapping, compression=compression)
    assert (encoded.encoded, encoded.bytes, encoded.failures) == (3, 1, [])
    assert sorted(
        (record.value is None, record.value or b"") for _, _, record in records(encoded)
    ) == [(False, b""), (False, b"x"), (True, b"")]


def test_a_null_value_fails_otherwise_and_a_missing_value_always(encode: Encode) -> None:
    mapping = replace(SPEC.mapping, field_value="body")
    (failed,) = encode(page_of(event(1, body=None)), mapping=mapping).failures
    assert "REPLAY_NULL_VALUES=tombstone would make it a tombstone" in failed.reason
    missing = page_of(event(1, body=...))
    for null_values in ("fail", "tombstone"):
        mapping = replace(mapping, null_values=null_values)
        (failed,) = encode(missing, mapping=mapping).failures
        assert failed.reason.endswith("only bytes and text can be passed through")


def test_a_mark_wins_over_what_the_driver_hides(encode: Encode) -> None:
    odd = raw_event(1, ("timestamp", EARLIER), ("headers", {"replay-id": "x"}))
    encoded = encode(odd)
    assert (encoded.read, encoded.skipped_replays, encoded.failures) == (1, 1, [])
    assert (encoded.cursor, len(encoded.unplaced)) == (None, 2)


def test_a_symbol_is_its_text(encode: Encode) -> None:
    symbol = raw_field("event_type", 0x0E, b"\x02\0\0\0u\0")
    ((topic, _, record),) = records(encode(raw_event(1, symbol, without="event_type")))
    assert (topic, json.loads(record.value)["event_type"]) == ("u", "u")


def test_a_document_whose_id_does_not_stand_first_is_good(encode: Encode) -> None:
    assert encode(raw_event(1, ("_id", 1), without="_id")).encoded == 1


@pytest.mark.parametrize(
    "last",
    [
        raw_event(2, ("timestamp", DatetimeMS(-(2**60))), without="timestamp"),
        raw_event(2, raw_text("_id", b"a\xff"), without="_id"),
        raw_event(2, raw_field("u", 0x05, b"\x02\0\0\0\x04ab")),
        raw_event(2, raw_field("_id", 0x05, b"\x02\0\0\0\x04ab"), without="_id"),
        raw_event(2, raw_text("aggregate_id", b"\xff"), without="aggregate_id"),
        raw_event(2, ("_id", {"at": DatetimeMS(2**60)}), without="_id"),
        raw_event(2, raw_field("_id", 0x03, raw_document(("v", 1), ("v", 2))), without="_id"),
    ],
    ids=["far time", "bad id", "bad uuid", "bad uuid as id", "bad key", "far id", "id twice"],
)
def test_the_cursor_moves_onto_values_that_only_their_bytes_hold(
    encode: Encode, last: bytes
) -> None:
    encoded = encode(page_of(event(1)) + last, stop_at_failure=False)
    assert (encoded.read, encoded.encoded + len(encoded.failures)) == (2, 2)
    assert not encoded.unplaced
    assert encoded.cursor is not None
    query = bson.encode(after(encode_cursor(encoded.cursor), SPEC.cursor_fields))
    (stored_id,) = values_at(last, "_id")
    assert stored_id is not None
    assert stored_id.under(b"$literal")[4:-1] in query


def test_an_event_that_cannot_be_decoded_is_named_by_its_id(encode: Encode) -> None:
    odd = raw_event(2, ("event_id", "e-2"), raw_field("u", 0x05, b"\x02\0\0\0\x04ab"))
    encoded = encode(odd + page_of(event(3)), stop_at_failure=False)
    assert [one.event_id for one in encoded.failures] == ["e-2"]
    assert "cannot decode a uuid" in encoded.failures[0].reason


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_each_codec_gives_the_same_records(encode: Encode, codec: str) -> None:
    page = page_of(*(event(number) for number in range(50)))
    plain, packed = records(encode(page)), records(encode(page, compression=codec))
    assert [(t, p, r.key, r.value, r.headers) for t, p, r in packed] == [
        (t, p, r.key, r.value, r.headers) for t, p, r in plain
    ]


def test_an_empty_page_is_nothing(encode: Encode) -> None:
    assert encode(b"") == EncodedPage()


@pytest.mark.parametrize(
    "stored",
    [
        {
            "content-type": "json",
            "retries": 2,
            "raw": b"\xff",
            "none": None,
            "B3": "x",
            "Replay-Id": "",
        },
        [
            ["content-type", "json"],
            {"key": "retries", "value": 2},
            {"k": "raw", "v": b"\xff"},
            {"name": "none", "value": None, "more": 1},
            {"TraceParent": "00-1"},
            ["replay-id", "old"],
        ],
    ],
)
def test_original_headers_come_before_those_of_the_replay(encode: Encode, stored: Any) -> None:
    mapping = replace(SPEC.mapping, field_headers="meta.h", field_replayed=None)
    ((_, _, record),) = records(encode(page_of(event(1, meta={"h": stored})), mapping=mapping))
    assert record.headers[:4] == [
        ("content-type", b"json"),
        ("retries", b"2"),
        ("raw", b"\xff"),
        ("none", None),
    ]
    names = [name for name, _ in record.headers[4:]]
    assert names == [name for name, _ in records(encode(page_of(event(1))))[0][2].headers]
    assert "meta" in json.loads(record.value)


@pytest.mark.parametrize("stored", [..., None, {}, []])
def test_an_event_without_headers_has_those_of_the_replay_only(encode: Encode, stored: Any) -> None:
    mapping = replace(SPEC.mapping, field_headers="h")
    ((_, _, record),) = records(encode(page_of(event(1, h=stored)), mapping=mapping))
    ((_, _, plain),) = records(encode(page_of(event(1))))
    assert record.headers == plain.headers


@pytest.mark.parametrize(
    "stored", ["text", 5, ["a"], [["a"]], [[1, "x"]], [{"a": 1, "b": 2}], [{"key": "a", "val": 1}]]
)
def test_headers_of_no_known_form_fail_the_event(encode: Encode, stored: Any) -> None:
    mapping = replace(SPEC.mapping, field_headers="h")
    (failure,) = encode(page_of(event(1, h=stored)), mapping=mapping).failures
    assert "in field 'h' (REPLAY_FIELD_HEADERS) are neither an object nor" in failure.reason


def test_large_headers_count_for_the_size_of_a_record(encode: Encode) -> None:
    mapping = replace(SPEC.mapping, field_headers="h")
    page = page_of(event(1, h={"a": "x" * 60_000, "b": b"y" * 60_000}))
    (failure,) = encode(page, mapping=replace(mapping, exclude_fields=("h",))).failures
    assert "too many for REPLAY_MAX_RECORD_BYTES=100000" in failure.reason


@pytest.mark.parametrize("page", [b"\x01", b"\x00\x00\x00\x00\x00", b"\xff\xff\xff\x7f\x00\x00"])
def test_bytes_that_are_no_documents_fail_the_replay_not_the_worker(
    encode: Encode, page: bytes
) -> None:
    with pytest.raises(ReplayFailed, match="not BSON"):
        encode(page_of(event(1)) + page)


@given(st.lists(st.integers(0, 3), max_size=8), st.integers(0, 10))
def test_a_page_splits_between_documents(sizes: list[int], first: int) -> None:
    documents = [bson.encode({"a": "x" * size}) for size in sizes]
    page = b"".join(documents)
    before, rest = split_page(page, first)
    assert before + rest == page
    assert before == b"".join(documents[:first])
    assert count_documents(rest) == len(documents[first:])


@pytest.mark.parametrize(
    ("asked", "documents", "size", "then"),
    [
        (5_000, 5_000, 600, 5_000),
        (5_000, 800, 20_000, PAGE_BYTES // 20_000),  # the store's own limit: 16 MB
        (5_000, 1, PAGE_BYTES * 2, 1),  # one event is as large as it is
        (209, 209, 20_000, 209),
        (209, 209, 600, 418),  # the events are small again
        (4_000, 4_000, 100, 5_000),
        (5_000, 0, 0, 5_000),
    ],
)
def test_the_next_page_has_as_many_events_as_make_a_page(
    asked: int, documents: int, size: int, then: int
) -> None:
    overhead = len(bson.encode({"a": ""}))
    page = bson.encode({"a": "x" * (size - overhead)}) * documents
    assert next_page_events(asked, page, 5_000) == then


@pytest.mark.parametrize(
    ("key", "hashed"),
    # From org.apache.kafka.common.utils.UtilsTest.testMurmur2, as toPositive() gives them.
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_go_where_kafkas_own_partitioner_sends_them(key: bytes, hashed: int) -> None:
    assert partition_of(key, 2**31) == hashed & 0x7FFFFFFF


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the native encoder, as if its wheel were not installed."""
    monkeypatch.setitem(sys.modules, "replay_native", None)
    encoders._native_obstacle.cache_clear()
    yield
    encoders._native_obstacle.cache_clear()


def test_auto_takes_the_python_encoder_if_there_is_no_native_one(without_native: None) -> None:
    assert encoder_name("auto") == make_encoder(SPEC, "auto").name == "python"
    assert codec_name(Settings()) == "snappy"


def test_an_encoder_that_is_not_there_is_named(without_native: None) -> None:
    told = "REPLAY_ENCODER=native: the native encoder is not installed: run `make native`, or set"
    with pytest.raises(InvalidSettings, match=told):
        make_encoder(SPEC, "native")


@pytest.mark.native
def test_auto_takes_the_native_encoder_where_it_is_installed() -> None:
    assert encoder_name("auto") == make_encoder(SPEC, "auto").name == "native"
    assert codec_name(Settings()) == "lz4"
    assert codec_name(Settings(encoder="python")) == "snappy"
    assert codec_name(Settings(compression="zstd")) == "zstd"
