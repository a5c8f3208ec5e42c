"""The hand-over: which live topics, from which time, and what the end records say of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replay_app.commands import Start
from replay_app.events import EPOCH, EventMapping
from replay_app.exceptions import ReplayFailed
from replay_app.handover import (
    MAX_HEADER_BYTES,
    handover_header,
    live_topics,
    published_live_topics,
    reading_time,
    require_allowed,
    unknown_offsets,
)
from replay_app.reports import MAX_HANDOVER_TOPICS, OTHER, Handover, ShardProgress
from replay_app.sessions import Session, Shard
from replay_app.settings import Settings

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MAPPING = EventMapping(topics={"paid": "payments"}, topic_template="shop.{event_type}")


@pytest.mark.parametrize(
    ("kind", "topics"),
    [
        (("placed", None), {"shop.placed"}),
        (("paid", None), {"payments"}),
        (("paid", "own"), {"own"}),
        (("placed", 7), {"shop.placed"}),  # a topic field without text names no topic
        ((None, None), set()),
        (("no topic!", None), set()),
    ],
)
def test_the_live_topic_is_the_topic_without_a_target(
    kind: tuple[Any, ...], topics: set[str]
) -> None:
    assert live_topics([kind], MAPPING) == topics


FORBIDS = Settings(allow_original=False)


def require(settings: Settings = FORBIDS, **members: Any) -> None:
    """Check a replay to the live topic ``orders`` and to ``rebuild.orders``."""
    start = Start.model_validate({"replay_id": "r", "filter": {"all": True}, **members})
    require_allowed(settings, start, ["orders", "rebuild.orders"], ["orders", "payments"])


def test_a_live_topic_is_no_destination_where_the_setting_forbids_that() -> None:
    with pytest.raises(ReplayFailed) as refused:
        require()
    assert "live topics of its events, 'orders', which REPLAY_ALLOW_ORIGINAL=false forbids" in str(
        refused.value
    )


def test_a_live_topic_is_a_destination_where_nothing_forbids_that() -> None:
    require(Settings())
    require(dry_run=True)
    # On another cluster, a topic of the same name is another topic.
    require(Settings(allow_original=False, kafka="a:1", target_kafka="b:1"))
    require_allowed(FORBIDS, Start.model_validate({"replay_id": "r"}), ["a"], ["b"])


@pytest.mark.parametrize(
    ("end", "overlap", "time"),
    [
        (NOON, MINUTE, NOON - MINUTE),
        (NOON - 5 * MINUTE, MINUTE, NOON - 6 * MINUTE),
        (NOON + 5 * MINUTE, MINUTE, NOON - MINUTE),  # a bound in the future: the present counts
        (NOON, timedelta(0), NOON),
        (NOON, timedelta(days=365 * 100), EPOCH),  # Kafka has no times before
        (datetime.min.replace(tzinfo=UTC), MINUTE, EPOCH),
    ],
)
def test_the_live_records_are_read_from_the_bound_less_the_overlap(
    end: datetime, overlap: timedelta, time: datetime
) -> None:
    assert reading_time(end, NOON, overlap) == time


def test_topics_whose_offsets_are_known_keep_them() -> None:
    known: Handover = {"b": {0: 5}, "c": None, "d": {}}
    found = unknown_offsets({"a", "b"}, known)
    assert found == {"a": None, "b": {0: 5}, "c": None, "d": {}}


def test_a_plan_with_too_many_live_topics_is_still_a_record() -> None:
    topics = {f"t{number}" for number in range(MAX_HANDOVER_TOPICS + 50)}
    assert len(unknown_offsets(topics, {})) == MAX_HANDOVER_TOPICS + 1  # one more: to warn


def session(**target: Any) -> Session:
    progress = ShardProgress(
        by_topic={"new.orders": 2, "new.own": 1}, by_type={"placed": 2, "paid": 1}
    )
    times = {"created_at": NOON, "updated_at": NOON, "progressed_at": NOON, "heard_at": NOON}
    return Session(
        replay_id="r",
        start=Start.model_validate({"replay_id": "r", "target": target}),
        shards=(Shard(progress=progress), Shard(progress=ShardProgress(by_topic={"new.x": 1}))),
        **times,
    )


def test_what_a_replay_has_published_tells_its_live_topics() -> None:
    assert published_live_topics(session(prefix="new."), MAPPING) == ({"orders", "own", "x"}, True)
    assert published_live_topics(session(), MAPPING) == ({"new.orders", "new.own", "new.x"}, True)


@pytest.mark.parametrize("target", [{"topic": "all"}, {"topics": {"placed": "p"}}])
def test_where_the_target_names_topics_the_types_tell_the_live_topics(
    target: dict[str, Any],
) -> None:
    found = published_live_topics(session(**target), MAPPING)
    assert found == ({"shop.placed", "payments"}, False)


def test_topics_that_are_counted_together_are_not_known() -> None:
    many = Shard(progress=ShardProgress(by_topic={"new.a": 1, OTHER: 5}))
    found = session(prefix="new.").model_copy(update={"shards": (many,)})
    assert published_live_topics(found, MAPPING) == ({"a"}, False)


def test_an_end_record_has_the_offsets_of_all_live_topics() -> None:
    handover: Handover = {"orders": {1: 7, 0: 5}, "lost": None, "absent": {}}
    text = handover_header(handover, "new.", "new.orders")
    assert text == b'{"absent":{},"lost":null,"orders":{"0":5,"1":7}}'


def test_a_large_hand_over_names_the_live_topic_of_the_record_only() -> None:
    wide: Handover = {f"t{number}": dict.fromkeys(range(100), 10**9) for number in range(20)}
    text = handover_header(wide, "new.", "new.t3") or b""
    assert list(json.loads(text)) == ["t3"]
    assert len(text) <= MAX_HEADER_BYTES
    assert handover_header(wide, "new.", "other") is None
    assert handover_header(wide, "new.", "t3") is None
    assert handover_header({"t": dict.fromkeys(range(2000), 10**9)}, None, "t") is None


def test_a_replay_without_live_topics_has_no_header() -> None:
    assert handover_header({}, "new.", "new.orders") is None
