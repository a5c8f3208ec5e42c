"""``replay-app topics``: the program's own topics, and the destination topics of a replay."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from replay_app.arguments import AddCommand
from replay_app.commands import new_replay_id
from replay_app.logs import silence_aiokafka
from replay_app.missing_topics import create_missing, find_needed
from replay_app.settings import Settings, load_settings
from replay_app.sources import settings_for
from replay_app.start_options import add_event_options, start_of
from replay_app.store import EventStore
from replay_app.terminal import say, say_json, table
from replay_app.topics import ensure_topics, partition_counts, topics_by_cluster

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.missing_topics import NeededTopic

DONE, FAILED = 0, 1


def add_topics_command(add: AddCommand, parent: Any) -> None:
    """Add the command to the parser."""
    topics = add(
        "topics", _topics, "Show, or create, the program's own or a replay's topics", parent
    )
    topics.add_argument("--create", action="store_true", help="create the program's missing topics")
    topics.add_argument(
        "--create-destinations",
        action="store_true",
        help="show to which topics a replay of these events publishes; what is missing is created "
        "with --execute only",
    )
    topics.add_argument(
        "--like",
        choices=["live"],
        default="live",
        help="where partitions and settings come from; live: the original topic (default)",
    )
    topics.add_argument("--execute", action="store_true", help="create what is shown as missing")
    add_event_options(topics, "--max-events")
    topics.set_defaults(file=None)


def _topics(options: argparse.Namespace) -> int:
    silence_aiokafka()
    if options.create_destinations:
        return _destinations(options)
    settings = load_settings()
    if options.create:
        for name in asyncio.run(ensure_topics(settings)):
            say(f"created {name}", error=options.json)
    rows = asyncio.run(_own_topics(settings))
    if options.json:
        names = ("name", "cluster", "partitions", "exists", "config")
        say_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        table(
            ("TOPIC", "CLUSTER", "PARTITIONS", "EXISTS", "CONFIGURATION"),
            (
                (name, cluster, count, "yes" if exists else "no", _pairs(config))
                for name, cluster, count, exists, config in rows
            ),
        )
    return DONE


async def _own_topics(settings: Settings) -> list[tuple[str, str, int, bool, dict[str, str]]]:
    rows = []
    for cluster, topics in topics_by_cluster(settings).items():
        existing = await partition_counts(settings, cluster, [topic.name for topic in topics])
        rows += [
            (topic.name, cluster, topic.partitions, topic.name in existing, topic.config)
            for topic in topics
        ]
    return rows


def _destinations(options: argparse.Namespace) -> int:
    """Show to which topics a replay publishes, and create the missing ones if asked to."""
    start = start_of(options, replay_id=new_replay_id())
    needed, created = asyncio.run(
        _create(start, settings_for(load_settings(), start.source), execute=options.execute)
    )
    orphans = [one for one in needed if not one.exists and not one.partitions]
    if options.json:
        say_json([asdict(one) | {"created": one.name in created} for one in needed])
    else:
        _show(needed, created)
        missing = sum(not one.exists for one in needed) - len(orphans)
        if missing and not options.execute:
            say(f"{missing} topics are missing; to create them, add --execute")
    for one in orphans:
        say(
            f"error: topic {one.name!r} is missing, and so is {one.like!r}, whose partitions and "
            "settings it would get: create it yourself",
            error=True,
        )
    return FAILED if orphans else DONE


async def _create(
    start: Start, settings: Settings, *, execute: bool
) -> tuple[list[NeededTopic], list[str]]:
    store = EventStore(settings)
    try:
        needed = await find_needed(start, settings, store)
    finally:
        store.close()
    return needed, await create_missing(settings, needed) if execute else []


def _show(needed: list[NeededTopic], created: list[str]) -> None:
    table(
        ("TOPIC", "STATE", "LIKE", "PARTITIONS", "REPLICAS", "CONFIGURATION"),
        (
            (
                one.name,
                "exists" if one.exists else "created" if one.name in created else "missing",
                one.like,
                one.partitions or "unknown",
                one.replicas or "unknown",
                _pairs(one.config),
            )
            for one in needed
        ),
    )


def _pairs(config: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())
