"""``replay-app events``: the matching events as records, on standard output or in a file."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from replay_app.arguments import AddCommand
from replay_app.event_records import read_event_records
from replay_app.exceptions import ReplayError, WrongUsage
from replay_app.logs import escaped
from replay_app.settings import load_settings
from replay_app.sources import settings_for
from replay_app.start_options import add_event_options, start_of
from replay_app.store import EventStore
from replay_app.terminal import cut, say
from replay_app.times import local_exact

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from replay_app.commands import Start
    from replay_app.event_records import EventRecord

DONE, FAILED = 0, 1
REPLAY_ID = "events"
"""Stands for the id of a replay in the records' headers."""
LAST = "last"
"""Stands for the cursor of the last line of the file."""
LINE_BEGIN = b'{"event_id":'
"""How each line begins."""
TAIL_BYTES = 64 << 20
"""Most bytes of a line. A stored event has 16 MiB at most."""
COLUMNS = (("TIME", 28), ("TYPE", 24), ("KEY", 24), ("EVENT ID", 26))
"""The columns of the table, and their widths. The value takes the rest of the line."""


def add_events_command(add: AddCommand, parent: Any) -> None:
    """Add the command to the parser."""
    events = add(
        "events",
        _events,
        "Print the matching events as records, without Kafka and without a worker",
        parent,
    )
    add_event_options(events, "--limit")
    group = events.add_argument_group("how")
    group.add_argument("--out", type=Path, metavar="FILE", help="write lines of JSON to a new file")
    group.add_argument(
        "--after",
        metavar="CURSOR",
        help="go on behind the event that has this member cursor; with --out, append to the file, "
        f"and {LAST!r} is the cursor of its last line",
    )
    group.add_argument(
        "--replay-id",
        dest="body.replay_id",
        default=REPLAY_ID,
        metavar="ID",
        help="the id in the headers of the records (default: %(default)s)",
    )
    events.set_defaults(file=None)


def _events(options: argparse.Namespace) -> int:
    start = start_of(options)
    if options.after == LAST and options.out is None:
        raise WrongUsage(f"--after {LAST} needs --out FILE: the file has the last line")
    return asyncio.run(_write(start, options))


async def _write(start: Start, options: argparse.Namespace) -> int:
    """Write every record; return the exit code."""
    settings = settings_for(load_settings(), start.source)
    # A transform may give bytes.
    is_json = settings.mapping.field_value is None and not start.transforms
    store = EventStore(settings)
    written = failed = 0
    try:
        with _output(options, is_json=is_json) as output:
            pages = read_event_records(start, settings, store, output.after)
            async with contextlib.aclosing(pages):
                async for records in pages:
                    output.write(records)
                    written += len(records)
                    failed += sum(record.error is not None for record in records)
    finally:
        store.close()
    if options.out is not None:
        say(f"{written:,} events are in {options.out}", error=True)
    if failed:
        say(
            f"error: {failed:,} of {written:,} events cannot be replayed; each has its reason in "
            "the member error",
            error=True,
        )
    return FAILED if failed else DONE


class _Output(Protocol):
    """Where the records go."""

    after: str | None
    """The cursor of the event behind which to go on."""

    def write(self, records: Sequence[EventRecord]) -> None:
        """Write some records."""


@contextlib.contextmanager
def _output(options: argparse.Namespace, *, is_json: bool) -> Iterator[_Output]:
    if options.out is None:
        is_table = sys.stdout.isatty() and not options.json
        yield _Table(options.after) if is_table else _Lines(_print, options.after, is_json=is_json)
        return
    try:
        with _open(options.out, is_new=options.after is None) as file:
            after = options.after
            if after == LAST:
                after = _last_cursor(file, options.out)
            elif after is not None:
                file.seek(0, os.SEEK_END)
            yield _Lines(file.write, after, is_json=is_json)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ReplayError(
            f"--out {options.out} cannot be written: {error.strerror}; what the file has now is "
            f"whole up to its last line: go on with --after {LAST}"
        ) from error


def _open(path: Path, *, is_new: bool) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise WrongUsage(f"--out {path} is no file; without --out, the lines go to standard output")
    try:
        return path.open("xb" if is_new else "r+b")
    except FileExistsError as error:
        raise WrongUsage(
            f"--out {path} exists: choose another file, or go on behind its last line with "
            f"--after {LAST}"
        ) from error
    except OSError as error:
        raise WrongUsage(f"--out {path} cannot be written: {error.strerror}") from error


def _last_cursor(file: BinaryIO, path: Path) -> str | None:
    """Cut off a torn last line, and return the cursor of the last one; None if there is no line.

    A line without a cursor belongs to a tie that is not whole: it is cut off, too.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - TAIL_BYTES))
    begin = file.tell()
    lines = file.read(end - begin).splitlines(keepends=True)
    torn = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
    cursor: str | None = None
    while cursor is None and lines:
        cursor = _cursor_of(lines[-1], path)
        if cursor is None:
            lines.pop()
    # Nothing may be cut off that this command has not written.
    if torn[: len(LINE_BEGIN)] != LINE_BEGIN[: len(torn)] or (cursor is None and begin):
        raise _not_ours(path)
    file.seek(begin + sum(map(len, lines)))
    file.truncate()
    return cursor


def _print(lines: bytes) -> None:
    # In a value, a terminal could obey characters that JSON does not escape.
    sys.stdout.write("\n".join(map(escaped, lines.decode().split("\n"))))
    sys.stdout.flush()


def _cursor_of(line: bytes, path: Path) -> str | None:
    """Return the cursor of a line; None between events with equal sort values."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or "event_id" not in event:
        raise _not_ours(path)
    cursor = event.get("cursor")
    return cursor if isinstance(cursor, str) else None


def _not_ours(path: Path) -> WrongUsage:
    return WrongUsage(
        f"--out {path} does not end with a line of `replay-app events`: it stays as it is"
    )


class _Lines:
    """Lines of JSON for programs."""

    def __init__(
        self, write: Callable[[bytes], object], after: str | None, *, is_json: bool
    ) -> None:
        self._write = write
        self._is_json = is_json
        self.after = after

    def write(self, records: Sequence[EventRecord]) -> None:
        """Write a line for each record."""
        self._write(b"".join(record.line(is_json=self._is_json) for record in records))


class _Table:
    """A table for people, line by line: nobody waits for the last event."""

    def __init__(self, after: str | None) -> None:
        self.after = after
        say(_row([name for name, _ in COLUMNS], "VALUE"))

    def write(self, records: Sequence[EventRecord]) -> None:
        """Print a row for each record."""
        for record in records:
            key, event_id = record.key.decode(errors="replace"), record.event_id or ""
            shown = "(no value)" if record.value is None else record.value.decode(errors="replace")
            if record.error is not None:
                shown = f"cannot be replayed: {record.error}"
            time = local_exact(record.time) if record.time else ""
            say(_row([time, record.event_type, key, event_id], shown))


def _row(cells: Sequence[str], last: str) -> str:
    begin = "  ".join(
        f"{cut(cell, width):<{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)
    )
    room = max(20, shutil.get_terminal_size().columns - len(begin) - 2)
    return f"{begin}  {cut(last, room)}"
