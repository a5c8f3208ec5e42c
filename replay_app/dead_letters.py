"""The dead letters of one replay: the events that it could not publish, by reason and type.

A letter may be discarded: a record with its key and without a value says so, and why.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from replay_app.clusters import answers, cluster_name
from replay_app.compacted import CompactedReader
from replay_app.events import field_at, is_text
from replay_app.exceptions import Unavailable
from replay_app.kafka_security import kafka_security
from replay_app.topics import Topics, partition_counts

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from replay_app.events import EventMapping
    from replay_app.settings import Settings

DISCARDED = "replay-discarded"
"""The header with the reason why a letter was discarded."""
DISCARD_SECONDS = 60.0
"""How long the records of discarded letters may take."""
MAX_IDS = 10_000
"""Ids of a group that are kept."""
UNREADABLE = "(unreadable)"
"""The type of a dead letter whose document is too large to be kept, or is no JSON object."""


@dataclass
class LetterGroup:
    """The dead letters of one reason and one event type."""

    reason: str
    event_type: str
    count: int = 0
    event_ids: list[str] = field(default_factory=list)
    """Of the first MAX_IDS letters. A long id is shortened."""
    discarded: str = ""
    """Why somebody has discarded these letters. Empty: nobody has."""


async def find_dead_letters(settings: Settings, replay_id: str) -> list[LetterGroup]:
    """Return the dead letters of a replay that Kafka still has, the most frequent group first.

    Discarded letters are groups of their own.

    Raises
    ------
    Unavailable
        When the broker does not answer.

    """
    bootstrap, topic = settings.target_bootstrap, Topics.of(settings).dead_letters.name
    counts = await partition_counts(settings, bootstrap, [topic])
    groups: dict[tuple[str, str], LetterGroup] = {}
    discarded: dict[str, str] = {}
    if not counts.get(topic):
        return []
    reader = CompactedReader(settings, bootstrap, topic, range(counts[topic]))
    try:
        await reader.start()
        async for record in reader.read_to_end():
            headers = dict(record.headers)
            if headers.get("replay-id") != replay_id.encode():
                continue
            event_id = (record.key or b"").decode(errors="replace")
            if (why := headers.get(DISCARDED)) is not None:
                discarded[event_id] = why.decode(errors="replace")
                continue
            reason = (headers.get("replay-error") or b"").decode(errors="replace")
            kind = _type_of(record, settings.mapping)
            group = groups.setdefault((reason, kind), LetterGroup(reason, kind))
            group.count += 1
            if len(group.event_ids) < MAX_IDS:
                group.event_ids.append(event_id)
    except KafkaError as error:
        msg = f"{cluster_name(settings, bootstrap)} does not give the dead letters: {error}"
        raise Unavailable(msg) from error
    finally:
        await reader.stop()
    found = [part for group in groups.values() for part in _parts(group, discarded)]
    return sorted(found, key=lambda one: (-one.count, one.reason, one.event_type, one.discarded))


def _parts(group: LetterGroup, discarded: Mapping[str, str]) -> Iterator[LetterGroup]:
    """Yield the letters of a group that nobody has discarded, and those of each reason."""
    by_reason: dict[str, list[str]] = {}
    for event_id in group.event_ids:
        by_reason.setdefault(discarded.get(event_id, ""), []).append(event_id)
    behind = group.count - len(group.event_ids)  # letters whose ids are not kept
    if behind:
        by_reason.setdefault("", [])
    for why, ids in by_reason.items():
        count = len(ids) + (0 if why else behind)
        yield replace(group, count=count, event_ids=ids, discarded=why)


async def discard_letters(
    settings: Settings, replay_id: str, event_ids: Sequence[str], reason: str, by: str
) -> None:
    """Say of dead letters that nobody needs their events any more, and why.

    Raises
    ------
    InvalidSettings
        When the broker refuses a right.
    Unavailable
        When the broker does not take the records within DISCARD_SECONDS.

    """
    bootstrap, topic = settings.target_bootstrap, Topics.of(settings).dead_letters.name
    headers = [
        ("replay-id", replay_id.encode()),
        (DISCARDED, reason.encode()),
        ("replay-requested-by", by.encode()),
    ]
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        enable_idempotence=True,
        **kafka_security(settings, bootstrap),
    )
    try:
        async with answers(settings, bootstrap, DISCARD_SECONDS):
            await producer.start()
            sent = [
                await producer.send(topic, key=one.encode(), headers=headers) for one in event_ids
            ]
            await asyncio.gather(*sent)
    finally:
        await producer.stop()


def _type_of(record: ConsumerRecord, mapping: EventMapping) -> str:
    try:
        document: Any = json.loads(record.value or b"null")
    except (ValueError, RecursionError):
        return UNREADABLE
    if not isinstance(document, dict):
        return UNREADABLE
    kind = field_at(document, mapping.field_type)
    return kind if is_text(kind) else "(no type)"
