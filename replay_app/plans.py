"""Plans: what a replay would do, before it does anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from replay_app.bounds import Bounds, bounds_of, freeze_bounds
from replay_app.commands import LETTERS
from replay_app.counts import (
    Counts,
    Topicless,
    count_events,
    count_misfits,
    leaves_out_untimed,
    topic_of_group,
)
from replay_app.cuts import find_ranges
from replay_app.destinations import MAX_NAMED_TOPICS, Destination, Preflight, Spans, name_topics
from replay_app.events import event_time, is_text
from replay_app.exceptions import EventError, ReplayFailed, Unavailable
from replay_app.handover import live_topics, require_allowed, unknown_offsets
from replay_app.looks import LOOK_AROUND_SECONDS, known_topics, look
from replay_app.queries import (
    Query,
    all_of,
    compile_filter,
    to_json,
    untimed,
)
from replay_app.redaction import redaction_of
from replay_app.reports import (
    ACCEPTED,
    MAX_LISTED_IDS,
    Handover,
    Plan,
    ShardPlan,
    changes_of,
    few,
    most_common,
)
from replay_app.schemas import schemas_of
from replay_app.sources import require_same_source, source_of, with_uuid
from replay_app.store import TimeLimitExceeded
from replay_app.store_checks import LOOK_SECONDS, StoreChecks, is_customized
from replay_app.topics import Topics
from replay_app.transform_names import transforms_of

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.store import EventStore

MAX_PLAN_NAMES = 500
"""Types, and topics, that a plan counts by name: a plan must fit into one record."""
AT_ONCE_SECONDS = 0.15
"""How long a replay that starts at once waits for its count, and for looks beside the events."""

Describe = Callable[[Iterable[str]], Awaitable[dict[str, Destination]]]
"""Returns those topics that exist."""


class Planner:
    """Makes the plan of one start command."""

    def __init__(
        self,
        start: Start,
        settings: Settings,
        store: EventStore,
        describe: Describe,
    ) -> None:
        """Make a planner.

        Raises
        ------
        ReplayFailed
            When the replay's redaction cannot be kept, when a transform is unknown, or when a
            schema is none.

        """
        redaction_of(settings, start.redact)
        transforms_of(settings, start.transforms)
        self._schemas = schemas_of(settings, start)
        self._start = start
        self._settings = settings
        self._mapping = settings.mapping
        self._store = store
        self._describe = describe
        self._filter = compile_filter(start.filter, settings.mapping)
        """Everything in the command's filter but the time range."""
        self._checks = StoreChecks(start, settings.mapping, store, self._filter)

    async def plan(
        self, frozen: Plan | None = None, *, at_once: bool = False, accept_changes: bool = False
    ) -> Plan:
        """Freeze the upper bound, count, check the topics, and cut the replay into shards.

        With a ``frozen`` plan, of a replay that has begun, all is counted and checked again. Bound
        and shards stay, so the cursors hold. ``at_once``: what cannot be counted and compared
        within AT_ONCE_SECONDS is left to `count`, while the shards run; the plan says so. With
        ``accept_changes``, events may become records in another way than in the ``frozen`` plan.

        Raises
        ------
        ReplayFailed
            When the replay cannot succeed: the event store or the mapping differs from the
            ``frozen`` plan, the collection or a destination topic is missing, a topic would refuse
            the records, or the mapping fits no event. Or a destination is a live topic of the
            events, and ``REPLAY_ALLOW_ORIGINAL`` forbids that.
        Unavailable
            When the store or the broker does not answer. A later plan may succeed.

        """
        source, accepted = await self._source(frozen, accept_changes=accept_changes)
        if frozen:
            bounds = bounds_of(self._start, frozen)
        else:
            bounds = await freeze_bounds(self._start, self._mapping, self._store)
        timed = self._timed(bounds)
        # Before the count: a store that is busy with the count gives no cuts in time.
        shards, cut_warnings = await self._shards(timed, bounds, frozen)
        counting = asyncio.create_task(self._count(bounds, at_once=at_once))
        looking = asyncio.create_task(self._look(timed, at_once=at_once))
        try:
            look_warnings = await self._index_warnings(timed)
            look_warnings += await self._checks.unknown_redactions(
                timed, LOOK_AROUND_SECONDS if at_once else LOOK_SECONDS, is_last=not at_once
            )
            found = await counting
            kinds = await looking if found.timed is None else []
        finally:
            counting.cancel()
            looking.cancel()
            await asyncio.gather(counting, looking, return_exceptions=True)
        if kinds is None:
            found = replace(found, timed={})
        is_open = at_once and found.total is None
        topics, by_type, without_topic = self._destinations(found)
        if found.timed is None:
            topics = Counter(
                dict.fromkeys(known_topics(self._start, self._mapping, kinds or [], frozen), 0)
            )
        if found.timed is not None or not at_once:  # else the look has checked what it could
            await self._require_fit(found.timed or {})
        self._require_allowed(topics, found.timed or kinds or ())
        destinations, more = await self._require_topics(topics)
        preflight, spans = self._preflight(destinations), Spans()
        seconds = AT_ONCE_SECONDS if at_once else self._settings.plan_seconds
        try:
            # Nothing waits for the first event of a replay that has none.
            async with asyncio.timeout(seconds if at_once and found.total != 0 else None):
                if not is_open:
                    more += await self._look_around(found, bounds.end, seconds)
                if preflight.needs_spans and not is_open:
                    spans = await self._time_spans(timed, seconds)
        except (TimeLimitExceeded, TimeoutError):
            is_open = at_once
            more += [] if at_once else [_not_compared(seconds)]
        more += self._without_schema(found.timed or kinds or ())
        more += [*without_topic, *(look_warnings + cut_warnings if found.timed != {} else [])]
        warnings = [*found.warnings, *more, *preflight.check(self._settings, spans), *accepted]
        if frozen is None:
            shards = [] if found.timed == {} else shards
            if found.misfits != {}:
                shards.append(shard_of(untimed(self._mapping)))
        return Plan(
            end=bounds.end,
            until=bounds.until,
            counted="running" if is_open else "before",
            **self._account(found, by_type, topics, destinations),
            handover=self._handover(found.timed or kinds or (), frozen),
            warnings=tuple(warnings),
            shards=tuple(shards),
            source=source,
            dead_letters=await self._dead_letters(),
        )

    def _without_schema(self, kinds: Iterable[tuple[Any, ...]]) -> list[str]:
        """Return a warning of the types whose events no schema checks."""
        if self._schemas is None:
            return []
        missing = self._schemas.missing(kind for kind, *_ in kinds if is_text(kind))
        if not missing:
            return []
        return [f"no JSON Schema checks the events of the types {few([*map(repr, missing)], 5)}"]

    async def _source(
        self, frozen: Plan | None, *, accept_changes: bool
    ) -> tuple[dict[str, str], list[str]]:
        """Return the source, and a warning of what has changed since a ``frozen`` plan."""
        await self._store.require_collection()
        source = source_of(self._settings, self._start)
        source = with_uuid(source, (await self._store.identify()).uuid)
        if frozen is None:
            return source, []
        require_same_source(frozen.source, source, accept_changes=accept_changes)
        changes = "; ".join(changes_of(frozen.source, source).values())
        warning = f"{ACCEPTED}, which count from there on: {changes}"
        return source, [warning] if changes else []

    def _account(
        self,
        found: Counts,
        by_type: Counter[str],
        topics: Counter[str],
        destinations: dict[str, Destination],
    ) -> dict[str, Any]:
        """Return the members of a plan that come from the counts and from the topics."""
        ids = {name: topic.topic_id for name, topic in destinations.items() if topic.topic_id}
        return {
            "matched": self._matched(found),
            "untimed": None if found.misfits is None else found.misfits.total(),
            "by_type": most_common(by_type, MAX_PLAN_NAMES),
            "by_topic": most_common(+topics, MAX_PLAN_NAMES),
            "partitions": {name: topic.partitions for name, topic in destinations.items()},
            "topic_ids": ids if len(ids) <= MAX_LISTED_IDS else {},
        }

    def _handover(self, kinds: Iterable[tuple[Any, ...]], known: Plan | None) -> Handover:
        """Return the live topics of the events. `find_handover` finds their offsets."""
        return unknown_offsets(live_topics(kinds, self._mapping), known.handover if known else {})

    def _require_allowed(self, topics: Iterable[str], kinds: Iterable[tuple[Any, ...]]) -> None:
        """Raise `ReplayFailed` if a destination is a forbidden live topic of these kinds."""
        live = live_topics(kinds, self._mapping)
        require_allowed(self._settings, self._start, topics, live)

    async def _dead_letters(self) -> str:
        """Return the id of the topic that takes the dead letters; empty without such a topic."""
        if self._start.on_error not in LETTERS:
            return ""
        name = Topics.of(self._settings).dead_letters.name
        found = await self._describe([name])
        return found[name].topic_id if name in found else ""

    async def count(self, plan: Plan) -> Plan:
        """Count the events of a plan that left them open, while its shards run.

        The plan that is returned has counts and warnings, but no shards. What would fail a replay
        that has not begun is a warning here: the shards fail where they meet the event.

        Raises
        ------
        ReplayFailed
            When the store refuses, or when the collection is another one than in the plan.
        Unavailable
            When the store or the broker does not answer.

        """
        settings = self._settings
        await self._require_same(plan)
        bounds = bounds_of(self._start, plan)
        found = await count_events(self._start, settings, self._store, bounds)
        topics, by_type, without_topic = self._destinations(found)
        destinations = await self._describe(topics)
        warnings = [*found.warnings]
        with contextlib.suppress(TimeLimitExceeded):
            warnings += await self._look_around(found, plan.end, LOOK_SECONDS)
        warnings += [*without_topic, *_missing(topics, destinations)]
        preflight, spans = self._preflight(destinations), Spans()
        if preflight.needs_spans:
            timed = self._timed(bounds)
            try:
                spans = await self._time_spans(timed, settings.plan_seconds)
            except TimeLimitExceeded:
                warnings.append(_not_compared(settings.plan_seconds))
        try:
            self._require_allowed(topics, found.timed or ())
            warnings += preflight.check(settings, spans)
        except ReplayFailed as error:
            warnings.append(str(error))
        return Plan(
            end=plan.end,
            counted="beside",
            **self._account(found, by_type, topics, destinations),
            handover=self._handover(found.timed or (), plan),
            warnings=tuple(warnings),
        )

    async def look_back(
        self, plan: Plan, read: int, topics: Iterable[str], seconds: float
    ) -> list[str]:
        """Return the warnings of `count`, for a replay that had read all before the count.

        ``topics`` are those to which the replay has published, ``read`` is how many events it has
        read. A look at the store that takes longer than ``seconds`` is given up.

        Raises
        ------
        ReplayFailed
            When the store refuses.
        Unavailable
            When the store or the broker does not answer.

        """
        start, timed = self._start, self._timed(bounds_of(self._start, plan))
        found = Counts({}, misfits=Counter()) if read == 0 else Counts(None)
        if leaves_out_untimed(start):
            await count_misfits(found, start, self._settings, self._store)
        warnings = [*found.warnings]
        with contextlib.suppress(TimeLimitExceeded):
            warnings += await self._look_around(found, plan.end, seconds)
        preflight = self._preflight(await self._describe(topics))
        if preflight.needs_spans and read:
            with contextlib.suppress(TimeLimitExceeded):
                oldest = await self._oldest(timed, seconds)
                warnings += [] if oldest is None else preflight.expired(oldest)
        return warnings

    async def count_again(self, plan: Plan) -> int | None:
        """Return how many events match now, up to a plan's bound. None if counting took too long.

        Raises
        ------
        ReplayFailed
            When the store refuses, or when the collection is another one than in the plan.
        Unavailable
            When the store does not answer.

        """
        await self._require_same(plan)
        bounds = bounds_of(self._start, plan)
        return self._matched(await count_events(self._start, self._settings, self._store, bounds))

    async def unknown_redactions(self, plan: Plan) -> list[str]:
        """Return warnings of fields that were to be redacted, and that no event of a plan has.

        Raises
        ------
        Unavailable
            When the store does not answer.

        """
        timed = self._timed(bounds_of(self._start, plan))
        return await self._checks.unknown_redactions(timed, LOOK_SECONDS, is_last=True)

    async def _require_same(self, plan: Plan) -> None:
        identity = await self._store.identify()
        require_same_source(plan.source, with_uuid({}, identity.uuid))

    def _matched(self, found: Counts) -> int | None:
        """Return the number of events that the replay reads. None if unknown."""
        total, most = found.total, self._start.max_events
        return total if total is None or most is None else min(total, most)

    def _timed(self, bounds: Bounds) -> Query:
        """Return the query for the matching events that have a time."""
        return all_of(self._filter, bounds.query(self._mapping))

    async def _count(self, bounds: Bounds, *, at_once: bool) -> Counts:
        """Count the matching events. ``at_once``: nothing is known if this takes too long."""
        start, settings, store = self._start, self._settings, self._store
        if not at_once:
            return await count_events(start, settings, store, bounds)
        hasty = settings.model_copy(update={"plan_seconds": AT_ONCE_SECONDS})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AT_ONCE_SECONDS):
                found = await count_events(start, hasty, store, bounds)
                if found.total is not None:
                    return found
        return Counts(None, misfits=Counter() if leaves_out_untimed(start) else None)

    async def _look(self, timed: Query, *, at_once: bool) -> list[tuple[Any, ...]] | None:
        """Return the kinds of events that `look` finds. A full plan needs no look: it counts.

        But where live topics are forbidden, the look names some if the count takes too long.
        """
        if not at_once and (self._settings.allow_original or self._start.dry_run):
            return []
        return await look(self._start, self._mapping, self._store, self._checks, timed)

    async def _require_fit(self, kinds: Iterable[tuple[Any, ...]]) -> None:
        """Check whether mapping and times fit the stored events.

        Where the types of the counted events prove that the mapping fits, the store is not asked
        again.
        """
        has_types = any(is_text(kind) for kind, *_ in kinds)
        if not has_types or is_customized(self._mapping):
            await self._checks.require_mapping()
        if self._mapping.timestamp_type == "iso":
            await self._checks.require_text_times()

    async def _look_around(self, found: Counts, end: datetime, seconds: float) -> list[str]:
        """Return warnings of what the counts say, and of what lies beside the matching events.

        Raises
        ------
        TimeLimitExceeded
            When a look at the store takes longer than ``seconds``.

        """
        checks, warnings = self._checks, list[str]()
        has_bound = self._start.filter.end or self._start.until_event_id is not None
        if not has_bound and found.may_be_later:
            warnings += await checks.later_events(end, seconds)
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

        Events without a usable time count by type only: each of them fails.
        """
        topics: Counter[str] = Counter()
        types: Counter[str] = Counter()
        if found.timed is None:
            return topics, types, ()
        target = self._start.target
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

    async def _require_topics(
        self, topics: Iterable[str]
    ) -> tuple[dict[str, Destination], list[str]]:
        """Return the topics that exist, or raise `ReplayFailed` if one is missing.

        With transforms a missing topic is only a warning, which is returned too: a transform may
        send the events elsewhere.
        """
        found = await self._describe(topics)
        missing = sorted(set(topics) - set(found))
        if missing and self._start.transforms:
            warning = (
                f"missing destination topics: {name_topics(missing)}; the replay fails at the "
                "first event that no transform drops, or sends to another topic"
            )
            return found, [warning]
        if missing:
            msg = (
                f"missing destination topics: {name_topics(missing)}; create them, or name others "
                "in the target, then retry"
            )
            raise ReplayFailed(msg)
        return found, []

    def _preflight(self, found: dict[str, Destination]) -> Preflight:
        return Preflight(
            found,
            now=datetime.now(UTC),
            writes_null_keys=self._start.control_records,
            original_times=self._settings.record_timestamp == "original",
            leaves_out=self._start.on_error != "fail",
        )

    async def _time_spans(self, timed: Query, seconds: float) -> Spans:
        """Return the times of the oldest and the newest matching event for each topic.

        This costs a pass over the matching events. So the times are asked for only where a topic's
        time limits may matter.

        Raises
        ------
        TimeLimitExceeded
            When this takes longer than ``seconds``.

        """
        mapping = self._mapping
        groups = await self._store.time_spans(
            timed,
            [f"${mapping.field_type}", f"${mapping.field_topic}"],
            mapping.field_timestamp,
            seconds,
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

    async def _oldest(self, timed: Query, seconds: float) -> datetime | None:
        """Return the time of the first matching event; None without a time that can be read."""
        field = self._mapping.field_timestamp
        first: list[Query] = [{"$match": timed}, {"$sort": {field: 1, "_id": 1}}, {"$limit": 1}]
        for document in await self._store.documents(first, seconds):
            with contextlib.suppress(EventError):
                return event_time(document, self._mapping).replace(tzinfo=UTC)
        return None

    def _time_of(self, value: Any) -> datetime:
        """Return the time that a stored value stands for."""
        for name in reversed(self._mapping.field_timestamp.split(".")):
            value = {name: value}
        return event_time(value, self._mapping).replace(tzinfo=UTC)

    # Shards

    async def _shards(
        self, timed: Query, bounds: Bounds, frozen: Plan | None
    ) -> tuple[list[ShardPlan], list[str]]:
        """Return the shards, and warnings if they are fewer than the command asks for."""
        if frozen is not None:
            return list(frozen.shards), []
        last, times = self._mapping.field_timestamp, bounds.times(self._mapping)
        if self._start.ordering == "global":
            return [shard_of(times, last, until=bounds.until)], []
        ranges, warnings = await find_ranges(self._start, self._settings, self._store, timed)
        shards = [
            shard_of(all_of(times, part), *order, last, until=bounds.until)
            for part, order in ranges
        ]
        return shards, warnings

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


def _missing(topics: Counter[str], found: Iterable[str]) -> list[str]:
    """Return a warning that names the topics which a running replay will miss."""
    missing = sorted(set(topics) - set(found))
    if not missing:
        return []
    named = [f"{name!r} ({topics[name]:,} events)" for name in missing[:MAX_NAMED_TOPICS]]
    more = len(missing) - len(named)
    named += [f"and {more} more"] if more > 0 else []
    warning = (
        f"missing destination topics: {', '.join(named)}; create them before the replay gets "
        "there. A replay that gets there first fails, and a retry goes on"
    )
    return [warning]


def _not_compared(seconds: float) -> str:
    return (
        "the times of the events could not be compared with the time limits of their topics "
        f"within {seconds:g} s (REPLAY_PLAN_SECONDS)"
    )


def _type_name(event_type: Any) -> str:
    return event_type if is_text(event_type) else f"({event_type})"


def shard_of(match: Query, *fields: str, until: str = "") -> ShardPlan:
    """Return the shard of the events that match, in the order of the fields and ``_id``."""
    return ShardPlan(match=to_json(match), sort=(*fields, "_id"), until=until)
