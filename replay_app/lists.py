"""``replay-app list``: replays in one line each, once or again and again."""

from __future__ import annotations

import sys
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from replay_app.answers import Replay
from replay_app.arguments import TIME_HELP, AddCommand, moment, positive, state
from replay_app.client import Client
from replay_app.exceptions import Unavailable
from replay_app.exit_codes import DONE
from replay_app.logs import escaped
from replay_app.sessions import MAX_LISTED
from replay_app.terminal import PIPED_COLUMNS, cut, say, say_json
from replay_app.times import age, local

WATCH_SECONDS = 1.0
QUICK_SECONDS = 2.0
GAP = 2
"""Spaces between two columns."""
COLUMNS = ("REPLAY", "STATE", "DRY", "DONE", "TARGET", "AGE")
WIDE_COLUMNS = (*COLUMNS, "READ", "FAILED", "EVENTS/S", "CREATED", "BY", "NAME")
LEAST_TARGET, GOOD_ID, LEAST_ID = 8, 30, 12
"""Characters of the two columns that are cut where a line is too long. An id that the program has
made without a name has 29."""
LEAST_NEEDED = ("AGE", "DONE", "DRY", "TARGET")
"""The columns that go where a line is still too long, in this order."""
STYLES = {
    "running": "cyan",
    "completed": "green",
    "completed_with_errors": "yellow",
    "failed": "bold red",
    "paused": "yellow",
    "pausing": "yellow",
    "cancelling": "magenta",
    "cancelled": "magenta",
}
"""The colour of each state; the others have none."""


def add_list_command(add: AddCommand) -> None:
    """Add the command to the parser."""
    listing = add("list", _list, "List the replays, the newest first")
    listing.add_argument(
        "--state",
        action="append",
        type=state,
        metavar="STATE",
        help="only replays in this state; repeatable",
    )
    listing.add_argument(
        "--since", type=moment, metavar="TIME", help=f"only replays created since then, {TIME_HELP}"
    )
    listing.add_argument(
        "--text",
        metavar="TEXT",
        help="only replays with this text in id, name, reason, chain, target, types or requester",
    )
    listing.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="the newest N replays; without -o name, all that are under way or failed come, too",
    )
    listing.add_argument(
        "-o",
        "--output",
        choices=["wide", "json", "name"],
        help="wide: more columns; json: as --json; name: ids only, one in each line",
    )
    # For completion: a key must not wait for a worker that is away.
    listing.add_argument("--quick", action="store_true", help=SUPPRESS)
    listing.add_argument("--watch", action="store_true", help="show the list again until Ctrl-C")


def _list(options: Namespace) -> int:
    options.json = options.json or options.output == "json"
    client = Client.of_settings(options.url)
    if options.quick:
        client.answer_seconds, client.patience_seconds = QUICK_SECONDS, 0.0
    if options.watch:
        return _watch(client, options)
    found = _find(client, options)
    if options.json:
        say_json(found.answer)
    elif options.output == "name":
        for replay in found.replays[: options.limit]:
            say(replay.replay_id)
    elif not found.replays:
        say("no replay fits" if options.state or options.text or options.since else "no replays")
    else:
        _print(found.replays, options)
        if found.more:
            say(f"{found.more}; --limit N shows more", error=True)
    return DONE


@dataclass(frozen=True)
class _Found:
    """What the worker lists."""

    replays: Sequence[Replay]
    answer: dict[str, Any]
    """As the API answers, with the replays of all pages."""

    @property
    def more(self) -> str | None:
        """How many replays are not listed, in words; None if no page is left."""
        if self.answer.get("next") is None:
            return None
        return f"{len(self.replays):,} of {self.answer['total']:,} replays are shown"


def _find(client: Client, options: Namespace) -> _Found:
    """Ask for as many pages as the limit needs."""
    wanted: dict[str, Any] = {
        "states": tuple(options.state or ()),
        "text": options.text,
        "since": options.since and datetime.fromisoformat(options.since),
    }
    limit: int | None = options.limit
    page = client.page(**wanted, limit=limit and min(limit, MAX_LISTED))
    answer, replays = page.members, list(page.replays)
    while limit is not None and page.next is not None and len(replays) < limit:
        size = min(limit - len(replays), MAX_LISTED)
        page = client.page(**wanted, limit=size, cursor=page.next)
        replays += page.replays
        answer = {**answer, "next": page.next, "replays": [one.members for one in replays]}
    return _Found(replays, answer)


def _watch(client: Client, options: Namespace) -> int:
    """Show the list until Ctrl-C: a terminal draws it again, a pipe gets it after each change."""
    found = _find(client, options)  # an error at the beginning ends the command
    draws = sys.stdout.isatty() and not options.json and options.output != "name"
    try:
        if draws:
            _draw(client, options, found)
        else:
            _print_changes(client, options, found)
    except KeyboardInterrupt:
        pass  # this is how a person ends the list
    return DONE


def _lists(client: Client, options: Namespace, found: _Found) -> Iterator[tuple[_Found, str]]:
    """Yield the list again and again, with what is wrong; the old list while nobody answers."""
    heard = datetime.now().astimezone()
    trouble = ""
    while True:
        yield found, trouble
        time.sleep(WATCH_SECONDS)
        try:
            found, trouble = _find(client, options), ""
            heard = datetime.now().astimezone()
        except Unavailable as error:
            trouble = f"as of {heard:%H:%M:%S %Z}: {error}"


def _draw(client: Client, options: Namespace, first: _Found) -> None:
    console = _console()
    with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        for found, trouble in _lists(client, options, first):
            # First: a list that is longer than the terminal is cut at its end.
            notes = [escaped(note) for note in (trouble, found.more) if note]
            parts: list[RenderableType] = [Text(note, style="yellow") for note in notes]
            live.update(Group(*parts, _grid(found.replays, options, console.width)), refresh=True)


def _print_changes(client: Client, options: Namespace, first: _Found) -> None:
    shown, told = None, ""
    for found, trouble in _lists(client, options, first):
        if trouble and trouble != told:
            say(trouble, error=True)
        told = trouble
        now = [(one.replay_id, one.revision, one.updated_at) for one in found.replays]
        if now == shown:
            continue
        shown = now
        if options.json:
            say_json(found.answer, indent=None)
        elif options.output == "name":
            say(*(one.replay_id for one in found.replays[: options.limit]), "")
        else:
            _print(found.replays, options)
            say("")


def _print(replays: Sequence[Replay], options: Namespace) -> None:
    """Print the table once. The wide one may be wider than the terminal."""
    console = _console()
    if options.output == "wide":
        console.width = max(console.width, PIPED_COLUMNS)
    console.print(_grid(replays, options, console.width))


def _console() -> Console:
    """Return a console; a pipe is as wide as the widest table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    return console


def _grid(replays: Sequence[Replay], options: Namespace, width: int) -> Table:
    """Return the table, in which each replay has one line of the width."""
    now = datetime.now(UTC)
    is_wide = options.output == "wide"
    names, cells_of = (WIDE_COLUMNS, _wide_cells) if is_wide else (COLUMNS, _cells)
    rows = [[*map(escaped, cells_of(one, now))] for one in replays]
    widths = {
        name: max(map(len, column))
        for name, column in zip(names, zip(names, *rows, strict=True), strict=True)
    }
    if not is_wide:
        _fit(widths, width)
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for name in widths:
        grid.add_column(name, no_wrap=True, overflow="ellipsis")
    for replay, row in zip(replays, rows, strict=True):
        cells = {name: Text(cell) for name, cell in zip(names, row, strict=True)}
        cells["REPLAY"] = Text(_cut_inside(cells["REPLAY"].plain, widths["REPLAY"]))
        cells["STATE"].stylize(STYLES.get(replay.state, ""))
        target = cells["TARGET"].plain
        cells["TARGET"] = Text(cut(target, widths.get("TARGET", len(target))))
        if target.startswith("LIVE"):
            cells["TARGET"].stylize("bold red")
        grid.add_row(*(cells[name] for name in widths))
    return grid


def _fit(widths: dict[str, int], width: int) -> None:
    """Make the columns fit: ids and targets are cut, then columns go. A state is always whole."""

    def over() -> int:
        return max(0, sum(widths.values()) + GAP * (len(widths) - 1) - width)

    for name, least in (("REPLAY", GOOD_ID), ("TARGET", LEAST_TARGET), ("REPLAY", LEAST_ID)):
        widths[name] -= min(over(), max(widths[name] - least, 0))
    for name in LEAST_NEEDED:
        if over():
            del widths[name]
    widths["REPLAY"] -= min(over(), widths["REPLAY"] - 1)


def _cut_inside(text: str, most: int) -> str:
    """Cut a text in its middle: the end of an id tells replays of one name apart."""
    if len(text) <= most:
        return text
    begin = (most - 1) // 2
    return f"{text[:begin]}…{text[len(text) - (most - 1 - begin) :]}"


def _cells(replay: Replay, now: datetime) -> tuple[str, ...]:
    return (
        replay.replay_id,
        replay.state + (" (stalled)" if replay.stalled else ""),
        "dry" if replay.start.dry_run else "",
        _done(replay),
        target_text(replay),
        age(replay.members["created_at"], now),
    )


def _wide_cells(replay: Replay, now: datetime) -> tuple[str, ...]:
    counters, speed = replay.counters, replay.events_per_second
    failed = counters.skipped + counters.dead_lettered
    return (
        *_cells(replay, now),
        f"{counters.read:,}",
        f"{failed:,}" if failed else "",
        f"{speed:,.0f}" if speed else "",
        local(replay.members["created_at"]),
        replay.start.requested_by or "",
        replay.start.name or "",
    )


def _done(replay: Replay) -> str:
    """Return how much is read: a share of the matching events, or a number where none is known."""
    if replay.percent is not None:
        return f"{int(replay.percent)}%"
    read = float(replay.counters.read)
    for unit in ("", "k", "M", "G"):
        if read < 1000:  # noqa: PLR2004 - of the units
            return f"{read:.3g}{unit}" if read else ""
        read /= 1000
    return f"{read:.3g}T"


def target_text(replay: Replay) -> str:
    """Return where a replay publishes, such as ``rebuild.*``; LIVE where it reaches originals."""
    target = replay.start.target
    if target.prefix is not None:
        return f"{target.prefix}*"
    if target.topic is not None:
        return target.topic
    return "LIVE" if replay.start.reaches_originals else "original"
