"""What every page encoder does: batches, counts, failures and the cursor of a raw page."""

from __future__ import annotations

import datetime as dt
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import bson
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from bson import Code
from hypothesis import given
from hypothesis import strategies as st

from replay_app import encoders
from replay_app.commands import Target
from replay_app.demo.shop import SHOP_TOPICS, shop_events
from replay_app.encoders import encoder_name, make_encoder
from replay_app.events import EventMapping
from replay_app.exceptions import InvalidSettings, ReplayFailed
from replay_app.internals import batch_bytes
from replay_app.pages import EncodedPage, EncodeSpec, count_documents, split_page
from replay_app.partitioner import partition_of

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


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_each_codec_gives_the_same_records(encode: Encode, codec: str) -> None:
    page = page_of(*(event(number) for number in range(50)))
    plain, packed = records(encode(page)), records(encode(page, compression=codec))
    assert [(t, p, r.key, r.value, r.headers) for t, p, r in packed] == [
        (t, p, r.key, r.value, r.headers) for t, p, r in plain
    ]


def test_an_empty_page_is_nothing(encode: Encode) -> None:
    assert encode(b"") == EncodedPage()


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


def test_an_encoder_that_is_not_there_is_named(without_native: None) -> None:
    told = "REPLAY_ENCODER=native: the native encoder is not installed: run `make native`, or set"
    with pytest.raises(InvalidSettings, match=told):
        make_encoder(SPEC, "native")


@pytest.mark.native
def test_auto_takes_the_native_encoder_where_it_is_installed() -> None:
    assert encoder_name("auto") == make_encoder(SPEC, "auto").name == "native"
