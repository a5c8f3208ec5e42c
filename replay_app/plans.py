"""Plans: what a replay would do, before it does anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from replay_app.counts import Counts, Topicless, count_events, topic_of_group
from replay_app.cuts import find_ranges
from replay_app.destinations import Destination, Preflight, Spans, name_topics
from replay_app.events import event_time, is_text
from replay_app.exceptions import EventError, ReplayFailed, Unavailable
from replay_app.queries import (
    Query,
    all_of,
    compile_filter,
    time_range,
    to_json,
    untimed,
)
from replay_app.reports import Plan, ShardPlan, most_common
from replay_app.sources import require_same_source, source_of, with_uuid
from replay_app.store import TimeLimitExceeded
from replay_app.store_checks import StoreChecks, is_customized
from replay_app.topics import Topics

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.store import EventStore

MAX_PLAN_NAMES = 500
"""Types, and topics, that a plan counts by name: a plan must fit into one record."""

Describe = Callable[[Iterable[str]], Awaitable[dict[str, Destination]]]
"""Returns those topics that exist."""
OnDraft = Callable[[tuple[ShardPlan, ...]], None]
"""Is called with the first shards of a plan, while the events are still being counted."""


class Planner:
    """Makes the plan of one start command."""

    def __init__(
        self,
        start: Start,
        settings: Settings,
        store: EventStore,
        describe: Describe,
    ) -> None:
        self._start = start
        self._settings = settings
        self._mapping = settings.mapping
        self._store = store
        self._describe = describe
        self._filter = compile_filter(start.filter, settings.mapping)
        """Everything in the command's filter but the time range."""
        self._checks = StoreChecks(start, settings.mapping, store, self._filter)

    async def plan(
        self, on_draft: OnDraft = lambda _draft: None, frozen: Plan | None = None
    ) -> Plan:
        """Freeze the upper bound, count, check the topics, and cut the replay into shards.

        With a ``frozen`` plan, of a replay that has begun, all is counted and checked again. Bound
        and shards stay, so the cursors hold.

        Raises
        ------
        ReplayFailed
            When the replay cannot succeed: the event store or the mapping differs from the
            ``frozen`` plan, the collection or a destination topic is missing, a topic would refuse
            the records, or the mapping fits no event.
        Unavailable
            When the store or the broker does not answer. A later plan may succeed.

        """
        await self._store.require_collection()
        source = with_uuid(source_of(self._settings), (await self._store.identify()).uuid)
        if frozen:
            require_same_source(frozen.source, source)
        start = self._start
        end = frozen.end if frozen else await self._bound()
        bounds = time_range(start.filter.start, end, self._mapping)
        timed = all_of(self._filter, bounds)
        counting = asyncio.create_task(count_events(start, self._settings, self._store, end))
        try:
            cut_warnings: list[str] = []
            if frozen:
                shards = list(frozen.shards)
            else:
                shards, cut_warnings = await self._shards(timed, bounds)
                on_draft(tuple(shards))
            index_warnings = await self._index_warnings(timed)
            found = await counting
        finally:
            counting.cancel()
        counts, warnings = found.timed, found.warnings
        warnings += await self._check(found, end)
        topics, by_type, without_topic = self._destinations(found)
        warnings += without_topic
        destinations = await self._require_topics(topics)
        if counts != {}:
            warnings += index_warnings + cut_warnings
        warnings += await self._preflight(timed, destinations)
        if frozen is None:
            shards = [] if counts == {} else shards
            if found.misfits != {}:
                shards.append(_shard(untimed(self._mapping)))
        return Plan(
            end=end,
            matched=self._matched(found),
            by_type=most_common(by_type, MAX_PLAN_NAMES),
            by_topic=most_common(+topics, MAX_PLAN_NAMES),
            partitions={name: topic.partitions for name, topic in destinations.items()},
            warnings=tuple(warnings),
            shards=tuple(shards),
            source=source,
            dead_letters=await self._dead_letters(),
        )

    async def _dead_letters(self) -> str:
        """Return the id of the topic that takes the dead letters; empty without such a topic."""
        if self._start.on_error != "dead-letter":
            return ""
        name = Topics.of(self._settings).dead_letters.name
        found = await self._describe([name])
        return found[name].topic_id if name in found else ""

    async def count_again(self, plan: Plan) -> int | None:
        """Return how many events match now, up to a plan's bound. None if counting took too long.

        Raises
        ------
        ReplayFailed
            When the store refuses, or when the collection is another one than in the plan.
        Unavailable
            When the store does not answer.

        """
        identity = await self._store.identify()
        require_same_source(plan.source, with_uuid({}, identity.uuid))
        return self._matched(await count_events(self._start, self._settings, self._store, plan.end))

    def _matched(self, found: Counts) -> int | None:
        """Return the number of events that the replay reads. None if unknown."""
        total, most = found.total, self._start.max_events
        return total if total is None or most is None else min(total, most)

    async def _bound(self) -> datetime:
        """Return the upper bound: the command's, or the store's clock."""
        given = self._start.filter.end
        if given is not None:
            return given
        clock = await self._store.clock()
        # Text times may have no fraction. A bound in whole seconds sorts right beside all of them.
        return clock.replace(microsecond=0) if self._mapping.timestamp_type == "iso" else clock

    async def _check(self, found: Counts, end: datetime) -> list[str]:
        """Check whether mapping, times and filter fit the stored events. Return warnings.

        Where the counts prove that the mapping fits, the store is not asked again.
        """
        checks, warnings = self._checks, []
        has_types = any(is_text(kind) for kind, *_ in found.timed or {})
        if not has_types or is_customized(self._mapping):
            await checks.require_mapping()
        if self._mapping.timestamp_type == "iso":
            await checks.require_text_times()
        if self._start.filter.end is None and found.may_be_later:
            warnings += await checks.later_events(end)
        total, most = found.total, self._start.max_events
        if total == 0:
            warnings.append(await checks.nothing_matches())
        elif total is not None and most is not None and most < total:
            warnings.append(
                f"{total:,} events match, and the counts by type and topic are of all of them; "
                f"the replay reads the first {most:,} (max_events)"
            )
        return warnings

    # Topics

    def _destinations(self, found: Counts) -> tuple[Counter[str], Counter[str], tuple[str, ...]]:
        """Return the events for each topic and of each type, and a warning of those without topic.

        Events without a usable time count by type only: each of them fails. Without counts: the
        topics that the command names, without numbers.
        """
        topics: Counter[str] = Counter()
        types: Counter[str] = Counter()
        target = self._start.target
        if found.timed is None:
            named = [*target.topics.values(), *([target.topic] if target.topic else [])]
            return Counter(dict.fromkeys(named, 0)), types, ()
        for event_type, count in (found.misfits or Counter()).items():
            types[_type_name(event_type)] += count
        topicless = Topicless()
        for (event_type, topic), count in found.timed.items():
            types[_type_name(event_type)] += count
            try:
                topics[topic_of_group(event_type, topic, self._mapping, target)] += count
            except EventError as error:  # these events fail one by one
                topicless.add(_type_name(event_type), count, error)
        return topics, types, topicless.warnings(self._start.on_error)

    async def _require_topics(self, topics: Iterable[str]) -> dict[str, Destination]:
        """Return the topics, or raise `ReplayFailed` if one is missing."""
        found = await self._describe(topics)
        missing = sorted(set(topics) - set(found))
        if missing:
            msg = (
                f"missing destination topics: {name_topics(missing)}; create them, or name others "
                "in the target, then retry"
            )
            raise ReplayFailed(msg)
        return found

    async def _preflight(self, timed: Query, found: dict[str, Destination]) -> list[str]:
        """Return warnings of the destination topics, or raise `ReplayFailed` if one would refuse.

        The times of the events cost a pass over the matching events. They are asked for only where
        a topic's time limits may matter.
        """
        preflight = Preflight(
            found,
            now=datetime.now(UTC),
            writes_null_keys=self._start.control_records,
            original_times=self._settings.record_timestamp == "original",
            leaves_out=self._start.on_error != "fail",
        )
        spans: Spans = {}
        warnings: list[str] = []
        if preflight.needs_spans:
            try:
                spans = await self._time_spans(timed)
            except TimeLimitExceeded:
                warnings.append(
                    "the times of the events could not be compared with the time limits of their "
                    f"topics within {self._settings.plan_seconds:g} s (REPLAY_PLAN_SECONDS)"
                )
        return [*warnings, *preflight.check(self._settings, spans)]

    async def _time_spans(self, timed: Query) -> Spans:
        """Return the times of the oldest and the newest matching event for each topic."""
        mapping = self._mapping
        groups = await self._store.time_spans(
            timed,
            [f"${mapping.field_type}", f"${mapping.field_topic}"],
            mapping.field_timestamp,
            self._settings.plan_seconds,
        )
        spans: dict[str, tuple[datetime, datetime]] = {}
        for (event_type, own_topic), values in groups.items():
            try:
                topic = topic_of_group(event_type, own_topic, mapping, self._start.target)
                low, high = (self._time_of(value) for value in values)
            except EventError:
                continue  # these events fail one by one, under the replay's on_error
            lowest, highest = spans.get(topic, (low, high))
            spans[topic] = (min(lowest, low), max(highest, high))
        return spans

    def _time_of(self, value: Any) -> datetime:
        """Return the time that a stored value stands for."""
        for name in reversed(self._mapping.field_timestamp.split(".")):
            value = {name: value}
        return event_time(value, self._mapping).replace(tzinfo=UTC)

    # Shards

    async def _shards(self, timed: Query, bounds: Query) -> tuple[list[ShardPlan], list[str]]:
        """Return the shards, and warnings if they are fewer than the command asks for."""
        last = self._mapping.field_timestamp
        if self._start.ordering == "global":
            return [_shard(bounds, last)], []
        ranges, warnings = await find_ranges(self._start, self._settings, self._store, timed)
        return [_shard(all_of(bounds, part), *order, last) for part, order in ranges], warnings

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


def _type_name(event_type: Any) -> str:
    return event_type if is_text(event_type) else f"({event_type})"


def _shard(match: Query, *fields: str) -> ShardPlan:
    return ShardPlan(match=to_json(match), sort=(*fields, "_id"))
