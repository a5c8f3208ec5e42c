"""What is found of destination topics before a replay: obstacles and warnings, each by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from replay_app.destinations import Destination, Preflight, name_topics
from replay_app.exceptions import ReplayFailed
from replay_app.settings import load_settings

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY_MS = str(24 * 60 * 60 * 1000)
HOUR_MS = str(60 * 60 * 1000)
LONG_MAX = str(2**63 - 1)
PLAIN = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.before.max.ms": LONG_MAX,
    "message.timestamp.after.max.ms": HOUR_MS,
    "min.insync.replicas": "1",
    "retention.ms": "-1",
}


def check(
    topic: Destination | None = None,
    *,
    control_records: bool = False,
    original: bool = False,
    leaves_out: bool = False,
    days: tuple[float, float] | None = None,
    **config: str,
) -> tuple[str, ...]:
    """Return the warnings for the topic 't'; ``days`` are the ages of its events."""
    given = PLAIN | {name.replace("_", "."): value for name, value in config.items()}
    found = {"t": topic or Destination(3, config=given)}
    preflight = Preflight(found, NOW, control_records, original, leaves_out)
    spans = {"t": (NOW - timedelta(days[0]), NOW - timedelta(days[1]))} if days else {}
    return preflight.check(load_settings(kafka="kafka:9092"), spans)


def test_a_plain_topic_needs_no_warning() -> None:
    assert check() == ()
    assert check(control_records=True) == ()
    assert check(original=True, days=(900, 0)) == ()


OBSTACLES: dict[str, tuple[dict[str, Any], str]] = {
    "no right to write": (
        {"topic": Destination(3, may_write=False, config=PLAIN)},
        "kafka:9092 --add --allow-principal User:USER --operation Write --topic t`; then retry",
    ),
    "no right to see": ({"topic": Destination(0, may_write=False)}, "no right to write to 't'"),
    "null keys": (
        {"control_records": True, "cleanup_policy": "compact,delete"},
        "control records have no key, and compacted topics refuse such records: 't'",
    ),
    "too old": (
        {"original": True, "days": (9, 1), "message_timestamp_before_max_ms": DAY_MS},
        r"events are older than their topics take (message.timestamp.before.max.ms): 't'",
    ),
    "too old, before Kafka 3.6": (
        {"original": True, "days": (9, 1), "message_timestamp_difference_max_ms": DAY_MS},
        r"events are older than their topics take (message.timestamp.before.max.ms): 't'",
    ),
    "too new": (
        {"original": True, "days": (9, -1)},
        r"events are further ahead than their topics take (message.timestamp.after.max.ms): 't'",
    ),
}


@pytest.mark.parametrize("case", OBSTACLES)
def test_what_cannot_succeed_fails_by_name_and_remedy(case: str) -> None:
    given, told = OBSTACLES[case]
    with pytest.raises(ReplayFailed) as failed:
        check(**given)
    assert told in str(failed.value)
    assert str(failed.value).endswith("then retry")


@pytest.mark.parametrize("case", [case for case in OBSTACLES if case.startswith("too ")])
def test_times_that_a_topic_refuses_are_a_warning_where_refused_events_are_left_out(
    case: str,
) -> None:
    given, told = OBSTACLES[case]
    (warning,) = check(leaves_out=True, **given)
    assert told in warning
    assert warning.endswith("else these events fail one by one")


def test_all_obstacles_are_told_at_once() -> None:
    with pytest.raises(ReplayFailed, match=r"no right to write to 't': .*; control records have"):
        check(
            Destination(3, may_write=False, config={"cleanup.policy": "compact"}),
            control_records=True,
        )


WARNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "compacted": ({"cleanup_policy": "compact"}, "compacted topics: 't'; Kafka keeps only the"),
    "deleted at once": (
        {"original": True, "days": (9, 1), "retention_ms": DAY_MS},
        "events are older than their topics keep records (retention.ms): 't'",
    ),
    "times of the broker": (
        {"original": True, "message_timestamp_type": "LogAppendTime"},
        "REPLAY_RECORD_TIMESTAMP=original has no effect",
    ),
    "too few replicas": (
        {"topic": Destination(3, in_sync=1, config=PLAIN | {"min.insync.replicas": "2"})},
        "fewer replicas are in sync than min.insync.replicas asks for: 't'",
    ),
    "not told": (
        {"topic": Destination(3)},
        "the broker does not tell the settings of 't': compaction, size limits and time limits",
    ),
}


@pytest.mark.parametrize("case", WARNINGS)
def test_what_may_hurt_is_a_warning(case: str) -> None:
    given, told = WARNINGS[case]
    (warning,) = check(**given)
    assert told in warning


@pytest.mark.parametrize(
    "given",
    [
        {"days": (9, -1), "message_timestamp_before_max_ms": DAY_MS, "retention_ms": DAY_MS},
        {"original": True, "days": (0.5, 0), "message_timestamp_before_max_ms": DAY_MS},
        {"original": True, "days": (9, 0), "retention_ms": DAY_MS, "cleanup_policy": ""},
        {"original": True, "message_timestamp_before_max_ms": DAY_MS},
        {"original": True, "days": (9, 0), "retention_ms": str(2**62)},
    ],
    ids=["time of the replay", "young events", "no deletion", "times unknown", "a vast limit"],
)
def test_time_limits_that_do_not_matter_are_not_told(given: dict[str, Any]) -> None:
    assert check(**given) == ()


def test_the_times_of_events_are_asked_for_only_where_a_limit_may_matter() -> None:
    free = PLAIN | {"message.timestamp.after.max.ms": LONG_MAX}
    for config, original, needed in (
        (PLAIN, True, True),
        (PLAIN, False, False),
        (free, True, False),
        (free | {"retention.ms": DAY_MS}, True, True),
        (PLAIN | {"message.timestamp.type": "LogAppendTime"}, True, False),
        ({}, True, False),
    ):
        found = {"t": Destination(3, config=config)}
        assert (
            Preflight(found, NOW, writes_null_keys=False, original_times=original).needs_spans
            is needed
        )


def test_many_topics_are_named_in_short() -> None:
    assert name_topics(["a", "b"]) == "'a', 'b'"
    assert name_topics(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"
