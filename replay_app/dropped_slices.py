"""Committed slices that Kafka has dropped.

A lone broker that is killed inside a commit may lose the marker of the slice in some partitions
(`stable_offsets`). The next slice of the same producer brings a marker for both. But if the next
transaction is aborted there, by the death of its worker for example, Kafka drops both slices. The
checkpoint says that the first slice is committed. So a shard looks for its last records after each
abort, before its next slice hides the gap.

A record was dropped if a ``read_uncommitted`` consumer gets the record and a ``read_committed``
consumer does not, although its stable offset is higher. A record that neither gets was deleted or
compacted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError

from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.stable_offsets import first_records, target_consumer

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer

    from replay_app.reports import Offsets
    from replay_app.settings import Settings
    from replay_app.stable_offsets import LostMarkers

Describe = Callable[[Iterable[str]], Awaitable[Mapping[str, Any]]]
"""Leaves out the topics that do not exist."""
Places = dict[TopicPartition, int]
"""The offset of one record in each of some partitions."""

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 15.0
"""Time between two looks at records that an open transaction hides."""


class LastSlices:
    """The looks of one partition's shards at their last committed records."""

    def __init__(self, settings: Settings, describe: Describe) -> None:
        self._settings = settings
        self._describe = describe
        self._seen: set[str] = set()
        """Keys of shards whose last records were seen since the last abort."""
        self._hidden: dict[str, _Hidden] = {}
        """By key: the records that could not be judged yet."""

    def aborted(self) -> None:
        """Let every shard look again: a transaction of this partition's producer was aborted."""
        self._seen.clear()

    def forget(self, key: str) -> None:
        """Remove what is known of a shard."""
        self._seen.discard(key)
        self._hidden.pop(key, None)

    async def require(self, key: str, offsets: Offsets) -> None:
        """Make sure that consumers see the last records of a shard, if it has not been looked at.

        ``offsets`` are those of the shard's checkpoint. Records behind an open transaction cannot
        be judged: the shard goes on, and a later call looks at them again. Nor can records of a
        topic that is gone, or that this worker may not read; for the last a warning is logged.

        Raises
        ------
        ReplayFailed
            When Kafka has dropped a record.
        Unavailable
            When the broker does not answer.

        """
        places: Places = {}
        if key not in self._seen:
            places = {
                TopicPartition(topic, partition): last
                for topic, partitions in offsets.items()
                for partition, (_, last) in partitions.items()
            }
        if hidden := self._hidden.get(key):
            if not places and time.monotonic() < hidden.due_at:
                return
            places |= hidden.places  # the older record of a partition: nothing later can hide it
        if places:
            looked = await self._judge(key, places)
            if looked.dropped:
                raise ReplayFailed(explain_dropped(looked.dropped))
            self._hidden.pop(key, None)
            if looked.hidden:
                again = time.monotonic() + LOOK_AGAIN_SECONDS
                self._hidden[key] = _Hidden(looked.hidden, again)
        self._seen.add(key)

    async def _judge(self, key: str, places: Places) -> _Look:
        topics = await self._describe({tp.topic for tp in places})
        existing = {tp: offset for tp, offset in places.items() if tp.topic in topics}
        try:
            return await _look(self._settings, existing)
        except Unavailable as error:
            if not isinstance(error.__cause__, TopicAuthorizationFailedError):
                raise
            logger.warning(
                "%s: whether consumers see the last slice is unknown: this worker may not read the "
                "destination topics: %r",
                key,
                error.__cause__,
            )
            return _Look({}, {})


@dataclass(frozen=True, slots=True)
class _Hidden:
    places: Places
    due_at: float
    """Monotonic time of the next look."""


@dataclass(frozen=True, slots=True)
class _Look:
    dropped: Places
    hidden: Places
    """Behind an open transaction: it may belong to any producer."""


def explain_dropped(dropped: Mapping[TopicPartition, int]) -> str:
    """Return which records consumers never see, and what to do."""
    named = ", ".join(
        f"partition {tp.partition} of {tp.topic!r} (offset {offset})"
        for tp, offset in sorted(dropped.items())
    )
    return (
        "the broker had lost the marker of a committed slice, and the slice was ended without it: "
        f"consumers never see the events in {named}. Start the replay again under a new replay_id"
    )


async def find_dropped_records(settings: Settings, lost_markers: LostMarkers) -> Places:
    """Return the records of slices without marker that Kafka has dropped since.

    A slice that has got its marker after all, or whose records are deleted or compacted, is not
    among them.

    Raises
    ------
    Unavailable
        When the broker does not answer.

    """
    places = {
        TopicPartition(topic, partition): offset
        for topic, partitions in lost_markers.items()
        for partition, offset in partitions.items()
    }
    return (await _look(settings, places)).dropped


async def _look(settings: Settings, places: Places) -> _Look:
    if not places:
        return _Look({}, {})
    async with target_consumer(settings, places, "read_committed") as consumer:
        stable = await consumer.end_offsets(list(places))
        hidden = {tp: offset for tp, offset in places.items() if stable[tp] <= offset}
        judged = {tp: offset for tp, offset in places.items() if tp not in hidden}
        unseen = judged.items() - (await _existing(consumer, judged)).items()
    if not unseen:
        return _Look({}, hidden)
    async with target_consumer(settings, places, "read_uncommitted") as consumer:
        return _Look(await _existing(consumer, dict(unseen)), hidden)


async def _existing(consumer: AIOKafkaConsumer, places: Places) -> Places:
    """Return the places at which the consumer gets a record."""
    found = await first_records(consumer, places)
    return {tp: record.offset for tp, record in found.items() if record.offset == places[tp]}
