"""The client: what it makes of the answers of workers of other versions."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from canned import Serve, session

from replay_app.answers import Replay
from replay_app.client import Client, NotFound, Refused, body_of
from replay_app.commands import Filter, Parent, Start, Target
from replay_app.exceptions import ReplayError

pytestmark = pytest.mark.usefixtures("clean_environment")


def test_members_that_only_a_newer_worker_knows_are_accepted_and_kept(serve: Serve) -> None:
    start = {
        "filter": {"event_types": ["a"], "colours": ["red"]},
        "target": {"prefix": "x.", "bucket": None},
        "hurry": True,
        "after": ["r-0", {"replay": "r-00", "consumed": True}],
    }
    sent = session(start=start, mood="good", shards=[{"progress": {}, "node": 7}])
    serve((200, sent))
    replay = Client.of_settings().replay("r-1")
    assert replay.start.filter == Filter(event_types=("a",))
    assert replay.start.parents[1] == Parent(replay="r-00", consumed=True)
    assert replay.start.target == Target(prefix="x.")
    assert len(replay.shards) == 1
    assert replay.members == sent


def test_each_replay_of_a_page_keeps_its_members(serve: Serve) -> None:
    sent = [session(mood=mood, start={"replay_id": mood}) for mood in ("good", "bad")]
    serve((200, {"replays": sent, "rejections": [], "next": "7~r", "total": 9, "more": 1}))
    page = Client.of_settings().page()
    assert [one.members["mood"] for one in page.replays] == ["good", "bad"]
    assert [one.start.replay_id for one in page.replays] == ["good", "bad"]
    assert (page.next, page.total, page.members["more"]) == ("7~r", 9, 1)


def test_the_parameters_of_a_page_are_those_of_the_api(serve: Serve) -> None:
    server = serve((200, {"replays": []}))
    Client.of_settings().page(
        states=["failed", "running"],
        text="a b",
        chain="shop",
        since=datetime(2026, 1, 1, tzinfo=UTC),
        limit=5,
        cursor="1~r",
    )
    ((_, path, _, _),) = server.asked
    assert path == (
        "/replays?state=failed&state=running&text=a+b&chain=shop"
        "&since=2026-01-01T00%3A00%3A00%2B00%3A00&limit=5&cursor=1~r"
    )


@pytest.mark.parametrize("answer", [{"state": "running"}, {"replay_id": 5}, {}])
def test_an_answer_that_is_no_replay_says_what_to_do(answer: dict[str, Any], serve: Serve) -> None:
    serve((200, answer))
    with pytest.raises(ReplayError, match=r"is not understood \(.*use its own version"):
        Client.of_settings().replay("r-1")


@pytest.mark.parametrize("answer", [[], 5, "x", None])
def test_an_answer_that_is_no_object_comes_from_no_worker(answer: object, serve: Serve) -> None:
    serve((200, answer))
    with pytest.raises(ReplayError, match="is not a replay worker"):
        Client.of_settings().page()


def test_an_unknown_path_is_not_an_unknown_replay(serve: Serve) -> None:
    serve((404, b"<html>"))
    with pytest.raises(Refused, match="unknown path") as refused:
        Client.of_settings().replay("r-1")
    assert not isinstance(refused.value, NotFound)


def test_what_a_start_does_not_set_is_left_to_the_worker() -> None:
    start = Start(replay_id="r", filter=Filter(event_types=("a",)))
    assert body_of(start) == {"replay_id": "r", "filter": {"event_types": ["a"]}}
    consented = start.model_copy(update={"to_original": True})
    assert body_of(consented)["to_original"] is True


def test_a_replay_of_another_start_is_told_by_its_members() -> None:
    assert Replay.of(session()).start.replay_id == "r-1"
    with pytest.raises(ReplayError, match="state"):
        Replay.of(session("dreaming"))
