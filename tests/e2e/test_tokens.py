"""Who may do what over HTTP: tokens from a file, roles, target prefixes, and original topics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Regex
from command_line import CommandLine
from feeds import Feed
from secret_values import MARK
from support import create_topics, read_topic, unique_name, wait_until
from workers import Cluster, events_of

from replay_app.demo.stack import Stack
from replay_app.partitioner import partition_of

SECONDS = 60.0
EVENTS = 5
ANA, BOSS, WALL, NEW = (f"{MARK}-token-of-{name}" for name in ("ana", "boss", "wall", "new"))
"""Ana may replay to topics with a prefix, the boss to all topics, and the wall only shows."""


class Installation:
    """Two workers with a file of tokens, a few events, their live topic and a copy of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.file = cluster.folder / "tokens.json"
        self.live = unique_name("live")
        self.prefix = f"{cluster.name}-copy."
        self.write()
        cluster.environment |= {
            "REPLAY_TOKENS_FILE": str(self.file),
            "REPLAY_WEB_HOST": "127.0.0.1",
        }
        cluster.insert(events_of(self.live, EVENTS))
        create_topics(cluster.stack.kafka, {self.live: 1, self.prefix + self.live: 1})
        self.workers = [cluster.start_worker(), cluster.start_worker()]
        for worker in self.workers:
            worker.wait_until_ready()

    def write(self, **tokens: str) -> None:
        """Write the file; ``tokens`` replace those of the same name."""
        entries: list[dict[str, Any]] = [
            {"name": "ana", "token": ANA, "role": "operate", "target_prefixes": [self.prefix]},
            {"name": "boss", "token": BOSS, "role": "operate"},
            {"name": "wall", "token": WALL, "role": "read"},
        ]
        given = [{**one, "token": tokens.get(one["name"], one["token"])} for one in entries]
        self.file.write_text(json.dumps({"tokens": given}))

    def ask(
        self, token: str | None, method: str, path: str, body: Any = None, number: int = 0
    ) -> tuple[int, Any]:
        """Return status and answer of a worker to the owner of a token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self.workers[number].request(method, path, body, headers)

    def start(self, token: str, **members: Any) -> tuple[int, Any]:
        return self.ask(token, "POST", "/replays", self.body(**members))

    def body(self, **members: Any) -> dict[str, Any]:
        copy = {"replay_id": unique_name("r"), "target": {"prefix": self.prefix}}
        return {**copy, "filter": {"event_types": [self.live]}, **members}

    def wait_for(self, replay_id: str, *states: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def reached() -> bool:
            status, session = self.ask(WALL, "GET", f"/replays/{replay_id}")
            found.update(session if status == 200 else {})
            return found.get("state") in states

        wait_until(reached, SECONDS, f"{replay_id} is not {states}: {self.cluster.logs()}")
        return found

    def logs(self) -> str:
        return "".join(worker.log.read_text() for worker in self.workers)


@pytest.fixture(scope="module")
def installation(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    cluster = Cluster(stack, tmp_path_factory.mktemp("tokens"))
    try:
        yield Installation(cluster)
    finally:
        cluster.close()


def test_a_token_to_read_sees_everything_and_changes_nothing(installation: Installation) -> None:
    ask, body = installation.ask, installation.body(after=["never-started"])
    replay_id = body["replay_id"]
    assert ask(BOSS, "POST", "/replays", body)[0] == 202
    installation.wait_for(replay_id, "waiting")
    for path in ("/replays", f"/replays/{replay_id}", "/metrics"):
        assert ask(None, "GET", path)[0] == 401
        assert ask(f"{WALL}x", "GET", path)[0] == 401
        for number in (0, 1):
            assert ask(WALL, "GET", path, number=number)[0] == 200
    status, plan = ask(WALL, "POST", "/plans", installation.body(target={}))
    assert (status, plan["matched"], plan["live_topics"]) == (200, EVENTS, [installation.live])
    for method, path, sent in (
        ("POST", "/replays", installation.body()),
        ("POST", "/chains", {"chain": "c", "replays": {"a": {"filter": {"all": True}}}}),
        ("POST", f"/replays/{replay_id}/cancel", None),
        ("PATCH", f"/replays/{replay_id}", {"rate": 5}),
        ("POST", f"/replays/{replay_id}/verification", {}),
    ):
        status, problem = ask(WALL, method, path, sent)
        assert status == 403
        assert "'wall' has the role read" in problem["detail"]
        assert ask(None, method, path, sent)[0] == 401
    assert ask(BOSS, "POST", f"/replays/{replay_id}/cancel")[0] == 202
    assert installation.wait_for(replay_id, "cancelled")["rate"] is None


def test_a_token_with_prefixes_commands_only_replays_that_stay_within(
    installation: Installation,
) -> None:
    ask, start, live = installation.ask, installation.start, installation.live
    for members in (
        {"target": {"topic": live}},
        {"target": {"prefix": installation.prefix, "topics": {live: live}}},
        {"target": {}, "to_original": True},
        {"transforms": ["any"]},
    ):
        status, problem = start(ANA, **members)
        assert status == 403
        words = (
            f"'ana' allows only replays to topics that surely begin with {installation.prefix!r}"
        )
        assert words in problem["detail"]
    status, answer = start(ANA)
    assert status == 202
    session = installation.wait_for(answer["replay_id"], "completed")
    assert session["counters"]["published"] == EVENTS
    # Nothing is published by a dry run.
    status, answer = start(ANA, target={"topic": live}, dry_run=True)
    assert status == 202
    installation.wait_for(answer["replay_id"], "completed")
    # What others do elsewhere is not ana's.
    other = installation.body(target={"topic": live}, paused=True)
    mine = installation.body(paused=True)
    for body in (other, mine):
        assert ask(BOSS, "POST", "/replays", body)[0] == 202
    for method, verb, sent in (
        ("PATCH", "", {"rate": 5}),
        ("POST", "/resume", None),
        ("POST", "/step", {"events": 1, "published": 0}),
        ("POST", "/cancel", None),
    ):
        status, problem = ask(ANA, method, f"/replays/{other['replay_id']}{verb}", sent)
        assert (status, f"the target names {live!r}" in problem["detail"]) == (403, True)
    assert installation.wait_for(other["replay_id"], "paused")["rate"] is None
    assert ask(ANA, "PATCH", f"/replays/{mine['replay_id']}", {"rate": 5})[0] == 202
    for body in (other, mine):
        assert ask(BOSS, "POST", f"/replays/{body['replay_id']}/cancel")[0] == 202
    # Of a chain, all replays or none.
    name = unique_name("chain")
    wanted = {"filter": {"event_types": [live]}, "dry_run": True}
    chain = {"chain": name, "replays": {"a": wanted, "b": {**wanted, "dry_run": False}}}
    chain["defaults"] = {"target": {"topic": live}}
    status, problem = ask(ANA, "POST", "/chains", chain)
    assert (status, f"'{name}.b'" in problem["detail"]) == (403, True)
    chain["defaults"] = {"target": {"prefix": installation.prefix}}
    assert ask(ANA, "POST", "/chains", chain)[0] == 202
    for short in ("a", "b"):
        session = installation.wait_for(f"{name}.{short}", "completed")
        assert session["start"]["requested_by"] == "ana"


def test_the_name_of_the_token_stands_for_who_requests(installation: Installation) -> None:
    ask, body = installation.ask, installation.body(requested_by="mallory", paused=True)
    replay_id = body["replay_id"]
    first = ask(ANA, "POST", "/replays", body)
    assert first[0] == 202
    session = installation.wait_for(replay_id, "paused")
    assert session["start"]["requested_by"] == "ana"
    # The same start again is equal, whoever the body names, and that of another token is not.
    again = {**body, "requested_by": "somebody"}
    assert ask(ANA, "POST", "/replays", again, number=1)[0] == 202
    assert ask(BOSS, "POST", "/replays", body)[0] == 409
    given = {"requested_by": "mallory"}
    assert ask(BOSS, "PATCH", f"/replays/{replay_id}", {"rate": 5, **given})[0] == 202
    assert ask(BOSS, "POST", f"/replays/{replay_id}/cancel", given)[0] == 202
    installation.wait_for(replay_id, "cancelled")

    def is_logged() -> bool:
        lines = [one for one in installation.logs().splitlines() if replay_id in one]
        assert not any("mallory" in one for one in lines)
        wanted = ("requested by ana", "rate 5 events/s, requested by boss", "-> cancelled")
        return all(any(words in one for one in lines) for words in wanted)

    wait_until(is_logged, SECONDS)


def test_original_topics_need_a_consent_over_http(installation: Installation) -> None:
    ask, live = installation.ask, installation.live
    body = installation.body(target={})
    name = unique_name("chain")
    chain: dict[str, Any] = {"chain": name, "replays": {"a": {"filter": body["filter"]}}}
    for path, sent in (("/replays", body), ("/chains", chain)):
        status, problem = ask(BOSS, "POST", path, sent)
        assert status == 422
        assert '"to_original": true' in problem["detail"]
    assert ask(BOSS, "POST", "/replays", {**body, "to_original": True})[0] == 202
    session = installation.wait_for(body["replay_id"], "completed")
    assert session["start"]["to_original"] is True
    assert ask(BOSS, "POST", "/chains", {**chain, "defaults": {"to_original": True}})[0] == 202
    installation.wait_for(f"{name}.a", "completed")
    # A record of today's form keeps working, and is the same replay as one with the consent.
    old = installation.body(target={})
    installation.cluster.command(**old)
    session = installation.wait_for(old["replay_id"], "completed")
    assert session["start"]["to_original"] is False
    assert ask(BOSS, "POST", "/replays", {**old, "to_original": True})[0] == 409  # another person
    chained = {**body, "filter": body["filter"], "chain": name, "replay_id": f"{name}.b"}
    installation.cluster.command(**chained)
    installation.wait_for(f"{name}.b", "completed")
    chain = {**chain, "defaults": {"to_original": True}}
    chain["replays"]["b"] = {"filter": body["filter"]}
    status, answer = ask(BOSS, "POST", "/chains", chain)
    assert status == 202, answer
    assert {one["outcome"] for one in answer["replays"]} == {"existed"}
    records = read_topic(installation.cluster.stack.kafka, [live])
    assert len(records) == 4 * EVENTS


def test_a_redrive_goes_where_its_replay_went_and_has_its_consent(
    installation: Installation, tmp_path: Path
) -> None:
    cluster, kind = installation.cluster, unique_name("buried")
    create_topics(cluster.stack.kafka, {kind: 1})
    events = events_of(kind, EVENTS)
    events[1]["body"] = Regex("^x")
    cluster.insert(events)
    body = installation.body(filter={"event_types": [kind]}, target={}, on_error="dead-letter")
    replay_id = body["replay_id"]
    cluster.command(**body)  # a record needs no consent
    installation.wait_for(replay_id, "completed_with_errors")
    with cluster.store() as collection:
        collection.update_one({"event_id": f"{kind}-1"}, {"$set": {"body": "x"}})
    client = {"REPLAY_URL": installation.workers[0].url, "REPLAY_API_TOKEN": BOSS}
    replay_app = CommandLine({**cluster.environment, **client}, tmp_path)
    # The first replay, a record of the old form, had no consent that a redrive could go on with.
    assert "add --to-original" in replay_app("redrive", replay_id, code=2)
    replay_app("redrive", replay_id, "--to-original")
    session = installation.wait_for(f"{replay_id}.redrive-1", "completed")
    assert session["start"]["requested_by"] == "boss"
    assert len(read_topic(cluster.stack.kafka, [kind])) == EVENTS


def test_two_workers_with_a_file_answer_for_each_others_replays(
    installation: Installation,
) -> None:
    names = (unique_name("r") for _ in range(1000))
    ids: dict[int, str] = {}
    while len(ids) < installation.cluster.partitions:  # so each worker owns some
        name = next(names)
        ids.setdefault(partition_of(name.encode(), installation.cluster.partitions), name)
    for one in ids.values():
        assert installation.start(ANA, replay_id=one, dry_run=True)[0] == 202
        installation.wait_for(one, "completed")
    for number in (0, 1):
        for one in ids.values():
            status, session = installation.ask(WALL, "GET", f"/replays/{one}", number=number)
            assert (status, session["replay_id"]) == (200, one)
            assert installation.ask("wrong", "GET", f"/replays/{one}", number=number)[0] == 401


def test_a_changed_file_counts_without_a_restart_and_a_broken_one_does_not(
    installation: Installation,
) -> None:
    ask = installation.ask

    def statuses(token: str) -> set[int]:
        return {ask(token, "GET", "/replays", number=number)[0] for number in (0, 1)}

    assert (statuses(WALL), statuses(NEW)) == ({200}, {401})
    installation.write(wall=NEW)
    wait_until(lambda: statuses(NEW) == {200}, 10)
    assert statuses(WALL) == {401}
    good = installation.file.read_text()
    installation.file.write_text(good[:-9])

    def warnings(number: int) -> list[str]:
        status, answer = ask(None, "GET", "/readyz", number=number)
        assert status == 200
        return list(answer.get("warnings", []))

    for number in (0, 1):
        wait_until(lambda number=number: warnings(number), 10)  # type: ignore[misc]
        (warning,) = warnings(number)
        assert warning.startswith(f"REPLAY_TOKENS_FILE={installation.file}: is not JSON")
    assert (statuses(NEW), statuses(WALL)) == ({200}, {401})
    installation.write()
    wait_until(lambda: statuses(WALL) == {200}, 10)
    assert statuses(NEW) == {401}
    assert not warnings(0)
    assert not warnings(1)
    for worker in installation.workers:
        log = worker.log.read_text()
        assert log.count("the tokens before stay in force") == 1
        assert MARK not in log


def test_a_feed_ends_when_its_token_is_gone(installation: Installation) -> None:
    feed = Feed(installation.workers[0], {"Authorization": f"Bearer {WALL}"})
    try:
        first = feed.until("ready")
        assert first[0][1]["you"] == {"name": "wall", "role": "read", "target_prefixes": None}
        installation.write(wall=NEW)
        wait_until(lambda: installation.ask(WALL, "GET", "/replays")[0] == 401, 10)
        _, answer = installation.start(BOSS)
        # No message about the new replay: nothing is told once the token is gone.
        assert [
            data for _, data in feed.messages() if data["replay_id"] == answer["replay_id"]
        ] == []
    finally:
        feed.close()
        installation.write()
        wait_until(lambda: installation.ask(WALL, "GET", "/replays")[0] == 200, 10)


def test_a_page_of_another_origin_gets_nothing(installation: Installation) -> None:
    worker, right = installation.workers[0], {"Authorization": f"Bearer {WALL}"}
    for path in ("/", "/replays", "/static/main.js", "/readyz"):
        assert worker.request("GET", path, headers=right)[0] == 200
        for foreign in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            status, problem = worker.request("GET", path, headers={**right, **foreign})
            assert (status, problem["status"]) == (403, 403)
    own = {"Origin": worker.url, "Sec-Fetch-Site": "same-origin"}
    assert worker.request("GET", "/replays", headers={**right, **own})[0] == 200


def test_a_worker_with_a_broken_file_does_not_start(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text(json.dumps({"tokens": [{"name": "ana", "token": ANA}]}))
    worker = cluster.start_worker(None, REPLAY_TOKENS_FILE=str(file))
    assert worker.process.wait(SECONDS) == 2
    log = worker.log.read_text()
    assert f"REPLAY_TOKENS_FILE={file}: tokens.0.role: missing" in log
    assert "Traceback" not in log


def test_no_replay_reaches_live_topics_where_the_setting_forbids_that(cluster: Cluster) -> None:
    live, copy = unique_name("live"), unique_name("copy")
    cluster.insert(events_of(live, EVENTS))
    create_topics(cluster.stack.kafka, {live: 1, copy: 1})
    transforms = json.dumps({"as-told": "odd_transforms:as_told"})
    worker = cluster.start_worker(
        None,
        REPLAY_ALLOW_ORIGINAL="false",
        REPLAY_TRANSFORMS=transforms,
        PYTHONPATH=str(Path(__file__).parents[1]),
    ).wait_until_ready()
    body = {"replay_id": "over-http", "filter": {"all": True}, "to_original": True}
    status, problem = worker.request("POST", "/replays", body)
    assert (status, "REPLAY_ALLOW_ORIGINAL=false" in problem["detail"]) == (422, True)
    chain = {"chain": "c", "replays": {"a": {"filter": {"all": True}, "to_original": True}}}
    assert worker.request("POST", "/chains", chain)[0] == 422
    # On the topic, the command is answered with a rejection.
    cluster.command("over-kafka", target={}, to_original=True)
    (rejection,) = wait_until(lambda: worker.get("/replays")["rejections"], SECONDS)
    assert rejection["replay_id"] == "over-kafka"
    assert "REPLAY_ALLOW_ORIGINAL=false" in rejection["rejected"]
    # A target that names the live topic is found out by the plan.
    session = cluster.run("named", target={"topic": live})
    assert session["state"] == "failed"
    assert f"would publish to live topics of its events, {live!r}" in session["error"]
    # A plan shows the live topics, and refuses nothing.
    status, plan = worker.request("POST", "/plans", {**body, "target": {"topic": live}})
    assert (status, plan["live_topics"]) == (200, [live])
    # Dry runs, and replays to other topics, run.
    assert cluster.run("dry", target={}, dry_run=True)["state"] == "completed"
    assert cluster.run("copied", target={"topic": copy})["counters"]["published"] == EVENTS
    # A transform that names the live topic is found out where its first event comes.
    with cluster.store() as events:
        events.update_many({}, {"$set": {"wish": "elsewhere", "to": live}})
    session = cluster.run("transformed", target={"topic": copy}, transforms=["as-told"])
    assert (session["state"], session["counters"]["published"]) == ("failed", 0)
    assert "REPLAY_ALLOW_ORIGINAL=false forbids" in session["error"]
    assert not read_topic(cluster.stack.kafka, [live])
