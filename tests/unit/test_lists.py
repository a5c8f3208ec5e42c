"""The list of replays, on terminals and in pipes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from canned import Serve, session
from rich.cells import cell_len

from replay_app.answers import Replay
from replay_app.cli import run
from replay_app.lists import target_text

pytestmark = pytest.mark.usefixtures("clean_environment")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def listed(replay_id: str, state: str = "running", **facts: Any) -> dict[str, Any]:
    created = datetime.now(UTC) - timedelta(minutes=5, seconds=1)
    return session(state, **{"created_at": created.isoformat(), **facts}) | {"replay_id": replay_id}


def page(*replays: dict[str, Any], following: str | None = None, total: int = 0) -> Any:
    return {
        "replays": list(replays),
        "rejections": [],
        "next": following,
        "total": total or len(replays),
    }


LONG = "rebuild-all-orders-of-last-year-again-20260110-140000-abc123"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rich write as to a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def of_everything() -> list[dict[str, Any]]:
    done = session(shards=[{"progress": {"counters": {"read": 450}}}])["shards"]
    plan = {"end": "2026-01-01T00:00:00Z", "matched": 1000, "by_type": {}, "by_topic": {}}
    plan |= {"shards": [], "partitions": {}, "warnings": []}
    return [
        listed("r-1", start={"target": {"prefix": "rebuild."}}, shards=done, plan=plan),
        listed(
            LONG,
            "completed_with_errors",
            start={"target": {"topic": "a-topic-with-a-long-name-of-its-own"}, "dry_run": True},
            shards=done,
        ),
        listed("\x1b[31mred\n" * 5, "failed", stalled=True),
    ]


@pytest.mark.usefixtures("terminal")
def test_each_replay_has_one_line_of_80_columns(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, page(*of_everything())))
    assert run(["list"]) == 0
    lines = [COLOUR.sub("", line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].split() == ["REPLAY", "STATE", "DRY", "DONE", "TARGET", "AGE"]
    assert lines[1].split() == ["r-1", "running", "45%", "rebuild.*", "5m"]
    replay_id, state, dry, done, target, age = lines[2].split()
    assert replay_id.startswith("rebuild-all-")
    assert replay_id.endswith("-abc123")  # the end tells replays of one name apart
    assert (state, dry, done, age) == ("completed_with_errors", "dry", "450", "5m")
    assert target.startswith("a-topic")
    assert "failed (stalled)" in lines[3]


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("columns", [30, 40, 60])
def test_a_narrow_terminal_loses_columns_and_never_a_state(
    columns: int,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    serve((200, page(*of_everything()[:2])))
    assert run(["list"]) == 0
    lines = [COLOUR.sub("", line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert "AGE" not in lines[0]
    assert "completed_with_errors" in lines[2]


@pytest.mark.usefixtures("terminal")
def test_the_wide_list_is_as_wide_as_it_needs(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, page(*of_everything()[:2])))
    assert run(["list", "-o", "wide"]) == 0
    lines = [COLOUR.sub("", line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert LONG in lines[2]
    assert lines[0].split()[-1] == "NAME"


def test_an_empty_list_is_said(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve((200, page()), (200, page()))
    assert run(["list", "--text", "nothere"]) == 0
    assert run(["list"]) == 0
    assert capsys.readouterr().out == "no replay fits\nno replays\n"


@pytest.mark.usefixtures("terminal")
def test_generated_ids_are_not_cut(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    generated = "replay-20260110-140000-abc123"
    serve((200, page(listed(generated, "completed_with_errors"))))
    assert run(["list"]) == 0
    assert f"{generated}  " in COLOUR.sub("", capsys.readouterr().out)


@pytest.mark.usefixtures("terminal")
def test_states_are_coloured_unless_nobody_wants_colours(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, page(listed("r-1", "completed"), listed("r-2", "failed"))))
    assert run(["list"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[32mcompleted" in shown
    assert "\x1b[1;31mfailed" in shown
    assert "\x1b[1;31mLIVE" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(["list"]) == 0
    assert not re.search(r"\x1b\[(?:\d+;)?3\dm", capsys.readouterr().out)


def test_a_pipe_gets_whole_ids_without_colours(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, page(*of_everything())))
    assert run(["list"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert LONG in shown
    assert "a-topic-with-a-long-name-of-its-own" in shown


@pytest.mark.parametrize(
    ("start", "text"),
    [
        ({"target": {"prefix": "rebuild."}}, "rebuild.*"),
        ({"target": {"topic": "orders"}}, "orders"),
        ({"target": {}}, "LIVE"),
        ({"target": {"topics": {"a": "b"}}}, "LIVE"),
        ({"target": {}, "dry_run": True}, "original"),
    ],
)
def test_the_target_is_told_in_short(start: dict[str, Any], text: str) -> None:
    assert target_text(Replay.of(session(start=start))) == text


def test_names_and_json_are_for_programs(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    sent = page(listed("r-1"), listed("r-2", mood="new"))
    serve((200, sent))
    assert run(["list", "-o", "name"]) == 0
    assert capsys.readouterr().out == "r-1\nr-2\n"
    for way in (["--json"], ["-o", "json"]):
        assert run(["list", *way]) == 0
        assert json.loads(capsys.readouterr().out) == sent


def test_the_wide_list_has_more_columns(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    start = {"name": "January", "requested_by": "ana"}
    serve((200, page(listed("r-1", start=start, created_at="2026-01-01T08:00:00Z"))))
    assert run(["list", "-o", "wide"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[-6:] == ["READ", "FAILED", "EVENTS/S", "CREATED", "BY", "NAME"]
    assert line.split()[-2:] == ["ana", "January"]
    assert "2026-01-01" in line


def test_the_options_are_the_parameters_of_the_api(serve: Serve) -> None:
    server = serve((200, page()))
    states = ("--state", "failed", "--state", "running")
    assert run(["list", *states, "--since", "2026-01-01 UTC", "--text", "x", "--limit", "7"]) == 0
    ((_, path, _, _),) = server.asked
    assert path == (
        "/replays?state=failed&state=running&text=x&since=2026-01-01T00%3A00%3A00%2B00%3A00&limit=7"
    )


def test_a_limit_beyond_one_answer_takes_more_pages(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(
        (200, page(*(listed(f"a-{n}") for n in range(3)), following="1~a", total=9)),
        (200, page(*(listed(f"b-{n}") for n in range(3)), following="1~b", total=9)),
    )
    assert run(["list", "--limit", "5", "-o", "name"]) == 0
    assert [path for _, path, _, _ in server.asked] == [
        "/replays?limit=5",
        "/replays?limit=2&cursor=1~a",
    ]
    assert capsys.readouterr().out.splitlines()[3:] == ["b-0", "b-1"]


def test_what_is_not_shown_is_told(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve((200, page(listed("r-1"), following="1~r", total=1234)))
    assert run(["list"]) == 0
    assert "1 of 1,234 replays are shown; --limit N shows more" in capsys.readouterr().err


def test_a_watched_list_is_shown_again_after_a_change_and_outlasts_a_worker(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter(range(5))

    def wait(_: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("replay_app.lists.time.sleep", wait)
    serve(
        (200, page(listed("r-1"))),
        (200, page(listed("r-1"))),
        (503, {"detail": "the store is away", "unavailable": "event store"}),
        (503, {"detail": "the store is away", "unavailable": "event store"}),
        (200, page(listed("r-1", "completed", revision=2))),
    )
    assert run(["list", "--watch"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[:2] for line in shown.out.splitlines() if line.startswith("r-1")] == [
        ["r-1", "running"],
        ["r-1", "completed"],
    ]
    assert shown.err.count("the store is away") == 1
    assert "as of " in shown.err


@pytest.mark.usefixtures("terminal")
def test_the_notes_of_a_drawn_list_are_seen_where_the_list_is_taller_than_the_terminal(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter(range(1, 4))

    def wait(_: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setenv("LINES", "10")
    monkeypatch.setattr("replay_app.lists.time.sleep", wait)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    serve(
        (200, page(*(listed(f"r-{n}") for n in range(30)), following="1~r", total=90)),
        (503, {"detail": "the store is away", "unavailable": "event store"}),
    )
    assert run(["list", "--watch"]) == 0
    # Each picture of the list has 10 lines; only the last one, at the end, has all of them.
    shown = " ".join(COLOUR.sub("", capsys.readouterr().out).split())
    pictures = shown.split("REPLAY STATE")
    assert len(pictures) > 3
    assert "30 of 90 replays are shown" in pictures[0]
    assert "the store is away 30 of 90 replays are shown" in pictures[-2]
    assert "r-29" not in pictures[1]
    assert "r-29" in pictures[-1]
