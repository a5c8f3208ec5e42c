"""Every record of the internal topics, as a stranger may write it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from replay_app.board import Rejection
from replay_app.checkpoints import Checkpoint, Checkpoints, Origin, Token
from replay_app.commands import Start
from replay_app.records import MAX_LIST, MAX_NAMES, Record
from replay_app.reports import Counters, Failure, Plan, Report, ShardPlan, ShardProgress
from replay_app.sessions import Receipt, Session, Shard

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ORDER = ShardPlan(match={"a": 1}, sort=("timestamp", "_id"))
PLAN = Plan(
    end=T0,
    matched=5,
    by_type={"placed": 5},
    partitions={"orders": 3},
    shards=(ORDER,),
    topic_ids={"orders": "0a"},
    handover={"orders": {0: 5}, "lost": None},
    handover_time=T0,
    live_ids={"orders": "0a"},
)
PROGRESS = ShardProgress(
    state="failed",
    counters=Counters(read=5, published=3, skipped=1, dead_lettered=1),
    valid=4,
    failed=1,
    bytes=100,
    by_type={"placed": 4},
    by_topic={"orders": 4},
    offsets={"orders": {0: (1, 9)}},
    failures=(Failure(event_id="e1", reason="no type"),),
    last_time=T0,
    error="why",
    reason="waits",
)
TOKEN = Token(
    replay_id="r1", shard=1, epoch=2, slice=3, kind="emit", origin=Origin(0, 7), requeues=1
)
REPORT = Report(
    replay_id="r1",
    kind="shard",
    epoch=2,
    slice=3,
    shard=1,
    progress=PROGRESS,
    plan=PLAN,
    warnings=("odd",),
    visible_at=T0,
    behind=1,
)
RECORDS: tuple[Record, ...] = (
    TOKEN,
    REPORT,
    Checkpoint(token=TOKEN, src=Origin(0, 7), cursor="{}", due_at=1.5, report=REPORT),
    Rejection(replay_id="r1", rejected="why", command="pause", partition=0, offset=3, at=T0),
    Session(
        replay_id="r1",
        revision=3,
        start=Start(replay_id="r1", rate=5),
        rate=5,
        created_at=T0,
        updated_at=T0,
        started_at=T0,
        ended_at=T0,
        progressed_at=T0,
        heard_at=T0,
        plan=PLAN,
        shards=(Shard(epoch=2, slice=3, progress=PROGRESS, heard_at=T0),),
        offsets={"orders": {0: (1, 9)}},
        warnings=("odd",),
        receipt=Receipt(
            counters=PROGRESS.counters,
            by_type={"placed": 4},
            by_topic={"orders": 4},
            bytes=100,
            offsets={"orders": {0: (1, 9)}},
            failures=PROGRESS.failures,
            seconds=2.5,
            visible=True,
            visible_at=T0,
            behind=1,
            handover={"orders": {0: 5}, "lost": None},
            handover_time=T0,
        ),
        speed_marks=((T0, 1),),
        events_per_second=2.5,
    ),
)
HOSTILE: tuple[Any, ...] = (
    -1,
    2**60,
    10**400,
    float("inf"),
    float("nan"),
    5e-324,
    "2026-01-01T00:00:00",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59Z",
    "",
    "\0",
    "x" * 100_000,
    None,
    [],
    {},
    [[]] * (MAX_LIST + 1),
    [{}] * (MAX_LIST + 1),
    {str(number): {} for number in range(MAX_NAMES + 1)},
    {str(number): number for number in range(MAX_NAMES + 1)},
)


def _with_each_value_replaced(value: Any, by: Any) -> Iterator[Any]:
    """Yield copies of a JSON value, each with one value inside replaced.

    Long lists and objects stand only where lists and objects are: elsewhere an empty one tells the
    same.
    """
    if type(value) is type(by) or not isinstance(by, (list, dict)) or not by:
        yield by
    if isinstance(value, dict):
        for name, inner in value.items():
            for changed in _with_each_value_replaced(inner, by):
                yield {**value, name: changed}
    if isinstance(value, list):
        for number, inner in enumerate(value):
            for changed in _with_each_value_replaced(inner, by):
                yield [*value[:number], changed, *value[number + 1 :]]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_record_is_refused_or_can_be_written_again(record: Record, hostile: Any) -> None:
    whole = json.loads(record.model_dump_json())
    for changed in _with_each_value_replaced(whole, hostile):
        try:
            read = type(record).model_validate_json(json.dumps(changed))
        except ValueError:
            continue
        again = type(record).model_validate_json(read.encode())
        assert again.encode() == read.encode()
        _act_on(again)


def _act_on(record: Record) -> None:
    """Use what the agents and views use: nothing of a readable record may raise."""
    if isinstance(record, Session):
        record.model_dump_json()
        assert record.updated_at <= datetime.max.replace(tzinfo=UTC)
        assert isinstance(record.orders, tuple)
        assert isinstance(record.has_heard(REPORT), bool)
        assert isinstance(record.has_sent(TOKEN), bool)
    if isinstance(record, Token):
        assert hash((record, record.origin))
        assert "/" in record.key


@pytest.mark.parametrize(
    ("record", "update"),
    [
        (TOKEN, {"epoch": -1}),
        (RECORDS[2], {"due_at": float("inf")}),
        (RECORDS[2], {"due_at": float("nan")}),
        (REPORT, {"slice": 2**60}),
        (RECORDS[4], {"updated_at": datetime(2026, 1, 1)}),  # noqa: DTZ001 - the fault
        (RECORDS[4], {"warnings": ("odd",) * 10_000}),
    ],
)
def test_what_cannot_be_read_is_not_written(record: Record, update: dict[str, Any]) -> None:
    assert record.encode()
    with pytest.raises(ValueError, match=next(iter(update))):
        record.model_copy(update=update).encode()


class _Stored:
    """A record of ``replay.checkpoints`` as aiokafka gives it."""

    topic, partition = "replay.checkpoints", 2

    def __init__(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        self.offset, self.key, self.value = offset, key, value


def _checkpoints(*records: tuple[bytes | None, bytes | None]) -> Checkpoints:
    found = Checkpoints()
    for offset, (key, value) in enumerate(records):
        found.add(_Stored(offset, key, value))
    return found


GOOD = RECORDS[2].encode()


@pytest.mark.parametrize("newer", [GOOD, None])
def test_an_unreadable_checkpoint_that_is_superseded_does_no_harm(newer: bytes | None) -> None:
    found = _checkpoints((b"r1/1", b"{"), (b"r1/1", newer))
    assert found.unreadable == {}
    assert list(found.newest) == (["r1/1"] if newer else [])


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"{", "EOF while parsing"),
        (b"", "EOF while parsing"),
        (b"\xff", "expected value"),
        (GOOD.replace(b'"due_at":1.5', b'"due_at":null'), "due_at: Input should be a valid number"),
        (GOOD.replace(b'"due_at":1.5', b'"due_later":1'), "due_later: Extra inputs"),
        (GOOD.replace(b'"replay_id":"r1"', b'"replay_id":"r2"'), "the value belongs to 'r2/1'"),
    ],
)
def test_an_unreadable_newest_checkpoint_is_kept_with_the_reason(value: bytes, why: str) -> None:
    found = _checkpoints((b"r1/1", GOOD), (b"r1/1", value), (b"r1/plan", None))
    assert found.newest == {}
    (key, reason), = found.unreadable.items()  # fmt: skip
    assert key == "r1/1"
    assert "the checkpoint 'r1/1' (replay.checkpoints 2:1) cannot be read: " in reason
    assert why in reason


@pytest.mark.parametrize("key", [None, b"", b"r1", b"r1/", b"r1/x", b"/1", b"r/1/2", b"\xff/1"])
def test_a_key_that_is_no_token_key_is_no_checkpoint(key: bytes | None) -> None:
    with pytest.raises(ValueError, match="is not the key of a checkpoint"):
        _checkpoints((key, GOOD))
