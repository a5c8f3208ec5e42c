"""The command line against real workers."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from bson import Regex
from command_line import CommandLine
from oracle import assert_published_exactly
from support import create_topics, unique_name, wait_until
from workers import Cluster, Worker, events_of

from replay_app.demo.stack import free_port
from replay_app.topics import Topics

DEADLINE_SECONDS = 120.0
EVENTS = 1_200


@pytest.fixture
def worker(cluster: Cluster) -> Worker:
    return cluster.start_worker()


@pytest.fixture
def replay_app(cluster: Cluster, worker: Worker, tmp_path: Path) -> CommandLine:
    worker.wait_until_ready()
    return CommandLine({**cluster.environment, "REPLAY_URL": worker.url}, tmp_path)


def test_a_replay_is_planned_started_watched_and_shown(
    cluster: Cluster, replay_app: CommandLine
) -> None:
    cluster.seed(EVENTS)
    to = ("--prefix", cluster.target_prefix)

    plan = replay_app("plan", *to, "--event-type", "order_placed")
    orders = len(cluster.stored({"event_type": "order_placed"}))
    assert f"matched       {orders:,} events" in plan
    assert f"{cluster.target_prefix}shop.orders {orders:,}" in plan

    start = ("start", "--all", *to, "--replay-id", "r", "--name", "Orders", "--requested-by", "ana")
    shown = replay_app(*start, "--wait").splitlines()
    assert shown[-1] == "r completed: 1,200 of 1,200 events (100 %)"
    assert_published_exactly(cluster.published(), cluster.stored(), "r", cluster.target_prefix)

    before = json.loads(replay_app("status", "r", "--json"))
    replay_app(*start)  # the same command again changes nothing
    assert "choose a new" in replay_app(*start, "--rate", "7", code=3)
    assert "choose a new" in replay_app(*start, "--rate", "7", "--kafka", "--wait", code=3)
    assert len(cluster.published()) == EVENTS

    assert replay_app("watch", "r").splitlines() == [shown[-1]]
    (line,) = replay_app("watch", "r", "--json").splitlines()
    session = json.loads(replay_app("status", "r", "--json"))
    assert json.loads(line) == session == before
    assert session["counters"]["published"] == EVENTS
    account = replay_app("status", "r")
    for told in ("ana", "Orders", "Plan", "Receipt", "published 1,200", "shop.orders[0]"):
        assert told in account
    assert "verbs now" not in account  # nothing changes a completed replay
    heading, line = replay_app("list").splitlines()
    assert heading.split() == ["REPLAY", "STATE", "DRY", "DONE", "TARGET", "AGE"]
    assert line.split()[:4] == ["r", "completed", "100%", f"{cluster.target_prefix}*"]
    assert replay_app("list", "-o", "name", "--since", "1d", "--text", "ORDERS") == "r\n"
    assert replay_app("list", "-o", "name", "--since", "0s") == ""
    assert "ana" in replay_app("list", "-o", "wide")
    assert replay_app("list", "--state", "failed") == "no replay fits\n"
    assert [s["replay_id"] for s in json.loads(replay_app("list", "--json"))["replays"]] == ["r"]

    for arguments in (["status", "x"], ["watch", "x"], ["pause", "x"], ["open", "x"]):
        replay_app(*arguments, code=10)
    replay_app("cancel", "r", code=3)
    until = ("plan", *to, "--event-type", "order_placed", "--until-event-id", "none")
    assert "there is no event 'none' (--until-event-id)" in replay_app(*until, code=3)

    said = replay_app("describe", "@last").splitlines()
    assert said[0] == "@last is r"
    assert any("start by ana -> " in line for line in said[said.index("History") :])
    history = json.loads(replay_app("describe", "r", "--json"))["history"]
    assert history["changes"][0]["command"] == "start"


def test_a_replay_is_paused_sped_up_resumed_and_cancelled(
    cluster: Cluster, replay_app: CommandLine
) -> None:
    cluster.seed(EVENTS)
    start = ("start", "--all", "--prefix", cluster.target_prefix)
    assert "watch slow" in replay_app(*start, "--replay-id", "slow", "--rate", "20")
    cluster.wait_for("slow", "running")
    replay_app("pause", "slow")
    cluster.wait_for("slow", "paused")
    assert "verbs now     resume, step, cancel, set-rate\n" in replay_app("status", "slow")
    replay_app("set-rate", "slow", "none")
    replay_app("resume", "slow")
    assert "slow completed" in replay_app("watch", "slow")

    cancelled = json.loads(replay_app(*start, "--rate", "10", "--json"))["replay_id"]
    cluster.wait_for(cancelled, "running")
    replay_app("cancel", cancelled)
    assert "cancelled" in replay_app("watch", cancelled, code=9)


def test_a_command_on_kafka_that_fails_says_why_and_is_retried(
    cluster: Cluster, replay_app: CommandLine
) -> None:
    cluster.seed(EVENTS)
    start = ("start", "--all", "--kafka", "--to-topic", topic := unique_name("rebuilt"))
    failed = replay_app(*start, "--replay-id", "r", "--wait", code=1)
    assert f"{topic!r}" in failed
    assert "then: replay-app retry r" in failed
    create_topics(cluster.stack.kafka, {topic: 2})
    replay_app("retry", "r")
    assert "r completed: 1,200 of 1,200" in replay_app("watch", "r")


def test_watching_outlasts_the_worker(
    cluster: Cluster, worker: Worker, replay_app: CommandLine
) -> None:
    cluster.seed(EVENTS)
    replay_app(
        *("start", "--all", "--prefix", cluster.target_prefix, "--replay-id", "r", "--rate", "200"),
    )
    watching = replay_app.popen("watch", "r")
    assert watching.stdout is not None
    while "running" not in watching.stdout.readline():
        assert watching.poll() is None
    worker.kill()
    assert watching.stderr is not None
    assert f"no worker answers at {worker.url}" in watching.stderr.readline()
    cluster.start_worker(0)
    output, errors = watching.communicate(timeout=DEADLINE_SECONDS)
    assert watching.returncode == 0, output + errors
    assert "r completed" in output


def test_a_replay_is_followed_step_by_step_and_goes_on_without_an_event(
    cluster: Cluster, replay_app: CommandLine
) -> None:
    kind, topic = unique_name("kind"), unique_name("to")
    create_topics(cluster.stack.kafka, {topic: 1})
    events = events_of(kind, 6)
    events[3]["body"] = Regex("x")
    cluster.insert(events)
    start = ("start", "--paused", "--replay-id", "s", "--event-type", kind, "--to-topic", topic)
    replay_app(*start)
    cluster.wait_for("s", "paused")
    for step, published in ((["2"], 2), ([], 3)):
        assert "step of replay s is requested" in replay_app("step", "s", *step)
        counters = {"read": published, "published": published, "skipped": 0, "dead_lettered": 0}
        cluster.wait_for("s", "paused", counters=counters)
    replay_app("resume", "s")
    failed = cluster.wait_for("s", "failed")
    assert f"event '{kind}-3'" in failed["error"]
    assert "only a paused replay makes a step" in replay_app("step", "s", code=3)
    replay_app("retry", "s", "--skip-event", f"{kind}-3")
    session = cluster.wait_for("s", "completed_with_errors")
    assert (session["counters"]["published"], session["counters"]["skipped"]) == (5, 1)


def test_topics_are_listed_and_created_without_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    replay_app = CommandLine(cluster.environment, tmp_path)
    start = ("start", "--all", "--kafka", "--to-original")
    assert "replay-app topics --create" in replay_app(*start, code=1)
    before = json.loads(replay_app("topics", "--json"))
    assert not any(topic["exists"] for topic in before)
    shown = replay_app("topics", "--create")
    assert f"created {cluster.prefix}requests" in shown
    after = json.loads(replay_app("topics", "--json"))
    assert all(topic["exists"] for topic in after)
    assert len(before) == len(after) == len(Topics.__dataclass_fields__)
    answer = json.loads(replay_app(*start, "--json", "--replay-id", "r"))
    assert answer["topic"] == f"{cluster.prefix}requests"


def test_without_a_broker_each_command_says_so_in_one_line(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    replay_app = CommandLine({"REPLAY_KAFKA": address}, tmp_path)
    for arguments in (
        ["topics"],
        ["start", "--all", "--kafka", "--prefix", "a."],
        ["pause", "r", "--kafka"],
    ):
        (line,) = replay_app(*arguments, code=1).splitlines()
        assert line.startswith(f"error: Kafka at {address} (REPLAY_KAFKA) cannot be reached")


def test_a_worker_without_a_broker_waits_and_sigterm_ends_the_wait(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with CommandLine({"REPLAY_KAFKA": address}, tmp_path).popen("worker") as worker:
        assert worker.stderr is not None
        line = worker.stderr.readline()
        assert f"Kafka at {address} (REPLAY_KAFKA) cannot be reached: " in line
        assert "waiting for up to 60 s more" in line
        worker.send_signal(signal.SIGTERM)
        output, errors = worker.communicate(timeout=DEADLINE_SECONDS)
    assert worker.returncode == 0, output + errors
    assert "Traceback" not in errors


def test_a_workers_options_go_before_its_settings_and_sigterm_ends_it_with_0(
    cluster: Cluster, tmp_path: Path
) -> None:
    port = str(free_port())
    environment = {**cluster.environment, "REPLAY_WEB_PORT": "1", "REPLAY_DATA_DIR": "/no/such"}
    replay_app = CommandLine(environment, tmp_path)
    folder = tmp_path / "chosen"
    options = ("--web-port", port, "--data-dir", str(folder), "--worker-id", "w")
    client = CommandLine({"REPLAY_URL": f"http://127.0.0.1:{port}"}, tmp_path)
    with replay_app.popen("worker", *options) as process:
        try:
            wait_until(lambda: client.run("list")[0] == 0, DEADLINE_SECONDS)
            assert list(folder.iterdir())
        finally:
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, output + errors
