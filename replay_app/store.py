"""The event store in MongoDB. Only this module imports motor."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import uuid
from collections import Counter
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import bson
import pymongo
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCursor
from pymongo import ReadPreference
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
from pymongo.read_concern import ReadConcern

from replay_app.elements import UNDEFINED, values_at
from replay_app.events import STRICT
from replay_app.exceptions import InvalidSettings, ReplayFailed, Unavailable
from replay_app.internals import PageCursor
from replay_app.pages import DECODE_ERRORS, next_page_events, readable
from replay_app.settings import uri_secrets

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

    from replay_app.queries import Query
    from replay_app.settings import Settings

SERVER_SELECTION_MS = 4_000
"""How long the driver looks for a server before a call fails. A client then has its answer within
5 seconds."""
CHECK_SECONDS = 4.0
CHECK_GRACE_SECONDS = 0.5
"""How much longer `EventStore.check` waits for the driver, which knows better what is wrong."""
CATCH_UP_MS = 10_000
"""How long a read waits for a secondary to reach what the primary had when the read came."""
_AWARE = STRICT.with_options(tz_aware=True)
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


class Identity(NamedTuple):
    """What a collection is."""

    uuid: str
    """The same as long as the collection is not dropped, also after a rename. Empty: a view, or a
    store that has none."""
    may_tie: bool
    """Whether several events may have the same ``_id``. An ordinary collection has a unique index
    on ``_id``. A view and a time series collection have no such index, and in a sharded cluster the
    index is unique within each shard only."""
    collates: bool
    """Whether texts have another order than that of their bytes."""


def _connect(settings: Settings) -> Any:
    """Return a client of the event store. It connects with the first query."""
    uri = settings.mongo.get_secret_value()
    try:
        return AsyncIOMotorClient(
            uri,
            serverSelectionTimeoutMS=SERVER_SELECTION_MS,
            appname="event-replay",
            tz_aware=True,
            uuidRepresentation="standard",
        )
    except (InvalidURI, ConfigurationError, ValueError) as error:
        # The driver's words may quote any part of a malformed URI.
        told = "" if uri_secrets(uri) else f": {error}"
        msg = (
            f"REPLAY_MONGO is not a usable MongoDB URI ({type(error).__name__}{told}); write "
            "mongodb://USER:PASSWORD@HOST:27017, and % with two digits for each other "
            "character than letters and digits in user and password"
        )
        raise InvalidSettings(msg) from None


class EventStore:
    """One collection of events.

    Every method raises `Unavailable` when the store does not answer, and `ReplayFailed` when the
    store refuses.
    """

    def __init__(self, settings: Settings, client: Any = None) -> None:
        """Take the collection that the settings name; ``client`` are connections that exist."""
        self._client = _connect(settings) if client is None else client
        self._database = self._client[settings.mongo_database]
        self._collection = self._database[settings.mongo_collection]
        self._reads_secondaries = self._client.read_preference != ReadPreference.PRIMARY
        self._raw = self._collection.codec_options.with_options(document_class=RawBSONDocument)
        """For answers with values of events: the driver would refuse a whole answer for one text
        that is not UTF-8."""
        self.name = f"{settings.mongo_database}.{settings.mongo_collection}"

    def at(self, settings: Settings) -> EventStore:
        """Return the collection that other settings name, over the same connections."""
        return EventStore(settings, self._client)

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
                f"the event store has no collection {self.name!r}: check the source of the "
                "command, or REPLAY_MONGO_DATABASE and REPLAY_MONGO_COLLECTION"
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

    async def identify(self) -> Identity:
        """Return what the collection is."""
        with self._errors():
            hello = await self._client.admin.command("hello")
            listed = await self._database.list_collections(filter={"name": self._collection.name})
            found = await listed.to_list(1)
        kind = found[0] if found else {}
        stored = kind.get("info", {}).get("uuid")
        return Identity(
            # The driver may give the bytes, whatever the client's uuidRepresentation is.
            uuid=str(uuid.UUID(bytes=stored) if isinstance(stored, bytes) else stored or ""),
            may_tie=(
                hello.get("msg") == "isdbgrid"  # a router of a sharded cluster
                or kind.get("type", "collection") != "collection"
                or "timeseries" in kind.get("options", {})
            ),
            collates="collation" in kind.get("options", {}),
        )

    async def count_groups(
        self, query: Query, keys: Sequence[Any], seconds: float
    ) -> dict[tuple[Any, ...], int]:
        """Return the number of matching events for each combination of the values of ``keys``.

        ``keys`` are aggregation expressions. What Python cannot hold, or cannot use as a key, stays
        a `StoredValue`.

        Raises
        ------
        TimeLimitExceeded
            When counting takes longer than ``seconds``.

        """
        names = {f"k{number}": key for number, key in enumerate(keys)}
        pipeline = [{"$match": query}, {"$group": {"_id": names, "count": {"$sum": 1}}}]
        rows = await self._aggregate(pipeline, seconds, codec_options=self._raw)
        counts: Counter[tuple[Any, ...]] = Counter()
        for row in rows:  # added up, because to Python true, 1 and 1.0 are one value
            group = tuple(_group_value(row, f"_id.{name}") for name in names)
            counts[group] += _value_at(row, "count")
        return dict(counts)

    async def time_spans(
        self, query: Query, keys: Sequence[Any], field: str, seconds: float
    ) -> dict[tuple[Any, ...], tuple[Any, Any]]:
        """Return the lowest and the highest value of a field, for each combination of ``keys``.

        ``keys`` are aggregation expressions; the values are as stored. What Python cannot hold, or
        cannot use as a key, stays a `StoredValue`.

        Raises
        ------
        TimeLimitExceeded
            When this takes longer than ``seconds``.

        """
        names = {f"k{number}": key for number, key in enumerate(keys)}
        span = {"low": {"$min": f"${field}"}, "high": {"$max": f"${field}"}}
        pipeline = [{"$match": query}, {"$group": {"_id": names, **span}}]
        rows = await self._aggregate(pipeline, seconds, codec_options=self._raw)
        return {
            tuple(_group_value(row, f"_id.{name}") for name in names): (
                _value_at(row, "low"),
                _value_at(row, "high"),
            )
            for row in rows
        }

    async def estimate(self, seconds: float) -> int:
        """Return about how many events the collection has, of any kind.

        MongoDB keeps this number for a collection. Other stores, and MongoDB for a view, count.

        Raises
        ------
        TimeLimitExceeded
            When the store needs longer than ``seconds``.

        """
        with self._errors():
            found: int = await self._collection.estimated_document_count(
                maxTimeMS=math.ceil(seconds * 1000)
            )
        return found

    async def sample(self, query: Query, field: str, size: int, seconds: float) -> list[Any]:
        """Return the field's values in a random sample of the matching events, in BSON's order.

        What Python cannot hold stays a `StoredValue`. A lagging secondary may answer: a sample is
        a guess anyway.

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
            cursor = self._collection.with_options(codec_options=self._raw).aggregate(
                pipeline, maxTimeMS=math.ceil(seconds * 1000)
            )
            rows: list[Any] = await cursor.to_list(None)
        return [_value_at(row, "value") for row in rows]

    async def documents(
        self, pipeline: Sequence[dict[str, Any]], seconds: float
    ) -> list[dict[str, Any]]:
        """Return the few documents of a pipeline, each as `readable` shows it.

        Raises
        ------
        TimeLimitExceeded
            When the store needs longer than ``seconds``.

        """
        return [readable(document) for document in await self.raw_documents(pipeline, seconds)]

    async def raw_documents(
        self, pipeline: Sequence[dict[str, Any]], seconds: float, max_bytes: int | None = None
    ) -> list[bytes]:
        """Return the few documents of a pipeline as BSON; raise as `documents` does.

        With ``max_bytes``, the first documents that have as many bytes together, or more by one.
        """
        documents: list[bytes] = []

        def add(row: Any) -> bool:
            documents.append(bytes(row.raw))
            return max_bytes is None or sum(map(len, documents)) < max_bytes

        await self._aggregate(pipeline, seconds, add, codec_options=self._raw)
        return documents

    async def indexes(self) -> list[dict[str, Any]]:
        """Return the indexes as MongoDB describes them, each with ``name`` and ``key``."""
        with self._errors():
            return [
                {"name": name, **index, "key": dict(index["key"])}
                for name, index in (await self._collection.index_information()).items()
            ]

    async def has_index(self, fields: Sequence[str]) -> bool:
        """Return whether an ascending index on exactly these fields covers all events."""
        return any(index_serves(index, fields) for index in await self.indexes())

    async def indexed_values(self, field: str, seconds: float) -> list[Any]:
        """Return the distinct values of a field that an index begins with.

        The list is empty without such an index. With the index MongoDB reads one of its keys for
        each value.

        Raises
        ------
        TimeLimitExceeded
            When the store needs longer than ``seconds``.

        """
        with self._errors():
            indexes = await self._collection.index_information()
            # A hashed index, for example, does not keep the values.
            if not any(index["key"][0] in {(field, 1), (field, -1)} for index in indexes.values()):
                return []
            values: list[Any] = await self._collection.distinct(
                field, maxTimeMS=math.ceil(seconds * 1000)
            )
        return values

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

        A page has at most ``events`` documents, and at most 16 MiB. Pages of large documents soon
        have about PAGE_BYTES.
        """
        most = events
        with self._errors():
            async with self._causal() as (collection, session):
                find = PageCursor(
                    collection.delegate,
                    query,
                    sort=[(field, 1) for field in sort],
                    batch_size=events,
                    allow_disk_use=True,
                    session=session and session.delegate,
                )
                cursor = AsyncIOMotorCursor(find, collection)
                try:
                    async for page in cursor:
                        events = next_page_events(events, page, most)
                        find.next_batch(events)
                        if page:
                            yield page
                finally:
                    with contextlib.suppress(PyMongoError):
                        await cursor.close()

    async def _aggregate(
        self,
        pipeline: Sequence[dict[str, Any]],
        seconds: float,
        add: Callable[[Any], bool] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Return the rows of a pipeline, or give them to ``add`` until it wants no more."""
        rows: list[Any] = []
        with self._errors():
            async with self._causal() as (collection, session):
                cursor = collection.with_options(**options).aggregate(
                    pipeline,
                    session=session,
                    maxTimeMS=math.ceil(seconds * 1000),
                    allowDiskUse=True,
                )
                if add is None:
                    rows = await cursor.to_list(None)
                else:
                    try:
                        async for row in cursor:
                            if not add(row):
                                break
                    finally:
                        await cursor.close()
        return rows

    @contextlib.asynccontextmanager
    async def _causal(self) -> AsyncGenerator[tuple[Any, Any]]:
        """Give the collection, and the session of a read that sees all that the primary has now.

        Where secondaries are read, the read waits until the secondary that answers has reached the
        primary's present operation time. None instead of a session: the primary is read, or the
        server is no replica set.

        Raises
        ------
        Unavailable
            When a secondary does not get there within CATCH_UP_MS.

        """
        if not self._reads_secondaries:
            yield self._collection, None
            return
        async with await self._client.start_session(causal_consistency=True) as session:
            # To the primary, as all commands are: the answer sets the session's operation time.
            await self._client.admin.command("ping", session=session)
            if session.operation_time is None:
                yield self._collection, None
                return
            # What a majority has is never rolled back.
            collection = self._collection.with_options(read_concern=ReadConcern("majority"))
            try:
                await collection.find_one(
                    {}, projection=["_id"], session=session, max_time_ms=CATCH_UP_MS
                )
            except ExecutionTimeout as error:
                msg = (
                    f"the event store {self.name!r} is read from a secondary (readPreference in "
                    f"REPLAY_MONGO) that lags behind the primary by more than "
                    f"{CATCH_UP_MS / 1000:g} s"
                )
                raise Unavailable(msg) from error
            yield collection, session

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


def index_serves(index: Mapping[str, Any], fields: Sequence[str]) -> bool:
    """Return whether an index is ascending on exactly these fields, and covers all events."""
    return [*index["key"].items()] == [(field, 1) for field in fields] and not (
        index.keys() & {"partialFilterExpression", "sparse", "hidden"}
    )


def _first_line(error: Exception) -> str:
    text = re.split(r", full error|, Timeout:| \(configured timeouts:", str(error), maxsplit=1)[0]
    return text[:300]


def _value_at(row: RawBSONDocument, path: str) -> Any:
    """Return the value at a path of an answer; None if the answer does not have the field.

    What Python cannot hold stays a `StoredValue`: a text that is not UTF-8, a date outside the
    years 1 to 9999, ``undefined``.
    """
    *_, stored = values_at(bytes(row.raw), path)
    if stored is None or stored.kind == UNDEFINED:
        return stored
    try:
        value = bson.decode(stored.under(b""), codec_options=_AWARE)[""]
    except DECODE_ERRORS:
        return stored
    return stored if isinstance(value, DatetimeMS) else value


def _group_value(row: RawBSONDocument, path: str) -> Any:
    """Return `_value_at`, and a `StoredValue` also for what Python cannot use as a key."""
    value = _value_at(row, path)
    if isinstance(value, Hashable):
        return value
    *_, stored = values_at(bytes(row.raw), path)
    return stored


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
