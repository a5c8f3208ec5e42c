"""The gate: for which replays a replay waits, and when it stops waiting."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from replay_app.board import Board
from replay_app.commands import Start
from replay_app.exceptions import ReplayFailed
from replay_app.sessions import Session
from replay_app.settings import load_settings
from replay_app.steps import UNKNOWN_SECONDS, gate_reason

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def session(replay_id: str, state: Any = "waiting", after: tuple[str, ...] = ()) -> Session:
    start = Start(replay_id=replay_id, after=after)
    times = {"created_at": NOON, "updated_at": NOON, "progressed_at": NOON, "heard_at": NOON}
    return Session(replay_id=replay_id, state=state, start=start, **times)


def board(**states: str) -> Board:
    board = Board(load_settings())
    board.sessions = {name: session(name, state) for name, state in states.items()}
    return board


@pytest.mark.parametrize("state", ["completed", "completed_with_errors"])
def test_the_gate_is_open_once_the_other_replay_has_completed(state: str) -> None:
    assert gate_reason(session("r", after=("a",)), board(a=state), 0.0) is None


def test_the_gate_names_every_replay_for_which_it_waits() -> None:
    waiting = session("r", after=("a", "b", "c", "d"))
    reason = gate_reason(waiting, board(a="running", b="completed", c="failed"), 0.0)
    assert reason == "waiting for replay 'a' (running), 'c' (failed), 'd' (unknown)"


def test_a_cancelled_replay_fails_the_replay_that_waits_for_it() -> None:
    with pytest.raises(ReplayFailed, match="'a', which this one waits for, was cancelled"):
        gate_reason(session("r", after=("a",)), board(a="cancelled"), 0.0)


def test_a_replay_that_stays_unknown_fails_the_replay_that_waits_for_it() -> None:
    waiting, known = session("r", after=("a", "b")), board(a="running")
    just_before = gate_reason(waiting, known, UNKNOWN_SECONDS - 0.1)
    assert just_before == "waiting for replay 'a' (running), 'b' (unknown)"
    with pytest.raises(ReplayFailed, match="'b', which this one waits for, is not known"):
        gate_reason(waiting, known, UNKNOWN_SECONDS)
