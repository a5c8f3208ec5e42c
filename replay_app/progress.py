"""Progress: what the work agent tells the sessions agent on ``replay.progress``.

Counters are absolute, so that a repeated or reordered record changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LISTED_FAILURES = 100
MAX_INTERNAL_BYTES = 1_000_000
"""Of a session or a checkpoint as one record; with what is around it, the broker's default limit
of 1,048,588 is not reached."""
MAX_NAME = 249
"""Characters of an event type, where events are counted by type; no topic's name is longer."""
MAX_LISTED_OFFSETS = 5000
"""Partitions whose offsets are listed: a record stays below the broker's limit."""
OTHER = "(other)"
"""Where the events of further types and topics are counted: records stay small."""

ShardId = Annotated[int, Field(ge=0)] | Literal["plan", "gate", "finish"]
"""A shard's number, or the name of a step that a replay has once."""
ShardState = Literal["live", "stopped", "done", "failed"]
Offsets = dict[str, dict[int, tuple[int, int]]]
"""Topic, partition: the first and the last offset written."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counters(_Record):
    """Events so far; at the end read = published + skipped + dead_lettered, but for dry runs."""

    read: int = 0
    published: int = 0
    skipped: int = 0
    dead_lettered: int = 0

    def __add__(self, other: Counters) -> Counters:
        """Add up two shards."""
        return Counters(
            read=self.read + other.read,
            published=self.published + other.published,
            skipped=self.skipped + other.skipped,
            dead_lettered=self.dead_lettered + other.dead_lettered,
        )

    def __sub__(self, other: Counters) -> Counters:
        """Return what came to ``other``."""
        return Counters.model_construct(
            read=self.read - other.read,
            published=self.published - other.published,
            skipped=self.skipped - other.skipped,
            dead_lettered=self.dead_lettered - other.dead_lettered,
        )


class Failure(_Record):
    """One event that could not be replayed."""

    event_id: str | None
    reason: str


class ShardProgress(_Record):
    """How far one shard is."""

    state: ShardState = "live"
    counters: Counters = Counters()
    valid: int = 0
    """Events mapped and encoded; in a dry run they were not published."""
    failed: int = 0
    """Events that could not be mapped or encoded; counted under skipped or dead_lettered too."""
    bytes: int = 0
    """Of encoded values."""
    by_type: dict[str, int] = Field(default_factory=dict)
    """Valid events of each type."""
    by_topic: dict[str, int] = Field(default_factory=dict)
    """Valid events of each destination topic."""
    offsets: Offsets = Field(default_factory=dict)
    """Topic, partition: the first and the last offset written."""
    failures: tuple[Failure, ...] = ()
    """The first MAX_LISTED_FAILURES."""
    last_time: datetime | None = None
    """Timestamp of the last event read."""
    error: str | None = None
    """Why the shard failed."""
    reason: str | None = None
    """Why it is not moving right now, as far as the worker knows."""


class ShardPlan(_Record):
    """The part of a replay that keeps its own order and checkpoint."""

    match: dict[str, Any]
    """MongoDB filter of this part, as extended JSON; and-ed with the replay's own filter."""
    sort: tuple[str, ...]
    """Field paths that order it, all ascending."""


class Plan(_Record):
    """What a replay will do."""

    end: datetime
    """The frozen upper bound, exclusive."""
    matched: int | None
    """Null when counting took too long."""
    by_type: dict[str, int] = Field(default_factory=dict)
    by_topic: dict[str, int] = Field(default_factory=dict)
    partitions: dict[str, int] = Field(default_factory=dict)
    """Destination topic: its partition count when planned."""
    warnings: tuple[str, ...] = ()
    shards: tuple[ShardPlan, ...] = ()


class Progress(_Record):
    """One record on ``replay.progress``."""

    replay_id: str = ""
    kind: Literal["plan", "gate", "shard", "finish", "nudge", "noop"] = "noop"
    epoch: int = 0
    slice: int = 0
    shard: ShardId = 0
    state: Literal["live", "done", "failed"] = "live"
    """Of a plan, gate or finish step; a shard's is in its progress."""
    progress: ShardProgress | None = None
    plan: Plan | None = None
    draft: tuple[ShardPlan, ...] = ()
    """The shards with which the plan will begin, while the events are still being counted."""
    error: str | None = None
    reason: str | None = None

    @property
    def is_live(self) -> bool:
        """Whether another slice must follow."""
        return (self.progress.state if self.progress else self.state) == "live"

    @property
    def is_waiting(self) -> bool:
        """Whether the step, or the shard, cannot move right now."""
        return (self.progress or self).reason is not None

    def encode(self) -> bytes:
        """Return the record's value on Kafka."""
        return self.model_dump_json(exclude_defaults=True).encode()


def decode_progress(value: bytes | None) -> Progress | None:
    """Return the progress of a record; None for one that is none (it is then ignored)."""
    try:
        return Progress.model_validate_json(value or b"")
    except ValueError:
        return None


def listed_name(name: str) -> str:
    """Return the name under which events of a type, or to a topic, are counted."""
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def listed_offsets(offsets: Offsets) -> Offsets:
    """Return the offsets of as many partitions as a record has room for."""
    if sum(map(len, offsets.values())) <= MAX_LISTED_OFFSETS:
        return offsets
    every = [(topic, number) for topic, numbers in offsets.items() for number in sorted(numbers)]
    listed: Offsets = {}
    for topic, number in every[:MAX_LISTED_OFFSETS]:
        listed.setdefault(topic, {})[number] = offsets[topic][number]
    return listed


def most_common(counts: Mapping[str, int], names: int) -> dict[str, int]:
    """Return the counts of that many names, the rest added up under `OTHER`."""
    if len(counts) <= names:
        return dict(counts)
    listed = dict(Counter(counts).most_common(names))
    rest = sum(counts.values()) - sum(listed.values())
    return listed | {OTHER: listed.get(OTHER, 0) + rest}
