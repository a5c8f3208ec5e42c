"""Places where a test makes a worker die; without the test's environment variable, nothing.

``REPLAY_TEST_CRASH_AT=after-commit:3`` kills the process, as ``kill -9`` would, the third time it
gets there.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "REPLAY_TEST_CRASH_AT"
_place, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = {_place: int(_count or 1)} if _place else {}


def reach(place: str) -> None:
    """Die here if the test asked for it."""
    if place in _left:
        _left[place] -= 1
        if _left[place] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
