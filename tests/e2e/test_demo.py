"""The demo: its verdict, and that it leaves no process, folder, topic or database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from support import processes_of, topic_names, wait_until

from replay_app.demo.run import failure, judge
from replay_app.demo.stack import Stack, outside_environment

DEADLINE_SECONDS = 180.0
GONE_SECONDS = 15.0
EVENTS = 2000
CLAIMS = {
    *("every stored event was read", "it completed", "published = stored = consumed"),
    *("no event is missing", "no event is there twice", "nothing else is there"),
    *("each partition is in the store's order", "each record is in its key's partition"),
    *("each record is marked as replayed", "keys, headers and values are the store's"),
    "the store is as it was",
}


@contextmanager
def demo(
    folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    # The environment may have settings of another project; they must not change the demo.
    settings = {"REPLAY_TOPIC_PREFIX": "other.", "REPLAY_API_TOKEN": "other"}
    with subprocess.Popen(
        [sys.executable, "-m", "replay_app", "demo", "--events", str(EVENTS), *options],
        env={**outside_environment(), **settings, "TMPDIR": str(folder), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
    wait_until(lambda: not processes_of(folder), GONE_SECONDS, "processes were left")
    wait_until(lambda: not list(folder.iterdir()), GONE_SECONDS, "a folder was left")


def test_the_demo_leaves_the_servers_of_others_as_they_were(stack: Stack, tmp_path: Path) -> None:
    with demo(tmp_path, "--json", environment=stack.environment()) as process:
        output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output + errors
    verdict = json.loads(output)
    assert verdict["holds"]
    assert verdict["checks"].keys() == CLAIMS
    assert all(check["holds"] for check in verdict["checks"].values())
    wait_until(
        lambda: not [topic for topic in topic_names(stack.kafka) if "replay-demo" in topic],
        GONE_SECONDS,
        "topics were left",
    )
    with pymongo.MongoClient[dict[str, Any]](stack.mongo) as client:
        assert not [name for name in client.list_database_names() if "replay-demo" in name]


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_demo_on_its_own_servers_holds_can_be_used_and_ends_without_a_trace(
    sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    with demo(tmp_path, "--keep") as process:
        assert process.stdout is not None
        variables: dict[str, str] = {}
        output = ""
        for line in iter(process.stdout.readline, ""):
            output += line
            if line.startswith("  export "):
                name, _, value = line.strip().removeprefix("export ").partition("=")
                variables[name] = value
            if "set-rate" in line:
                break
        assert "2,000 = 2,000 = 2,000" in output
        assert "It holds: " in output
        assert "FAILED" not in output
        (page,) = [line for line in output.splitlines() if "The status page" in line]
        assert "http://127.0.0.1:" in page
        listed = subprocess.run(
            [sys.executable, "-m", "replay_app", "list", "--json"],
            env={**os.environ, **variables},
            capture_output=True,
            check=True,
        )
        (session,) = json.loads(listed.stdout)["replays"]
        assert session["counters"]["published"] == EVENTS
        process.send_signal(sent)
        assert process.wait(GONE_SECONDS * 2) == code


def test_a_demo_that_is_interrupted_in_the_middle_ends_without_a_trace(tmp_path: Path) -> None:
    with demo(tmp_path, "--json") as process:
        assert process.stderr is not None
        while "Storing" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(GONE_SECONDS * 2) == 130


FOUND: dict[str, Any] = {
    "holds": True,
    "checks": {"no event is missing": {"holds": True, "figures": "0 missing"}},
    "verification": {"stored": 50},
}
SESSION: dict[str, Any] = {
    "state": "completed",
    "error": None,
    "matched": 50,
    "counters": {"read": 50, "published": 50},
    "started_at": "2026-01-01T00:00:00Z",
    "ended_at": "2026-01-01T00:00:02Z",
}


@pytest.mark.parametrize(
    ("found", "session", "holds"),
    [
        ({}, {}, True),
        ({"holds": False}, {}, False),
        ({"verification": {"stored": 51}}, {}, False),
        ({}, {"matched": None}, False),
        ({}, {"counters": {"read": 49, "published": 49}}, False),
    ],
)
def test_the_verdict_holds_only_if_the_whole_store_was_replayed_and_the_proof_holds(
    found: dict[str, Any], session: dict[str, Any], holds: bool
) -> None:
    verdict = judge(SESSION | session, FOUND | found)
    assert verdict.holds is holds
    assert verdict.checks["no event is missing"] == (True, "0 missing")


def test_a_replay_that_failed_is_not_compared() -> None:
    verdict = failure(SESSION | {"state": "failed", "error": "told to"})
    assert not verdict.holds
    assert verdict.checks == {"it completed": (False, "failed: told to")}
    assert verdict.events_per_second == 25
