"""The open readers of one partition of ``replay.work``: few at a time, in turns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from replay_app.queries import after, all_of, compile_filter, from_json
from replay_app.store import EventStore, PageReader
from replay_app.topics import partition_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from replay_app.commands import Start
    from replay_app.progress import ShardPlan
    from replay_app.sessions import Session
    from replay_app.settings import Settings

OPEN_READERS = 4
"""Each holds up to two pages. Further shards take turns."""

_closing: set[asyncio.Task[None]] = set()
"""Keeps a reference to closing readers: a task without one may be collected."""


class Readers:
    """The readers of a partition's shards; a shard is known by its token's key."""

    def __init__(
        self, settings: Settings, store: EventStore, partition: int, wake: Callable[[str], bool]
    ) -> None:
        self._settings = settings
        self._store = store
        self._partition = partition
        self._wake = wake
        """Lets a shard that waits for a reader try again; False: it does not wait."""
        self._readers: dict[str, PageReader] = {}
        self._warm: dict[str, tuple[ShardPlan, PageReader]] = {}
        """Opened for drafts; no slice has used them yet."""
        self._queue: dict[str, None] = {}
        """The shards that wait for a reader, in the order in which they came."""

    def take(
        self, key: str, start: Start, shard: ShardPlan, cursor: str | None
    ) -> PageReader | None:
        """Return a reader of a shard that stands at ``cursor``; an open one, if it does.

        None where others have all of them and none of those has had its turn, which lasts until
        it has given a page. A query that was given up before would have cost the store its work,
        and among many shards none would ever come to its first page.
        """
        drafted, found = self._warm.pop(key, (shard, None))
        found = self._readers.pop(key, found)
        if found is not None and (drafted != shard or found.position != cursor):
            _close_later(found)
            found = None
        if found is None:
            if not self._make_room():
                self._queue.setdefault(key)
                return None
            found = self._open(start, shard, cursor)
        self._queue.pop(key, None)
        self._readers[key] = found  # behind those that were used less recently
        return found

    def get(self, key: str) -> PageReader | None:
        """Return a shard's reader, if it has one."""
        return self._readers.get(key)

    def is_waiting(self, key: str) -> bool:
        """Whether a shard waits for a reader."""
        return key in self._queue

    def had_turn(self) -> None:
        """Let the next shard in the queue have a reader."""
        while self._queue:
            key = next(iter(self._queue))
            del self._queue[key]
            if self._wake(key):
                return

    def on_session(self, session: Session) -> None:
        """Open readers, as far as there is room, while the events of a plan are being counted.

        So the store finds the first page and the number of events at the same time. Those that
        were opened for nothing are closed.
        """
        drafts = {f"{session.replay_id}/{n}": shard for n, shard in enumerate(session.draft)}
        is_wanted = session.state in {"planning", "running"}
        for key, (shard, reader) in list(self._warm.items()):
            is_own = key.rpartition("/")[0] == session.replay_id
            if is_own and not (is_wanted and shard == drafts.get(key, shard)):
                del self._warm[key]
                _close_later(reader)
        for key, shard in drafts.items():
            is_here = partition_of(key.encode(), self._settings.partitions) == self._partition
            has_room = self._count() < OPEN_READERS and not self._queue
            if is_here and has_room and key not in self._warm:
                self._warm[key] = shard, self._open(session.start, shard, None)

    async def drop(self, key: str) -> None:
        """Close a shard's reader, if it has one."""
        reader = self._readers.pop(key, None)
        if reader is not None:
            await reader.close()
            self.had_turn()

    async def close(self) -> None:
        """Close all."""
        readers = [*self._readers.values(), *(reader for _, reader in self._warm.values())]
        self._readers.clear()
        self._warm.clear()
        await asyncio.gather(*(reader.close() for reader in readers))

    def _count(self) -> int:
        return len(self._readers) + len(self._warm)

    def _make_room(self) -> bool:
        """Close a reader, if all are open, that is a draft's or has had its turn."""
        if self._count() < OPEN_READERS:
            return True
        if self._warm:
            _, reader = self._warm.pop(next(iter(self._warm)))
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
