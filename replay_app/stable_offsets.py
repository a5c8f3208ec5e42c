"""Stable offsets: up to where ``read_committed`` consumers can read a partition.

The stable offset of a partition stands still at the first open transaction, whoever has opened
the transaction. Records behind that offset are committed, and no such consumer sees them.

A lone broker that is killed inside a commit may lose the marker of a committed slice in some
partitions (docs/faust.md, "Transactions"). The slice then stays open there for ever. If somebody
ends it, Kafka drops its records in those partitions. So a replay remembers where it found a slice
without marker, and looks at those records again before it completes (`dropped_slices`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from replay_app.clusters import connected
from replay_app.exceptions import Unavailable
from replay_app.kafka_requests import LATEST, describe_producers, list_offsets
from replay_app.kafka_security import kafka_security

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from aiokafka import ConsumerRecord

    from replay_app.reports import Offsets
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
"""How long the broker may take to answer. aiokafka asks for a deleted topic without a limit."""
LOOK_SECONDS = 15.0
"""Time between two looks at a running replay."""
POLL_MS = 500
"""Longest wait of one read for a record."""
MAX_NAMED_PARTITIONS = 3
"""Partitions that an explanation names."""


LostMarkers = dict[str, dict[int, int]]
"""By topic and partition: offset of the first record of a committed slice without marker."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """The written records that no ``read_committed`` consumer sees."""

    explanation: str
    """Names the partitions, the producers that hold them, and the remedy."""
    lost_markers: LostMarkers
    """The partitions that a slice of this replay holds."""


class ConsumerWatch:
    """Looks, while replays run, whether consumers can see what was written some time ago.

    A look is made in a task: no slice waits for it. It compares the offsets that the replay had
    written when the look before was made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looks: dict[str, _Look] = {}

    def hidden_records(self, replay_id: str, written: Offsets) -> str | None:
        """Return what the last look at a replay found, and begin the next look if it is due."""
        now = time.monotonic()
        look = self._looks.setdefault(replay_id, _Look(now + LOOK_SECONDS, written))
        if now >= look.due_at and (look.task is None or look.task.done()):
            look.task = asyncio.create_task(self._look(replay_id, look, look.written))
            look.due_at, look.written = now + LOOK_SECONDS, written
        return look.found

    async def _look(self, replay_id: str, look: _Look, written: Offsets) -> None:
        try:
            hidden = await find_hidden_records(self._settings, written, replay_id)
        except Unavailable as error:
            logger.warning("replay %s: %s", replay_id, error)
        else:
            look.found = None if hidden is None else hidden.explanation

    def forget(self, *replay_ids: str) -> None:
        """End the looks at some replays; without ids, at all replays."""
        for replay_id in replay_ids or tuple(self._looks):
            look = self._looks.pop(replay_id, None)
            if look is not None and look.task is not None:
                look.task.cancel()


@dataclass(slots=True)
class _Look:
    due_at: float
    """Monotonic time of the next look."""
    written: Offsets
    """What the next look compares."""
    found: str | None = None
    task: asyncio.Task[None] | None = None


async def find_hidden_records(
    settings: Settings, written: Offsets, replay_id: str
) -> Hidden | None:
    """Return which written records no ``read_committed`` consumer sees; None if all are seen.

    ``written`` are the records of committed slices of the replay.

    Raises
    ------
    Unavailable
        When the broker does not answer.

    """
    last = {
        TopicPartition(topic, partition): offsets[1]
        for topic, partitions in written.items()
        for partition, offsets in partitions.items()
    }
    if not last:
        return None
    lost: LostMarkers = {}
    named: list[str] = []
    bootstrap = settings.target_bootstrap
    async with _answers(settings, last), connected(settings, bootstrap) as client:
        ends = await list_offsets(client, dict.fromkeys(last, LATEST), "read_committed")
    hidden = {tp: ends[tp][0] for tp, offset in last.items() if ends[tp][0] <= offset}
    if not hidden:
        return None
    async with target_consumer(settings, hidden, "read_uncommitted") as consumer:
        for tp, record in (await first_records(consumer, hidden)).items():
            if ("replay-id", replay_id.encode()) in record.headers:
                lost.setdefault(tp.topic, {})[tp.partition] = hidden[tp]
    for tp, offset in sorted(hidden.items())[:MAX_NAMED_PARTITIONS]:
        is_own = tp.partition in lost.get(tp.topic, {})
        explain = explain_lost_marker if is_own else explain_open_transaction
        named.append(await explain(settings, bootstrap, tp, offset))
    more = len(hidden) - len(named)
    named += [f"and {more} more partitions"] if more else []
    return Hidden("; ".join(named), lost)


async def first_records(
    consumer: AIOKafkaConsumer, places: Mapping[TopicPartition, int]
) -> dict[TopicPartition, ConsumerRecord]:
    """Return the first record that the consumer gets at, or behind, an offset of each partition.

    Left out are partitions that end before such a record, and those that begin behind the offset.
    """
    found: dict[TopicPartition, ConsumerRecord] = {}
    if not places:
        return found
    consumer.assign(list(places))
    beginnings = await consumer.beginning_offsets(list(places))
    ends = await consumer.end_offsets(list(places))
    waiting = {tp for tp, offset in places.items() if beginnings[tp] <= offset}
    consumer.pause(*(places.keys() - waiting))
    for tp in waiting:
        consumer.seek(tp, places[tp])
    while waiting:
        batches = await consumer.getmany(*waiting, timeout_ms=POLL_MS, max_records=len(waiting))
        found |= {tp: records[0] for tp, records in batches.items() if records}
        for tp in tuple(waiting):
            if tp in found or await consumer.position(tp) >= ends[tp]:
                waiting.remove(tp)
                consumer.pause(tp)
    return found


@contextlib.asynccontextmanager
async def target_consumer(
    settings: Settings, partitions: Iterable[TopicPartition], isolation_level: str
) -> AsyncIterator[AIOKafkaConsumer]:
    """Give a consumer of the cluster that receives the events, for ANSWER_SECONDS.

    Raises
    ------
    Unavailable
        When the broker does not answer within the block.

    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.target_bootstrap,
        isolation_level=isolation_level,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        **kafka_security(settings, settings.target_bootstrap),
    )
    try:
        async with _answers(settings, partitions):
            await consumer.start()
            yield consumer
    finally:
        await consumer.stop()


@contextlib.asynccontextmanager
async def _answers(settings: Settings, partitions: Iterable[TopicPartition]) -> AsyncIterator[None]:
    """Limit the time of a block that asks for stable offsets, and explain its errors."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except (KafkaError, TimeoutError) as error:
        topics = sorted({partition.topic for partition in partitions})[:MAX_NAMED_PARTITIONS]
        msg = (
            f"Kafka at {settings.target_bootstrap} does not tell the stable offsets of "
            f"{', '.join(map(repr, topics))}: {error!r}"
        )
        raise Unavailable(msg) from error


async def explain_lost_marker(
    settings: Settings, bootstrap: str, partition: TopicPartition, offset: int
) -> str:
    """Return which committed slice has no marker in a partition, and what to do.

    ``offset`` is the stable offset.
    """
    whose = await _holder(settings, bootstrap, partition, offset)
    return (
        f"partition {partition.partition} of {partition.topic!r} stands still at offset {offset}: "
        f"the broker has lost the marker of a committed slice of this replay, of {whose}. If the "
        "offset does not move by itself, these events are lost for consumers: end the slice with "
        f"`{_abort_command(bootstrap, partition, offset)}`, which drops them, and start the replay "
        "again under a new replay_id"
    )


async def explain_open_transaction(
    settings: Settings, bootstrap: str, partition: TopicPartition, offset: int
) -> str:
    """Return which producer holds a partition's stable offset, and how to end its transaction.

    ``offset`` is the stable offset.
    """
    whose = await _holder(settings, bootstrap, partition, offset)
    where = f"--topic {partition.topic} --partition {partition.partition}"
    return (
        f"partition {partition.partition} of {partition.topic!r} stands still at offset {offset}, "
        f"behind an open transaction of {whose}: if it does not end by itself, look with "
        f"`kafka-transactions.sh --bootstrap-server {bootstrap} describe-producers {where}` and "
        f"end the transaction with `{_abort_command(bootstrap, partition, offset)}`"
    )


def _abort_command(bootstrap: str, partition: TopicPartition, offset: int) -> str:
    return (
        f"kafka-transactions.sh --bootstrap-server {bootstrap} abort --topic {partition.topic} "
        f"--partition {partition.partition} --start-offset {offset}"
    )


async def _holder(
    settings: Settings, bootstrap: str, partition: TopicPartition, offset: int
) -> str:
    """Return who has the open transaction that begins at an offset."""
    producers: list[tuple[int, int]] = []
    try:
        async with asyncio.timeout(ANSWER_SECONDS), connected(settings, bootstrap) as client:
            producers = await describe_producers(client, partition.topic, partition.partition)
    except (KafkaError, TimeoutError):
        pass  # `kafka-transactions.sh describe-producers` tells the operator the same
    holders = [str(producer) for producer, begin in producers if begin == offset]
    return f"producer id {holders[0]}" if holders else "another producer"
