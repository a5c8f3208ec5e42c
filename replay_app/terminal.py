"""Output: lines of text, tables, and JSON. Text from outside cannot steer the terminal."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay_app.logs import escaped

PIPED_COLUMNS = 200
"""The width of a table that is not printed to a terminal."""


def say(*lines: str, error: bool = False) -> None:
    """Print lines of text. Control characters are escaped: any client may have named the replay."""
    # A new console each time: standard output may have changed.
    text = "\n".join(map(escaped, lines))
    Console(stderr=error, highlight=False).print(Text(text), soft_wrap=True)


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON to standard output, and flush. Control characters are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    print("\n".join(map(escaped, text.split("\n"))), flush=True)  # noqa: T201 - the output


def answer_with(options: Namespace, answer: Any, *lines: str) -> None:
    """Print the answer of a command: as JSON for programs, or some lines for people."""
    if options.json:
        say_json(answer)
    else:
        say(*lines)


def command_line(options: Namespace, *words: str) -> str:
    """Return a command that a person may type next, for the same worker as this one."""
    url = ["--url", options.url] if getattr(options, "url", None) else []
    return shlex.join(["replay-app", *words, *url])


def cut(text: str, most: int) -> str:
    """Return a text of ``most`` characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escaped(str(cell))) for cell in row))
    console.print(grid)


def show_claims(claims: Mapping[str, tuple[bool, str]]) -> None:
    """Print a line for each claim: whether the claim holds, and the figures."""
    say("")
    for claim, (holds, figures) in claims.items():
        say(f"  {'ok    ' if holds else 'FAILED'}  {claim:<42} {figures}")
    say("")


def duration(seconds: float) -> str:
    """Return a duration in at most two units, such as "1 h 5 min"."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s" if seconds >= 1 else f"{seconds:.1f} s"
