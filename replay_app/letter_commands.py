"""``replay-app dead-letters``: what a replay could not publish, by reason and type."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from typing import Any

from replay_app.arguments import AddCommand
from replay_app.commands import Source
from replay_app.dead_letters import find_dead_letters
from replay_app.logs import silence_aiokafka
from replay_app.settings import load_settings
from replay_app.sources import settings_for
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
    letters.add_argument("replay_id")
    letters.add_argument(
        "--mapping", metavar="NAME", help="the mapping of the replay's source, if it names one"
    )
    letters.add_argument(
        "--ids", action="store_true", help="print the ids of the events only, one in each line"
    )


def _dead_letters(options: argparse.Namespace) -> int:
    silence_aiokafka()
    settings = settings_for(load_settings(), Source(mapping=options.mapping))
    groups = asyncio.run(find_dead_letters(settings, options.replay_id))
    if options.json:
        say_json([asdict(group) for group in groups])
    elif options.ids:
        say(*(one for group in groups for one in group.event_ids))
    elif not groups:
        topic = Topics.of(settings).dead_letters.name
        say(f"topic {topic!r} has no dead letter of replay {options.replay_id!r}")
    else:
        table(
            ("EVENTS", "TYPE", "REASON", "SUCH AS"),
            (
                (
                    f"{group.count:,}",
                    group.event_type,
                    group.reason,
                    ", ".join(group.event_ids[:SHOWN_IDS]),
                )
                for group in groups
            ),
        )
    return DONE
