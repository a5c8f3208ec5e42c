"""What a session says about the offsets that ``replay-app offsets`` sets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from replay_app.cli import run
from replay_app.exceptions import CommandConflict, WrongUsage
from replay_app.group_offsets import Wanted, offsets_shown, require_group, wanted_offsets


def session(**fields: Any) -> dict[str, Any]:
    return {
        "replay_id": "r",
        "state": "completed",
        "created_at": "2026-01-01T00:01:00Z",
        "start": {"control_records": False},
        "plan": {"topic_ids": {"new.orders": "1a"}, "live_ids": {"orders": "2b"}},
        "offsets": {"new.orders": {"0": [5, 90], "2": [0, 7]}},
        "counters": {"published": 12},
        "handover": {"orders": {"0": 40, "1": 41}},
    } | fields


def test_the_begin_is_the_first_offset_in_each_published_partition() -> None:
    wanted = wanted_offsets(session(), "begin")
    assert wanted == Wanted(
        {"new.orders": {0: 5, 2: 0}}, {"new.orders": "1a"}, takes_new_partitions=False
    )


def test_the_begin_with_control_records_is_that_of_every_partition() -> None:
    wanted = wanted_offsets(session(start={"control_records": True}), "begin")
    assert wanted.offsets == {"new.orders": {0: 5, 2: 0}}
    assert wanted.since == int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    assert wanted_offsets(session(start={"control_records": True}), "handover").since is None


def test_the_hand_over_is_that_of_the_live_topics() -> None:
    wanted = wanted_offsets(session(), "handover")
    assert wanted == Wanted({"orders": {0: 40, 1: 41}}, {"orders": "2b"}, takes_new_partitions=True)


@pytest.mark.parametrize("state", ["running", "paused", "failed"])
def test_a_replay_that_may_go_on_says_that_partitions_may_come(state: str) -> None:
    (note,) = wanted_offsets(session(state=state), "begin").notes
    assert note.startswith(f"the replay is {state}: partitions to which it has not published yet")


def test_topics_without_ids_are_noted() -> None:
    (note,) = wanted_offsets(session(plan={}), "begin").notes
    assert note.startswith("whether 'new.orders' was deleted and made again since is unknown")


def test_a_live_topic_that_did_not_exist_is_left_out_with_a_note() -> None:
    handover = {"orders": {"0": 1}, "absent": {}}
    wanted = wanted_offsets(session(handover=handover), "handover")
    assert wanted.offsets == {"orders": {0: 1}}
    assert wanted.notes == ("'absent' did not exist when the replay was planned: left out",)


@pytest.mark.parametrize(
    ("to", "fields", "told"),
    [
        ("begin", {"plan": None, "state": "planning"}, "is not planned yet (state planning)"),
        ("handover", {"plan": None}, "is not planned yet"),
        ("begin", {"offsets": {}, "counters": {"published": 0}}, "it has published nothing"),
        ("begin", {"offsets": {}}, "its partitions are too many"),
        ("handover", {"handover": {}}, "has no hand-over: it knows no topic"),
        ("handover", {"handover": {"a": {}}}, "has no hand-over: no live topic existed: 'a'"),
        (
            "handover",
            {"handover": {"a": {"0": 1}, "b": None}},
            "the hand-over of replay 'r' is unknown for 'b': the replay's warnings say why",
        ),
    ],
)
def test_what_the_session_does_not_say_is_refused(
    to: Any, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(CommandConflict) as refused:
        wanted_offsets(session(**fields), to)
    assert told in str(refused.value)


def test_a_session_of_an_older_version_has_no_hand_over() -> None:
    old = session()
    del old["handover"]
    with pytest.raises(CommandConflict, match="has no hand-over"):
        wanted_offsets(old, "handover")


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 250])
def test_a_name_that_no_broker_allows_is_refused(name: str) -> None:
    with pytest.raises(WrongUsage, match=r"--group .*: a consumer group's name is 1 to 249"):
        require_group(name)


@pytest.mark.parametrize("name", ["a", "x" * 249, "Grüße", "a.b_c-d"])
def test_other_names_are_taken(name: str) -> None:
    require_group(name)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["r", "--to", "begin"], "--group is missing"),
        (["r", "--group", "g"], "--to is missing"),
        (["r", "--group", "g", "--to", "end"], "--to takes one of 'begin', 'handover', not 'end'"),
        (["r", "--group", " ", "--to", "begin"], "a consumer group's name is"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["offsets", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("now", "then", "shown"),
    [
        (None, 1_000, ("none", "1,000", "")),
        (5, 5, ("5", "5", "unchanged")),
        (2_000, 500, ("2,000", "500", "1,500 read again")),
        (500, 2_000, ("500", "2,000", "1,500 skipped")),
    ],
)
def test_a_change_says_what_it_means(
    now: int | None, then: int, shown: tuple[str, str, str]
) -> None:
    assert offsets_shown(now, then) == shown
