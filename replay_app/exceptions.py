"""The errors of this program.

::

    ReplayError
    ├── InvalidCommand        the sender must change the command
    │   └── chains.InvalidChain       the sender must change the chain
    ├── InvalidSettings       the operator must change the environment
    ├── CommandConflict       the session's state does not allow the command
    ├── EventError            one event cannot be replayed
    ├── ReplayFailed          the replay stops and keeps its checkpoints
    │   └── store.NoCollection        the store has no such collection
    ├── Unavailable           the store, the broker or the worker does not answer; try again
    │   ├── client.NotReady           a worker answers that it is not ready
    │   └── store.StoreUnavailable    the event store does not answer
    │       └── store.TimeLimitExceeded   the store needs too much time for a query
    ├── client.Refused        a worker refuses; the message is the worker's reason
    └── WrongUsage            the arguments of the command line are wrong
        └── chain_files.WrongChainFile    the file is no chain
"""

from __future__ import annotations


class ReplayError(Exception):
    """The base of all errors that this program raises on purpose."""


class InvalidCommand(ReplayError):
    """The command cannot be understood; the message names the field and what is allowed."""


class InvalidSettings(ReplayError):
    """A setting is missing or wrong; the message names the variable and what is allowed."""


class WrongUsage(ReplayError):
    """The arguments of the command line are wrong; the message names the argument."""


class CommandConflict(ReplayError):
    """The command is well formed, but the session's state does not allow it."""


class EventError(ReplayError):
    """One event cannot be mapped or encoded; the message says why."""


class ReplayFailed(ReplayError):
    """A replay cannot continue until a person acts; the replay keeps its checkpoints."""


class Unavailable(ReplayError):
    """The store, the broker or the worker does not answer; the same step may succeed later."""
