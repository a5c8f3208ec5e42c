"""What a replay must have published, computed from the stored events alone."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bson import Decimal128, ObjectId
from support import Record

SHOWN = 5
Ordering = Literal["global", "aggregate"]


@dataclass(frozen=True, slots=True)
class Account:
    """The differences between the records in the topics and what a replay must have published."""

    lost: tuple[str, ...]
    """Ids of events without a record."""
    repeated: Mapping[str, int]
    """The number of records of each event that has more than one."""
    foreign: tuple[str, ...]
    """Ids in records that belong to no stored event."""
    disordered: tuple[str, ...]
    """The places of records that follow a record of a later event."""


def account_of(
    records: Sequence[Record],
    events: Sequence[Mapping[str, Any]],
    ordering: Ordering = "global",
) -> Account:
    """Compare records with the stored events, given in the order of a global replay.

    Under ``aggregate`` only the events of one aggregate are ordered, and those without aggregate.
    """
    published = Counter(event_id_of(record) for record in records)
    wanted = {event["event_id"]: number for number, event in enumerate(events)}
    assert len(wanted) == len(events), "the events' own ids are not unique"
    last: dict[tuple[Any, ...], int] = {}
    disordered: list[str] = []
    for record in sorted(records, key=lambda one: (one.topic, one.partition, one.offset)):
        number = wanted.get(event_id_of(record))
        if number is None:
            continue
        lane: tuple[Any, ...] = (record.topic, record.partition)
        if ordering == "aggregate":
            lane = (*lane, events[number]["aggregate_id"])
        if number < last.get(lane, -1):  # a repeated event is not disorder
            disordered.append(f"{record.topic} {record.partition}:{record.offset}")
        last[lane] = max(number, last.get(lane, -1))
    return Account(
        lost=tuple(sorted(wanted.keys() - published.keys())),
        repeated={event_id: count for event_id, count in published.items() if count > 1},
        foreign=tuple(sorted(published.keys() - wanted.keys())),
        disordered=tuple(disordered),
    )


def assert_published_exactly(
    records: Sequence[Record],
    events: Sequence[Mapping[str, Any]],
    replay_id: str,
    topic_of: Mapping[str, str] | str,
    ordering: Ordering = "global",
    *,
    partitions_of_key: int = 1,
) -> None:
    """Check records against the stored events, given in the order of a global replay.

    Each event has one record, in its topic, with its key, value and provenance. There is no other
    record, and the order is kept. ``topic_of`` is a prefix of the event's original topic, or a map
    from event type to topic. ``partitions_of_key`` is the most partitions that the records of one
    key may be in: 1, and one more for each growth of the topic during the replay.
    """
    account = account_of(records, events, ordering)
    lost, repeated, foreign = account.lost, account.repeated, account.foreign
    assert not lost, f"{len(lost)} events were not published: {lost[:SHOWN]}"
    assert not repeated, f"{len(repeated)} events were published more than once: {_few(repeated)}"
    assert not foreign, f"{len(foreign)} records are no such events: {foreign[:SHOWN]}"
    assert not account.disordered, f"out of order: {account.disordered[:SHOWN]}"
    wanted = {event["event_id"]: event for event in events}
    for record in records:
        assert_is_replay_of(record, wanted[event_id_of(record)], replay_id, topic_of)
    partitions: dict[tuple[str, bytes | None], set[int]] = defaultdict(set)
    for record in records:
        partitions[record.topic, record.key].add(record.partition)
    scattered = [key for key, found in partitions.items() if len(found) > partitions_of_key]
    assert not scattered, f"records of one key are in too many partitions: {scattered[:SHOWN]}"


def assert_is_replay_of(
    record: Record, event: Mapping[str, Any], replay_id: str, topic_of: Mapping[str, str] | str
) -> None:
    """Check one record against its event."""
    if isinstance(topic_of, str):
        assert record.topic == topic_of + event["topic"]
    else:
        assert record.topic == topic_of[event["event_type"]]
    assert record.key == (event["aggregate_id"] or event["event_id"]).encode()
    assert record.value is not None
    assert_same_json(json.loads(record.value), {k: v for k, v in event.items() if k != "_id"})
    headers = {name: (value or b"").decode() for name, value in record.headers.items()}
    assert headers["replay-id"] == replay_id
    assert headers["replay-delivery-id"] == f"{replay_id}:{event['event_id']}"
    assert dt.datetime.fromisoformat(headers["replay-original-time"]) == event["timestamp"]


def assert_same_json(found: Any, stored: Any, path: str = "") -> None:
    """Compare a parsed JSON value with the stored BSON value."""
    match stored:
        case dict():
            assert isinstance(found, dict), path
            assert found.keys() == stored.keys(), path
            for name, value in stored.items():
                assert_same_json(found[name], value, f"{path}.{name}")
        case list():
            assert isinstance(found, list), path
            assert len(found) == len(stored), path
            for number, value in enumerate(stored):
                assert_same_json(found[number], value, f"{path}.{number}")
        case dt.datetime():
            assert isinstance(found, str), path
            assert found.endswith("Z"), path
            assert dt.datetime.fromisoformat(found) == stored, path
        case ObjectId() | Decimal128():
            assert found == str(stored), path
        case _:
            assert found == stored, path
            assert isinstance(found, bool) == isinstance(stored, bool), path


def event_id_of(record: Record) -> str:
    """Return the event's id from the body of the record."""
    assert record.value is not None
    return str(json.loads(record.value)["event_id"])


def _few(found: Mapping[str, int]) -> dict[str, int]:
    return dict(list(found.items())[:SHOWN])
