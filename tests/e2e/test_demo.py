"""The demo: its verdict, and that it leaves no process, folder, topic or database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest
from aiokafka import TopicPartition
from support import topic_names, unique_name, wait_until
from workers import outside_environment

from replay_app.demo.run import COLLECTION, REPLAY_ID, Comparison, judge
from replay_app.demo.shop import seed_store
from replay_app.demo.stack import Stack
from replay_app.events import STRICT, EventMapping, event_value

DEADLINE_SECONDS = 180.0
GONE_SECONDS = 15.0
EVENTS = 2000
COUNTS = "published = matched = stored = consumed"
CLAIMS = {
    *("it completed", COUNTS, "no event is missing", "no event is there twice"),
    *("nothing else is there", "each partition is in the store's order"),
    *("each record is marked as replayed", "values are those of the store"),
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


def processes_of(folder: Path) -> list[int]:
    """Return the ids of the processes whose TMPDIR is the folder."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={folder}\0".encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except (OSError, ValueError):
            continue
    return found


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
        assert "2,000 = 2,000 = 2,000 = 2,000" in output
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


Records = list[tuple[Any, TopicPartition, bytes]]
"""Headers, partition and value of each record."""
LIVE: tuple[tuple[str, bytes], ...] = ()


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda records: records.copy(), set()),
        (lambda records: records.pop(), {"no event is missing"}),
        (lambda records: records.append(records[-1]), {"no event is there twice"}),
        (
            lambda records: records.append((_headers("unknown"), *records[0][1:])),
            {"nothing else is there"},
        ),
        (lambda records: records.reverse(), {"each partition is in the store's order"}),
        (
            lambda records: records.append((LIVE, *records[0][1:])),
            {"each record is marked as replayed", "nothing else is there"},
        ),
        (
            lambda records: records.append((*records.pop()[:2], b'{"a": 1}')),
            {"values are those of the store"},
        ),
    ],
)
def test_the_verdict_sees_every_kind_of_fault(
    change: Callable[[Records], object], broken: set[str], stack: Stack
) -> None:
    database = unique_name("verdict")
    seed_store(stack.mongo, database, COLLECTION, 50)
    with pymongo.MongoClient[dict[str, Any]](stack.mongo) as client:
        events = client[database].get_collection(COLLECTION, codec_options=STRICT)
        records: Records = [
            (
                _headers(event["event_id"]),
                TopicPartition(event["topic"], 0),
                event_value(event, EventMapping()),
            )
            for event in events.find().sort([("timestamp", 1), ("_id", 1)])
        ]
        change(records)
        comparison = Comparison(stack.mongo, database)
        client.drop_database(database)
    for headers, partition, value in records:
        comparison.take(partition, headers, value)
    session = {
        "state": "completed",
        "error": None,
        "matched": 50,
        "counters": {"read": 50, "published": 50},
        "started_at": "2026-01-01T00:00:00Z",
        "ended_at": "2026-01-01T00:00:02Z",
    }
    verdict = judge(session, comparison.evidence)
    failed = {claim for claim, (holds, _) in verdict.checks.items() if not holds}
    assert verdict.checks.keys() == CLAIMS
    assert failed == (broken if len(records) == 50 else {*broken, COUNTS})
    assert verdict.holds == (not broken)
    assert verdict.events_per_second == 25
    ended = judge({**session, "state": "failed", "error": "told to"}, comparison.evidence)
    assert ended.checks["it completed"] == (False, "failed: told to")


def _headers(event_id: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("replay-id", REPLAY_ID.encode()),
        ("replay-attempt", b"1"),
        ("replay-original-time", b"2026-01-01T00:00:00Z"),
        ("replay-delivery-id", f"{REPLAY_ID}:{event_id}".encode()),
    )
