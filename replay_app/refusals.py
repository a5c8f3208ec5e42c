"""What the broker has refused of one shard, and how the events at fault are found.

The broker refuses whole batches. `Refusals` learns from each refusal, and the slice starts again
from its checkpoint, since its transaction was aborted. If the broker names the records at fault,
the next slice leaves these events out. Otherwise the pages become half as long each time, until the
event at fault is alone in its batch. So each refusal either finds an event or halves the pages, and
after a few tries the shard moves on.

All of this is in memory only. A worker that takes the shard over finds the events again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from replay_app.exceptions import EventError
from replay_app.pages import (
    EncodedPage,
    EncodeSpec,
    document_spans,
    make_failure,
    readable,
    set_position,
    split_page,
)
from replay_app.parking import Parking, park
from replay_app.python_encoder import PythonEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay_app.broker_errors import Refused
    from replay_app.pages import Batch

MAX_PART = 1_000_000
"""More events than a page has."""
MAX_REMEMBERED = 100_000
"""Refused events that a shard remembers at most. A forgotten event is found again."""


class Refusals:
    """What the broker has refused of one shard."""

    def __init__(self) -> None:
        self._reasons: dict[bytes, str] = {}
        """By digest of the stored event: why the broker refuses the event."""
        self.page_events: int | None = None
        """The most events of a page. None: no limit."""
        self.part_events = MAX_PART
        """The most events that transforms could do in time. No refusal, but found as one is."""
        self._taken = 0
        """The most events of a page that the broker has taken, while pages were limited."""
        self._suspects = 0
        """How many of the next events may hold an event at fault."""

    @property
    def is_searching(self) -> bool:
        """Whether pages are short because an event at fault is not found yet.

        A slice then ends after each page: the next refusal undoes one page only.
        """
        return self._suspects > 0

    @property
    def has_found(self) -> bool:
        """Whether an event at fault is known."""
        return bool(self._reasons)

    def learn(
        self,
        page: bytes,
        encoded: EncodedPage,
        refusals: list[tuple[Batch, Refused]],
        spec: EncodeSpec,
    ) -> None:
        """Learn from the refused batches of a page."""
        for batch, refused in refusals:
            places = set(refused.records) if refused.records else set(range(batch.records))
            if not refused.records and batch.records > 1:
                half = encoded.read // 2
                self.page_events = min(self.page_events or half, half)
                self._suspects = encoded.read
                continue
            for document in _documents_of(page, encoded, batch, places, spec):
                self._remember(document, f"the broker refuses it: {refused}")
            if not refused.records:
                self.page_events = self._taken or None
                self._suspects = 0

    def _remember(self, document: bytes, reason: str) -> None:
        if len(self._reasons) >= MAX_REMEMBERED:
            self._reasons.pop(next(iter(self._reasons)))
        self._reasons[_digest(document)] = reason

    def taken(self, encoded: EncodedPage) -> None:
        """Note that the broker has taken a page."""
        if self.page_events is not None:
            self._taken = max(self._taken, encoded.read)
        self._suspects = max(0, self._suspects - encoded.read)

    def cut(self, page: bytes) -> tuple[bytes, bytes, str | None]:
        """Return the part of a page to encode now, the rest, and a reason.

        With a reason, the part is one refused event. Without a reason, no event of the part is
        known to be refused.
        """
        rest = b""
        if self.page_events is not None:
            page, rest = split_page(page, self.page_events)
        if not self._reasons:
            return page, rest, None
        for number, (start, end) in enumerate(document_spans(page)):
            reason = self._reasons.get(_digest(page[start:end]))
            if reason is not None:
                if number == 0:
                    return page[:end], page[end:] + rest, reason
                return page[:start], page[start:] + rest, None
        return page, rest, None


def refused_page(document: bytes, reason: str, spec: EncodeSpec) -> EncodedPage:
    """Return the account of a page of one refused event, as an encoder gives of a failed event."""
    failure = make_failure(0, document, EventError(reason), spec.mapping)
    out = EncodedPage(failures=[failure])
    if spec.parking is not None:
        out.parked_before = spec.parking.behind
        out.parked = dict(out.parked_before)
        park(out.parked, readable(document), spec.mapping, failure.event_id)
    if not spec.stop_at_failure:
        out.read = 1
        set_position(out, document, (0, len(document)), spec)
    return out


def _documents_of(
    page: bytes, encoded: EncodedPage, batch: Batch, places: set[int], spec: EncodeSpec
) -> Iterator[bytes]:
    """Yield the stored events behind some records of a batch.

    The encoders do not say which event became which record. But a partition's records are in the
    order of their events.
    """
    lane = (batch.topic, batch.partition)
    before = 0
    for other in encoded.batches:
        if other is batch:
            break
        if (other.topic, other.partition) == lane:
            before += other.records
    wanted = {before + place for place in places}
    if spec.parking is not None:  # what waited in this page has no record
        spec = replace(spec, parking=Parking(encoded.parked_before))
    encoder = PythonEncoder(spec)
    number = 0
    for start, end in document_spans(page):
        document = page[start:end]
        try:
            record = encoder.record(document)
        except EventError:
            continue
        if record is None or (record[1], record[2]) != lane:
            continue
        if number in wanted:
            yield document
        number += 1


def _digest(document: bytes) -> bytes:
    return hashlib.blake2b(document, digest_size=16).digest()
