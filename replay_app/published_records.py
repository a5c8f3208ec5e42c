"""The records of one replay in its topics, as a ``read_committed`` consumer gets them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from replay_app.clusters import answers
from replay_app.comparison import MAX_LISTED, Found
from replay_app.destinations import have_original_times, name_topics
from replay_app.events import is_left_out
from replay_app.exceptions import Unavailable
from replay_app.internals import fetch_at_once, give_plain_records
from replay_app.kafka_security import kafka_security
from replay_app.reports import few
from replay_app.stable_offsets import find_hidden_records, target_consumer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from aiokafka import ConsumerRecord

    from replay_app.destinations import Destination
    from replay_app.sessions import Session
    from replay_app.settings import Settings

LEAST_BEHIND = 10_000
"""Offsets behind a partition's last record that are searched for further records of the replay, at
least. A long replay is searched as far as its own records reach."""
MAX_ATTEMPTS = 1000
"""Attempts whose marks are known."""
ANSWER_SECONDS = 20.0
POLL_MS = 20
"""Longest wait of one read. A read that finds nothing but a transaction's marker lasts as long."""
SILENT_SECONDS = 60.0
"""How long the broker may give no record of a partition that has more."""
STOP_SECONDS = 5.0
MAX_NAMED_PARTITIONS = 3
EVENT_HEADERS = ("replay-original-time", "replay-delivery-id")
"""The last two headers of an event's record. Before them are those of the replay, and before these
the event's original headers."""


class Unverifiable(Exception):
    """The records cannot be compared; the message says why, and what to do."""


class Marks:
    """Tells the records of one replay from all others, by their headers."""

    def __init__(self, session: Session, *, with_timestamps: bool = False) -> None:
        self._replay_id = session.replay_id.encode()
        self._with_timestamps = with_timestamps
        start = session.start
        last = [("replay-name", start.name), ("replay-reason", start.reason)]
        rest = tuple((name, text.encode()) for name, text in last if text is not None)
        self._heads = {
            (("replay-id", self._replay_id), ("replay-attempt", str(attempt).encode()), *rest)
            for attempt in range(1, min(session.attempt, MAX_ATTEMPTS) + 1)
        }
        """The headers that are the same on all records of an attempt."""
        self._size = 2 + len(rest) + len(EVENT_HEADERS)
        """The number of headers without the original ones."""
        self.controls = 0
        """Control records of the replay."""
        self.unmarked: list[tuple[Found, str]] = []
        """The first records of the replay with wrong headers, each with what is wrong."""
        self.unmarked_count = 0

    def select(self, records: Iterable[ConsumerRecord], partition: int) -> list[Found]:
        """Return the records of the replay's events. ``partition`` is an index."""
        found = []
        heads, names, size = self._heads, EVENT_HEADERS, self._size
        for record in records:
            headers = record.headers
            own = headers if len(headers) == size else headers[-size:]
            if (
                len(own) == size
                and tuple(own[:-2]) in heads
                and (own[-2][0], own[-1][0]) == names
                and (own is headers or not any(is_left_out(name) for name, _ in headers[:-size]))
            ):
                time_, delivery_id = own[-2][1], own[-1][1] or b""
                one = self._found(record, partition, delivery_id, time_)
            else:
                odd = self._odd(record, partition)
                if odd is None:
                    continue
                one = odd
            found.append(one)
        return found

    def _odd(self, record: ConsumerRecord, partition: int) -> Found | None:
        """Return a record of the replay whose headers are wrong; None for any other record."""
        headers: dict[str, bytes | None] = dict(record.headers)
        if headers.get("replay-id") != self._replay_id:
            return None
        if "replay-control" in headers:
            self.controls += 1
            return None
        delivery_id = headers.get("replay-delivery-id") or b""
        time_ = headers.get("replay-original-time")
        found = self._found(record, partition, delivery_id, time_)
        self.unmarked_count += 1
        if len(self.unmarked) < MAX_LISTED:
            names = ", ".join(name for name, _ in record.headers)
            self.unmarked.append((found, f"its headers are not those of the replay: {names}"))
        return found

    def _found(
        self, record: ConsumerRecord, partition: int, delivery_id: bytes, time_: bytes | None
    ) -> Found:
        timestamp = record.timestamp if self._with_timestamps else 0
        return Found(
            delivery_id, partition, record.offset, record.key, record.value, time_, timestamp
        )


class PublishedRecords:
    """The records of one replay in its topics.

    Every method raises `Unavailable` when the broker does not answer, and `Unverifiable` when
    records are gone.
    """

    def __init__(
        self, settings: Settings, session: Session, topics: Mapping[str, Destination]
    ) -> None:
        self._settings = settings
        self._session = session
        self.topics = topics
        places = [
            (topic, number)
            for topic, numbers in sorted(session.offsets.items())
            for number in sorted(numbers)
        ]
        self.partitions: list[tuple[str, int]] = places
        """Topic and number of each partition, by index. Others may be appended."""
        self.open: set[int] = set()
        """Partitions that have more records."""
        self.marks = Marks(session, with_timestamps=have_original_times(topics, settings))
        self._of = [TopicPartition(*place) for place in places]
        self._ends: dict[int, int] = {}
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.target_bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="none",  # records that are deleted meanwhile must not be passed over
            enable_auto_commit=False,
            **kafka_security(settings, settings.target_bootstrap),
        )

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[PublishedRecords]:
        """Connect, look whether every record is still there, and stand before the first one."""
        try:
            async with answers(self._settings, self._settings.target_bootstrap, ANSWER_SECONDS):
                await self._consumer.start()
            await self._begin()
            yield self
        finally:
            with contextlib.suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(self._consumer.stop(), STOP_SECONDS)

    async def _begin(self) -> None:
        session, written = self._session, self._session.offsets
        self._require_listed()
        self._require_topics()
        if not self._of:
            return
        hidden = await find_hidden_records(self._settings, written, session.replay_id)
        async with answers(self._settings, self._settings.target_bootstrap, ANSWER_SECONDS):
            beginnings = await self._consumer.beginning_offsets(self._of)
            ends = await self._consumer.end_offsets(self._of)
        for index, tp in enumerate(self._of):
            first, last = written[tp.topic][tp.partition]
            behind = max(LEAST_BEHIND, last - first)
            self._ends[index] = min(ends[tp], last + 1 + behind)
        made_again = self.made_again()
        if made_again and hidden is not None:
            raise Unverifiable(made_again)
        gone = {tp for tp in self._of if beginnings[tp] > written[tp.topic][tp.partition][0]}
        if gone:
            raise Unverifiable(
                f"records of the replay are gone from {_named(gone)}: retention, or somebody, has "
                "deleted them. Only a new replay can be verified"
            )
        if hidden is not None:
            await self._require_written(
                {tp for tp in self._of if ends[tp] <= written[tp.topic][tp.partition][1]}
            )
            raise Unverifiable(f"consumers do not see all records: {hidden.explanation}")
        fetch_at_once(self._consumer)
        self._consumer.assign(self._of)
        for index, tp in enumerate(self._of):
            self._consumer.seek(tp, written[tp.topic][tp.partition][0])
            self.open.add(index)

    async def _require_written(self, short: set[TopicPartition]) -> None:
        """Refuse partitions that end before the replay's last record, whoever may see it."""
        written = self._session.offsets
        async with target_consumer(self._settings, short, "read_uncommitted") as consumer:
            ends = await consumer.end_offsets(list(short))
        new = {tp for tp in short if ends[tp] <= written[tp.topic][tp.partition][1]}
        if new:
            raise Unverifiable(
                f"the topics were deleted and created again: {_named(new)} ends before the "
                "replay's last record"
            )

    def made_again(self) -> str | None:
        """Return which topics are not those of the plan, in words; None if none are known to be."""
        planned = self._session.plan.topic_ids if self._session.plan else {}
        other = sorted(
            topic
            for topic in self._session.offsets
            if (known := self.topics[topic].topic_id) and planned.get(topic, known) != known
        )
        if not other:
            return None
        return (
            f"{name_topics(other)}: not the topics that the replay was planned with; they were "
            "deleted and created again, or REPLAY_TARGET_KAFKA names another cluster"
        )

    def _require_listed(self) -> None:
        if not self._session.lists_all_offsets:
            raise Unverifiable(
                "the session does not list the offsets of every partition: the replay has too many "
                "of them. Verify replays of fewer topics"
            )

    def _require_topics(self) -> None:
        missing = sorted(self._session.offsets.keys() - self.topics.keys())
        if missing:
            raise Unverifiable(f"the topics are deleted: {name_topics(missing)}")
        made_again = sorted(
            topic
            for topic, numbers in self._session.offsets.items()
            if max(numbers) >= self.topics[topic].partitions
        )
        if made_again:
            raise Unverifiable(
                f"the topics were deleted and created again: {name_topics(made_again)} with fewer "
                "partitions"
            )

    async def take(self, index: int, most: int) -> list[Found]:
        """Return the next records of the replay in a partition, from at most ``most`` records."""
        tp, end = self._of[index], self._ends[index]
        silent_since = time.monotonic()
        while True:
            async with answers(self._settings, self._settings.target_bootstrap, SILENT_SECONDS):
                records = await self._read(tp, most)
                # A transaction's marker has an offset too, and is no record.
                position = await self._consumer.position(tp)
            if position >= end:
                self.open.discard(index)
                self._consumer.pause(tp)
                records = [record for record in records if record.offset < end]
            if records or position >= end:
                return self.marks.select(records, index)
            if time.monotonic() - silent_since > SILENT_SECONDS:
                msg = f"Kafka gives no more records of {_named([tp])} from offset {position} on"
                raise Unavailable(msg)

    async def _read(self, tp: TopicPartition, most: int) -> list[ConsumerRecord]:
        give_plain_records(self._consumer)
        try:
            batches = await self._consumer.getmany(tp, timeout_ms=POLL_MS, max_records=most)
        except OffsetOutOfRangeError as error:
            raise Unverifiable(
                f"records of the replay were deleted from {_named([tp])} while they were read"
            ) from error
        return list(batches.get(tp, ()))


def _named(partitions: Iterable[TopicPartition]) -> str:
    named = [f"{tp.topic}[{tp.partition}]" for tp in sorted(partitions)]
    return few(named, MAX_NAMED_PARTITIONS)
