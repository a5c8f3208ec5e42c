"""The states of a replay, and the commands that change a replay in each of them.

::

    pending -> planning -> [waiting] -> running -> completed | completed_with_errors | failed
    running -> pausing -> paused -> running;  any but terminal -> [cancelling] -> cancelled

`replay_app.transitions` has the rules that lead from state to state.
"""

from __future__ import annotations

from typing import Literal

from replay_app.commands import Verb

State = Literal[
    "pending",
    "planning",
    "waiting",
    "running",
    "pausing",
    "paused",
    "cancelling",
    "cancelled",
    "completed",
    "completed_with_errors",
    "failed",
]
COMPLETED: frozenset[State] = frozenset({"completed", "completed_with_errors"})
TERMINAL: frozenset[State] = COMPLETED | {"cancelled"}
SETTLED: frozenset[State] = TERMINAL | {"failed", "paused"}
"""States in which no worker has anything to do."""
VERBS_OF_STATE: dict[State, tuple[Verb, ...]] = {
    "pending": ("pause", "cancel", "release", "set-rate"),
    "planning": ("pause", "cancel", "release", "set-rate"),
    "waiting": ("pause", "cancel", "release", "set-rate"),
    "running": ("pause", "cancel", "set-rate"),
    "pausing": ("resume", "cancel", "set-rate"),
    "paused": ("resume", "step", "cancel", "set-rate"),
    "cancelling": (),
    "cancelled": (),
    "completed": (),
    "completed_with_errors": (),
    "failed": ("cancel", "retry", "set-rate"),
}
"""The commands that change a replay in each state. ``release`` only while it waits for others,
``step`` only where it `can_step`."""
VERBS_AT_THE_END: tuple[Verb, ...] = ("set-rate",)
"""The commands that change a running replay whose last event is published."""
