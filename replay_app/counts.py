"""How many stored events match a start command."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import bson

from replay_app.elements import UNDEFINED, StoredValue
from replay_app.events import STRICT, EventMapping, destination, encode_json, is_text
from replay_app.exceptions import EventError
from replay_app.pages import DECODE_ERRORS
from replay_app.queries import (
    all_of,
    compile_filter,
    in_time,
    time_keys,
    untimed,
)
from replay_app.store import TimeLimitExceeded
from replay_app.store_checks import WARNING_SECONDS

if TYPE_CHECKING:
    from replay_app.bounds import Bounds
    from replay_app.commands import Start, Target
    from replay_app.settings import Settings
    from replay_app.store import EventStore

MAX_NAMED_TYPES = 5
"""Types that a warning names."""
MAX_SHOWN = 100
"""Characters of a type that a warning shows."""


@dataclass
class Counts:
    """How many events match."""

    timed: dict[tuple[Any, ...], int] | None
    """Events in the time range, by (type, topic field). None if counting took too long."""
    misfits: Counter[Any] | None = None
    """Events without a usable time that belong to the replay, by type. None if unknown."""
    may_be_later: bool = True
    """Whether further events may match at or past the end of the time range."""
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> int | None:
        """All matching events. None if unknown."""
        if self.timed is None or self.misfits is None:
            return None
        return sum(self.timed.values()) + self.misfits.total()


async def count_events(
    start: Start, settings: Settings, store: EventStore, bounds: Bounds
) -> Counts:
    """Count the events that match a command, within the bounds.

    Raises
    ------
    ReplayFailed
        When the store refuses.
    Unavailable
        When the store does not answer.

    """
    mapping, seconds = settings.mapping, settings.plan_seconds
    wanted = compile_filter(start.filter, mapping)
    keys = [f"${mapping.field_type}", f"${mapping.field_topic}"]
    try:
        if not leaves_out_untimed(start):
            # Nearly everything matches, and an index would only make the count slower: one
            # pass over all events, which also finds the events without a usable time.
            groups = await store.count_groups(
                wanted, [*keys, *time_keys(bounds.end, mapping)], seconds
            )
            counts: Counter[tuple[Any, ...]] = Counter()
            is_exact, is_later = True, False
            for (*group, kind, is_before), count in groups.items():
                is_timed = in_time(kind, is_before, mapping)
                is_exact = is_exact and is_timed is not None
                is_later = is_later or is_timed is False
                if is_timed:
                    counts[tuple(group)] += count
            if is_exact:
                return Counts(dict(counts), misfits=Counter(), may_be_later=is_later)
        timed = all_of(wanted, bounds.query(mapping))
        found = Counts(await store.count_groups(timed, keys, seconds))
    except TimeLimitExceeded:
        warning = (
            f"the matching events could not be counted within {seconds:g} s "
            "(REPLAY_PLAN_SECONDS): the total is unknown, and a missing destination topic "
            "shows only when an event for it is reached"
        )
        found = Counts(None, warnings=[warning])
    await count_misfits(found, start, settings, store)
    return found


async def count_timed(  # noqa: PLR0913, PLR0917 - what a count is made of
    start: Start, settings: Settings, store: EventStore, bounds: Bounds, read: int, seconds: float
) -> int:
    """Return how many events with a time match now, whatever ``max_events`` says.

    Nothing is grouped, so MongoDB can answer from an index on the time, without the events. It
    cannot leave out arrays of times then: these are left out by a second count, if the first one is
    not the number of such events that the replay has ``read``.

    Raises
    ------
    ReplayFailed
        When the store refuses.
    Unavailable
        When the store does not answer, or needs more than ``seconds`` for a count.

    """
    mapping = settings.mapping
    wanted = compile_filter(start.filter, mapping)
    found = 0
    for with_arrays in (True, False):
        timed = bounds.query(mapping, with_arrays=with_arrays)
        found = sum((await store.count_groups(all_of(wanted, timed), [], seconds)).values())
        if found == read:
            break
    return found


def leaves_out_untimed(start: Start) -> bool:
    """Return whether events without a usable time are left out of the replay.

    These events are in no time range. A replay of everything up to its end includes them, and each
    of them fails under ``on_error``. A replay with a start, with a number of first events or with a
    last event does not include them.
    """
    return (
        start.filter.start is not None
        or start.max_events is not None
        or start.until_event_id is not None
    )


async def count_misfits(found: Counts, start: Start, settings: Settings, store: EventStore) -> None:
    """Count the events without a usable time.

    A replay that leaves them out warns of them, if they can be counted within WARNING_SECONDS.
    """
    mapping, seconds = settings.mapping, settings.plan_seconds
    is_without = leaves_out_untimed(start)
    if is_without:
        found.misfits = Counter()
        seconds = min(WARNING_SECONDS, seconds)
    query = all_of(compile_filter(start.filter, mapping), untimed(mapping))
    try:
        groups = await store.count_groups(query, [f"${mapping.field_type}"], seconds)
    except TimeLimitExceeded:
        if not is_without and found.timed is not None:
            found.warnings.append(
                f"the events without a usable time could not be counted within {seconds:g} s "
                "(REPLAY_PLAN_SECONDS): the total is unknown, and the counts by type lack them"
            )
        return
    misfits = Counter({kind: count for (kind,), count in groups.items()})
    if not is_without:
        found.misfits = misfits
    elif misfits:
        found.warnings.append(
            f"{misfits.total()} matching events have no {mapping.timestamp_type} in "
            f"{mapping.field_timestamp!r}; they are in no time range and are left out"
        )


@dataclass
class Topicless:
    """The counted events that no topic takes, by type."""

    counts: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    """Why the events of the first type have no topic."""

    def add(self, type_name: str, count: int, error: EventError) -> None:
        """Add the events of one group."""
        self.reason = self.reason or f"of the type {type_name[:MAX_SHOWN]!r}: {error}"
        self.counts[type_name] += count

    def warnings(self, on_error: str) -> tuple[str, ...]:
        """Return a warning that names the types and says how many events they have."""
        if not self.counts:
            return ()
        named = [
            f"{name[:MAX_SHOWN]!r} ({count:,})"
            for name, count in self.counts.most_common(MAX_NAMED_TYPES)
        ]
        more = len(self.counts) - len(named)
        named += [f"and {more:,} more types"] if more > 0 else []
        warning = (
            f"{self.counts.total():,} events have no topic, and each of them fails under "
            f"on_error={on_error}: of the types {', '.join(named)}. For example, an event "
            f"{self.reason}"
        )
        return (warning,)


def topic_of_group(event_type: Any, own_topic: Any, mapping: EventMapping, target: Target) -> str:
    """Return the topic of counted events, by the values of their type and of their topic field.

    Raises
    ------
    EventError
        When each of these events fails: the message says why.

    """
    if not (is_text(event_type) and event_type):
        msg = "it has no type"
        raise EventError(msg)
    if not is_text(own_topic):
        if own_topic is not None:
            _require_published(own_topic)
        own_topic = None  # to the encoders too
    return destination(event_type, own_topic, mapping, target)


def _require_published(value: Any) -> None:
    """Raise `EventError` if an event with this value in a field fails."""
    if isinstance(value, StoredValue):
        if value.kind == UNDEFINED:
            raise EventError(str(value))
        try:
            value = bson.decode(value.under(b""), codec_options=STRICT)[""]
        except DECODE_ERRORS as error:
            raise EventError(str(error)) from error
    encode_json({"": value})
