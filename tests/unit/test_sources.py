"""A replay goes on only with the event store and the mapping that it was planned with."""

from __future__ import annotations

from typing import Any

import pytest

from replay_app.exceptions import ReplayFailed
from replay_app.reports import Plan
from replay_app.settings import load_settings
from replay_app.sources import UUID, require_same_source, source_of, with_uuid

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
    assert "Point all workers back, then retry; or start a new replay" in str(refused.value)


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
