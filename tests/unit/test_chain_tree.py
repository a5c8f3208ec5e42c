"""A chain as a tree: order, blocked replays, the end, and the lines."""

from __future__ import annotations

from typing import Any

import pytest

from replay_app.chain_tree import (
    blocked,
    has_succeeded,
    is_over,
    parents_first,
    summary,
    tree_lines,
)
from replay_app.consumption import FINAL


def session(short: str, state: str = "completed", *after: Any, **members: Any) -> dict[str, Any]:
    parents = [{**one, "replay": f"c.{one['replay']}"} if isinstance(one, dict) else f"c.{one}"
               for one in after]  # fmt: skip
    started = None if state in {"pending", "planning", "waiting"} else "2026-01-01T00:00:00Z"
    return {
        "replay_id": f"c.{short}",
        "state": state,
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": started,
        "start": {"after": parents, "consumers": members.pop("consumers", [])},
        "counters": {"read": 5},
        "matched": 10,
        "percent": 50.0,
        "plan": {"matched": 10},
        "eta_seconds": None,
        "stalled": False,
        "reason": None,
        "error": None,
        **members,
    }


def read(**groups: int | None) -> dict[str, Any]:
    """Return the consumption of groups with a lag; a lag of 0 is the end."""
    at = "2026-01-02T00:00:00Z"
    return {
        group.replace("_", "-"): {
            "state": "unseen" if lag is None else "active",
            "lag": lag,
            "consumed_at": at if lag == 0 else None,
        }
        for group, lag in groups.items()
    }


DIAMOND = [
    session("d", "waiting", "b", "c", reason="waiting for replay 'c.b' (running)"),
    session("c", "completed", "a"),
    session("b", "running", {"replay": "a", "consumed": True}, eta_seconds=65.0,
            consumers=["b-view"], consumption=read(b_view=1234)),
    session("a", "completed", consumers=["a-view"], consumption=read(a_view=0)),
]  # fmt: skip


def test_parents_stand_before_their_children() -> None:
    order = [one["replay_id"].removeprefix("c.") for one in parents_first(DIAMOND)]
    assert order[0] == "a"
    assert set(order[1:3]) == {"b", "c"}
    assert order[3] == "d"


def test_the_tree_has_one_line_for_each_replay() -> None:
    head, *lines = tree_lines("c", DIAMOND)
    assert head == "c: 2 of 4 replays completed; 1 running, 1 waiting"
    shown = {line.strip("│ ├└─").split("  ")[0]: line for line in lines}
    assert set(shown) == {"a", "b", "c", "d"}
    assert "completed" in shown["a"]
    assert "a-view has read all" in shown["a"]
    for told in ("running", "5 of 10 events (50 %)", "b-view 1,234 behind", "1 min 5 s left"):
        assert told in shown["b"]
    assert "waiting for replay 'c.b' (running)" in shown["d"]
    assert "also after b" in shown["d"] or "also after c" in shown["d"]
    assert lines[0].startswith("a ")
    assert lines[1].startswith(("├─ b", "├─ c"))
    assert any(line.startswith(("└─ b", "└─ c")) for line in lines)
    assert any(line.startswith(("│  └─ d", "   └─ d")) for line in lines)


def test_a_deep_chain_and_one_that_waits_for_itself_are_shown_too() -> None:
    deep = [session(f"r{n}", "waiting", *([f"r{n - 1}"] if n else [])) for n in range(1000)]
    assert len(tree_lines("c", deep)) == 1001
    # Started one by one, without the checks of a chain.
    circle = [session("a", "waiting", "b"), session("b", "waiting", "a")]
    assert tree_lines("c", circle)[0] == "c: 0 of 2 replays completed; 2 waiting"
    assert len(tree_lines("c", circle)) == 3
    # The parent is of another chain, or is forgotten.
    assert "also after c.x" in tree_lines("elsewhere", [session("a", "waiting", "x")])[1]


@pytest.mark.parametrize(
    ("sessions", "stuck"),
    [
        ([session("a", "failed"), session("b", "waiting", "a")], {"c.b"}),
        ([session("a", "cancelled"), session("b", "pending", "a")], {"c.b"}),
        ([session("a", "running"), session("b", "waiting", "a")], set()),
        ([session("a", "failed"), session("b", "waiting", "a", released=True)], set()),
        ([session("a", "failed"), session("b", "running", "a")], set()),
        (
            [session("a", "failed"), session("b", "waiting", "a"), session("d", "waiting", "b")],
            {"c.b", "c.d"},
        ),
        ([session("b", "waiting", "unknown")], set()),
    ],
)
def test_behind_a_failed_replay_all_are_blocked_that_wait(
    sessions: list[dict[str, Any]], stuck: set[str]
) -> None:
    assert blocked(sessions) == stuck
    shown = "\n".join(tree_lines("c", sessions))
    assert shown.count("(blocked)") == len(stuck)


@pytest.mark.parametrize(
    ("sessions", "over", "succeeded"),
    [
        (DIAMOND, False, False),
        ([session("a"), session("b", "completed_with_errors")], True, True),
        ([session("a", "failed"), session("b", "waiting", "a")], True, False),
        ([session("a", "cancelled")], True, False),
        ([session("a", "paused")], False, False),
        ([session("a"), session("b", "waiting", "a")], False, False),
        ([session("a", consumers=["g"])], False, False),
        ([session("a", consumers=["g"], consumption=read(g=None))], False, False),
        ([session("a", consumers=["g"], consumption=read(g=3))], False, False),
        ([session("a", consumers=["g"], consumption=read(g=0))], True, True),
        ([session("a", "failed", consumers=["g"])], True, False),
    ],
)
def test_a_chain_is_over_when_nothing_moves_and_every_group_has_read(
    sessions: list[dict[str, Any]], *, over: bool, succeeded: bool
) -> None:
    assert is_over(sessions) is over
    assert has_succeeded(sessions) is succeeded


@pytest.mark.parametrize("reason", sorted(FINAL))
def test_a_chain_whose_consumers_nobody_looks_at_any_more_is_over(reason: str) -> None:
    unread = {"lag": 5, "consumed_at": None, "reason": reason}
    parent = session("a", consumers=["g"], consumption={"g": unread})
    child = session("b", "waiting", {"replay": "a", "consumed": True})
    plain = session("b", "waiting", "a")
    assert blocked([parent, child]) == {"c.b"}
    assert is_over([parent, child])
    assert not has_succeeded([parent])
    assert not is_over([parent, plain])
    away = session("a", consumers=["g"], consumption={"g": unread | {"reason": "Kafka is away"}})
    assert not is_over([away])
    late = unread | {"consumed_at": "2026-01-02T00:00:00Z"}
    assert has_succeeded([session("a", consumers=["g"], consumption={"g": late})])


def test_the_summary_counts_the_states() -> None:
    states = ("completed", "completed_with_errors", "failed", "waiting", "waiting")
    sessions = [session(str(number), state) for number, state in enumerate(states)]
    assert summary("c", sessions) == "c: 2 of 5 replays completed; 1 failed, 2 waiting"
