"""Logging: the forms of a message, and a limit on floods of messages."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote, quote_plus

LogFormat = Literal["text", "json"]
TEXT_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
CHANGE_FIELDS = ("replay_id", "state", "requested_by", "reason")
"""The fields of a message about a change of a replay. The caller passes them as ``extra``."""
FLOOD_BURST = 5
"""Messages of one place in the code that are written in a window."""
FLOOD_WINDOW_SECONDS = 10.0


_DELETE = 0x7F
_LINE_SEPARATORS = (0x2028, 0x2029)
_DIRECTION_MARKS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that show the text after them in another order."""
_ESCAPES = {
    code: json.dumps(chr(code))[1:-1] if code != _DELETE else "\\u007f"  # JSON lets it stand
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        *_LINE_SEPARATORS,
        *_DIRECTION_MARKS,
        *range(0xD800, 0xE000),
    )
}


def escaped(text: str) -> str:
    r"""Return text without characters that a terminal or a line of a log would obey.

    Control characters, line breaks, marks of the writing direction and halves of surrogate pairs
    are written as in JSON, such as ``\n`` and ``\u001b``. All other text stays as it is.
    """
    return text.translate(_ESCAPES)


def silence_aiokafka() -> None:
    """Silence aiokafka's log: our own message says that a broker does not answer."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class TextLines(logging.Formatter):
    """Writes each message as one line for people. The lines of a traceback are indented."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, escaped: the message may hold text from outside."""
        return escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the traceback. No line of it can be taken for another message."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {escaped(line)}" for line in lines)


class JsonLines(logging.Formatter):
    """Writes each message as one JSON object in one line, with its traceback if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. ``time`` is in UTC, as in RFC 3339."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in CHANGE_FIELDS if name in vars(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(line))


class RateLimit(logging.Filter):
    """Lets the first messages of each place in the code through, again in each window.

    The first message of the next window says how many messages were left out. While a broker is
    away aiokafka logs thousands of lines, and the first few lines tell the cause.
    """

    def __init__(
        self,
        burst: int = FLOOD_BURST,
        window_seconds: float = FLOOD_WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst = burst
        self._window_seconds = window_seconds
        self._clock = clock
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}
        """By file and line: when the window began, and the number of messages since then."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a message."""
        place, now = (record.pathname, record.lineno), self._clock()
        began, count = self._windows.get(place, (now, 0))
        if now - began >= self._window_seconds:
            left_out = count - self._burst
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} such messages left out)"
                record.args = None
            began, count = now, 0
        self._windows[place] = (began, count + 1)
        return count < self._burst


MIN_SECRET = 4
"""Characters of the shortest secret that is hidden: a shorter one is a part of common words."""


class Writer(logging.StreamHandler[Any]):
    """Writes the log, and hides secrets, whoever logs them: a library's error may quote one."""

    def __init__(self, stream: Any, secrets: Iterable[str] = ()) -> None:
        super().__init__(stream)
        self._forms: list[str] = []
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Hide some more secrets from now on."""
        lines = {line for secret in secrets for line in secret.splitlines()}
        forms = {form for line in lines if len(line) >= MIN_SECRET for form in _forms(line)}
        self._forms = sorted(forms.union(self._forms), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with ``***`` for each secret."""
        line = super().format(record)
        for form in self._forms:
            line = line.replace(form, "***")
        return line


def _forms(secret: str) -> set[str]:
    """Return the forms in which messages show a secret: as text, bytes, JSON, or in a URL."""
    forms = {
        secret,
        repr(secret)[1:-1],
        repr(secret.encode(errors="surrogateescape"))[2:-1],
        quote(secret, safe="", errors="replace"),
        quote_plus(secret, errors="replace"),
    }
    for _ in range(2):  # JSON inside a line that is JSON
        forms |= {escaped(form) for form in forms} | {json.dumps(form)[1:-1] for form in forms}
    return forms


def configure_logging(level: str, form: LogFormat = "text", secrets: Iterable[str] = ()) -> None:
    """Write all logs to standard error, warnings of Python and errors that end the process too.

    No line shows one of the ``secrets``.
    """
    writer = Writer(sys.stderr, secrets)
    writer.setFormatter(JsonLines() if form == "json" else TextLines())
    limit = RateLimit()
    writer.addFilter(lambda record: not record.name.startswith("aiokafka") or limit.filter(record))
    logging.basicConfig(level=level, handlers=[writer], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    # An operator has no use for the libraries' everyday messages.
    for noisy in ("aiokafka", "faust", "mode", "pymongo", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))


def hide_secrets(secrets: Iterable[str]) -> None:
    """Let no line of the log show these secrets from now on, if `configure_logging` was called."""
    secrets = [*secrets]
    for writer in logging.getLogger().handlers:
        if isinstance(writer, Writer):
            writer.hide(secrets)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    logging.getLogger("replay_app").critical("%s", error, exc_info=(kind, error, trace))
