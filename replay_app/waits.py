"""How long the shards of a replay wait, and for what: for the metrics, and for each replay."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay_app.reports import Waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay_app.metrics import Metrics, Stage

PARTS: dict[Stage, str] = {
    "read": "store",
    "encode": "encoder",
    "send": "broker",
    "commit": "broker",
}
"""What a shard waits for in each stage."""


class WaitClock:
    """Measures how long one shard waits. The worker's metrics count the same waits."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seconds = dict.fromkeys(PARTS.values(), 0.0)

    @contextmanager
    def waiting(self, stage: Stage) -> Iterator[None]:
        """Return a context that measures a wait for a stage."""
        began = time.monotonic()
        try:
            with self._metrics.waiting(stage):
                yield
        finally:
            self._seconds[PARTS[stage]] += time.monotonic() - began

    @property
    def waits(self) -> Waits:
        """What was measured until now."""
        return Waits(**{name: round(seconds, 3) for name, seconds in self._seconds.items()})
