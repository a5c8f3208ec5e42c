"""The exit codes are the same in the code and in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from canned import Serve, session

from replay_app.answers import Replay
from replay_app.cli import run
from replay_app.exit_codes import EXIT_CODES
from replay_app.proof import CODES
from replay_app.watching import exit_code

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
pytestmark = pytest.mark.usefixtures("clean_environment")


def test_the_document_has_the_table_of_the_code() -> None:
    section = OPERATIONS.read_text().partition("\n### Exit codes\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES
    assert len(rows) == len(EXIT_CODES)


def test_every_verdict_has_a_code_of_the_table() -> None:
    assert set(CODES.values()) <= EXIT_CODES.keys()


@pytest.mark.parametrize(
    ("state", "events", "code"),
    [
        ("completed", 5, 0),
        ("completed", 0, 0),
        ("completed_with_errors", 5, 8),
        ("completed_with_errors", 0, 4),
        ("failed", 5, 1),
        ("cancelled", 5, 9),
    ],
)
def test_each_end_of_a_replay_has_its_code(state: str, events: int, code: int) -> None:
    assert exit_code(Replay.of(session(state)), events) == code


@pytest.mark.parametrize(
    "command",
    ["status", "describe", "watch", "open", "pause", "cancel", "verify", "receipt", "redrive"],
)
def test_a_replay_that_nobody_knows_has_its_code(command: str, serve: Serve) -> None:
    serve((404, {"status": 404, "detail": "there is no replay 'r-1'"}))
    assert run([command, "r-1"]) == 10


@pytest.mark.parametrize("command", ["status", "pause", "dead-letters", "discard"])
def test_the_newest_of_no_replays_has_this_code_too(
    command: str, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, {"replays": [], "rejections": [], "next": None, "total": 0}))
    more = ["--reason", "x"] if command == "discard" else []
    assert run([command, "@last", *more]) == 10
    assert "there is no replay yet" in capsys.readouterr().err
