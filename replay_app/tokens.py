"""The tokens of the HTTP API: who asks, and what the caller may do.

``REPLAY_API_TOKEN`` is a token without a name, for every command. ``REPLAY_TOKENS_FILE`` names a
file with further tokens, which is read again when it changes::

    {"tokens": [{"name": "ana", "token": "...", "role": "operate", "target_prefixes": ["rebuild."]},
                {"name": "wall", "token": "...", "role": "read"}]}

No message of this module shows a token, or any other text of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from replay_app.commands import Items, Start, TopicName, faults_of, first_of
from replay_app.exceptions import InvalidSettings
from replay_app.logs import hide_secrets
from replay_app.settings import Settings, check_token

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Least time between two looks whether the file has changed."""
MAX_FILE_BYTES = 1 << 20
MAX_TOKENS = 200
MIN_TOKEN = 16
"""Characters of the shortest token of a file: a shorter one could be guessed."""
SURROGATES = ("\ud800", "\udfff")
MEMBERS = ("tokens", "name", "token", "role", "target_prefixes")
"""The names of members that messages show. Any other name may be a token at the wrong place."""

Role = Literal["read", "operate"]
AnyCommand = TypeVar("AnyCommand", bound=BaseModel)
"""One of `replay_app.commands.Command`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    name: str | None = None
    """The name of the token. None: a token without a name, or none."""
    role: Role = "operate"
    """``read``: sees everything, changes nothing. ``operate``: gives commands, too."""
    target_prefixes: tuple[str, ...] | None = None
    """With what the destinations of the caller's replays begin. None: with anything."""

    def sign(self, command: AnyCommand) -> AnyCommand:
        """Return the command with the caller's name as ``requested_by``, if there is a name."""
        if self.name is None:
            return command
        return command.model_copy(update={"requested_by": self.name})

    def fault_of(self, start: Start) -> str | None:
        """Return why the caller may not start, or change, such a replay. None: the caller may.

        Every destination must surely begin with one of the prefixes, whatever events there are. A
        dry run publishes nothing, so it may have any target.
        """
        if self.target_prefixes is None or start.dry_run:
            return None
        if start.transforms:
            return "a transform may send an event to any topic; leave the transforms out"
        target = start.target
        rest = target.topic or target.prefix
        if rest is None:
            return "events may go to their original topics; name target.prefix or target.topic"
        for topic in (rest, *target.topics.values()):
            if not topic.startswith(self.target_prefixes):
                return f"the target names {topic!r}"
        return None


def _check_name(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        msg = "has a control character, or a space at its beginning or end"
        raise ValueError(msg)
    return name


def _check_secret(secret: SecretStr) -> SecretStr:
    token = secret.get_secret_value()
    check_token(token)
    if any(SURROGATES[0] <= character <= SURROGATES[1] for character in token):
        msg = "has half of a surrogate pair, which is not a character"
        raise ValueError(msg)
    if len(token) < MIN_TOKEN:
        msg = f"has fewer than {MIN_TOKEN} characters; `openssl rand -hex 32` makes a good one"
        raise ValueError(msg)
    if token != token.strip():
        msg = "has a space at its beginning or end, which a header cannot carry"
        raise ValueError(msg)
    return secret


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class _Token(_Part):
    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_check_name)]
    token: Annotated[SecretStr, AfterValidator(_check_secret)]
    role: Role
    target_prefixes: Annotated[Items[TopicName], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.role == "read" and self.target_prefixes is not None:
            msg = "target_prefixes limit the role operate; the role read starts nothing"
            raise ValueError(msg)
        return self

    @property
    def text(self) -> str:
        return self.token.get_secret_value()


class _File(_Part):
    tokens: Annotated[Items[_Token], Field(min_length=1, max_length=MAX_TOKENS)]


class _WrongFile(Exception):
    """The file has no usable tokens; the message says why."""


class Tokens:
    """The tokens that are in force. ``clock`` gives monotonic seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the tokens.

        Raises
        ------
        InvalidSettings
            When the file cannot be read, or is wrong.

        """
        own = settings.api_token and settings.api_token.get_secret_value()
        self._own = own or None
        self._path = settings.tokens_file
        self._clock = clock
        self._known: list[tuple[bytes, Caller]] = []
        """The digest of each token, and whose it is."""
        self._version: tuple[int, ...] | None = None
        """Of the file as it was read last. None: it could not be read."""
        self._looked_at = clock()
        self._trouble: str | None = None
        """Why the newest file is not in force."""
        try:
            self._use(self._read() if self._path else ())
        except _WrongFile as error:
            raise InvalidSettings(f"REPLAY_TOKENS_FILE={self._path}: {error}") from None

    @property
    def are_required(self) -> bool:
        """Whether a request needs a token."""
        return self._own is not None or self._path is not None

    def find(self, given: str) -> Caller | None:
        """Return whose token is given; None if it is nobody's.

        The time that this takes does not depend on the token: all are compared, as digests, which
        are equally long.
        """
        self._look()
        digest, found = _digest(given), None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def trouble(self) -> str | None:
        """Return why the file, as it is now, is not in force; None if it is."""
        self._look()
        return self._trouble

    def _look(self) -> None:
        """Read the file again if it has changed. A wrong file leaves the tokens as they are.

        The look blocks the event loop: it asks the system for a small file, once a second at most.
        """
        if self._path is None or self._clock() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = self._clock()
        with contextlib.suppress(OSError):  # `_read` says why
            if self._trouble is None and _version(self._path.stat()) == self._version:
                return
        tokens: tuple[_Token, ...] = ()
        trouble = None
        try:
            tokens = self._read()
        except _WrongFile as error:
            trouble = f"REPLAY_TOKENS_FILE={self._path}: {error}; the tokens before stay in force"
        if trouble is None:
            self._use(tokens)
            logger.info("the tokens of %s are read again: %d are in force", self._path, len(tokens))
        elif trouble != self._trouble:
            logger.error("%s", trouble)
        self._trouble = trouble

    def _use(self, tokens: Iterable[_Token]) -> None:
        tokens = [*tokens]
        hide_secrets(one.text for one in tokens)
        self._known = [
            (_digest(one.text), Caller(one.name, one.role, one.target_prefixes)) for one in tokens
        ]
        if self._own is not None:
            self._known.append((_digest(self._own), Caller()))

    def _read(self) -> tuple[_Token, ...]:
        """Return the tokens of the file. Raises `_WrongFile`."""
        assert self._path is not None  # noqa: S101 - the callers know
        try:
            self._version, body = _read_file(self._path)
        except OSError as error:
            msg = f"cannot be read: {error.strerror}"
            raise _WrongFile(msg) from None
        return _tokens_of(body, self._own)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _version(told: os.stat_result) -> tuple[int, ...]:
    # Kubernetes changes a mounted secret by another symbolic link: then the inode is another one.
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns


def _read_file(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Return the file's version and bytes. The version is from before: a later change shows."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block
        msg = "is not a file"
        raise _WrongFile(msg)
    with path.open("rb") as file:
        version, body = _version(os.fstat(file.fileno())), file.read(MAX_FILE_BYTES + 1)
    if len(body) > MAX_FILE_BYTES:
        msg = f"has more than {MAX_FILE_BYTES:,} bytes"
        raise _WrongFile(msg)
    return version, body


def _tokens_of(body: bytes, own: str | None) -> tuple[_Token, ...]:
    """Return the tokens of a file. ``own`` is the one of REPLAY_API_TOKEN. Raises `_WrongFile`."""
    try:
        tokens = _File.model_validate(json.loads(body, object_pairs_hook=_object)).tokens
    except ValidationError as error:
        faults = [f"{_place(one.place)}: {one.what}" for one in faults_of(error)]
        raise _WrongFile("; ".join(first_of(faults))) from None
    except UnicodeDecodeError:
        msg = "is not UTF-8"
        raise _WrongFile(msg) from None
    except (ValueError, RecursionError) as error:
        msg = f"is not JSON: {error}"
        raise _WrongFile(msg) from None
    names: set[str] = set()
    secrets = set() if own is None else {own}
    for number, one in enumerate(tokens):
        if one.name in names:
            msg = f"tokens.{number}: another token has the same name"
            raise _WrongFile(msg)
        if one.text in secrets:
            msg = f"tokens.{number}: this token has another name already, or is REPLAY_API_TOKEN"
            raise _WrongFile(msg)
        names.add(one.name)
        secrets.add(one.text)
    return tokens


def _place(place: tuple[str | int, ...]) -> str:
    shown = [str(one) if one in MEMBERS or isinstance(one, int) else "(a member)" for one in place]
    return ".".join(shown) or "the file"


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        msg = "an object has a member twice"
        raise ValueError(msg)
    return found
