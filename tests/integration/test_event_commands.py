"""``replay-app events``: stored events as records, without Kafka and without a worker."""

from __future__ import annotations

import json
import resource
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Int64
from command_line import CommandLine
from pymongo.collection import Collection

from replay_app.settings import Settings

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = 25
"""More than two pages."""


@pytest.fixture
def replay_app(settings: Settings, tmp_path: Path) -> CommandLine:
    environment = {
        "REPLAY_MONGO": settings.mongo.get_secret_value(),
        "REPLAY_MONGO_DATABASE": settings.mongo_database,
        "REPLAY_KAFKA": "127.0.0.1:1",  # never asked
        "REPLAY_PAGE_EVENTS": "10",
    }
    return CommandLine(environment, tmp_path)


@pytest.fixture(autouse=True)
def _history(events: Collection[Document]) -> None:
    events.insert_many(event(number) for number in range(EVENTS))


def event(number: int, **fields: Any) -> Document:
    return {
        "_id": number,
        "event_id": f"e-{number}",
        "event_type": "placed" if number % 5 else "paid",
        "aggregate_id": f"a-{number % 3}",
        "timestamp": T0 + timedelta(seconds=number // 2),
        "amount": number / 8,
        **fields,
    }


def lines(output: str) -> list[Document]:
    return [json.loads(line) for line in output.splitlines()]


def numbers(found: list[Document]) -> list[int]:
    return [int(one["event_id"].partition("-")[2]) for one in found]


def test_every_event_is_a_line_with_the_record_that_a_replay_would_publish(
    replay_app: CommandLine,
) -> None:
    found = lines(replay_app("events", "--all", "--prefix", "copy.", "--replay-id", "debug"))
    assert numbers(found) == list(range(EVENTS))
    first = found[0]
    assert first | {"cursor": ""} == {
        "event_id": "e-0",
        "type": "paid",
        "time": "2026-01-01T00:00:00.000Z",
        "topic": "copy.paid",
        "key": "a-0",
        "headers": [
            {"key": "replay-id", "value": "debug"},
            {"key": "replay-attempt", "value": "1"},
            {"key": "replay-original-time", "value": "2026-01-01T00:00:00.000Z"},
            {"key": "replay-delivery-id", "value": "debug:e-0"},
        ],
        "value": {
            "event_id": "e-0",
            "event_type": "paid",
            "aggregate_id": "a-0",
            "timestamp": "2026-01-01T00:00:00Z",
            "amount": 0.0,
        },
        "cursor": "",
    }


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--aggregate-id", "a-1"], [n for n in range(EVENTS) if n % 3 == 1]),
        (["--event-type", "paid", "--limit", "2"], [0, 5]),
        (["--start", "2026-01-01T00:00:02Z", "--end", "2026-01-01T00:00:03Z"], [4, 5]),
        (["--all", "--limit", "12"], list(range(12))),
        (["--event-type", "unknown"], []),
    ],
)
def test_the_filters_are_those_of_a_replay(
    replay_app: CommandLine, options: list[str], wanted: list[int]
) -> None:
    assert numbers(lines(replay_app("events", *options))) == wanted


def test_reading_goes_on_behind_any_line(replay_app: CommandLine) -> None:
    found = lines(replay_app("events", "--all"))
    for number in (0, 9, 10, 13, EVENTS - 1):
        rest = lines(replay_app("events", "--all", "--after", found[number]["cursor"]))
        assert numbers(rest) == list(range(number + 1, EVENTS))


@pytest.mark.parametrize(
    "cursor", ["x", "0:", "0:[1]", "7:[1,2]", '0:{"after":1}', "0:" + "[" * 50_000, "last"]
)
def test_a_wrong_cursor_is_refused(replay_app: CommandLine, cursor: str) -> None:
    code, output = replay_app.run("events", "--all", "--after", cursor)
    assert code in {2, 3}
    assert "after" in output


def test_a_file_is_new_and_goes_on_behind_its_last_whole_line(
    replay_app: CommandLine, tmp_path: Path
) -> None:
    out = tmp_path / "events.ndjson"
    said = replay_app("events", "--all", "--limit", "7", "--out", str(out))
    assert said == f"7 events are in {out}\n"
    assert "exists" in replay_app("events", "--all", "--out", str(out), code=2)
    with out.open("ab") as file:  # a process that died in the middle of a line
        file.write(b'{"event_id": "e-7", "va')
    replay_app("events", "--all", "--out", str(out), "--after", "last")
    assert numbers(lines(out.read_text())) == list(range(EVENTS))
    said = replay_app("events", "--all", "--out", str(out), "--after", "last")
    assert said.startswith("0 events")


def test_a_file_that_cannot_be_written_is_named(replay_app: CommandLine, tmp_path: Path) -> None:
    for out in (tmp_path / "missing" / "x", tmp_path, Path("/dev/full")):
        for more in ([], ["--after", "last"]):
            assert str(out) in replay_app("events", "--all", "--out", str(out), *more, code=2)
    full = tmp_path / "full"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        said = replay_app("events", "--all", "--out", str(full), code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{full} cannot be written: File too large" in said
    replay_app("events", "--all", "--out", str(full), "--after", "last")
    assert numbers(lines(full.read_text())) == list(range(EVENTS))
    odd = tmp_path / "odd"
    for text in ("[1, 2]\n", '{"secret": 1}', "no line at all", '{"a": 1}\n{"a": 2}\n', "no\n"):
        odd.write_text(text)
        command = ("events", "--all", "--out", str(odd), "--after", "last")
        assert "does not end with a line of" in replay_app(*command, code=2)
        assert odd.read_text() == text


@pytest.mark.parametrize("is_limited", [False, True])
def test_events_that_cannot_be_replayed_have_a_reason_and_their_document(
    replay_app: CommandLine, events: Collection[Document], is_limited: bool
) -> None:
    events.insert_one(event(EVENTS, event_type=7))
    events.insert_one(event(EVENTS + 1, timestamp="never"))  # in no time range
    options = ["--limit", "100"] if is_limited else []
    output = replay_app("events", "--all", *options, code=1)
    *records, said = output.splitlines()
    found = lines("\n".join(records))
    assert numbers(found) == list(range(EVENTS + 2))
    failed = [one for one in found if "error" in one]
    assert all("cursor" in one for one in failed)
    assert "event_type" in failed[0]["error"]
    assert failed[0]["document"]["event_type"] == 7
    assert f"{len(failed)} of {len(found)} events cannot be replayed" in said


def test_replayed_events_are_left_out_unless_asked_for(
    replay_app: CommandLine, events: Collection[Document]
) -> None:
    events.insert_one(event(EVENTS, headers={"replay-id": "r"}))
    assert len(lines(replay_app("events", "--all"))) == EVENTS
    assert len(lines(replay_app("events", "--all", "--include-replayed"))) == EVENTS + 1


def test_other_values_than_json_are_text_or_base64(
    replay_app: CommandLine, events: Collection[Document]
) -> None:
    events.drop()
    events.insert_many([event(0, payload="plain"), event(1, payload=b"\xff\x00")])
    replay_app.environment["REPLAY_FIELD_VALUE"] = "payload"
    text, other = lines(replay_app("events", "--all"))
    assert (text["value"], other["value_base64"]) == ("plain", "/wA=")


def test_a_store_without_the_collection_is_an_error(replay_app: CommandLine) -> None:
    replay_app.environment["REPLAY_MONGO_COLLECTION"] = "nowhere"
    assert "has no collection" in replay_app("events", "--all", code=1)
    assert "which events?" in replay_app("events", code=2)


# inspect


@pytest.fixture
def strange(events: Collection[Document]) -> Collection[Document]:
    """Events of a foreign shape."""
    events.drop()
    events.insert_many(
        {
            "_id": number,
            "meta": {"eventId": f"x-{number}", "occurredAt": f"2026-01-01T00:{number % 60:02}:00Z"},
            "kind": ["Placed", "Paid", "Sent"][number % 3],
            "stream": f"order-{number % 9}",
            "customer": f"c-{number}",
            "body": {"total": number},
        }
        for number in range(60)
    )
    return events


@pytest.mark.usefixtures("strange")
def test_a_foreign_store_is_inspected_and_the_settings_fit(
    replay_app: CommandLine, tmp_path: Path
) -> None:
    found = json.loads(replay_app("inspect", "--json"))
    assert found["settings"] == {
        "REPLAY_FIELD_ID": "meta.eventId",
        "REPLAY_FIELD_TIMESTAMP": "meta.occurredAt",
        "REPLAY_TIMESTAMP_TYPE": "iso",
        "REPLAY_FIELD_TYPE": "kind",
        "REPLAY_FIELD_AGGREGATE": "stream",
    }
    assert (found["sampled"], found["faults"], found["needs_topics"]) == (60, [], True)
    assert [one["key"] for one in found["indexes"]["missing"]] == [
        {"meta.occurredAt": 1, "_id": 1},
        {"stream": 1, "meta.occurredAt": 1, "_id": 1},
    ]
    assert [one["error"] for one in found["records"]] == [None] * 3
    text = replay_app("inspect")
    for told in (
        "meta.occurredAt  ",
        "REPLAY_FIELD_TIMESTAMP=meta.occurredAt",
        '# REPLAY_TOPICS={"',
        'createIndex({"meta.occurredAt": 1, "_id": 1})',
        "Sample record, event x-0",
        "replay-delivery-id=inspect:x-0",
    ):
        assert told in text
    # The settings are ready for .env: with them the events are records.
    settings = [line for line in text.splitlines() if line.startswith("REPLAY_")]
    (tmp_path / ".env").write_text("\n".join(settings))
    assert len(lines(replay_app("events", "--all"))) == 60


def test_numbers_that_are_times_are_found_at_once(
    replay_app: CommandLine, events: Collection[Document]
) -> None:
    events.drop()
    events.insert_many(
        {"_id": n, "type": "a" if n % 2 else "b", "ts": Int64(1_700_000_000_000 + n), "v": Int64(7)}
        for n in range(40)
    )
    events.create_index([("ts", 1), ("_id", -1)])
    found = json.loads(replay_app("inspect", "--json"))
    assert found["settings"]["REPLAY_TIMESTAMP_TYPE"] == "epoch_ms"
    assert found["settings"]["REPLAY_FIELD_TIMESTAMP"] == "ts"
    # An index in another direction does not serve. Names are quoted: they may be any text.
    assert 'createIndex({"ts": 1, "_id": 1})' in found["indexes"]["missing"][0]["command"]


def test_settings_that_fit_are_kept(replay_app: CommandLine) -> None:
    found = json.loads(replay_app("inspect", "--json"))
    assert (found["settings"], found["faults"]) == ({}, [])
    assert found["types"] == ["placed", "paid"]


def test_what_fits_no_event_is_an_error(
    replay_app: CommandLine, events: Collection[Document]
) -> None:
    events.drop()
    assert "has no collection" in replay_app("inspect", code=1)
    events.insert_many({"_id": number, "n": [number]} for number in range(3))
    said = replay_app("inspect", code=1)
    assert "none has a type in field 'event_type' (REPLAY_FIELD_TYPE)" in said
    assert "none has a time of the type date in field 'timestamp'" in said
    events.delete_many({})
    assert "has no events" in replay_app("inspect", code=1)
