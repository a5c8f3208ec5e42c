"""Access: the bearer token, and a guard against foreign web pages in the user's browser."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import web
from yarl import URL

from replay_app.web.problems import Problem

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from replay_app.settings import Settings

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
"""Paths without data: the probes, the frame of the page, the API's description."""
STATIC_PREFIX = "/static/"
READS = frozenset({"GET", "HEAD"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def require_access(settings: Settings) -> Middleware:
    """Return the middleware that raises a `Problem` for a request that is not allowed."""
    token = settings.api_token.get_secret_value().encode() if settings.api_token else None
    hosts = _LOOPBACK | {settings.web_host, URL(settings.canonical_url).host or "localhost"}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is None:
            _require_own_host(request, hosts)
        if request.method not in READS:
            _require_own_origin(request)
        if token is not None and not _is_open(request, public_reads=settings.public_reads):
            _require_token(request, token)
        return await handler(request)

    return check


def _is_open(request: web.Request, *, public_reads: bool) -> bool:
    if request.method not in READS:
        return False
    return public_reads or request.path in OPEN_PATHS or request.path.startswith(STATIC_PREFIX)


def _require_token(request: web.Request, token: bytes) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token)
    if scheme.lower() != "bearer" or not same:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "send 'Authorization: Bearer TOKEN' with the token of REPLAY_API_TOKEN",
        )


def _require_own_origin(request: web.Request) -> None:
    """Refuse a request of another site's page; browsers always send the page's origin."""
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise Problem(
            HTTPStatus.FORBIDDEN, f"pages of {origin} may not give commands to {request.host}"
        )


def _require_own_host(request: web.Request, hosts: frozenset[str]) -> None:
    """Refuse foreign host names: a foreign page may let its name resolve to 127.0.0.1."""
    try:
        host = URL(f"//{request.host}").host
    except ValueError:
        host = None
    if host not in hosts:
        raise Problem(
            HTTPStatus.FORBIDDEN,
            f"a worker without REPLAY_API_TOKEN answers as localhost only, not as {request.host}; "
            "set REPLAY_API_TOKEN, or set REPLAY_CANONICAL_URL to this name",
        )
