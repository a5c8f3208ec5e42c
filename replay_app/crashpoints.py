"""Places where a test can kill a worker. Without the test's environment variable they do nothing.

``REPLAY_TEST_CRASH_AT=after-commit:3`` kills the process, as ``kill -9`` would, when it reaches the
place ``after-commit`` for the third time. The default is the first time.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "REPLAY_TEST_CRASH_AT"
_place, _, _visit = os.environ.get(VARIABLE, "").partition(":")
_visits_left = {_place: int(_visit or 1)} if _place else {}


def reach(place: str) -> None:
    """Kill this process if the test's variable names this place and this visit."""
    if place in _visits_left:
        _visits_left[place] -= 1
        if _visits_left[place] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
