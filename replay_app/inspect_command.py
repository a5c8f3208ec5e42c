"""``replay-app inspect``: what a store holds, and the settings that fit."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from replay_app.accounts import sample_lines
from replay_app.arguments import AddCommand, positive
from replay_app.commands import Filter, Start
from replay_app.event_records import RecordMaker
from replay_app.event_types import sample_events
from replay_app.exceptions import ReplayError
from replay_app.inspection import Inspection, inspect, settings_for, wanted_indexes
from replay_app.pages import readable
from replay_app.reports import few
from replay_app.settings import load_settings
from replay_app.store import EventStore, TimeLimitExceeded, index_serves
from replay_app.store_checks import LOOK_SECONDS
from replay_app.terminal import cut, say, say_json, table

if TYPE_CHECKING:
    from replay_app.events import EventMapping
    from replay_app.reports import SampleRecord
    from replay_app.settings import Settings

DONE, FAILED = 0, 1
SAMPLE_EVENTS = 500
"""Random events of the sample. The first ones that the store finds come on top."""
SHOWN_RECORDS = 3
SHOWN_FIELDS = 40
SHOWN_TYPES = 20
REPLAY_ID = "inspect"
"""Stands for the id of a replay in the headers of the records that are shown."""
PARTS = ("id", "time", "type", "aggregate", "topic")


def add_inspect_command(add: AddCommand, parent: Any) -> None:
    """Add the command to the parser."""
    command = add(
        "inspect",
        _inspect,
        "Show what the store holds: fields, settings that fit, indexes, and sample records",
        parent,
    )
    command.add_argument(
        "--sample",
        type=positive,
        default=SAMPLE_EVENTS,
        metavar="N",
        help="look at N random events (default: %(default)s)",
    )


def _inspect(options: argparse.Namespace) -> int:
    settings = load_settings()
    found = asyncio.run(_look(settings, options.sample))
    if options.json:
        say_json(found)
    else:
        _show(found)
    return FAILED if found["faults"] else DONE


async def _look(settings: Settings, size: int) -> dict[str, Any]:
    """Return what the store holds, as JSON values."""
    store = EventStore(settings)
    try:
        await store.require_collection()
        kind = await store.identify()
        raw, missing = await sample_events(store, size, LOOK_SECONDS)
        for note in missing:
            say(f"note: {note}", error=True)
        indexes = await store.indexes()
        try:
            estimate: int | None = await store.estimate(LOOK_SECONDS)
        except TimeLimitExceeded:
            estimate = None
    finally:
        store.close()
    if not raw:
        raise ReplayError(
            f"{store.name} has no events: check REPLAY_MONGO_DATABASE and REPLAY_MONGO_COLLECTION"
        )
    seen = inspect([readable(document) for document in raw], settings.mapping)
    return {
        "collection": store.name,
        "is_view": not kind.uuid,
        "events": estimate,
        "sampled": seen.events,
        "fields": [
            {
                "path": one.path,
                "types": dict(one.kinds),
                "share": round(one.events / seen.events, 3),
                "values": len(one.values),
                "example": one.example,
            }
            for one in seen.fields
        ],
        "candidates": {part: list(seen.candidates[part]) for part in PARTS},
        "settings": settings_for(seen.mapping),
        "types": _types(seen),
        "needs_topics": seen.mapping.field_topic not in {one.path for one in seen.fields},
        "faults": list(seen.faults),
        "indexes": {
            "there": [{"name": one["name"], "key": one["key"]} for one in indexes],
            "missing": [
                {"key": dict.fromkeys(fields, 1), "command": _create_index(store.name, fields)}
                for fields in wanted_indexes(seen.mapping)
                if not any(index_serves(one, fields) for one in indexes)
            ],
        },
        "records": [
            record.model_dump(mode="json") for record in _records(settings, seen.mapping, raw)
        ],
    }


def _types(seen: Inspection) -> list[str]:
    """Return the types of the sample, the most frequent first."""
    fields = {one.path: one for one in seen.fields}
    found = fields.get(seen.mapping.field_type)
    return [] if found is None else [str(value) for value, _ in found.values.most_common()]


def _records(
    settings: Settings, mapping: EventMapping, raw: Sequence[bytes]
) -> Iterator[SampleRecord]:
    maker = RecordMaker(Start(replay_id=REPLAY_ID, filter=Filter(all=True)), settings, mapping)
    for document in raw[:SHOWN_RECORDS]:
        record = maker.record(document)
        if record is not None:
            yield record.sample()


def _create_index(name: str, fields: Iterable[str]) -> str:
    """Return the command of the MongoDB shell that creates an index."""
    collection = name.partition(".")[2]
    keys = ", ".join(f"{json.dumps(one)}: 1" for one in fields)  # a name may be any text
    return f"db.getCollection({json.dumps(collection)}).createIndex({{{keys}}})"


# For people


def _show(found: Mapping[str, Any]) -> None:
    events = "an unknown number of" if found["events"] is None else f"about {found['events']:,}"
    say(f"{found['collection']}: {events} events, {found['sampled']:,} of them looked at", "")
    table(
        ("FIELD", "TYPES", "IN", "VALUES", "EXAMPLE"),
        (
            (
                one["path"],
                ", ".join(one["types"]),
                f"{one['share']:.0%}",
                one["values"] or "",
                cut(one["example"], 50),
            )
            for one in found["fields"][:SHOWN_FIELDS]
        ),
    )
    if len(found["fields"]) > SHOWN_FIELDS:
        say(f"and {len(found['fields']) - SHOWN_FIELDS} more fields: --json shows all")
    say("", "Fields that fit")
    for part, paths in found["candidates"].items():
        say(f"  {part:<10} {', '.join(paths) or 'none'}")
    say("", f"Event types, the most frequent first: {few(found['types'], SHOWN_TYPES)}")
    say("", "Settings that fit, for .env", *_settings(found))
    say("", "Indexes")
    for index in found["indexes"]["there"]:
        say(f"  there    {json.dumps(index['key'])}")
    for index in found["indexes"]["missing"]:
        say(f"  missing  {index['command']}")
    for record in found["records"]:
        say("", *sample_lines(record))
    for fault in found["faults"]:
        say("", f"error: of {found['sampled']} events, none has {fault}", error=True)


def _settings(found: Mapping[str, Any]) -> Iterator[str]:
    database, _, collection = found["collection"].partition(".")
    chosen = {"REPLAY_MONGO_DATABASE": database, "REPLAY_MONGO_COLLECTION": collection}
    for name, value in (chosen | found["settings"]).items():
        yield f"{name}={value}"
    if found["needs_topics"]:
        types = dict.fromkeys(found["types"][:SHOWN_RECORDS], "TOPIC")
        yield "# No field holds a topic: each event goes to the topic that its type names. Or set:"
        yield f"# REPLAY_TOPICS={json.dumps(types)}"
        yield "# REPLAY_TOPIC_TEMPLATE=events.{event_type}"
