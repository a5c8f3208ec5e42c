"""Plans: what a replay would do, before it does anything."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from bson import ObjectId

from replay_app.elements import StoredValue
from replay_app.events import destination
from replay_app.exceptions import EventError, ReplayFailed, Unavailable
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
from replay_app.reports import Plan, ShardPlan, most_common
from replay_app.store import TimeLimitExceeded

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.store import EventStore

MAX_NAMED_TOPICS = 5
"""Missing topics that an error names."""
MAX_PLAN_NAMES = 500
"""Types, and topics, that a plan counts by name: a plan must fit into one record."""
SAMPLE_PER_SHARD = 200
"""Aggregate ids of the sample for each shard that the command asks for."""
WARNING_SECONDS = 1.0
"""Longest count for the warning about events outside the bounds of a replay."""
_AGGREGATE_TYPES: dict[str, Any] = {
    "bool": bool,  # before number: to Python a bool is an int
    "number": int | float,
    "string": str,
    "binData": bytes | uuid.UUID,
    "objectId": ObjectId,
    "date": datetime,
}
"""BSON types of aggregate ids, as the driver decodes them. A shard has ids of one type."""

PartitionCounts = Callable[[Iterable[str]], Awaitable[dict[str, int]]]
"""Returns the partition counts of those topics that exist."""
OnDraft = Callable[[tuple[ShardPlan, ...]], None]
"""Is called with the first shards of a plan, while the events are still being counted."""


@dataclass
class _Count:
    """How many events match."""

    timed: dict[tuple[Any, ...], int] | None
    """Events in the time range, by (type, topic field). None if counting took too long."""
    misfits: int | None = None
    """Events without a usable time that belong to the replay. None if unknown."""
    warnings: list[str] = field(default_factory=list)


class Planner:
    """Makes the plan of one start command."""

    def __init__(
        self,
        start: Start,
        settings: Settings,
        store: EventStore,
        partition_counts: PartitionCounts,
    ) -> None:
        self._start = start
        self._settings = settings
        self._mapping = settings.mapping
        self._store = store
        self._partition_counts = partition_counts
        self._filter = compile_filter(start.filter, settings.mapping)
        """Everything in the command's filter but the time range."""
        self._is_bounded = start.filter.start is not None or start.max_events is not None
        """Whether events without a usable time are left out of the replay."""

    async def plan(self, on_draft: OnDraft = lambda _draft: None) -> Plan:
        """Freeze the upper bound, count, check the topics, and cut the replay into shards.

        Raises
        ------
        ReplayFailed
            When the replay cannot succeed: the collection or a destination topic is missing.
        Unavailable
            When the store or the broker does not answer. A later plan may succeed.

        """
        await self._store.require_collection()
        start = self._start
        end = start.filter.end or await self._store.clock()
        bounds = time_range(start.filter.start, end, self._mapping)
        timed = all_of(self._filter, bounds)
        counting = asyncio.create_task(self._count(timed, end))
        try:
            shards = await self._shards(timed, bounds)
            on_draft(tuple(shards))
            index_warnings = await self._index_warnings(timed)
            found = await counting
        finally:
            counting.cancel()
        counts, warnings = found.timed, found.warnings
        topics, by_type = self._destinations(counts)
        partitions = await self._require_topics(topics)
        if counts == {}:
            shards = []
        else:
            warnings += index_warnings
        if found.misfits != 0:
            shards.append(_shard(untimed(self._mapping)))
        return Plan(
            end=end,
            matched=self._matched(found),
            by_type=most_common(by_type, MAX_PLAN_NAMES),
            by_topic=most_common(+topics, MAX_PLAN_NAMES),
            partitions=partitions,
            warnings=tuple(warnings),
            shards=tuple(shards),
        )

    async def count_again(self, end: datetime) -> int | None:
        """Return how many events match now, up to a frozen bound. None if counting took too long.

        Raises
        ------
        ReplayFailed
            When the store refuses.
        Unavailable
            When the store does not answer.

        """
        bounds = time_range(self._start.filter.start, end, self._mapping)
        return self._matched(await self._count(all_of(self._filter, bounds), end))

    # Counting

    def _matched(self, found: _Count) -> int | None:
        """Return the number of events that the replay reads. None if unknown."""
        if found.timed is None or found.misfits is None:
            return None
        matched = sum(found.timed.values()) + found.misfits
        most = self._start.max_events
        return matched if most is None else min(matched, most)

    async def _count(self, timed: Query, end: datetime) -> _Count:
        mapping, seconds = self._mapping, self._settings.plan_seconds
        keys = [f"${mapping.field_type}", f"${mapping.field_topic}"]
        try:
            if not self._is_bounded:
                # Nearly everything matches, and an index would only make the count slower: one
                # pass over all events, which also finds the events without a usable time.
                groups = await self._store.count_groups(
                    self._filter, [*keys, *time_keys(end, mapping)], seconds
                )
                counts: Counter[tuple[Any, ...]] = Counter()
                is_exact = True
                for (*group, kind, is_before), count in groups.items():
                    is_timed = in_time(kind, is_before, mapping)
                    is_exact = is_exact and is_timed is not None
                    if is_timed:
                        counts[tuple(group)] += count
                if is_exact:
                    return _Count(dict(counts), misfits=0)
            found = _Count(await self._store.count_groups(timed, keys, seconds))
        except TimeLimitExceeded:
            warning = (
                f"the matching events could not be counted within {seconds:g} s "
                "(REPLAY_PLAN_SECONDS): the total is unknown, and a missing destination topic "
                "shows only when an event for it is reached"
            )
            found = _Count(None, warnings=[warning])
        await self._count_misfits(found)
        return found

    async def _count_misfits(self, found: _Count) -> None:
        """Count the events of the replay that have no usable time.

        These events are in no time range. A replay of everything up to its end includes them, and
        each of them fails under ``on_error``. A replay with a start, or with a number of first
        events, leaves them out, and warns of them if they can be counted within WARNING_SECONDS.
        """
        mapping, seconds = self._mapping, self._settings.plan_seconds
        if self._is_bounded:
            found.misfits = 0
            seconds = min(WARNING_SECONDS, seconds)
        with contextlib.suppress(TimeLimitExceeded):
            query = all_of(self._filter, untimed(mapping))
            groups = await self._store.count_groups(query, [], seconds)
            count = sum(groups.values())
            if not self._is_bounded:
                found.misfits = count
            elif count:
                found.warnings.append(
                    f"{count} matching events have no {mapping.timestamp_type} in "
                    f"{mapping.field_timestamp!r}; they are in no time range and are left out"
                )

    # Topics

    def _destinations(
        self, counts: dict[tuple[Any, ...], int] | None
    ) -> tuple[Counter[str], Counter[str]]:
        """Return the events for each topic and of each type.

        Without counts: the topics that the command names, without numbers.
        """
        topics: Counter[str] = Counter()
        types: Counter[str] = Counter()
        target = self._start.target
        if counts is None:
            named = [*target.topics.values(), *([target.topic] if target.topic else [])]
            return Counter(dict.fromkeys(named, 0)), types
        for (event_type, topic), count in counts.items():
            types[event_type if isinstance(event_type, str) else f"({event_type})"] += count
            if isinstance(event_type, StoredValue) or isinstance(topic, StoredValue):
                continue  # unreadable: these events fail too
            try:
                topics[destination(event_type, topic, self._mapping, target)] += count
            except EventError:
                continue  # these events fail one by one, under the replay's on_error
        return topics, types

    async def _require_topics(self, topics: Iterable[str]) -> dict[str, int]:
        """Return the partition counts of the topics, or raise `ReplayFailed` if one is missing."""
        partitions = await self._partition_counts(topics)
        missing = sorted(set(topics) - set(partitions))
        if missing:
            named = ", ".join(map(repr, missing[:MAX_NAMED_TOPICS]))
            more = len(missing) - MAX_NAMED_TOPICS
            msg = (
                f"missing destination topics: {named}{f' and {more} more' if more > 0 else ''}; "
                "create them, or name others in the target, then retry"
            )
            raise ReplayFailed(msg)
        return partitions

    # Shards

    async def _shards(self, timed: Query, bounds: Query) -> list[ShardPlan]:
        last = self._mapping.field_timestamp
        if self._start.ordering == "global":
            return [_shard(bounds, last)]
        ranges = await self._aggregate_ranges(timed)
        return [_shard(all_of(bounds, part), *fields, last) for part, fields in ranges]

    async def _index_warnings(self, timed: Query) -> list[str]:
        mapping, store = self._mapping, self._store
        sort = [mapping.field_timestamp, "_id"]
        if self._start.ordering == "aggregate":
            sort = [mapping.field_aggregate, *sort]
        try:
            if await store.has_index(sort):
                return []  # the best index; the store decides whether to use it
            stages = await store.plan_stages(timed, sort)
        except (ReplayFailed, Unavailable) as error:
            return [f"the store did not explain its query plan: {error}"]
        index = "{" + ", ".join(f"{name}: 1" for name in sort) + "}"
        if "COLLSCAN" in stages:
            found = f"no index fits the filter: {store.name} is scanned as a whole and sorted"
            return [f"{found}; an index on {index} would avoid both"]
        if "SORT" in stages:
            found = (
                "no index fits the order: all matching events are sorted before the first one comes"
            )
            return [f"{found}; an index on {index} would avoid it"]
        return []

    async def _aggregate_ranges(self, timed: Query) -> list[tuple[Query, tuple[str, ...]]]:
        """Return disjoint ranges of aggregate ids that cover every event, one for each shard.

        Each range comes with the fields that sort before the time: the aggregate id, or no field.
        """
        aggregate, store = self._mapping.field_aggregate, self._store
        wanted = self._start.shards or self._settings.partitions
        values = await self._sample(timed, wanted)
        seen = {_aggregate_type(value) for value in values}
        kinds = [kind for kind in _AGGREGATE_TYPES if kind in seen]
        others: Query = {"$nor": [of_type(aggregate, kind) for kind in kinds]}
        ranges: list[tuple[Query, tuple[str, ...]]] = []
        if not kinds or await store.has_any(all_of(timed, others)):
            kinds = [
                kind
                for kind in _AGGREGATE_TYPES
                if kind in seen or await store.has_any(all_of(timed, of_type(aggregate, kind)))
            ]
            # Events whose aggregate id is null, missing or of a type that is no id. They have no
            # order of their aggregate to keep.
            rest: Query = {"$nor": [of_type(aggregate, kind) for kind in _AGGREGATE_TYPES]}
            if await store.has_any(all_of(timed, rest)):
                ranges.append((rest, ()))
        for kind in kinds:
            same = [value for value in values if _aggregate_type(value) == kind]
            if kind == "binData" and not all(isinstance(value, uuid.UUID) for value in same):
                same = []  # bytes of unequal lengths: some stores sort and compare them differently
            share = max(1, round(wanted * len(same) / len(values))) if values else wanted
            for low, high in pairwise([None, *quantiles(same, share), None]):
                limits = {"$gte": low} if low is not None else {}
                limits |= {"$lt": high} if high is not None else {}
                part = all_of(of_type(aggregate, kind), {aggregate: limits} if limits else {})
                ranges.append((part, (aggregate,)))
        return ranges

    async def _sample(self, timed: Query, shards: int) -> list[Any]:
        """Return the aggregate ids of a sample of the matching events.

        The sample is of all events if nearly all match, or if a sample of the matching events takes
        too long.
        """
        size, seconds = shards * SAMPLE_PER_SHARD, self._settings.plan_seconds
        is_narrow = self._start.filter.start is not None or self._filter
        for query in (timed, {}) if is_narrow else ({},):
            with contextlib.suppress(TimeLimitExceeded):
                return await self._store.sample(query, self._mapping.field_aggregate, size, seconds)
        return []


def _shard(match: Query, *fields: str) -> ShardPlan:
    return ShardPlan(match=to_json(match), sort=(*fields, "_id"))


def quantiles(ordered: list[Any], parts: int) -> list[Any]:
    """Return up to parts - 1 distinct values that cut an ordered sample into equal parts.

    The values keep the order of the sample. That order is the store's; Python's may differ.
    """
    if not ordered:
        return []
    cuts = [ordered[len(ordered) * number // parts] for number in range(1, parts)]
    return [cut for cut in dict.fromkeys(cuts) if cut != ordered[0]]


def _aggregate_type(value: Any) -> str | None:
    """Return the BSON type of an aggregate id; None for NaN and for types that are no id."""
    if value != value:  # noqa: PLR0124 - only NaN is not equal to itself
        return None
    return next(
        (kind for kind, types in _AGGREGATE_TYPES.items() if isinstance(value, types)), None
    )
