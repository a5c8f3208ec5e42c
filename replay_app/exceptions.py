"""The errors of this program.

::

    ReplayError
    ├── InvalidCommand        the sender must change the command
    ├── InvalidSettings       the operator must change the environment
    ├── CommandConflict       the session's state does not allow the command
    ├── EventError            one event cannot be replayed
    ├── ReplayFailed          the replay stops and keeps its checkpoint
    ├── Unavailable           retriable: the store or the broker is away
    ├── client.Refused        a worker answers no; its reason is the message
    └── cli.WrongUsage        the command line cannot be understood
"""

from __future__ import annotations


class ReplayError(Exception):
    """The base of all errors that this program raises on purpose."""

    retriable = False


class InvalidCommand(ReplayError):
    """The command cannot be understood; the message names the field and what is allowed."""


class InvalidSettings(ReplayError):
    """A setting is missing or wrong; the message names the variable and what is allowed."""


class CommandConflict(ReplayError):
    """The command is well formed, but the session's state does not allow it."""


class EventError(ReplayError):
    """One event cannot be mapped or encoded; the message says why, for that event alone."""


class ReplayFailed(ReplayError):
    """A replay cannot go on until somebody acts; its checkpoint stands."""


class Unavailable(ReplayError):
    """The store or the broker does not answer; the same step succeeds once it is back."""

    retriable = True
