"""The event store in MongoDB. Only this module imports motor."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections import Counter
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pymongo
from bson.errors import BSONError
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCursor
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    CursorNotFound,
    ExecutionTimeout,
    InvalidURI,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
)

from replay_app.exceptions import InvalidSettings, ReplayFailed, Unavailable
from replay_app.internals import PageCursor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from replay_app.queries import Query
    from replay_app.settings import Settings

SERVER_SELECTION_MS = 4_000
"""How long the driver looks for a server before a call fails. A client then has its answer within
5 seconds."""
CHECK_SECONDS = 4.0
CHECK_GRACE_SECONDS = 0.5
"""How much longer `EventStore.check` waits for the driver, which knows better what is wrong."""
_TRANSIENT_ERRORS = (ConnectionFailure, CursorNotFound, NotPrimaryError)
_AUTHENTICATION_FAILED = 18
_TRANSIENT_CODES = frozenset({6, 7, 89, 133, 175, 237, 9001})
"""Errors of a cluster that changes its members: host unreachable, host not found, network timeout,
no suitable member, query plan killed, cursor killed, socket exception."""


class StoreUnavailable(Unavailable):
    """The store does not answer; the worker may be well."""


class NoCollection(ReplayFailed):
    """The collection does not exist: the store is empty, or a name is wrong."""


class TimeLimitExceeded(StoreUnavailable):
    """The store answers, but needs more time for a query than the caller allows."""


class EventStore:
    """One collection of events.

    Every method raises `Unavailable` when the store does not answer, and `ReplayFailed` when the
    store refuses.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            self._client: Any = AsyncIOMotorClient(
                settings.mongo.get_secret_value(),
                serverSelectionTimeoutMS=SERVER_SELECTION_MS,
                appname="event-replay",
                tz_aware=True,
                uuidRepresentation="standard",
            )
        except (InvalidURI, ConfigurationError, ValueError) as error:
            msg = f"REPLAY_MONGO is not a usable MongoDB URI: {error}"
            raise InvalidSettings(msg) from error
        self._database = self._client[settings.mongo_database]
        self._collection = self._database[settings.mongo_collection]
        self.name = f"{settings.mongo_database}.{settings.mongo_collection}"

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    async def clock(self) -> datetime:
        """Return the server's time, in UTC."""
        with self._errors():
            reply = await self._client.admin.command("hello")
        local: datetime = reply["localTime"]
        return local if local.tzinfo else local.replace(tzinfo=UTC)

    async def require_collection(self) -> None:
        """Check that the collection exists.

        Raises
        ------
        NoCollection
            When the collection does not exist: a wrong name must not look like an empty history.

        """
        with self._errors():
            names = await self._database.list_collection_names(
                filter={"name": self._collection.name}
            )
        if self._collection.name not in names:
            msg = (
                f"the event store has no collection {self.name!r}: check REPLAY_MONGO_DATABASE "
                "and REPLAY_MONGO_COLLECTION"
            )
            raise NoCollection(msg)

    async def check(self, seconds: float = CHECK_SECONDS) -> None:
        """Find out within about ``seconds`` whether the events could be read.

        Raises
        ------
        StoreUnavailable
            When the store does not answer in time.
        NoCollection
            When the collection does not exist.
        ReplayFailed
            When the store refuses, such as a wrong password.

        """
        try:
            # Only the driver's own limit frees its thread.
            with pymongo.timeout(seconds):
                async with asyncio.timeout(seconds + CHECK_GRACE_SECONDS):
                    await self.require_collection()
        except TimeoutError as error:
            msg = f"the event store {self.name!r} does not answer: nothing within {seconds:g} s"
            raise StoreUnavailable(msg) from error

    async def count_groups(
        self, query: Query, keys: Sequence[Any], seconds: float
    ) -> dict[tuple[Any, ...], int]:
        """Return the number of matching events for each combination of the values of ``keys``.

        ``keys`` are aggregation expressions.

        Raises
        ------
        TimeLimitExceeded
            When counting takes longer than ``seconds``.

        """
        names = {f"k{number}": key for number, key in enumerate(keys)}
        pipeline = [{"$match": query}, {"$group": {"_id": names, "count": {"$sum": 1}}}]
        with self._errors():
            rows = await self._collection.aggregate(
                pipeline, maxTimeMS=math.ceil(seconds * 1000), allowDiskUse=True
            ).to_list(None)
        counts: Counter[tuple[Any, ...]] = Counter()
        for row in rows:  # added up, because to Python true, 1 and 1.0 are one value
            counts[tuple(_hashable(row["_id"].get(name)) for name in names)] += row["count"]
        return dict(counts)

    async def has_any(self, query: Query) -> bool:
        """Return whether any event matches."""
        with self._errors():
            return await self._collection.find_one(query, projection=["_id"]) is not None

    async def sample(self, query: Query, field: str, size: int, seconds: float) -> list[Any]:
        """Return the field's values in a random sample of the matching events, in BSON's order.

        Raises
        ------
        TimeLimitExceeded
            When sampling takes longer than ``seconds``.

        """
        pipeline: list[dict[str, Any]] = [
            # As the first stage, $sample reads no more than it returns.
            *([{"$match": query}] if query else []),
            {"$sample": {"size": size}},
            {"$project": {"_id": 0, "value": f"${field}"}},
            {"$sort": {"value": 1}},
        ]
        with self._errors():
            rows = await self._collection.aggregate(
                pipeline, maxTimeMS=math.ceil(seconds * 1000), allowDiskUse=True
            ).to_list(None)
        return [row.get("value") for row in rows]

    async def has_index(self, fields: Sequence[str]) -> bool:
        """Return whether an ascending index on exactly these fields covers all events."""
        with self._errors():
            indexes = await self._collection.index_information()
        return any(
            index["key"] == [(field, 1) for field in fields]
            and not index.keys() & {"partialFilterExpression", "sparse", "hidden"}
            for index in indexes.values()
        )

    async def plan_stages(self, query: Query, sort: Sequence[str]) -> set[str]:
        """Return the names of the stages in the server's plan for a query."""
        command = {
            "find": self._collection.name,
            "filter": query,
            "sort": dict.fromkeys(sort, 1),
        }
        with self._errors():
            reply = await self._database.command(
                {"explain": command, "verbosity": "queryPlanner"},
                codec_options=self._collection.codec_options,
            )
        stages: set[str] = set()
        _collect_stages(reply.get("queryPlanner", reply), stages)
        return stages

    async def pages(
        self, query: Query, sort: Sequence[str], events: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield the matching events in order, as pages of concatenated raw BSON documents.

        A page has at most ``events`` documents, and at most 16 MiB.
        """
        with self._errors():
            find = PageCursor(
                self._collection.delegate,
                query,
                sort=[(field, 1) for field in sort],
                batch_size=events,
                allow_disk_use=True,
            )
            cursor = AsyncIOMotorCursor(find, self._collection)
            try:
                async for page in cursor:
                    if page:
                        yield page
            finally:
                with contextlib.suppress(PyMongoError):
                    await cursor.close()

    @contextlib.contextmanager
    def _errors(self) -> Any:
        """Turn the driver's errors into errors of this program."""
        try:
            yield
        except _TRANSIENT_ERRORS as error:
            msg = f"the event store {self.name!r} does not answer: {_first_line(error)}"
            raise StoreUnavailable(msg) from error
        except ExecutionTimeout as error:
            msg = f"the event store {self.name!r} took too long: {_first_line(error)}"
            raise TimeLimitExceeded(msg) from error
        except OperationFailure as error:
            if error.code in _TRANSIENT_CODES:
                msg = f"the event store {self.name!r} does not answer: {_first_line(error)}"
                raise StoreUnavailable(msg) from error
            msg = f"the event store {self.name!r} refused: {_first_line(error)}"
            if error.code == _AUTHENTICATION_FAILED:
                msg += "; check the user and the password in REPLAY_MONGO"
            raise ReplayFailed(msg) from error
        except PyMongoError as error:
            msg = f"the event store {self.name!r} failed: {_first_line(error)}"
            raise StoreUnavailable(msg) from error
        except (BSONError, OverflowError) as error:
            msg = f"the query or its answer cannot be written as BSON: {_first_line(error)}"
            raise ReplayFailed(msg) from error


def _first_line(error: Exception) -> str:
    text = re.split(r", full error|, Timeout:| \(configured timeouts:", str(error), maxsplit=1)[0]
    return text[:300]


def _hashable(value: Any) -> Any:
    return value if isinstance(value, Hashable) else str(value)


def _collect_stages(plan: Any, stages: set[str]) -> None:
    if isinstance(plan, dict):
        if isinstance(plan.get("stage"), str):
            stages.add(plan["stage"])
        for name, part in plan.items():
            if name != "rejectedPlans":
                _collect_stages(part, stages)
    elif isinstance(plan, list):
        for part in plan:
            _collect_stages(part, stages)


class PageReader:
    """Reads the pages of one shard, one page ahead, and stays open between slices.

    ``position`` is the cursor up to which slices have consumed the pages. A slice may use an open
    reader only if ``position`` equals the checkpoint's cursor: the checkpoint alone decides where
    a slice begins.
    """

    def __init__(
        self,
        store: EventStore,
        query: Query,
        sort: Sequence[str],
        page_events: int,
        position: str | None,
    ) -> None:
        self.position = position
        self.page_events = page_events
        """The most documents of a page."""
        self.has_served = False
        """Whether `next` has returned a page."""
        self._rest = b""
        """What `put_back` gave back."""
        self._next: bytes | Exception | None = None
        """The page that was read ahead, or the error that ended reading. None after the last page,
        and while ``_arrival`` is not set."""
        self._arrival = asyncio.Event()
        """Set while `next` can answer."""
        self._demand = asyncio.Event()
        """Set when `next` takes a page: the page after may be read."""
        self._task = asyncio.create_task(self._fill(store.pages(query, sort, page_events)))

    async def _fill(self, pages: AsyncGenerator[bytes, None]) -> None:
        try:
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
