"""A chain for people: a tree of lines, each with a replay's state, progress, time left and lag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from replay_app.accounts import amount
from replay_app.answers import SessionJson
from replay_app.client import ENDED
from replay_app.consumption import FINAL
from replay_app.gates import REMEDIES
from replay_app.states import COMPLETED
from replay_app.terminal import duration


def parents_first(sessions: Sequence[SessionJson]) -> list[SessionJson]:
    """Return the sessions in an order in which each comes after those that it waits for."""
    known = {session["replay_id"]: session for session in sorted(sessions, key=_age)}
    graph = {name: [one for one in parents(known[name]) if one in known] for name in known}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError:  # somebody has started replays one by one that wait for each other
        order = list(known)
    return [known[name] for name in order]


def _age(session: SessionJson) -> tuple[str, str]:
    return session["created_at"], session["replay_id"]


def parents(session: SessionJson) -> dict[str, bool]:
    """Return the ids of the replays that a replay waits for, and whether until consumed, too."""
    return dict(
        (one, False) if isinstance(one, str) else (one["replay"], bool(one.get("consumed")))
        for one in session["start"]["after"]
    )


def blocked(sessions: Sequence[SessionJson]) -> set[str]:
    """Return the ids of the replays that wait, at the end of all, for what does not come.

    That is a failed or cancelled replay, or consumers that nobody looks at any more.
    """
    known = {session["replay_id"]: session for session in sessions}
    found: set[str] = set()
    for session in parents_first(sessions):
        waits = session["state"] not in ENDED and not session["started_at"]
        if waits and not session.get("released"):
            for parent, consumed in parents(session).items():
                other = known.get(parent)
                is_unread = consumed and other is not None and is_never_consumed(other)
                if is_unread or parent in found or (other and other["state"] in REMEDIES):
                    found.add(session["replay_id"])
    return found


def has_consumed(session: SessionJson) -> bool:
    """Return whether each consumer group of a completed replay has read all of it."""
    known = session.get("consumption", {})
    return all(
        (known.get(group) or {}).get("consumed_at")
        for group in session["start"].get("consumers", ())
    )


def is_never_consumed(session: SessionJson) -> bool:
    """Return whether nobody looks any more at a group that has not read all of a replay."""
    known = session.get("consumption", {})
    return session["state"] in COMPLETED and any(
        (one := known.get(group) or {}).get("reason") in FINAL and not one.get("consumed_at")
        for group in session["start"].get("consumers", ())
    )


def is_over(sessions: Sequence[SessionJson]) -> bool:
    """Return whether nothing of the chain moves any more unless a person acts."""
    stuck = blocked(sessions)
    return all(
        session["replay_id"] in stuck
        or (
            session["state"] in ENDED
            and (
                session["state"] not in COMPLETED
                or has_consumed(session)
                or is_never_consumed(session)
            )
        )
        for session in sessions
    )


def has_succeeded(sessions: Sequence[SessionJson]) -> bool:
    """Return whether every replay has completed and is consumed."""
    return all(session["state"] in COMPLETED and has_consumed(session) for session in sessions)


def summary(name: str, sessions: Sequence[SessionJson]) -> str:
    """Return one line about a chain, such as "shop: 1 of 3 replays completed; 2 waiting"."""
    states = Counter(session["state"] for session in sessions)
    done = sum(states.pop(state, 0) for state in COMPLETED)
    rest = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"{name}: {done} of {len(sessions)} replays completed" + (f"; {rest}" if rest else "")


def consumers_text(session: SessionJson) -> str:
    """Return what is known of the consumer groups, such as "orders-view 1,234 behind"."""
    known = session.get("consumption", {})
    return ", ".join(
        f"{group} {_group_text(known.get(group) or {})}"
        for group in session["start"].get("consumers", ())
    )


def _group_text(consumption: Mapping[str, object]) -> str:
    if consumption.get("consumed_at"):
        return "has read all"
    if consumption.get("lag") is not None:
        return f"{consumption['lag']:,} behind"
    return "not seen yet" if consumption.get("state") == "unseen" else "unknown"


def tree_lines(name: str, sessions: Sequence[SessionJson]) -> list[str]:
    """Return a chain as lines: a summary, then each replay below the last one it waits for.

    A replay stands in the tree once. The other replays that it waits for stand in its line.
    """
    ordered = parents_first(sessions)
    places = {session["replay_id"]: number for number, session in enumerate(ordered)}
    children: dict[str | None, list[SessionJson]] = {}
    for session in ordered:
        inside = [one for one in parents(session) if one in places]
        children.setdefault(max(inside, key=places.__getitem__, default=None), []).append(session)
    rows = list(_rows(name, children, sessions))
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    lines = [summary(name, sessions)]
    for *cells, note in rows:
        padded = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{padded}  {note}".rstrip())
    return lines


def _rows(
    name: str, children: Mapping[str | None, list[SessionJson]], sessions: Sequence[SessionJson]
) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line: the branch with the short name, and what stands beside it."""
    stuck = blocked(sessions)
    # Without recursion: a chain may be a thousand replays deep.
    stack = [(session, "", "") for session in reversed(children.get(None, ()))]
    drawn: set[str] = set()
    while stack:
        session, branch, below = stack.pop()
        drawn.add(session["replay_id"])
        yield (
            branch + session["replay_id"].removeprefix(f"{name}."),
            _state_text(session, stuck),
            amount(session) if session["plan"] else "",
            consumers_text(session),
            "; ".join(_notes(name, session, children)),
        )
        own = children.get(session["replay_id"], ())
        for number, child in reversed(list(enumerate(own))):
            is_last = number == len(own) - 1
            mark, line = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            stack.append((child, below + mark, below + line))
    for session in sessions:  # of replays that wait for each other
        if session["replay_id"] not in drawn:
            yield session["replay_id"], _state_text(session, stuck), "", "", "waits for itself"


def _state_text(session: SessionJson, stuck: set[str]) -> str:
    words = session["state"] + (" (stalled)" if session["stalled"] else "")
    return f"{words} (blocked)" if session["replay_id"] in stuck else words


def _notes(
    name: str, session: SessionJson, children: Mapping[str | None, list[SessionJson]]
) -> Iterator[str]:
    if session["eta_seconds"] is not None:
        yield f"{duration(session['eta_seconds'])} left"
    others = [
        parent.removeprefix(f"{name}.")
        for parent in parents(session)
        if session not in children.get(parent, ())
    ]
    if others:
        yield f"also after {', '.join(others)}"
    if session["error"] or session["reason"]:
        yield session["error"] or session["reason"]
