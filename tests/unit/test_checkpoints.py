"""Tokens, checkpoints, and the redelivery rule as a table."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from replay_app.checkpoints import (
    Checkpoint,
    Origin,
    Token,
    Verdict,
    decode_checkpoint,
    decode_token,
    judge,
    lost_progress,
)
from replay_app.reports import Counters, Report, ShardProgress, decode_report
from replay_app.topics import NOOP

HERE, ELSEWHERE = Origin(3, 40), Origin(3, 41)


def token(epoch: int = 5, number: int = 7, **fields: Any) -> Token:
    return Token(replay_id="r1", shard=2, epoch=epoch, slice=number, kind="emit", **fields)


def checkpoint(state: Any = "live", **fields: Any) -> Checkpoint:
    progress = ShardProgress(state=state, counters=Counters(read=3, published=3))
    report = Report(replay_id="r1", kind="shard", epoch=5, slice=7, shard=2, progress=progress)
    return Checkpoint(**{"token": token(), "src": HERE, "report": report} | fields)


@pytest.mark.parametrize(
    ("epoch", "number", "origin", "verdict"),
    [
        # an old chain, at any slice
        (4, 1, HERE, "drop"),
        (4, 7, HERE, "drop"),
        (4, 8, ELSEWHERE, "drop"),
        # a new chain takes over, from its first slice
        (6, 1, HERE, "run"),
        (6, 7, HERE, "run"),
        (6, 1, ELSEWHERE, "run"),
        # the same chain: the next slice, the same record again, a doubled chain, an older slice
        (5, 8, ELSEWHERE, "run"),
        (5, 9, ELSEWHERE, "run"),
        (5, 7, HERE, "resend"),
        (5, 7, ELSEWHERE, "drop"),
        (5, 7, Origin(4, 40), "drop"),
        (5, 6, HERE, "drop"),
        (5, 6, ELSEWHERE, "drop"),
    ],
)
def test_the_redelivery_rule(epoch: int, number: int, origin: Origin, verdict: str) -> None:
    assert judge(token(epoch, number), origin, checkpoint()) is Verdict(verdict)


def test_a_shard_without_a_checkpoint_runs_any_token() -> None:
    assert judge(token(), HERE, None) is Verdict.RUN


def test_a_requeued_copy_is_the_same_token() -> None:
    copy = decode_token(token(origin=HERE, requeues=3).encode())
    assert copy is not None
    assert copy.origin is not None
    assert judge(copy, copy.origin, checkpoint()) is Verdict.RESEND


@pytest.mark.parametrize(
    "record",
    [
        token(),
        token(origin=HERE, requeues=2),
        Token(replay_id="r1", shard="plan", epoch=1, kind="plan"),
        Token(replay_id="r1", shard="finish", epoch=1, kind="finish", outcome="cancelled"),
        Token(replay_id="größer", shard=255, epoch=1, slice=2**31, kind="stop"),
    ],
)
def test_a_token_survives_its_record(record: Token) -> None:
    assert decode_token(record.encode()) == record


def test_a_checkpoint_survives_its_record() -> None:
    offsets = {"orders": {0: (5, 9), 11: (0, 0)}}
    progress = ShardProgress(offsets=offsets, by_type={"order_placed": 3}, failed=1)
    report = Report(replay_id="r1", kind="shard", epoch=5, slice=7, shard=2, progress=progress)
    record = checkpoint(report=report, cursor='["a", {"$oid": "..."}]', due_at=1234.5)
    decoded = decode_checkpoint(record.encode())
    assert decoded == record
    assert decoded is not None
    assert decoded.report.progress is not None
    assert decoded.report.progress.offsets == offsets


def test_the_key_of_a_token_is_that_of_its_checkpoint() -> None:
    assert token().key == "r1/2"
    assert Token(replay_id="r1", shard="finish").key == "r1/finish"


def test_the_continuation_is_the_next_slice_with_its_own_origin() -> None:
    done = checkpoint(token=token(origin=HERE, requeues=4))
    assert done.continuation == token(5, 8)


@pytest.mark.parametrize("state", ["stopped", "done", "failed"])
def test_a_shard_that_does_not_go_on_has_no_continuation(state: str) -> None:
    assert checkpoint(state).continuation is None


@pytest.mark.parametrize(("state", "goes_on"), [("live", True), ("done", False), ("failed", False)])
def test_a_step_goes_on_only_while_it_is_live(state: Any, goes_on: bool) -> None:
    report = Report(replay_id="r1", kind="plan", shard="plan", state=state)
    assert (checkpoint(report=report).continuation is not None) is goes_on


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"kind": "unknown"}',
        b'{"kind": "emit", "surprise": 1}',
        b'{"kind": "emit", "shard": -1}',
        b'{"kind": "emit", "shard": "other"}',
        b'{"kind": "emit", "epoch": "many"}',
    ],
)
def test_a_record_that_is_not_a_token_gives_none(value: bytes | None) -> None:
    assert decode_token(value) is None


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b'{"kind": "shard", "shard": -1}', b'{"kind": "unknown"}']
)
def test_a_record_that_is_not_a_report_gives_none(value: bytes | None) -> None:
    assert decode_report(value) is None


def test_a_command_is_not_a_report() -> None:
    assert decode_report(b'{"command": "pause", "replay_id": "r1"}') is None


def test_the_priming_record_is_a_noop_to_every_reader() -> None:
    assert decode_token(NOOP) == Token()
    assert decode_report(NOOP) == Report()
    assert (Token().kind, Report().kind) == ("noop", "noop")


def test_a_tombstone_is_no_checkpoint_and_an_unreadable_one_is_an_error() -> None:
    assert decode_checkpoint(None) is None
    for value in (b"", b"{", b"{}", b'{"token": {}}'):
        with pytest.raises(ValidationError):
            decode_checkpoint(value)


def test_counters_add_up() -> None:
    one = Counters(read=10, published=7, skipped=2, dead_lettered=1)
    assert one + one == Counters(read=20, published=14, skipped=4, dead_lettered=2)


@pytest.mark.parametrize(
    ("heard", "known", "is_lost"),
    [
        (0, None, False),  # nothing was read yet
        (5, None, True),  # the topic was deleted
        (5, 4, True),  # the topic has lost records
        (5, 5, False),
        (5, 9, False),  # the session has not heard of the last slice
        (0, 9, False),
    ],
)
def test_a_session_that_has_heard_more_than_the_checkpoint_knows_has_lost_checkpoints(
    heard: int, known: int | None, *, is_lost: bool
) -> None:
    def progress(read: int) -> ShardProgress:
        return ShardProgress(counters=Counters(read=read, published=read))

    newest = None
    if known is not None:
        newest = Checkpoint.of_shard(token(), HERE, None, progress(known))
    why = lost_progress(newest, progress(heard))
    assert (why is not None) == is_lost
    if why is not None:
        told = f"5 events of the shard were read, and the newest checkpoint knows of {known or 0}"
        assert told in why
        assert "start a new one" in why
