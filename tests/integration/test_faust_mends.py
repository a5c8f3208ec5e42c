"""Faust hands each record to its agent, whatever it pauses meanwhile (`internals.mend_faust`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import faust
from aiokafka import AIOKafkaProducer
from support import create_topics, unique_name

from replay_app.demo.stack import Stack
from replay_app.internals import mend_faust

SECONDS = 120.0
ASKING_SECONDS = 0.3
"""Faust asks aiokafka for records for a second. A pause after this time meets such a request."""
ASKED_SECONDS = 2.0
"""After this time no such request is under way any more."""


@asynccontextmanager
async def running(app: faust.App) -> AsyncIterator[Any]:
    """Run an app without its web server; give the app's consumer once the partitions are read."""
    async with app:
        consumer: Any = app.consumer
        while not consumer._active_partitions:
            await asyncio.sleep(0.1)
        yield consumer


async def test_a_record_that_comes_while_its_partition_is_paused_is_read_afterwards(
    stack: Stack, tmp_path: Path
) -> None:
    topic = unique_name("paused")
    create_topics(stack.kafka, {topic: 2})
    app = faust.App(
        unique_name("mend"),
        broker=f"kafka://{stack.kafka}",
        datadir=str(tmp_path),
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
    )
    mend_faust(app)
    found: asyncio.Queue[bytes] = asyncio.Queue()

    @app.agent(app.topic(topic, value_type=bytes, value_serializer="raw"))
    async def keep(stream: Any) -> None:
        async for value in stream:
            await found.put(value)

    async with (
        asyncio.timeout(SECONDS),
        AIOKafkaProducer(bootstrap_servers=stack.kafka) as producer,
        running(app) as consumer,
    ):
        for partition in range(2):
            await producer.send_and_wait(topic, b"first", partition=partition)
            assert await found.get() == b"first"
        paused = {tp for tp in consumer.assignment() if tp.partition == 0}
        for number in range(3):
            await asyncio.sleep(ASKING_SECONDS)
            consumer.pause_partitions(paused)
            await producer.send_and_wait(topic, b"paused %d" % number, partition=0)
            await producer.send_and_wait(topic, b"active %d" % number, partition=1)
            assert await found.get() == b"active %d" % number
            await asyncio.sleep(ASKED_SECONDS)
            assert found.empty()
            consumer.resume_partitions(paused)
            assert await found.get() == b"paused %d" % number
