"""JSON Schemas: which one checks an event, and folders that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bson
import pytest
from encoding import NOON, SPEC

from replay_app import schemas
from replay_app.commands import Start
from replay_app.encoders import make_encoder
from replay_app.events import EventMapping
from replay_app.exceptions import ReplayFailed
from replay_app.pages import EncodedPage
from replay_app.schemas import schemas_fingerprint, schemas_of
from replay_app.settings import Settings, load_settings
from replay_app.transforms import Output, Transforms

AMOUNT = {"required": ["amount"], "properties": {"amount": {"type": "number", "minimum": 0}}}
CENTS = {"required": ["cents"], "properties": {"cents": {"$ref": "whole.json"}}}
WHOLE = {"type": "integer"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, schema in (("placed", AMOUNT), ("placed.2", CENTS), ("whole", WHOLE), ("sent.1", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps(schema))
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return load_settings(schemas=folder)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    schemas._read.cache_clear()


def start(**fields: Any) -> Start:
    return Start.model_validate({"replay_id": "r", **fields})


def encoded(settings: Settings, kind: str = "placed", **fields: Any) -> EncodedPage:
    event = {"_id": 1, "event_type": kind, "aggregate_id": "a", "timestamp": NOON} | fields
    spec = replace(SPEC, schemas=schemas_of(settings, start(check_schemas=True)))
    return make_encoder(spec, "auto").encode(bson.encode(event), 0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"amount": 1.5}, None),
        ({"version": 1, "amount": 0}, None),
        ({"version": 2, "cents": 150}, None),
        ({"version": "2", "cents": 150}, None),
        ({"kind": "other", "amount": "x"}, None),
        ({"amount": -1}, "the schema placed.json at 'amount': -1 is less than the minimum of 0"),
        ({"amount": "1"}, 'the schema placed.json at \'amount\': "1" is not of type "number"'),
        ({}, 'the schema placed.json: "amount" is a required property'),
        ({"version": 2, "amount": 1}, 'the schema placed.2.json: "cents" is a required property'),
        ({"version": 2, "cents": 1.5}, "the schema placed.2.json at 'cents'"),
        ({"version": {"a": 1}}, "its version is"),
        ({"version": 3, "amount": 1}, None),
        ({"kind": "other", "version": {"a": 1}}, None),
        ({"kind": "sent", "version": 1}, None),
        (
            {"kind": "sent", "version": 2},
            "no schema checks version 2 of its type: there are sent.1",
        ),
        ({"kind": "sent", "version": "beta"}, None),
    ],
)
def test_the_schema_of_type_and_version_checks_an_event(
    settings: Settings, fields: dict[str, Any], told: str | None
) -> None:
    failures = encoded(settings, **fields).failures
    assert len(failures) == (told is not None)
    assert all(told is not None and told in one.reason for one in failures)


def test_the_value_that_a_transform_has_made_is_checked(settings: Settings) -> None:
    def upcast(event: dict[str, Any], _: Any) -> Any:
        return {"version": 2, "cents": event["amount"] * 100}

    def pack(_event: dict[str, Any], _: Any) -> Any:
        return Output(value=b"\0")

    event = {"_id": 1, "event_type": "placed", "aggregate_id": "a", "timestamp": NOON}
    spec = replace(SPEC, schemas=schemas_of(settings, start(check_schemas=True)))
    for amount, good in ((1, 1), (0.001, 0)):
        named = [("upcast", upcast), ("pack", pack)]
        page = make_encoder(replace(spec, transforms=Transforms(named)), "auto").encode(
            bson.encode(event | {"amount": amount}), 0
        )
        assert (page.encoded, len(page.failures)) == (good, 1 - good)


def test_a_value_that_is_no_json_fails(settings: Settings) -> None:
    mapping = EventMapping(field_value="body")
    spec = replace(SPEC, mapping=mapping, schemas=schemas_of(settings, start(dry_run=True)))
    event = {"_id": 1, "event_type": "placed", "aggregate_id": "a", "timestamp": NOON}
    bodies = ['{"amount": 1}', "no json", '["a list"]']
    page = b"".join(bson.encode(event | {"body": body}) for body in bodies)
    reasons = [one.reason for one in make_encoder(spec, "auto").encode(page, 0).failures]
    assert len(reasons) == 1  # a list fits a schema of objects that names no type
    assert reasons[0].startswith("its value is no JSON, so that the schema placed.json cannot")
    other = bson.encode(event | {"event_type": "other", "body": "no json"})
    assert make_encoder(spec, "auto").encode(other, 0).encoded == 1


def test_the_version_is_that_of_the_stored_event_also_if_it_is_not_published(
    settings: Settings,
) -> None:
    mapping = EventMapping(exclude_fields=("_id", "version"))
    spec = replace(SPEC, mapping=mapping, schemas=schemas_of(settings, start(dry_run=True)))
    event = {"_id": 1, "event_type": "placed", "aggregate_id": "a", "timestamp": NOON}
    page = bson.encode(event | {"version": 2, "cents": 1})
    assert make_encoder(spec, "auto").encode(page, 0).encoded == 1


def test_schemas_are_checked_in_dry_runs_and_when_asked_for(settings: Settings) -> None:
    assert schemas_of(settings, start()) is None
    assert schemas_of(settings, start(dry_run=True)) is not None
    assert schemas_of(load_settings(), start(dry_run=True)) is None
    with pytest.raises(ReplayFailed, match="check_schemas: REPLAY_SCHEMAS names no folder"):
        schemas_of(load_settings(), start(check_schemas=True))


def test_types_without_a_schema_are_named(settings: Settings) -> None:
    found = schemas_of(settings, start(dry_run=True))
    assert found is not None
    assert found.missing(["placed", "paid", "sent", "late"]) == ["late", "paid"]


def test_another_schema_has_another_fingerprint(settings: Settings, folder: Path) -> None:
    first = schemas_fingerprint(settings, start(dry_run=True))
    assert schemas_fingerprint(settings, start()) == {}
    schemas._read.cache_clear()
    assert schemas_fingerprint(settings, start(dry_run=True)) == first
    schemas._read.cache_clear()
    (folder / "whole.json").write_text('{"type": "number"}')
    assert schemas_fingerprint(settings, start(dry_run=True)) != first


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "bad.json is no JSON Schema"),
        ('{"type": 5}', "bad.json is no JSON Schema: 5 is not valid"),
        ('{"$ref": "none.json"}', "bad.json is no JSON Schema"),
        ('{"$ref": "http://127.0.0.1:9/x.json"}', "x.json is not in the folder"),
        ('{"pattern": "("}', "bad.json is no JSON Schema"),
    ],
)
def test_a_file_that_is_no_schema_fails_the_replay_and_is_named(
    settings: Settings, folder: Path, text: str, told: str
) -> None:
    (folder / "bad.json").write_text(text)
    with pytest.raises(ReplayFailed) as refused:
        schemas_of(settings, start(dry_run=True))
    assert told in str(refused.value)
    assert "correct the file on all workers" in str(refused.value)


def test_a_folder_without_schemas_fails_the_replay(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ReplayFailed, match=r"a folder with 1 to 10,000 files TYPE\.json"):
            schemas_of(load_settings(schemas=folder), start(dry_run=True))
