"""Stable offsets: up to where ``read_committed`` consumers can read a partition.

The stable offset of a partition stands still at the first open transaction, whoever has opened
the transaction. Records behind that offset are committed, and no such consumer sees them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaClient, AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from replay_app.exceptions import Unavailable
from replay_app.internals import describe_producers

if TYPE_CHECKING:
    from replay_app.reports import Offsets
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 20.0
"""How long the broker may take to answer. aiokafka asks for a deleted topic without a limit."""
LOOK_SECONDS = 15.0
"""Time between two looks at a running replay."""
MAX_NAMED_PARTITIONS = 3
"""Partitions that an explanation names."""


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
            look.found = await explain_hidden_records(self._settings, written)
        except Unavailable as error:
            logger.warning("replay %s: %s", replay_id, error)

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


async def explain_hidden_records(settings: Settings, written: Offsets) -> str | None:
    """Return which written records no ``read_committed`` consumer sees; None if all are seen.

    The text names the partitions, the producers whose transactions are open there, and the remedy.

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
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.target_bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
        **settings.kafka_security(),
    )
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await consumer.start()
            stable = await consumer.end_offsets(list(last))
        hidden = {tp: stable[tp] for tp, offset in last.items() if stable[tp] <= offset}
        if not hidden:
            return None
        named = [
            await explain_open_transaction(settings, settings.target_bootstrap, tp, offset)
            for tp, offset in sorted(hidden.items())[:MAX_NAMED_PARTITIONS]
        ]
    except (KafkaError, TimeoutError) as error:
        named = sorted({partition.topic for partition in last})[:MAX_NAMED_PARTITIONS]
        msg = (
            f"Kafka at {settings.target_bootstrap} does not tell the stable offsets of "
            f"{', '.join(map(repr, named))}: {error!r}"
        )
        raise Unavailable(msg) from error
    finally:
        await consumer.stop()
    more = len(hidden) - len(named)
    return "; ".join([*named, *([f"and {more} more partitions"] if more else [])])


async def explain_open_transaction(
    settings: Settings, bootstrap: str, partition: TopicPartition, offset: int
) -> str:
    """Return which producer holds a partition's stable offset, and how to end its transaction.

    ``offset`` is the stable offset.
    """
    producers: list[tuple[int, int]] = []
    client = AIOKafkaClient(bootstrap_servers=bootstrap, **settings.kafka_security())
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await client.bootstrap()
            producers = await describe_producers(client, partition.topic, partition.partition)
    except (KafkaError, TimeoutError):
        pass  # the command below tells the operator the same
    finally:
        await client.close()
    holders = [str(producer) for producer, begin in producers if begin == offset]
    whose = f"producer id {holders[0]}" if holders else "another producer"
    where = f"--topic {partition.topic} --partition {partition.partition}"
    return (
        f"partition {partition.partition} of {partition.topic!r} stands still at offset {offset}, "
        f"behind an open transaction of {whose}: if it does not end by itself, look with "
        f"`kafka-transactions.sh --bootstrap-server {bootstrap} describe-producers {where}` and "
        f"end the transaction with `kafka-transactions.sh --bootstrap-server {bootstrap} abort "
        f"{where} --start-offset {offset}`"
    )
