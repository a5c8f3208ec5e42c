"""The history of a replay: each command that changed the replay, and each change of its state.

A session keeps a bounded number of changes. Source: docs/protocol.md, "Session".
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from replay_app.commands import Rate
from replay_app.records import Moment, Record
from replay_app.states import State

MAX_CHANGES = 100
"""Changes that a session keeps."""
KEPT_FIRST = 10
"""The oldest changes, which stay when the list is full."""
MAX_DETAIL = 300
"""Characters of a detail."""


class Change(Record):
    """One change of a replay."""

    model_config = ConfigDict(extra="ignore")  # a newer version may have written more members
    leaves_out_defaults = False  # clients read changes too

    at: Moment
    command: str | None
    """The command that made the change. None: a worker, or time, has made it."""
    by: Annotated[str, Field(max_length=1000)] | None
    """Who gave the command."""
    state: State
    """The state after the change."""
    rate: Rate | None
    """Events per second after the change. None: no limit."""
    detail: Annotated[str, Field(max_length=MAX_DETAIL)] | None
    """The error or the reason, or what the command asked for."""


def add_change(changes: tuple[Change, ...], change: Change) -> tuple[Change, ...]:
    """Return the changes with one more; one of the middle goes when there are too many."""
    if len(changes) < MAX_CHANGES:
        return (*changes, change)
    return (*changes[:KEPT_FIRST], *changes[KEPT_FIRST + 1 :], change)
