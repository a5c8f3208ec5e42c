"""The command line: what it makes of its arguments, and how it ends."""

from __future__ import annotations

import io
import json
import os
import traceback
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from canned import Serve, session
from secret_values import MARK, SECRET_TOKEN, SECRET_WORD

from replay_app import accounts, client, terminal
from replay_app.cli import program_parser, run
from replay_app.commands import MAX_COMMAND_BYTES, command_of
from replay_app.exceptions import InvalidSettings
from replay_app.exit_codes import EXIT_CODES
from replay_app.settings import Settings, load_settings
from replay_app.start_options import start_body
from replay_app.store import EventStore
from replay_app.times import local
from replay_app.watching import warnings_at_the_end

pytestmark = pytest.mark.usefixtures("clean_environment")
NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def body_of(*arguments: str) -> dict[str, Any]:
    return start_body(program_parser().parse_args(["start", *arguments]))


# The body of a start


def test_every_option_of_start_reaches_the_body() -> None:
    body = body_of(
        *("--start", "2026-01-01T00:00:00Z", "--end", "2026-02-01T00:00:00Z"),
        *("--event-type", "order_placed", "--event-type", "order_paid"),
        *("--exclude-event-type", "order_cancelled", "--aggregate-id", "o-1", "--event-id", "e-1"),
        *("--field", 'metadata.user_id="u-1"', "--field", "version=2", "--field", "city=Zürich"),
        *("--field", "paid=true", "--field", "note=null", "--field", "a=b=c"),
        *("--to-topic", "all", "--to", "order_placed=orders", "--ordering", "aggregate"),
        *("--shards", "4", "--dry-run", "--rate", "500", "--on-error", "skip"),
        *("--control-records", "--after", "r-1", "--after", "r-2", "--include-replayed"),
        *("--name", "Rebuild", "--reason", "lost", "--replay-id", "r-3", "--requested-by", "eva"),
    )
    assert body == {
        "command": "start",
        "replay_id": "r-3",
        "name": "Rebuild",
        "reason": "lost",
        "requested_by": "eva",
        "filter": {
            "start": "2026-01-01T00:00:00Z",
            "end": "2026-02-01T00:00:00Z",
            "event_types": ["order_placed", "order_paid"],
            "exclude_event_types": ["order_cancelled"],
            "aggregate_ids": ["o-1"],
            "event_ids": ["e-1"],
            "fields": {
                "metadata.user_id": "u-1",
                "version": 2,
                "city": "Zürich",
                "paid": True,
                "note": None,
                "a": "b=c",
            },
        },
        "target": {"topic": "all", "topics": {"order_placed": "orders"}},
        "ordering": "aggregate",
        "shards": 4,
        "dry_run": True,
        "rate": 500.0,
        "on_error": "skip",
        "control_records": True,
        "include_replayed": True,
        "after": ["r-1", "r-2"],
    }
    command_of({**body, "replay_id": "r-3"})


def test_consumer_groups_and_their_lag_reach_the_body() -> None:
    body = body_of("--all", "--consumer", "orders-view", "--consumer", "b", "--max-lag", "5000")
    assert (body["consumers"], body["max_lag"]) == (["orders-view", "b"], 5000)
    command_of({**body, "replay_id": "r-3"})


def test_what_is_not_given_is_left_to_the_worker() -> None:
    every = {"all": True}
    assert body_of("--all") == {"command": "start", "requested_by": "ana", "filter": every}
    assert body_of("--all", "--prefix", "test.", "--max-events", "10") == {
        "command": "start",
        "requested_by": "ana",
        "filter": every,
        "target": {"prefix": "test."},
        "max_events": 10,
    }


@pytest.mark.parametrize("command", ["start", "plan"])
@pytest.mark.parametrize("body", [{}, {"filter": {}}, {"filter": {"end": None, "event_ids": []}}])
def test_a_start_must_say_which_events(
    command: str, body: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    for options in ([], ["--max-events", "10", "--rate", "5"], ["--file", str(file)]):
        assert run([command, *options]) == 2
        assert "--all" in capsys.readouterr().err


def test_options_go_over_the_body_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"requested_by": "eva", "rate": 5, "filter": {"event_types": ["a"], "end": "x"}}
    file = tmp_path / "body.json"
    file.write_text(json.dumps(body))
    expected = {
        "command": "start",
        "requested_by": "eva",
        "rate": 7.0,
        "filter": {"event_types": ["a"], "end": "2026-01-01T00:00:00Z"},
    }
    options = ("--rate", "7", "--end", "2026-01-01 UTC")
    assert body_of("--file", str(file), *options) == expected
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(body).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert body_of("--file", "-", *options) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("", "the command is empty"),
        ("{", "not JSON"),
        ("[]", "the command is not a JSON object"),
        ('{"filter": []}', "filter is not a JSON object"),
        ('{"filter": {"fields": {"a": 1, "a": 2}}}', "a: given more than once"),
        ('{"filter": {"end": "x"}, "rate": 1, "filter": {}}', "filter: given more than once"),
        ('{"reason": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_a_useless_file_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    file = tmp_path / "body.json"
    if content is not None:
        file.write_text(content)
    assert run(["start", "--url", NOWHERE, "--file", str(file)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: --file {file}")
    with pytest.raises(Exception, match=message):
        body_of("--file", str(file))


# Usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND is missing; see: replay-app --help"),
        (["replay"], "there is no command 'replay'; did you mean"),
        (["strat"], "there is no command 'strat'; did you mean start? See: replay-app --help"),
        (["completly"], "there is no command 'completly'; did you mean completion?"),
        (["--jsn", "list"], "--jsn is unknown; did you mean --json? See: replay-app --help"),
        (["list", "--state", "runing"], "not 'runing'; did you mean running? See: replay-app list"),
        (["list", "--state", "x"], "--state takes one of pending, planning, waiting, running,"),
        (["list", "--since", "soon"], "--since takes a time such as 2026-01-10, "),
        (["start", "--start", "2026-01-10 14:00 Nowhere"], "--start names the time zone 'Nowhere'"),
        (["status"], "replay_id is missing; see: replay-app status --help"),
        (["start", "--rate", "0"], "--rate takes a positive number, not '0'"),
        (["start", "--rate", "inf"], "--rate takes a positive number, not 'inf'"),
        (["start", "--rate", "fast"], "--rate takes a positive number, not 'fast'"),
        (["start", "--rate"], "--rate needs a value"),
        (["start", "--dry-run=yes"], "--dry-run takes no value, but has 'yes'"),
        (
            ["start", "--event-typ", "a"],
            "is unknown; did you mean --event-type? See: replay-app start",
        ),
        (["start", "--xyzzy"], "--xyzzy is unknown; see: replay-app start --help"),
        (["start", "--max-events", "-1"], "--max-events takes a positive whole number, not '-1'"),
        (["start", "--max-lag", "0"], "--max-lag takes a positive whole number, not '0'"),
        (["start", "--shards", "1.5"], "--shards takes a positive whole number, not '1.5'"),
        (["start", "--ordering", "random"], "--ordering takes one of 'global', 'aggregate', not"),
        (["start", "--on-error", "ignore"], "--on-error takes one of 'fail', 'skip', 'dead-let"),
        (["start", "--field", "version"], "--field takes NAME=VALUE, not 'version'"),
        (["start", "--field", "version=[1]"], "--field takes PATH=VALUE with a value, or"),
        (["start", "--to", "order_placed"], "--to takes NAME=VALUE, not 'order_placed'"),
        (["set-rate", "r-1"], "rate is missing"),
        (["set-rate", "r-1", "-5"], "rate takes a positive number of events per second, or none"),
        (["demo", "--events", "none"], "--events takes a positive whole number, not 'none'"),
        (["worker", "--web-port", "web"], "--web-port takes a whole number, not 'web'"),
        (["list", "--limit", "0"], "--limit takes a positive whole number, not '0'"),
        (["list", "--limit", "9" * 5000], "--limit takes a positive whole number, not '99"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_in_one_line_what_an_option_takes(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "argument" not in line
    assert run([*arguments, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]


def test_the_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    for code, meaning in EXIT_CODES.items():
        assert f"  {code:>3}  {meaning}" in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["worker"], {"REPLAY_PARTITIONS": "many"}, "REPLAY_PARTITIONS"),
        (["worker", "--web-port", "0"], {}, "REPLAY_WEB_PORT"),
        (["settings"], {"REPLAY_DELIVERY": "twice"}, "REPLAY_DELIVERY"),
        (["topics"], {"REPLAY_TOPICS": "no json"}, "REPLAY_TOPICS"),
        (["list", "--url", "localhost:6066"], {}, "--url"),
        (["list"], {"REPLAY_URL": "ftp://x"}, "REPLAY_URL"),
        (["list"], {"REPLAY_ULR": "http://x"}, "did you mean REPLAY_URL?"),
        (["worker"], {"REPLAY_LOGLEVEL": "INFO"}, "did you mean REPLAY_LOG_LEVEL?"),
    ],
)
def test_wrong_settings_end_with_2_and_are_named(
    arguments: list[str],
    environment: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--json", "list"], ["list", "--json"]])
def test_json_goes_before_and_after_the_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--url", NOWHERE]) == 1
    assert "no worker answers" in json.loads(capsys.readouterr().out)["error"]


# Against a server


@pytest.mark.parametrize(
    ("status", "code"), [(400, 3), (401, 3), (403, 3), (404, 10), (409, 3), (422, 3)]
)
def test_a_refusal_ends_with_its_code_and_its_reason(
    status: int, code: int, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((status, {"status": status, "detail": "it is completed", "state": "completed"}))
    assert run(["pause", "r-1", "--json"]) == code
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert "it is completed" in answer["error"]
    assert (answer["status"], answer["state"]) == (status, None if code == 10 else "completed")
    assert "error: it is completed" in shown.err


def test_what_is_no_replay_worker_is_named(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, b"<html>"))
    assert run(["list"]) == 1
    assert "is not a replay worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (["pause", "r-1"], "POST", "/replays/r-1/pause", {"requested_by": "ana"}),
        (["resume", "a/b"], "POST", "/replays/a%2Fb/resume", {"requested_by": "ana"}),
        (
            ["cancel", "r-1", "--requested-by", "eva"],
            "POST",
            "/replays/r-1/cancel",
            {"requested_by": "eva"},
        ),
        (["retry", "r-1"], "POST", "/replays/r-1/retry", {"requested_by": "ana"}),
        (["release", "r-1"], "POST", "/replays/r-1/release", {"requested_by": "ana"}),
        (
            ["set-rate", "r-1", "250"],
            "PATCH",
            "/replays/r-1",
            {"rate": 250.0, "requested_by": "ana"},
        ),
        (
            ["set-rate", "r-1", "none"],
            "PATCH",
            "/replays/r-1",
            {"rate": None, "requested_by": "ana"},
        ),
    ],
)
def test_a_command_asks_the_worker_with_the_token(
    arguments: list[str],
    method: str,
    path: str,
    body: Any,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REPLAY_API_TOKEN", SECRET_TOKEN)
    server = serve((202, {"replay_id": "r-1"}))
    assert run(arguments) == 0
    expected = [(method, path, body, f"Bearer {SECRET_TOKEN}")]
    if "retry" in arguments:  # it returns once the replay is not failed any more
        expected.append(("GET", "/replays?state=failed&limit=1000", None, f"Bearer {SECRET_TOKEN}"))
    assert server.asked == expected


def test_a_start_that_meets_a_worker_that_is_not_ready_is_sent_again_under_the_same_id(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ASK_AGAIN_SECONDS", 0.01)
    server = serve((503, {"detail": "rebalancing"}), (202, {"replay_id": "x"}))
    assert run(["start", "--name", "Orders", "--all", "--prefix", "a."]) == 0
    first, second = (body for _, _, body, _ in server.asked)
    assert first == second
    assert first["replay_id"].startswith("orders-")


def test_a_proxy_of_the_environment_is_used_unless_the_host_is_excepted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve((200, {"replays": [], "rejections": []}))
    monkeypatch.setattr("urllib.request._opener", None)  # made once in a process
    monkeypatch.setenv("HTTP_PROXY", os.environ["REPLAY_URL"])
    monkeypatch.setenv("http_proxy", os.environ["REPLAY_URL"])
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(["list", "--url", "http://worker.invalid:6066"]) == 0
    assert [path for _, path, _, _ in proxy.asked] == ["http://worker.invalid:6066/replays"]
    monkeypatch.setenv("no_proxy", "worker.invalid")
    assert run(["list", "--url", "http://worker.invalid:6066"]) == 1


@pytest.mark.parametrize(
    ("state", "code"),
    [("completed", 0), ("completed_with_errors", 8), ("cancelled", 9), ("failed", 1)],
)
def test_watching_ends_as_the_replay_does(
    state: str, code: int, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "topic 'x' is missing" if state == "failed" else None
    serve(
        (200, session("planning", matched=None, percent=None)),
        (200, session(events_per_second=1234.5, eta_seconds=70.0)),
        (500, b""),
        (200, session(state, error=error)),
    )
    assert run(["watch", "r-1"]) == code
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "r-1 planning: 500 events",
        "r-1 running: 500 of 1,000 events (50 %), 1,234 events/s, 1 min 10 s left",
        f"r-1 {state}: 500 of 1,000 events (50 %)" + (f", {error}" if error else ""),
    ]
    assert ("warning: r-1" in shown.err) == (state == "completed_with_errors")
    assert ("then: replay-app retry r-1" in shown.err) == (state == "failed")


@pytest.mark.parametrize("is_dry", [False, True])
@pytest.mark.parametrize(("good", "code", "how_many"), [(0, 4, "all events"), (1, 8, "some")])
def test_a_replay_of_which_every_event_failed_has_its_own_exit_code(
    is_dry: bool,
    good: int,
    code: int,
    how_many: str,
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = session(
        "completed_with_errors",
        counters={"read": 5, "published": 0 if is_dry else good, "skipped": 5 - good},
        start={"dry_run": is_dry},
        shards=[{"progress": {"valid": good}}],
    )
    serve((200, ended))
    assert run(["watch", "r-1"]) == code
    shown = capsys.readouterr()
    assert f"warning: r-1 completed, but {how_many}" in shown.err
    last = f"r-1 was a dry run: {good} events are valid, none was published"
    assert (shown.out.splitlines()[-1] == last) is is_dry
    assert run(["watch", "r-1", "--json"]) == code
    assert "dry run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("create the topic, then retry", "create the topic, then: replay-app retry r-1"),
        ("the broker is full", "the broker is full; then: replay-app retry r-1"),
        (
            "correct it and retry, or start with skip",
            "correct it and retry, or start with skip (the command is: replay-app retry r-1)",
        ),
        ("start again under a new id", "start again under a new id"),
    ],
)
def test_the_remedy_of_a_failed_replay_is_said_once(error: str, said: str) -> None:
    told = list(warnings_at_the_end(session("failed", error=error), Namespace()))
    assert told == [f"error: {said}"]
    there = Namespace(url="http://x:1")
    (told_there,) = warnings_at_the_end(session("failed", error=error), there)
    assert ("replay-app retry r-1 --url http://x:1" in told_there) is ("new id" not in error)


def test_watching_in_json_prints_each_change_as_a_line(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, session()), (200, session()), (200, session("completed")))
    assert run(["watch", "r-1", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [session(), session("completed")]


def test_watching_gives_up_when_no_worker_answers_for_long(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["watch", "r-1", "--url", NOWHERE, "--patience", "0.3"]) == 1
    shown = capsys.readouterr().err
    assert f"no worker answers at {NOWHERE}" in shown
    assert "replay-app worker" in shown


def test_watching_an_unknown_replay_is_refused_at_once(serve: Serve) -> None:
    serve((404, {"detail": "there is no replay 'r-1'"}))
    assert run(["watch", "r-1"]) == 10


def test_a_start_waits_until_the_replay_is_taken_up(serve: Serve) -> None:
    start = {
        "command": "start",
        "replay_id": "r-1",
        "requested_by": "ana",
        "filter": {"all": True},
        "target": {"prefix": "a."},
    }
    serve(
        (202, {"replay_id": "r-1"}),
        (404, {"detail": "there is no replay 'r-1'"}),
        (200, session("completed", start=start)),
    )
    assert run(["start", "--replay-id", "r-1", "--all", "--prefix", "a.", "--wait"]) == 0


def test_a_start_does_not_wait_for_another_replay_of_the_same_name(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"command": "start", "replay_id": "r-1", "requested_by": "ana", "rate": 7}
    serve((202, {"replay_id": "r-1"}), (200, session("completed", start=other)))
    assert run(["start", "--replay-id", "r-1", "--all", "--prefix", "a.", "--wait"]) == 3
    assert "exists with another body" in capsys.readouterr().err


def test_a_malformed_command_is_refused_before_it_goes_to_kafka(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["start", "--kafka", "--all", "--name", ""]) == 3
    assert "--name: String should have at least 1 character" in capsys.readouterr().err


def test_a_command_that_is_too_large_is_refused_before_it_goes_to_kafka(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As JSON on Kafka, each letter has six bytes.
    ids = ["ü" * 100] * (MAX_COMMAND_BYTES // 500)
    body = json.dumps({"filter": {"event_ids": ids}}, ensure_ascii=False)
    assert len(body.encode()) < MAX_COMMAND_BYTES
    (tmp_path / "body.json").write_text(body)
    file = str(tmp_path / "body.json")
    assert run(["start", "--kafka", "--file", file, "--to-original"]) == 3
    assert f"at most {MAX_COMMAND_BYTES} are allowed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["pause", "@last"], ["GET /replays?limit=1", "POST /replays/r-9/pause"]),
        (["set-rate", "@last", "5"], ["GET /replays?limit=1", "PATCH /replays/r-9"]),
        (
            ["start", "--all", "--prefix", "a.", "--after", "@last", "--after", "r-2"],
            ["GET /replays?limit=1", "POST /replays"],
        ),
        (["pause", "r-1"], ["POST /replays/r-1/pause"]),
    ],
)
def test_the_newest_replay_has_a_name_everywhere(
    arguments: list[str], asked: list[str], serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    replays = [session(start={"replay_id": one}) | {"replay_id": one} for one in ("r-9", "r-8")]
    server = serve((200, {"replays": replays}), (202, {"replay_id": "r-9"}))
    if "@last" not in arguments:
        server.answers.pop(0)
    assert run(arguments) == 0
    assert [f"{method} {path}" for method, path, _, _ in server.asked] == asked
    assert ("@last is r-9" in capsys.readouterr().err) is ("@last" in arguments)
    if arguments[0] == "start":
        assert server.asked[-1][2]["after"] == ["r-9", "r-2"]


# Settings


def test_settings_are_printed_with_their_sources_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("REPLAY_PARTITIONS=3\nREPLAY_APP_ID=from-file\n")
    monkeypatch.setenv("REPLAY_APP_ID", "from-environment")
    monkeypatch.setenv("REPLAY_API_TOKEN", SECRET_TOKEN)
    monkeypatch.setenv("REPLAY_MONGO", f"mongodb://ana:{SECRET_WORD}@db/?tls=true")
    monkeypatch.setenv("REPLAY_KAFKA_SASL_PLAIN_PASSWORD", SECRET_WORD)
    assert run(["settings", "--json"]) == 0
    text = capsys.readouterr().out
    assert MARK not in text
    shown = json.loads(text)
    assert len(shown) == len(Settings.model_fields)
    assert shown["REPLAY_PARTITIONS"] == {"value": "3", "source": ".env"}
    assert shown["REPLAY_APP_ID"] == {"value": "from-environment", "source": "environment"}
    assert shown["REPLAY_KAFKA"] == {"value": "localhost:9092", "source": "default"}
    assert shown["REPLAY_API_TOKEN"]["value"] == "***"
    assert shown["REPLAY_MONGO"]["value"] == "mongodb://ana:***@db/?tls=true"

    assert run(["settings"]) == 0
    text = capsys.readouterr().out
    assert MARK not in text
    assert all(f"REPLAY_{name.upper()} " in text for name in Settings.model_fields)


URIS = [
    f"mongodb://ana:{SECRET_WORD}/x@db",
    f"mongodb://ana:x/{SECRET_WORD}@db",
    f"mongodb://ana:x:{SECRET_WORD}@db",
    f"mongodb://ana:{SECRET_WORD}%zz@db",
    f"mongodb://ana:{SECRET_WORD}@db:{SECRET_WORD}@db",
    f"mongodb://ana:x?{SECRET_WORD}=1@db",
    f"mongodb//ana:{SECRET_WORD}@db",
    f"ana:{SECRET_WORD}@db",
    f"mongodb://ana:{SECRET_WORD}@",
    f"mongodb://ana:{SECRET_WORD}@db:port",
    f"mongodb://ana:{SECRET_WORD}@db/?tls=perhaps",
    f"mongodb://db/?tlsCertificateKeyFilePassword={SECRET_WORD}&authMechanism=odd",
    f"mongodb+srv://ana:{SECRET_WORD}@db:27017",
]


@pytest.mark.parametrize("uri", URIS, ids=range(len(URIS)))
def test_a_wrong_store_address_is_refused_without_its_password(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            EventStore(load_settings(mongo=uri)).close()
        except InvalidSettings as refused:
            assert "REPLAY_MONGO is not a usable MongoDB URI" in str(refused)  # noqa: PT017
            assert MARK not in "".join(traceback.format_exception(refused))  # noqa: PT017
        else:
            assert warned  # the driver passes a wrong option over
    assert MARK not in "".join(map(str, warned))
    monkeypatch.setenv("REPLAY_MONGO", uri)
    assert run(["settings"]) == 0
    assert MARK not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"REPLAY_URL": f"http://ana:{SECRET_WORD}@127.0.0.1:9"}, []),
        ({"REPLAY_URL": f"http//ana:{SECRET_WORD}@127.0.0.1:9"}, []),
        ({}, ["--url", f"ana:{SECRET_WORD}@127.0.0.1:9"]),
        ({"REPLAY_API_TOKEN": f"{SECRET_TOKEN}\nx"}, []),
        ({"REPLAY_API_TOKEN": f"{SECRET_TOKEN}\0"}, []),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_wrong_address_or_token_is_refused_without_its_secret(
    variables: dict[str, str],
    options: list[str],
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if any("\0" in value for value in variables.values()):  # no environment can hold it
        with pytest.raises(InvalidSettings) as refused:
            client.Client(NOWHERE, variables["REPLAY_API_TOKEN"])
        assert MARK not in str(refused.value)
        return
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["list", *options, *more]) == 2
    said = capsys.readouterr()
    assert MARK not in said.out + said.err
    assert "REPLAY_URL" in said.err or "REPLAY_API_TOKEN" in said.err


@pytest.mark.parametrize("way", [[], ["--kafka"]])
@pytest.mark.parametrize(
    ("option", "time"),
    [
        ("--start", "0000-01-01T00:00:00Z"),
        ("--start", "0001-01-01T00:00:00+01:00"),
        ("--end", "10000-01-01T00:00:00Z"),
        ("--end", "9999-12-31T23:59:59-01:00"),
    ],
)
def test_a_time_that_no_calendar_has_is_refused_by_name(
    way: list[str], option: str, time: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["start", "--event-type", "a", option, time, *way]) == 2
    assert f"{option} {time!r} lies outside the years 1 to 9999" in capsys.readouterr().err


def test_a_token_may_have_any_letters(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_API_TOKEN", f"{SECRET_TOKEN}-ü")
    server = serve((200, {"replays": []}))
    assert run(["list"]) == 0
    ((_, _, _, header),) = server.asked
    assert header is not None
    assert header.encode("latin-1").decode() == f"Bearer {SECRET_TOKEN}-ü"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "http://127.0.0.1:6066"),
        ({"REPLAY_WEB_PORT": "7077"}, "http://127.0.0.1:7077"),
        ({"REPLAY_WEB_PORT": "7077", "REPLAY_URL": "http://there"}, "http://there"),
        ({"REPLAY_WEB_HOST": "10.0.0.5"}, "http://10.0.0.5:6066"),
        ({"REPLAY_WEB_HOST": "0.0.0.0"}, "http://127.0.0.1:6066"),  # noqa: S104 - an example
        ({"REPLAY_WEB_HOST": "::1"}, "http://[::1]:6066"),
        ({"REPLAY_WEB_PORT": "tcp://10.0.0.7:80"}, "http://127.0.0.1:6066"),  # a Service's link
    ],
)
@pytest.mark.parametrize("way", ["environment", "file"])
def test_the_address_follows_the_settings_of_the_worker(
    way: str,
    variables: dict[str, str],
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "file":
        (tmp_path / ".env").write_text("".join(f"{k}={v}\n" for k, v in variables.items()))
    else:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    assert client.Client.of_settings().url == address
    assert client.Client.of_settings("http://other/").url == "http://other"


def test_a_port_that_is_no_number_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPLAY_WEB_PORT", "web")
    assert run(["list"]) == 2
    assert "REPLAY_WEB_PORT" in capsys.readouterr().err


# What people see


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (1, "1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3599, "59 min 59 s"),
        (7260, "2 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_text_of_strangers_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("a\x1b[31mb\x9b\r\n[bold]c", "\u202ed\u2028e ü")
    terminal.table(["A"], [["x\x1b[2J\ny[red]"]])
    lines = [line.rstrip() for line in capsys.readouterr().out.split("\n")]
    assert lines == [
        r"a\u001b[31mb\u009b\r\n[bold]c",
        r"\u202ed\u2028e ü",
        "A",
        r"x\u001b[2J\ny[red]",
        "",
    ]


def test_json_for_programs_is_escaped_too_and_stays_the_same_value(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"name": "a\x1b[2J\x7f\x9b\n\u2028\u202e\ud800 ü"}
    for indent in (None, 2):
        terminal.say_json(value, indent=indent)
        shown = capsys.readouterr().out
        assert json.loads(shown) == value
        assert shown.isprintable() or all(c.isprintable() or c == "\n" for c in shown)
        assert "ü" in shown


def consumption(**facts: Any) -> dict[str, Any]:
    known = {"state": "active", "lag": 1_234, "reason": None, "checked_at": "2026-01-01T00:00:00Z"}
    return {**known, "consumed_at": None, "late_since": None, "is_awaited": True, **facts}


def test_an_account_tells_how_far_each_consumer_group_has_read() -> None:
    known = {
        "b": consumption(),
        "c": consumption(consumed_at="2026-01-02T00:00:00Z", lag=0),
        "d": consumption(state="unseen", lag=None, reason="no right", is_awaited=False),
    }
    lines = accounts.consumer_lines(session(start={"consumers": [*"abcd"]}, consumption=known))
    assert [" ".join(line.split()) for line in lines] == [
        "a not looked at yet",
        "b active, 1,234 records behind",
        f"c has read all since {local('2026-01-02T00:00:00Z')}",
        "d not seen yet, lag unknown, no right, max_lag does not wait for the group",
    ]


def test_a_plan_names_the_groups_that_get_its_events() -> None:
    plan = {
        "matched": 1,
        "end": "2026-01-01T00:00:00Z",
        "by_type": {},
        "by_topic": {},
        "shards": [],
        "warnings": [],
    }
    reader = {"state": "empty", "lag": None, "topics": ["orders", "payments"]}
    assert "groups" not in "\n".join(accounts.plan_account({**plan, "consumers": None}))
    title, line = accounts.plan_account({**plan, "consumers": {"view": reader}})[-2:]
    assert title == "Consumer groups that will get these events"
    assert " ".join(line.split()) == "view no members, nothing committed: orders, payments"


def test_no_line_of_an_account_is_written_by_a_stranger(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evil = "x\nr-1 completed: 5 of 5 events"
    start = {
        **dict.fromkeys(("name", "reason", "requested_by"), evil),
        "ordering": "global",
        "dry_run": False,
        "target": {},
        "after": [],
        "filter": {"event_types": [evil]},
    }
    shown = session(
        start=start,
        shards=[{"progress": {"failures": [{"event_id": evil, "reason": evil}]}}],
        warnings=[evil],
        reason=evil,
        attempt=1,
    ) | dict.fromkeys(("plan", "receipt", "rate", "created_at", "started_at", "ended_at"))
    terminal.say(*accounts.account(shown))
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if r"x\nr-1 completed" in line]) == 7
    assert [line for line in lines if line.startswith("r-1 completed")] == []


# A whole chain


CHAIN = """\
chain: shop
defaults: {filter: {all: true}, target: {prefix: a.}}
replays:
  customers: {after: [orders]}
  orders: {}
"""


@pytest.mark.parametrize(
    ("options", "defaults", "name"),
    [
        ((), "", "ana"),
        (("--requested-by", "eva"), "", "eva"),
        ((), ", requested_by: bob", "bob"),
        (("--requested-by", "eva"), ", requested_by: bob", "eva"),
    ],
)
def test_a_chain_is_applied_as_its_file_has_it_by_whoever_applies_it(
    options: tuple[str, ...],
    defaults: str,
    name: str,
    serve: Serve,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replays = [{"replay_id": "shop.orders", "outcome": "started", "state": None}]
    server = serve((202, {"chain": "shop", "replays": replays}))
    file = tmp_path / "shop.yaml"
    file.write_text(CHAIN.replace("}}\nreplays", f"}}{defaults}}}\nreplays"))
    assert run(["apply", str(file), *options]) == 0
    ((method, path, body, _),) = server.asked
    assert (method, path) == ("POST", "/chains")
    assert body == {
        "chain": "shop",
        "defaults": {
            "filter": {"all": True},
            "target": {"prefix": "a."},
            "requested_by": name,
        },
        "replays": {"customers": {"after": ["orders"]}, "orders": {}},
    }
    assert "shop.orders  started" in capsys.readouterr().out


def test_a_chain_file_with_faults_is_refused_before_a_worker_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CHAIN.replace("[orders]", "[order]").replace("orders: {}", "orders: {rate: 0}")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert run(["apply", "-", "--url", NOWHERE]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: standard input, line 4: replays.customers.after.0: the chain")
    assert second.startswith("error: standard input, line 5: replays.orders.rate: ")
    assert run(["apply", str(tmp_path / "none.yaml"), "--json"]) == 2
    assert "none.yaml cannot be read" in json.loads(capsys.readouterr().out)["error"]


def test_a_replay_that_cannot_be_planned_does_not_hide_the_plans_of_the_others(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {
        "matched": 5, "end": "2026-01-01T00:00:00Z", "by_type": {}, "by_topic": {}, "shards": [],
        "partitions": {}, "warnings": [],
    }  # fmt: skip
    server = serve((422, {"detail": "missing destination topics: x"}), (200, plan))
    file = tmp_path / "shop.yaml"
    file.write_text(CHAIN)
    assert run(["apply", str(file), "--plan"]) == 3
    asked = [(path, body["replay_id"], body["chain"]) for _, path, body, _ in server.asked]
    assert asked == [("/plans", "shop.orders", "shop"), ("/plans", "shop.customers", "shop")]
    shown = capsys.readouterr()
    assert "error: shop.orders: missing destination topics: x" in shown.err
    assert "matched       5 events" in shown.out


def of_chain(short: str, state: str, *after: str, **facts: Any) -> dict[str, Any]:
    members = {
        "replay_id": f"shop.{short}",
        "started_at": None if state == "waiting" else "2026-01-01T00:00:00Z",
        "start": {"replay_id": f"shop.{short}", "after": [f"shop.{one}" for one in after]},
    }
    verbs = {"running": ["pause", "cancel"], "waiting": ["pause", "cancel"]}
    return session(state, verbs=verbs.get(state, []), **members, **facts)


def test_the_children_of_a_chain_are_paused_before_their_parents(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    replays = [
        of_chain("customers", "waiting", "orders"),
        of_chain("orders", "running", "done"),
        of_chain("late", "running", "done"),
        of_chain("done", "completed"),
    ]
    server = serve(
        (200, {"replays": replays}),
        (202, {"replay_id": "shop.customers"}),
        (409, {"detail": "cannot pause: it is completed", "state": "completed"}),
        (409, {"detail": "cannot pause: it is cancelling", "state": "cancelling"}),
    )
    assert run(["pause", "--chain", "shop", "--json"]) == 3
    paths = [path for _, path, _, _ in server.asked]
    assert paths[0] == "/replays?chain=shop&limit=1000"
    assert paths[1] == "/replays/shop.customers/pause"
    assert set(paths[2:]) == {"/replays/shop.orders/pause", "/replays/shop.late/pause"}
    told = json.loads(capsys.readouterr().out)
    assert told["requested"] == ["shop.customers"]
    assert told["left"]["shop.done"] == "completed"
    assert len(told["left"]) == 2  # one has completed meanwhile
    assert list(told["refused"].values()) == ["cannot pause: it is cancelling"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pause"], "pause takes a replay_id, or --chain NAME"),
        (["cancel", "r-1", "--chain", "shop"], "cancel takes a replay_id or --chain, not both"),
        (["retry", "--chain", "shop"], "--chain is unknown"),
    ],
)
def test_a_verb_is_for_one_replay_or_for_one_chain(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--url", NOWHERE]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("last", "code"), [("completed", 0), ("failed", 1)])
def test_watching_a_chain_ends_as_the_chain_does(
    last: str,
    code: int,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("replay_app.chain_commands.POLL_SECONDS", 0.01)
    child = of_chain("customers", "waiting", "orders", matched=None)
    ended = of_chain("customers", "completed" if code == 0 else "waiting", "orders")
    serve(
        (200, {"replays": [child, of_chain("orders", "running")]}),
        (503, {"detail": "the event store is away", "unavailable": "event store"}),
        (200, {"replays": [ended, of_chain("orders", last)]}),
    )
    assert run(["chain", "shop", "--watch"]) == code
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("shop.orders running: ")
    assert lines[-3] == f"shop: {2 - 2 * code} of 2 replays completed" + (
        "; 1 failed, 1 waiting" if code else ""
    )
    assert shown.err.count("trying for up to 60 s") == 1


def test_a_part_of_an_applied_chain_is_not_taken_for_the_whole(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("replay_app.chain_commands.POLL_SECONDS", 0.01)
    file = tmp_path / "shop.yaml"
    file.write_text(CHAIN)
    done = of_chain("orders", "completed")
    server = serve(
        (202, {"chain": "shop", "replays": []}),
        (200, {"replays": []}),
        (200, {"replays": [done]}),
        (200, {"replays": [done, of_chain("customers", "failed", "orders")]}),
    )
    assert run(["apply", str(file), "--wait"]) == 1
    assert len(server.asked) == 4
    shown = capsys.readouterr()
    assert shown.err.count("does not know every replay of chain 'shop' yet") == 1
    assert "1 of 2 replays completed; 1 failed" in shown.out


def test_a_chain_that_nobody_knows_is_refused(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve((200, {"replays": []}))
    assert run(["chain", "shop"]) == 10
    assert "there is no chain 'shop'" in capsys.readouterr().err
