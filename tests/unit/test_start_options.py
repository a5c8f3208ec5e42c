"""Refusals name the option that a member comes from, and the member of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from canned import Serve

from replay_app.cli import program_parser, run
from replay_app.start_options import option_names

pytestmark = pytest.mark.usefixtures("clean_environment")
ALL = ("--all", "--prefix", "a.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--start", "2026-01-02 UTC", "--end", "2026-01-01 UTC"],
            "--start 2026-01-02T00:00:00+00",
        ),
        (
            ["--start", "2026-01-02 UTC", "--end", "2026-01-01 UTC"],
            "is not before --end 2026-01-01",
        ),
        ([*ALL, "--name", ""], "error: --name: String should have"),
        ([*ALL, "--to-topic", "b"], "a target has either a --to-topic or a --prefix"),
        ([*ALL, "--shards", "3"], "--shards needs --ordering 'aggregate'; a global order"),
        ([*ALL, "--max-gap-seconds", "3"], "--max-gap-seconds needs a --speed: without one"),
        ([*ALL, "--max-lag", "3"], "--max-lag needs --consumer: name the groups"),
        ([*ALL, "--consumer", "a", "--consumer", "a"], "error: --consumer: a group is named twice"),
        (
            [*ALL, "--control-records", "--transform", "t"],
            "--control-records do not go with --tr",
        ),
        (["--all", "--event-type", "a"], "all events are asked for, and a condition: --event-type"),
        ([*ALL, "--redact", "a=shred"], "error: --redact a: Input should be"),
        (["--field", 'a={"odd": 1}'], "error: --field a"),
        (["--event-type", ""], "error: --event-type: String should have"),
        ([*ALL, "--replay-id", "a/b"], "error: --replay-id: a replay_id is"),
        ([*ALL, "--after", "a/b"], "error: --after: a replay_id is"),
    ],
)
def test_a_refusal_names_the_option(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["start", "--kafka", *arguments]) == 3
    assert message in capsys.readouterr().err


def test_what_a_file_says_keeps_the_name_of_its_member(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"filter": {"event_types": [""], "start": "x"}, "shards": 3, "target": {"prefix": "a."}}
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    assert run(["start", "--kafka", "--file", str(file), "--name", ""]) == 3
    said = capsys.readouterr().err
    assert "filter.event_types.0: " in said
    assert "filter.start: a time is written as" in said
    assert "--name: " in said
    file.write_text(json.dumps({"filter": {"all": True}, "shards": 3, "ordering": "global"}))
    assert run(["start", "--kafka", "--file", str(file)]) == 3
    assert "shards needs ordering 'aggregate'" in capsys.readouterr().err
    assert run(["start", "--kafka", "--file", str(file), "--shards", "5"]) == 3
    assert "--shards needs ordering 'aggregate'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ("filter.end: too late", "error: --end: too late"),
        ("rate: too high; filter.end: too late", "error: rate: too high; --end: too late"),
        ("there is no event 'x' (until_event_id)", "there is no event 'x' (--until-event-id)"),
        ("the start of the end has no topic", "error: the start of the end has no topic"),
    ],
)
def test_what_the_worker_refuses_names_the_option_too(
    detail: str, said: str, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((422, {"detail": detail}))
    options = ("--event-type", "a", "--end", "today", "--until-event-id", "x", "--prefix", "a.")
    assert run(["start", *options]) == 3
    assert said in capsys.readouterr().err


def test_every_option_of_the_body_is_known() -> None:
    names = option_names()
    assert names["filter.start"] == "--start"
    assert names["target.topic"] == "--to-topic"
    assert names["body.to_original"] == "--to-original"
    options = vars(program_parser().parse_args(["start", "--all", "--dry-run", "--rate", "5"]))
    assert {one for one in options if "." in one} <= names.keys()
