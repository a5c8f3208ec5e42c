"""Transforms: the operator's own functions, which change events on their way to records.

A command names transforms, and they run in this order, each on what the one before has returned
(docs/transforms.md). `EventContext`, `Output` and `DROP` are for the modules of the operators.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from replay_app.commands import TOPIC_NAME, TOPIC_RULE
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.functions import Call

if TYPE_CHECKING:
    from datetime import datetime

    from replay_app.events import Document, Header

TRANSFORM_SECONDS = 10.0
"""How long a transform may take for one event. A transaction must stay shorter than a minute."""
LOOK_SECONDS = 0.5
"""Time between two looks whether a transform hangs."""
MAX_MESSAGE = 500
"""Characters of the message of an exception that are kept."""
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


class Drop:
    """The type of `DROP`."""

    def __repr__(self) -> str:
        return "DROP"


DROP = Drop()
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


Transform = Callable[[dict[str, Any], EventContext], "dict[str, Any] | Output | Drop"]


class Transforms:
    """The transforms of one replay, in order."""

    def __init__(self, functions: Sequence[tuple[str, Transform]], prefix: str = "") -> None:
        """``functions`` are pairs of a name and a function. ``prefix`` is put before topics."""
        self._functions = list(functions)
        self._prefix = prefix
        self._running: dict[int, tuple[str, str, float]] = {}
        """By thread: name, event and begin (monotonic) of the call that is under way."""
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
        value: bytes | None = None
        for name, function in self._functions:
            if value is not None:
                msg = f"transform {name!r} cannot follow one that has returned bytes"
                raise EventError(msg)
            changed = self._call(name, function, document, context)
            if changed is None:
                return None
            document, value, context = changed
        return document, value, context

    def _call(
        self, name: str, function: Transform, document: Document, context: EventContext
    ) -> tuple[Document, bytes | None, EventContext] | None:
        thread = threading.get_ident()
        if self._is_given_up:
            raise SystemExit
        self._running[thread] = name, context.event_id, time.monotonic()
        try:
            return self._checked(function(document, context), document, context)
        except BaseException as error:  # also SystemExit: an event must not stop the worker
            if self._is_given_up:
                raise
            words = error.args[0] if isinstance(error, _Unusable) else f"failed: {_text(error)}"
            msg = f"transform {name!r} has {words}"
            raise EventError(msg) from error
        finally:
            self._running.pop(thread, None)

    def _checked(
        self, found: Any, document: Any, context: EventContext
    ) -> tuple[Document, bytes | None, EventContext] | None:
        """Return what a transform has returned, as `apply` does.

        Raises
        ------
        _Unusable
            When this is not what a transform may return.

        """
        if found is DROP:
            return None
        if not isinstance(found, Output):
            return _document(found), None, context
        if found.document is not None:
            document = _document(found.document)
        value: Any = found.value
        if value is not None and not isinstance(value, bytes):
            msg = f"given {_kind(value)} as value, and not bytes"
            raise _Unusable(msg)
        return document, value, self._changed(context, found)

    def _changed(self, context: EventContext, output: Output) -> EventContext:
        """Return the context with what an output changes."""
        changes: dict[str, Any] = {}
        if output.topic is not None:
            topic = f"{self._prefix}{output.topic}"
            if not TOPIC_NAME.match(topic):
                msg = f"sent the event to {topic[:300]!r}, which is not a topic name: {TOPIC_RULE}"
                raise _Unusable(msg)
            changes["topic"] = topic
        if output.key is not None:
            changes["key"] = _key(output.key)
        if output.headers is not None:
            changes["headers"] = tuple(map(_header, output.headers))
        return replace(context, **changes) if changes else context

    def hanging(self) -> str | None:
        """Return why a call that is under way takes too long; None if none does."""
        for name, event_id, began in [*self._running.values()]:
            if time.monotonic() - began >= TRANSFORM_SECONDS:
                return (
                    f"transform {name!r} has not returned event {event_id!r} within "
                    f"{TRANSFORM_SECONDS:g} s"
                )
        return None

    def give_up(self) -> None:
        """Let the thread end with its present call, which nobody waits for any more."""
        self._is_given_up = True


class _Unusable(Exception):
    """A transform has returned what cannot be used. The message goes on after "has"."""


def _key(key: Any) -> bytes:
    if isinstance(key, bytes):
        return bytes(key)
    if isinstance(key, str):
        return key.encode()
    msg = f"given {_kind(key)} as key, and not text or bytes"
    raise _Unusable(msg)


def _header(header: Any) -> Header:
    if not isinstance(header, tuple | list) or len(header) != 2:  # noqa: PLR2004 - a pair
        msg = f"given {_kind(header)} as header, and not a pair of a name and bytes"
        raise _Unusable(msg)
    name, value = header
    if not isinstance(name, str) or not isinstance(value, bytes | None):
        msg = f"given a header of {_kind(name)} and {_kind(value)}, and not of text and bytes"
        raise _Unusable(msg)
    if name.lower().startswith(OWN_PREFIX):
        msg = f"given the header {name[:100]!r}: only the replay itself writes headers replay-..."
        raise _Unusable(msg)
    name.encode()  # raises ValueError if the text is none
    return name, value


def _text(error: BaseException) -> str:
    """Return an exception as a short text, which can be encoded."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - whatever the exception's own method does
        text = type(error).__name__
    return text[:MAX_MESSAGE].encode(errors="replace").decode()


def _document(value: Any) -> Document:
    if type(value) is dict:
        return value
    msg = f"returned {_kind(value)} and not a document: return a dict, an Output or DROP"
    raise _Unusable(msg)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


# Threads


async def run_in_thread(
    transforms: Transforms | None, function: Callable[[], _Result], seconds: float | None = None
) -> _Result:
    """Run a function, which may call transforms, in a thread, for ``seconds`` at most.

    Python cannot end a thread. A thread whose transform hangs is left alone: it does not keep the
    worker from ending, and a loop in Python ends by an exception.

    Raises
    ------
    ReplayFailed
        When a transform takes longer than TRANSFORM_SECONDS for an event.
    TimeoutError
        When the function takes longer than ``seconds``.

    """
    if transforms is None:
        return await asyncio.to_thread(function)
    call, began = Call(function), time.monotonic()
    waiting = asyncio.shield(asyncio.wrap_future(call.outcome))
    try:
        while not (await asyncio.wait({waiting}, timeout=LOOK_SECONDS))[0]:
            fault = transforms.hanging()
            if fault is not None:
                msg = f"{fault}; correct it, start the workers again, then retry"
                raise ReplayFailed(msg)
            if seconds is not None and time.monotonic() - began > seconds:
                msg = f"the transforms have not done the events of a part within {seconds:g} s"
                raise TimeoutError(msg)
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
