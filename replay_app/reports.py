"""Reports: what the work agent tells the sessions agent on ``replay.progress``.

Counters are absolute: a repeated or late report changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from replay_app.commands import MAX_CONSUMERS
from replay_app.records import MAX_SHARDS, Count, Counts, Moment, Record, Texts

MAX_LISTED_FAILURES = 100
MAX_INTERNAL_BYTES = 1_000_000
"""Bytes of a session or checkpoint as one record. With its headers and its batch, the record stays
below the broker's default limit of 1,048,588 bytes."""
MAX_TYPE_NAME = 249
"""Characters of an event type in the counts by type. A topic's name has no more characters."""
MAX_LISTED_OFFSETS = 5000
"""Partitions whose offsets a record lists."""
MAX_LISTED_IDS = 1000
"""Topics whose ids a plan lists."""
MAX_HANDOVER_TOPICS = 500
MAX_HANDOVER_PARTITIONS = 2000
"""Live topics, and their partitions, whose offsets a hand-over lists."""
UNKNOWN_HANDOVER = "the hand-over is unknown for"
"""How a warning begins that no longer holds once the offsets of all live topics are known."""
MAX_SHOWN_ID = 500
"""Characters of an event's id in lists, errors and the key of a dead letter."""
MAX_ERROR = 2000
"""Characters of an error, or of the reason why an event failed."""
MAX_GROUP_REASON = 500
"""Characters of the reason why nothing is known of a consumer group."""
MAX_SOURCE = 100
"""Members of a plan's source."""
OTHER = "(other)"
"""The name under which further types and topics are counted, so that a record stays small."""

ShardId = Annotated[int, Field(ge=0, lt=MAX_SHARDS)] | Literal["plan", "count", "gate", "finish"]
"""A shard's number, or the name of a step that a replay has once."""
ShardState = Literal["live", "stopped", "done", "failed"]
GroupState = Literal["unseen", "empty", "active"]
"""``unseen``: there is no such group yet. ``empty``: the group has offsets, and no member."""
Offsets = Annotated[
    dict[str, dict[Count, tuple[Count, Count]]], Field(max_length=MAX_LISTED_OFFSETS)
]
"""By topic and partition: the first and the last offset written."""
Handover = Annotated[
    dict[str, Annotated[dict[Count, Count], Field(max_length=MAX_HANDOVER_PARTITIONS)] | None],
    Field(max_length=2 * MAX_HANDOVER_TOPICS),
]
"""By live topic and partition: the offset from which a consumer reads on. A topic that is unknown
has None; a topic that did not exist has no partitions."""
TopicIds = Annotated[
    dict[str, Annotated[str, Field(max_length=32)]], Field(max_length=2 * MAX_LISTED_IDS)
]
"""By topic: the topic's id, which changes when the topic is deleted and made again."""


class Counters(Record):
    """Numbers of events.

    At the end of a replay, read = published + skipped + dead_lettered. A dry run publishes nothing.
    """

    read: Count = 0
    published: Count = 0
    skipped: Count = 0
    dead_lettered: Count = 0

    def __add__(self, other: Counters) -> Counters:
        """Return the sum of two shards' counters."""
        return Counters(
            read=self.read + other.read,
            published=self.published + other.published,
            skipped=self.skipped + other.skipped,
            dead_lettered=self.dead_lettered + other.dead_lettered,
        )

    def __sub__(self, other: Counters) -> Counters:
        """Return the increase since ``other``."""
        return Counters.model_construct(
            read=self.read - other.read,
            published=self.published - other.published,
            skipped=self.skipped - other.skipped,
            dead_lettered=self.dead_lettered - other.dead_lettered,
        )


class Failure(Record):
    """One event that could not be replayed."""

    event_id: str | None
    reason: str


WaitSeconds = Annotated[float, Field(ge=0, le=1e12)]


class Waits(Record):
    """How long a shard has waited, in seconds. The waits run beside each other."""

    store: WaitSeconds = 0.0
    encoder: WaitSeconds = 0.0
    broker: WaitSeconds = 0.0

    def __add__(self, other: Waits) -> Waits:
        """Return the sum, to the millisecond."""
        return Waits(
            store=round(self.store + other.store, 3),
            encoder=round(self.encoder + other.encoder, 3),
            broker=round(self.broker + other.broker, 3),
        )


class ShardProgress(Record):
    """How far one shard is."""

    state: ShardState = "live"
    counters: Counters = Counters()
    valid: Count = 0
    """Events that were mapped and encoded. A dry run does not publish them."""
    failed: Count = 0
    """Events that could not be mapped or encoded. They also count as skipped or dead_lettered."""
    dropped: Count = 0
    """Events that a transform has dropped. They also count as skipped."""
    parked: Count = 0
    """Good events behind a failed one of their aggregate. They also count as failed."""
    bytes: Count = 0
    """Bytes of the encoded values."""
    by_type: Counts = Field(default_factory=dict)
    """Valid events of each type."""
    by_topic: Counts = Field(default_factory=dict)
    """Valid events for each destination topic."""
    offsets: Offsets = Field(default_factory=dict)
    failures: Annotated[tuple[Failure, ...], Field(max_length=MAX_LISTED_FAILURES)] = ()
    """The first failures, at most MAX_LISTED_FAILURES."""
    waits: Waits = Waits()
    """For what the shard has waited, over all slices."""
    last_time: Moment | None = None
    """Time of the last event read. None if no event was read, or if that event has no time."""
    error: str | None = None
    """Why the shard failed."""
    reason: str | None = None
    """Why the shard waits, as far as the worker knows."""


class ShardPlan(Record):
    """A part of a replay, with its own order and checkpoint."""

    match: dict[str, Any]
    """MongoDB filter of this part, as extended JSON. An event must match the replay's own filter
    too."""
    sort: Texts
    """Field paths of the order, all ascending."""
    until: str = ""
    """`Plan.until`. An event must not come after this cursor. Not a part of ``match``, which does
    not keep each BSON type."""

    @property
    def is_untimed(self) -> bool:
        """Whether the shard has the events without a usable time: no time is in its order."""
        return self.sort == ("_id",)


Source = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_ERROR)]], Field(max_length=MAX_SOURCE)
]
ShardPlans = Annotated[tuple[ShardPlan, ...], Field(max_length=MAX_SHARDS)]


class Plan(Record):
    """What a replay will do."""

    end: Moment
    """The frozen upper bound of the events' times, exclusive."""
    until: str = ""
    """The cursor of the last event, if the command names one, in the order of time and ``_id``."""
    counted: Literal["before", "running", "beside", "after"] = "before"
    """When the events were counted: before the first one was published, or beside the shards.
    ``after``: the replay had read all of them before they were counted, and its own counters are
    the count. The plans of older versions were counted before."""
    matched: Count | None
    """Events that match. None if they are not counted, or if counting took too long."""
    untimed: Count | None = None
    """Matching events without a usable time. None if unknown."""
    by_type: Counts = Field(default_factory=dict)
    by_topic: Counts = Field(default_factory=dict)
    partitions: Counts = Field(default_factory=dict)
    """Partition count of each destination topic at planning."""
    warnings: Texts = ()
    shards: ShardPlans = ()
    dead_letters: str = ""
    """The id of the topic that takes the dead letters. Empty if the replay writes none."""
    source: Source = Field(default_factory=dict)
    """Which events were planned, and with which mapping: settings by their variables, and the
    collection's identity. Empty in plans of older versions."""
    topic_ids: TopicIds = Field(default_factory=dict)
    """The ids of the destination topics. Empty if they are too many, or if the broker has none."""
    handover: Handover = Field(default_factory=dict)
    """From where the live topics of the events are read on (docs/rebuild.md)."""
    handover_time: Moment | None = None
    """The bound less the overlap: live records of this time, or later, are to be read."""
    live_ids: TopicIds = Field(default_factory=dict)
    """The ids of the topics in ``handover``."""


class TopicReader(Record):
    """A consumer group that reads a destination topic."""

    state: GroupState
    lag: Count | None = None
    """Records up to the ends of the topics' partitions that the group has not read, where it has
    committed offsets. None if it has committed none."""
    topics: Texts = ()


class SampleHeader(Record):
    """A header of a sample record."""

    key: str
    value: str


class SampleRecord(Record):
    """A stored event as the record that it would become."""

    event_id: str | None
    error: str | None = None
    """Why the event cannot be replayed. The members below are then empty."""
    topic: str = ""
    key: str = ""
    headers: tuple[SampleHeader, ...] = ()
    value: str = ""
    """The begin of the value, as text."""


class OfferedPlan(Plan):
    """The plan of a replay that is not started, with what people want to see before they start."""

    samples: tuple[SampleRecord, ...] = ()
    """Some of the matching events."""
    live_topics: Texts = ()
    """The destination topics that are original topics of the events: live consumers read them."""
    consumers: dict[str, TopicReader] | None = None
    """The groups that read the destination topics now. None if unknown: a warning says why."""


class GroupLook(Record):
    """What one look at a consumer group has found."""

    state: GroupState = "unseen"
    lag: Count | None = None
    """Records that the group has not read, of those that the replay had published when the look
    began. None if unknown."""
    reason: Annotated[str, Field(max_length=MAX_GROUP_REASON)] | None = None
    """Why nothing is known of the group. State and lag then say nothing."""


NEXT_EVENT = "the next event is due at"
"""Begin of the reason of a shard that keeps the pace of its events. Such a wait is no stall."""
ACCEPTED = "a retry has accepted changes"
"""Begin of the warning of what a retry with ``accept_changes`` has accepted."""


class Report(Record):
    """One record on ``replay.progress``: what a slice did, or what a look at consumers found."""

    replay_id: str = ""
    kind: Literal["plan", "count", "gate", "shard", "finish", "nudge", "consumers", "noop"] = "noop"
    epoch: Count = 0
    slice: Count = 0
    shard: ShardId = 0
    worker: Annotated[str, Field(max_length=MAX_SHOWN_ID)] = ""
    """The name of the worker that has sent the report. Reports of older versions have no name."""
    state: Literal["live", "done", "failed"] = "live"
    """State of a plan, count, gate or finish step. A shard has its state in ``progress``. Of a look
    at the consumers: ``done`` if the replay had completed before the look began."""
    progress: ShardProgress | None = None
    plan: Plan | None = None
    draft: Any = Field(None, exclude=True)
    """Reports of older versions have this member."""
    error: str | None = None
    reason: str | None = None
    """Why a step waits. Of a nudge: why a worker cannot begin. Of a shard: why consumers do not see
    all of its records; the shard goes on, and has in ``progress`` why it waits itself."""
    warnings: Texts = ()
    """What a slice or a finish step found, and what stays true to the end of the replay."""
    consumers: Annotated[dict[str, GroupLook], Field(max_length=MAX_CONSUMERS)] = Field(
        default_factory=dict
    )
    """Of a look at the consumers, by group."""
    written: Count = 0
    """Of a look at the consumers: `offsets_written` of the offsets that the look compared."""
    visible_at: Moment | None = None
    """Of a finish step: when the stable offset of each partition had passed the last record."""
    behind: Count | None = None
    """Of a finish step: see `Receipt.behind`."""

    @property
    def is_live(self) -> bool:
        """Whether another slice must follow."""
        return (self.progress.state if self.progress else self.state) == "live"

    @property
    def is_waiting(self) -> bool:
        """Whether the step, or the shard, cannot go on right now."""
        return (self.progress or self).reason is not None

    def of_failure(self, error: str) -> Report:
        """Return a short report of the same slice, which failed: without lists."""
        update: dict[str, Any] = {"state": "failed", "error": error, "plan": None}
        if self.progress is not None:
            lists: dict[str, Any] = {"by_type": {}, "by_topic": {}, "offsets": {}, "failures": ()}
            failed = {"state": "failed", "error": error, "reason": None}
            progress = self.progress.model_copy(update=lists | failed)
            update = {"progress": progress}
        return self.model_copy(update=update)


def changes_of(planned: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return what differs between a plan and a worker, by name, in words.

    What only one of them knows is not compared: another version may have written the plan.
    """
    return {
        name: f"{name} was {planned[name]!r}, and is {value!r} now"
        for name, value in now.items()
        if planned.get(name, value) != value
    }


def decode_report(value: bytes | None) -> Report | None:
    """Return the report in a record's value; None if the value is not a report."""
    try:
        return Report.model_validate_json(value or b"")
    except ValueError:
        return None


def shorten(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters. A text that was cut ends with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def few(texts: Sequence[str], most: int) -> str:
    """Return the first ``most`` texts as a list in words, and the number of the others."""
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def bound_offsets(offsets: Offsets) -> Offsets:
    """Return the offsets of the first MAX_LISTED_OFFSETS partitions."""
    if sum(map(len, offsets.values())) <= MAX_LISTED_OFFSETS:
        return offsets
    every = [(topic, number) for topic, numbers in offsets.items() for number in sorted(numbers)]
    bounded: Offsets = {}
    for topic, number in every[:MAX_LISTED_OFFSETS]:
        bounded.setdefault(topic, {})[number] = offsets[topic][number]
    return bounded


def offsets_written(offsets: Offsets) -> int:
    """Return how many offsets lie between the first and the last one of each partition, together.

    Each of the two counts, and so do markers of transactions and records of others in between.
    """
    return sum(last + 1 - first for ranges in offsets.values() for first, last in ranges.values())


def most_common(counts: Mapping[str, int], names: int) -> dict[str, int]:
    """Return the counts of the ``names`` most common names, and the sum of the rest as `OTHER`."""
    if len(counts) <= names:
        return dict(counts)
    common = dict(Counter(counts).most_common(names))
    rest = sum(counts.values()) - sum(common.values())
    return common | {OTHER: common.get(OTHER, 0) + rest}
