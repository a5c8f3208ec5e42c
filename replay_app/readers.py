"""The page reader, and the open readers of one partition of ``replay.work``.

At most OPEN_READERS are open, and shards take them in turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from replay_app.queries import after, all_of, compile_filter, from_json, up_to
from replay_app.sources import require_same_source, with_uuid
from replay_app.store import StoreUnavailable
from replay_app.ties import untorn_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from replay_app.commands import Start
    from replay_app.queries import Query
    from replay_app.reports import ShardPlan
    from replay_app.settings import Settings
    from replay_app.store import EventStore

PAGE_SECONDS = 120.0
"""How long the store may take for a page of `Readers.next_page`. The first page may need a sort of
all events."""
AWAY_SECONDS = 60.0
"""How long the store may be away meanwhile."""
TRY_AGAIN_SECONDS = 1.0
OPEN_READERS = 4
"""Readers of a partition that are open at the same time. Each holds up to two pages."""

_closing: set[asyncio.Task[None]] = set()
"""References to the tasks that close readers: Python may collect a task without a reference."""


class PageReader:
    """Reads the pages of one shard, one page ahead, and stays open between slices.

    ``position`` is the cursor up to which slices have consumed the pages. A slice may use an open
    reader only if ``position`` equals the checkpoint's cursor: the checkpoint alone decides where
    a slice begins.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what a reader reads, and from where
        self,
        store: EventStore,
        query: Query,
        sort: Sequence[str],
        page_events: int,
        position: str | None,
        source: Mapping[str, str] | None = None,
    ) -> None:
        """``source`` is what the replay was planned with."""
        self.position = position
        self.page_events = page_events
        """The most documents of a page."""
        self.has_served = False
        """Whether `next` has returned a page."""
        self.may_tie = False
        """Whether events may have the same sort values. Known with the first page. Pages then end
        with a whole tie, and may have up to twice ``page_events`` documents."""
        self._rest = b""
        """What `put_back` gave back."""
        self._next: bytes | Exception | None = None
        """The page that was read ahead, or the error that ended reading. None after the last page,
        and while ``_arrival`` is not set."""
        self._arrival = asyncio.Event()
        """Set while `next` can answer."""
        self._demand = asyncio.Event()
        """Set when `next` takes a page: the page after may be read."""
        self._task = asyncio.create_task(self._fill(store, query, sort, source or {}))

    async def _fill(
        self, store: EventStore, query: Query, sort: Sequence[str], source: Mapping[str, str]
    ) -> None:
        try:
            identity = await store.identify()
            require_same_source(source, with_uuid({}, identity.uuid))
            self.may_tie = identity.may_tie
            pages = store.pages(query, sort, self.page_events)
            if self.may_tie:
                pages = untorn_pages(pages, sort)
            async with contextlib.aclosing(pages):
                async for page in pages:
                    self._offer(page)
                    await self._demand.wait()
            self._offer(None)
        except Exception as error:  # noqa: BLE001 - `next` raises the error; else `next` would wait for ever
            self._offer(error)

    def _offer(self, found: bytes | Exception | None) -> None:
        self._next = found
        self._demand.clear()
        self._arrival.set()

    async def ready(self) -> None:
        """Wait until `next` can answer at once."""
        if not self._rest:
            await self._arrival.wait()

    async def next(self, seconds: float) -> bytes | None:
        """Return the next page; None after the last page.

        Raises
        ------
        TimeoutError
            When no page comes within ``seconds``. The caller may ask again.
        ReplayError
            When reading failed. The caller must close the reader.

        """
        if self._rest:
            page, self._rest = self._rest, b""
            return page
        async with asyncio.timeout(seconds):
            await self._arrival.wait()
        found = self._next
        if isinstance(found, Exception):
            raise found
        if found is not None:
            self.has_served = True
            self._next = None
            self._arrival.clear()
            self._demand.set()
        return found

    def put_back(self, rest: bytes) -> None:
        """Give back the unread rest of the last page: `next` returns the rest first."""
        self._rest = rest

    async def close(self) -> None:
        """Stop reading ahead and close the store's cursor."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class Readers:
    """The readers of a partition's shards, by the key of the shard's tokens."""

    def __init__(
        self,
        reads: Callable[[Start], tuple[Settings, EventStore]],
        wake: Callable[[str], bool],
        most: int = OPEN_READERS,
    ) -> None:
        """Make readers for the settings and the collection that ``reads`` returns for a replay.

        ``most`` readers are open at the same time.
        """
        self._most = most
        self._reads = reads
        self._wake = wake
        """Lets a shard that waits for a reader try again. Returns False if no token of the shard is
        delayed."""
        self._readers: dict[str, PageReader] = {}
        self._queue: dict[str, None] = {}
        """The shards that wait for a reader, in the order of their requests."""

    def take(
        self,
        key: str,
        start: Start,
        shard: ShardPlan,
        cursor: str | None,
        source: Mapping[str, str] | None = None,
    ) -> PageReader | None:
        """Return a reader for a shard that stands at ``cursor``, of a replay with this source.

        None if every slot belongs to a shard that has not served a page yet. Such a shard keeps its
        slot: if many shards took the slots from each other, the store would begin query after
        query, and no shard would reach its first page.
        """
        reader = self._readers.pop(key, None)
        if reader is not None and reader.position != cursor:
            _close_later(reader)
            reader = None
        if reader is None:
            if not self._make_room():
                self._queue.setdefault(key)
                return None
            reader = self._open(start, shard, cursor, source)
        self._queue.pop(key, None)
        self._readers[key] = reader  # the most recently used reader stands last
        return reader

    async def next_page(
        self,
        key: str,
        start: Start,
        shard: ShardPlan,
        cursor: str | None,
        source: Mapping[str, str] | None = None,
    ) -> tuple[PageReader, bytes | None]:
        """Return a shard's reader and its next page; None after the last page.

        A store that is away for a moment is asked again, from the cursor on.

        Raises
        ------
        StoreUnavailable
            When the store sends no page within PAGE_SECONDS, or is away for AWAY_SECONDS.

        """
        away_since: float | None = None
        while True:
            reader = self.take(key, start, shard, cursor, source)
            if reader is None:  # every reader waits for its first page: only with a new reader
                msg = "no reader is free"
                raise RuntimeError(msg)
            try:
                return reader, await reader.next(PAGE_SECONDS)
            except TimeoutError as error:
                msg = f"the event store sends no page within {PAGE_SECONDS:g} s"
                raise StoreUnavailable(msg) from error
            except StoreUnavailable:
                now = time.monotonic()
                away_since = away_since or now
                if now - away_since > AWAY_SECONDS:
                    raise
                await self.drop(key)
                await asyncio.sleep(TRY_AGAIN_SECONDS)

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

    async def drop(self, key: str) -> None:
        """Close a shard's reader, if the shard has one."""
        reader = self._readers.pop(key, None)
        if reader is not None:
            await reader.close()
            self.wake_next()

    async def close(self) -> None:
        """Close all readers."""
        readers = [*self._readers.values()]
        self._readers.clear()
        await asyncio.gather(*(reader.close() for reader in readers))

    def _make_room(self) -> bool:
        """Return whether a slot is free, after closing a reader if all slots are taken.

        The least recently used reader that has served a page is closed.
        """
        if len(self._readers) < self._most:
            return True
        served = next((key for key, one in self._readers.items() if one.has_served), None)
        if served is not None:
            _close_later(self._readers.pop(served))
        return served is not None

    def _open(
        self,
        start: Start,
        shard: ShardPlan,
        cursor: str | None,
        source: Mapping[str, str] | None = None,
    ) -> PageReader:
        settings, store = self._reads(start)
        query = all_of(
            compile_filter(start.filter, settings.mapping),
            from_json(shard.match),
            up_to(shard.until, settings.mapping.field_timestamp),
            after(cursor, shard.sort),
        )
        page_events = min(settings.page_events, start.max_events or settings.page_events)
        return PageReader(store, query, shard.sort, page_events, cursor, source)


def _close_later(reader: PageReader) -> None:
    task = asyncio.create_task(reader.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
