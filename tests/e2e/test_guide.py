"""Every block of the guide docs/rebuild.md is run, in its order."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from confluent_kafka import Producer
from support import create_topics, delete_topics
from workers import Cluster

from replay_app.demo.shop import seed_store, shop_events
from replay_app.demo.stack import outside_environment
from replay_app.events import EventMapping, event_value, strip

GUIDE = Path(__file__).parents[2] / "docs" / "rebuild.md"
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK_SECONDS = 300.0
HISTORY = 600
LIVE = 60
"""Live events before the replay, and again after it."""
TOPICS = ("shop.orders", "shop.customers")


@dataclass(frozen=True)
class Block:
    """One fenced block of the guide."""

    file: str | None
    language: str
    text: str
    heading: str


def blocks() -> list[Block]:
    text = GUIDE.read_text()
    found = []
    for match in BLOCK.finditer(text):
        heading = re.findall("^## (.*)$", text[: match.start()], re.MULTILINE)[-1]
        found.append(Block(match[1], match[2], match[3], heading))
    return found


def test_every_block_is_run_or_is_a_file_that_another_block_uses() -> None:
    shells = "".join(block.text for block in blocks() if block.language == "sh")
    for block in blocks():
        if block.language == "text":  # what a command prints
            continue
        assert (block.language == "sh") == (block.file is None), f"not run: {block.text:.100}"
        assert block.file is None or block.file in shells


@pytest.fixture
def shop(cluster: Cluster) -> Iterator[Cluster]:
    """A shop with the topics that stand in the guide, some live events, and a worker."""
    names = [*TOPICS, *(f"rebuild.{topic}" for topic in TOPICS)]
    create_topics(cluster.stack.kafka, dict.fromkeys(TOPICS, 3))
    seed_store(cluster.stack.mongo, cluster.name, "events", HISTORY)
    cluster.start_worker().wait_until_ready()
    try:
        yield cluster
    finally:
        for worker in cluster.workers:
            worker.kill()
        delete_topics(cluster.stack.kafka, names)


def sell(shop: Cluster, skip: int) -> None:
    """Store and publish live events, the first of them behind ``skip`` events of the history."""
    producer = Producer({"bootstrap.servers": shop.stack.kafka, "partitioner": "murmur2_random"})
    events = list(itertools.islice(shop_events(10**9), skip, skip + LIVE))
    for event in events:
        event["_id"], event["timestamp"] = ObjectId(), datetime.now(UTC)
        if event["topic"] in TOPICS:
            strip(event, EventMapping())
            producer.produce(
                event["topic"], event_value(event, EventMapping()), event["aggregate_id"].encode()
            )
    shop.insert(events)
    assert producer.flush(30) == 0


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a block in bash; end what it leaves running; return its output."""
    with subprocess.Popen(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=BLOCK_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{script}\n{output}"
    return output


def test_the_guide_rebuilds_both_views_and_proves_it(shop: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "guide"
    folder.mkdir()
    programs = Path(sys.executable).parent
    environment: dict[str, Any] = {
        **outside_environment(),
        **shop.environment,
        "REPLAY_URL": shop.workers[0].url,
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    sell(shop, HISTORY)
    handed_over = False
    output = ""
    for block in blocks():
        if block.heading.startswith("Hand-over") and not handed_over:
            sell(shop, HISTORY + LIVE)  # after the bound: only the live topics have these
            handed_over = True
        if block.file is not None:
            (folder / block.file).write_text(block.text)
        elif block.language == "sh":
            output += run(block.text, folder, environment)
    assert handed_over
    assert "0 rows are wrong" in output, output
