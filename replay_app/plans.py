"""Plans: what a replay would do, found out before it does anything."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from replay_app.events import destination
from replay_app.exceptions import EventError, ReplayFailed, Unavailable
from replay_app.progress import Plan, ShardPlan, most_common
from replay_app.queries import (
    Query,
    all_of,
    compile_filter,
    in_time,
    of_type,
    time_keys,
    time_range,
    to_json,
    untimed,
)
from replay_app.store import TimeLimitExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.store import EventStore

MAX_MISSING = 5
"""Missing topics that an error names."""
MAX_NAMES = 500
"""Types, and topics, that a plan counts one by one: it must fit into one record."""
SAMPLE_PER_SHARD = 200
WARNING_SECONDS = 1.0
"""A bounded replay waits no longer for a warning about events outside of its bounds."""
_AGGREGATE_TYPES: dict[str, Any] = {
    "bool": bool,  # before number: to Python a bool is an int
    "number": int | float,
    "string": str,
    "binData": bytes | uuid.UUID,
    "objectId": ObjectId,
    "date": datetime,
}
"""BSON types of aggregate ids, as the driver decodes them; each shard lies within one of them."""


async def make_plan(
    start: Start,
    settings: Settings,
    store: EventStore,
    partitions_of: Callable[[Iterable[str]], Awaitable[dict[str, int]]],
    on_draft: Callable[[tuple[ShardPlan, ...]], None] = lambda _draft: None,
) -> Plan:
    """Freeze the bound, count, check the topics, and cut the replay into shards.

    ``partitions_of`` returns the partition counts of those topics that exist. ``on_draft`` is
    called while the events are still being counted, with the shards with which those of the plan
    will begin, if anything matches.

    Raises
    ------
    ReplayFailed
        When the replay could not succeed: the collection or a destination topic is missing.
    Unavailable
        When the store or the broker does not answer; planning again may succeed.

    """
    await store.require_collection()
    mapping = settings.mapping
    end = start.filter.end or await store.clock()
    wanted = compile_filter(start.filter, mapping)
    bounds = time_range(start.filter.start, end, mapping)
    timed = all_of(wanted, bounds)
    counting = asyncio.create_task(_count(start, settings, store, wanted, end))
    try:
        shards = await _shards(start, settings, store, timed, bounds)
        on_draft(tuple(shards))
        index_warnings = await _index_warnings(store, start, settings, timed)
        found = await counting
    finally:
        counting.cancel()
    counts, misfits, warnings = found.timed, found.misfits, found.warnings
    topics, by_type = _destinations(counts or {}, start, settings)
    if counts is None:
        topics = Counter(dict.fromkeys(_named_topics(start), 0))
    partitions = await partitions_of(topics)
    missing = sorted(set(topics) - set(partitions))
    if missing:
        named = ", ".join(map(repr, missing[:MAX_MISSING]))
        more = f" and {len(missing) - MAX_MISSING} more" if len(missing) > MAX_MISSING else ""
        msg = (
            f"missing destination topics: {named}{more}; create them, or name others in the "
            "target, then retry"
        )
        raise ReplayFailed(msg)
    matched = None if counts is None else sum(counts.values())
    if counts == {}:
        shards = []
    else:
        warnings += index_warnings
    if misfits != 0:
        shards.append(_shard(untimed(mapping)))
        matched = None if matched is None or misfits is None else matched + misfits
    if matched is not None and start.max_events is not None:
        matched = min(matched, start.max_events)
    return Plan(
        end=end,
        matched=matched,
        by_type=most_common(by_type, MAX_NAMES),
        by_topic=most_common(+topics, MAX_NAMES),
        partitions=partitions,
        warnings=tuple(warnings),
        shards=tuple(shards),
    )


async def _shards(
    start: Start, settings: Settings, store: EventStore, timed: Query, bounds: Query
) -> list[ShardPlan]:
    last = settings.mapping.timestamp_field
    if start.ordering == "global":
        return [_shard(bounds, last)]
    ranges = await _aggregate_ranges(store, start, settings, timed)
    return [_shard(all_of(bounds, part), *fields, last) for part, fields in ranges]


def _shard(match: Query, *fields: str) -> ShardPlan:
    return ShardPlan(match=to_json(match), sort=(*fields, "_id"))


@dataclass
class _Counted:
    """How many events match."""

    timed: dict[tuple[Any, ...], int] | None
    """Those in the time range, by (type, topic field); None when counting took too long."""
    misfits: int | None = None
    """Those that have no usable timestamp and belong to the replay all the same; None: unknown."""
    warnings: list[str] = field(default_factory=list)


async def _count(
    start: Start, settings: Settings, store: EventStore, wanted: Query, end: datetime
) -> _Counted:
    mapping, seconds = settings.mapping, settings.plan_seconds
    keys = [f"${mapping.type_field}", f"${mapping.topic_field}"]
    try:
        if not _is_bounded(start):
            # All in one pass, which an index would only make slower: nearly everything matches.
            groups = await store.count_groups(wanted, [*keys, *time_keys(end, mapping)], seconds)
            counts: Counter[tuple[Any, ...]] = Counter()
            is_exact = True
            for (*group, kind, is_before), count in groups.items():
                is_timed = in_time(kind, is_before, mapping)
                is_exact = is_exact and is_timed is not None
                if is_timed:
                    counts[tuple(group)] += count
            if is_exact:
                return _Counted(dict(counts), misfits=0)
        timed = all_of(wanted, time_range(start.filter.start, end, mapping))
        found = _Counted(await store.count_groups(timed, keys, seconds))
    except TimeLimitExceeded:
        warning = (
            f"the matching events could not be counted within {seconds:g} s "
            "(REPLAY_PLAN_SECONDS): the total is unknown, and a missing destination topic shows "
            "only when an event for it is reached"
        )
        found = _Counted(None, warnings=[warning])
    await _count_misfits(found, start, settings, store, wanted)
    return found


def _is_bounded(start: Start) -> bool:
    return start.filter.start is not None or start.max_events is not None


def _destinations(
    counts: dict[tuple[Any, ...], int], start: Start, settings: Settings
) -> tuple[Counter[str], Counter[str]]:
    topics: Counter[str] = Counter()
    types: Counter[str] = Counter()
    target = start.target.for_events()
    for (event_type, topic), count in counts.items():
        types[event_type if isinstance(event_type, str) else f"({event_type})"] += count
        try:
            topics[destination(event_type, topic, settings.mapping, target)] += count
        except EventError:
            continue  # those events fail one by one, under the replay's on_error
    return topics, types


def _named_topics(start: Start) -> set[str]:
    named = set(start.target.topics.values())
    return named | {start.target.topic} if start.target.topic else named


async def _count_misfits(
    found: _Counted, start: Start, settings: Settings, store: EventStore, wanted: Query
) -> None:
    """Add how many events of the replay have no usable timestamp.

    They stand in no time range. A replay of everything up to its end takes them along, and each
    fails under ``on_error``; one with a start, or of so many first events, leaves them out, and
    says so if it can find out in a moment.
    """
    mapping, bounded = settings.mapping, _is_bounded(start)
    seconds = min(WARNING_SECONDS, settings.plan_seconds) if bounded else settings.plan_seconds
    found.misfits = 0 if bounded else None
    with contextlib.suppress(TimeLimitExceeded):
        groups = await store.count_groups(all_of(wanted, untimed(mapping)), [], seconds)
        count = sum(groups.values())
        if not bounded:
            found.misfits = count
        elif count:
            found.warnings.append(
                f"{count} matching events have no {mapping.timestamp_type} in "
                f"{mapping.timestamp_field!r}; they are in no time range and are left out"
            )


async def _index_warnings(
    store: EventStore, start: Start, settings: Settings, timed: Query
) -> list[str]:
    mapping = settings.mapping
    sort = [mapping.timestamp_field, "_id"]
    if start.ordering == "aggregate":
        sort = [mapping.aggregate_field, *sort]
    try:
        if await store.has_index(sort):
            return []  # the best there is; whether the store takes it is the store's affair
        stages = await store.plan_stages(timed, sort)
    except (ReplayFailed, Unavailable) as error:
        return [f"the store did not explain its query plan: {error}"]
    index = "{" + ", ".join(f"{field}: 1" for field in sort) + "}"
    if "COLLSCAN" in stages:
        found = f"no index fits the filter: {store.name} is scanned as a whole and sorted"
        return [f"{found}; an index on {index} would avoid both"]
    if "SORT" in stages:
        found = "no index fits the order: all matching events are sorted before the first one comes"
        return [f"{found}; an index on {index} would avoid it"]
    return []


async def _aggregate_ranges(
    store: EventStore, start: Start, settings: Settings, timed: Query
) -> list[tuple[Query, tuple[str, ...]]]:
    """Return disjoint ranges of aggregate ids that cover every event, one a shard.

    With each comes the field, if any, that sorts before the timestamp there.
    """
    aggregate = settings.mapping.aggregate_field
    wanted = start.shards or settings.partitions
    values = await _sample(store, start, settings, timed, wanted)
    seen = {_kind(value) for value in values}
    kinds = [kind for kind in _AGGREGATE_TYPES if kind in seen]
    others: Query = {"$nor": [of_type(aggregate, kind) for kind in kinds]}
    ranges: list[tuple[Query, tuple[str, ...]]] = []
    if not kinds or await store.has_any(all_of(timed, others)):
        kinds = [
            kind
            for kind in _AGGREGATE_TYPES
            if kind in seen or await store.has_any(all_of(timed, of_type(aggregate, kind)))
        ]
        # Null, missing, and types that are no id, have no per-aggregate order to keep.
        rest: Query = {"$nor": [of_type(aggregate, kind) for kind in _AGGREGATE_TYPES]}
        if await store.has_any(all_of(timed, rest)):
            ranges.append((rest, ()))
    for kind in kinds:
        same = [value for value in values if _kind(value) == kind]
        if kind == "binData" and not all(isinstance(value, uuid.UUID) for value in same):
            same = []  # of unequal lengths, which not every store orders as it compares them
        share = max(1, round(wanted * len(same) / len(values))) if values else wanted
        for low, high in pairwise([None, *quantiles(same, share), None]):
            limits = {"$gte": low} if low is not None else {}
            limits |= {"$lt": high} if high is not None else {}
            part = all_of(of_type(aggregate, kind), {aggregate: limits} if limits else {})
            ranges.append((part, (aggregate,)))
    return ranges


async def _sample(
    store: EventStore, start: Start, settings: Settings, timed: Query, shards: int
) -> list[Any]:
    """Return aggregate ids of some matching events; of any, if nearly all match or few do."""
    mapping, size = settings.mapping, shards * SAMPLE_PER_SHARD
    is_narrow = start.filter.start is not None or compile_filter(start.filter, mapping)
    for query in (timed, {}) if is_narrow else ({},):
        with contextlib.suppress(TimeLimitExceeded):
            return await store.sample(query, mapping.aggregate_field, size, settings.plan_seconds)
    return []


def quantiles(ordered: list[Any], parts: int) -> list[Any]:
    """Return up to parts - 1 distinct values that cut an ordered sample into equal parts.

    They keep the order of the sample, which is the store's: Python's may differ.
    """
    if not ordered:
        return []
    cuts = [ordered[len(ordered) * number // parts] for number in range(1, parts)]
    return [cut for cut in dict.fromkeys(cuts) if cut != ordered[0]]


def _kind(value: Any) -> str | None:
    """Return the aggregate id type of a decoded BSON value; None for any other, and for NaN."""
    if value != value:  # noqa: PLR0124 - only NaN is not equal to itself
        return None
    return next(
        (kind for kind, types in _AGGREGATE_TYPES.items() if isinstance(value, types)), None
    )
