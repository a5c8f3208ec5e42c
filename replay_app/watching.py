"""Watching a replay until it has ended: its progress, its end, and the exit code."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from replay_app.accounts import amounts, is_dry_run, progress_line, replayable
from replay_app.answers import Replay, SessionJson
from replay_app.arguments import positive_number
from replay_app.chains import differences
from replay_app.client import ENDED, FOLLOW_PATIENCE_SECONDS, Client, Refused
from replay_app.commands import Start
from replay_app.exit_codes import (
    CANCELLED,
    COMPLETED_WITH_ERRORS,
    DONE,
    FAILED,
    INTERRUPTED,
    NONE_REPLAYED,
)
from replay_app.logs import escaped
from replay_app.terminal import command_line, say, say_json

LINE_SECONDS = 1.0  # between two plain lines if only the counters have changed
_CONFLICT = 409


def add_patience(parser: ArgumentParser) -> None:
    """Add the option that says how long no worker may answer."""
    parser.add_argument(
        "--patience",
        type=positive_number,
        default=FOLLOW_PATIENCE_SECONDS,
        metavar="SECONDS",
        help="give up after SECONDS without an answer of a worker (default: %(default)g)",
    )


def watch(client: Client, options: Namespace, replay_id: str, started: Start | None = None) -> int:
    """Show a replay until it has ended; return the exit code.

    ``started`` is the command that has just started the replay. Ctrl-C ends only the watching:
    the replay goes on, and standard error says how to follow it.
    """
    replays = client.follow(
        replay_id,
        patience_seconds=options.patience,
        just_started=started is not None,
        on_trouble=lambda trouble: say(trouble, error=True),
    )
    if started is not None:
        replays = _only_of(replays, started)
    try:
        last = show_progress(replays, as_json=options.json)
    except KeyboardInterrupt:
        follow = command_line(options, "watch", replay_id)
        say(f"{replay_id} goes on; to follow it: {follow}", error=True)
        return INTERRUPTED
    for line in warnings_at_the_end(last.members, options):
        say(line, error=True)
    count = replayable(last.members)
    if is_dry_run(last.members) and last.state != "failed" and not options.json:
        say(f"{replay_id} was a dry run: {count:,} events are valid, none was published")
    return exit_code(last, count)


def exit_code(ended: Replay, replayable_events: int) -> int:
    """Return the exit code of a replay that has ended."""
    if ended.state == "completed_with_errors":
        return COMPLETED_WITH_ERRORS if replayable_events else NONE_REPLAYED
    return {"failed": FAILED, "cancelled": CANCELLED}.get(ended.state, DONE)


def _only_of(replays: Iterator[Replay], started: Start) -> Iterator[Replay]:
    """Yield the replays; refuse them if they belong to an older start with the same id."""
    for replay in replays:
        if differences(replay.start, started):
            raise Refused(
                f"replay {replay.replay_id!r} exists with another body (state "
                f"{replay.state}); choose a new --replay-id",
                _CONFLICT,
                replay.state,
            )
        yield replay


def show_progress(replays: Iterable[Replay], *, as_json: bool = False) -> Replay:
    """Show a replay's progress until ``replays`` ends; return the last one.

    With ``as_json`` each changed session is a line of JSON. Otherwise a terminal shows a bar, and a
    file or pipe gets a line of text for each change.
    """
    last: list[Replay] = []

    def sessions() -> Iterator[SessionJson]:
        for replay in replays:
            last[:] = [replay]
            yield replay.members

    if as_json:
        shown = _print_json_lines(sessions())
    elif sys.stdout.isatty():
        shown = _draw_bar(sessions())
    else:
        shown = _print_lines(sessions())
    for _ in shown:
        pass
    return last[0]


def _print_json_lines(sessions: Iterable[SessionJson]) -> Iterator[SessionJson]:
    last = None
    for session in sessions:
        if session != last:
            say_json(session, indent=None)
        last = session
        yield session


def _print_lines(sessions: Iterable[SessionJson]) -> Iterator[SessionJson]:
    shown, shown_at = None, 0.0
    for session in sessions:
        line = progress_line(session)
        state = (session["state"], session["reason"], session["stalled"])
        is_due = time.monotonic() - shown_at >= LINE_SECONDS
        if shown is None or state != shown[0] or (line != shown[1] and is_due):
            shown, shown_at = (state, line), time.monotonic()
            say(line)
        yield session


def _draw_bar(sessions: Iterable[SessionJson]) -> Iterator[SessionJson]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
    )
    with Progress(*columns, console=Console(highlight=False)) as progress:
        bar = progress.add_task("", total=None, amount="")
        for session in sessions:
            progress.update(
                bar,
                description=f"{session['replay_id']} {session['state']}",
                total=session["matched"],
                completed=session["counters"]["read"],
                amount=escaped(", ".join(amounts(session))),
            )
            if session["state"] in ENDED:
                progress.stop_task(bar)
            yield session


def warnings_at_the_end(session: SessionJson, options: Namespace) -> Iterator[str]:
    """Yield what a person must know about a replay that has ended."""
    replay_id, error = session["replay_id"], session["error"]
    if session["state"] == "completed_with_errors":
        how_many = "some" if replayable(session) else "all"
        yield (
            f"warning: {replay_id} completed, but {how_many} events could not be replayed; "
            f"see: {command_line(options, 'status', replay_id)}"
        )
    if error:
        yield f"error: {_with_command(error, command_line(options, 'retry', replay_id))}"


def _with_command(error: str, command: str) -> str:
    """Return an error with the command for what it advises, unless a retry would not help."""
    if error.endswith("then retry"):
        return f"{error.removesuffix(' retry')}: {command}"
    if "retry" in error:
        return f"{error} (the command is: {command})"
    return error if "new id" in error else f"{error}; then: {command}"
