"""``replay-app redrive``: a replay of the events that another replay has dead-lettered.

The redrives of replay ``r`` are ``r.redrive-1``, ``r.redrive-2`` and so on. What one of them has
published, the next ones leave out.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator

from replay_app.answers import SessionJson
from replay_app.arguments import AddCommand, add_replay_id
from replay_app.client import Client, NotFound
from replay_app.commands import Source, Start, parse_command
from replay_app.dead_letters import LetterGroup, find_dead_letters
from replay_app.exceptions import CommandConflict, ReplayError
from replay_app.exit_codes import DONE
from replay_app.letter_commands import add_choice, chosen_letters
from replay_app.logs import silence_aiokafka
from replay_app.parking import parked_behind
from replay_app.questions import require_original
from replay_app.settings import Settings, load_settings
from replay_app.sources import settings_for
from replay_app.start_options import add_requested_by, user_name
from replay_app.states import COMPLETED, TERMINAL
from replay_app.terminal import say, say_json

KEPT = (
    *("source", "target", "redact", "transforms", "check_schemas"),
    *("ordering", "include_replayed", "consumers", "max_lag"),
)
"""Members of the start command that a redrive has, too."""


def add_redrive_command(add: AddCommand) -> None:
    """Add the command to the parser."""
    redrive = add(
        "redrive",
        _redrive,
        "Replay the events that a replay has dead-lettered, after they are mended in the store",
    )
    add_replay_id(redrive)
    add_choice(redrive, "--reason")
    redrive.add_argument(
        "--to-original",
        action="store_true",
        help="publish to the original topics, where the first replay has no such consent",
    )
    redrive.add_argument("--dry-run", action="store_true", help="do everything except publishing")
    add_requested_by(redrive, "requested_by", user_name())


def _redrive(options: argparse.Namespace) -> int:
    silence_aiokafka()
    replay_id = options.replay_id
    client = Client.of_settings(options.url)
    session = client.replay(replay_id).members
    start = session["start"]
    if session["state"] not in TERMINAL:
        msg = (
            f"replay {replay_id!r} is {session['state']}: a redrive comes after all that it "
            "publishes, so let it complete, or cancel it, first"
        )
        raise CommandConflict(msg)
    # The mapping tells the types of the letters; the worker looks at the rest of the source.
    mapping = (start.get("source") or {}).get("mapping")
    settings = settings_for(load_settings(), Source(mapping=mapping))
    letters = _letters(settings, replay_id)
    wanted = chosen_letters(letters, options)
    name, published = _next(client, settings, replay_id)
    ids = [one for one in wanted if one not in published]
    _require_whole_chains(letters, {*wanted}, published)
    if not ids:
        what = "are published by a redrive" if wanted else "fit"
        word = "all" if wanted else "none"
        raise ReplayError(f"of the dead letters of replay {replay_id!r}, {word} {what}")
    body = {
        **{member: start[member] for member in KEPT if start.get(member)},
        "replay_id": name,
        "filter": {"event_ids": ids},
        "on_error": "park" if _parks(session) else "dead-letter",
        "reason": f"redrive of {replay_id}",
        "dry_run": options.dry_run,
        "to_original": options.to_original or start.get("to_original", False),
        **({"requested_by": options.requested_by} if options.requested_by else {}),
    }
    if options.dry_run:  # nothing is published that a group could read
        body = {one: value for one, value in body.items() if one not in {"consumers", "max_lag"}}
    command = parse_command(json.dumps(body).encode(), fixed={"command": "start"})
    if not isinstance(command, Start):  # `command` is fixed above
        raise TypeError(command)
    if command.reaches_originals and not command.to_original:
        topics = sorted((session["plan"] or {}).get("by_topic", {}))
        require_original(options, [name], topics, "to do so, add --to-original")
        command = command.model_copy(update={"to_original": True})
    client.start(command)
    if options.json:
        say_json({"replay_id": name, "event_ids": ids})
    else:
        say(
            f"replay {name} is requested for {len(ids):,} of {len(wanted):,} dead letters; see: "
            f"replay-app watch {name}"
        )
    return DONE


def _parks(session: SessionJson) -> bool:
    """Return whether a replay has parked events, also if only a retry has asked for that."""
    return "park" in {session.get("retry_on_error"), session["start"]["on_error"]}


def _require_whole_chains(
    letters: Iterable[LetterGroup], wanted: set[str], published: set[str]
) -> None:
    """Raise `ReplayError` if only some of the events of a parked aggregate are wanted.

    The others would come later, and out of their order.
    """
    chains: dict[str, set[str]] = {}
    open_letters = {one for group in letters if not group.discarded for one in group.event_ids}
    for group in letters:
        behind = parked_behind(group.reason)
        if behind is not None and not group.discarded:
            chains.setdefault(behind, {behind} & open_letters).update(group.event_ids)
    for behind, events in chains.items():
        chosen, left = events & wanted, events - wanted - published
        if chosen and left:
            msg = (
                f"event {min(chosen)!r} is to be redriven, and {min(left)!r} of the same aggregate "
                f"is not: events that are parked behind {behind!r} are redriven together, in their "
                "order. Choose all of them, or discard those that nobody needs"
            )
            raise ReplayError(msg)


def _letters(settings: Settings, replay_id: str) -> list[LetterGroup]:
    return asyncio.run(find_dead_letters(settings, replay_id))


def _next(client: Client, settings: Settings, replay_id: str) -> tuple[str, set[str]]:
    """Return the id of the next redrive, and the ids of the events that others have published.

    Raises
    ------
    CommandConflict
        When a redrive has not ended yet.

    """
    published: set[str] = set()
    known = [*_redrives(client, replay_id)]
    for session in known:
        name, state = session["replay_id"], session["state"]
        if state in COMPLETED:
            if not session["start"]["dry_run"]:
                published |= _published_by(settings, session)
        elif state != "cancelled":  # what it has published is not known: consumers know the ids
            msg = f"redrive {name} is {state}: let it complete, or cancel it, then redrive again"
            raise CommandConflict(msg)
    return _name(replay_id, len(known) + 1), published


def _published_by(settings: Settings, session: SessionJson) -> set[str]:
    """Return the ids of the events that a completed redrive has published.

    Raises
    ------
    ReplayError
        When they are not known.

    """
    name, wanted = session["replay_id"], {*session["start"]["filter"]["event_ids"]}
    failed = _letters(settings, name) if session["state"] == "completed_with_errors" else []
    published = wanted - {one for group in failed for one in group.event_ids}
    dropped = session["receipt"].get("dropped", 0) if session["receipt"] else 0
    if len(published) != session["counters"]["published"] + dropped:
        msg = (
            f"redrive {name} was to publish {len(published):,} events, and has published "
            f"{session['counters']['published']:,}: some are not in the store under their ids any "
            "more, or were skipped. Which ones is not known here: start a replay of the events "
            "that you miss, by --event-id or by their time"
        )
        raise ReplayError(msg)
    return published


def _redrives(client: Client, replay_id: str) -> Iterator[SessionJson]:
    """Yield the redrives of a replay that there are, the oldest first."""
    for number in itertools.count(1):
        try:
            yield client.replay(_name(replay_id, number)).members
        except NotFound:
            return


def _name(replay_id: str, number: int) -> str:
    return f"{replay_id}.redrive-{number}"
