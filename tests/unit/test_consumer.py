"""Telling replayed records from live ones, as each client library gives their headers."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay_app.consumer import Provenance, provenance

PAIRS = (
    ("trace", b"t-1"),
    ("replay-id", b"rebuild-1"),
    ("replay-original-time", b"2026-01-02T03:04:05.678Z"),
    ("replay-delivery-id", b"rebuild-1:e-1"),
    ("replay-attempt", b"2"),
    ("replay-name", "Aufträge".encode()),
    ("replay-reason", b"view lost"),
)
EXPECTED = Provenance(
    replay_id="rebuild-1",
    original_time=datetime(2026, 1, 2, 3, 4, 5, 678000, UTC),
    delivery_id="rebuild-1:e-1",
    attempt=2,
    name="Aufträge",
    reason="view lost",
)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(PAIRS, id="aiokafka"),
        pytest.param(list(PAIRS), id="confluent-kafka"),
        pytest.param([(name, value.decode()) for name, value in PAIRS], id="texts"),
        pytest.param([list(pair) for pair in PAIRS], id="lists"),
        pytest.param(dict(PAIRS), id="Faust, a mapping"),
        pytest.param(iter(PAIRS), id="an iterator"),
    ],
)
def test_a_replayed_record_says_where_it_comes_from_in_every_library(headers: Any) -> None:
    assert provenance(headers) == EXPECTED


@pytest.mark.parametrize("headers", [None, (), [], {}, {"trace": b"t"}, [("trace", None)]])
def test_a_live_record_has_no_provenance(headers: Any) -> None:
    assert provenance(headers) is None


@pytest.mark.parametrize("control", ["begin", "end", "cancelled"])
def test_a_control_record_is_recognized(control: str) -> None:
    headers = [("replay-id", b"r"), ("replay-control", control.encode())]
    assert provenance(headers) == Provenance(replay_id="r", control=control)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replay-original-time", b"yesterday"),
        ("replay-original-time", b"2026-01-02T03:04:05"),  # without a timezone it is not an instant
        ("replay-original-time", b"0001-01-01T00:00:00+23:00"),
        ("replay-attempt", b"two"),
        ("replay-attempt", "²".encode()),
        ("replay-attempt", b"9" * 5000),
        ("replay-control", b"pause"),
        ("replay-name", None),
        ("replay-reason", 7),
    ],
)
def test_a_header_that_cannot_be_read_is_left_out(name: str, value: Any) -> None:
    assert provenance([("replay-id", b"r"), (name, value)]) == Provenance(replay_id="r")


@pytest.mark.parametrize(
    ("value", "replay_id"),
    [(None, ""), (b"", ""), (b"a\xff", "a\N{REPLACEMENT CHARACTER}"), (7, "")],
)
def test_a_record_with_a_broken_replay_id_is_still_a_replayed_one(
    value: Any, replay_id: str
) -> None:
    assert provenance([("replay-id", value)]) == Provenance(replay_id=replay_id)


def test_of_a_header_that_is_there_twice_the_last_one_counts() -> None:
    found = provenance([("replay-id", b"first"), ("replay-id", b"second")])
    assert found == Provenance(replay_id="second")


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)
_NAMES = st.sampled_from([name for name, _ in PAIRS] + ["replay-control"])


@given(_ANYTHING | st.lists(st.tuples(_NAMES, _ANYTHING)))
def test_nothing_makes_it_raise(headers: Any) -> None:
    found = provenance(headers)
    assert found is None or isinstance(found, Provenance)


def test_it_needs_nothing_but_python() -> None:
    loaded = "import sys, replay_app.consumer; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    modules = result.stdout.split()
    assert [name for name in modules if name.split(".")[0] == "replay_app"] == [
        "replay_app",
        "replay_app.consumer",
    ]
    assert not {"aiokafka", "faust", "confluent_kafka", "pydantic"} & set(modules)
