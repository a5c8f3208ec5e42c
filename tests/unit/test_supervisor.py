"""Several worker processes: when a worker is started again, and the place of each worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay_app.exceptions import InvalidSettings
from replay_app.settings import Settings
from replay_app.supervisor import (
    MAX_RESTART_SECONDS,
    RESTART_SECONDS,
    SETTLED_SECONDS,
    WorkerPlace,
    restart_seconds,
    worker_places,
)

KILLED, FAILED, WRONG_SETTINGS = -9, 1, 2


@pytest.mark.parametrize(
    ("code", "lived_seconds", "waited_seconds", "expected"),
    [
        (KILLED, 5.0, None, RESTART_SECONDS),
        (KILLED, 0.1, None, RESTART_SECONDS),
        (KILLED, 5.0, 0.5, 1.0),
        (FAILED, 5.0, 4.0, 8.0),
        (FAILED, 5.0, 8.0, MAX_RESTART_SECONDS),
        (FAILED, 5.0, MAX_RESTART_SECONDS, MAX_RESTART_SECONDS),
        (KILLED, SETTLED_SECONDS, MAX_RESTART_SECONDS, RESTART_SECONDS),
        (FAILED, SETTLED_SECONDS, None, RESTART_SECONDS),
        (0, 5.0, None, RESTART_SECONDS),  # the worker got SIGTERM
    ],
)
def test_a_dead_worker_is_started_again_after_a_pause_that_grows_while_it_dies_young(
    code: int, lived_seconds: float, waited_seconds: float | None, expected: float
) -> None:
    assert restart_seconds(code, lived_seconds, waited_seconds) == expected


@pytest.mark.parametrize("waited_seconds", [None, 0.5, MAX_RESTART_SECONDS])
@pytest.mark.parametrize("lived_seconds", [1.0, 2 * SETTLED_SECONDS])
def test_wrong_settings_stay_wrong(lived_seconds: float, waited_seconds: float | None) -> None:
    assert restart_seconds(WRONG_SETTINGS, lived_seconds, waited_seconds) is None


def test_a_worker_that_fails_at_its_first_start_is_not_started_again() -> None:
    assert restart_seconds(FAILED, 2.0, None) is None


def test_each_worker_has_its_own_name_port_and_folder() -> None:
    settings = Settings(worker_id="a", web_port=7000, data_dir=Path("here"))
    assert worker_places(settings, 2) == [
        WorkerPlace("a-0", 7000, Path("here/worker-0"), ""),
        WorkerPlace("a-1", 7001, Path("here/worker-1"), ""),
    ]


@pytest.mark.parametrize(
    ("canonical_url", "second"),
    [
        ("http://host:6066", "http://host:6067"),
        ("https://[::1]:8000/replay", "https://[::1]:8001/replay"),
    ],
)
def test_the_canonical_urls_ascend_with_the_ports(canonical_url: str, second: str) -> None:
    places = worker_places(Settings(canonical_url=canonical_url), 2)
    assert [place.canonical_url for place in places] == [canonical_url, second]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"web_port": 65_535}, "REPLAY_WEB_PORT=65535"),
        ({"canonical_url": "http://host"}, "REPLAY_CANONICAL_URL=http://host"),
        ({"canonical_url": "http://host:port"}, "REPLAY_CANONICAL_URL=http://host:port"),
        ({"canonical_url": "host:6066"}, "REPLAY_CANONICAL_URL=host:6066"),
    ],
)
def test_settings_that_leave_no_place_for_a_second_worker_are_refused(
    setting: dict[str, object], named: str
) -> None:
    with pytest.raises(InvalidSettings, match=named):
        worker_places(Settings(**setting), 2)  # type: ignore[arg-type]


def test_a_worker_is_told_its_place_by_the_options_that_anybody_may_give() -> None:
    assert WorkerPlace("a-1", 7001, Path("here"), "").options() == (
        *("--worker-id", "a-1"),
        *("--web-port", "7001"),
        *("--data-dir", "here"),
    )
