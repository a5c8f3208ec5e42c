"""Parking: after an event has failed, the later events of its aggregate wait behind it.

With ``on_error`` "park", these events become dead letters in their order, and the events of other
aggregates go on. A redrive brings the failed event, and then those behind it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from replay_app.events import as_text, field_at
from replay_app.exceptions import EventError

if TYPE_CHECKING:
    from replay_app.events import Document, EventMapping

MAX_PARKED = 1_000
"""Aggregates of a shard that can be parked: a checkpoint must fit into one record."""
MAX_PARKED_BYTES = 300_000
"""Bytes of the ids of a shard's parked aggregates, likewise."""
MAX_SHOWN = 200
"""Characters of an id that are kept. Of a longer one, the begin and a hash."""
_REASON = re.compile(
    r"it is parked behind event '(.*)' of its aggregate, which has failed", re.DOTALL
)

Parked = dict[str, str]
"""By aggregate id, as text: the id of the event that has failed."""


class ParkedEvent(EventError):
    """The event waits behind another event of its aggregate, which has failed."""

    def __init__(self, behind: str) -> None:
        super().__init__(f"it is parked behind event '{behind}' of its aggregate, which has failed")


def parked_behind(reason: str) -> str | None:
    """Return the id of the failed event in the reason of a parked one; None for other reasons."""
    found = _REASON.fullmatch(reason)
    return None if found is None else found[1]


def short_id(text: str) -> str:
    """Return an id, or the begin and a hash of a long one."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN // 2]}…{hashlib.sha256(text.encode(errors='replace')).hexdigest()}"


def is_full(parked: Parked) -> bool:
    """Return whether more is parked than a checkpoint can hold."""
    if len(parked) > MAX_PARKED:
        return True
    return sum(len(f"{one}{behind}".encode()) for one, behind in parked.items()) > MAX_PARKED_BYTES


@dataclass(slots=True)
class Parking:
    """The aggregates of a shard that are parked after the events that are published."""

    behind: Parked = field(default_factory=dict)
    """Never changed: a page that is published puts another one in its place. So a page that is
    encoded twice gives the same twice."""


def aggregate_of(document: Document, mapping: EventMapping) -> str | None:
    """Return an event's aggregate id as text; None without one that can be parked."""
    try:
        value = field_at(document, mapping.field_aggregate)
        return None if value is None else short_id(as_text(value, "aggregate"))
    except EventError:
        return None


def must_wait(
    parked: Parked, document: Document, mapping: EventMapping, event_id: str
) -> str | None:
    """Return the id of the failed event behind which an event waits; None if it may go on."""
    aggregate = aggregate_of(document, mapping)
    behind = None if aggregate is None else parked.get(aggregate)
    return None if behind == short_id(event_id) else behind


def park(parked: Parked, document: Document, mapping: EventMapping, event_id: str | None) -> None:
    """Note that an event has failed: the later events of its aggregate wait behind it."""
    aggregate = aggregate_of(document, mapping)
    if aggregate is not None:
        parked.setdefault(aggregate, short_id(event_id or "without an id"))
