"""The history of a replay: each command that changed the replay, and each change of its state.

A session keeps a bounded number of changes, each as its JSON text: each worker holds thousands of
sessions in memory, and hardly anybody looks at their histories.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
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
MAX_BY = 200
"""Characters of a name."""
ChangeText = Annotated[str, Field(max_length=8 * (MAX_DETAIL + MAX_BY))]
"""A `Change` as JSON."""


class Change(Record):
    """One change of a replay."""

    model_config = ConfigDict(extra="ignore")  # a newer version may have written more members
    leaves_out_defaults = False  # clients read changes too

    at: Moment
    command: str | None
    """The command that made the change. None: a worker, or time, has made it."""
    by: Annotated[str, Field(max_length=MAX_BY)] | None
    """Who gave the command."""
    state: State
    """The state after the change."""
    rate: Rate | None
    """Events per second after the change. None: no limit."""
    detail: Annotated[str, Field(max_length=MAX_DETAIL)] | None
    """The error or the reason, or what the command asked for."""


def add_change(texts: tuple[str, ...], change: Change) -> tuple[str, ...]:
    """Return the changes with one more; one of the middle goes when there are too many."""
    text = change.encode().decode()
    if len(texts) < MAX_CHANGES:
        return (*texts, text)
    return (*texts[:KEPT_FIRST], *texts[KEPT_FIRST + 1 :], text)


def few_changes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first change and the last ones, for a session that is too large."""
    return texts if len(texts) <= KEPT_FIRST else (texts[0], *texts[1 - KEPT_FIRST :])


def changes_of(texts: Iterable[str]) -> tuple[Change, ...]:
    """Return the changes; what is no change, such as one of a newer version, is left out."""
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found.append(Change.model_validate_json(text))
    return tuple(found)
