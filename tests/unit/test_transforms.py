"""Transforms: what they may return, what they are told, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import bson
import encoding
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from encoding import NOON

from replay_app import transform_names, transforms
from replay_app.commands import Start, Target
from replay_app.encoders import codec_name, make_encoder
from replay_app.events import EventMapping
from replay_app.exceptions import ReplayFailed
from replay_app.pages import EncodedPage
from replay_app.redaction import Redaction
from replay_app.settings import Settings, load_settings
from replay_app.sources import require_same_source, source_of
from replay_app.transform_names import import_transforms, transforms_of
from replay_app.transforms import DROP, EventContext, Output, Transforms, run_in_thread

SPEC = replace(
    encoding.SPEC,
    mapping=EventMapping(field_headers="headers"),
    target=Target(prefix="test."),
    partitions={"test.placed": 1, "test.other": 1},
)
EVENT = {
    "_id": 1,
    "event_type": "placed",
    "aggregate_id": "a",
    "timestamp": NOON,
    "headers": {"tenant": "t1"},
    "email": "ana@example.org",
}


def encoded(*functions: Callable[..., Any], **changes: Any) -> EncodedPage:
    named = [(function.__name__, function) for function in functions]
    spec = replace(SPEC, transforms=Transforms(named, "test."), **changes)
    return make_encoder(spec, "auto").encode(bson.encode(EVENT), 0)


def record(*functions: Callable[..., Any], **changes: Any) -> Any:
    """Return the topic, key, value and headers of the event's record."""
    page = encoded(*functions, **changes)
    assert page.failures == []
    (batch,) = page.batches
    (one,) = DefaultRecordBatch(bytes(batch.builder._build()))
    own = [header for header in one.headers if not header[0].startswith("replay-")]
    return batch.topic, one.key, one.value, own


def failure(*functions: Callable[..., Any]) -> str:
    page = encoded(*functions)
    assert (page.read, page.encoded) == (1, 0)
    (failed,) = page.failures
    assert failed.event_id == "1"
    return failed.reason


def test_a_transform_changes_the_document_and_the_next_gets_the_change() -> None:
    def first(event: dict[str, Any], _: EventContext) -> Any:
        return {"kind": event["event_type"], "_id": event.get("_id", "left out")}

    def second(event: dict[str, Any], _: EventContext) -> Any:
        event["second"] = True
        return Output(document=event)

    topic, key, value, headers = record(first, second)
    assert (topic, key, headers) == ("test.placed", b"a", [("tenant", b"t1")])
    assert json.loads(value) == {"kind": "placed", "_id": "left out", "second": True}


def test_a_transform_is_told_what_the_record_will_be() -> None:
    told = []

    def look(event: dict[str, Any], context: EventContext) -> Any:
        told.append(context)
        return event

    record(look)
    headers = (("tenant", b"t1"),)
    assert told == [EventContext("1", "placed", NOON, "test.placed", b"a", headers, "r")]


def test_a_transform_may_send_the_event_elsewhere_and_the_next_is_told() -> None:
    def send(_event: dict[str, Any], _: EventContext) -> Any:
        return Output(topic="other", key="k", headers=[("a", None), ("b", b"1")])

    def give(_event: dict[str, Any], context: EventContext) -> Any:
        return Output(value=f"{context.topic} {context.key!r}".encode(), key=b"\0")

    expected = ("test.other", b"\0", b"test.other b'k'", [("a", None), ("b", b"1")])
    assert record(send, give) == expected


def test_a_dropped_event_is_read_and_counted() -> None:
    page = encoded(lambda _event, _context: DROP)
    assert (page.read, page.encoded, page.dropped, page.skipped_replays) == (1, 0, 1, 0)
    assert page.failures == []
    assert page.cursor is not None


def test_an_event_that_is_marked_as_replayed_is_not_counted_as_dropped() -> None:
    guarded = replace(SPEC.mapping, field_replayed="headers.tenant")
    page = encoded(lambda event, _context: event, mapping=guarded)
    assert (page.read, page.dropped, page.skipped_replays) == (1, 0, 1)


def test_redaction_and_exclusion_come_first_so_that_no_transform_can_tell_what_is_redacted() -> (
    None
):
    seen = []

    def look(event: dict[str, Any], _: EventContext) -> Any:
        seen.append({**event})
        return Output(value=b"x")

    record(look, redaction=Redaction({"email": "mask"}, b""))
    assert seen[0]["email"] == "***"
    assert "_id" not in seen[0]


def test_the_field_of_the_value_may_be_changed() -> None:
    def upper(event: dict[str, Any], _: EventContext) -> Any:
        return event | {"email": event["email"].upper()}

    mapping = replace(SPEC.mapping, field_value="email")
    assert record(upper, mapping=mapping)[2] == b"ANA@EXAMPLE.ORG"


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Number(Enum):
    ODD = float("nan")


@dataclass
class Point:
    x: float


class OddHeaders:
    def __iter__(self) -> Iterator[Any]:
        msg = "odd"
        raise RuntimeError(msg)


def raises(error: BaseException) -> Callable[..., Any]:
    def wrong(_event: Any, _context: Any) -> Any:
        raise error

    return wrong


def returns(value: Any) -> Callable[..., Any]:
    def wrong(_event: Any, _context: Any) -> Any:
        return value

    return wrong


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raises(KeyError("amount")), "transform 'wrong' has failed: KeyError: 'amount'"),
        (raises(SystemExit(3)), "transform 'wrong' has failed: SystemExit: 3"),
        (raises(Odd()), "transform 'wrong' has failed: Odd"),
        (
            raises(ValueError("\ud800" + "x" * 9_000)),
            "transform 'wrong' has failed: ValueError: ?x",
        ),
        (returns(None), "transform 'wrong' has returned None and not a document: return a dict"),
        (returns([EVENT]), "transform 'wrong' has returned a value of type list"),
        (returns("text"), "transform 'wrong' has returned a value of type str"),
        (returns(Output(document=[])), "transform 'wrong' has returned a value of type list"),  # type: ignore[arg-type]
        (returns(Output(value="text")), "has given a value of type str as value, and not bytes"),  # type: ignore[arg-type]
        (
            returns(Output(topic="a b")),
            "has sent the event to 'test.a b', which is not a topic name",
        ),
        (returns(Output(topic=7)), "'test.7' does not exist"),  # type: ignore[arg-type]
        (returns(Output(key=7)), "has given a value of type int as key, and not text or bytes"),  # type: ignore[arg-type]
        (returns(Output(key="\ud800")), "has failed: UnicodeEncodeError"),
        (returns(Output(headers=[("a",)])), "as header, and not a pair of a name and bytes"),  # type: ignore[list-item]
        (returns(Output(headers=[("a", "text")])), "and not of text and bytes"),  # type: ignore[list-item]
        (returns(Output(headers=[("Replay-id", b"x")])), "only the replay itself writes headers"),
        (returns({"a": {1, 2}}), "type set, which has no mapping to JSON"),
        (returns({1: 2}), "it cannot be written as JSON"),
        (returns({"a": float("nan")}), "field 'a' holds nan"),
        (returns({"a": (float("nan"),)}), "field 'a.0' holds nan"),
        (returns({"a": Number.ODD}), "field 'a' holds nan"),
        (returns({"a": Point(1.5)}), "type Point, which has no mapping to JSON"),
        (returns(Output(headers=OddHeaders())), "has failed: RuntimeError: odd"),  # type: ignore[arg-type]
        (returns(Output(key=Odd())), "has given a value of type Odd as key"),  # type: ignore[arg-type]
        (returns({"a": "x" * 20_000}), "too many for REPLAY_MAX_RECORD_BYTES=10000"),
        (returns(Output(topic="gone")), "its topic 'test.gone' does not exist"),
    ],
)
def test_a_transform_that_fails_fails_its_event_and_the_reason_names_it(
    function: Callable[..., Any], reason: str
) -> None:
    found = failure(function)
    assert reason in found
    assert len(found.encode()) < 1_000


def test_bytes_end_the_chain() -> None:
    def first(_event: Any, _context: Any) -> Any:
        return Output(value=b"x")

    def second(event: Any, _context: Any) -> Any:
        return event

    assert failure(first, second) == "transform 'second' cannot follow one that has returned bytes"


def test_a_document_that_is_turned_inside_out_fails_alone() -> None:
    def nest(event: dict[str, Any], _: EventContext) -> Any:
        event["self"] = event
        return event

    assert "it cannot be written as JSON" in failure(nest)


# Names


OWN_TRANSFORMS = """
import functools

def same(event, context):
    return event

partial = functools.partial(same)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings with transforms of a module that the test can change."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_transforms.py").write_text(OWN_TRANSFORMS)
    (tmp_path / "broken.py").write_text("raise RuntimeError('no licence')\n")
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "for_ever.py").write_text("import time\ntime.sleep(20)\n")
    places = {
        "same": "own_transforms:same",
        "missing": "no_such_module:f",
        "nameless": "own_transforms",
        "broken": "broken:f",
        "script": "a_script:f",
        "partial": "own_transforms:partial",
        "no-function": "own_transforms:__name__",
    }
    return load_settings(transforms=places)


@pytest.fixture(autouse=True)
def _forget() -> Any:
    yield
    for remembered in (transform_names._loaded, transform_names._hash_of, transform_names._offered):
        remembered.cache_clear()
    transform_names._hanging.clear()
    for name in ("own_transforms", "broken", "a_script"):
        sys.modules.pop(name, None)


def test_a_name_leads_to_its_function(settings: Settings) -> None:
    found = transforms_of(settings, ["same", "same"])
    assert found is not None
    context = EventContext("1", "placed", NOON, "t", b"", (), "r")
    assert found.apply({"a": 1}, context) == ({"a": 1}, None, context)
    assert transforms_of(settings, []) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("never", "there is no transform 'never': REPLAY_TRANSFORMS and the installed packages"),
        ("missing", "REPLAY_TRANSFORMS=no_such_module:f: write module:function"),
        ("nameless", "REPLAY_TRANSFORMS=own_transforms: write module:function"),
        ("broken", "no licence"),
        ("script", "REPLAY_TRANSFORMS=a_script:f: write module:function"),
        ("no-function", "REPLAY_TRANSFORMS=own_transforms:__name__ is no function"),
    ],
)
def test_a_name_without_a_function_fails_the_replay(
    settings: Settings, name: str, reason: str
) -> None:
    with pytest.raises(ReplayFailed) as caught:
        transforms_of(settings, [name])
    assert reason in str(caught.value)
    with pytest.raises(ReplayFailed):
        source_of(settings, start(name))


def start(*names: str) -> Start:
    return Start.model_validate({"replay_id": "r", "transforms": names})


def test_an_installed_package_may_offer_transforms(settings: Settings, tmp_path: Path) -> None:
    about = tmp_path / "shop_events-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-events\nVersion: 1.0\n")
    points = "[event_replay.transforms]\nfrom-package = own_transforms:same\n"
    (about / "entry_points.txt").write_text(points)
    transform_names._offered.cache_clear()
    assert transforms_of(settings, ["from-package"]) is not None


def test_another_version_of_a_transform_is_refused(settings: Settings, tmp_path: Path) -> None:
    planned = source_of(settings, start("same"))
    partial = source_of(settings, start("partial"))["transform partial"]
    assert partial.partition(" ")[2] == planned["transform same"].partition(" ")[2]
    assert planned["transform same"].startswith("own_transforms:same sha256:")
    require_same_source(planned, source_of(settings, start("same")))
    (tmp_path / "own_transforms.py").write_text("def same(event, context):\n    return {}\n")
    transform_names._loaded.cache_clear()  # as a worker that starts again
    transform_names._hash_of.cache_clear()
    with pytest.raises(ReplayFailed, match="transform same was"):
        require_same_source(planned, source_of(settings, start("same")))


def test_a_replay_with_transforms_has_the_python_encoder_and_its_best_codec() -> None:
    spec = replace(SPEC, transforms=Transforms([]))
    assert make_encoder(spec, "auto").name == "python"
    assert codec_name(Settings(), needs_python=True) == "snappy"


# Time


def in_thread(function: Callable[..., Any], seconds: float | None = None) -> EncodedPage:
    spec = replace(SPEC, transforms=Transforms([("slow", function)]))
    encoder = make_encoder(spec, "auto")
    encode = partial(encoder.encode, bson.encode(EVENT), 0)
    return asyncio.run(run_in_thread(spec.transforms, encode, seconds))


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "LOOK_SECONDS", 0.02)


@pytest.mark.usefixtures("_short")
def test_a_transform_that_loops_for_ever_fails_the_replay_and_its_thread_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transforms, "TRANSFORM_SECONDS", 0.2)
    threads: list[threading.Thread] = []

    def loop(_event: Any, _context: Any) -> Any:
        threads.append(threading.current_thread())
        while True:
            time.sleep(0.001)

    with pytest.raises(ReplayFailed, match=r"transform 'slow' has not returned event '1' within"):
        in_thread(loop)
    threads[0].join(30)
    assert not threads[0].is_alive()


@pytest.mark.usefixtures("_short")
def test_a_transform_that_sleeps_is_left_alone_and_does_not_keep_the_worker_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transforms, "TRANSFORM_SECONDS", 0.2)
    ends = threading.Event()
    daemons: list[bool] = []

    def sleep(event: Any, _context: Any) -> Any:
        daemons.append(threading.current_thread().daemon)
        ends.wait(60)
        return event

    with pytest.raises(ReplayFailed, match="'slow'"):
        in_thread(sleep)
    ends.set()
    assert daemons == [True]


@pytest.mark.usefixtures("_short")
def test_events_that_take_too_long_together_are_tried_again() -> None:
    def slow(event: Any, _context: Any) -> Any:
        time.sleep(0.5)
        return event

    with pytest.raises(TimeoutError, match=r"the events of a part within 0\.2 s"):
        in_thread(slow, 0.2)


def test_a_worker_imports_all_transforms_at_its_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transform_names, "IMPORT_SECONDS", 0.3)
    hangs = {"for-ever": "for_ever:f"}
    settings = settings.model_copy(update={"transforms": settings.transforms | hangs})
    import_transforms(settings)
    assert "own_transforms" in sys.modules
    assert "transform broken cannot be used" in caplog.text
    with pytest.raises(ReplayFailed, match=r"for_ever:f: its import takes longer than 0\.3 s"):
        transforms_of(settings, ["for-ever"])


def test_what_a_thread_raises_is_raised() -> None:
    def wrong() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - the thread's own
        asyncio.run(run_in_thread(Transforms([]), wrong))
    assert asyncio.run(run_in_thread(None, lambda: 1)) == 1
