"""The command line on a terminal, and the client, with the shop's worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import DOCS, CommandLine
from support import create_topics, unique_name
from terminals import COLUMNS, Terminal
from workers import Cluster, Worker, events_of

from replay_app.demo.stack import outside_environment

SLOW = "20"
"""Events per second of a replay that is still running when the test looks at it."""


@pytest.fixture
def replay_app(shop: Cluster, worker: Worker, tmp_path: Path) -> CommandLine:
    return CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)


@pytest.fixture
def topic(shop: Cluster) -> str:
    name = unique_name("to")
    create_topics(shop.stack.kafka, {name: 1})
    return name


def test_a_person_sees_the_plan_starts_watches_and_interrupts(
    shop: Cluster, replay_app: CommandLine, topic: str
) -> None:
    replay_id = unique_name("seen")
    start = ("start", "--start", "2026-01-01 UTC", "--end", "2026-02-01 UTC", "--to-topic", topic)
    with Terminal(replay_app, *start, "--replay-id", replay_id, "--rate", SLOW, "--wait") as screen:
        screen.until(f"Start replay {replay_id}? [y/N] ")
        assert "matched" in screen.shown
        assert "Sample record" in screen.shown
        assert shop.session(replay_id) is None
        screen.type("y\n").until(f"{replay_id} running")
        screen.type("\x03")
        assert f"{replay_id} goes on; to follow it: replay-app watch {replay_id}" in screen.ends(
            130
        )
    assert shop.session(replay_id)["state"] == "running"

    with Terminal(replay_app, "list", "--watch", "--state", "running") as screen:
        screen.until(replay_id).until("running")
        drawn = screen.shown  # before the terminal shows the ^C itself
        screen.type("\x03")
        screen.ends(0)
    lines = [line for line in drawn.splitlines() if line.startswith(replay_id)]
    assert lines
    assert max(map(len, lines)) <= COLUMNS
    assert f"{replay_id}  running" in lines[0]
    assert "\x1b[36mrunning" in screen.raw

    with Terminal(replay_app, "cancel", replay_id) as screen:
        screen.until("A cancelled replay cannot continue. [y/N] ").type("n\n")
        assert "not confirmed: nothing is cancelled" in screen.ends(1)
    assert shop.session(replay_id)["state"] == "running"
    with Terminal(replay_app, "cancel", "@last") as screen:
        screen.until(f"@last is {replay_id}").until("[y/N] ").type("y\n")
        screen.ends(0)
    shop.wait_for(replay_id, "cancelled")
    assert "cancelled" in replay_app("watch", replay_id, code=9)


def test_live_topics_need_a_word_from_a_person_and_an_option_from_a_program(
    shop: Cluster, replay_app: CommandLine
) -> None:
    kind = unique_name("kind")  # and the name of its original topic
    create_topics(shop.stack.kafka, {kind: 1})
    shop.insert(events_of(kind, 3))
    replay_id = f"{kind}-live"
    start = ("start", "--event-type", kind, "--replay-id", replay_id)
    for way in ([], ["--kafka"], ["--yes"]):
        assert "add --to-original" in replay_app(*start, *way, code=2)
    with Terminal(replay_app, *start) as screen:
        screen.until("Type yes, or the name of a topic, to publish there: ")
        assert f"The live topics: {kind}\n" in screen.shown
        screen.type("y\n")  # not enough
        screen.ends(1)
    assert shop.session(replay_id) is None
    with Terminal(replay_app, *start) as screen:
        screen.until("to publish there: ").type(f"{kind}\n")
        screen.ends(0)
    assert shop.wait_for(replay_id, "completed")["start"]["to_original"] is True
    replay_app(*start, "--to-original")  # the same command: nothing is published again
    assert shop.session(replay_id)["counters"]["published"] == 3


def test_a_replay_is_started_and_steered_without_a_worker(
    shop: Cluster, worker: Worker, replay_app: CommandLine, topic: str, tmp_path: Path
) -> None:
    alone = CommandLine({**shop.environment, "REPLAY_URL": "http://127.0.0.1:9"}, tmp_path)
    replay_id = unique_name("alone")
    start = ("start", "--all", "--to-topic", topic, "--replay-id", replay_id, "--rate", SLOW)
    assert "with --kafka, this command needs no worker" in alone(*start, code=1)
    assert "with --kafka, this command needs no worker" in alone("pause", replay_id, code=1)
    assert "--kafka" not in alone("list", code=1)
    alone(*start, "--kafka")
    shop.wait_for(replay_id, "running")
    alone("pause", replay_id, "--kafka")
    shop.wait_for(replay_id, "paused")
    assert json.loads(alone("set-rate", replay_id, "30", "--kafka", "--json"))["offset"] >= 0
    assert "name the id with --kafka" in alone("resume", "@last", "--kafka", code=2)
    assert "only a worker knows" in alone("resume", "--chain", "c", "--kafka", code=2)
    alone("resume", replay_id, "--kafka")
    assert shop.wait_for(replay_id, "running")["rate"] == 30
    alone("cancel", replay_id, "--kafka")
    shop.wait_for(replay_id, "cancelled")


def test_events_that_are_left_out_and_unknown_replays_have_their_exit_codes(
    shop: Cluster, replay_app: CommandLine, topic: str
) -> None:
    kind = unique_name("kind")
    events = events_of(kind, 3)
    events[1]["timestamp"] = "at noon"
    events[2]["event_id"] = None
    shop.insert(events)
    start = ("start", "--event-type", kind, "--to-topic", topic, "--on-error", "skip", "--wait")
    assert "some events could not be replayed" in replay_app(*start, code=8)
    bad = (*start, "--event-id", "none-such", "--dry-run")
    replay_app(*bad, code=0)
    for command in ("watch", "describe", "cancel", "verify"):
        assert "there is no replay 'never'" in replay_app(command, "never", code=10)


def test_the_page_of_a_replay_is_opened_in_a_browser(
    shop: Cluster, worker: Worker, replay_app: CommandLine, topic: str, tmp_path: Path
) -> None:
    replay_id = unique_name("opened")
    start = ("start", "--all", "--max-events", "1", "--to-topic", topic, "--wait")
    replay_app(*start, "--replay-id", replay_id)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    replay_app.environment["BROWSER"] = str(browser)
    with Terminal(replay_app, "open", replay_id) as screen:
        assert f"{worker.url}/replays/{replay_id}\n" in screen.ends(0)
    assert (tmp_path / "opened").read_text() == f"{worker.url}/replays/{replay_id}\n"


def test_times_are_local_for_people_and_utc_for_programs(
    shop: Cluster, replay_app: CommandLine, topic: str
) -> None:
    replay_id = unique_name("berlin")
    replay_app.environment["TZ"] = "Europe/Berlin"
    start = ("start", "--replay-id", replay_id, "--to-topic", topic, "--wait")
    with replay_app.popen(
        *start, "--start", "2026-01-10 01:00", "--end", "2026-01-10T03:00"
    ) as one:
        one.communicate(timeout=120)
    assert one.returncode == 0
    found = shop.session(replay_id)["start"]["filter"]
    assert (found["start"], found["end"]) == ("2026-01-10T00:00:00Z", "2026-01-10T02:00:00Z")
    with replay_app.popen("status", replay_id) as shown:
        account, _ = shown.communicate(timeout=60)
    assert '"2026-01-10 01:00:00 CET"' in account
    assert re.search(r"created +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d CES?T\n", account)
    with replay_app.popen("status", replay_id, "--json") as shown:
        answer, _ = shown.communicate(timeout=60)
    assert json.loads(answer)["created_at"].endswith("Z")


def test_a_table_of_events_has_local_times(shop: Cluster, replay_app: CommandLine) -> None:
    kind = unique_name("kind")
    shop.insert(events_of(kind, 1))
    replay_app.environment["TZ"] = "America/New_York"
    with Terminal(replay_app, "events", "--event-type", kind) as screen:
        assert "\n2026-01-31 19:00:00.000 EST " in screen.ends(0)


def test_the_example_of_the_client_runs(
    shop: Cluster, replay_app: CommandLine, topic: str, tmp_path: Path
) -> None:
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "client.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "example.py", replay_id := unique_name("example"), topic],
        cwd=tmp_path,
        env={**outside_environment(), **replay_app.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    published = len(shop.stored({"event_type": "order_placed"}))
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{published} events, ")
    assert f"published {published}" in lines
    assert any(line.startswith("completed ") for line in lines)
    assert any(" start pending" in line for line in lines)
    assert any(line.startswith(f"{replay_id} 20") for line in lines)
    assert lines[-1] == "there is no replay 'never-started'"
