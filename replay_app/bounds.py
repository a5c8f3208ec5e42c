"""The bounds of a replay: from which time, up to which time, and up to which event."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from replay_app.commands import Filter
from replay_app.elements import values_at
from replay_app.events import time_of
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.queries import (
    Query,
    all_of,
    compile_filter,
    encode_cursor,
    sort_value,
    time_range,
    up_to,
)
from replay_app.store import TimeLimitExceeded
from replay_app.store_checks import LOOK_SECONDS

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from replay_app.commands import Start
    from replay_app.events import EventMapping
    from replay_app.reports import Plan
    from replay_app.store import EventStore


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between which bounds a replay reads. They are frozen when the replay is planned."""

    start: datetime | None
    """Inclusive; None: from the oldest event."""
    end: datetime
    """Exclusive."""
    until: str = ""
    """The cursor of the last event, in the order of time and ``_id``. Empty: no event was named."""

    def times(self, mapping: EventMapping, *, with_arrays: bool = False) -> Query:
        """Return the query for the times only; see `queries.time_range`."""
        return time_range(self.start, self.end, mapping, with_arrays=with_arrays)

    def query(self, mapping: EventMapping, *, with_arrays: bool = False) -> Query:
        """Return the query for the events between the bounds."""
        times = self.times(mapping, with_arrays=with_arrays)
        return all_of(times, up_to(self.until, mapping.field_timestamp))


def bounds_of(start: Start, plan: Plan) -> Bounds:
    """Return the bounds of a replay that is planned."""
    return Bounds(start.filter.start, plan.end, plan.until)


async def freeze_bounds(start: Start, mapping: EventMapping, store: EventStore) -> Bounds:
    """Return the bounds of a new replay: those of the command, and else the store's clock.

    Raises
    ------
    ReplayFailed
        When the command's last event cannot be found, or lies outside of the times.
    Unavailable
        When the store does not answer.

    """
    if start.filter.end is not None:
        end = start.filter.end
    else:
        clock = await store.clock()
        # Text times may have no fraction. A whole second sorts right beside all of them.
        end = clock.replace(microsecond=0) if mapping.timestamp_type == "iso" else clock
    bounds = Bounds(start.filter.start, end)
    if start.until_event_id is None:
        return bounds
    return await _until(start.until_event_id, bounds, mapping, store)


async def _until(
    event_id: str | int, bounds: Bounds, mapping: EventMapping, store: EventStore
) -> Bounds:
    """Return the bounds up to, and with, an event."""
    named = f"the event {event_id!r} (until_event_id)"
    document = await _the_event(event_id, named, mapping, store)
    found = [values_at(document, path) for path in (mapping.field_timestamp, "_id")]
    if any(len(values) != 1 for values in found):
        msg = f"{named} has no place in the order: it has a sort field more than once"
        raise ReplayFailed(msg)
    place = [sort_value(values[0]) for values in found]
    try:
        time = time_of(place[0], mapping).replace(tzinfo=UTC)
    except EventError as error:
        msg = f"{named} has no place in the order: {error}"
        raise ReplayFailed(msg) from error
    if time >= bounds.end or (bounds.start is not None and time < bounds.start):
        msg = f"{named} lies outside of the times of the filter: its time is {time.isoformat()}"
        raise ReplayFailed(msg)
    # Just past the event, so that a hand-over begins there. `until` tells equal times apart.
    end = bounds.end
    with contextlib.suppress(OverflowError):  # there is no later time
        if mapping.timestamp_type == "iso":
            end = min(end, time.replace(microsecond=0) + timedelta(seconds=1))
        else:
            end = min(end, time + timedelta(milliseconds=1))
    return Bounds(bounds.start, end, encode_cursor(place))


async def _the_event(
    event_id: str | int, named: str, mapping: EventMapping, store: EventStore
) -> bytes:
    """Return the stored event with an id; ``named`` is the event in messages."""
    wanted = Filter(event_ids=(event_id,))
    field = mapping.field_id or "event_id"
    pipeline: list[dict[str, Any]] = [{"$match": compile_filter(wanted, mapping)}, {"$limit": 2}]
    try:
        documents = await store.raw_documents(pipeline, LOOK_SECONDS)
    except TimeLimitExceeded as error:
        msg = (
            f"{named} was not found within {LOOK_SECONDS:g} s: an index on {{{field}: 1}} would "
            "help; or give an end in place of until_event_id"
        )
        raise ReplayFailed(msg) from error
    if not documents:
        msg = f"there is no {named.removeprefix('the ')} in {store.name}"
        raise ReplayFailed(msg)
    if len(documents) > 1:
        msg = f"{named} is stored more than once: give an end in place of until_event_id"
        raise ReplayFailed(msg)
    return documents[0]
