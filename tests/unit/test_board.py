"""The board's list of changes, from which the feeds of all clients are made."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from replay_app.board import MAX_FORGOTTEN, Board
from replay_app.commands import Start
from replay_app.sessions import Session
from replay_app.settings import Settings

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def board() -> Board:
    return Board(Settings())


def publish(board: Board, replay_id: str, *, forgotten: bool = False) -> None:
    times = dict.fromkeys(("created_at", "updated_at", "progressed_at", "heard_at"), T0)
    session = Session(replay_id=replay_id, start=Start(replay_id=replay_id), **times)
    value = None if forgotten else session.encode()
    parts: dict[str, Any] = dict.fromkeys(
        ("offset", "timestamp", "timestamp_type", "checksum", "serialized_key_size"), 0
    )
    record = ConsumerRecord(
        **parts,
        topic="replay.status",
        partition=0,
        key=replay_id.encode(),
        value=value,
        serialized_value_size=0,
        headers=(),
    )
    board._add(record)


def test_a_client_hears_of_each_change_once_and_of_the_newest_only(board: Board) -> None:
    for name in ("a", "b", "a"):
        publish(board, name)
    assert board.changed_since(0) == ["b", "a"]
    seen = board.changes_so_far
    assert board.changed_since(seen) == []
    publish(board, "b")
    publish(board, "a", forgotten=True)
    assert board.changed_since(seen) == ["b", "a"]
    assert "a" not in board.sessions


def test_many_forgotten_replays_are_told_or_the_client_must_begin_again(board: Board) -> None:
    publish(board, "kept")
    seen: list[int] = []
    told: set[str] = set()
    for number in range(3 * MAX_FORGOTTEN):
        publish(board, f"r-{number}")
        seen.append(board.changes_so_far)
        publish(board, f"r-{number}", forgotten=True)
        changed = board.changed_since(seen[-1])
        assert changed == [f"r-{number}"]
        told |= set(changed)
    assert len(told) == 3 * MAX_FORGOTTEN
    assert board.changed_since(seen[0]) is None
    late = seen[-MAX_FORGOTTEN // 4]
    assert len(board.changed_since(late) or []) == MAX_FORGOTTEN // 4
    assert len(board._last_changes) <= MAX_FORGOTTEN + 1
    assert board._last_changes["kept"] == 1
