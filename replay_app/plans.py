"""Plans: what a replay would do, found out before it does anything."""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
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
    of_type,
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
) -> Plan:
    """Freeze the bound, count, check the topics, and cut the replay into shards.

    ``partitions_of`` returns the partition counts of those topics that exist.

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
    timed = all_of(wanted, time_range(start.filter.start, end, mapping))
    warnings: list[str] = []
    counts = await _count(store, settings, timed, warnings)
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
    misfits = await _misfits(store, start, wanted, settings, warnings)
    if counts or counts is None:
        warnings += await _index_warnings(store, start, settings, timed)
    if start.ordering == "global":
        shards = [_shard(time_range(start.filter.start, end, mapping), mapping.timestamp_field)]
    else:
        bounds = time_range(start.filter.start, end, mapping)
        ranges = await _aggregate_ranges(store, start, settings, timed)
        shards = [
            _shard(all_of(bounds, part), *fields, mapping.timestamp_field)
            for part, fields in ranges
        ]
    matched = None if counts is None else sum(counts.values())
    if counts == {}:
        shards = []
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


def _shard(match: Query, *fields: str) -> ShardPlan:
    return ShardPlan(match=to_json(match), sort=(*fields, "_id"))


async def _count(
    store: EventStore, settings: Settings, timed: Query, warnings: list[str]
) -> dict[tuple[Any, ...], int] | None:
    """Return matching events by (type, topic field); None when counting takes too long."""
    mapping = settings.mapping
    with contextlib.suppress(TimeLimitExceeded):
        return await store.count_groups(
            timed, [mapping.type_field, mapping.topic_field], settings.plan_seconds
        )
    warnings.append(
        f"the matching events could not be counted within {settings.plan_seconds:g} s "
        "(REPLAY_PLAN_SECONDS): the total is unknown, and a missing destination topic shows "
        "only when an event for it is reached"
    )
    return None


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


async def _misfits(
    store: EventStore, start: Start, wanted: Query, settings: Settings, warnings: list[str]
) -> int | None:
    """Return how many events of the replay have no usable timestamp; None when unknown.

    They stand in no time range. A replay of everything up to its end takes them along, and each
    fails under ``on_error``; one with a start, or of so many first events, leaves them out, and
    says so if it can find out in a moment.
    """
    mapping = settings.mapping
    bounded = start.filter.start is not None or start.max_events is not None
    seconds = min(WARNING_SECONDS, settings.plan_seconds) if bounded else settings.plan_seconds
    try:
        found = await store.count_groups(all_of(wanted, untimed(mapping)), [], seconds)
    except TimeLimitExceeded:
        return 0 if bounded else None
    count = sum(found.values())
    if count and bounded:
        warnings.append(
            f"{count} matching events have no {mapping.timestamp_type} in "
            f"{mapping.timestamp_field!r}; they are in no time range and are left out"
        )
        return 0
    return count


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
    field = settings.mapping.aggregate_field
    wanted = start.shards or settings.partitions
    kinds = [
        kind
        for kind in _AGGREGATE_TYPES
        if await store.has_any(all_of(timed, of_type(field, kind)))
    ]
    # Null, missing, and types that are no id, have no per-aggregate order to keep.
    rest: Query = {"$nor": [of_type(field, kind) for kind in _AGGREGATE_TYPES]}
    ranges: list[tuple[Query, tuple[str, ...]]] = []
    if await store.has_any(all_of(timed, rest)):
        ranges.append((rest, ()))
    if not kinds:
        return ranges
    values = await _sample(store, settings, timed, field, wanted)
    for kind in kinds:
        same = [value for value in values if _kind(value) == kind]
        if kind == "binData" and not all(isinstance(value, uuid.UUID) for value in same):
            same = []  # of unequal lengths, which not every store orders as it compares them
        share = max(1, round(wanted * len(same) / len(values))) if values else wanted
        for low, high in pairwise([None, *quantiles(same, share), None]):
            limits = {"$gte": low} if low is not None else {}
            limits |= {"$lt": high} if high is not None else {}
            part = all_of(of_type(field, kind), {field: limits} if limits else {})
            ranges.append((part, (field,)))
    return ranges


async def _sample(
    store: EventStore, settings: Settings, timed: Query, field: str, shards: int
) -> list[Any]:
    size = shards * SAMPLE_PER_SHARD
    for query in (timed, {}):  # a narrow filter first; a large store answers without it
        with contextlib.suppress(TimeLimitExceeded):
            return await store.sample(query, field, size, settings.plan_seconds)
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
