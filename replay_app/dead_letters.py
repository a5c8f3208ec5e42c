"""The dead letters of one replay: the events that it could not publish, by reason and type."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from replay_app.clusters import cluster_name
from replay_app.compacted import CompactedReader
from replay_app.events import field_at, is_text
from replay_app.exceptions import Unavailable
from replay_app.topics import Topics, partition_counts

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from replay_app.events import EventMapping
    from replay_app.settings import Settings

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


async def find_dead_letters(settings: Settings, replay_id: str) -> list[LetterGroup]:
    """Return the dead letters of a replay that Kafka still has, the most frequent group first.

    Raises
    ------
    Unavailable
        When the broker does not answer.

    """
    bootstrap, topic = settings.target_bootstrap, Topics.of(settings).dead_letters.name
    counts = await partition_counts(settings, bootstrap, [topic])
    groups: dict[tuple[str, str], LetterGroup] = {}
    if not counts.get(topic):
        return []
    reader = CompactedReader(settings, bootstrap, topic, range(counts[topic]))
    try:
        await reader.start()
        async for record in reader.read_to_end():
            headers = dict(record.headers)
            if headers.get("replay-id") != replay_id.encode():
                continue
            reason = (headers.get("replay-error") or b"").decode(errors="replace")
            kind = _type_of(record, settings.mapping)
            group = groups.setdefault((reason, kind), LetterGroup(reason, kind))
            group.count += 1
            if len(group.event_ids) < MAX_IDS:
                group.event_ids.append((record.key or b"").decode(errors="replace"))
    except KafkaError as error:
        msg = f"{cluster_name(settings, bootstrap)} does not give the dead letters: {error}"
        raise Unavailable(msg) from error
    finally:
        await reader.stop()
    return sorted(groups.values(), key=lambda one: (-one.count, one.reason, one.event_type))


def _type_of(record: ConsumerRecord, mapping: EventMapping) -> str:
    try:
        document: Any = json.loads(record.value or b"null")
    except (ValueError, RecursionError):
        return UNREADABLE
    if not isinstance(document, dict):
        return UNREADABLE
    kind = field_at(document, mapping.field_type)
    return kind if is_text(kind) else "(no type)"
