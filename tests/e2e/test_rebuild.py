"""`make demo-rebuild`: two views are rebuilt beside the live stream, with a worker killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from support import processes_of, wait_until

from replay_app.demo.stack import outside_environment

DEMO = Path(__file__).parents[2] / "examples" / "rebuild" / "demo.py"
DEADLINE_SECONDS = 900.0
GONE_SECONDS = 30.0
EVENTS = 6_000
"""Enough that the replay of the orders takes seconds, in which the worker is killed."""
CLAIMS = (
    "the worker was killed in the middle",
    "the views were wrong before",
    "the views are right now",
    "there were rows to compare",
    "live events are in them",
)


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO), "--events", str(EVENTS)],
        env={**outside_environment(), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def assert_no_trace(folder: Path) -> None:
    wait_until(lambda: not processes_of(folder), GONE_SECONDS, "processes were left")
    wait_until(lambda: not list(folder.iterdir()), GONE_SECONDS, "a folder was left")


def test_corrupted_views_are_right_after_the_rebuild_with_all_live_events(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        try:
            output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, output
    assert "FAILED" not in output
    for claim in CLAIMS:
        assert f"  ok      {claim}" in output, output
    assert output.count("  ok      no event is missing") == 2, "both replays are verified"
    assert_no_trace(tmp_path)


def test_an_interrupted_demo_leaves_no_trace(tmp_path: Path) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        try:
            for line in iter(process.stdout.readline, ""):
                if "Opening the shop" in line:
                    break
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert_no_trace(tmp_path)
