"""Logging: the two forms of a line, and many equal messages that are cut short."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from secret_values import MARK, SECRET_WORD

from replay_app.logs import JsonLines, RateLimit, TextLines, configure_logging, escaped


def record(line: int = 1, message: str = "broker %d is away", *args: object) -> logging.LogRecord:
    return logging.LogRecord("aiokafka", logging.ERROR, "client.py", line, message, args, None)


class Clock:
    """A clock that the test moves."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_the_first_messages_of_each_place_pass() -> None:
    limit = RateLimit(burst=2, window_seconds=10, clock=Clock())
    assert [limit.filter(record(1, "a")) for _ in range(4)] == [True, True, False, False]
    assert limit.filter(record(2, "b"))


def test_the_next_window_tells_how_many_were_left_out() -> None:
    clock = Clock()
    limit = RateLimit(burst=2, window_seconds=10, clock=clock)
    for number in range(5):
        limit.filter(record(1, "broker %d is away", number))
    clock.seconds += 10
    first, second = (record(1, "broker %d is away", number) for number in (6, 7))
    assert limit.filter(first)
    assert limit.filter(second)
    assert first.getMessage() == "broker 6 is away (3 such messages left out)"
    assert second.getMessage() == "broker 7 is away"


def test_a_message_with_per_cent_signs_survives() -> None:
    clock = Clock()
    limit = RateLimit(burst=1, window_seconds=10, clock=clock)
    limit.filter(record())
    limit.filter(record())
    clock.seconds += 11
    late = record(1, "%s", "100%d")
    assert limit.filter(late)
    assert late.getMessage() == "100%d (1 such messages left out)"


def test_a_quiet_place_is_never_cut_short() -> None:
    clock = Clock()
    limit = RateLimit(burst=1, window_seconds=10, clock=clock)
    for _ in range(5):
        seldom = record(1, "seldom")
        assert limit.filter(seldom)
        assert seldom.getMessage() == "seldom"
        clock.seconds += 10


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    hook = sys.excepthook
    root, names = logging.getLogger(), ("aiokafka", "faust", "mode", "pymongo", "aiohttp.access")
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    logging.captureWarnings(capture=False)
    sys.excepthook = hook
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [("DEBUG", True, False), ("INFO", True, False), ("ERROR", False, False)],
)
def test_libraries_are_heard_from_warnings_on(
    capsys: pytest.CaptureFixture[str], level: str, ours: bool, theirs: bool
) -> None:
    configure_logging(level)
    logging.getLogger("replay_app.work_agent").info("ours")
    logging.getLogger("faust.worker").info("theirs")
    logging.getLogger("aiokafka.client").error("an error of theirs")
    written = capsys.readouterr().err
    assert ("replay_app.work_agent: ours" in written) is ours
    assert ("faust.worker: theirs" in written) is theirs
    assert "ERROR   aiokafka.client: an error of theirs" in written


@pytest.mark.usefixtures("_logging_as_before")
def test_only_the_kafka_client_is_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    for number in range(30):
        logging.getLogger("aiokafka.conn").error("away %d", number)
        logging.getLogger("replay_app.sessions_agent").error("ours %d", number)
    written = capsys.readouterr().err
    assert written.count("away") == 5
    assert written.count("ours") == 30


EVIL = "a\x1b[2J\r\n2026-01-01 CRITICAL all is lost\x7f\x9b\u2028\u202e\ud800 ü {}%s"
ESCAPED = r"a\u001b[2J\r\n2026-01-01 CRITICAL all is lost\u007f\u009b\u2028\u202e\ud800 ü {}%s"


def test_text_from_outside_is_shown_escaped() -> None:
    assert escaped(EVIL) == ESCAPED
    assert escaped("plain, ü, \N{SMILING FACE WITH SUNGLASSES}") == (
        "plain, ü, \N{SMILING FACE WITH SUNGLASSES}"
    )


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("secret", [SECRET_WORD, f"{MARK} ü\n'\"\\@/+%41", f"{MARK}\x1b\0"])
def test_no_line_shows_a_secret_in_any_form(
    form: Any, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("DEBUG", form, [secret, "pw"])
    logger = logging.getLogger("replay_app.x")
    logger.debug("as text %s, as its repr %r, as bytes %r", secret, secret, secret.encode())
    logger.info("in a URL mongodb://ana:%s@db, as a form %s", quote(secret, ""), quote_plus(secret))
    logger.warning(json.dumps({"password": secret}), extra={"reason": secret})
    try:
        raise ValueError(secret)  # noqa: TRY301
    except ValueError:
        logger.exception("failed")
    sys.excepthook(ValueError, ValueError(secret), None)
    written = capsys.readouterr().err
    assert MARK not in written
    assert written.count("***") >= 8


def failure(message: str) -> logging.LogRecord:
    error = ValueError(message)
    return logging.LogRecord(
        "replay_app.x",
        logging.ERROR,
        "x.py",
        1,
        "%s failed",
        (message,),
        (ValueError, error, None),
    )


def test_a_text_line_is_one_line_and_a_traceback_cannot_look_like_another_message() -> None:
    first, *trace = TextLines().format(failure(EVIL)).split("\n")
    assert first.endswith(f"ERROR   replay_app.x: {ESCAPED} failed")
    assert trace
    assert all(line.startswith("    ") and line.isprintable() for line in trace)


def test_a_json_line_holds_everything_in_one_object() -> None:
    shown = failure(EVIL)
    line = JsonLines().format(shown)
    assert line.isprintable()
    told = json.loads(line)
    assert told["message"] == f"{EVIL} failed"
    assert f"ValueError: {EVIL}" in told["exception"]
    assert (told["level"], told["logger"]) == ("ERROR", "replay_app.x")
    assert told["time"].endswith("Z")
    at = datetime.fromisoformat(told["time"])
    assert at.tzinfo is not None
    assert abs((at - datetime.fromtimestamp(shown.created, UTC)).total_seconds()) < 0.001
    assert set(told) == {"time", "level", "logger", "message", "exception"}


@pytest.mark.usefixtures("_logging_as_before")
def test_in_json_every_line_is_json_also_of_warnings_and_of_errors_that_end_the_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("INFO", "json")
    change = {"replay_id": "r-1", "state": "paused", "requested_by": None, "reason": "a\nb"}
    logging.getLogger("replay_app.x").info("replay %s: paused", "r-1", extra=change)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    error = ValueError("a\nb")
    sys.excepthook(ValueError, error, None)
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert {name: first[name] for name in change} == change
    assert "old" in second["message"]
    assert second["level"] == "WARNING"
    assert (third["level"], third["message"]) == ("CRITICAL", "a\nb")
    assert "ValueError: a\nb" in third["exception"]
