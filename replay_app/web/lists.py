"""The list of replays: filters, search, and pages that never leave out a replay under way."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Self, get_args

from aiohttp import web
from pydantic import Field, TypeAdapter, ValidationError

from replay_app import __version__
from replay_app.commands import REPLAY_ID, REPLAY_ID_RULE, Time
from replay_app.exceptions import InvalidCommand
from replay_app.sessions import MAX_LISTED
from replay_app.states import TERMINAL, State
from replay_app.web.shared import require_every_session, shared_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.sessions import Session

DEFAULT_LIMIT = 100
MAX_TEXT = 200
"""Characters of a text that is searched."""
CURSOR = re.compile(r"([0-9]{1,17})~([A-Za-z0-9][A-Za-z0-9._-]{0,127})~([0-9]{1,17})\Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: TypeAdapter[datetime] = TypeAdapter(Annotated[Time, Field()])

Place = tuple[int, str]
"""Where a replay stands in the list: microseconds since 1970 of its start, and its id."""


@dataclass(frozen=True)
class ListQuery:
    """The parameters of a list."""

    states: frozenset[str]
    chain: str | None
    text: str
    since: datetime | None
    limit: int
    before: Place | None
    """Behind which replay the page begins. None: it is the first page."""
    as_of: datetime
    """When the first page was asked for. It had each replay that had not ended then."""

    @classmethod
    def of(cls, request: web.Request, now: datetime) -> Self:
        """Read the parameters of a request that has come at this time.

        Raises
        ------
        InvalidCommand
            A parameter is wrong.

        """
        query = request.query
        states = frozenset(query.getall("state", []))
        if unknown := states - set(get_args(State)):
            msg = f"state: {', '.join(sorted(unknown))} is not one of {', '.join(get_args(State))}"
            raise InvalidCommand(msg)
        chain = query.get("chain")
        if chain is not None and not REPLAY_ID.match(chain):
            msg = f"chain: {chain!r:.160} is no chain's name: {REPLAY_ID_RULE}"
            raise InvalidCommand(msg)
        text = query.get("text", "")
        if len(text) > MAX_TEXT:
            msg = f"text: at most {MAX_TEXT} characters are searched"
            raise InvalidCommand(msg)
        before, as_of = _cursor(query.get("cursor"), now)
        return cls(
            states=states,
            chain=chain,
            text=text.casefold(),
            since=_time(query.get("since")),
            limit=_limit(query.get("limit", str(DEFAULT_LIMIT))),
            before=before,
            as_of=as_of,
        )

    def takes(self, session: Session) -> bool:
        """Whether the filters let a session through."""
        return (
            (not self.states or session.state in self.states)
            and (self.chain is None or session.start.chain == self.chain)
            and (self.since is None or session.created_at >= self.since)
            and (not self.text or any(self.text in one.casefold() for one in _texts(session)))
        )

    def page(self, sessions: Iterable[Session]) -> tuple[list[Session], str | None, int]:
        """Return a page, newest first, the cursor of the next one, and how many there are in all.

        The first page has every replay that has not ended, beyond the limit. Later pages leave
        these out, also when they have ended meanwhile.
        """
        every = sorted(filter(self.takes, sessions), key=_place_of, reverse=True)
        rest, before = every, self.before
        if before is not None:
            rest = [one for one in every if _place_of(one) < before and self._had_ended(one)]
        page, left = rest[: self.limit], rest[self.limit :]
        following = None
        if page and any(map(self._had_ended, left)):
            following = "{}~{}~{}".format(*_place_of(page[-1]), _microseconds(self.as_of))
        if before is None:
            page += [one for one in left if not self._had_ended(one)]
        return page, following, len(every)

    def _had_ended(self, session: Session) -> bool:
        """Whether a replay had ended when the first page was asked for."""
        if session.state not in TERMINAL:
            return False
        return session.ended_at is None or session.ended_at <= self.as_of


async def list_replays(request: web.Request) -> web.Response:
    """Answer with a page of replays, and with the newest refused commands."""
    shared = shared_of(request)
    board, query = shared.context.board, ListQuery.of(request, datetime.now(UTC))
    if query.chain is not None:
        # Of a chain, a part looks like the whole: as if the chain had ended already.
        require_every_session(shared)
    sessions, following, total = query.page(board.sessions.values())
    rejections = sorted(board.rejections.values(), key=lambda r: r.at, reverse=True)[: query.limit]
    # Clients ask again and again: an unchanged answer is not sent again.
    versions = [(s.replay_id, s.revision, s.updated_at) for s in sessions]
    # A new version may answer the same sessions with other members. The cursor has the time of this
    # request, and an older cursor leads to the same page.
    told = (__version__, versions, [r.key for r in rejections], following is None, total)
    tag = hashlib.sha256(repr(told).encode()).hexdigest()
    headers = {"ETag": f'"{tag}"'}
    if any(etag.value == tag for etag in request.if_none_match or ()):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    replays = ",".join(session.answer() for session in sessions)
    refused = ",".join(rejection.model_dump_json() for rejection in rejections)
    cursor = "null" if following is None else f'"{following}"'
    body = f'{{"replays":[{replays}],"rejections":[{refused}],"next":{cursor},"total":{total}}}'
    return web.Response(text=body, content_type="application/json", headers=headers)


def _place_of(session: Session) -> Place:
    return _microseconds(session.created_at), session.replay_id


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // datetime.resolution


def _texts(session: Session) -> Iterable[str]:
    """Yield what a search looks at."""
    start = session.start
    yield session.replay_id
    yield from (one for one in (start.name, start.reason, start.requested_by, start.chain) if one)
    target = start.target
    yield from (one for one in (target.topic, target.prefix, *target.topics.values()) if one)
    yield from start.filter.event_types


def _limit(text: str) -> int:
    limit = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else 0
    if not 1 <= limit <= MAX_LISTED:
        msg = f"limit: {text!r} is not a number from 1 to {MAX_LISTED}"
        raise InvalidCommand(msg)
    return limit


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return _TIME.validate_python(text)
    except ValidationError as error:
        msg = f"since: {text!r:.60} is no time, such as 2026-01-31T00:00:00Z"
        raise InvalidCommand(msg) from error


def _cursor(text: str | None, now: datetime) -> tuple[Place | None, datetime]:
    """Return behind which replay a page begins, and when the first page was asked for."""
    if text is None:
        return None, now
    found = CURSOR.match(text)
    if found is None:
        msg = "cursor: take the member next of the page before, as it is"
        raise InvalidCommand(msg)
    as_of = min(_EPOCH + int(found[3]) * datetime.resolution, now)
    return (int(found[1]), found[2]), as_of
