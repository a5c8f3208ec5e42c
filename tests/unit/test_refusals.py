"""How the events that the broker refuses are found, with a broker of a few lines."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import bson
import pytest
from aiokafka.record.default_records import DefaultRecordBatch

from replay_app.broker_errors import Refused
from replay_app.commands import Target
from replay_app.encoders import make_encoder
from replay_app.events import EventMapping
from replay_app.pages import Batch, EncodedPage, EncodeSpec, split_page
from replay_app.refusals import Refusals, refused_page

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
MAX_ROUNDS = 1_000


def spec_of(*, stop: bool) -> EncodeSpec:
    return EncodeSpec(
        mapping=EventMapping(),
        target=Target(topic="t"),
        replay_id="r",
        attempt=1,
        name=None,
        reason=None,
        partitions={"t": 3},
        cursor_fields=("_id",),
        stop_at_failure=stop,
        include_replayed=False,
        record_timestamp="append",
        compression="none",
        max_record_bytes=5_000,  # several batches for each partition of a page
    )


def page_of(count: int, **odd: Any) -> bytes:
    """Return a page; some of its events cannot be mapped, and are no records."""
    return b"".join(
        bson.encode(
            {
                "_id": number,
                "event_id": str(number),
                "event_type": "t",
                "aggregate_id": f"a-{number % 7}",
                "timestamp": "no time" if number in odd.get("unmapped", ()) else NOON,
                "data": {"text": "x" * 20},
            }
        )
        for number in range(count)
    )


def ids_in(batch: Batch) -> list[int]:
    return [
        int(dict(record.headers)["replay-delivery-id"].decode().partition(":")[2])
        for record in DefaultRecordBatch(bytes(batch.builder._build()))
    ]


Broker = Callable[[Batch], Refused | None]


def naming(bad: set[int]) -> Broker:
    """Return a broker that refuses some events and says which records of a batch they are."""

    def take(batch: Batch) -> Refused | None:
        places = tuple(place for place, one in enumerate(ids_in(batch)) if one in bad)
        return Refused(32, "t", None, places) if places else None

    return take


def silent(bad: set[int]) -> Broker:
    """Return a broker that refuses some events and does not say which."""
    return lambda batch: Refused(2, "t") if bad & set(ids_in(batch)) else None


def small(records: int) -> Broker:
    """Return a broker that takes no batch of more records."""
    return lambda batch: Refused(10, "t") if batch.records > records else None


class Shard:
    """A shard that starts again from its checkpoint after each refusal, as `EmitSlice` does."""

    def __init__(self, page: bytes, broker: Broker, encoder: str, *, stop: bool = False) -> None:
        self.rest = page
        self.broker = broker
        self.spec = spec_of(stop=stop)
        self.encoder = make_encoder(self.spec, encoder)
        self.refusals = Refusals()
        self.published: list[int] = []
        self.failures: dict[str | None, str] = {}
        self.rounds = 0
        while self.rest and self.rounds < MAX_ROUNDS and not (stop and self.failures):
            self.rounds += 1
            self.publish()

    def publish(self) -> None:
        page, rest, reason = self.refusals.cut(self.rest)
        if reason is None:
            encoded: EncodedPage = self.encoder.encode(page, 0)
        else:
            encoded = refused_page(page, reason, self.spec)
        refused = [(batch, self.broker(batch)) for batch in encoded.batches]
        refusals = [(batch, answer) for batch, answer in refused if answer is not None]
        if refusals:
            self.refusals.learn(page, encoded, refusals, self.spec)
            return
        self.refusals.taken(encoded)
        self.published += [one for batch in encoded.batches for one in ids_in(batch)]
        self.failures |= {failure.event_id: failure.reason for failure in encoded.failures}
        self.rest = split_page(page, encoded.read)[1] + rest


ENCODERS = pytest.mark.parametrize(
    "encoder", ["python", pytest.param("native", marks=pytest.mark.native)]
)


@ENCODERS
@pytest.mark.parametrize("broker", [naming, silent])
@pytest.mark.parametrize("bad", [{0}, {499}, {3, 250, 251}, set(range(100, 120))], ids=len)
def test_exactly_the_events_at_fault_are_left_out(
    bad: set[int], broker: Callable[[set[int]], Broker], encoder: str
) -> None:
    shard = Shard(page_of(500), broker(bad), encoder)
    assert shard.rest == b""
    assert sorted(shard.published) == sorted(set(range(500)) - bad)
    assert shard.failures.keys() == {str(one) for one in bad}
    assert all(reason.startswith("the broker refuses it: ") for reason in shard.failures.values())


@ENCODERS
def test_events_that_are_no_records_are_not_counted_as_records(encoder: str) -> None:
    unmapped = set(range(0, 500, 3))
    shard = Shard(page_of(500, unmapped=unmapped), naming({250}), encoder)
    assert sorted(shard.published) == sorted(set(range(500)) - unmapped - {250})
    assert shard.failures["250"].startswith("the broker refuses it")
    assert shard.failures.keys() == {str(one) for one in unmapped | {250}}


@ENCODERS
def test_batches_that_are_too_large_become_smaller(encoder: str) -> None:
    shard = Shard(page_of(500), small(4), encoder)
    assert shard.rounds <= 9 + 500 / 3  # nine halves, then pages of three events
    assert sorted(shard.published) == list(range(500))
    assert shard.failures == {}


@ENCODERS
def test_under_fail_everything_before_the_event_is_published(encoder: str) -> None:
    shard = Shard(page_of(500), silent({250}), encoder, stop=True)
    assert sorted(shard.published) == list(range(250))
    assert list(shard.failures) == ["250"]


def test_a_named_record_is_found_at_once_and_another_one_by_halves() -> None:
    named, halved = (Shard(page_of(512), make({300}), "python") for make in (naming, silent))
    assert named.rounds == 4  # refused, before the event, the event, after the event
    assert halved.rounds <= 3 * 9
