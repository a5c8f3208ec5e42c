"""Parking: the later events of an aggregate wait behind its failed event."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import bson
import pytest
from bson import Regex
from encoding import NOON, SPEC

from replay_app.commands import Target
from replay_app.encoders import make_encoder
from replay_app.pages import Batch, EncodedPage
from replay_app.parking import MAX_PARKED, MAX_SHOWN, Parking, is_full, parked_behind
from replay_app.refusals import _documents_of, refused_page

BAD = {"body": Regex("x")}
EURO = "\u20ac"


def event(number: int, aggregate: Any, **fields: Any) -> dict[str, Any]:
    one = {"_id": number, "event_id": f"e{number}", "event_type": "placed"}
    return one | {"aggregate_id": aggregate, "timestamp": NOON + timedelta(seconds=number)} | fields


def page_of(*events: dict[str, Any]) -> bytes:
    return b"".join(bson.encode(one) for one in events)


def encode(parking: Parking, *events: dict[str, Any]) -> EncodedPage:
    """Encode a page, and take it for published."""
    encoded = make_encoder(replace(SPEC, parking=parking), "auto").encode(page_of(*events), 0)
    if encoded.parked is not None:
        parking.behind = encoded.parked
    return encoded


def failed(encoded: EncodedPage) -> list[tuple[str | None, bool]]:
    """Return the ids of the failed events, and whether each one is parked."""
    return [(one.event_id, "parked behind" in one.reason) for one in encoded.failures]


def test_the_others_go_on_and_the_later_events_of_the_aggregate_wait() -> None:
    parking = Parking()
    encoded = encode(
        parking,
        event(1, "a"),
        event(2, "a", **BAD),
        event(3, "b"),
        event(4, "a"),
        event(5, "a", **BAD),
        event(6, None),
    )
    assert (encoded.read, encoded.encoded, encoded.waiting) == (6, 3, 2)
    assert failed(encoded) == [("e2", False), ("e4", True), ("e5", True)]
    assert parking.behind == {"a": "e2"}
    later = encode(parking, event(7, "b"), event(8, "a"))
    assert failed(later) == [("e8", True)]
    assert "behind event 'e2' of its aggregate" in later.failures[0].reason
    assert later.parked is None  # as before


def test_a_page_that_is_encoded_twice_gives_the_same_twice() -> None:
    events = event(1, "a"), event(2, "a", **BAD), event(3, "a")
    parking = Parking({"b": "e0"})
    encoder = make_encoder(replace(SPEC, parking=parking), "auto")
    first, second = (encoder.encode(page_of(*events), 0) for _ in range(2))
    assert failed(first) == failed(second) == [("e2", False), ("e3", True)]
    assert parking.behind == {"b": "e0"}
    assert first.parked == {"b": "e0", "a": "e2"}


def test_the_failed_event_itself_is_not_behind_itself() -> None:
    encoded = encode(Parking({"a": "e1"}), event(1, "a", **BAD), event(2, "a"))
    assert failed(encoded) == [("e1", False), ("e2", True)]
    mended = encode(Parking({"a": "e1"}), event(1, "a"))
    assert (mended.encoded, failed(mended)) == (1, [])


@pytest.mark.parametrize("aggregate", [7, "7", 1.5, b"\0", {"a": 1}, "x" * (MAX_SHOWN + 1)])
def test_aggregate_ids_of_any_type_are_parked_if_they_have_a_text(aggregate: Any) -> None:
    encoded = encode(Parking(), event(1, aggregate, **BAD), event(2, aggregate), event(3, "b"))
    has_text = not isinstance(aggregate, dict)
    # Without a text the aggregate id is no key either, so that both events fail.
    assert failed(encoded) == [("e1", False), ("e2", has_text)]
    assert bool(encoded.parked) == has_text


def test_long_ids_are_told_apart_though_only_their_begin_is_kept() -> None:
    same = "x" * MAX_SHOWN
    parking = Parking()
    encoded = encode(
        parking,
        event(1, f"{same}a", event_id=f"{same}1", **BAD),
        event(2, f"{same}b"),
        event(3, f"{same}a", event_id=f"{same}2"),
        event(4, f"{same}a", event_id=f"{same}1", **BAD),
    )
    assert (encoded.encoded, encoded.waiting) == (1, 1)
    ((aggregate, behind),) = parking.behind.items()
    assert len(aggregate) < MAX_SHOWN
    assert parked_behind(encoded.failures[1].reason) == behind
    assert parked_behind(encoded.failures[0].reason) is None


def test_what_a_checkpoint_cannot_hold_is_too_much() -> None:
    assert not is_full({str(number): "e" for number in range(MAX_PARKED)})
    assert is_full({str(number): "e" for number in range(MAX_PARKED + 1)})
    assert is_full({f"{number}{EURO * 190}": "e" for number in range(MAX_PARKED)})


def test_an_event_without_a_topic_parks_nothing() -> None:
    parking = Parking()
    spec = replace(SPEC, target=Target(), partitions={"paid": 1}, parking=parking)
    page = page_of(event(1, "a"), event(2, "a", event_type="paid"))
    encoded = make_encoder(spec, "auto").encode(page, 0)
    assert [one.missing_topic for one in encoded.failures] == ["placed"]
    assert (encoded.encoded, encoded.parked) == (1, None)


def test_an_event_that_the_broker_refuses_parks_its_aggregate() -> None:
    parking = Parking({"b": "e0"})
    refused = refused_page(page_of(event(1, "a")), "too large", replace(SPEC, parking=parking))
    assert refused.parked == {"b": "e0", "a": "e1"}
    assert parking.behind == {"b": "e0"}


def test_a_refused_record_is_found_among_those_that_do_not_wait() -> None:
    parking = Parking()
    spec = replace(SPEC, parking=parking)
    page = page_of(event(1, "a"), event(2, "a", **BAD), event(3, "a"), event(4, "b"))
    encoded = make_encoder(spec, "auto").encode(page, 0)
    assert encoded.parked is not None
    parking.behind = encoded.parked  # published, and then refused
    (batch,) = encoded.batches
    assert isinstance(batch, Batch)
    (document,) = _documents_of(page, encoded, batch, {1}, spec)
    assert bson.decode(document)["event_id"] == "e4"
