"""The look at some events: what a replay that starts before its count knows of types and topics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from replay_app.counts import topic_of_group
from replay_app.events import field_at, is_text
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.queries import all_of
from replay_app.reports import OTHER
from replay_app.store import TimeLimitExceeded
from replay_app.store_checks import SAMPLE_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.commands import Start
    from replay_app.events import Document, EventMapping
    from replay_app.queries import Query
    from replay_app.reports import Plan
    from replay_app.store import EventStore
    from replay_app.store_checks import StoreChecks

LOOK_AROUND_SECONDS = 0.15
"""How long a replay waits for each part of the look: the first events, the types that an index has,
and one event of each type."""
MAX_LOOKED_TYPES = 20
"""Types that are looked for one by one."""

Kind = tuple[Any, ...]
"""What the topic of an event depends on: its type, and its topic field."""


async def look(
    start: Start, mapping: EventMapping, store: EventStore, checks: StoreChecks, timed: Query
) -> list[Kind] | None:
    """Return the kinds of some matching events, and check whether the mapping fits these events.

    None if no event matches. The look takes the first events that the store finds, and one event
    for each further type: of the filter's types, else of those that an index on the type has. What
    the store does not answer in time stays unknown: an event may name its own topic, so no topic
    follows from a type alone.

    Raises
    ------
    ReplayFailed
        When the mapping fits no event, or when the times cannot be read in order.
    Unavailable
        When the store does not answer at all.

    """
    seen = await _first_events(store, timed, SAMPLE_EVENTS)
    if seen is None:
        return []
    if not seen:
        return None
    await checks.require_mapping(seen)
    if mapping.timestamp_type == "iso":
        await checks.require_text_times(seen)
    found = dict.fromkeys(_kind(event, mapping) for event in seen)
    if len(seen) < SAMPLE_EVENTS:  # these are all
        return [*found]
    named = start.filter.event_types or await _indexed_types(store, mapping)
    unseen = sorted(set(named[:MAX_LOOKED_TYPES]) - {kind for kind, _ in found})
    by_type = await asyncio.gather(
        *(_first_events(store, all_of(timed, {mapping.field_type: name}), 1) for name in unseen)
    )
    for first in by_type:
        found |= dict.fromkeys(_kind(event, mapping) for event in first or [])
    return [*found]


async def _first_events(store: EventStore, query: Query, events: int) -> list[Document] | None:
    """Return the first matching events; None if the store does not answer in time."""
    with contextlib.suppress(TimeLimitExceeded, TimeoutError):
        async with asyncio.timeout(LOOK_AROUND_SECONDS):
            pipeline: list[dict[str, Any]] = [{"$match": query}, {"$limit": events}]
            return await store.documents(pipeline, LOOK_AROUND_SECONDS)
    return None


async def _indexed_types(store: EventStore, mapping: EventMapping) -> list[str]:
    """Return the event types that an index has; no types if there is no index, or no time."""
    # MongoDB refuses an answer of more than 16 MiB: then the types stay unknown.
    with contextlib.suppress(TimeLimitExceeded, TimeoutError, ReplayFailed):
        async with asyncio.timeout(LOOK_AROUND_SECONDS):
            values = await store.indexed_values(mapping.field_type, LOOK_AROUND_SECONDS)
            return [value for value in values if is_text(value)]
    return []


def _kind(document: Document, mapping: EventMapping) -> Kind:
    found = (field_at(document, path) for path in (mapping.field_type, mapping.field_topic))
    return tuple(one if isinstance(one, Hashable) else None for one in found)


def known_topics(
    start: Start, mapping: EventMapping, kinds: Iterable[Kind], frozen: Plan | None
) -> set[str]:
    """Return the topics that are known without a count: they must exist.

    These are the topics that the command names, those of the known ``kinds`` of events, and those
    of the count before a retry, which the ``frozen`` plan has.
    """
    target, wanted = start.target, start.filter
    topics = {
        topic
        for name, topic in target.topics.items()
        if name in (wanted.event_types or [name]) and name not in wanted.exclude_event_types
    }
    topics |= {target.topic} if target.topic else set()
    topics |= frozen.by_topic.keys() - {OTHER} if frozen else set()
    for event_type, own_topic in kinds:
        with contextlib.suppress(EventError):  # these events fail one by one
            topics.add(topic_of_group(event_type, own_topic, mapping, target))
    return topics
