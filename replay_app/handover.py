"""The hand-over: from where a consumer of a replay reads on in the live topics.

A replay publishes the events whose times lie before its bound. Whatever was sent to the live topics
from the bound on is not part of it. So the plan keeps, for each live topic of the replay's events,
the first offset whose record is not older than the bound less an overlap. The overlap covers events
that were stored late, and clocks that differ.

``replay_app.group_offsets`` sets a consumer group to these offsets.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code

from replay_app.clusters import answers, cluster_name, connected
from replay_app.commands import Target
from replay_app.counts import topic_of_group
from replay_app.destinations import MAX_NAMED_TOPICS, describe_all, name_topics
from replay_app.events import EPOCH
from replay_app.exceptions import EventError, ReplayError, ReplayFailed
from replay_app.kafka_requests import EARLIEST, LATEST, list_offsets
from replay_app.reports import (
    MAX_HANDOVER_PARTITIONS,
    MAX_HANDOVER_TOPICS,
    OTHER,
    UNKNOWN_HANDOVER,
    Handover,
    Plan,
    few,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiokafka import AIOKafkaClient

    from replay_app.commands import Start
    from replay_app.events import EventMapping
    from replay_app.sessions import Session
    from replay_app.settings import Settings

ANSWER_SECONDS = 5.0
"""How long the broker may take to tell the offsets of a hand-over."""
MAX_HEADER_BYTES = 8192
"""Most bytes of a hand-over in the header of a control record. Each partition has such a record."""


# Which topics


def live_topics(kinds: Iterable[tuple[Any, ...]], mapping: EventMapping) -> set[str]:
    """Return the live topics of some kinds of events (type, topic field): those without a target.

    Left out are the events that have no topic.
    """
    topics: set[str] = set()
    for event_type, own_topic in kinds:
        with contextlib.suppress(EventError):
            topics.add(topic_of_group(event_type, own_topic, mapping, Target()))
    return topics


def require_allowed(
    settings: Settings, start: Start, topics: Iterable[str], live: Iterable[str]
) -> None:
    """Raise `ReplayFailed` if destination topics are live topics, and the settings forbid these.

    ``live`` are the live topics of the replay's events. On another cluster the same names are other
    topics, and a dry run publishes nothing.
    """
    if settings.allow_original or start.dry_run or settings.target_bootstrap != settings.kafka:
        return
    forbidden = sorted(set(topics) & set(live))
    if forbidden:
        msg = (
            f"the replay would publish to live topics of its events, {name_topics(forbidden)}, "
            "which REPLAY_ALLOW_ORIGINAL=false forbids: start a replay with another target"
        )
        raise ReplayFailed(msg)


def unknown_offsets(topics: Iterable[str], known: Handover) -> Handover:
    """Return a hand-over whose offsets `find_handover` has still to find, where not yet known."""
    named = [*known, *sorted(set(topics) - known.keys())]
    return {topic: known.get(topic) for topic in named[: MAX_HANDOVER_TOPICS + 1]}


def published_live_topics(session: Session, mapping: EventMapping) -> tuple[set[str], bool]:
    """Return the live topics of what a replay has published, and whether these are certainly all.

    A replay may end before its events are counted. Its topics then tell the live topics, unless
    the target, or a transform, names topics: then the types of the events tell them, and an event
    may have named another topic itself.
    """
    target, shards = session.start.target, [shard.progress for shard in session.shards]
    if target.topic is None and not target.topics and not session.start.transforms:
        prefix = target.prefix or ""
        topics = {name for one in shards for name in one.by_topic}
        return {name.removeprefix(prefix) for name in topics - {OTHER}}, OTHER not in topics
    types = {name for one in shards for name in one.by_type}
    return live_topics(((name, None) for name in types - {OTHER}), mapping), False


# Which offsets


def reading_time(end: datetime, now: datetime, overlap: timedelta) -> datetime:
    """Return the time from which the live records are to be read: the bound less the overlap.

    A bound in the future would leave out what is stored behind the replay's position until then:
    the present time counts instead.
    """
    try:
        return max(min(end, now) - overlap, EPOCH)
    except OverflowError:
        return EPOCH


async def find_handover(
    settings: Settings, start: Start, plan: Plan, known: Plan | None = None
) -> Plan:
    """Return the plan with the offsets of its live topics, and with a warning for what is unknown.

    ``plan.handover`` names the live topics, with the offsets that are known already. The plan
    ``known``, of an earlier step, has the time. A topic that does not exist has no partitions:
    nobody has written to it.

    The look takes ANSWER_SECONDS at most, and never fails a replay.
    """
    time = None if known is None else known.handover_time
    if time is None:
        overlap = timedelta(seconds=settings.handover_overlap_seconds)
        time = reading_time(plan.end, datetime.now(UTC), overlap)
    handover = dict([*plan.handover.items()][:MAX_HANDOVER_TOPICS])
    look = _Look(settings, time, plan.end if start.filter.end else None)
    if len(handover) < len(plan.handover):
        look.warnings.append(
            f"the events have more live topics than the {MAX_HANDOVER_TOPICS:,} that the hand-over "
            "lists"
        )
    wanted = [topic for topic, offsets in handover.items() if offsets is None]
    if wanted:
        room = MAX_HANDOVER_PARTITIONS - sum(len(one) for one in handover.values() if one)
        await look.find(wanted, room)
    return plan.model_copy(
        update={
            "handover": handover | look.offsets,
            "handover_time": time,
            "live_ids": (known.live_ids if known else {}) | look.ids,
            "warnings": (*plan.warnings, *look.warnings),
        }
    )


async def complete_handover(session: Session, settings: Settings) -> Plan | None:
    """Return a plan with only the hand-over of an ended replay, if it was not whole; else None.

    A replay may end before its events are counted, and the look before its first event may not have
    seen events of each topic. What the broker has not told before is asked again, too.
    """
    plan = session.plan
    if plan is None or session.start.dry_run or plan.handover_time is None:
        return None  # an older version has planned the replay
    is_counted = plan.counted in {"before", "beside"} and plan.matched is not None
    if is_counted and None not in plan.handover.values():
        return None
    topics, are_all = set[str](), True
    if not is_counted:
        topics, are_all = published_live_topics(session, settings.mapping)
    warning = (
        "the replay ended before its events were counted, so the hand-over has the live topics of "
        "their types only; events that name a topic themselves may have others"
    )
    wanted = Plan(
        end=plan.end,
        matched=None,
        handover=unknown_offsets(topics, plan.handover),
        warnings=() if are_all else (warning,),
    )
    return await find_handover(settings, session.start, wanted, plan)


@dataclass
class _Look:
    """A look at the live topics."""

    settings: Settings
    time: datetime
    """The offsets are those of the first records of this time, or later."""
    bound: datetime | None
    """The bound, if the command gives one: its live records may be deleted already."""
    offsets: dict[str, dict[int, int]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    async def find(self, wanted: list[str], room: int) -> None:
        """Find the offsets of some topics, with ``room`` partitions at most. Never raises."""
        settings = self.settings
        try:
            async with (
                answers(settings, settings.kafka, ANSWER_SECONDS),
                connected(settings, settings.kafka) as client,
            ):
                partitions = await self._partitions(client, wanted, room)
                if partitions:
                    await self._find_offsets(client, partitions)
        except ReplayError as error:
            missing = sorted(set(wanted) - self.offsets.keys())
            self.warnings.append(f"{UNKNOWN_HANDOVER} {name_topics(missing)}: {error}")

    async def _partitions(
        self, client: AIOKafkaClient, wanted: list[str], room: int
    ) -> list[TopicPartition]:
        """Return the partitions of the topics that exist."""
        partitions: list[TopicPartition] = []
        too_many: list[str] = []
        untold: list[str] = []
        for topic in await describe_all(client, wanted):
            if topic.error_code == UnknownTopicOrPartitionError.errno:
                self.offsets[topic.name] = {}
            elif topic.error_code == TopicAuthorizationFailedError.errno:
                untold.append(f"{topic.name!r} (no right to see it: add the ACL DESCRIBE)")
            elif topic.error_code:
                untold.append(f"{topic.name!r} ({for_code(topic.error_code).__name__})")
            elif len(partitions) + topic.partitions > room:
                too_many.append(topic.name)
            else:
                self.ids |= {topic.name: topic.topic_id} if topic.topic_id else {}
                partitions += [TopicPartition(topic.name, one) for one in range(topic.partitions)]
        if untold:
            named = few(untold, MAX_NAMED_TOPICS)
            cluster = cluster_name(self.settings, self.settings.kafka)
            self.warnings.append(f"{UNKNOWN_HANDOVER} {named}, on {cluster}")
        if too_many:
            self.warnings.append(
                f"{UNKNOWN_HANDOVER} {name_topics(sorted(too_many))}: it lists "
                f"{MAX_HANDOVER_PARTITIONS:,} partitions at most"
            )
        return partitions

    async def _find_offsets(self, client: AIOKafkaClient, partitions: list[TopicPartition]) -> None:
        milliseconds = int(self.time.timestamp() * 1000)
        # The ends first: a record that comes between two questions lies behind its end.
        ends = await list_offsets(client, dict.fromkeys(partitions, LATEST))
        firsts = await list_offsets(client, dict.fromkeys(partitions, milliseconds))
        beginnings = await list_offsets(client, dict.fromkeys(partitions, EARLIEST))
        deleted: set[str] = set()
        for tp in partitions:
            first, timestamp = firsts[tp]
            offset, beginning = ends[tp][0] if first < 0 else first, beginnings[tp][0]
            self.offsets.setdefault(tp.topic, {})[tp.partition] = offset
            if self.bound and 0 < beginning == offset:
                is_later = first < 0 or timestamp >= self.bound.timestamp() * 1000
                deleted |= {tp.topic} if is_later else set()
        if deleted:
            self.warnings.append(
                "the hand-over may have a gap: the oldest records of "
                f"{name_topics(sorted(deleted))} are deleted (retention), and live records from "
                "the bound on may be among them. Replay with a later end"
            )


# The header of the end


def handover_header(handover: Handover, prefix: str | None, topic: str) -> bytes | None:
    """Return the header ``replay-handover`` of the ``end`` records of a topic, as JSON.

    The header has the offsets of all live topics. If these are more than MAX_HEADER_BYTES, the
    header has those of the live topic whose name, behind the target's prefix, is the topic's. None
    if these are too large, too, or if there are no live topics.
    """
    own = topic.removeprefix(prefix or "")
    parts: tuple[Mapping[str, Any], ...] = (
        handover,
        {own: handover[own]} if own in handover and topic == (prefix or "") + own else {},
    )
    for part in parts:
        text = json.dumps(part, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        if part and len(text) <= MAX_HEADER_BYTES:
            return text
    return None
