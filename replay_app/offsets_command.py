"""``replay-app offsets``: shows, or sets, where a consumer group reads on."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from replay_app.arguments import AddCommand, add_replay_id
from replay_app.client import Client
from replay_app.exit_codes import DONE
from replay_app.group_offsets import (
    execute_moves,
    find_moves,
    offsets_shown,
    require_group,
    wanted_offsets,
)
from replay_app.logs import silence_aiokafka
from replay_app.settings import load_settings
from replay_app.terminal import answer_with, say, table


def add_offsets_command(add: AddCommand) -> None:
    """Add the command to the parser."""
    _add_options(add("offsets", _offsets, "Show, or set, where a consumer group reads on"))


def _add_options(parser: ArgumentParser) -> None:
    add_replay_id(parser)
    parser.add_argument("--group", required=True, help="the consumer group; it has no members now")
    parser.add_argument(
        "--to",
        required=True,
        choices=["begin", "handover"],
        help="begin: the first record of the replay in each partition; handover: where the live "
        "topics go on after the replay",
    )
    parser.add_argument("--execute", action="store_true", help="set the offsets that are shown")


def _offsets(options: Namespace) -> int:
    require_group(options.group)
    session = Client.of_settings(options.url).replay(options.replay_id).members
    wanted = wanted_offsets(session, options.to)
    silence_aiokafka()
    settings = load_settings()
    found = asyncio.run(find_moves(settings, options.group, options.to, wanted))
    if not options.json:
        say(f"group {options.group} on {found.cluster}, to the {options.to} of {options.replay_id}")
        table(
            ("TOPIC", "PARTITION", "NOW", "THEN", "CHANGE"),
            ((one.topic, one.partition, *offsets_shown(one.now, one.then)) for one in found.moves),
        )
        for note in found.notes:
            say(f"note: {note}")
    if options.execute:
        asyncio.run(execute_moves(settings, options.group, options.to, found.moves))
    done = f"{len(found.moves)} offsets are set" if options.execute else "nothing is changed yet"
    answer = {
        "replay_id": options.replay_id,
        "group": options.group,
        "to": options.to,
        "executed": options.execute,
        "cluster": found.cluster,
        "partitions": [asdict(one) for one in found.moves],
        "notes": found.notes,
    }
    answer_with(options, answer, done + ("" if options.execute else "; to set them, add --execute"))
    return DONE
