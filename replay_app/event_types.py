"""What a bounded look at a collection says of its event types and fields, for people who choose."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from pydantic import BaseModel

from replay_app.commands import Target
from replay_app.counts import topic_of_group
from replay_app.events import field_at, is_text
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.inspection import inspect
from replay_app.pages import readable
from replay_app.store import TimeLimitExceeded

if TYPE_CHECKING:
    from typing import Any

    from replay_app.events import Document, EventMapping
    from replay_app.store import EventStore

SAMPLE_EVENTS = 200
FIRST_EVENTS = 100
"""Events that are looked at also where the store gives no random ones in time. Random ones alone
would not show neighbours, which often share their aggregate."""
LOOK_SECONDS = 2.0
"""How long the store works on each of the three parts of a look."""
MAX_BYTES = 4 << 20
"""Of each of the two parts of the sample."""
MAX_TYPES = 1000


class StoredType(BaseModel):
    """An event type that the store holds."""

    name: str
    topic: str | None
    """The original topic of such an event. None: unknown."""
    events: int | None
    """Events of this type among those that were looked at. None: the type comes from an index."""


class StoredField(BaseModel):
    """A field of the stored events."""

    path: str
    types: tuple[str, ...]
    """BSON types, the most frequent first."""
    example: str
    """One of the values, cut."""


class StoredTypes(BaseModel):
    """The types and fields that a look has found: not all, where a store holds rare ones."""

    types: tuple[StoredType, ...]
    """The most frequent ones first."""
    fields: tuple[StoredField, ...]
    looked_at: int
    """Events that were looked at."""
    warnings: tuple[str, ...] = ()
    """What the look has not seen, and why."""


async def look_at_types(store: EventStore, mapping: EventMapping) -> StoredTypes:
    """Look at a sample of the events, and at the types that an index has.

    Raises
    ------
    NoCollection
        When there is no such collection.
    Unavailable
        When the store does not answer.

    """
    await store.require_collection()
    raw, warnings = await sample_events(store, SAMPLE_EVENTS, LOOK_SECONDS, MAX_BYTES)
    indexed: list[Any] = []
    # MongoDB refuses an answer of more than 16 MiB: then the types are those of the sample.
    with contextlib.suppress(TimeLimitExceeded, ReplayFailed):
        indexed = await store.indexed_values(mapping.field_type, LOOK_SECONDS)
    names = [one for one in indexed if is_text(one)]
    # In a thread: a few large documents take a second, and slices must go on meanwhile.
    return await asyncio.to_thread(_found, raw, names, mapping, tuple(warnings))


def _found(
    raw: list[bytes], indexed: list[str], mapping: EventMapping, warnings: tuple[str, ...]
) -> StoredTypes:
    documents = [readable(one) for one in raw]
    seen = inspect(documents, mapping)
    return StoredTypes(
        types=_types(documents, indexed, mapping),
        fields=tuple(
            StoredField(
                path=one.path,
                types=tuple(kind for kind, _ in one.kinds.most_common()),
                example=one.example,
            )
            for one in seen.fields
        ),
        looked_at=len(documents),
        warnings=warnings,
    )


async def sample_events(
    store: EventStore, size: int, seconds: float, max_bytes: int | None = None
) -> tuple[list[bytes], list[str]]:
    """Return some random events and the first ones, and what the store does not give in time.

    With ``max_bytes``, each of the two parts ends with the event that reaches this size.
    """
    found: dict[bytes, None] = {}
    warnings = []
    for stage in ({"$limit": FIRST_EVENTS}, {"$sample": {"size": size}}):
        try:
            found |= dict.fromkeys(await store.raw_documents([stage], seconds, max_bytes))
        except TimeLimitExceeded:
            warnings.append(f"{store.name} gives no {stage} within {seconds:g} s")
    return [*found], warnings


def _types(
    documents: list[Document], indexed: list[str], mapping: EventMapping
) -> tuple[StoredType, ...]:
    counts: Counter[str] = Counter()
    own_topics: dict[str, Any] = {}
    for document in documents:
        name = field_at(document, mapping.field_type)
        if is_text(name):
            counts[name] += 1
            own_topics.setdefault(name, field_at(document, mapping.field_topic))
    rest = [name for name in sorted(indexed) if name not in counts]
    names = [*(name for name, _ in counts.most_common()), *rest][:MAX_TYPES]
    return tuple(
        StoredType(
            name=name,
            topic=_topic(name, own_topics.get(name), mapping),
            events=counts.get(name),
        )
        for name in names
    )


def _topic(name: str, own_topic: Any, mapping: EventMapping) -> str | None:
    with contextlib.suppress(EventError):
        return topic_of_group(name, own_topic, mapping, Target())
    return None
