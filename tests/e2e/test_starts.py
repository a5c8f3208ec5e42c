"""How a worker starts, and what it says meanwhile."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import forwarding, unique_name, wait_until
from workers import WORKER_READY_SECONDS, Cluster, Worker

from replay_app.demo.stack import free_port, outside_environment

EVENTS = 300
WAITING_COMMANDS = 100
KNOWN_SECONDS = 30
SLOW_READS = """
import asyncio
from faust.transport.consumer import Consumer

read = Consumer.getmany

async def read_slowly(consumer, timeout):
    async for partition, message in read(consumer, timeout):
        yield partition, message
        await asyncio.sleep(0.01)

Consumer.getmany = read_slowly
"""
"""Python starts a worker with this code. The worker still delivers its first records to the agents
when it has asked for the group's offsets."""
EVIL = "view lost\n\x1b[2J\u202e"
CLIENT_SECONDS = 20.0
"""Less than the command line waits for a worker that is not ready."""


def lines(worker: Worker) -> list[dict[str, Any]]:
    """Return the lines of a log in JSON; everything that the process writes is in the file."""
    return [json.loads(line) for line in worker.log.read_text().splitlines()]


def test_a_first_start_waits_for_the_broker_and_tells_only_what_an_operator_needs(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
    port = free_port()
    worker = cluster.start_worker(None, REPLAY_KAFKA=f"127.0.0.1:{port}", REPLAY_LOG_FORMAT="json")
    wait_until(
        lambda: "waiting for up to" in worker.log.read_text(), WORKER_READY_SECONDS, "not said"
    )
    with forwarding(port, cluster.stack.kafka):
        worker.wait_until_ready()
        ready = f"ready at {worker.url}: 4 of 4 partitions, "
        wait_until(lambda: ready in worker.log.read_text(), WORKER_READY_SECONDS, "not announced")
        wait_until(
            lambda: f"the event store '{cluster.name}.events' answers" in worker.log.read_text(),
            WORKER_READY_SECONDS,
            "the store was not looked at",
        )
        cluster.command("r", requested_by="eva", reason=EVIL, rate=20)
        cluster.wait_for("r", "running")
        cluster.command("r", "pause", requested_by="ana")
        cluster.wait_for("r", "paused")
        cluster.command("r", "set-rate", rate=None, requested_by="ben")
        cluster.command("r", "resume")
        cluster.wait_for("r", "completed")
        assert worker.terminate() == 0

    told = lines(worker)
    waiting, *rest = [one for one in told if one["level"] not in {"DEBUG", "INFO"}]
    assert waiting["message"].startswith(f"Kafka at 127.0.0.1:{port} (REPLAY_KAFKA) cannot be re")
    assert {one["message"].partition(";")[0] for one in rest} <= {
        waiting["message"].partition(";")[0]
    }
    assert all(one["logger"].startswith("replay_app.") for one in told)
    changes = [
        (one["state"], one["requested_by"], one["reason"]) for one in told if "replay_id" in one
    ]
    assert changes[0] == ("pending", "eva", EVIL)
    assert ("paused", None, None) in changes or ("paused", "ana", None) in changes
    assert ("pausing", "ana", None) in changes or ("paused", "ana", None) in changes
    assert ("paused", "ben", None) in changes
    assert changes[-1] == ("completed", None, None)
    assert all(one["replay_id"] == "r" for one in told if "replay_id" in one)
    assert "\x1b" not in worker.log.read_text()


def test_every_command_that_waits_for_a_worker_has_an_effect(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.seed(EVENTS)
    assert cluster.start_worker().wait_until_ready().terminate() == 0
    shutil.rmtree(cluster.data_dir(0))  # the next worker reads the table from its changelog first
    body = {"command": "start", "filter": {"event_types": ["none"]}, "dry_run": True}
    names = [f"r{number}" for number in range(WAITING_COMMANDS)]
    cluster.produce_all(
        (name.encode(), json.dumps({**body, "replay_id": name}).encode()) for name in names
    )
    (tmp_path / "sitecustomize.py").write_text(SLOW_READS)
    worker = cluster.start_worker(0, PYTHONPATH=str(tmp_path)).wait_until_ready()

    def unknown() -> set[str]:
        known = worker.get(f"/replays?limit={WAITING_COMMANDS}")["replays"]
        return {*names} - {one["replay_id"] for one in known}

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not unknown(), KNOWN_SECONDS)
    assert not unknown(), "without effect"


def test_damaged_local_rows_are_moved_aside_and_the_replays_are_still_known(
    cluster: Cluster,
) -> None:
    cluster.seed(EVENTS)
    worker = cluster.start_worker().wait_until_ready()
    cluster.run("r")
    worker.kill()
    damaged = [*cluster.data_dir(0).rglob("CURRENT")]
    assert damaged
    for file in damaged:
        file.write_text("garbage\n")
    worker = cluster.start_worker(0).wait_until_ready()
    assert cluster.wait_for("r")["state"] == "completed"
    assert "the local rows are damaged (Corruption: " in worker.log.read_text()
    assert [*cluster.data_dir(0).rglob("*.damaged/**/CURRENT")]


def test_without_a_store_the_worker_starts_and_says_so_until_the_store_is_there(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.seed(EVENTS)
    port = free_port()
    worker = cluster.start_worker(None, REPLAY_MONGO=f"mongodb://127.0.0.1:{port}")
    worker.wait_until_ready()
    status, answer = worker.request("GET", "/readyz")
    reason = f"the event store '{cluster.name}.events' does not answer: 127.0.0.1:{port}: "
    assert (status, answer["status"]) == (503, "not ready")
    (missing,) = answer["missing"]
    assert missing.startswith(reason)
    wait_until(lambda: reason in worker.log.read_text(), WORKER_READY_SECONDS, "not said")

    environment = {**outside_environment(), "REPLAY_URL": worker.url}
    plan = subprocess.run(
        [sys.executable, "-m", "replay_app", "plan", "--all"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS,
        check=False,
    )
    assert plan.returncode == 1
    assert reason in plan.stderr

    with forwarding(port, cluster.stack.mongo.rpartition("/")[2]):
        wait_until(
            lambda: worker.request("GET", "/readyz") == (200, {"status": "ready", "missing": []}),
            WORKER_READY_SECONDS,
            "the store was not found",
        )
        wait_until(
            lambda: f"the event store '{cluster.name}.events' answers" in worker.log.read_text(),
            WORKER_READY_SECONDS,
            "not said",
        )
        worker.kill()


def test_a_worker_on_an_empty_store_is_ready_and_warns(cluster: Cluster) -> None:
    worker = cluster.start_worker().wait_until_ready()
    status, answer = worker.request("GET", "/readyz")
    assert (status, answer["status"], answer["missing"]) == (200, "ready", [])
    (warning,) = answer["warnings"]
    assert warning.startswith(f"the event store has no collection '{cluster.name}.events'")


def test_a_start_that_fails_is_one_line_in_the_form_of_the_log(cluster: Cluster) -> None:
    file = cluster.folder / "file"
    file.touch()
    for form in ("text", "json"):
        worker = cluster.start_worker(
            None, REPLAY_DATA_DIR=str(file / "data"), REPLAY_LOG_FORMAT=form
        )
        assert worker.process.wait(WORKER_READY_SECONDS) == 1
        (line,) = worker.log.read_text().splitlines()
        said = json.loads(line)["message"] if form == "json" else line.removeprefix("error: ")
        assert said.startswith(f"the folder {file / 'data'} (REPLAY_DATA_DIR) cannot be used: Not")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("REPLAY_APP_ID", "topic '{prefix}status' belongs to REPLAY_APP_ID={name}, and "),
        ("REPLAY_TOPIC_PREFIX", "REPLAY_APP_ID={name} belongs to REPLAY_TOPIC_PREFIX='{prefix}', "),
    ],
)
def test_a_second_installation_on_the_same_topics_or_group_ends_with_one_sentence(
    cluster: Cluster, setting: str, told: str
) -> None:
    first = cluster.start_worker().wait_until_ready()
    second = cluster.start_worker(None, **{setting: unique_name("other")})
    assert second.process.wait(WORKER_READY_SECONDS) == 2
    (line,) = second.log.read_text().splitlines()
    assert line.startswith("error: " + told.format(prefix=cluster.prefix, name=cluster.name))
    assert first.is_ready()
    ignored = {topic for (name, topic) in first.metrics() if name.startswith("replay_ignored")}
    assert ignored == set()
