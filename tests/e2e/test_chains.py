"""Replays that wait for others, and chains of them, with a real worker."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from support import create_topics, read_topic, unique_name, wait_until
from workers import SHOP_HISTORY, Cluster, Worker

from replay_app.crashpoints import VARIABLE

LONG_SECONDS = 180.0
"""For the start of a worker, or a part of a chain, on a machine with other work."""


@pytest.fixture
def topic(shop: Cluster) -> str:
    """A topic with two partitions that only this test uses."""
    name = unique_name("to")
    create_topics(shop.stack.kafka, {name: 2})
    return name


def some(topic: str, **members: Any) -> dict[str, Any]:
    """Return the members of a start that publishes five events to a topic."""
    return {"filter": SHOP_HISTORY, "target": {"topic": topic}, "max_events": 5, **members}


@pytest.fixture
def replay_app(shop: Cluster, worker: Worker, tmp_path: Path) -> CommandLine:
    """The command line, in a folder for the files of the test."""
    return CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)


class ChainFile:
    """A chain of small replays, and the file with it."""

    def __init__(self, folder: Path, topic: str) -> None:
        self.name = unique_name("chain")
        self.path = folder / "chain.yaml"
        self.members: dict[str, Any] = {
            "chain": self.name,
            "defaults": {"filter": SHOP_HISTORY, "target": {"topic": topic}, "max_events": 5},
            "replays": {},
        }

    def write(self, **replays: Any) -> str:
        """Add replays, and return the path of the file."""
        self.members["replays"] |= replays
        self.path.write_text(json.dumps(self.members, indent=1))
        return str(self.path)

    def id_of(self, short: str) -> str:
        return f"{self.name}.{short}"


@pytest.fixture
def chain(tmp_path: Path, topic: str) -> ChainFile:
    return ChainFile(tmp_path, topic)


def wait_for_reason(shop: Cluster, replay_id: str, words: str) -> None:
    def says_so() -> bool:
        session = shop.session(replay_id) or {"state": None}
        return session["state"] == "waiting" and words in (session["reason"] or "")

    wait_until(says_so, 60, f"{replay_id} never said {words!r}")


def test_a_failed_replay_blocks_its_child_until_it_is_retried(shop: Cluster, topic: str) -> None:
    parent, child, missing = unique_name("parent"), unique_name("child"), unique_name("missing")
    shop.command(parent, **some(missing))
    shop.command(child, after=[parent], **some(topic))
    shop.wait_for(parent, "failed")
    wait_for_reason(shop, child, f"blocked by replay '{parent}' (failed: retry that replay")
    create_topics(shop.stack.kafka, {missing: 1})
    shop.command(parent, "retry")
    assert shop.wait_for(parent, "completed")["counters"]["published"] == 5
    session = shop.wait_for(child, "completed")
    assert (session["counters"]["published"], session["repairs"]) == (5, 0)


def test_a_release_opens_the_gate_whatever_the_others_do(
    shop: Cluster, worker: Worker, topic: str
) -> None:
    parent, child, other = (unique_name(name) for name in ("parent", "child", "other"))
    # One event in twenty seconds, until the cancel.
    shop.command(parent, **some(topic, rate=0.05, consumers=["a-view"]))
    consumed = {"replay": parent, "consumed": True}
    shop.command(child, after=[consumed], **some(topic))
    shop.command(other, after=[child, "never-started"], **some(topic))
    wait_for_reason(shop, child, f"waiting for replay '{parent}' (running)")
    wait_for_reason(shop, other, "'never-started' (unknown)")
    assert "release" in shop.session(child)["verbs"]
    shop.command(parent, "cancel")
    shop.wait_for(parent, "cancelled")
    wait_for_reason(shop, child, f"blocked by replay '{parent}' (cancelled: ")
    status, _ = worker.request("POST", f"/replays/{child}/release", {"requested_by": "ana"})
    assert status == 202
    assert shop.wait_for(child, "completed")["released"]
    assert worker.request("POST", f"/replays/{child}/release")[0] == 409  # it has ended
    shop.command(other, "release")
    assert shop.wait_for(other, "completed")["counters"]["published"] == 5
    # Nobody can tell when a replay without consumers is consumed.
    late, after = unique_name("late"), [{"replay": child, "consumed": True}]
    body = some(topic, replay_id=late, after=after)
    status, answer = worker.request("POST", "/replays", body)
    assert (status, "names no consumers" in answer["detail"]) == (409, True)
    shop.command(late, after=after, **some(topic))
    session = shop.wait_for(late, "failed")
    assert "names no consumers" in session["error"]


def fifty() -> dict[str, Any]:
    """Return the replays of a chain: a diamond, and below it a line and a fan, and a last one."""
    replays: dict[str, Any] = {"top": {}, "left": {"after": ["top"]}, "right": {"after": ["top"]}}
    replays["bottom"] = {"after": ["left", "right"]}
    line = ["bottom", *(f"line-{number}" for number in range(15))]
    replays |= {child: {"after": [parent]} for parent, child in itertools.pairwise(line)}
    fan = [f"fan-{number}" for number in range(30)]
    replays |= {name: {"after": ["bottom"]} for name in fan}
    return replays | {"last": {"after": [*fan, line[-1]]}}


def test_a_chain_of_fifty_runs_parents_first_whatever_dies_meanwhile(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The worker dies while the chain is being sent, and again in the middle of the chain."""
    cluster.insert(  # few: the development store reads all of them for each question
        {"_id": number, "event_type": "placed", "topic": "any", "timestamp": time, "n": number}
        for number, time in enumerate([dt.datetime(2026, 1, 1, tzinfo=dt.UTC)] * 5)
    )
    topic = unique_name("to")
    create_topics(cluster.stack.kafka, {topic: 1})
    chain, replays = ChainFile(tmp_path, topic), fifty()
    file = chain.write(**dict(reversed(replays.items())))  # the order in the file does not matter
    dying = cluster.start_worker(None, **{VARIABLE: "after-chain-part:4"})
    wait_until(dying.is_ready, LONG_SECONDS)
    replay_app = CommandLine({**cluster.environment, "REPLAY_URL": dying.url}, tmp_path)
    assert "no worker answers" in replay_app("apply", file, code=1)
    assert dying.process.wait(LONG_SECONDS) == -signal.SIGKILL

    wait_until(cluster.start_worker(0).is_ready, LONG_SECONDS)

    def known(state: str = "") -> int:
        query = f"chain={chain.name}&limit=1000{state and '&state='}{state}"
        return len(cluster.workers[0].get(f"/replays?{query}")["replays"])

    # The first four levels: the diamond, and the 31 replays that wait for its end.
    wait_until(lambda: known() == 35, LONG_SECONDS)
    answer = json.loads(replay_app("apply", file, "--json"))
    outcomes = [one["outcome"] for one in answer["replays"]]
    assert outcomes == ["existed"] * 35 + ["started"] * 15
    wait_until(lambda: known("completed") >= 10, LONG_SECONDS)
    cluster.workers[0].kill()
    wait_until(cluster.start_worker(0).is_ready, LONG_SECONDS)
    shown = replay_app("chain", chain.name, "--watch", "--patience", f"{LONG_SECONDS:g}")
    assert f"{chain.name}: 50 of 50 replays completed" in shown

    sessions = {short: cluster.session(chain.id_of(short)) for short in replays}
    for short, body in replays.items():
        session = sessions[short]
        assert session["counters"]["published"] == 5
        assert session["start"]["chain"] == chain.name
        for parent in body.get("after", ()):
            assert sessions[parent]["ended_at"] <= session["started_at"]
    records = read_topic(cluster.stack.kafka, topic)
    assert len({one.headers["replay-delivery-id"] for one in records}) == len(records) == 250
    # Applying again does nothing.
    again = json.loads(replay_app("apply", file, "--json"))
    told = [(one["outcome"], one["state"]) for one in again["replays"]]
    assert told == [("existed", "completed")] * 50
    tree = replay_app("chain", chain.name).splitlines()
    assert len(tree) == 51
    first, second = (row.strip("│ ├└─").split()[0] for row in tree[1:3])
    assert (first, second in {"left", "right"}) == ("top", True)
    assert len(read_topic(cluster.stack.kafka, topic)) == 250


def test_a_release_survives_the_death_of_its_worker_at_every_step(cluster: Cluster) -> None:
    cluster.insert(
        [{"_id": 1, "event_type": "placed", "timestamp": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}]
    )
    topic = unique_name("to")
    create_topics(cluster.stack.kafka, {topic: 1})
    body: dict[str, Any] = {"target": {"topic": topic}, "control_records": True}
    worker = cluster.start_worker()
    cluster.command("child", after=["parent"], **body)
    cluster.command("parent", after=["child"], **body)  # neither would ever begin by itself
    wait_for_reason(cluster, "child", "waiting for replay 'parent' (waiting)")
    worker.kill()
    cluster.command("child", "release")  # no worker reads the command before the restart
    for place in ("after-tokens", "after-status", "before-commit", "after-commit"):
        dying = cluster.start_worker(0, **{VARIABLE: place})
        assert dying.process.wait(LONG_SECONDS) == -signal.SIGKILL
    cluster.start_worker(0)
    for name in ("child", "parent"):
        session = cluster.wait_for(name, "completed")
        assert (session["counters"]["published"], session["released"]) == (1, name == "child")
    found = [
        (one.headers["replay-id"], one.headers.get("replay-control"))
        for one in read_topic(cluster.stack.kafka, topic)
    ]
    assert found == [
        (name, control) for name in (b"child", b"parent") for control in (b"begin", None, b"end")
    ]


def test_a_chain_grows_and_a_changed_replay_stops_the_whole_of_it(
    shop: Cluster, worker: Worker, topic: str, replay_app: CommandLine, chain: ChainFile
) -> None:
    plan = replay_app("apply", chain.write(first={}), "--plan")
    assert plan.splitlines()[0] == chain.id_of("first")
    assert "matched       5 events" in plan
    assert shop.session(chain.id_of("first")) is None
    replay_app("apply", str(chain.path), "--wait", "--requested-by", "ana")
    # The parent has ended before its child is applied.
    replay_app("apply", chain.write(second={"after": ["first"]}), "--wait", "--requested-by", "eva")
    first, second = (shop.session(chain.id_of(short)) for short in ("first", "second"))
    assert (first["state"], second["state"]) == ("completed", "completed")
    assert first["start"]["requested_by"] == "ana"
    assert second["start"]["requested_by"] == "eva"

    refused = replay_app("apply", chain.write(third={}, second={"max_events": 7}), code=3)
    assert f"'{chain.id_of('second')}' (completed): after is " in refused
    assert "max_events is 5 there and 7 here" in refused
    # Refused before anything is sent: a later answer of the agent would be here, too.
    shop.run(unique_name("other"), **some(topic))
    assert shop.session(chain.id_of("third")) is None
    status, answer = worker.request("POST", "/chains", chain.members)
    assert (status, "nothing is sent" in answer["detail"]) == (409, True)
    wrong = chain.members | {"replays": {"a": {"after": ["b"]}, "b": {"after": ["a"]}}}
    status, answer = worker.request("POST", "/chains", wrong)
    assert (status, "wait for each other: a -> b -> a" in answer["detail"]) == (400, True)
    assert worker.request("POST", "/chains", b"{")[0] == 400
    assert worker.request("POST", "/chains", b"")[0] == 400
    found = worker.get(f"/replays?chain={chain.name}")["replays"]
    assert [one["replay_id"] for one in found] == [chain.id_of("second"), chain.id_of("first")]
    assert worker.request("GET", "/replays?chain=a%20b")[0] == 400
    assert "there is no chain" in replay_app("chain", unique_name("no"), code=10)


def test_a_whole_chain_is_paused_resumed_and_cancelled(
    shop: Cluster, replay_app: CommandLine, chain: ChainFile
) -> None:
    slow = {"rate": 0.05, "max_events": 100}  # one event in twenty seconds
    file = chain.write(
        done={},
        slow={"after": ["done"], **slow},
        waiting={"after": ["slow"]},
    )
    replay_app("apply", file)
    shop.wait_for(chain.id_of("slow"), "running")
    assert f"  {chain.id_of('done')} (completed)" in replay_app("pause", "--chain", chain.name)
    for short in ("slow", "waiting"):
        shop.wait_for(chain.id_of(short), "paused")
    told = json.loads(replay_app("pause", "--chain", chain.name, "--json"))
    assert (told["requested"], told["refused"]) == ([], {})
    assert set(told["left"].values()) == {"completed", "paused"}
    told = json.loads(replay_app("resume", "--chain", chain.name, "--json"))
    assert told["requested"] == [chain.id_of("slow"), chain.id_of("waiting")]  # parents first
    shop.wait_for(chain.id_of("slow"), "running")
    wait_for_reason(shop, chain.id_of("waiting"), f"waiting for replay '{chain.id_of('slow')}'")
    # Only the parent is cancelled: its child is blocked, and the watch ends.
    replay_app("cancel", chain.id_of("slow"))
    shop.wait_for(chain.id_of("slow"), "cancelled")
    shown = replay_app("chain", chain.name, "--watch", code=1)
    assert f"{chain.name}: 1 of 3 replays completed; 1 cancelled, 1 waiting" in shown
    assert "waiting (blocked)" in shown
    told = json.loads(replay_app("cancel", "--chain", chain.name, "--json"))
    assert told["requested"] == [chain.id_of("waiting")]
    shop.wait_for(chain.id_of("waiting"), "cancelled")
    assert "takes a replay_id or --chain, not both" in replay_app(
        "pause", "r", "--chain", chain.name, code=2
    )
