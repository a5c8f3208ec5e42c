"""The open readers of one partition of ``replay.work``: at most OPEN_READERS, taken in turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from replay_app.queries import after, all_of, compile_filter, from_json
from replay_app.store import EventStore, PageReader
from replay_app.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay_app.commands import Start
    from replay_app.reports import ShardPlan
    from replay_app.sessions import Session
    from replay_app.settings import Settings

OPEN_READERS = 4
"""Readers of a partition that are open at the same time. Each holds up to two pages."""

_closing: set[asyncio.Task[None]] = set()
"""References to the tasks that close readers: Python may collect a task without a reference."""


class Readers:
    """The readers of a partition's shards, by the key of the shard's tokens."""

    def __init__(
        self, settings: Settings, store: EventStore, partition: int, wake: Callable[[str], bool]
    ) -> None:
        self._settings = settings
        self._work = Topics.of(settings).work
        self._store = store
        self._partition = partition
        self._wake = wake
        """Lets a shard that waits for a reader try again. Returns False if no token of the shard is
        delayed."""
        self._readers: dict[str, PageReader] = {}
        self._drafts: dict[str, tuple[ShardPlan, PageReader]] = {}
        """Readers opened for drafts. No slice has used them yet."""
        self._queue: dict[str, None] = {}
        """The shards that wait for a reader, in the order of their requests."""

    def take(
        self, key: str, start: Start, shard: ShardPlan, cursor: str | None
    ) -> PageReader | None:
        """Return a reader for a shard that stands at ``cursor``.

        None if every slot belongs to a shard that has not served a page yet. Such a shard keeps its
        slot: if many shards took the slots from each other, the store would begin query after
        query, and no shard would reach its first page.
        """
        draft, reader = self._drafts.pop(key, (shard, None))
        reader = self._readers.pop(key, reader)
        if reader is not None and (draft != shard or reader.position != cursor):
            _close_later(reader)
            reader = None
        if reader is None:
            if not self._make_room():
                self._queue.setdefault(key)
                return None
            reader = self._open(start, shard, cursor)
        self._queue.pop(key, None)
        self._readers[key] = reader  # the most recently used reader stands last
        return reader

    def get(self, key: str) -> PageReader | None:
        """Return a shard's reader; None if the shard has no open reader."""
        return self._readers.get(key)

    def is_waiting(self, key: str) -> bool:
        """Whether a shard waits for a reader."""
        return key in self._queue

    def wake_next(self) -> None:
        """Wake the next shard that waits for a reader."""
        while self._queue:
            key = next(iter(self._queue))
            del self._queue[key]
            if self._wake(key):
                return

    def on_session(self, session: Session) -> None:
        """Open readers for the draft of a plan, while the plan step still counts events.

        The store then searches the first pages and counts at the same time. Readers of a draft
        that is no longer wanted are closed.
        """
        drafts = {f"{session.replay_id}/{n}": shard for n, shard in enumerate(session.draft)}
        is_wanted = session.state in {"planning", "running"}
        for key, (shard, reader) in list(self._drafts.items()):
            is_own = key.rpartition("/")[0] == session.replay_id
            if is_own and not (is_wanted and shard == drafts.get(key, shard)):
                del self._drafts[key]
                _close_later(reader)
        for key, shard in drafts.items():
            is_here = self._work.partition(key) == self._partition
            has_room = self._count() < OPEN_READERS and not self._queue
            if is_here and has_room and key not in self._drafts:
                self._drafts[key] = shard, self._open(session.start, shard, None)

    async def drop(self, key: str) -> None:
        """Close a shard's reader, if the shard has one."""
        reader = self._readers.pop(key, None)
        if reader is not None:
            await reader.close()
            self.wake_next()

    async def close(self) -> None:
        """Close all readers."""
        readers = [*self._readers.values(), *(reader for _, reader in self._drafts.values())]
        self._readers.clear()
        self._drafts.clear()
        await asyncio.gather(*(reader.close() for reader in readers))

    def _count(self) -> int:
        return len(self._readers) + len(self._drafts)

    def _make_room(self) -> bool:
        """Return whether a slot is free, after closing a reader if all slots are taken.

        Readers of drafts are closed first, then the least recently used reader that has served a
        page.
        """
        if self._count() < OPEN_READERS:
            return True
        if self._drafts:
            _, reader = self._drafts.pop(next(iter(self._drafts)))
            _close_later(reader)
            return True
        served = next((key for key, one in self._readers.items() if one.has_served), None)
        if served is not None:
            _close_later(self._readers.pop(served))
        return served is not None

    def _open(self, start: Start, shard: ShardPlan, cursor: str | None) -> PageReader:
        settings = self._settings
        query = all_of(
            compile_filter(start.filter, settings.mapping),
            from_json(shard.match),
            after(cursor, shard.sort),
        )
        page_events = min(settings.page_events, start.max_events or settings.page_events)
        return PageReader(self._store, query, shard.sort, page_events, cursor)


def _close_later(reader: PageReader) -> None:
    task = asyncio.create_task(reader.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
