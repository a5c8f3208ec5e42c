"""Logging: the form of a message, and a limit on floods of messages."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
FLOOD_BURST = 5
"""Messages of one place in the code that are written in a window."""
FLOOD_WINDOW_SECONDS = 10.0


class RateLimit(logging.Filter):
    """Lets the first messages of each place in the code through, again in each window.

    The first message of the next window says how many messages were left out. While a broker is
    away aiokafka logs thousands of lines, and the first few lines tell the cause.
    """

    def __init__(
        self,
        burst: int = FLOOD_BURST,
        window_seconds: float = FLOOD_WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst = burst
        self._window_seconds = window_seconds
        self._clock = clock
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}
        """By file and line: when the window began, and the number of messages since then."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a message."""
        place, now = (record.pathname, record.lineno), self._clock()
        began, count = self._windows.get(place, (now, 0))
        if now - began >= self._window_seconds:
            left_out = count - self._burst
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} such messages left out)"
                record.args = None
            began, count = now, 0
        self._windows[place] = (began, count + 1)
        return count < self._burst


def configure_logging(level: str) -> None:
    """Write all logs to standard error."""
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(logging.Formatter(FORMAT))
    limit = RateLimit()
    writer.addFilter(lambda record: not record.name.startswith("aiokafka") or limit.filter(record))
    logging.basicConfig(level=level, handlers=[writer], force=True)
    # An operator has no use for the libraries' everyday messages.
    for noisy in ("aiokafka", "faust", "mode", "pymongo", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
