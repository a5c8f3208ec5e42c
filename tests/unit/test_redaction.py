"""Redaction: what becomes of fields, and which rules cannot be kept."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import bson
import encoding
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from bson import DatetimeMS, DBRef, Decimal128, Int64, ObjectId, Regex
from encoding import NOON

from replay_app.commands import Redact
from replay_app.encoders import make_encoder
from replay_app.exceptions import ReplayFailed
from replay_app.pages import EncodedPage, people_json
from replay_app.redaction import Redaction, key_fingerprint, leads_to_field, redaction_of
from replay_app.settings import load_settings

KEY = b"secret"
SPEC = replace(encoding.SPEC, max_record_bytes=100_000)
EVENT = {"_id": 1, "event_type": "placed", "aggregate_id": "a", "timestamp": NOON}

pytestmark = pytest.mark.native


def hashed(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()


def encoded(encoder: str, rules: dict[str, Redact], **fields: Any) -> EncodedPage:
    spec = replace(SPEC, redaction=Redaction(rules, KEY))
    return make_encoder(spec, encoder).encode(bson.encode(EVENT | fields), 0)


def redacted(encoder: str, rules: dict[str, Redact], **fields: Any) -> dict[str, Any]:
    """Return the value of an event's record, without the fields that each event has."""
    page = encoded(encoder, rules, **fields)
    assert page.failures == []
    (batch,) = page.batches
    (record,) = DefaultRecordBatch(bytes(batch.builder._build()))
    value = json.loads(record.value or b"")
    return {name: value[name] for name in value if name not in EVENT}


ENCODERS = pytest.mark.parametrize("encoder", ["python", "native"])


@ENCODERS
@pytest.mark.parametrize(
    ("stored", "mask", "hashed_text"),
    [
        ("ana@example.org", "***", "ana@example.org"),
        ("", "***", ""),
        ("ü", "***", "ü"),
        (7, 0, "7"),
        (Int64(2**40), 0, "1099511627776"),
        (1.5, 0, "1.5"),
        (True, False, "true"),
        (NOON, "***", '"2026-01-02T12:00:00Z"'),
        (ObjectId("65920080000001000000002a"), "***", '"65920080000001000000002a"'),
        (Decimal128("1.50"), "***", '"1.50"'),
        (b"\0", "***", '"AA=="'),
        ({"b": 1, "a": "x"}, {}, '{"b":1,"a":"x"}'),
        ([1, "x", None], [], '[1,"x",null]'),
    ],
)
def test_a_mask_keeps_the_type_and_a_hash_is_the_same_for_the_same_value(
    encoder: str, stored: Any, mask: Any, hashed_text: str
) -> None:
    assert redacted(encoder, {"x": "mask"}, x=stored, y=1) == {"x": mask, "y": 1}
    assert redacted(encoder, {"x": "hash"}, x=stored, y=1) == {"x": hashed(hashed_text), "y": 1}
    assert redacted(encoder, {"x": "null"}, x=stored, y=1) == {"x": None, "y": 1}
    assert redacted(encoder, {"x": "drop"}, x=stored, y=1) == {"y": 1}


@ENCODERS
@pytest.mark.parametrize("rule", ["null", "mask", "hash"])
def test_null_stays_null_and_a_missing_field_stays_missing(encoder: str, rule: Redact) -> None:
    assert redacted(encoder, {"x": rule, "z": rule}, x=None, y=1) == {"x": None, "y": 1}


@ENCODERS
def test_a_path_leads_through_documents_and_arrays(encoder: str) -> None:
    rules: dict[str, Redact] = {"lines.to.email": "hash", "lines.note": "drop", "a.b": "mask"}
    lines = [
        {"to": {"email": "a@b", "name": "A"}, "note": "call"},
        {"to": [{"email": "c@d"}, "text", [{"email": "e@f"}]]},
        "text",
        None,
    ]
    assert redacted(encoder, rules, lines=lines, a={"b": 1, "c": 2}, b=3) == {
        "lines": [
            {"to": {"email": hashed("a@b"), "name": "A"}},
            {"to": [{"email": hashed("c@d")}, "text", [{"email": hashed("e@f")}]]},
            "text",
            None,
        ],
        "a": {"b": 0, "c": 2},
        "b": 3,
    }


@ENCODERS
def test_a_value_without_json_form_can_be_masked_and_dropped_but_not_hashed(encoder: str) -> None:
    assert redacted(encoder, {"x": "mask"}, x=Regex("a")) == {"x": "***"}
    assert redacted(encoder, {"x": "mask"}, x=float("nan")) == {"x": 0}
    assert redacted(encoder, {"x": "drop"}, x=[float("nan"), Regex("a")]) == {}
    for value in (Regex("a"), [float("inf")], DatetimeMS(-99999999999999)):
        (failure,) = encoded(encoder, {"x": "hash"}, x=value).failures
        # Not the words of the JSON encoder, which may quote the value.
        assert failure.reason == "field 'x' cannot be hashed: its value has no mapping to JSON"


@ENCODERS
def test_nothing_of_a_reference_is_published_or_shown(encoder: str) -> None:
    reference = {"$ref": "c", "$id": 1, "email": "ana@example.org"}
    rules: dict[str, Redact] = {"to.email": "mask", "all.email": "drop"}
    page = encoded(encoder, rules, to=reference, all=[reference, [reference]])
    assert page.failures == []
    (batch,) = page.batches
    sent = bytes(batch.builder._build())
    assert b"ana" not in sent
    document = bson.encode(EVENT | {"to": reference, "all": [reference, [reference]]})
    assert b"ana" not in (people_json(document, Redaction(rules, KEY)) or b"")


def test_a_document_for_people_shows_nothing_of_a_redacted_field() -> None:
    document = bson.encode({"_id": 1, "email": "ana@example.org", "n": [{"email": Regex("ana")}]})
    rules: dict[str, Redact] = {"email": "hash", "n.email": "hash"}
    shown = people_json(document, Redaction(rules, KEY))
    assert json.loads(shown or b"") == {"_id": 1, "email": "***", "n": [{"email": "***"}]}
    assert people_json(b"\x07\0\0\0ana", Redaction(rules, KEY)) is None


@pytest.mark.parametrize(
    ("path", "settings", "told"),
    [
        ("_id", {}, "the mapping reads '_id'"),
        ("event_id", {}, "the mapping reads 'event_id'"),
        ("timestamp", {}, "the mapping reads 'timestamp'"),
        ("event_type", {}, "the mapping reads 'event_type'"),
        ("aggregate_id", {}, "the mapping reads 'aggregate_id'"),
        ("meta", {"field_id": "meta.id"}, "the mapping reads 'meta.id'"),
        ("_id", {"field_id": "meta.id"}, "the mapping reads '_id'"),  # cursors have it
        ("h", {"field_headers": "h"}, "the mapping reads 'h'"),
        ("meta.id.x", {"field_key": "meta.id"}, "the mapping reads 'meta.id'"),
        ("x", {"field_value": "payload"}, "field 'payload' unchanged (REPLAY_FIELD_VALUE)"),
    ],
)
def test_a_field_that_key_or_headers_would_tell_cannot_be_redacted(
    path: str, settings: dict[str, str], told: str
) -> None:
    with pytest.raises(ReplayFailed) as refused:
        redaction_of(load_settings(**settings), {path: "mask"})
    assert str(refused.value).startswith("redact: ")
    assert told in str(refused.value)


def test_a_hash_needs_a_key_and_a_plan_keeps_its_fingerprint() -> None:
    rules: dict[str, Redact] = {"x": "hash"}
    with pytest.raises(ReplayFailed, match="set REPLAY_REDACT_KEY, the same on all workers"):
        redaction_of(load_settings(), rules)
    assert redaction_of(load_settings(), {}) is None
    one, other = load_settings(redact_key="one"), load_settings(redact_key="other")
    assert redaction_of(one, rules) is not None
    assert redaction_of(load_settings(), {"x": "mask"}) is not None
    assert redaction_of(load_settings(), {"headers": "mask"}) is not None  # the loop guard's field
    assert key_fingerprint(one, rules) != key_fingerprint(other, rules)
    assert key_fingerprint(one, {"x": "mask"}) == {}
    assert "one" not in str(key_fingerprint(one, rules))


@pytest.mark.parametrize(
    ("document", "path", "found"),
    [
        ({"a": None}, "a", True),
        ({"a": {"b": 1}}, "a.b", True),
        ({"a": {"b": 1}}, "a.c", False),
        ({"a": [{"c": 1}, [{"b": 1}]]}, "a.b", True),
        ({"a": 1}, "a.b", False),
        ({"a": DBRef("c", 1, email="x")}, "a.email", True),
        ({}, "a", False),
    ],
)
def test_a_path_leads_to_a_field_where_it_would_be_redacted(
    document: dict[str, Any], path: str, found: bool
) -> None:
    assert leads_to_field(document, path) is found
