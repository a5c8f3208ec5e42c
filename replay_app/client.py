"""The two ways to a worker from outside: its HTTP API, and a command on ``replay.requests``."""

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

from replay_app.commands import command_of
from replay_app.exceptions import InvalidSettings, ReplayError, Unavailable
from replay_app.sessions import TERMINAL

REQUEST_SECONDS = 30.0  # planning, for one, counts events while the client waits
NOT_READY_SECONDS = 30.0  # a worker that starts, or takes over another's partitions, needs less
FOLLOW_SECONDS = 60.0
POLL_SECONDS = 0.25
RETRY_SECONDS = 1.0
NOT_FOUND = 404

SessionJson = dict[str, Any]
"""A session as the API gives it: `replay_app.sessions.Session` in JSON."""
ENDED = TERMINAL | {"failed"}
"""States that only a person's command can end."""


class Endpoint(BaseSettings):
    """Where the worker's API is: ``REPLAY_URL`` and ``REPLAY_API_TOKEN``."""

    model_config = SettingsConfigDict(env_prefix="REPLAY_", env_file=".env", extra="ignore")

    url: str = "http://127.0.0.1:6066"
    api_token: pydantic.SecretStr | None = None


class Refused(ReplayError):
    """The worker will not do it; the message is its reason."""

    def __init__(self, message: str, status: int, state: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The answer's HTTP status."""
        self.state = state
        """The session's state, where that is why."""


class NotReady(Unavailable):
    """The worker answers that it cannot answer yet."""


class Client:
    """The HTTP API of one worker, which answers for all of them.

    Every method raises `Refused` where the worker refuses, and `Unavailable` where no worker
    answers, or none becomes ready in time.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidSettings(f"{url!r} (--url or REPLAY_URL) is no http:// or https:// URL")
        self.url = url.rstrip("/")
        self._token = token

    def start(self, body: Mapping[str, Any]) -> Any:
        """Start a replay; with a ``replay_id`` in the body, doing it twice is doing it once."""
        return self._persist("POST", "/replays", body)

    def plan(self, body: Mapping[str, Any]) -> Any:
        """Find out what a replay would do."""
        return self._persist("POST", "/plans", body)

    def command(self, replay_id: str, verb: str, requested_by: str | None) -> Any:
        """Pause, resume, cancel or retry a replay."""
        body = {"requested_by": requested_by} if requested_by else None
        return self._persist("POST", f"{_path(replay_id)}/{verb}", body)

    def set_rate(self, replay_id: str, rate: float | None, requested_by: str | None) -> Any:
        """Change a replay's events per second; None lifts the limit."""
        body = {"rate": rate, **({"requested_by": requested_by} if requested_by else {})}
        return self._persist("PATCH", _path(replay_id), body)

    def session(self, replay_id: str) -> SessionJson:
        """Return a replay's session."""
        return dict(self._persist("GET", _path(replay_id)))

    def sessions(self, state: str | None = None, limit: int | None = None) -> Any:
        """Return all sessions, the newest first, and the rejected commands."""
        wanted = {"state": state, "limit": limit}
        query = urlencode({name: value for name, value in wanted.items() if value is not None})
        return self._persist("GET", f"/replays?{query}" if query else "/replays")

    def follow(
        self,
        replay_id: str,
        *,
        on_trouble: Callable[[str], None],
        patience_seconds: float = FOLLOW_SECONDS,
        just_started: bool = False,
    ) -> Iterator[SessionJson]:
        """Yield a replay's session again and again until it has ended; that one comes last.

        While no worker answers, `on_trouble` hears why, once for each reason; after
        ``patience_seconds`` of that, the error is raised. A replay that was ``just_started`` may
        be unknown for as long.
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
                problem = NotReady(f"no worker has taken up replay {replay_id!r} yet")
            else:
                yield session
                if session["state"] in ENDED:
                    return
                heard, trouble, just_started = time.monotonic(), "", False
                time.sleep(POLL_SECONDS)
                continue
            if time.monotonic() - heard >= patience_seconds:
                raise problem
            waited = time.monotonic() - heard
            # A replay takes a moment to be taken up: that alone is no trouble.
            if str(problem) != trouble and (waited > RETRY_SECONDS or not just_started):
                trouble = str(problem)
                on_trouble(f"{trouble}; trying for {patience_seconds:g} s")
            time.sleep(min(RETRY_SECONDS, POLL_SECONDS + waited))

    def _persist(self, method: str, path: str, body: Any = None) -> Any:
        """Ask until the worker is ready; a command that arrives twice changes nothing."""
        deadline = time.monotonic() + NOT_READY_SECONDS
        while True:
            try:
                return self._request(method, path, body)
            except NotReady:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_SECONDS)

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
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
                f"no worker answers at {self.url} ({reason}): start one with `replay-app worker`, "
                "or name another with --url or REPLAY_URL"
            ) from error
        except ValueError as error:
            raise ReplayError(
                f"what answers at {self.url} is no replay worker: name one with --url or REPLAY_URL"
            ) from error

    def _error(self, status: int, answer: bytes) -> ReplayError:
        """Return the error that a problem document (RFC 9457) tells of."""
        try:
            problem = dict(json.loads(answer))
        except (ValueError, TypeError):
            problem = {}
        reason = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
        if status >= 500:  # noqa: PLR2004 - server errors
            kind = NotReady if status == 503 else Unavailable  # noqa: PLR2004 - service unavailable
            return kind(f"the worker at {self.url} cannot answer: {reason}")
        if status == 401:  # noqa: PLR2004 - unauthorized
            reason += " (set REPLAY_API_TOKEN to the worker's)"
        if status == NOT_FOUND and not problem:
            reason = f"{self.url} knows no such path; is it a replay worker (--url, REPLAY_URL)?"
        return Refused(reason, status, problem.get("state"))


async def produce_command(
    bootstrap: str, topic: str, body: Mapping[str, Any], **security: Any
) -> dict[str, Any]:
    """Put a command on the requests topic; return where it stands there.

    Raises
    ------
    InvalidCommand
        Before anything is sent: nobody would answer here.
    Unavailable
        When the broker does not take it.

    """
    command = command_of(body)
    value = json.dumps(body).encode()
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **security
    )
    try:
        await producer.start()
        record = await producer.send_and_wait(topic, value, key=command.replay_id.encode())
    except KafkaError as error:
        raise Unavailable(f"Kafka at {bootstrap} did not take the command: {error}") from error
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
