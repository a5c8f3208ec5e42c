"""Logging: many equal messages are cut short, and no others."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from replay_app.logs import RateLimit, configure_logging


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
    root, names = logging.getLogger(), ("aiokafka", "faust", "mode", "pymongo", "aiohttp.access")
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in names}
    yield
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
