"""How clients log in to a cluster: settings ``REPLAY_KAFKA_*``, ``REPLAY_TARGET_KAFKA_*``."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import os
import shlex
import signal
import time
from typing import TYPE_CHECKING, Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError
from aiokafka.helpers import create_ssl_context

from replay_app.exceptions import InvalidSettings
from replay_app.functions import Call, imported

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from pathlib import Path

    from replay_app.settings import Settings

TOKEN_SECONDS = 10.0
"""How long a command or a function may take to give a token."""
REUSE_SECONDS = 60.0
"""How long a token is used for new connections, if it does not say when it expires."""
EARLY_SECONDS = 30.0
"""How long before it expires a token is no longer used for new connections."""

logger = logging.getLogger(__name__)


class NoToken(KafkaConnectionError):  # type: ignore[misc]  # aiokafka ships no types
    """A token for OAUTHBEARER could not be got; the message names the setting."""


def variables(settings: Settings, bootstrap: str) -> str:
    """Return how the variables begin that say how to log in to a cluster."""
    has_own = settings.target_kafka_security_protocol is not None
    return "REPLAY_TARGET_KAFKA" if has_own and bootstrap != settings.kafka else "REPLAY_KAFKA"


def kafka_security(settings: Settings, bootstrap: str) -> dict[str, Any]:
    """Return the options with which every aiokafka client logs in to a cluster.

    Raises
    ------
    InvalidSettings
        When SASL has no user, no password or no token, or a TLS file cannot be used.

    """
    prefix = variables(settings, bootstrap)

    def value(name: str) -> Any:
        return getattr(settings, f"{prefix.removeprefix('REPLAY_').lower()}_{name}")

    protocol = value("security_protocol")
    options: dict[str, Any] = {"security_protocol": protocol}
    if "SSL" in protocol:
        files = {name: value(f"ssl_{name}") for name in ("cafile", "certfile", "keyfile")}
        options["ssl_context"] = _ssl_context(prefix, files)
    if "SASL" in protocol:
        options["sasl_mechanism"] = value("sasl_mechanism")
        if value("sasl_mechanism") == "OAUTHBEARER":
            command = value("sasl_oauth_command")
            options["sasl_oauth_token_provider"] = _token_provider(
                prefix, command and command.get_secret_value(), value("sasl_oauth_function")
            )
            return options
        user, password = value("sasl_plain_username"), value("sasl_plain_password")
        if password is None or user is None:
            msg = (
                f"{prefix}_SECURITY_PROTOCOL={protocol} needs {prefix}_SASL_PLAIN_USERNAME and "
                f"{prefix}_SASL_PLAIN_PASSWORD"
            )
            raise InvalidSettings(msg)
        options["sasl_plain_username"] = user
        options["sasl_plain_password"] = password.get_secret_value()
    return options


def _ssl_context(prefix: str, files: dict[str, Path | None]) -> ssl.SSLContext:
    given = {name: path for name, path in files.items() if path is not None}
    try:
        context: ssl.SSLContext = create_ssl_context(**given)
    except OSError as error:  # also ssl.SSLError
        named = ", ".join(f"{prefix}_SSL_{name.upper()}={path}" for name, path in given.items())
        msg = f"these TLS files cannot be used: {named}: {error}"
        raise InvalidSettings(msg) from error
    return context


# Tokens


@functools.cache  # one provider for all clients: they share its token
def _token_provider(prefix: str, command: str | None, function: str | None) -> TokenProvider:
    names = f"{prefix}_SASL_OAUTH_COMMAND", f"{prefix}_SASL_OAUTH_FUNCTION"
    if (command is None) == (function is None):
        msg = f"{prefix}_SASL_MECHANISM=OAUTHBEARER needs one of {names[0]} and {names[1]}"
        raise InvalidSettings(msg)
    if command is not None:
        return TokenProvider(names[0], functools.partial(_printed, command))
    return TokenProvider(names[1], imported(names[1], function or ""))


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Gives the same token to new connections until it is about to expire."""

    def __init__(self, setting: str, make: Callable[[], Any]) -> None:
        """``make`` returns a token, or a token and its expiry in milliseconds since 1970."""
        self._setting = setting
        self._make = make
        self._call: Call | None = None
        """The newest call of a function that is not async."""
        self._token = ""
        self._until = 0.0
        """Seconds since 1970."""

    async def token(self) -> str:
        """Return a token.

        Raises
        ------
        NoToken
            When there is no token within TOKEN_SECONDS.

        """
        if time.time() < self._until:
            return self._token
        try:
            async with asyncio.timeout(TOKEN_SECONDS):
                token, expires_ms = _checked(await self._made())
        except Exception as error:
            late = isinstance(error, TimeoutError)
            told = f"no answer within {TOKEN_SECONDS:g} s" if late else str(error)
            msg = f"{self._setting} gives no token: {told or type(error).__name__}"
            logger.warning("%s", msg)
            raise NoToken(msg) from error
        until = time.time() + REUSE_SECONDS
        self._token = token
        self._until = until if expires_ms is None else expires_ms / 1000 - EARLY_SECONDS
        return token

    async def _made(self) -> Any:
        if inspect.iscoroutinefunction(self._make):
            return await self._make()
        if self._call is None or self._call.outcome.done():
            self._call = Call(self._make)
        return await asyncio.shield(asyncio.wrap_future(self._call.outcome))


def _checked(made: Any) -> tuple[str, float | None]:
    """Return a token, and when it expires. Raise ValueError if ``made`` is something else."""
    token, expires_ms = made if isinstance(made, tuple) and len(made) == 2 else (made, None)  # noqa: PLR2004
    is_time = expires_ms is None or isinstance(expires_ms, int | float)
    if not isinstance(token, str) or not is_time:
        msg = "it is neither a text, nor a text and a number of milliseconds since 1970"
        raise ValueError(msg)
    if not token:
        msg = "it is empty"
        raise ValueError(msg)
    return token, expires_ms


async def _printed(command: str) -> str:
    """Return what a command prints. A token is one word."""
    words = shlex.split(command)
    if not words:
        msg = "the command is empty"
        raise ValueError(msg)
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, trouble = await process.communicate()
    finally:
        if process.returncode is None:  # the command, and what it has started
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        told = trouble.decode(errors="replace").strip().splitlines()
        msg = f"exit code {process.returncode}{f': {told[-1][:300]}' if told else ''}"
        raise RuntimeError(msg)
    return output.decode().strip()
