"""What a person at a terminal is asked, and what a program is refused."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from canned import Serve, session

from replay_app.cli import run

pytestmark = pytest.mark.usefixtures("clean_environment")
PLAN: dict[str, Any] = {
    "end": "2026-01-01T00:00:00Z",
    "matched": 5,
    "by_type": {"order_placed": 5},
    "by_topic": {"shop.orders": 5},
    "shards": [],
    "partitions": {"shop.orders": 1},
    "warnings": [],
    "live_topics": ["shop.orders", "shop.payments"],
}
ACCEPTED = {"replay_id": "r-1"}
TO_COPY = ("start", "--all", "--replay-id", "r-1", "--prefix", "a.")
TO_LIVE = ("start", "--all", "--replay-id", "r-1")
CHAIN = """\
chain: shop
defaults: {filter: {all: true}}
replays:
  copy: {target: {prefix: a.}}
  live:
"""


class Screen(io.StringIO):
    """Standard input or output that is a terminal."""

    def isatty(self) -> bool:
        return True


class Person:
    """Somebody at the terminal, who has typed the answers beforehand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.saw = ""

    def run(self, *arguments: str, types: str = "") -> int:
        """Run a command; `saw` is what the screen showed."""
        screen = Screen()
        with self._monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", Screen(types))
            patch.setattr(sys, "stdout", screen)
            code = run(arguments)
        self.saw = screen.getvalue()
        return code


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Person:
    return Person(monkeypatch)


def paths(server: Any) -> list[str]:
    return [f"{method} {path}" for method, path, _, _ in server.asked]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        *(("y\n", 0), ("yes\n", 0), ("Y\n", 0), ("YES\n", 0), ("Yes\n", 0)),
        *(("n\n", 1), ("\n", 1), ("", 1), ("shop.orders\n", 1)),
    ],
)
def test_a_person_sees_the_plan_and_decides(
    answer: str, code: int, serve: Serve, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve((200, PLAN), (202, ACCEPTED))
    assert person.run(*TO_COPY, types=answer) == code
    assert "matched       5 events" in person.saw
    assert "Start replay r-1? [y/N] " in person.saw
    asked = ["POST /plans", "POST /replays"]
    assert paths(server) == (asked if code == 0 else asked[:1])
    assert ("not confirmed: nothing is started" in capsys.readouterr().err) is bool(code)


def test_the_end_of_the_input_and_ctrl_c_end_the_line_of_a_question(
    serve: Serve, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve((200, PLAN))
    assert person.run(*TO_COPY, types="") == 1
    assert person.saw.endswith("[y/N] \n")

    def interrupt(_: Screen) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "readline", interrupt)
    assert person.run(*TO_COPY) == 130
    assert person.saw.endswith("[y/N] \n")


@pytest.mark.parametrize("arguments", [[*TO_COPY, "--yes"], [*TO_LIVE, "--dry-run"]])
def test_nothing_is_asked_before_a_dry_run_or_with_yes(
    arguments: list[str], serve: Serve, person: Person
) -> None:
    server = serve((202, ACCEPTED))
    assert person.run(*arguments) == 0
    assert paths(server) == ["POST /replays"]


def test_a_program_is_asked_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve((202, ACCEPTED))
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run(TO_COPY) == 0
    assert run(["cancel", "r-1"]) == 0
    assert paths(server) == ["POST /replays", "POST /replays/r-1/cancel"]


def test_a_program_in_a_terminal_asks_for_json(serve: Serve, person: Person) -> None:
    server = serve((202, ACCEPTED))
    assert person.run(*TO_COPY, "--json") == 0
    assert json.loads(person.saw) == ACCEPTED
    assert paths(server) == ["POST /replays"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("yes\n", 0),
        ("original\n", 0),
        ("shop.payments\n", 0),
        ("Yes\n", 0),
        ("ORIGINAL\n", 0),
        ("Shop.Payments\n", 1),  # another topic
        ("y\n", 1),
        ("shop.other\n", 1),
        ("\n", 1),
        ("", 1),
    ],
)
def test_a_person_consents_to_live_topics_that_the_question_names(
    answer: str, code: int, serve: Serve, person: Person
) -> None:
    server = serve((200, PLAN), (202, ACCEPTED))
    assert person.run(*TO_LIVE, types=answer) == code
    assert "The live topics: shop.orders, shop.payments" in person.saw
    assert len(server.asked) == (2 if code == 0 else 1)
    if code == 0:
        assert server.asked[1][2]["to_original"] is True


@pytest.mark.parametrize("more", [[], ["--yes"], ["--json"], ["--kafka"], ["--to", "a=b"]])
def test_a_program_must_name_the_consent(
    more: list[str], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve((202, ACCEPTED))
    assert run([*TO_LIVE, *more]) == 2
    assert "to do so, add --to-original" in capsys.readouterr().err
    assert server.asked == []


def test_yes_is_no_consent(
    serve: Serve, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve((202, ACCEPTED))
    assert person.run(*TO_LIVE, "--yes") == 2
    assert "add --to-original" in capsys.readouterr().err
    assert server.asked == []


def test_a_program_gives_the_consent_by_an_option_or_in_the_file(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve((202, ACCEPTED))
    assert run([*TO_LIVE, "--to-original"]) == 0
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"filter": {"all": True}, "to_original": True}))
    assert run(["start", "--file", str(file)]) == 0
    assert [body["to_original"] for _, _, body, _ in server.asked] == [True, True]


def test_who_has_consented_still_sees_the_plan(serve: Serve, person: Person) -> None:
    server = serve((200, PLAN), (202, ACCEPTED))
    assert person.run(*TO_LIVE, "--to-original", types="y\n") == 0
    assert "Start replay r-1? [y/N] " in person.saw
    assert "Type yes" not in person.saw
    assert len(server.asked) == 2


def test_without_a_worker_there_is_no_plan_but_the_question(person: Person) -> None:
    assert person.run(*TO_LIVE, "--kafka", types="n\n") == 1
    assert "not known beforehand: the topic of each event" in person.saw
    assert "matched" not in person.saw


def test_a_start_that_cannot_be_planned_says_why(
    serve: Serve, person: Person, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve((422, {"detail": "missing destination topics: a.x"}))
    assert person.run(*TO_COPY) == 3
    assert capsys.readouterr().err == "error: missing destination topics: a.x\n"
    assert paths(server) == ["POST /plans"]


@pytest.mark.parametrize(
    ("arguments", "types", "code"),
    [
        (["cancel", "r-1"], "Y\n", 0),
        (["cancel", "r-1"], "\n", 1),
        (["cancel", "r-1", "--yes"], "", 0),
        (["pause", "r-1"], "", 0),
    ],
)
def test_a_cancel_is_confirmed(
    arguments: list[str], types: str, code: int, serve: Serve, person: Person
) -> None:
    looks = [(200, session("running"))] if types else []
    server = serve(*looks, (202, ACCEPTED))
    assert person.run(*arguments, types=types) == code
    question = "Cancel replay r-1, which is running? A cancelled replay cannot"
    assert (question in person.saw) is bool(types)
    assert len(server.asked) == len(looks) + (0 if code else 1)


def test_nobody_is_asked_about_a_replay_that_does_not_exist(serve: Serve, person: Person) -> None:
    serve((404, {"detail": "there is no replay 'r-1'"}))
    assert person.run("cancel", "r-1", types="y\n") == 10
    assert "Cancel" not in person.saw


def test_a_cancel_of_a_chain_is_confirmed(serve: Serve, person: Person) -> None:
    server = serve((200, {"replays": [session(verbs=["cancel"])]}), (202, ACCEPTED))
    assert person.run("cancel", "--chain", "shop", types="n\n") == 1
    assert "Cancel every replay of chain shop?" in person.saw
    assert server.asked == []
    assert person.run("cancel", "--chain", "shop", types="y\n") == 0
    assert paths(server)[-1] == "POST /replays/r-1/cancel"


@pytest.fixture
def chain_file(tmp_path: Path) -> str:
    file = tmp_path / "shop.yaml"
    file.write_text(CHAIN)
    return str(file)


def applied(server: Any) -> dict[str, Any]:
    (body,) = (body for _, path, body, _ in server.asked if path == "/chains")
    return dict(body["replays"])


def test_a_chain_that_reaches_live_topics_is_confirmed(
    chain_file: str, serve: Serve, person: Person
) -> None:
    server = serve((200, PLAN), (202, {"chain": "shop", "replays": []}))
    assert person.run("apply", chain_file, types="no\n") == 1
    assert "shop.live publishes to the events' original topics" in person.saw
    assert paths(server) == ["POST /plans"]
    server = serve((200, PLAN), (202, {"chain": "shop", "replays": []}))
    assert person.run("apply", chain_file, types="yes\n") == 0
    assert applied(server) == {"copy": {"target": {"prefix": "a."}}, "live": {"to_original": True}}


def test_a_program_consents_for_a_chain_by_an_option(
    chain_file: str, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve((202, {"chain": "shop", "replays": []}))
    assert run(["apply", chain_file]) == 2
    assert "add --to-original, or to_original: true to the replay" in capsys.readouterr().err
    assert server.asked == []
    assert run(["apply", chain_file, "--to-original"]) == 0
    assert applied(server)["live"] == {"to_original": True}
