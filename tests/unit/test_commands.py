"""Commands: what is understood, and how everything else is refused."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from replay_app.commands import (
    MAX_COMMAND_BYTES,
    OTHER_YEAR,
    REPLAY_ID,
    Cancel,
    NoteVerification,
    Pause,
    Release,
    Resume,
    Retry,
    SetRate,
    Start,
    command_of,
    new_replay_id,
    parse_command,
    usable_replay_id,
)
from replay_app.events import EPOCH
from replay_app.exceptions import InvalidCommand

FULL: dict[str, Any] = {
    "command": "start",
    "replay_id": "rebuild-orders-1",
    "requested_by": "ana",
    "name": "orders",
    "reason": "orders view lost",
    "source": {"database": "shop", "collection": "old.orders", "mapping": "legacy"},
    "filter": {
        "start": "2026-01-01T00:00:00Z",
        "end": "2026-02-01T00:00:00Z",
        "event_types": ["order_placed"],
        "exclude_event_types": ["order_viewed"],
        "aggregate_ids": ["o-1", 7],
        "event_ids": ["65920080000001000000002a"],
        "fields": {"metadata.user_id": "u-1", "paid": True, "total": 1.5, "note": None, "n": 3},
    },
    "target": {"topic": None, "topics": {"order_placed": "orders.rebuild"}, "prefix": "test."},
    "redact": {"data.email": "hash", "lines.note": "drop"},
    "ordering": "global",
    "shards": None,
    "dry_run": False,
    "rate": 100,
    "speed": None,
    "max_events": 10,
    "on_error": "dead-letter",
    "control_records": True,
    "include_replayed": False,
    "after": ["first"],
}


EVERY: dict[str, Any] = {"all": True}


def start_with(**fields: Any) -> bytes:
    start = {"command": "start", "replay_id": "r1", "filter": EVERY}
    return json.dumps(start | fields).encode()


def filter_with(**fields: Any) -> bytes:
    return start_with(filter=fields)


def refusal(body: bytes | str, **members: Any) -> str:
    with pytest.raises(InvalidCommand) as refused:
        parse_command(body if isinstance(body, bytes) else body.encode(), **members)
    return str(refused.value)


def test_a_full_start_is_understood() -> None:
    command = parse_command(json.dumps(FULL).encode())
    assert isinstance(command, Start)
    assert command.filter.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert command.filter.aggregate_ids == ("o-1", 7)
    assert command.filter.fields == FULL["filter"]["fields"]
    assert command.filter.fields["paid"] is True
    assert command.target.topics == {"order_placed": "orders.rebuild"}
    assert (command.rate, command.max_events, command.after) == (100.0, 10, ("first",))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"command": "start", "replay_id": "r1", "filter": {"all": true}}', Start),
        (b'{"command": "pause", "replay_id": "r1"}', Pause),
        (b'{"command": "resume", "replay_id": "r1", "requested_by": "ana"}', Resume),
        (b' {"replay_id": "r1", "command": "cancel"}\n', Cancel),
        (b'{"command": "retry", "replay_id": "r1"}', Retry),
        (b'{"command": "release", "replay_id": "r1"}', Release),
        (b'{"command": "set-rate", "replay_id": "r1", "rate": 5}', SetRate),
        (b'{"command": "set-rate", "replay_id": "r1", "rate": null}', SetRate),
    ],
)
def test_each_command_is_understood(body: bytes, kind: type) -> None:
    assert isinstance(parse_command(body), kind)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the command is empty; send a JSON object"),
        (b" \n\t", "the command is empty; send a JSON object"),
        (b"pause it", "not JSON: "),
        (b"{", "not JSON: "),
        (b"\xff\xfe\x00", "not JSON: "),
        (b'{"command": "pause", "replay_id": "\xff"}', "not JSON: "),
        (b'{"command": "pause", "replay_id": "\\ud800"}', "not JSON: unexpected end of hex escape"),
        (b'{"command": "pause", "replay_id": "\\udc00x"}', "not JSON: lone leading surrogate"),
        (b'{"command": "pause", "replay_id": "r1"} {}', "not JSON: "),
        (b"[" * 100_000, "not JSON: recursion limit exceeded"),
        (b'{"a":' * 100_000, "not JSON: recursion limit exceeded"),
        (b"[]", "the command is not a JSON object"),
        (b"null", "the command is not a JSON object"),
        (b'"pause"', "the command is not a JSON object"),
        (b"7", "the command is not a JSON object"),
        (
            b"{}",
            "command: missing; one of start, pause, resume, step, cancel, retry",
        ),
        (b'{"replay_id": "r1"}', "command: missing; one of start"),
        (b'{"command": "stop", "replay_id": "r1"}', "command: 'stop' is not one of start, pause"),
        (b'{"command": 1, "replay_id": "r1"}', "command: '1' is not one of start"),
        (b'{"command": null, "replay_id": "r1"}', "command: "),
        (b'{"command": "pause"}', "replay_id: missing"),
        (b'{"command": "set-rate", "replay_id": "r1"}', "rate: missing"),
        (b'{"command": "pause", "replay_id": "r1", "rate": 1}', "rate: unknown field"),
        (b'{"command": "pause", "replay_id": "r1", "replay_id": "r2"}', "replay_id: given more"),
    ],
)
def test_what_is_no_command_is_refused_with_the_reason(body: bytes, message: str) -> None:
    assert refusal(body).startswith(message)


def test_a_second_filter_does_not_undo_the_first() -> None:
    body = b"""{"command": "start", "replay_id": "r1",
                "filter": {"event_types": ["a"]}, "filter": {}}"""
    assert refusal(body) == "filter: given more than once"
    body = b"""{"command": "start", "replay_id": "r1", "filter": {"fields": {"a": 1, "a": 2}}}"""
    assert refusal(body) == "a: given more than once"
    body = b"""{"command": "start", "replay_id": "r1", "after": [{"b": 1, "c": 2, "b": 1}]}"""
    assert refusal(body) == "b: given more than once"
    assert refusal(b'{"rate": 1, "rate": 1}', fixed={"command": "start"}).startswith("rate: given")


def test_the_path_fixes_members_and_the_body_may_repeat_them() -> None:
    fixed = {"command": "pause", "replay_id": "r1"}
    for body in (b"{}", b'{"replay_id": "r1"}', b'{"command": "pause", "replay_id": "r1"}'):
        assert parse_command(body, fixed=fixed) == Pause(replay_id="r1")
    message = "replay_id: must be 'r1' here; it may be left out"
    assert refusal(b'{"replay_id": "r2"}', fixed=fixed) == message
    assert refusal(b'{"replay_id": null}', fixed=fixed) == message


def test_a_default_is_used_only_where_the_body_has_no_such_member() -> None:
    made = {"replay_id": "made"}
    fixed = {"command": "start"}
    bodies = (b'{"filter": {"all": true}}', b'{"filter": {"all": true}, "replay_id": "r1"}')
    for body, replay_id in zip(bodies, ("made", "r1"), strict=True):
        assert parse_command(body, fixed=fixed, defaults=made).replay_id == replay_id
    message = refusal(b'{"replay_id": null}', fixed=fixed, defaults=made)
    assert message == "replay_id: Input should be a valid string"


@pytest.mark.parametrize("name", [None, "", "Rebuild orders: Größe!", "-", "x" * 500, 7, ["x"]])
def test_a_new_replay_id_is_usable_and_new(name: object) -> None:
    made = {new_replay_id(name) for _ in range(20)}
    assert len(made) > 1
    assert all(REPLAY_ID.match(one) for one in made)


@pytest.mark.parametrize(
    "replay_id",
    ["", " ", "a/b", "a b", "ä", "-a", ".a", "a\n", "a\0", "../a", "x" * 129, "x" * 10_000, "$a"],
)
def test_a_replay_id_that_is_no_plain_name_is_refused(replay_id: str) -> None:
    message = refusal(start_with(replay_id=replay_id))
    assert message.startswith("replay_id: a replay_id is 1 to 128 letters, digits")
    assert refusal(start_with(after=[replay_id])).startswith("after.0: a replay_id is")
    assert len(message) < 200


@pytest.mark.parametrize("replay_id", [None, 7, ["r1"], {"$ne": ""}, True])
def test_a_replay_id_of_another_type_is_refused(replay_id: object) -> None:
    assert refusal(start_with(replay_id=replay_id)).startswith("replay_id: ")


@pytest.mark.parametrize("replay_id", ["a", "9", "A.b-c_d", "x" * 128])
def test_a_plain_name_is_a_replay_id(replay_id: str) -> None:
    assert parse_command(start_with(replay_id=replay_id)).replay_id == replay_id


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("2026-01-01T00:00:00", "a time needs a timezone, such as a final Z"),
        ("2026-01-01", "a time is written as 2026-01-31T00:00:00Z"),
        ("2026", "a time is written as"),
        ("1767225600", "a time is written as"),
        (1767225600, "a time is written as"),
        (1767225600.5, "a time is written as"),
        ("-1700000000", "a time is written as"),
        ("yesterday", "a time is written as"),
        ("", "a time is written as"),
        (True, "a time is written as"),
        ({"$date": 1}, "a time is written as"),
        ("2026-02-30T00:00:00Z", "Input should be a valid datetime"),
        ("2026-01-01T25:00:00Z", "Input should be a valid datetime"),
        ("0001-01-01T00:00:00+01:00", OTHER_YEAR),
        ("9999-12-31T23:59:59-01:00", OTHER_YEAR),
        ("10000-01-01T00:00:00Z", OTHER_YEAR),
        ("+10000-01-01T00:00:00Z", OTHER_YEAR),
        ("292278994-08-17T07:12:55.807Z", OTHER_YEAR),
        ("0000-01-01T00:00:00Z", OTHER_YEAR),
        ("0000-12-31", OTHER_YEAR),
        ("-0001-01-01T00:00:00Z", OTHER_YEAR),
    ],
)
def test_a_time_that_is_none_is_refused(name: str, written: object, message: str) -> None:
    assert refusal(filter_with(**{name: written})).startswith(f"filter.{name}: {message}")


@pytest.mark.parametrize("end", ["2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z"])
def test_times_in_reverse_are_refused(end: str) -> None:
    message = refusal(filter_with(start="2026-01-01T00:00:00Z", end=end))
    assert message.startswith("filter: start 2026-01-01T00:00:00+00:00 is not before end 202")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"filter": {"event_types": "a"}}, "filter.event_types: Input should be a valid array"),
        ({"filter": 7}, "filter: Input should be an object"),
        ({"target": {"topics": []}}, "target.topics: Input should be an object"),
        ({"rate": 0}, "rate: Input should be greater than or equal to 0.001"),
        ({"rate": 5e-324}, "rate: Input should be greater than or equal to 0.001"),
        ({"rate": "fast"}, "rate: Input should be a valid number"),
        ({"rate": "5"}, "rate: Input should be a valid number"),
        ({"rate": True}, "rate: Input should be a valid number"),
        ({"rate": 1e300}, "rate: Input should be less than or equal to 1000000000"),
        ({"max_events": 0}, "max_events: Input should be greater than or equal to 1"),
        ({"max_events": -1}, "max_events: Input should be greater than or equal to 1"),
        ({"max_events": 1.5}, "max_events: Input should be a valid integer"),
        ({"max_events": True}, "max_events: Input should be a valid integer"),
        ({"shards": 0, "ordering": "aggregate"}, "shards: Input should be greater than or"),
        ({"shards": 257, "ordering": "aggregate"}, "shards: Input should be less than or"),
        ({"shards": 2}, "shards needs ordering 'aggregate'"),
        ({"max_events": 2, "ordering": "aggregate"}, "max_events needs ordering 'global'"),
        ({"speed": 0}, "speed: Input should be greater than or equal to 0.001"),
        ({"speed": 2, "ordering": "aggregate"}, "speed needs ordering 'global'"),
        ({"max_gap_seconds": 2}, "max_gap_seconds needs a speed"),
        ({"speed": 2, "max_gap_seconds": 0}, "max_gap_seconds: Input should be greater than 0"),
        ({"ordering": "random"}, "ordering: Input should be 'global' or 'aggregate'"),
        (
            {"on_error": "ignore"},
            "on_error: Input should be 'fail', 'skip', 'dead-letter' or 'park'",
        ),
        ({"dry_run": "yes"}, "dry_run: Input should be a valid boolean"),
        ({"dry_run": 1}, "dry_run: Input should be a valid boolean"),
        ({"after": ["r1"]}, "a replay cannot wait for itself"),
        ({"after": "first"}, "after: Input should be a valid"),
        ({"name": ""}, "name: String should have at least 1 character"),
        ({"reason": "x" * 1001}, "reason: String should have at most 1000 characters"),
        ({"filter": None}, "filter: "),
        ({"filter": []}, "filter: "),
        ({"filter": {"event_type": ["a"]}}, "filter.event_type: unknown field"),
        ({"filter": {"event_types": "a"}}, "filter.event_types: Input should be a valid"),
        ({"filter": {"event_types": [""]}}, "filter.event_types.0: String should have at least"),
        ({"filter": {"event_types": [{"$ne": 1}]}}, "filter.event_types.0: Input should be"),
        ({"filters": {}}, "filters: unknown field"),
        ({"target": {"topic": "a", "prefix": "b"}}, "target: a target has either a topic or a"),
        ({"target": {"topic": "a b"}}, "target.topic: String should match pattern"),
        ({"target": {"topic": ".."}}, "target.topic: '..' is not a topic name"),
        ({"target": {"topics": {"t": "."}}}, "target.topics: '.' is not a topic name"),
        ({"target": {"topic": "a/b"}}, "target.topic: String should match pattern"),
        ({"target": {"topics": {"t": ""}}}, "target.topics.t: String should match pattern"),
        ({"target": {"topics": ["t"]}}, "target.topics: Input should be"),
        ({"target": {"cluster": "x"}}, "target.cluster: unknown field"),
        ({"redact": {"a": "hide"}}, "redact.a: Input should be 'drop', 'null', 'mask' or 'hash'"),
        ({"redact": {"a.0.b": "drop"}}, "redact: 'a.0.b' has the number of an array's element"),
        ({"redact": {"x" * 1001: "drop"}}, "redact."),
        ({"redact": {"a..b": "drop"}}, "redact: 'a..b' is not a dotted field path"),
        ({"redact": {"$a": "drop"}}, "redact: '$a' is not a dotted field path"),
        ({"redact": {"a": "drop", "a.b.c": "hash"}}, "redact: 'a.b.c' lies within 'a', which is"),
        (
            {"redact": {str(n): "drop" for n in range(101)}},
            "redact: Dictionary should have at most",
        ),
        ({"redact": ["a"]}, "redact: Input should be an object"),
        ({"source": "orders"}, "source: Input should be an object"),
        ({"source": {"topic": "x"}}, "source.topic: unknown field"),
        ({"source": {"database": "a.b"}}, "source.database: String should match pattern"),
        ({"source": {"database": "x" * 64}}, "source.database: String should match pattern"),
        ({"source": {"collection": ""}}, "source.collection: String should have at least 1"),
        ({"source": {"collection": "a$b"}}, "source.collection: String should match pattern"),
        (
            {"source": {"collection": "system.users"}},
            "source.collection: 'system.users' belongs",
        ),
        ({"source": {"mapping": ["x"]}}, "source.mapping: Input should be a valid string"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    fields: dict[str, object], message: str
) -> None:
    assert refusal(start_with(**fields)).startswith(message)


def test_every_wrong_field_is_named() -> None:
    message = refusal(start_with(rate=-1, filter={"start": 5, "fields": {"a": []}}, other=1))
    assert [sentence.split(":")[0] for sentence in message.split("; ")] == [
        "filter.start",
        "filter.fields.a",
        "rate",
        "other",
    ]


def test_types_both_included_and_excluded_are_refused() -> None:
    message = refusal(filter_with(event_types=["a", "b", "c"], exclude_event_types=["c", "b"]))
    assert message == "filter: event types both included and excluded: b, c"


@pytest.mark.parametrize("name", ["aggregate_ids", "event_ids"])
@pytest.mark.parametrize("value", [None, True, 1.5, 2**63, -(2**63) - 1, {"$gt": ""}, ["a"]])
def test_an_id_of_another_type_is_refused(name: str, value: object) -> None:
    message = refusal(filter_with(**{name: ["fine", value]}))
    assert message == f"filter.{name}.1: must be a string or a whole number of at most 64 bits"


@pytest.mark.parametrize(
    "path", ["$where", "a.$where", "$or", "a.$gt.b", "", ".", "a.", ".a", "a..b", "a\0b"]
)
def test_an_operator_is_no_field(path: str) -> None:
    message = refusal(filter_with(fields={path: "sleep(1000)"}))
    assert (
        message == f"filter.fields: {path!r} is not a dotted field path; operators are not allowed"
    )


@pytest.mark.parametrize("value", [{"$ne": None}, {"$where": "1"}, [], ["a"], {}])
def test_an_operator_is_no_value(value: object) -> None:
    message = refusal(filter_with(fields={"user": value}))
    assert message.startswith("filter.fields.user: must be a string, a number, true, false or null")
    assert ("operators of the store are not allowed" in message) == isinstance(value, dict)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_numbers_that_json_does_not_have_are_refused(number: str) -> None:
    body = f'{{"command": "start", "replay_id": "r1", "filter": {{"fields": {{"a": {number}}}}}}}'
    assert refusal(body).startswith("filter.fields.a: must be")
    body = f'{{"command": "set-rate", "replay_id": "r1", "rate": {number}}}'
    assert refusal(body).startswith("rate: Input should be a finite number")


def test_a_number_of_many_digits_is_refused() -> None:
    digits = "9" * 100_000
    body = f'{{"command": "start", "replay_id": "r1", "max_events": {digits}}}'
    assert refusal(body).startswith("not JSON: number out of range")


def test_a_body_over_the_limit_is_refused_with_the_limit() -> None:
    body = filter_with(aggregate_ids=["x" * 100] * 9_000)
    assert len(body) > MAX_COMMAND_BYTES
    message = f"the command has {len(body)} bytes, at most {MAX_COMMAND_BYTES} are allowed"
    assert refusal(body) == message


def test_many_members_are_read_in_a_moment() -> None:
    fields = {f"f{number}": number for number in range(40_000)}
    command = parse_command(filter_with(fields=fields))
    assert isinstance(command, Start)
    assert len(command.filter.fields) == 40_000


def test_a_refusal_of_many_faults_names_the_first_of_them() -> None:
    why = refusal(filter_with(event_types=[1] * 20_000))
    assert why.startswith("filter.event_types.0: ")
    assert why.endswith("; and 19980 more")
    assert len(why) < 2_000


def test_a_refusal_never_repeats_a_long_input() -> None:
    assert len(refusal(json.dumps({"command": "x" * 10_000, "replay_id": "r1"}))) < 300


@pytest.mark.parametrize(
    "other",
    [
        json.dumps(FULL, indent=4, sort_keys=True),
        json.dumps(FULL | {"rate": 100.0}),
        json.dumps(FULL).replace("orders view lost", "orders view l\\u006fst"),
        json.dumps(FULL).replace("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000+00:00"),
        json.dumps(FULL).replace("2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00"),
        json.dumps(
            {name: value for name, value in FULL.items() if name not in {"speed", "shards"}}
        ),
    ],
)
def test_equal_bodies_written_differently_are_equal(other: str) -> None:
    one, two = parse_command(json.dumps(FULL).encode()), parse_command(other.encode())
    assert isinstance(one, Start)
    assert isinstance(two, Start)
    assert one.canonical() == two.canonical()


def test_the_consent_to_original_topics_is_no_other_body() -> None:
    old = Start.model_validate({"replay_id": "r", "filter": EVERY})
    stored = old.model_dump(mode="json", exclude={"to_original"})  # of an older version
    new = Start.model_validate({"replay_id": "r", "filter": EVERY, "to_original": True})
    assert Start.model_validate(stored) == old
    assert Start.model_validate(stored).canonical() == old.canonical() == new.canonical()
    assert json.loads(old.canonical()) == stored


@pytest.mark.parametrize(
    ("members", "reaches"),
    [
        ({}, True),
        ({"target": {"topics": {"a": "b"}}}, True),
        ({"target": {"topics": {"a": "b"}}, "filter": {"event_types": ["a"]}}, True),
        ({"target": {"prefix": "b."}}, False),
        ({"target": {"topic": "b"}}, False),
        ({"dry_run": True}, False),
    ],
)
def test_a_start_without_topic_or_prefix_may_reach_original_topics(
    members: dict[str, object], reaches: bool
) -> None:
    start = Start.model_validate({"replay_id": "r", "filter": EVERY, **members})
    assert start.reaches_originals is reaches


@pytest.mark.parametrize(
    "change",
    [
        {"requested_by": "bob"},
        {"rate": 101},
        {"dry_run": True},
        {"after": []},
        {"filter": FULL["filter"] | {"end": "2026-02-01T00:00:01Z"}},
        {"filter": FULL["filter"] | {"aggregate_ids": [7, "o-1"]}},
        {"filter": FULL["filter"] | {"aggregate_ids": ["o-1", "7"]}},
    ],
)
def test_another_body_is_not_equal(change: dict[str, object]) -> None:
    one, two = (
        parse_command(json.dumps(FULL).encode()),
        parse_command(json.dumps(FULL | change).encode()),
    )
    assert isinstance(one, Start)
    assert isinstance(two, Start)
    assert one.canonical() != two.canonical()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from([*FULL, *FULL["filter"], *FULL["target"], "$where", "x"])


@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf{}")
def test_no_bytes_raise_anything_but_a_refusal(body: bytes) -> None:
    with contextlib.suppress(InvalidCommand):
        parse_command(body)
    usable_replay_id(body)


@given(
    st.dictionaries(NAMES, JSON),
    st.dictionaries(NAMES, JSON),
    st.sampled_from(["start", "pause", "set-rate"]),
)
def test_no_json_raises_anything_but_a_refusal(
    fields: dict[str, Any], wanted: dict[str, Any], command: str
) -> None:
    body = {"replay_id": "r1", "filter": wanted} | fields | {"command": command}
    with contextlib.suppress(InvalidCommand):
        parse_command(json.dumps(body).encode())


STARTS = st.builds(
    lambda **fields: {name: value for name, value in fields.items() if value is not None},
    command=st.just("start"),
    replay_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    requested_by=st.none() | st.text(min_size=1, max_size=10),
    rate=st.none() | st.floats(1e-3, 1e6),
    filter=st.just(EVERY)
    | st.fixed_dictionaries(
        {
            "end": st.just("9999-01-01T00:00:00Z"),
            "start": st.none()
            | st.integers(-(10**12), 4 * 10**12).map(
                lambda ms: (EPOCH + timedelta(milliseconds=ms)).isoformat()
            ),
            "aggregate_ids": st.lists(st.text() | st.integers(-(2**63), 2**63 - 1), max_size=3),
            "fields": st.dictionaries(
                st.from_regex(r"[a-z]+(\.[a-z]+)?", fullmatch=True),
                st.none()
                | st.booleans()
                | st.text()
                | st.integers(-(2**63), 2**63 - 1)
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.fixed_dictionaries({"$oid": st.from_regex("[0-9a-f]{24}", fullmatch=True)})
                | st.fixed_dictionaries({"in": st.lists(st.text(), min_size=1, max_size=3)})
                | st.fixed_dictionaries({"gte": st.integers(0, 9), "ne": st.none()}),
            ),
        }
    ),
)


@given(STARTS)
def test_a_start_survives_the_sessions_record(body: dict[str, Any]) -> None:
    command = parse_command(json.dumps(body).encode())
    assert isinstance(command, Start)
    again = Start.model_validate_json(command.model_dump_json())
    assert again == command
    assert again.canonical() == command.canonical()
    assert parse_command(command.canonical().encode()) == command


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"max_events": 5, "rate": 1, "target": {"topic": "t"}}',
        b'{"filter": {}}',
        b'{"filter": {"all": false}}',
        b'{"filter": {"start": null, "end": null, "event_types": [], "fields": {}}}',
    ],
)
def test_a_start_without_a_condition_must_ask_for_all_events(body: bytes) -> None:
    message = refusal(body, fixed={"command": "start", "replay_id": "r1"})
    assert message.startswith("filter: name at least one condition")
    assert '{"all": true}' in message
    # A session of an older version has such a start.
    assert isinstance(
        command_of({"command": "start", "replay_id": "r1", **json.loads(body)}), Start
    )


@pytest.mark.parametrize("name", sorted(FULL["filter"]))
def test_a_filter_has_either_conditions_or_all(name: str) -> None:
    condition = {name: FULL["filter"][name]}
    assert isinstance(parse_command(filter_with(**condition)), Start)
    assert refusal(filter_with(all=True, **condition)) == (
        f"filter: all events are asked for, and a condition: {name}; leave out one"
    )


def test_times_are_kept_in_utc() -> None:
    command = parse_command(filter_with(start="2026-01-01T01:30:00+01:30"))
    assert isinstance(command, Start)
    assert command.filter.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert command.filter.start.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("body", "replay_id"),
    [
        (b'{"replay_id": "r1", "nonsense": 1}', "r1"),
        (b'{"command": "start", "replay_id": "r1", "rate": -1}', "r1"),
        (b'{"replay_id": "a/b"}', None),
        (b'{"replay_id": 7}', None),
        (b'{"replay_id": ["r1"]}', None),
        (b"{}", None),
        (b'["replay_id"]', None),
        (b'"replay_id"', None),
        (b"7", None),
        (b"", None),
        (None, None),
        (b"\xff\xfe", None),
        (b"[" * 200_000, None),
    ],
)
def test_a_malformed_command_is_answered_where_its_id_is_usable(
    body: bytes | None, replay_id: str | None
) -> None:
    assert usable_replay_id(body) == replay_id


def test_a_whole_number_may_be_written_with_a_point() -> None:
    body = b'{"command": "start", "replay_id": "r", "filter": {"all": true}, "max_events": %s}'
    start = parse_command(body % b"5.0")
    assert isinstance(start, Start)
    assert start == parse_command(body % b"5")
    for wrong in (b"5.5", b"1e400", b"0.0", b'"5"', b"true"):
        with pytest.raises(InvalidCommand, match="max_events"):
            parse_command(body % wrong)


# Verdicts


@pytest.mark.parametrize(
    ("member", "value", "is_taken"),
    [
        ("missing", 7, True),
        ("missing", 7.0, True),  # to JSON Schema an integer
        ("missing", 7.5, False),
        ("missing", -1, False),
        ("missing", "7", False),
        ("missing", True, False),
        ("missing", 2**53 + 1, False),
        ("verdict", "good", False),
        ("at", "2026-01-01T00:00:00", False),
        ("seconds", -1, False),
        ("reason", "x" * 2001, False),
        ("lost", 1, False),
    ],
)
def test_a_verdict_is_checked_before_it_is_kept(member: str, value: Any, is_taken: bool) -> None:
    found = {"verdict": "equal", "at": "2026-01-01T00:00:00Z", "seconds": 1.5, member: value}
    body = {"command": "note-verification", "replay_id": "r", "verification": found}
    if not is_taken:
        with pytest.raises(InvalidCommand, match=rf"verification\.{member}: "):
            parse_command(json.dumps(body).encode())
        return
    command = parse_command(json.dumps(body).encode())
    assert isinstance(command, NoteVerification)
    assert command.verification.missing == 7
