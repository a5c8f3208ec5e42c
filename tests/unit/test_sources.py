"""A replay goes on only with the event store and the mapping that it was planned with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replay_app.commands import Source
from replay_app.exceptions import InvalidSettings, ReplayFailed
from replay_app.reports import Plan
from replay_app.settings import load_settings
from replay_app.sources import UUID, require_same_source, settings_for, source_of, with_uuid

PLANNED = {"mongo_database": "shop", "mongo_collection": "events"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mongo_database": "copy"}, "REPLAY_MONGO_DATABASE was 'shop', and is 'copy' now"),
        ({"mongo_collection": "old"}, "REPLAY_MONGO_COLLECTION was 'events', and is 'old' now"),
        ({"field_timestamp": "at"}, "REPLAY_FIELD_TIMESTAMP was 'timestamp', and is 'at' now"),
        ({"field_id": "id"}, "REPLAY_FIELD_ID was '', and is 'id' now"),
        ({"field_type": "kind"}, "REPLAY_FIELD_TYPE was"),
        ({"field_aggregate": "order"}, "REPLAY_FIELD_AGGREGATE was"),
        ({"field_topic": "to"}, "REPLAY_FIELD_TOPIC was"),
        ({"field_key": "k"}, "REPLAY_FIELD_KEY was"),
        ({"field_value": "payload"}, "REPLAY_FIELD_VALUE was"),
        ({"field_replayed": "again"}, "REPLAY_FIELD_REPLAYED was"),
        ({"timestamp_type": "iso"}, "REPLAY_TIMESTAMP_TYPE was 'date', and is 'iso' now"),
        ({"exclude_fields": ("_id", "x")}, "REPLAY_EXCLUDE_FIELDS was '_id', and is '_id,x' now"),
        ({"topics": {"a": "b"}}, "REPLAY_TOPICS was '{}', and is '{\"a\": \"b\"}' now"),
        ({"topic_template": "x.{event_type}"}, "REPLAY_TOPIC_TEMPLATE was '{event_type}'"),
    ],
)
def test_another_store_or_mapping_is_refused_with_both_values_and_the_remedy(
    changed: dict[str, Any], told: str
) -> None:
    planned = source_of(load_settings(**PLANNED))
    with pytest.raises(ReplayFailed) as refused:
        require_same_source(planned, source_of(load_settings(**{**PLANNED, **changed})))
    assert told in str(refused.value)
    assert "Point all workers back, then retry; or " in str(refused.value)
    assert str(refused.value).endswith("or start a new replay")


@pytest.mark.parametrize(
    ("changed", "is_accepted"),
    [
        ({"field_topic": "to"}, True),
        ({"field_key": "k"}, True),
        ({"field_value": "payload"}, True),
        ({"field_headers": "headers"}, True),
        ({"exclude_fields": ("_id", "x")}, True),
        ({"topics": {"a": "b"}}, True),
        ({"topic_template": "x.{event_type}"}, True),
        ({"field_aggregate": "order"}, False),
        ({"field_timestamp": "at"}, False),
        ({"field_replayed": "again"}, False),
        ({"field_topic": "to", "mongo_collection": "old"}, False),
    ],
)
def test_a_retry_may_accept_how_events_become_records_but_not_another_order(
    changed: dict[str, Any], is_accepted: bool
) -> None:
    planned = source_of(load_settings(**PLANNED))
    now = source_of(load_settings(**{**PLANNED, **changed}))
    if is_accepted:
        require_same_source(planned, now, accept_changes=True)
    with pytest.raises(ReplayFailed) as refused:
        require_same_source(planned, now, accept_changes=not is_accepted)
    assert ("retry with accept_changes" in str(refused.value)) == is_accepted


@pytest.mark.parametrize(
    "changed",
    [
        {"mongo": "mongodb://other:secret@another-host/?replicaSet=rs"},
        {"kafka": "other:9092", "partitions": 3, "rate": None},
        {"record_timestamp": "original"},
        {"page_events": 7, "api_token": "secret"},
    ],
)
def test_what_does_not_decide_about_events_may_change(changed: dict[str, Any]) -> None:
    changed.pop("rate", None)
    planned = source_of(load_settings(**PLANNED))
    require_same_source(planned, source_of(load_settings(**{**PLANNED, **changed})))


def test_the_order_of_topics_and_excluded_fields_does_not_count() -> None:
    first = load_settings(topics={"a": "x", "b": "y"}, exclude_fields=("_id", "z"))
    second = load_settings(topics={"b": "y", "a": "x"}, exclude_fields=("z", "_id"))
    require_same_source(source_of(first), source_of(second))


def test_many_topics_are_compared_and_the_plan_stays_small() -> None:
    topics = {f"type-{number}": f"topic-{number}" for number in range(5_000)}
    planned = source_of(load_settings(topics=topics))
    assert sum(map(len, planned.values())) < 2_000
    require_same_source(planned, source_of(load_settings(topics=topics)))
    with pytest.raises(ReplayFailed, match=r"REPLAY_TOPICS was 'sha256:.*', and is 'sha256:"):
        require_same_source(planned, source_of(load_settings(topics=topics | {"type-1": "x"})))


def test_another_collection_under_the_same_name_is_refused() -> None:
    planned = with_uuid({"a": "b"}, "1234")
    require_same_source(planned, with_uuid({"a": "b"}, "1234"))
    with pytest.raises(ReplayFailed, match=f"{UUID} was '1234', and is '5678' now"):
        require_same_source(planned, with_uuid({}, "5678"))


def test_a_missing_identity_or_a_plan_of_another_version_is_no_difference() -> None:
    now = with_uuid(source_of(load_settings()), "5678")
    require_same_source({}, now)
    require_same_source({"REPLAY_LATER": "x", **source_of(load_settings())}, now)
    require_same_source(now, with_uuid(source_of(load_settings()), ""))
    old = b'{"end":"2026-01-01T00:00:00Z","matched":1}'
    assert Plan.model_validate_json(old).source == {}


def test_no_source_has_a_secret() -> None:
    settings = load_settings(mongo="mongodb://reader:hidden@mongo/")
    assert "hidden" not in str(source_of(settings))
    assert "reader" not in str(source_of(settings))


# A source that a command names

LEGACY = {
    "REPLAY_FIELD_ID": "uuid",
    "REPLAY_FIELD_TIMESTAMP": "at",
    "REPLAY_TIMESTAMP_TYPE": "iso",
    "REPLAY_EXCLUDE_FIELDS": "_id,internal",
    "REPLAY_TOPICS": {"placed": "orders"},
}


def mappings(folder: Path, content: object) -> Path:
    file = folder / "mappings.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_a_command_without_a_source_reads_what_the_settings_say() -> None:
    settings = load_settings(**PLANNED)
    assert settings_for(settings, Source()) is settings


def test_a_named_mapping_replaces_the_settings_that_it_has_and_keeps_the_others(
    tmp_path: Path,
) -> None:
    file = mappings(tmp_path, {"legacy": LEGACY})
    settings = load_settings(**PLANNED, sources="shop.old_*", mappings=file, field_type="kind")
    assert settings.mapping.field_timestamp == "timestamp"
    found = settings_for(settings, Source(collection="old_orders", mapping="legacy"))
    assert source_of(found) == source_of(settings) | {
        "REPLAY_MONGO_COLLECTION": "old_orders",
        "REPLAY_FIELD_ID": "uuid",
        "REPLAY_FIELD_TIMESTAMP": "at",
        "REPLAY_TIMESTAMP_TYPE": "iso",
        "REPLAY_EXCLUDE_FIELDS": "_id,internal",
        "REPLAY_TOPICS": '{"placed": "orders"}',
    }
    assert (found.mapping.field_timestamp, found.mapping.field_type) == ("at", "kind")


@pytest.mark.parametrize(
    ("sources", "source", "allowed"),
    [
        ("", Source(database="shop", collection="events"), True),  # the settings' own
        ("", Source(mapping=None, collection="events"), True),
        ("", Source(collection="other"), False),
        ("shop.other", Source(collection="other"), True),
        ("shop.other", Source(collection="others"), False),
        ("other", Source(collection="other"), False),
        ("*.events, archive.*", Source(database="copy"), True),
        ("*.events, archive.*", Source(database="archive", collection="a.b"), True),
        ("*.events, archive.*", Source(collection="EVENTS"), False),
        ("*", Source(database="any", collection="thing"), True),
        ("shop.o[tx]her, shop.?ther", Source(collection="other"), False),
        ("shop.[a]", Source(collection="[a]"), True),
    ],
)
def test_only_collections_that_the_settings_allow_are_read(
    sources: str, source: Source, allowed: bool
) -> None:
    settings = load_settings(**PLANNED, sources=sources)
    if allowed:
        settings_for(settings, source)
        return
    with pytest.raises(ReplayFailed, match=r"no worker may read 'shop\..*REPLAY_SOURCES"):
        settings_for(settings, source)


def test_an_unknown_mapping_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    file = mappings(tmp_path, {"a": {}, "b": LEGACY})
    for settings, known in (
        (load_settings(), "has none"),
        (load_settings(mappings=file), "has a, b"),
    ):
        with pytest.raises(ReplayFailed, match=f"no mapping 'x': .* {known};"):
            settings_for(settings, Source(mapping="x"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ("[]", 'write an object such as {"orders": {"REPLAY_FIELD_ID": "uuid"}}'),
        ({"a": 1}, "write an object such as"),
        ({"a": {"field_id": "x"}}, "mapping 'a': field_id is not a setting of a mapping; these"),
        ({"a": {"REPLAY_KAFKA": "x"}}, "mapping 'a': REPLAY_KAFKA is not a setting of a mapping"),
        ({"a": {"REPLAY_TIMESTAMP_TYPE": "x"}}, "mapping 'a': REPLAY_TIMESTAMP_TYPE: Input should"),
        ({"a": {"REPLAY_FIELD_TYPE": ""}}, "mapping 'a': REPLAY_FIELD_TYPE: String should have"),
        ({"a": {"REPLAY_FIELD_ID": None}}, "mapping 'a': REPLAY_FIELD_ID: Input should be"),
        ({"a": {"REPLAY_TOPICS": {"x": "a b"}}}, "mapping 'a': REPLAY_TOPICS: 'a b', for type"),
        ({"a": {"REPLAY_TOPIC_TEMPLATE": "{x}"}}, "mapping 'a': REPLAY_TOPIC_TEMPLATE: '{x}'"),
    ],
)
def test_a_wrong_file_of_mappings_is_refused_at_the_start(
    tmp_path: Path, content: object, told: str
) -> None:
    file = mappings(tmp_path, content)
    with pytest.raises(InvalidSettings) as refused:
        load_settings(mappings=file)
    assert str(refused.value).startswith(f"REPLAY_MAPPINGS={file}")
    assert told in str(refused.value)


def test_a_missing_file_of_mappings_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"cannot be read: No such file"):
        load_settings(mappings=tmp_path / "none.json")
    with pytest.raises(InvalidSettings, match="cannot be read"):
        load_settings(mappings=tmp_path)
