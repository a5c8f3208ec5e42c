"""The stored document of one event of a replay, for a person who asks why the event has failed."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from replay_app.commands import Filter
from replay_app.exceptions import InvalidCommand, ReplayFailed
from replay_app.pages import people_json
from replay_app.queries import compile_filter
from replay_app.redaction import Redaction
from replay_app.store import StoreUnavailable, TimeLimitExceeded
from replay_app.web.answers import StoredDocument
from replay_app.web.problems import Problem
from replay_app.web.shared import ApiView, json_answer, require_session, require_usable, shared_of

if TYPE_CHECKING:
    from aiohttp import web

    from replay_app.context import WorkerContext
    from replay_app.sessions import Session

LOOK_SECONDS = 5.0
"""How long the store may look for the event."""
MAX_EVENT_ID = 1000
MAX_CHARACTERS = 200_000
"""Of a document that is shown. A stored event has 16 MiB at most."""


class DocumentView(ApiView):
    """The stored document of an event."""

    async def get(self, request: web.Request, replay_id: str) -> web.Response:
        """Answer with the document, as extended JSON, from any worker."""
        require_usable(replay_id)
        event_id = request.query.get("event_id", "")
        if not 1 <= len(event_id) <= MAX_EVENT_ID:
            msg = f"event_id: name an event, with 1 to {MAX_EVENT_ID} characters"
            raise InvalidCommand(msg)
        shared = shared_of(request)
        session = await require_session(shared, replay_id)
        document = await _find(shared.context, session, event_id)
        if document is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"the store has no event {event_id!r:.200} now")
        rules = session.start.redact
        redaction = Redaction(rules, b"") if rules else None  # people see masks for hashes
        written = await asyncio.to_thread(people_json, document, redaction)
        if written is None:
            msg = (
                f"the event {event_id!r:.200} cannot be decoded, so what the replay redacts cannot "
                "be masked: who may read the store prints the event with replay-app events"
            )
            raise ReplayFailed(msg)
        text = written.decode(errors="replace")
        answer = StoredDocument(
            replay_id=replay_id,
            event_id=event_id,
            document=text[:MAX_CHARACTERS],
            is_cut=len(text) > MAX_CHARACTERS,
        )
        return json_answer(answer.model_dump_json())


async def _find(context: WorkerContext, session: Session, event_id: str) -> bytes | None:
    """Return the event's document; None if the store has no such event.

    Raises
    ------
    StoreUnavailable
        When the store does not answer in time.

    """
    settings, store = context.reads(session.start)
    query = compile_filter(Filter(event_ids=(event_id,)), settings.mapping)
    pipeline: list[dict[str, Any]] = [{"$match": query}, {"$limit": 1}]
    try:
        found = await store.raw_documents(pipeline, LOOK_SECONDS)
    except TimeLimitExceeded as error:
        msg = (
            f"{store.name} does not find the event within {LOOK_SECONDS:g} s: create an index on "
            "the id of the events (docs/mapping.md)"
        )
        raise StoreUnavailable(msg) from error
    return found[0] if found else None
