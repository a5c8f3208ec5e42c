"""Access: the bearer token and its role, and a guard against foreign web pages in a browser."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web
from yarl import URL

from replay_app.commands import NOT_TO_ORIGINAL
from replay_app.tokens import Caller
from replay_app.web.console import PAGES, STATIC_PREFIX, wants_frame
from replay_app.web.problems import Problem

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from replay_app.commands import Start
    from replay_app.settings import Settings
    from replay_app.tokens import Tokens

OPEN_PATHS = frozenset({*PAGES, "/healthz", "/readyz", "/openapi.json"})
"""Paths without data: the probes, the frame of the console, the API's description."""
READS = frozenset({"GET", "HEAD"})
_GUARDED_READS = ("/types", "/document")
"""How the paths end of the reads that need a token also where reads are public: they show values of
stored events."""
READING_POSTS = frozenset({"/plans"})
"""Paths to which a caller who may only read may post, too: nothing is changed there."""
CALLER = web.RequestKey("caller", Caller)
"""Who asks. Every request has this before a view sees the request."""
_ANYBODY = Caller()
"""Who asks a worker without tokens, which only this machine reaches."""
_READER = Caller(role="read")
"""Who asks without a token for what needs none."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def require_access(settings: Settings, tokens: Tokens) -> Middleware:
    """Return the middleware that raises a `Problem` for a request that is not allowed."""
    hosts = _LOOPBACK | {settings.web_host, URL(settings.canonical_url).host or "localhost"}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not tokens.are_required:
            _require_own_host(request, hosts)
        _require_own_page(request)
        caller = find_caller(request, tokens, public_reads=settings.public_reads)
        _require_role(request, caller)
        request[CALLER] = caller
        return await handler(request)

    return check


def passed_on(request: web.Request) -> dict[str, str]:
    """Return the header by which the next worker knows the caller, too.

    A header that opens nothing is not passed on: it may hold anything.
    """
    if request[CALLER] is _ANYBODY or request[CALLER] is _READER:
        return {}
    return {"Authorization": request.headers["Authorization"]}


def require_target(caller: Caller, start: Start) -> None:
    """Refuse a start, or a command for what it has started, beyond the caller's targets (403)."""
    fault = caller.fault_of(start)
    if fault is not None:
        prefixes = ", ".join(map(repr, caller.target_prefixes or ()))
        raise Problem(
            HTTPStatus.FORBIDDEN,
            f"replay {start.replay_id!r}: the token of {caller.name!r} allows only replays to "
            f"topics that surely begin with {prefixes}: {fault}",
        )


def require_consent(start: Start, settings: Settings) -> None:
    """Refuse a start to original topics without consent, or where nobody can consent (422)."""
    if not start.reaches_originals:
        return
    if not settings.allow_original:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"replay {start.replay_id!r}: {NOT_TO_ORIGINAL}"
        )
    if not start.to_original:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"replay {start.replay_id!r} may publish to the original topics of its events, which "
            'live consumers read: if this is meant, add "to_original": true (--to-original); else '
            "name target.prefix or target.topic, or make it a dry run",
        )


def is_still_allowed(request: web.Request, tokens: Tokens, *, public_reads: bool) -> bool:
    """Whether a request that was let in has the same caller now: the tokens may have changed."""
    try:
        return find_caller(request, tokens, public_reads=public_reads) == request[CALLER]
    except Problem:
        return False


def find_caller(request: web.Request, tokens: Tokens, *, public_reads: bool) -> Caller:
    """Return who asks. Raises `Problem` (401) for what needs another token."""
    if not tokens.are_required:
        return _ANYBODY
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    caller = tokens.find(given.strip()) if scheme.lower() == "bearer" else None
    if caller is not None:
        return caller
    if _is_open(request, public_reads=public_reads):
        return _READER
    raise Problem(
        HTTPStatus.UNAUTHORIZED,
        "send 'Authorization: Bearer TOKEN' with a token of REPLAY_TOKENS_FILE, or with the token "
        "of REPLAY_API_TOKEN",
    )


def is_guarded(path: str) -> bool:
    """Whether a read needs a token also where reads are public."""
    return path.endswith(_GUARDED_READS)


def _is_open(request: web.Request, *, public_reads: bool) -> bool:
    if request.method not in READS:
        return False
    if request.path in OPEN_PATHS or request.path.startswith(STATIC_PREFIX):
        return True
    return wants_frame(request) or (public_reads and not is_guarded(request.path))


def _require_role(request: web.Request, caller: Caller) -> None:
    is_read = request.method in READS or (
        request.method == "POST" and request.path in READING_POSTS
    )
    if caller.role == "read" and not is_read:
        raise Problem(
            HTTPStatus.FORBIDDEN,
            f"the token of {caller.name!r} has the role read, and may only look: a command needs "
            "a token with the role operate",
        )


def _require_own_page(request: web.Request) -> None:
    """Refuse a request of another site's page.

    Browsers send the page's origin with every command and with every read whose answer a script may
    see. A read without an origin, such as that of a foreign page's image, has Sec-Fetch-Site. A
    link from elsewhere may open the page.
    """
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise Problem(HTTPStatus.FORBIDDEN, f"pages of {origin} may not ask {request.host}")
    is_link = (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
    )
    if request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"} and not is_link:
        raise Problem(HTTPStatus.FORBIDDEN, f"pages of other origins may not ask {request.host}")


def _require_own_host(request: web.Request, hosts: frozenset[str]) -> None:
    """Refuse foreign host names: a foreign page may let its name resolve to 127.0.0.1."""
    try:
        host = URL(f"//{request.host}").host
    except ValueError:
        host = None
    if host not in hosts:
        raise Problem(
            HTTPStatus.FORBIDDEN,
            f"a worker without tokens answers as localhost only, not as {request.host}; set "
            "REPLAY_TOKENS_FILE or REPLAY_API_TOKEN, or set REPLAY_CANONICAL_URL to this name",
        )
