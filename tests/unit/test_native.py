"""The native encoder and the reference agree on any document, any bytes and any mapping.

The native batches are what aiokafka expects of a `BatchBuilder`, whose private names they override.
"""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import bson
import hypothesis.strategies as st
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from bson import Binary, Code, DatetimeMS, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex
from bson import Timestamp as BsonTimestamp
from hypothesis import example, given
from support import raw_document, raw_field, raw_text

from replay_app.commands import Redact, Target
from replay_app.demo.shop import SHOP_TOPICS, shop_events
from replay_app.encoders import make_encoder
from replay_app.events import STRICT, EventMapping
from replay_app.exceptions import InvalidSettings, ReplayFailed
from replay_app.internals import FinishedBatch, records_of
from replay_app.pages import Batch, EncodedPage, EncodeSpec
from replay_app.redaction import Redaction

pytestmark = pytest.mark.native

NOW_MS = 1_790_000_000_000
NOON = dt.datetime(2026, 1, 2, 12, 0, 0, 5_000, tzinfo=dt.UTC)
SPEC = EncodeSpec(
    mapping=EventMapping(field_replayed="headers.replay-id"),
    target=Target(),
    replay_id="r-ü",
    attempt=1,
    name=None,
    reason="lost",
    partitions={"placed": 3, "paid": 1, "x.placed": 2, "all": 5, "own": 7},
    cursor_fields=("timestamp", "meta.at", "_id"),
    stop_at_failure=False,
    include_replayed=False,
    record_timestamp="append",
    compression="none",
    max_record_bytes=100_000,
)

# Documents

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.sampled_from(["a", "b", "_id", "", "a.b", "ü", "$ref", "$id", "headers"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
)
longs = st.integers(-(2**63), 2**63 - 1)
dates = st.builds(
    DatetimeMS,
    st.integers(-62_135_596_800_000, 253_402_300_799_999)
    | st.sampled_from([-62_135_596_800_001, 253_402_300_800_000, -(2**63), 2**63 - 1, -1, 0]),
)
decimals = st.builds(Decimal128.from_bid, st.binary(min_size=16, max_size=16)) | st.builds(
    lambda sign, digits, exponent: Decimal128.from_bid(
        (sign << 127 | (exponent + 6176) << 113 | digits).to_bytes(16, "little")
    ),
    st.integers(0, 1),
    st.integers(0, 10**34) | st.integers(0, 1000),
    st.integers(-6176, 6111) | st.integers(-40, 10),
)
doubles = st.floats() | st.sampled_from([-0.0, 1e16, 1e22, 1e23, 5e-324, 1e-7, 2.0**53, 0.1])
object_ids = st.builds(ObjectId, st.binary(min_size=12, max_size=12))
binaries = st.builds(
    Binary, st.binary(max_size=20) | st.binary(min_size=16, max_size=16), st.integers(0, 255)
).filter(lambda one: one.subtype != 4 or len(one) == 16)
plain = st.none() | st.booleans() | longs | st.builds(Int64, longs) | texts | doubles
ordinary = plain | dates | decimals | object_ids | binaries | st.uuids() | st.binary(max_size=20)
odd = st.sampled_from(
    [
        Regex("^a", "i"),
        Code("f()"),
        Code("f()", {"a": 1}),
        BsonTimestamp(1, 2),
        MinKey(),
        MaxKey(),
        bson.DBRef("c", 1),
        {"$ref": "c"},
    ]
)
nested = st.recursive(
    st.one_of(ordinary, ordinary, ordinary, odd),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
values = st.deferred(lambda: nested)  # keeps error messages short
times = st.one_of(
    st.just(NOON),
    dates,
    st.datetimes().map(dt.datetime.isoformat),
    st.datetimes(timezones=st.timezones()).map(dt.datetime.isoformat),
    st.sampled_from(["2026-01-02 12:00:00.5Z", "2026-01-02", "2026-02-30T00:00:00Z", ""]),
    st.integers(-(10**15), 10**15),
    st.floats(-1e15, 1e15),
    st.floats(-1e6, 1e6).map(float.__trunc__).map(float),
    values,
)
ids = st.one_of(texts, longs, object_ids, ordinary, values)
kinds = st.one_of(st.sampled_from(["placed", "paid"]), texts, values)
topics = st.one_of(st.sampled_from(["own", "", None]), texts, values)
payloads = st.one_of(st.binary(max_size=40), texts, values)
meta = st.fixed_dictionaries(
    {},
    optional={"id": ids, "at": times, "kind": kinds, "key": ids, "payload": payloads, "b": values},
)
events = st.fixed_dictionaries(
    {"_id": ids, "event_type": kinds, "timestamp": times},
    optional={
        "event_id": ids,
        "aggregate_id": ids,
        "topic": topics,
        "payload": payloads,
        "meta": meta | values,
        "headers": st.dictionaries(st.sampled_from(["replay-id", "trace"]), values) | values,
        "data": values,
    },
)
good_events = st.builds(
    lambda number, kind, data: {"_id": number, "event_type": kind, "timestamp": NOON, "d": data},
    longs,
    st.sampled_from(["placed", "paid"]),
    st.dictionaries(names, ordinary, max_size=5),
)
pages = st.lists(events | good_events, max_size=6).map(
    lambda page: b"".join(bson.encode(one, codec_options=STRICT) for one in page)
)


# Documents that the driver does not write

raw_fields = st.one_of(
    st.tuples(st.sampled_from(["_id", "event_id", "aggregate_id", "event_type", "a"]), ordinary),
    st.tuples(st.just("timestamp"), dates),
    st.tuples(st.sampled_from(["meta", "headers"]), meta),
    st.tuples(
        st.just("headers"),
        st.lists(
            st.lists(st.sampled_from(["replay-id", "trace", 5]), max_size=2)
            | st.dictionaries(
                st.sampled_from(["key", "k", "name", "value", "replay-id"]),
                st.sampled_from(["replay-id", "trace", None]),
                max_size=2,
            ),
            max_size=3,
        ),
    ),
    st.builds(
        raw_field,
        st.sampled_from(["a", "_id", "event_id", "timestamp", "event_type"]),
        st.just(0x06),  # undefined
    ),
    st.builds(raw_text, st.sampled_from(["a", "_id", "topic"]), st.binary(max_size=3)),
    st.builds(
        lambda name, ids: (name, ids),
        st.sampled_from(["_id", "event_id"]),
        st.dictionaries(names, st.one_of(texts, longs, object_ids, st.none()), max_size=3),
    ),
)
GOOD = [("_id", 1), ("event_type", "placed"), ("timestamp", NOON)]
raw_pages = st.lists(
    st.builds(
        lambda fields, is_good: raw_document(*(GOOD if is_good else []), *fields),
        st.lists(raw_fields, max_size=5),
        st.booleans(),
    ),
    max_size=4,
).map(b"".join)


# Mappings


def paths(*choices: str | None) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


mappings = st.builds(
    EventMapping,
    field_id=paths(None, None, "event_id", "meta.id", "_id"),
    field_timestamp=paths("timestamp", "timestamp", "meta.at"),
    field_type=paths("event_type", "event_type", "meta.kind"),
    field_aggregate=paths("aggregate_id", "meta.id"),
    field_topic=paths("topic", "meta.b"),
    field_key=paths(None, None, "meta.key", "aggregate_id", "_id"),
    field_value=paths(None, None, None, "payload", "meta.payload", "meta"),
    null_values=st.sampled_from(["fail", "tombstone"]),
    field_headers=paths(None, None, "headers", "meta.b", "payload"),
    field_replayed=paths(None, "headers.replay-id", "meta"),
    timestamp_type=st.sampled_from(["date", "date", "iso", "epoch_ms"]),
    exclude_fields=st.lists(
        paths("_id", "meta.id", "meta", "d.a", "data", "timestamp", "a.b", "meta.payload"),
        max_size=4,
    ).map(tuple),
    topics=st.sampled_from([{}, {"placed": "x.placed", "paid": ""}]),
    topic_template=st.sampled_from(["{event_type}", "all", "x.{event_type}"]),
)
targets = st.builds(
    lambda where, topics: Target(topics=topics, **where),
    st.sampled_from([{}, {}, {"topic": "all"}, {"prefix": "x."}]),
    st.sampled_from([{}, {}, {"placed": "own"}]),
)
rules: list[Redact] = ["drop", "null", "mask", "hash"]
redactions = st.dictionaries(
    st.sampled_from(["d.a", "d", "data", "data.b", "a", "b.a", "headers.trace", "meta.b.a"]),
    st.sampled_from(rules),
    max_size=4,
).map(
    lambda chosen: Redaction(
        # As in a command, no path lies within another one.
        {
            path: rule
            for path, rule in chosen.items()
            if path.partition(".")[0] not in {*chosen} - {path}
        },
        b"key",
    )
)
specs = st.builds(
    lambda mapping, target, **changes: replace(SPEC, mapping=mapping, target=target, **changes),
    st.just(SPEC.mapping) | mappings,
    st.just(SPEC.target) | targets,
    name=st.none() | texts,
    reason=st.none() | texts,
    stop_at_failure=st.booleans(),
    include_replayed=st.booleans(),
    record_timestamp=st.sampled_from(["append", "original"]),
    compression=st.sampled_from(["none", "gzip", "snappy", "lz4", "zstd"]),
    max_record_bytes=st.sampled_from([100_000, 1_024, 900, 700]),
    batch_bytes=st.sampled_from([{}, {}, {"placed": 600, "all": 300, "own": 2_000}]),
    redaction=st.none() | redactions,
)


# Agreement


def account(encoded: EncodedPage, *, is_compressed: bool) -> dict[str, Any]:
    """Return the whole result of a page, in a form in which NaN equals itself."""
    batches = [(batch, seal(batch)) for batch in encoded.batches]
    return {
        "counts": (encoded.read, encoded.encoded, encoded.skipped_replays, encoded.bytes),
        "by_type": encoded.by_type,
        "by_topic": encoded.by_topic,
        "failures": encoded.failures,
        "cursor": repr((encoded.cursor, encoded.unplaced)),
        "batches": [(b.topic, b.partition, b.records, b.bytes) for b, _ in batches],
        "records": [records(sent) for _, sent in batches],
        "bytes": None if is_compressed else [sent for _, sent in batches],
    }


def seal(batch: Batch) -> bytes:
    is_native = isinstance(batch.builder, FinishedBatch)
    unpacked = batch.builder.records() if is_native else None
    batch.builder._set_producer_state(4711, 3, 2_000_000_000)
    sent = bytes(batch.builder._build())
    assert batch.builder.size() == len(sent)
    assert batch.builder.record_count() == batch.records
    if unpacked is not None:  # a sealed batch is unpacked by aiokafka
        assert unpacked == records_of(batch.builder)
    return sent


def records(sent: bytes) -> Sequence[Any]:
    read = DefaultRecordBatch(sent)
    assert read.validate_crc()
    return [
        (r.offset, r.timestamp, r.timestamp_type, r.key, r.value, tuple(r.headers)) for r in read
    ]


def outcome(kind: str, spec: EncodeSpec, page: bytes) -> dict[str, Any] | str:
    try:
        encoded = make_encoder(spec, kind).encode(page, NOW_MS)
    except ReplayFailed as error:
        return str(error)
    return account(encoded, is_compressed=spec.compression != "none")


def assert_equal(spec: EncodeSpec, page: bytes) -> None:
    assert outcome("native", spec, page) == outcome("python", spec, page)


@given(specs, pages)
def test_any_documents_under_any_mapping(spec: EncodeSpec, page: bytes) -> None:
    assert_equal(spec, page)


@given(specs, raw_pages)
def test_documents_that_the_driver_does_not_write(spec: EncodeSpec, page: bytes) -> None:
    assert_equal(spec, page)


@given(st.lists(good_events, min_size=1, max_size=60), specs)
def test_pages_of_good_events(page: list[dict[str, Any]], spec: EncodeSpec) -> None:
    spec = replace(spec, mapping=SPEC.mapping)
    assert_equal(spec, b"".join(bson.encode(one, codec_options=STRICT) for one in page))


@given(doubles)
def test_doubles_are_written_alike(value: float) -> None:
    assert_equal(
        SPEC, bson.encode({"_id": 1, "event_type": "placed", "timestamp": NOON, "d": value})
    )


@given(pages, st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4), specs)
def test_damaged_pages(page: bytes, damage: list[tuple[int, int]], spec: EncodeSpec) -> None:
    damaged = bytearray(page)
    for place, byte in damage:
        if damaged:
            damaged[place % len(damaged)] = byte
    assert_equal(spec, bytes(damaged))


@given(st.binary(max_size=200), st.booleans())
@example(noise=b"\x05\0\0\0\0", framed=True)
def test_random_bytes(noise: bytes, framed: bool) -> None:
    if framed:
        noise = (len(noise) + 5).to_bytes(4, "little") + noise + b"\0"
    assert_equal(SPEC, noise)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "d"]),
            st.recursive(
                ordinary | odd,
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
                ),
                max_leaves=10,
            ),
        ),
        min_size=1,
        max_size=5,
    ),
    redactions,
)
def test_redacted_fields_in_documents_and_arrays(
    events: list[dict[str, Any]], redaction: Redaction
) -> None:
    page = b"".join(
        bson.encode(
            {"_id": 1, "event_type": "placed", "timestamp": NOON} | one, codec_options=STRICT
        )
        for one in events
    )
    assert_equal(replace(SPEC, redaction=redaction), page)


header_names = st.sampled_from(
    ["a", "", "B3", "X-B3-Id", "Replay-x", "replays", "ü", "traceparent"]
)
header_values = st.sampled_from(
    ["x", "", "ü", b"y", b"", None, 5, True, {"a": 1}, uuid.UUID(int=1)]
)
header_values |= st.builds(Binary, st.binary(max_size=3), st.sampled_from([0, 3, 5, 128]))
headers = st.dictionaries(header_names, header_values, max_size=4) | st.lists(
    st.tuples(header_names, header_values).map(list)
    | st.builds(
        lambda name, value, fields: {fields[0]: name, fields[1]: value, "x": 1},
        header_names | st.none(),
        header_values,
        st.sampled_from([("key", "value"), ("k", "v"), ("name", "value"), ("other", "value")]),
    )
    | st.dictionaries(header_names, header_values, max_size=1)
    | st.sampled_from(["a", 5, ["a"], ["a", "b", "c"], [5, "x"]]),
    max_size=3,
)


@given(st.lists(headers, min_size=1, max_size=4), st.sampled_from([100_000, 700, 560]))
def test_original_headers_of_every_form(events: list[Any], most: int) -> None:
    mapping = replace(SPEC.mapping, field_headers="h")
    page = b"".join(bson.encode(dict(GOOD) | {"h": one}, codec_options=STRICT) for one in events)
    assert_equal(replace(SPEC, mapping=mapping, max_record_bytes=most), page)


def test_everyday_events_are_not_left_to_the_reference() -> None:
    rich = {"_id": ObjectId(), "event_type": "placed", "timestamp": NOON, "n": [2**40, 0.1, None]}
    rich |= {"d": Decimal128("1.50"), "u": uuid.uuid4(), "b": b"\0", "o": {"t": NOON, "x": [True]}}
    page = bson.encode(rich, codec_options=STRICT)
    page += b"".join(bson.encode(event) for event in shop_events(200))
    ids: list[Any] = [1, 2**40, b"x", Binary(bytes(16), 3), {"s": "a", "v": 1, "n": {"x": 2**40}}]
    pairs: list[Any] = [["trace", "x"], {"key": "k", "value": b"v"}, {"k": "y", "v": ""}]
    traced = {"event_type": "placed", "timestamp": NOON, "headers": pairs}
    page += b"".join(bson.encode({"_id": one} | traced) for one in ids)
    spec = replace(SPEC, partitions=(SPEC.partitions or {}) | dict.fromkeys(SHOP_TOPICS, 3))
    native = importlib.import_module("replay_app.native_encoder")
    rules: dict[str, Any] = {"data.items.sku": "mask", "o.x": "hash", "n": "hash", "d": "null"}
    headed = replace(SPEC.mapping, field_headers="headers")
    for redaction, mapping in ((None, SPEC.mapping), (Redaction(rules, b"key"), headed)):
        encoder = native.NativeEncoder(replace(spec, redaction=redaction, mapping=mapping))
        work = encoder._encoder.begin(page, NOW_MS)
        assert work.run() is None
        assert work.finish()["encoded"] == 206


# What aiokafka sees


def make_batch() -> Any:
    event = {"_id": 1, "event_type": "placed", "timestamp": NOON}
    (batch,) = make_encoder(SPEC, "native").encode(bson.encode(event), NOW_MS).batches
    return batch.builder


def test_every_method_of_aiokafkas_builder_is_overridden_with_the_same_arguments() -> None:
    ours = vars(type(make_batch()))
    theirs = {
        name: method
        for name, method in vars(BatchBuilder).items()
        if inspect.isfunction(method) and name != "__init__"
    }
    assert theirs.keys() <= ours.keys()
    for name, method in theirs.items():
        assert inspect.signature(method).parameters.keys() == (
            inspect.signature(ours[name]).parameters.keys()
        )


def test_a_finished_batch_takes_no_more_records() -> None:
    batch = make_batch()
    batch.close()
    assert batch.closed()
    assert batch.append(timestamp=NOW_MS, key=b"k", value=b"v") is None
    assert batch.record_count() == 1


def test_a_retry_sends_the_same_bytes() -> None:
    batch = make_batch()
    batch._set_producer_state(7, 1, 5)
    sent = batch._build()
    with pytest.raises(AssertionError):
        batch._set_producer_state(7, 1, 6)
    assert batch._build() is sent
    assert batch.size() == len(sent)
    assert batch._unsealed is None


def test_a_batch_unpacks_its_records_only_before_they_are_compressed_or_sealed() -> None:
    batch = make_batch()
    ((timestamp, key, value, last),) = batch.records()
    assert (timestamp, key, last) == (
        NOW_MS,
        b"1",
        [b"2026-01-02T12:00:00.005Z", b'r-\xc3\xbc:{"$numberInt":"1"}'],
    )
    assert b'"placed"' in value
    batch._build()
    assert batch.records() is None
    event = {"_id": 1, "event_type": "placed", "timestamp": NOON, "text": "x" * 1_000}
    spec = replace(SPEC, compression="lz4")
    (packed,) = make_encoder(spec, "native").encode(bson.encode(event), NOW_MS).batches
    assert packed.builder.records() is None
    assert len(records_of(packed.builder)) == 1


def test_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    native = importlib.import_module("replay_app.native_encoder")
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    with pytest.raises(InvalidSettings, match="run `make native`"):
        native.check_interface()


def test_what_is_no_page_of_bytes_is_refused_and_a_page_is_used_once() -> None:
    work = importlib.import_module("replay_app.native_encoder")
    encoder = work.NativeEncoder(SPEC)._encoder
    with pytest.raises(TypeError):
        encoder.begin(bytearray(5), NOW_MS)
    page = encoder.begin(b"", NOW_MS)
    assert page.run() is None
    with pytest.raises(RuntimeError, match="no document was declined"):
        page.skip()
    page.finish()
    with pytest.raises(RuntimeError, match="finished"):
        page.run()
