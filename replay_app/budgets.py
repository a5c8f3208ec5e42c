"""Byte budgets: how much one transaction may hold, so that it ends well within its time limit.

A broker that is slow, or that holds a producer to a quota, needs long for a page. A transaction
that outlives its time limit is aborted, and the same page would meet the same end again. So the
budget follows the pace of the last transaction. The class reads no clock: the caller passes times.
"""

from __future__ import annotations

FIRST_BYTES = 4 << 20
"""The budget while the pace is unknown. At 100 kB/s a transaction of this size takes 42 s.
At a smaller pace the first transaction may fail; the next one is then smaller."""
GROWTH = 4
"""A budget grows to this multiple at most. A quota lets the first bytes through at full speed, so a
single fast transaction says little about the pace."""
SHRINKAGE = 8
"""A transaction that took too long is tried again with this fraction of its bytes."""


class ByteBudget:
    """The budget of the transactions of one partition of ``replay.work``.

    Bytes are those of the stored events.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds
        """How long the broker may take for a transaction."""
        self.limit = FIRST_BYTES
        self._spent = 0
        self._seconds = 0.0

    @property
    def left(self) -> int:
        """How many bytes the transaction may still take."""
        return max(0, self.limit - self._spent)

    @property
    def is_spent(self) -> bool:
        """Whether what is left is not worth a page."""
        return self.left * SHRINKAGE <= self.limit

    @property
    def is_late(self) -> bool:
        """Whether the broker has taken longer than a transaction should."""
        return self._seconds >= self._target_seconds

    def start(self) -> None:
        """Begin a transaction."""
        self._spent, self._seconds = 0, 0.0

    def spend(self, size: int) -> None:
        """Add bytes to the transaction."""
        self._spent += size

    def wait(self, seconds: float) -> None:
        """Add the time of a wait for the broker."""
        self._seconds += seconds

    def commit(self) -> None:
        """End the transaction, which is committed: the next budget follows the pace."""
        if self._spent:
            pace = self._spent / max(self._seconds, 0.001)
            most = GROWTH * max(self.limit, self._spent)
            self.limit = max(1, min(round(pace * self._target_seconds), most))
        self.start()

    def fail(self) -> None:
        """End the transaction, which has failed: if it took too long, the next is smaller."""
        if self._spent and self.is_late:
            self.limit = max(1, min(self.limit, self._spent) // SHRINKAGE)
        self.start()
