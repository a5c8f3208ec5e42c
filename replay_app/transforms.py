"""Transforms: the operator's own functions, which change events on their way to records.

A command names transforms, and they run in this order, each on what the one before has returned
(docs/transforms.md). `EventContext`, `Output` and `DROP` are for the modules of the operators.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import hashlib
import inspect
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from replay_app.commands import TOPIC_NAME, TOPIC_RULE
from replay_app.exceptions import EventError, InvalidSettings, ReplayFailed
from replay_app.functions import Call, imported

if TYPE_CHECKING:
    from datetime import datetime

    from replay_app.events import Document, Header
    from replay_app.settings import Settings

GROUP = "event_replay.transforms"
"""The group of the entry points with which a package offers transforms."""
SETTING = "REPLAY_TRANSFORMS"
TRANSFORM_SECONDS = 10.0
"""How long a transform may take for one event. A transaction must stay shorter than a minute."""
PART_SECONDS = 40.0
"""How long the events that are encoded together may take."""
LOOK_SECONDS = 0.5
"""Time between two looks whether a transform hangs."""
MAX_MESSAGE = 500
"""Characters of the message of an exception that are kept."""
_MEMBER = "transform "
"""Begin of the names under which a plan keeps fingerprints."""
OWN_PREFIX = "replay-"
"""Begin of the names of the headers that only this program writes."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class EventContext:
    """What a transform is told about its event, beside the document."""

    event_id: str
    event_type: str
    time: datetime
    """When the event happened, in UTC."""
    topic: str
    """The destination topic, with the target's prefix."""
    key: bytes
    headers: tuple[Header, ...]
    """The original headers that are published again: pairs of a name and bytes, or None."""
    replay_id: str


class _Drop:
    """The type of `DROP`."""

    def __repr__(self) -> str:
        return "DROP"


DROP = _Drop()
"""What a transform returns for an event that is not to be published. The event is counted."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a transform returns to change more than the document. None leaves a part as it is."""

    document: Document | None = None
    value: bytes | None = None
    """The value of the record, such as Avro or Protobuf. No transform can follow."""
    topic: str | None = None
    """Another topic, without the target's prefix: the prefix is put before it."""
    key: str | bytes | None = None
    headers: Sequence[Header] | None = None
    """Takes the place of the original headers. The ``replay-*`` headers are always written."""


Transform = Callable[[dict[str, Any], EventContext], "dict[str, Any] | Output | _Drop"]


class Transforms:
    """The transforms of one replay, in order."""

    def __init__(self, functions: Sequence[tuple[str, Transform]], prefix: str = "") -> None:
        """``functions`` are pairs of a name and a function. ``prefix`` is put before topics."""
        self._functions = list(functions)
        self._prefix = prefix
        self._running: tuple[str, str, float] | None = None
        """Name, event and begin (monotonic) of the call that is under way."""
        self._is_given_up = False

    def apply(
        self, document: Any, context: EventContext
    ) -> tuple[Document, bytes | None, EventContext] | None:
        """Return the document, its value if a transform gives bytes, and topic, key and headers.

        None: the event is dropped.

        Raises
        ------
        EventError
            When a transform raises, or returns what cannot be used. The message names it.

        """
        value: Any = None
        found: Any
        if self._is_given_up:
            raise SystemExit
        for name, function in self._functions:
            if value is not None:
                msg = f"transform {name!r} cannot follow one that has returned bytes"
                raise EventError(msg)
            found = self._call(name, function, document, context)
            if found is DROP:
                return None
            if isinstance(found, Output):
                document = document if found.document is None else found.document
                value = found.value
                context = self._changed(name, context, found)
            else:
                document = found
            if type(document) is not dict:
                msg = (
                    f"transform {name!r} has returned {_kind(document)} and not a document: return "
                    "a dict, an Output or DROP"
                )
                raise EventError(msg)
            if value is not None and not isinstance(value, bytes):
                msg = f"transform {name!r} has given {_kind(value)} as value, and not bytes"
                raise EventError(msg)
        return document, value, context

    def _call(
        self, name: str, function: Transform, document: Document, context: EventContext
    ) -> Any:
        self._running = name, context.event_id, time.monotonic()
        try:
            return function(document, context)
        except BaseException as error:  # also SystemExit: an event must not stop the worker
            if self._is_given_up:
                raise
            msg = f"transform {name!r} has failed: {_text(error)}"
            raise EventError(msg) from error
        finally:
            self._running = None

    def _changed(self, name: str, context: EventContext, output: Output) -> EventContext:
        """Return the context with what an output changes."""
        changes: dict[str, Any] = {}
        if output.topic is not None:
            topic = f"{self._prefix}{output.topic}"
            if not TOPIC_NAME.match(topic):
                msg = (
                    f"transform {name!r} sends the event to {topic[:300]!r}, which is not a topic "
                    f"name: {TOPIC_RULE}"
                )
                raise EventError(msg)
            changes["topic"] = topic
        try:
            if output.key is not None:
                changes["key"] = _key(output.key)
            if output.headers is not None:
                changes["headers"] = tuple(map(_header, output.headers))
        except (TypeError, ValueError) as error:
            msg = f"transform {name!r} has returned a wrong key or wrong headers: {_text(error)}"
            raise EventError(msg) from error
        return replace(context, **changes)

    def hanging(self) -> str | None:
        """Return why the call that is under way takes too long; None if it does not."""
        running = self._running
        if running is None or time.monotonic() - running[2] < TRANSFORM_SECONDS:
            return None
        return (
            f"transform {running[0]!r} has not returned event {running[1]!r} within "
            f"{TRANSFORM_SECONDS:g} s"
        )

    def give_up(self) -> None:
        """Let the thread end with its present call, which nobody waits for any more."""
        self._is_given_up = True


def _key(key: Any) -> bytes:
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode()
    msg = f"a key is text or bytes, and not {key!r}"
    raise TypeError(msg)


def _header(header: Any) -> Header:
    name, value = header
    if not isinstance(name, str) or not isinstance(value, bytes | None):
        msg = f"a header is a pair of text and bytes, and not {header!r}"
        raise TypeError(msg)
    if name.lower().startswith(OWN_PREFIX):
        msg = f"header {name!r}: only the replay itself writes headers that begin with replay-"
        raise ValueError(msg)
    name.encode()  # raises ValueError if the text is none
    return name, value


def _text(error: BaseException) -> str:
    """Return an exception as a short text, which can be encoded."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - whatever the exception's own method does
        text = type(error).__name__
    return text[:MAX_MESSAGE].encode(errors="replace").decode()


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


# Names


def transforms_of(
    settings: Settings, names: Sequence[str], prefix: str | None = None
) -> Transforms | None:
    """Return the transforms that a command names; None if it names none.

    Raises
    ------
    ReplayFailed
        When a name is unknown, or when its function cannot be imported.

    """
    if not names:
        return None
    return Transforms([(name, _loaded(_place(settings, name))) for name in names], prefix or "")


def transform_fingerprints(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Return what a plan keeps of transforms: the function, and a hash of the module's file.

    Raises
    ------
    ReplayFailed
        When a name is unknown, or when its function cannot be imported.

    """
    return {f"{_MEMBER}{name}": _fingerprint(_place(settings, name)) for name in names}


def is_transform(member: str) -> bool:
    """Return whether a member of a plan's source is the fingerprint of a transform."""
    return member.startswith(_MEMBER)


def _place(settings: Settings, name: str) -> str:
    """Return the ``module:function`` of a name."""
    known = _offered() | settings.transforms
    if name not in known:
        msg = (
            f"there is no transform {name!r}: {SETTING} and the installed packages have "
            f"{', '.join(sorted(known)) or 'none'}; add it to {SETTING} of all workers and start "
            "them again, then retry"
        )
        raise ReplayFailed(msg)
    return known[name]


@functools.cache
def _offered() -> dict[str, str]:
    """Return the places of the transforms that installed packages offer, by name."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


@functools.cache
def _loaded(place: str) -> Transform:
    try:
        return imported(SETTING, place)
    except InvalidSettings as error:
        msg = f"{error}; correct the module on all workers, start them again, then retry"
        raise ReplayFailed(msg) from error


@functools.cache
def _fingerprint(place: str) -> str:
    """Return a place with a hash of its module's file, if there is one.

    The file is read when the place is used first: just after the worker has imported it.
    """
    module = inspect.getmodule(_loaded(place))
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file():
        return place
    return f"{place} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


# Threads


async def run_in_thread(
    transforms: Transforms | None, function: Callable[..., _Result], *arguments: Any
) -> _Result:
    """Run a function, which may call transforms, in a thread.

    Python cannot end a thread. A thread whose transform hangs is left alone: it does not keep the
    worker from ending, and a loop in Python ends by an exception.

    Raises
    ------
    ReplayFailed
        When a transform takes longer than TRANSFORM_SECONDS for an event, or the function longer
        than PART_SECONDS.

    """
    if transforms is None:
        return await asyncio.to_thread(function, *arguments)
    call = Call(functools.partial(function, *arguments))
    waiting = asyncio.shield(asyncio.wrap_future(call.outcome))
    until = time.monotonic() + PART_SECONDS
    try:
        while not (await asyncio.wait({waiting}, timeout=LOOK_SECONDS))[0]:
            fault = transforms.hanging()
            if fault is None and time.monotonic() > until:
                fault = f"the transforms are too slow: a few events took {PART_SECONDS:g} s"
            if fault is not None:
                msg = f"{fault}; correct it, start the workers again, then retry"
                raise ReplayFailed(msg)
    finally:
        if not call.outcome.done():
            waiting.cancel()
            transforms.give_up()
            _raise_in(call)
    result: _Result = waiting.result()
    return result


def _raise_in(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread as soon as it runs Python code."""
    if thread.ident is not None:
        ident, exception = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, exception)
