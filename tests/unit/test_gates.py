"""The gate: for which replays a replay waits, what blocks it, and when it stops waiting."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import pytest

from replay_app.commands import Parent, Start
from replay_app.exceptions import CommandConflict, ReplayFailed
from replay_app.gates import (
    AT_ONCE_SECONDS,
    MAX_NAMED,
    SOON_SECONDS,
    UNKNOWN_SECONDS,
    gate_reason,
    next_look,
    require_possible,
)
from replay_app.sessions import Consumption, Session

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
CONSUMED = Parent(replay="a", consumed=True)
READ = Consumption(state="active", lag=0, consumed_at=NOON)


def session(
    replay_id: str,
    state: Any = "waiting",
    after: tuple[str | Parent, ...] = (),
    consumers: tuple[str, ...] = (),
    **members: Any,
) -> Session:
    start = Start(replay_id=replay_id, after=after, consumers=consumers)
    times = {"created_at": NOON, "updated_at": NOON, "progressed_at": NOON, "heard_at": NOON}
    return Session(replay_id=replay_id, state=state, start=start, **times, **members)


def known(**states: str) -> dict[str, Session]:
    return {name: session(name, state) for name, state in states.items()}


@pytest.mark.parametrize("state", ["completed", "completed_with_errors"])
def test_the_gate_is_open_once_the_other_replay_has_completed(state: str) -> None:
    assert gate_reason(session("r", after=("a",)), known(a=state), 0.0) is None


def test_the_gate_names_every_replay_for_which_it_waits() -> None:
    waiting = session("r", after=("a", "b", "c", "d"))
    reason = gate_reason(waiting, known(a="running", b="completed", c="paused"), 0.0)
    assert reason == "waiting for replay 'a' (running), 'c' (paused), 'd' (unknown)"


@pytest.mark.parametrize(
    ("state", "remedy"), [("failed", "retry that replay"), ("cancelled", "release this one")]
)
def test_a_replay_that_cannot_complete_by_itself_blocks_its_children_and_fails_none(
    state: str, remedy: str
) -> None:
    waiting = session("r", after=("a", "b"))
    reason = gate_reason(waiting, known(a=state, b="running"), UNKNOWN_SECONDS)
    assert reason is not None
    blocked, _, rest = reason.partition("; waiting")
    assert blocked.startswith(f"blocked by replay 'a' ({state}: ")
    assert remedy in blocked
    assert rest == " for replay 'b' (running)"
    # A retry of the parent frees the child.
    assert gate_reason(waiting, known(a="completed", b="completed"), 0.0) is None


def test_a_replay_that_stays_unknown_fails_the_replay_that_waits_for_it() -> None:
    waiting, others = session("r", after=("a", "b")), known(a="running")
    just_before = gate_reason(waiting, others, UNKNOWN_SECONDS - 0.1)
    assert just_before == "waiting for replay 'a' (running), 'b' (unknown)"
    with pytest.raises(ReplayFailed, match="'b', which this one waits for, is not known"):
        gate_reason(waiting, others, UNKNOWN_SECONDS)


@pytest.mark.parametrize(
    "others", [{}, known(a="failed"), known(a="cancelled"), known(a="running")]
)
def test_a_released_replay_waits_for_nobody(others: dict[str, Session]) -> None:
    released = session("r", after=("a", CONSUMED), released=True)
    assert gate_reason(released, others, UNKNOWN_SECONDS) is None


@pytest.mark.parametrize(
    ("state", "consumption", "reason"),
    [
        ("running", {"g": READ}, "waiting for replay 'a' (running)"),
        ("failed", {"g": READ, "h": READ}, "blocked by replay 'a' (failed: "),
        ("completed", {}, "(group 'g' is not seen yet, group 'h' is not seen yet)"),
        ("completed", {"g": READ, "h": Consumption()}, "(group 'h' is not seen yet)"),
        (
            "completed",
            {"g": READ, "h": Consumption(state="empty", lag=1234)},
            "waiting until the consumers have read replay 'a' (group 'h' is 1,234 records behind)",
        ),
        (
            "completed",
            {"g": READ, "h": Consumption(state="active")},
            "(group 'h' is an unknown number of records behind)",
        ),
        (
            "completed",
            {"g": READ, "h": Consumption(state="empty", lag=1234, reason="no right to see it")},
            "(group 'h': no right to see it)",
        ),
        ("completed", {"g": READ, "h": READ}, None),
        ("completed_with_errors", {"g": READ, "h": READ}, None),
    ],
)
def test_a_consumed_replay_has_completed_and_each_of_its_groups_has_read_it(
    state: str, consumption: dict[str, Consumption], reason: str | None
) -> None:
    parent = session("a", state, consumers=("g", "h"), consumption=consumption)
    found = gate_reason(session("r", after=(CONSUMED,)), {"a": parent}, 0.0)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found
    # Who asks for the end only does not ask for the groups.
    plain = gate_reason(session("r", after=("a",)), {"a": parent}, 0.0)
    assert (plain is None) is state.startswith("completed")


@pytest.mark.parametrize("state", ["running", "completed", "failed"])
def test_a_replay_without_consumers_cannot_be_consumed(state: str) -> None:
    child = session("r", after=(CONSUMED,))
    with pytest.raises(ReplayFailed, match="'a', which is to be consumed"):
        gate_reason(child, known(a=state), 0.0)
    with pytest.raises(CommandConflict, match="after: replay 'a' names no consumers"):
        require_possible(child.start, known(a=state))
    require_possible(child.start, {})
    require_possible(child.start, {"a": session("a", consumers=("g",))})


def test_a_start_that_would_close_a_circle_is_refused() -> None:
    others = {"b": session("b", after=("x", "c")), "c": session("c", after=(Parent(replay="a"),))}
    new = Start(replay_id="a", after=("b",))
    with pytest.raises(CommandConflict, match="for each other for ever: a -> b -> c -> a;"):
        require_possible(new, others)
    for change in ({"released": True}, {"state": "cancelled"}, {"started_at": NOON}):
        require_possible(new, others | {"c": others["c"].model_copy(update=change)})
    require_possible(new, {"b": others["b"]})
    names = [f"p{number}" for number in range(100)]
    long = {one: session(one, after=(after,)) for one, after in itertools.pairwise(names)}
    with pytest.raises(CommandConflict, match=r"p99 -> p0 -> .* -> 91 more -> .* -> p99;"):
        require_possible(Start(replay_id="p99", after=("p0",)), long)
    # Replays that wait for each other already are no endless search.
    require_possible(new, {"b": session("b", after=("c",)), "c": session("c", after=("b",))})


def test_a_reason_stays_short_however_many_replays_it_is_about() -> None:
    names = tuple(f"p{number}" for number in range(100))
    reason = gate_reason(session("r", after=names), {}, 0.0)
    assert reason is not None
    assert reason.endswith(f"'p{MAX_NAMED - 1}' (unknown) and {100 - MAX_NAMED} more")


@pytest.mark.parametrize(
    ("others", "seconds"),
    [
        (known(a="running", b="failed"), 60.0),
        (known(a="waiting", b="waiting"), 60.0),
        (known(a="running"), SOON_SECONDS),  # b is unknown: only time tells
        (known(a="running", b="completed"), SOON_SECONDS),
    ],
)
def test_a_gate_that_others_wake_looks_seldom(others: dict[str, Session], seconds: float) -> None:
    waiting = session("r", after=("a", "b"))
    said = gate_reason(waiting, others, 0.0)
    assert next_look(waiting, others, said, 30.0) == seconds
    # What fails behind an open gate, such as the broker, is tried again, but not at once.
    assert next_look(waiting, known(a="completed", b="completed"), "no answer", 30.0) == 5.0
    # Before the watchdog takes the silence for a lost token.
    assert next_look(waiting, others, said, 3.0) <= 6.0


@pytest.mark.parametrize(
    "since",
    [
        known(a="completed"),
        known(a="failed"),
        {"a": session("a", "completed", consumers=("g",), consumption={"g": READ})},
        {},
    ],
)
def test_a_change_that_came_during_a_look_is_seen_at_once(since: dict[str, Session]) -> None:
    parent = session("a", "running", consumers=("g",))
    waiting = session("r", after=(CONSUMED,))
    said = gate_reason(waiting, {"a": parent}, 0.0)
    assert next_look(waiting, since, said, 30.0) == AT_ONCE_SECONDS
    released = waiting.model_copy(update={"released": True})
    assert next_look(released, {"a": parent}, said, 30.0) == AT_ONCE_SECONDS
