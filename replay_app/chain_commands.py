"""The commands for a whole chain: apply a file, show and watch, pause, resume and cancel."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from replay_app.accounts import plan_account, progress_line
from replay_app.answers import SessionJson
from replay_app.arguments import AddCommand, add_replay_id
from replay_app.chain_files import read_chain_file
from replay_app.chain_tree import has_succeeded, is_over, parents_first, tree_lines
from replay_app.chains import Chain
from replay_app.client import ENDED, Client, NotFound, Refused
from replay_app.exceptions import Unavailable, WrongUsage
from replay_app.exit_codes import DONE, FAILED, REFUSED
from replay_app.logs import escaped
from replay_app.questions import can_ask, require_original
from replay_app.start_options import add_requested_by, user_name
from replay_app.terminal import command_line, say, say_json, table
from replay_app.watching import add_patience

CHAIN_VERBS = ("pause", "resume", "cancel")
"""The verbs that the command line also takes for a chain."""
CHILDREN_FIRST = ("pause", "cancel")
"""Otherwise a child could begin while its parents are being stopped."""
POLL_SECONDS = 0.5


def add_chain_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    apply = add("apply", _apply, "Start what of a chain file is not started yet")
    apply.add_argument("file", metavar="FILE", help="the chain as YAML, - for standard input")
    apply.add_argument("--plan", action="store_true", help="only show what each replay would do")
    apply.add_argument("--wait", action="store_true", help="show the chain until its end")
    apply.add_argument(
        "--to-original",
        action="store_true",
        help="publish to the events' original topics, where a replay of the chain has no target",
    )
    add_requested_by(apply, "requested_by", None)
    add_patience(apply)
    chain = add("chain", _chain, "Show the replays of a chain as a tree")
    chain.add_argument("name", metavar="NAME", help="the chain's name")
    chain.add_argument("--watch", action="store_true", help="until nothing moves any more")
    add_patience(chain)


def _apply(options: Namespace) -> int:
    succeeded = apply_file(Client.of_settings(options.url), options)
    return DONE if succeeded else REFUSED if options.plan else FAILED


def _chain(options: Namespace) -> int:
    client = Client.of_settings(options.url)
    if options.watch:
        return DONE if watch_chain(client, options.name, options) else FAILED
    show_chain(client, options)
    return DONE


def add_replay_or_chain(parser: ArgumentParser, verb: str) -> None:
    """Add the argument that says what a verb is for."""
    if verb not in CHAIN_VERBS:
        add_replay_id(parser)
        return
    add_replay_id(parser, nargs="?")
    parser.add_argument("--chain", metavar="NAME", help="every replay of this chain")


def chosen_chain(options: Namespace) -> str | None:
    """Return the chain that a verb is for; None if the verb is for one replay."""
    chain: str | None = getattr(options, "chain", None)
    if (chain is None) == (options.replay_id is None):
        which = "a replay_id or --chain, not both" if chain else "a replay_id, or --chain NAME"
        raise WrongUsage(f"{options.verb} takes {which}")
    return chain


def apply_file(client: Client, options: Namespace) -> bool:
    """Start what of a chain file is not started yet; with ``--plan`` only plan. Return success."""
    name = "standard input" if options.file == "-" else options.file
    chain, members = read_chain_file(name, _read(options.file))
    if options.plan:
        return _plan(client, chain, as_json=options.json)
    defaults = dict(members.get("defaults") or {})
    if options.requested_by:
        defaults["requested_by"] = options.requested_by
    elif not defaults.get("requested_by") and (user := user_name()):
        defaults["requested_by"] = user
    replays = _with_consent(client, chain, members["replays"], options)
    answer = client.apply({**members, "defaults": defaults, "replays": replays})
    if options.wait:
        applied = frozenset(start.replay_id for start in chain.starts)
        return watch_chain(client, chain.name, options, applied)
    if options.json:
        say_json(answer.members)
    else:
        table(
            ("REPLAY", "OUTCOME", "STATE"),
            ((one.replay_id, one.outcome, one.state or "") for one in answer.replays),
        )
        say(f"see: {command_line(options, 'chain', chain.name, '--watch')}")
    return True


def _with_consent(
    client: Client, chain: Chain, replays: Mapping[str, Any], options: Namespace
) -> dict[str, Any]:
    """Return the replays of the file, with the consent to publish to original topics if needed.

    Raises
    ------
    WrongUsage
        A replay needs the consent, and nobody can be asked.
    NotConfirmed
        The answer is not yes.

    """
    needy = [one for one in chain.starts if one.reaches_originals and not one.to_original]
    if needy and not options.to_original:
        topics: dict[str, None] = {}
        for start in needy if can_ask(options) else ():
            with suppress(Refused):  # a replay that waits for others may have no plan yet
                topics |= dict.fromkeys(client.plan(start).live_topics)
        remedy = "to do so, add --to-original, or to_original: true to the replay in the file"
        require_original(options, [one.replay_id for one in needy], list(topics), remedy)
    short = {one.replay_id.removeprefix(f"{chain.name}.") for one in needy}
    return {
        name: {**(written or {}), "to_original": True} if name in short else written
        for name, written in replays.items()
    }


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise WrongUsage(f"{file} cannot be read: {error.strerror}") from error


def _plan(client: Client, chain: Chain, *, as_json: bool) -> bool:
    """Show what each replay would do; a replay that could not succeed does not hide the others."""
    plans: list[dict[str, Any]] = []
    for start in chain.starts:
        try:
            plan = client.plan(start).members
            plans.append({"replay_id": start.replay_id, "plan": plan})
        except Refused as error:
            plans.append({"replay_id": start.replay_id, "error": str(error)})
    if as_json:
        say_json({"chain": chain.name, "plans": plans})
    for one in [] if as_json else plans:
        say(one["replay_id"])
        if "plan" in one:
            say(*plan_account(one["plan"]))
        else:
            say(f"error: {one['replay_id']}: {one['error']}", error=True)
    return all("plan" in one for one in plans)


def show_chain(client: Client, options: Namespace) -> None:
    """Show a chain once."""
    sessions = sessions_of(client, options.name)
    if options.json:
        say_json({"chain": options.name, "replays": parents_first(sessions)})
    else:
        say(*tree_lines(options.name, sessions))


def sessions_of(
    client: Client, name: str, applied: frozenset[str] = frozenset()
) -> list[SessionJson]:
    """Return the sessions of a chain.

    Raises `Unavailable` while one of the ``applied`` replays has no session, and `NotFound` if
    there is no session at all.
    """
    sessions = [replay.members for replay in client.chain(name)]
    if applied - {session["replay_id"] for session in sessions}:
        msg = f"the worker does not know every replay of chain {name!r} yet"
        raise Unavailable(msg)
    if not sessions:
        raise NotFound(f"there is no chain {name!r}; see: replay-app list")
    return sessions


def watch_chain(
    client: Client, name: str, options: Namespace, applied: frozenset[str] = frozenset()
) -> bool:
    """Show a chain until nothing of it moves any more; return whether every replay succeeded.

    A replay that names consumers is not done before its consumers have read all of it. ``applied``
    are the ids of replays that were just started: a part of the chain is not taken for the whole.
    """
    found = _follow(client, name, options.patience, applied)
    if options.json:
        found = _print_json_lines(name, found)
    elif sys.stdout.isatty():
        found = _draw(name, found)
    else:
        found = _print_lines(name, found)
    sessions: list[SessionJson] = []
    try:
        for sessions in found:  # noqa: B007 - the last ones count
            pass
    except KeyboardInterrupt:
        follow = command_line(options, "chain", name, "--watch")
        say(f"chain {name} goes on; to follow it: {follow}", error=True)
        raise
    return has_succeeded(sessions)


def _follow(
    client: Client, name: str, patience_seconds: float, applied: frozenset[str]
) -> Iterator[list[SessionJson]]:
    """Yield a chain's sessions again and again, until it is over.

    While no worker answers, or the worker does not know each of the ``applied`` replays yet, the
    reason is told once, and raised after ``patience_seconds``.
    """
    heard, trouble = time.monotonic(), ""
    while True:
        try:
            sessions = sessions_of(client, name, applied)
            applied = frozenset()
        except Unavailable as error:
            if time.monotonic() - heard >= patience_seconds:
                raise
            if str(error) != trouble:
                trouble = str(error)
                say(f"{trouble}; trying for up to {patience_seconds:g} s", error=True)
        else:
            heard, trouble = time.monotonic(), ""
            yield sessions
            if is_over(sessions):
                return
        time.sleep(POLL_SECONDS)


def _print_json_lines(name: str, found: Iterator[list[SessionJson]]) -> Iterator[list[SessionJson]]:
    last = None
    for sessions in found:
        ordered = parents_first(sessions)
        if ordered != last:
            say_json({"chain": name, "replays": ordered}, indent=None)
        last = ordered
        yield sessions


def _print_lines(name: str, found: Iterator[list[SessionJson]]) -> Iterator[list[SessionJson]]:
    """Print a line for each replay whose state or reason has changed, and the tree at the end."""
    shown: dict[str, tuple[Any, ...]] = {}
    sessions: list[SessionJson] = []
    for sessions in found:
        for session in parents_first(sessions):
            told = (session["state"], session["reason"], session["stalled"])
            if shown.get(session["replay_id"]) != told:
                shown[session["replay_id"]] = told
                say(progress_line(session))
        yield sessions
    say(*tree_lines(name, sessions))


def _draw(name: str, found: Iterator[list[SessionJson]]) -> Iterator[list[SessionJson]]:
    with Live(console=Console(highlight=False), vertical_overflow="visible") as live:
        for sessions in found:
            lines = map(escaped, tree_lines(name, sessions))
            live.update(Text("\n".join(lines)), refresh=True)
            yield sessions


def steer_chain(client: Client, options: Namespace) -> bool:
    """Give one command to each replay of a chain that it would change; return success."""
    name, verb = options.chain, options.verb
    ordered = parents_first(sessions_of(client, name))
    if verb in CHILDREN_FIRST:
        ordered.reverse()
    done: list[str] = []
    left: dict[str, str] = {}
    refused: dict[str, str] = {}
    for session in ordered:
        replay_id = session["replay_id"]
        if verb not in session["verbs"]:
            left[replay_id] = session["state"]
            continue
        try:
            client.command(replay_id, verb, options.requested_by)
            done.append(replay_id)
        except Refused as error:
            if error.state in ENDED:  # meanwhile
                left[replay_id] = str(error.state)
            else:
                refused[replay_id] = str(error)
    if options.json:
        say_json({"chain": name, "requested": done, "left": left, "refused": refused})
        return not refused
    heading = f"{verb} is requested for {len(done)} replays of chain {name}"
    say(heading, *(f"  {one}" for one in done))
    if left:
        say("left as they are:", *(f"  {one} ({state})" for one, state in left.items()))
    for replay_id, why in refused.items():
        say(f"error: {replay_id}: {why}", error=True)
    return not refused
