"""``replay-app dead-letters`` and ``discard``: what a replay could not publish, and who cares."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from replay_app.arguments import AddCommand, add_replay_id
from replay_app.commands import Source
from replay_app.dead_letters import LetterGroup, discard_letters, find_dead_letters
from replay_app.exceptions import ReplayError, WrongUsage
from replay_app.logs import silence_aiokafka
from replay_app.reports import MAX_SHOWN_ID
from replay_app.settings import load_settings
from replay_app.sources import settings_for
from replay_app.start_options import add_requested_by, user_name
from replay_app.terminal import say, say_json, table
from replay_app.topics import Topics

DONE = 0
SHOWN_IDS = 3


def add_letters_command(add: AddCommand, parent: Any) -> None:
    """Add the command to the parser."""
    letters = add(
        "dead-letters",
        _dead_letters,
        "List the dead letters of a replay by reason and type",
        parent,
    )
    add_replay_id(letters)
    _add_mapping(letters)
    letters.add_argument(
        "--ids", action="store_true", help="print the ids of the events only, one in each line"
    )

    letters.add_argument(
        "--discarded", action="store_true", help="list the letters that were discarded, and why"
    )

    discard = add(
        "discard",
        _discard,
        "Say of dead letters that nobody needs their events any more, and why",
        parent,
    )
    add_replay_id(discard)
    _add_mapping(discard)
    discard.add_argument("--reason", required=True, metavar="TEXT", help="why nobody needs them")
    add_choice(discard)
    add_requested_by(discard, "requested_by", user_name())


def _add_mapping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mapping", metavar="NAME", help="the mapping of the replay's source, if it names one"
    )


def add_choice(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the options that choose some dead letters of a replay; without any of them all.

    ``names`` are further names of the option for the error.
    """
    parser.add_argument(
        "--error",
        *names,
        dest="error",
        metavar="TEXT",
        help="only letters whose error has this text",
    )
    parser.add_argument("--event-type", metavar="TYPE", help="only letters of this type")
    parser.add_argument(
        "--event-id",
        metavar="ID",
        action="append",
        help="only this event; repeatable",
    )


def chosen_letters(groups: Iterable[LetterGroup], options: argparse.Namespace) -> list[str]:
    """Return the ids of the letters that the options of `add_choice` choose, each once.

    Discarded letters are left out.

    Raises
    ------
    ReplayError
        When not every id is known.

    """
    ids: dict[str, None] = {}
    for group in groups:
        if group.discarded:
            continue
        if options.error is not None and options.error not in group.reason:
            continue
        if options.event_type is not None and options.event_type != group.event_type:
            continue
        if options.event_id is None and len(group.event_ids) < group.count:
            msg = (
                f"{group.count:,} dead letters of type {group.event_type!r} have the error "
                f"{group.reason!r}, too many to be chosen: name some by --event-id, or replay "
                "their time range"
            )
            raise ReplayError(msg)
        ids |= dict.fromkeys(group.event_ids)
    if options.event_id is not None:
        ids = {one: None for one in ids if one in options.event_id}
    odd = [one for one in ids if not one or len(one) >= MAX_SHOWN_ID]
    if odd:
        msg = (
            f"{len(odd):,} dead letters have no id, or one that is too long to be kept: start a "
            "replay of their time range, or name the others by --event-id"
        )
        raise ReplayError(msg)
    return [*ids]


def _discard(options: argparse.Namespace) -> int:
    silence_aiokafka()
    if not options.reason.strip():
        raise WrongUsage("--reason is empty: say why nobody needs these events")
    settings = settings_for(load_settings(), Source(mapping=options.mapping))
    replay_id = options.replay_id
    ids = chosen_letters(asyncio.run(find_dead_letters(settings, replay_id)), options)
    if not ids:
        raise ReplayError(f"replay {replay_id!r} has no such dead letters, or no more of them")
    reason, by = options.reason, options.requested_by or ""
    asyncio.run(discard_letters(settings, replay_id, ids, reason, by))
    if options.json:
        say_json({"replay_id": replay_id, "event_ids": ids})
    else:
        say(f"{len(ids):,} dead letters of replay {replay_id} are discarded: {reason}")
    return DONE


def _dead_letters(options: argparse.Namespace) -> int:
    silence_aiokafka()
    settings = settings_for(load_settings(), Source(mapping=options.mapping))
    found = asyncio.run(find_dead_letters(settings, options.replay_id))
    groups = [group for group in found if bool(group.discarded) == options.discarded]
    if options.json:
        say_json([asdict(group) for group in groups])
    elif options.ids:
        say(*(one for group in groups for one in group.event_ids))
    elif not groups:
        topic = Topics.of(settings).dead_letters.name
        kind = "discarded dead letter" if options.discarded else "dead letter"
        say(f"topic {topic!r} has no {kind} of replay {options.replay_id!r}")
    else:
        table(
            ("EVENTS", "TYPE", "REASON", "SUCH AS", *(("DISCARDED",) if options.discarded else ())),
            (
                (
                    f"{group.count:,}",
                    group.event_type,
                    group.reason,
                    ", ".join(group.event_ids[:SHOWN_IDS]),
                    *((group.discarded,) if options.discarded else ()),
                )
                for group in groups
            ),
        )
    return DONE
