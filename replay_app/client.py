"""Two ways to give a command: the HTTP API of a worker, and a record on ``replay.requests``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import pydantic
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic_settings import BaseSettings, SettingsConfigDict

from replay_app.commands import parse_command
from replay_app.exceptions import InvalidSettings, ReplayError, Unavailable
from replay_app.sessions import MAX_LISTED
from replay_app.settings import check_token, masked_uri
from replay_app.states import TERMINAL

REQUEST_SECONDS = 30.0
"""How long an answer may take; a plan counts events while the client waits."""
NOT_READY_PATIENCE_SECONDS = 30.0
"""How long a worker may be not ready; a start or a rebalance takes less."""
FOLLOW_PATIENCE_SECONDS = 60.0
"""How long no worker may answer while a replay is followed."""
FOLLOW_POLL_SECONDS = 0.25
ASK_AGAIN_SECONDS = 1.0
NOT_FOUND = 404

SessionJson = dict[str, Any]
"""A session as the API returns it: `replay_app.sessions.Session` in JSON."""
ENDED = TERMINAL | {"failed"}
"""States that a replay leaves only by a command."""


class Endpoint(BaseSettings):
    """The address and the token of the API: ``REPLAY_URL`` and ``REPLAY_API_TOKEN``."""

    model_config = SettingsConfigDict(
        env_prefix="REPLAY_", env_file=".env", extra="ignore", hide_input_in_errors=True
    )

    url: str = "http://127.0.0.1:6066"
    api_token: pydantic.SecretStr | None = None


class Refused(ReplayError):
    """The worker refuses the request; the message is the worker's reason."""

    def __init__(self, message: str, status: int, state: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer."""
        self.state = state
        """State of the session, if the state is the reason."""


class NotReady(Unavailable):
    """The worker answers that it is not ready."""


class Client:
    """The HTTP API of a worker; each worker answers for all workers.

    Every method raises `Refused` if the worker refuses, and `Unavailable` if no worker answers or
    the worker is not ready in time. As always with urllib, requests go through the proxy that the
    variable ``HTTP_PROXY`` or ``HTTPS_PROXY`` names, except to the hosts in ``NO_PROXY``.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        if "@" in url.partition("?")[0]:
            raise InvalidSettings(
                f"{masked_uri(url)!r} (--url or REPLAY_URL) has a user or a password: leave them "
                "out, and set REPLAY_API_TOKEN to the worker's token"
            )
        if not url.startswith(("http://", "https://")):
            raise InvalidSettings(
                f"{url!r} (--url or REPLAY_URL) does not start with http:// or https://"
            )
        try:
            check_token(token or "")
        except ValueError as error:
            raise InvalidSettings(f"REPLAY_API_TOKEN: {error}") from error
        self.url = url.rstrip("/")
        self._token = token

    def start(self, body: Mapping[str, Any]) -> Any:
        """Start a replay; a second start with the same body and ``replay_id`` changes nothing."""
        return self._persist("POST", "/replays", body)

    def plan(self, body: Mapping[str, Any]) -> Any:
        """Return what a replay would do."""
        return self._persist("POST", "/plans", body)

    def apply(self, chain: Mapping[str, Any]) -> Any:
        """Start what of a chain is not started yet."""
        return self._persist("POST", "/chains", chain)

    def command(self, replay_id: str, verb: str, requested_by: str | None, **members: Any) -> Any:
        """Pause, resume, cancel, retry or release a replay. ``members`` are further ones."""
        body = members | ({"requested_by": requested_by} if requested_by else {})
        return self._persist("POST", f"{_path(replay_id)}/{verb}", body or None)

    def set_rate(self, replay_id: str, rate: float | None, requested_by: str | None) -> Any:
        """Change a replay's events per second; None removes the limit."""
        body = {"rate": rate, **({"requested_by": requested_by} if requested_by else {})}
        return self._persist("PATCH", _path(replay_id), body)

    def note_verification(
        self, replay_id: str, verification: Mapping[str, Any], requested_by: str | None
    ) -> Any:
        """Keep the verdict of a verification with a completed replay."""
        body: dict[str, Any] = {"verification": verification}
        body |= {"requested_by": requested_by} if requested_by else {}
        return self._persist("POST", f"{_path(replay_id)}/verification", body)

    def session(self, replay_id: str) -> SessionJson:
        """Return a replay's session."""
        return dict(self._persist("GET", _path(replay_id)))

    def sessions(
        self, state: str | None = None, limit: int | None = None, *, chain: str | None = None
    ) -> Any:
        """Return all sessions, the newest first, and the rejected commands.

        A ``chain`` asks for all sessions of this chain.
        """
        if chain is not None:
            limit = limit or MAX_LISTED
        wanted = {"state": state, "chain": chain, "limit": limit}
        query = urlencode({name: value for name, value in wanted.items() if value is not None})
        return self._persist("GET", f"/replays?{query}" if query else "/replays")

    def follow(
        self,
        replay_id: str,
        *,
        on_trouble: Callable[[str], None],
        patience_seconds: float = FOLLOW_PATIENCE_SECONDS,
        just_started: bool = False,
    ) -> Iterator[SessionJson]:
        """Yield a replay's session again and again; the last one has ended.

        While no worker answers, `on_trouble` is called with each new reason. After
        ``patience_seconds`` without an answer, the error is raised. A replay that was
        ``just_started`` may be unknown for the same time.
        """
        heard = time.monotonic()
        trouble = ""
        while True:
            try:
                session = dict(self._request("GET", _path(replay_id)))
            except Unavailable as error:
                problem: Unavailable = error
            except Refused as error:
                if error.status != NOT_FOUND or not just_started:
                    raise
                problem = NotReady(f"no worker knows replay {replay_id!r} yet")
            else:
                yield session
                if session["state"] in ENDED:
                    return
                heard, trouble, just_started = time.monotonic(), "", False
                time.sleep(FOLLOW_POLL_SECONDS)
                continue
            if time.monotonic() - heard >= patience_seconds:
                raise problem
            waited = time.monotonic() - heard
            # A new replay is unknown for a moment: that is not a trouble.
            if str(problem) != trouble and (waited > ASK_AGAIN_SECONDS or not just_started):
                trouble = str(problem)
                on_trouble(f"{trouble}; trying for up to {patience_seconds:g} s")
            time.sleep(min(ASK_AGAIN_SECONDS, FOLLOW_POLL_SECONDS + waited))

    def _persist(self, method: str, path: str, body: Any = None) -> Any:
        """Ask until the worker is ready; a repeated command changes nothing."""
        deadline = time.monotonic() + NOT_READY_PATIENCE_SECONDS
        while True:
            try:
                return self._request(method, path, body)
            except NotReady:
                if time.monotonic() > deadline:
                    raise
                time.sleep(ASK_AGAIN_SECONDS)

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            # urllib writes headers in Latin-1, and the worker reads UTF-8.
            headers["Authorization"] = f"Bearer {self._token}".encode().decode("latin-1")
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, headers, method=method)  # noqa: S310 - http(s), see __init__
        try:
            with urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310 - likewise
                return json.load(answer)
        except HTTPError as error:
            raise self._error(error.code, error.read()) from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise Unavailable(
                f"no worker answers at {self.url} ({reason}): start a worker with `replay-app "
                "worker`, or name another address with --url or REPLAY_URL"
            ) from error
        except ValueError as error:
            raise ReplayError(
                f"the server at {self.url} is not a replay worker: name a worker with --url or "
                "REPLAY_URL"
            ) from error

    def _error(self, status: int, answer: bytes) -> ReplayError:
        """Return the error that a problem document (RFC 9457) describes."""
        try:
            problem = dict(json.loads(answer))
        except (ValueError, TypeError):
            problem = {}
        reason = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
        if status >= 500:  # noqa: PLR2004 - server errors
            is_starting = status == 503 and "unavailable" not in problem  # noqa: PLR2004
            kind = NotReady if is_starting else Unavailable
            return kind(f"the worker at {self.url} cannot answer: {reason}")
        if status == 401:  # noqa: PLR2004 - unauthorized
            reason += " (set REPLAY_API_TOKEN to the worker's token)"
        if status == NOT_FOUND and not problem:
            reason = f"no replay worker answers at {self.url} (--url, REPLAY_URL): unknown path"
        return Refused(reason, status, problem.get("state"))


async def produce_command(
    bootstrap: str, topic: str, body: Mapping[str, Any], **security: Any
) -> dict[str, Any]:
    """Produce a command to the requests topic; return the record's partition and offset.

    Raises
    ------
    InvalidCommand
        The command is malformed; nothing is sent, as nobody could answer with the refusal.
    Unavailable
        The broker does not accept the record.

    """
    value = json.dumps(body).encode()
    command = parse_command(value)
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **security
    )
    try:
        await producer.start()
        record = await producer.send_and_wait(topic, value, key=command.replay_id.encode())
    except KafkaError as error:
        raise Unavailable(f"Kafka at {bootstrap} did not accept the command: {error}") from error
    finally:
        await producer.stop()
    return {
        "replay_id": command.replay_id,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
    }


def _path(replay_id: str) -> str:
    return f"/replays/{quote(replay_id, safe='')}"
