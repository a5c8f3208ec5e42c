"""The records that a replay must have published, made again from the stored events.

The readers, the queries and the encoder are those of the replay itself, and so is the order.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from replay_app.comparison import Expected
from replay_app.destinations import batch_limits, have_original_times
from replay_app.encoders import encode_spec, make_encoder
from replay_app.exceptions import ReplayFailed
from replay_app.internals import records_of
from replay_app.pages import count_documents, split_page
from replay_app.partitioner import partition_of
from replay_app.queries import advance
from replay_app.readers import Readers
from replay_app.ties import tie_runs
from replay_app.transforms import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replay_app.destinations import Destination
    from replay_app.pages import EncodedPage, EncodeSpec, PageEncoder
    from replay_app.readers import PageReader
    from replay_app.reports import Plan
    from replay_app.sessions import Session
    from replay_app.settings import Settings
    from replay_app.store import EventStore

OPEN_READERS = 32
"""Shards that are read at the same time."""
SMALLEST_SHARE = 8
"""Of many shards, each is read in pages of this part of the usual size: memory stays the same."""
MAX_FAILED_IDS = 10_000
"""Failing events whose ids are kept."""


class StoredRecords:
    """The records that the store says, shard by shard.

    `next` raises `Unavailable` when the store does not answer, and `ReplayFailed` when the store
    refuses, or when the collection is another one than in the plan.
    """

    def __init__(
        self,
        settings: Settings,
        store: EventStore,
        session: Session,
        topics: Mapping[str, Destination],
        partitions: list[tuple[str, int]],
    ) -> None:
        """``partitions`` are those of the topics, by index. Further ones are appended."""
        plan = session.plan
        if plan is None:
            msg = f"replay {session.replay_id!r} has no plan"
            raise ReplayFailed(msg)
        self._session = session
        self._source = plan.source
        self._shards = plan.shards
        self._partitions = partitions
        self._lock = threading.Lock()
        self._indexes = {place: index for index, place in enumerate(partitions)}
        # Events without a usable time fail: they have no records, and no index finds them.
        self.open = {number for number, shard in enumerate(plan.shards) if not shard.is_untimed}
        """Shards that have more events."""
        self.failed = 0
        """Events that cannot be encoded."""
        self.failed_ids: set[str] = set()
        """The ids of the first MAX_FAILED_IDS of them."""
        self.grown = grown_since(plan, topics)
        """Topics with more partitions than planned: the planned number, and the present one."""
        share = max(1, min(len(self.open), SMALLEST_SHARE))
        pages = {"page_events": max(1, settings.page_events // share)}
        reads = settings.model_copy(update=pages), store
        self._readers = Readers(lambda _start: reads, lambda _key: False, OPEN_READERS)
        self._reads_ahead = len(self.open) < OPEN_READERS
        self._ahead: dict[int, asyncio.Task[list[Expected] | None]] = {}
        self._cursors: dict[int, str | None] = {}
        self._places: defaultdict[int, int] = defaultdict(int)
        self._left = session.start.max_events
        self._with_timestamps = have_original_times(topics, settings)
        specs = {
            shard.sort: self._spec(settings, topics, plan, shard.sort) for shard in plan.shards
        }
        self._encoders: dict[tuple[str, ...], PageEncoder] = {
            sort: make_encoder(spec, settings.encoder) for sort, spec in specs.items()
        }
        self._transforms = next((spec.transforms for spec in specs.values()), None)

    def _spec(
        self,
        settings: Settings,
        topics: Mapping[str, Destination],
        plan: Plan,
        sort: tuple[str, ...],
    ) -> EncodeSpec:
        limits = batch_limits(topics, settings.max_record_bytes)
        counts = {name: plan.partitions.get(name, one.partitions) for name, one in topics.items()}
        # One partition: the records of a grown topic then come in the store's order, and the
        # partition of each is computed here.
        partitions = counts | dict.fromkeys(self.grown, 1)
        spec = encode_spec(settings, self._session, sort, partitions, limits)
        # A limit on batches counts their compressed bytes. Without one, packing is for nothing.
        codec = spec.compression if limits else "none"
        return replace(spec, stop_at_failure=False, compression=codec)

    async def close(self) -> None:
        """Stop reading."""
        for task in self._ahead.values():
            task.cancel()
        await asyncio.gather(*self._ahead.values(), return_exceptions=True)
        await self._readers.close()

    async def next(self, lane: int) -> list[Expected]:
        """Return the records of a shard's next page, and leave ``open`` after the last page."""
        task = self._ahead.pop(lane, None)
        records = await (self._page(lane) if task is None else task)
        if records is None:
            self.open.discard(lane)
            return []
        if self._reads_ahead:
            self._ahead[lane] = asyncio.create_task(self._page(lane))
        return records

    async def _page(self, lane: int) -> list[Expected] | None:
        """Return the records of a shard's next page; None after the last page."""
        if self._left == 0:
            return None
        reader, page = await self._read(lane)
        if page is None:
            await self._readers.drop(self._key(lane))
            return None
        if self._left is not None:  # one shard: a number of events needs the global order
            page, _ = split_page(page, self._left)
            self._left -= count_documents(page)
        sort = self._shards[lane].sort
        parts = list(tie_runs(page, sort)) if reader.may_tie else [(page, False)]
        cursor, records = self._cursors.get(lane), list[Expected]()
        for part, is_tie in parts:
            encode = functools.partial(self._encode, lane, part, is_tie)
            encoded, more = await run_in_thread(self._transforms, encode)
            cursor = advance(cursor, encoded.cursor, encoded.unplaced)
            records += [*more, *self._failures(lane, encoded)]
            self._places[lane] += encoded.read
        reader.position = self._cursors[lane] = cursor
        return records

    async def _read(self, lane: int) -> tuple[PageReader, bytes | None]:
        return await self._readers.next_page(
            self._key(lane),
            self._session.start,
            self._shards[lane],
            self._cursors.get(lane),
            self._source,
        )

    def _key(self, lane: int) -> str:
        return f"{self._session.replay_id}/{lane}"

    def _encode(
        self,
        lane: int,
        page: bytes,
        is_tie: bool,  # noqa: FBT001 - the arguments of a thread
    ) -> tuple[EncodedPage, list[Expected]]:
        encoded = self._encoders[self._shards[lane].sort].encode(page, 0)
        first = self._places[lane]
        records: list[Expected] = []
        counts: defaultdict[tuple[str, int], int] = defaultdict(int)
        for batch in encoded.batches:
            place = (batch.topic, batch.partition)
            grown = self.grown.get(batch.topic)
            index, begin = self._index(*place), first + counts[place]
            found = records_of(batch.builder)
            counts[place] += len(found)
            for number, (timestamp, key, value, (time_, delivery_id)) in enumerate(found, begin):
                if grown is not None:
                    index = self._index(batch.topic, partition_of(key, grown[1]))
                records.append(
                    Expected(
                        delivery_id,
                        lane,
                        first if is_tie else number,
                        index,
                        key,
                        value,
                        time_,
                        timestamp if self._with_timestamps else 0,
                    )
                )
        return encoded, records

    def _failures(self, lane: int, encoded: EncodedPage) -> list[Expected]:
        """Count the failed events. Return records for good events whose topic is not known."""
        records = []
        for failure in encoded.failures:
            if failure.missing_topic is None:
                self.failed += 1
                if len(self.failed_ids) < MAX_FAILED_IDS and failure.event_id is not None:
                    self.failed_ids.add(failure.event_id)
                continue
            # The replay did not know the topic: the event has come later.
            delivery_id = f"{self._session.replay_id}:{failure.event_id}".encode()
            index, place = self._index(failure.missing_topic, 0), self._places[lane]
            records.append(Expected(delivery_id, lane, place, index, None, None, None))
        return records

    def _index(self, topic: str, partition: int) -> int:
        """Return the index of a partition. One without a record of the replay is appended."""
        place = (topic, partition)
        with self._lock:  # pages of several shards are encoded in threads
            index = self._indexes.get(place)
            if index is None:
                index = self._indexes[place] = len(self._partitions)
                self._partitions.append(place)
        return index


def grown_since(plan: Plan, topics: Mapping[str, Destination]) -> dict[str, tuple[int, int]]:
    """Return the topics that have more partitions than planned: the planned number, and now's."""
    return {
        name: (plan.partitions[name], topic.partitions)
        for name, topic in topics.items()
        if 0 < plan.partitions.get(name, 0) < topic.partitions
    }
