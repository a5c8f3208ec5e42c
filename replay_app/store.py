"""The event store: the only user of motor."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

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

SERVER_SELECTION_MS = 5_000
PAGES_AHEAD = 1
"""Read while the current page is being sent; a page has at most 16 MiB."""
_TRANSIENT = (ConnectionFailure, CursorNotFound, NotPrimaryError)
_TRANSIENT_CODES = frozenset({6, 7, 89, 133, 175, 237, 9001})
"""Of a cluster in motion: host unreachable or not found, network timeout, no suitable member, query
plan or cursor killed, socket exception."""


class TimeLimitExceeded(Unavailable):
    """The store answers, but not within the time that a query was given."""


class EventStore:
    """One collection of events."""

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
            msg = f"REPLAY_MONGO is no usable MongoDB URI: {error}"
            raise InvalidSettings(msg) from error
        self._database = self._client[settings.mongo_database]
        self._collection = self._database[settings.mongo_collection]
        self.name = f"{settings.mongo_database}.{settings.mongo_collection}"

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    async def clock(self) -> datetime:
        """Return the server's time."""
        with self._errors():
            reply = await self._client.admin.command("hello")
        local: datetime = reply["localTime"]
        return local if local.tzinfo else local.replace(tzinfo=UTC)

    async def require_collection(self) -> None:
        """Check that the collection exists.

        Raises
        ------
        ReplayFailed
            When it does not: an unknown name must not pass for an empty history.

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
            raise ReplayFailed(msg)

    async def count_groups(
        self, query: Query, keys: Sequence[Any], seconds: float
    ) -> dict[tuple[Any, ...], int]:
        """Count the matching events by the values of ``keys``, aggregation expressions.

        Raises
        ------
        TimeLimitExceeded
            When it takes longer than ``seconds``.

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
        """Return the field's values in a random sample of the matching events, in BSON's order."""
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
        """Return whether there is an ascending index on exactly these fields, over all events."""
        with self._errors():
            indexes = await self._collection.index_information()
        return any(
            index["key"] == [(field, 1) for field in fields]
            and not index.keys() & {"partialFilterExpression", "sparse", "hidden"}
            for index in indexes.values()
        )

    async def plan_stages(self, query: Query, sort: Sequence[str]) -> set[str]:
        """Return the names of the stages with which the server would run a query."""
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
        """Yield the matching events in order, as pages of concatenated raw BSON documents."""
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
        """Turn the driver's errors into this program's."""
        try:
            yield
        except _TRANSIENT as error:
            msg = f"the event store {self.name!r} does not answer: {_first_line(error)}"
            raise Unavailable(msg) from error
        except ExecutionTimeout as error:
            msg = f"the event store {self.name!r} took too long: {_first_line(error)}"
            raise TimeLimitExceeded(msg) from error
        except OperationFailure as error:
            if error.code in _TRANSIENT_CODES:
                msg = f"the event store {self.name!r} does not answer: {_first_line(error)}"
                raise Unavailable(msg) from error
            msg = f"the event store {self.name!r} refused: {_first_line(error)}"
            raise ReplayFailed(msg) from error
        except PyMongoError as error:
            msg = f"the event store {self.name!r} failed: {_first_line(error)}"
            raise Unavailable(msg) from error
        except (BSONError, OverflowError) as error:
            msg = f"the query or its answer cannot be written as BSON: {_first_line(error)}"
            raise ReplayFailed(msg) from error


def _first_line(error: Exception) -> str:
    return str(error).split(", full error", 1)[0].split(", Timeout:", 1)[0][:300]


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
    """The pages of one shard, read one ahead of their use, kept open between slices.

    ``position`` is the cursor up to which its pages were consumed. A slice may use an open reader
    only if the checkpoint's cursor equals it: the checkpoint alone decides where to go on.
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
        """Whether it has given a page."""
        self._rest = b""
        self._next: bytes | Exception | None = None
        self._there = asyncio.Event()
        self._taken = asyncio.Event()
        self._task = asyncio.create_task(self._fill(store.pages(query, sort, page_events)))

    async def _fill(self, pages: AsyncGenerator[bytes, None]) -> None:
        try:
            async with contextlib.aclosing(pages):
                async for page in pages:
                    self._offer(page)
                    await self._taken.wait()
            self._offer(None)
        except Exception as error:  # noqa: BLE001 - `next` raises it; else it would wait for ever
            self._offer(error)

    def _offer(self, found: bytes | Exception | None) -> None:
        self._next = found
        self._taken.clear()
        self._there.set()

    async def ready(self) -> None:
        """Wait until `next` answers at once."""
        if not self._rest:
            await self._there.wait()

    async def next(self, seconds: float) -> bytes | None:
        """Return the next page, None at the end.

        Raises
        ------
        TimeoutError
            When it is not there in time; ask again later.
        ReplayError
            When reading failed; the reader is of no more use.

        """
        if self._rest:
            page, self._rest = self._rest, b""
            return page
        async with asyncio.timeout(seconds):
            await self._there.wait()
        found = self._next
        if isinstance(found, Exception):
            raise found
        if found is not None:
            self.has_served = True
            self._next = None
            self._there.clear()
            self._taken.set()
        return found

    def put_back(self, rest: bytes) -> None:
        """Give back the unread rest of the last page."""
        self._rest = rest

    async def close(self) -> None:
        """Stop reading ahead and close the store's cursor."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
