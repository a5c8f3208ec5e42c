"""The view of chains: checks a chain as a whole, then starts what of it is not started yet."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aiohttp import web

from replay_app import crashpoints
from replay_app.chains import MAX_CHAIN_BYTES, Chain, differences, read_chain
from replay_app.commands import first_of, read_members
from replay_app.exceptions import Unavailable
from replay_app.web.access import CALLER, require_consent, require_target
from replay_app.web.problems import Problem
from replay_app.web.server import read_body
from replay_app.web.shared import ApiView, Shared, require_every_session, shared_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.commands import Start
    from replay_app.tokens import Caller

CATCH_UP_SECONDS = 2.0
"""How long the board may take to read the newest sessions before a chain is compared with them."""
SEND_SECONDS = 20.0
"""How long all commands of a chain may take. The command line waits longer for the answer."""
SEEN_SECONDS = 3.0
"""How long the answer waits for the sessions of what it has started."""
MAX_AT_ONCE = 50
"""Commands of one level that are sent at the same time."""


class Chains(ApiView):
    """Chains of replays."""

    async def post(self, request: web.Request) -> web.Response:
        """Start the replays of a chain that do not exist yet.

        Everything is checked before anything is sent. Parents are sent before their children, so
        what a crash leaves behind is a chain without its end: the same request starts the rest.
        """
        body = await read_body(request, MAX_CHAIN_BYTES)
        # In a thread: a chain may have a thousand replays, and slices must go on meanwhile.
        chain = await asyncio.to_thread(_read, body, request[CALLER])
        shared = shared_of(request)
        for start in chain.starts:
            require_target(request[CALLER], start)
            require_consent(start, shared.context.settings)
        require_every_session(shared)
        await _catch_up(shared, chain)
        existed = _require_equal(shared, chain.starts, "nothing is sent, because")
        await _send(shared, chain, existed)
        await _see(shared, chain)
        _require_equal(shared, chain.starts, "another client was faster:")
        return web.json_response(_answer(shared, chain, existed), status=HTTPStatus.ACCEPTED)


def _read(body: bytes, caller: Caller) -> Chain:
    """Return the chain, with start commands that the caller has signed."""
    chain = read_chain(read_members(body, MAX_CHAIN_BYTES, "the chain"))
    levels = tuple(tuple(map(caller.sign, level)) for level in chain.levels)
    return replace(chain, levels=levels)


async def _catch_up(shared: Shared, chain: Chain) -> None:
    """Wait for the board. An older board is no harm: a command that comes again changes nothing."""
    status = shared.context.topics.status
    partitions = {status.partition(start.replay_id) for start in chain.starts}
    with suppress(TimeoutError):
        async with asyncio.timeout(CATCH_UP_SECONDS):
            await asyncio.gather(*map(shared.context.board.caught_up, partitions))


def _require_equal(shared: Shared, starts: Iterable[Start], why: str) -> set[str]:
    """Return the ids of the replays that exist. ``why`` begins the message of a refusal.

    Raises
    ------
    Problem
        One of them was started with another body (409).

    """
    sessions, existing, conflicts = shared.context.board.sessions, set(), []
    for start in starts:
        session = sessions.get(start.replay_id)
        if session is None:
            continue
        existing.add(start.replay_id)
        if differs := differences(session.start, start):
            told = "; ".join(first_of(differs))
            conflicts.append(f"{start.replay_id!r} ({session.state}): {told}")
    if conflicts:
        msg = (
            f"{why} replays of the chain exist with another body: "
            f"{'. '.join(first_of(conflicts))}. Put the chain back as it was, or give the chain, "
            "or these replays, another name"
        )
        raise Problem(HTTPStatus.CONFLICT, msg)
    return existing


async def _send(shared: Shared, chain: Chain, existed: set[str]) -> None:
    """Send the missing start commands, level by level, and await their acks."""
    outbox, requests = shared.context.outbox, shared.context.topics.requests
    until, sent = time.monotonic() + SEND_SECONDS, 0
    missing = len(chain.starts) - len(existed)
    try:
        for level in chain.levels:
            starts = [start for start in level if start.replay_id not in existed]
            for first in range(0, len(starts), MAX_AT_ONCE):
                part = starts[first : first + MAX_AT_ONCE]
                left = max(0.1, until - time.monotonic())
                await asyncio.gather(
                    *(
                        outbox.try_send(
                            requests,
                            start.replay_id,
                            start.model_dump_json(exclude_unset=True).encode(),
                            left,
                        )
                        for start in part
                    )
                )
                sent += len(part)
                crashpoints.reach("after-chain-part")
    except Unavailable as error:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{error}; {sent} of {missing} replays were sent: send the chain again, which starts "
            "only what is missing",
        ) from error


async def _see(shared: Shared, chain: Chain) -> None:
    """Wait, not for long, until the board has a session of each replay."""
    sessions = shared.context.board.sessions
    with suppress(TimeoutError):
        async with asyncio.timeout(SEEN_SECONDS):
            while any(one.replay_id not in sessions for one in chain.starts):  # noqa: ASYNC110 - seconds
                await asyncio.sleep(0.02)


def _answer(shared: Shared, chain: Chain, existed: set[str]) -> dict[str, Any]:
    replays = []
    for start in chain.starts:
        session = shared.context.board.sessions.get(start.replay_id)
        outcome = "existed" if start.replay_id in existed else "started"
        state = session.state if session else None
        replays.append({"replay_id": start.replay_id, "outcome": outcome, "state": state})
    return {"chain": chain.name, "replays": replays}
