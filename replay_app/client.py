"""A typed client: the HTTP API of a worker, and a record on ``replay.requests``.

docs/client.md has an example. Models go in, and models come out. Members that a newer worker adds
are accepted: `replay_app.answers` has the models of the answers.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from http.client import HTTPException
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

import pydantic
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from pydantic_settings import BaseSettings, SettingsConfigDict

from replay_app.answers import (
    Accepted,
    AppliedChain,
    PlannedReplay,
    Replay,
    ReplayCourse,
    ReplayHistory,
    ReplayPage,
    Workers,
)
from replay_app.commands import Start, Verb, Verification, parse_command
from replay_app.exceptions import InvalidSettings, ReplayError, Unavailable
from replay_app.sessions import MAX_LISTED
from replay_app.settings import Settings, check_names, check_token, masked_uri
from replay_app.states import TERMINAL, State

REQUEST_SECONDS = 30.0
"""How long an answer may take; a plan counts events while the client waits."""
NOT_READY_PATIENCE_SECONDS = 30.0
"""How long a worker may be not ready; a start or a rebalance takes less."""
FOLLOW_PATIENCE_SECONDS = 60.0
"""How long no worker may answer while a replay is followed."""
FOLLOW_POLL_SECONDS = 0.25
ASK_AGAIN_SECONDS = 1.0
NOT_FOUND = 404

ENDED = TERMINAL | {"failed"}
"""States that a replay leaves only by a command."""
_EVERY_HOST = ("", "0.0.0.0", "::")  # noqa: S104 - what a worker may listen on, not what we do


class Endpoint(BaseSettings):
    """The address and the token of the API, from the settings that the worker reads, too.

    The address is ``REPLAY_URL``, or else the worker's own port on this machine.
    """

    model_config = SettingsConfigDict(
        env_prefix="REPLAY_", env_file=".env", extra="ignore", hide_input_in_errors=True
    )

    url: str = ""
    web_host: str = ""
    web_port: int = Settings.model_fields["web_port"].default
    api_token: pydantic.SecretStr | None = None

    @pydantic.field_validator("web_port", mode="before")
    @classmethod
    def _no_link(cls, value: object) -> object:
        # Kubernetes makes such a variable for a Service named "replay-web", as for the worker.
        is_link = isinstance(value, str) and "://" in value
        return cls.model_fields["web_port"].default if is_link else value

    @property
    def address(self) -> str:
        """The URL of a worker."""
        if self.url:
            return self.url
        host = "127.0.0.1" if self.web_host in _EVERY_HOST else self.web_host
        try:
            is_ipv6 = ipaddress.ip_address(host).version == 6  # noqa: PLR2004
        except ValueError:
            is_ipv6 = False
        return f"http://{f'[{host}]' if is_ipv6 else host}:{self.web_port}"


class Refused(ReplayError):
    """The worker refuses the request; the message is the worker's reason."""

    def __init__(self, message: str, status: int, state: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the answer."""
        self.state = state
        """State of the session, if the state is the reason."""


class NotFound(Refused):
    """There is no such replay, or no such chain."""

    def __init__(self, message: str) -> None:
        super().__init__(message, NOT_FOUND)


class NoWorker(Unavailable):
    """Nobody answers at the address."""


class NotReady(Unavailable):
    """The worker answers that it is not ready."""


class Client:
    """The HTTP API of a worker; each worker answers for all workers.

    Every method raises `Refused` if the worker refuses, `NotFound` if there is no such replay, and
    `Unavailable` if no worker answers or the worker is not ready in time. As always with urllib,
    requests go through the proxy that the variable ``HTTP_PROXY`` or ``HTTPS_PROXY`` names, except
    to the hosts in ``NO_PROXY``.
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
        self.answer_seconds = REQUEST_SECONDS
        self.patience_seconds = NOT_READY_PATIENCE_SECONDS

    @classmethod
    def of_settings(cls, url: str | None = None) -> Self:
        """Return the client of the environment and the ``.env`` file; ``url`` goes before them.

        Raises
        ------
        InvalidSettings
            A variable is wrong.

        """
        check_names()
        try:
            endpoint = Endpoint()
        except pydantic.ValidationError as error:
            names = ", ".join(f"REPLAY_{str(one['loc'][0]).upper()}" for one in error.errors())
            raise InvalidSettings(f"{names}: not usable; name the worker with --url") from error
        token = endpoint.api_token.get_secret_value() if endpoint.api_token else None
        return cls(url or endpoint.address, token)

    def start(self, start: Start) -> Accepted:
        """Start a replay; a second start with the same body and ``replay_id`` changes nothing."""
        return Accepted.of(self._persist("POST", "/replays", body_of(start)))

    def plan(self, start: Start) -> PlannedReplay:
        """Return what a replay would do."""
        return PlannedReplay.of(self._persist("POST", "/plans", body_of(start)))

    def apply(self, chain: Mapping[str, Any]) -> AppliedChain:
        """Start what of a chain is not started yet; `chains.read_chain` checks the members."""
        return AppliedChain.of(self._persist("POST", "/chains", chain))

    def command(
        self, replay_id: str, verb: Verb, requested_by: str | None = None, **members: Any
    ) -> Accepted:
        """Pause, resume, step, cancel, retry or release a replay.

        ``members`` are the further members of the verb's command, such as ``events`` of a
        `commands.StepOn`.
        """
        body = members | ({"requested_by": requested_by} if requested_by else {})
        return Accepted.of(self._persist("POST", f"{_path(replay_id)}/{verb}", body or None))

    def set_rate(
        self, replay_id: str, rate: float | None, requested_by: str | None = None
    ) -> Accepted:
        """Change a replay's events per second; None removes the limit."""
        body = {"rate": rate, **({"requested_by": requested_by} if requested_by else {})}
        return Accepted.of(self._persist("PATCH", _path(replay_id), body))

    def note_verification(
        self, replay_id: str, verification: Verification, requested_by: str | None = None
    ) -> Accepted:
        """Keep the verdict of a verification with a completed replay."""
        found = verification.model_dump(mode="json", exclude_defaults=True)
        body: dict[str, Any] = {"verification": found}
        body |= {"requested_by": requested_by} if requested_by else {}
        return Accepted.of(self._persist("POST", f"{_path(replay_id)}/verification", body))

    def replay(self, replay_id: str) -> Replay:
        """Return a replay."""
        return Replay.of(self._persist("GET", _path(replay_id)))

    def history(self, replay_id: str) -> ReplayHistory:
        """Return what has changed a replay, and who."""
        return ReplayHistory.of(self._persist("GET", f"{_path(replay_id)}/history"))

    def series(self, replay_id: str) -> ReplayCourse:
        """Return the counters and waits of a replay over time."""
        return ReplayCourse.of(self._persist("GET", f"{_path(replay_id)}/series"))

    def workers(self) -> Workers:
        """Return the workers, and what they work on."""
        return Workers.of(self._persist("GET", "/workers"))

    def newest(self) -> Replay:
        """Return the newest replay. Raises `NotFound` if there is no replay."""
        for replay in self.page(limit=1).replays:
            return replay
        raise NotFound("there is no replay yet")

    def page(  # noqa: PLR0913 - the parameters of the API, all optional
        self,
        *,
        states: Iterable[State | str] = (),
        text: str | None = None,
        chain: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> ReplayPage:
        """Return a page of the replays, the newest first; ``cursor`` is `ReplayPage.next`.

        The first page has every replay that has not ended, also beyond its ``limit``.
        """
        wanted = {
            "state": tuple(states),
            "text": text,
            "chain": chain,
            "since": since and since.isoformat(),
            "limit": limit,
            "cursor": cursor,
        }
        query = urlencode({k: v for k, v in wanted.items() if v not in {None, ()}}, doseq=True)
        return ReplayPage.of(self._persist("GET", f"/replays?{query}" if query else "/replays"))

    def chain(self, name: str) -> tuple[Replay, ...]:
        """Return every replay of a chain."""
        return self.page(chain=name, limit=MAX_LISTED).replays

    def page_address(self, replay_id: str) -> str:
        """Return the address of a replay's page, for a browser."""
        return self.url + _path(replay_id)

    def follow(
        self,
        replay_id: str,
        *,
        on_trouble: Callable[[str], None],
        patience_seconds: float = FOLLOW_PATIENCE_SECONDS,
        just_started: bool = False,
    ) -> Iterator[Replay]:
        """Yield a replay again and again; the last time it has ended.

        While no worker answers, `on_trouble` is called with each new reason. After
        ``patience_seconds`` without an answer, the error is raised. A replay that was
        ``just_started`` may be unknown for the same time.
        """
        heard = time.monotonic()
        trouble = ""
        while True:
            try:
                replay = Replay.of(self._request("GET", _path(replay_id)))
            except Unavailable as error:
                problem: Unavailable = error
            except NotFound:
                if not just_started:
                    raise
                problem = NotReady(f"no worker knows replay {replay_id!r} yet")
            else:
                yield replay
                if replay.state in ENDED:
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

    def _persist(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Ask until the worker is ready; a repeated command changes nothing."""
        deadline = time.monotonic() + self.patience_seconds
        while True:
            try:
                return self._request(method, path, body)
            except NotReady:
                if time.monotonic() > deadline:
                    raise
                time.sleep(ASK_AGAIN_SECONDS)

    def _request(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            # urllib writes headers in Latin-1, and the worker reads UTF-8.
            headers["Authorization"] = f"Bearer {self._token}".encode().decode("latin-1")
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, headers, method=method)  # noqa: S310 - http(s), see __init__
        try:
            with urlopen(request, timeout=self.answer_seconds) as answer:  # noqa: S310 - likewise
                return _object(json.load(answer))
        except HTTPError as error:
            raise self._error(error.code, error.read()) from error
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise NoWorker(
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
        if status == NOT_FOUND and problem:
            return NotFound(reason)
        if status == NOT_FOUND:
            reason = f"no replay worker answers at {self.url} (--url, REPLAY_URL): unknown path"
        return Refused(reason, status, problem.get("state"))


def _object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(found)  # noqa: TRY004 - as of what is no JSON at all
    return found


def body_of(start: Start) -> dict[str, Any]:
    """Return the JSON of a start command; what is not set is left to the worker."""
    return start.model_dump(mode="json", exclude_unset=True)


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
