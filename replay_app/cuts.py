"""Cuts: the ranges of aggregate ids, one for each shard of a replay in aggregate order.

The first event must not wait for good cuts. So the cuts come from a small random sample within a
time limit. Without a sample there are fewer shards, and a warning.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import uuid
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from bson import ObjectId

from replay_app.commands import Filter
from replay_app.events import is_text
from replay_app.exceptions import ReplayFailed
from replay_app.id_texts import stored_values
from replay_app.queries import Query, all_of, of_type
from replay_app.store import TimeLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.store import EventStore

SAMPLE_PER_SHARD = 25
"""Aggregate ids of the sample for each shard. Of eight shards, the largest has then about a sixth
of the events."""
MIN_SAMPLE, MAX_SAMPLE = 200, 500
"""Fewest and most ids of a sample. For each id the store reads an event, perhaps from its disk."""
SIZE_SHARE = 0.4
"""Part of `Settings.cut_seconds` within which the store must tell how many events it has."""
NETWORK_SECONDS = 1.0
"""How much longer than the store's own limits the answers may take."""
ID_TYPES: dict[str, Any] = {
    "bool": bool,  # before number: to Python a bool is an int
    "number": int | float,
    "string": str,
    "binData": bytes | uuid.UUID,
    "objectId": ObjectId,
    "date": datetime,
}
"""BSON types of aggregate ids, as the driver decodes them. A range by id has one type."""


class Range(NamedTuple):
    """The events of one shard."""

    match: Query
    order: tuple[str, ...]
    """The fields that sort before the time: the aggregate id, or no field."""


async def find_ranges(
    start: Start, settings: Settings, store: EventStore, timed: Query
) -> tuple[list[Range], list[str]]:
    """Return disjoint ranges that cover every event, also events of later; and warnings.

    ``timed`` is the query of the matching events. The store works for ``settings.cut_seconds`` on
    each of two samples at most.

    Raises
    ------
    ReplayFailed
        When the store refuses to describe the collection.
    Unavailable
        When the store does not answer.

    """
    mapping = settings.mapping
    field, wanted = mapping.field_aggregate, start.shards or settings.partitions
    if start.filter.aggregate_ids:
        named = in_order(stored_values(start.filter.aggregate_ids))
        if (await store.identify()).collates:  # the store's order of texts is not known
            return ranges(field, [], wanted, {id_type(one) for one in named}), []
        return ranges(field, named, wanted), []
    narrow = [] if start.filter == Filter(all=start.filter.all) else [timed]
    found = await _sample(store, [*narrow, {}], field, wanted, settings.cut_seconds)
    if found.ids is not None:
        return ranges(field, found.ids, wanted), []
    why = (
        f"{store.name} gave no sample of its aggregate ids within {settings.cut_seconds:g} s "
        "(REPLAY_CUT_SECONDS)"
    )
    index = [field, mapping.field_timestamp, "_id"]
    if found.has_size and await store.has_index(index):
        warning = (
            f"{why}: each type of aggregate id is one shard, so most events may be in one. If "
            "speed matters, raise REPLAY_CUT_SECONDS, which delays the first event"
        )
        return ranges(field, [], wanted, ID_TYPES), [warning]
    fields = ", ".join(f"{name}: 1" for name in index)
    warning = (
        f"{why}: all events are one shard, in the order of time, and one worker at a time runs "
        "it. If speed matters, read a collection and not a view, create an index on "
        f"{{{fields}}}, or raise REPLAY_CUT_SECONDS, which delays the first event"
    )
    return ranges(field, [], wanted), [warning]


class _Sample(NamedTuple):
    ids: list[Any] | None
    """Aggregate ids, in the store's order. None: the store gave no sample in time."""
    has_size: bool
    """Whether the store knows its number of events without counting them."""


async def _sample(
    store: EventStore, queries: Sequence[Query], field: str, wanted: int, seconds: float
) -> _Sample:
    """Return the aggregate ids of a sample for the first query that is answered in time."""
    size = min(max(wanted * SAMPLE_PER_SHARD, MIN_SAMPLE), MAX_SAMPLE)
    has_size = False
    with contextlib.suppress(TimeLimitExceeded, TimeoutError):
        async with asyncio.timeout(len(queries) * seconds + NETWORK_SECONDS):
            # A store that counts its events to know their number would read all of them for a
            # sample, too. Some such stores do not end a sample at its time limit, and then hold up
            # the first page.
            await store.estimate(seconds * SIZE_SHARE)
            has_size = True
            for query in queries:
                # MongoDB's random cursor sometimes gives up: "could not find a non-duplicate".
                with contextlib.suppress(TimeLimitExceeded, ReplayFailed):
                    return _Sample(await store.sample(query, field, size, seconds), has_size)
    return _Sample(None, has_size)


def ranges(
    field: str, ids: Sequence[Any], wanted: int, kinds: Collection[str | None] = ()
) -> list[Range]:
    """Return disjoint ranges that cover every event: about ``wanted`` ranges by id, and the rest.

    ``ids`` are aggregate ids of a sample, in the store's order within each type; only their order
    decides whether the ranges are even. There are ranges for the types of these ids, and for
    ``kinds`` of `ID_TYPES`. Events with another id, or without an id, are in the last range, in the
    order of time: this keeps the order of each aggregate, too.
    """
    found: list[Range] = []
    cut = [kind for kind in ID_TYPES if kind in kinds or any(id_type(one) == kind for one in ids)]
    for kind in cut:
        same = [one for one in ids if id_type(one) == kind]
        if kind == "binData" and not all(isinstance(one, uuid.UUID) for one in same):
            same = []  # bytes of unequal lengths: some stores sort and compare them differently
        share = max(1, round(wanted * len(same) / len(ids))) if same else 1
        for low, high in pairwise([None, *quantiles(same, share), None]):
            limits = {"$gte": low} if low is not None else {}
            limits |= {"$lt": high} if high is not None else {}
            part = all_of(of_type(field, kind), {field: limits} if limits else {})
            found.append(Range(part, (field,)))
    rest: Query = {"$nor": [of_type(field, kind) for kind in cut]} if cut else {}
    return [*found, Range(rest, ())]


def quantiles(ordered: Sequence[Any], parts: int) -> list[Any]:
    """Return up to parts - 1 distinct values that cut an ordered sample into about equal parts.

    The values keep the order of the sample. That order is the store's; Python's may differ. A cut
    lies where a new value begins, so a value that is very frequent gets a part for itself.
    """
    begins = [place for place in range(1, len(ordered)) if ordered[place] != ordered[place - 1]]
    cuts: dict[int, Any] = {}
    for number in range(1, parts) if begins else ():
        wanted = len(ordered) * number // parts
        right = bisect.bisect_left(begins, wanted, hi=len(begins) - 1)
        near = min(begins[max(0, right - 1) : right + 1], key=lambda one: abs(one - wanted))
        cuts[near] = ordered[near]
    return list(cuts.values())


def in_order(named: Iterable[Any]) -> list[Any]:
    """Return the distinct ids of those types that have an order, each type in MongoDB's order.

    This is the order of a collection without a collation.
    """
    by_kind: dict[str, set[Any]] = {kind: set() for kind in ID_TYPES}
    for value in named:
        kind = id_type(value)
        if kind is not None:
            by_kind[kind].add(value)
    return [value for values in by_kind.values() for value in sorted(values, key=_place)]


def _place(value: Any) -> Any:
    """Return what MongoDB compares of an id with others of the same type."""
    if isinstance(value, uuid.UUID):
        return 16, 4, value.bytes
    return (len(value), getattr(value, "subtype", 0), value) if isinstance(value, bytes) else value


def id_type(value: Any) -> str | None:
    """Return the BSON type of an aggregate id; None for NaN and for types that are no id."""
    if value != value:  # noqa: PLR0124 - only NaN is not equal to itself
        return None
    if isinstance(value, str) and not is_text(value):
        return None  # PyMongo's `Code` is a str, and cannot be a key of a dict
    return next((kind for kind, types in ID_TYPES.items() if isinstance(value, types)), None)
