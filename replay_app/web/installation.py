"""The installation: which workers there are, and which event types and fields its store holds."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from aiohttp import web

from replay_app import __version__
from replay_app.commands import Start, parse_command
from replay_app.event_types import look_at_types
from replay_app.exceptions import ReplayError
from replay_app.members import find_members
from replay_app.store import StoreUnavailable
from replay_app.web.access import CALLER
from replay_app.web.answers import Installation, You
from replay_app.web.shared import ApiView, json_answer, shared_of

if TYPE_CHECKING:
    from replay_app.context import WorkerContext
    from replay_app.event_types import StoredTypes
    from replay_app.members import Member
    from replay_app.tokens import Caller

FRESH_SECONDS = 2.0
"""How long an answer of the broker is given to further clients."""
TYPES_FRESH_SECONDS = 30.0
"""How long a look at the store is given to further clients. A look reads a few hundred events."""
MAX_LOOKS = 100
"""Looks that a worker remembers."""
SOURCE_MEMBERS = ("database", "collection", "mapping")


class Looks:
    """What this worker has found out for its clients, so that many of them cost one look."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._members_lock, self._types_lock = asyncio.Lock(), asyncio.Lock()
        self._members: tuple[Member, ...] = ()
        self._trouble: str | None = None
        self._members_until = 0.0
        self._types: dict[str, tuple[float, StoredTypes]] = {}
        """By the body of a source: until when the look is fresh (monotonic seconds), and what the
        look has found."""

    async def installation(self, caller: Caller) -> Installation:
        """Return the workers, and what they work on. A silent broker is a part of the answer."""
        async with self._members_lock:
            if time.monotonic() > self._members_until:
                await self._find_members()
        settings = self._context.settings
        return Installation(
            workers=self._members,
            trouble=self._trouble,
            store=f"{settings.mongo_database}.{settings.mongo_collection}",
            cluster=settings.kafka,
            target_cluster=settings.target_bootstrap,
            version=__version__,
            environment=settings.environment,
            allow_original=settings.allow_original,
            you=You(name=caller.name, role=caller.role, target_prefixes=caller.target_prefixes),
        )

    async def _find_members(self) -> None:
        context = self._context
        try:
            self._members = await find_members(context.settings, context.topics.work.name)
            self._trouble = None
        except ReplayError as error:
            self._members, self._trouble = (), str(error)
        self._members_until = time.monotonic() + FRESH_SECONDS

    async def types(self, start: Start) -> StoredTypes:
        """Return the types and fields of a replay's source.

        Raises
        ------
        ReplayFailed
            When this worker may not read the source, or when there is no such collection.
        Unavailable
            When the store does not answer.

        """
        key = start.source.model_dump_json()
        async with self._types_lock:
            until, known = self._types.get(key, (0.0, None))
            if known is None or time.monotonic() > until:
                settings, store = self._context.reads(start)
                known = await look_at_types(store, settings.mapping)
                if len(self._types) >= MAX_LOOKS:
                    self._types.clear()
                self._types[key] = time.monotonic() + TYPES_FRESH_SECONDS, known
        return known


LOOKS = web.AppKey("looks", Looks)


class Workers(ApiView):
    """The workers."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with the workers of the installation, and with what they work on."""
        installation = await request.app[LOOKS].installation(request[CALLER])
        return json_answer(installation.model_dump_json())


class Types(ApiView):
    """The event types and fields that the store holds."""

    async def get(self, request: web.Request) -> web.Response:
        """Answer with what a bounded look at the store has found."""
        source = {name: request.query[name] for name in SOURCE_MEMBERS if name in request.query}
        body = {"replay_id": "types", "filter": {"all": True}, "source": source}
        start = parse_command(json.dumps(body).encode(), fixed={"command": "start"})
        trouble = await shared_of(request).context.store_health.problem()
        if isinstance(trouble, StoreUnavailable):  # the look would wait longer to say so
            raise trouble
        if not isinstance(start, Start):  # `command` is fixed above
            raise TypeError(start)
        found = await request.app[LOOKS].types(start)
        return json_answer(found.model_dump_json())
