"""Functions that settings name as ``module:function``: how they are found and called."""

from __future__ import annotations

import concurrent.futures
import importlib
import threading
from typing import TYPE_CHECKING, Any

from replay_app.exceptions import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Callable


class Call(threading.Thread):
    """A call in a thread of its own.

    A function that hangs holds up neither the encoding, which has the threads of the event loop,
    nor the end of the process.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        """Begin to call ``function``."""
        super().__init__(daemon=True)
        self._function = function
        self.outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        """Never cancelled: a waiter shields it."""
        self.start()

    def run(self) -> None:
        """Call the function; in the new thread."""
        try:
            self.outcome.set_result(self._function())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets the error
            self.outcome.set_exception(error)


def imported(setting: str, place: str) -> Callable[..., Any]:
    """Return the function at a place ``module:function``; ``setting`` has the place.

    Raises
    ------
    InvalidSettings
        When the module cannot be imported, or when it has no such function.

    """
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except BaseException as error:  # also SystemExit: whatever the module does
        msg = f"{setting}={place}: write module:function, of a module on PYTHONPATH: {error!r}"
        raise InvalidSettings(msg) from error
    if not callable(function):
        msg = f"{setting}={place} is no function"
        raise InvalidSettings(msg)
    made: Callable[..., Any] = function
    return made
