"""The short chaos suite is part of the tests; ``make chaos`` runs the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 900  # for a busy machine; an idle machine needs two minutes


@pytest.mark.chaos
def test_nothing_is_lost_repeated_or_disordered_whatever_dies() -> None:
    suite = subprocess.run(
        [sys.executable, "-m", "chaos.run", "--quick"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert suite.returncode == 0, f"{suite.stdout}\n{suite.stderr}"
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in suite.stdout.splitlines()
        if line.startswith("|")
    ][2:]
    assert [row[0] for row in rows] == [
        "kill -9 of workers",
        "kill -9 of workers while they count",
        "kill -9 of workers, replays in chains",
        "kill -9 of workers: steps, pace, transforms, parked aggregates",
        "SIGSTOP past the session timeout, SIGCONT",
        "store kill -9 and restart",
        "broker kill -9 and restart",
        "kill -9 of a transaction coordinator's broker",
    ]
    for _, _, times, events, *faults in rows:
        assert int(times) > 0
        assert int(events.replace(",", "")) > 0
        assert faults[:4] == ["0", "0", "0", "0"]  # duplicates, losses, disorder, wrong counters
