"""A client whose start is cancelled leaves no connection behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable

import pytest
from aiokafka.protocol.metadata import MetadataRequest

from replay_app.compacted import CompactedReader
from replay_app.demo.stack import Stack
from replay_app.destinations import describe_destinations
from replay_app.dropped_slices import find_dropped_records
from replay_app.publisher import FencedProducer, Outbox
from replay_app.settings import Settings
from replay_app.topic_watch import TopicWatch
from replay_app.topics import partition_counts

SECONDS = 30.0


class SlowBroker:
    """A way to the broker on which no request for metadata gets through, as if under load."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self.asked, self.left = asyncio.Event(), asyncio.Event()
        """Set when a client asks for metadata, and when the client closes its connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(self._host, self._port)
        try:
            while True:
                request = await read_frame(reader)
                if int.from_bytes(request[4:6]) == MetadataRequest.API_KEY:
                    self.asked.set()
                    continue
                requests.write(request)
                writer.write(await read_frame(answers))
        except asyncio.IncompleteReadError:
            self.left.set()
        finally:
            for end in (requests, writer):
                end.close()
                await end.wait_closed()


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return size + await reader.readexactly(int.from_bytes(size))


async def start_outbox(settings: Settings) -> None:
    outbox = Outbox(settings)
    try:
        await outbox.start()
    finally:
        await outbox.stop()


async def start_reader(settings: Settings) -> None:
    reader = CompactedReader(settings, settings.kafka, "t", [0])
    try:
        await reader.start()
    finally:
        await reader.stop()


STARTS: dict[str, Callable[[Settings], Awaitable[object]]] = {
    "client": lambda settings: describe_destinations(settings, ["t"]),
    "admin client": lambda settings: partition_counts(settings, settings.kafka),
    "consumer": lambda settings: find_dropped_records(settings, {"t": {0: 0}}),
    "two consumers": start_reader,
    "producer": start_outbox,
    "fenced producer": lambda settings: FencedProducer(settings, settings.kafka, "t").start(),
    "topic watch": lambda settings: TopicWatch(settings, {}).until_lost(),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
async def test_a_start_that_is_cancelled_closes_its_connection(
    settings: Settings, stack: Stack, start: Callable[[Settings], Awaitable[object]]
) -> None:
    slow = SlowBroker(stack.kafka)
    server = await asyncio.start_server(slow.serve, "127.0.0.1")
    async with server:
        host, port = server.sockets[0].getsockname()
        starting = asyncio.ensure_future(
            start(settings.model_copy(update={"kafka": f"{host}:{port}"}))
        )
        async with asyncio.timeout(SECONDS):
            await slow.asked.wait()
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            # Here, not when somebody collects garbage: an error may hold the connection for long.
            await slow.left.wait()
    gc.collect()  # the warnings of a client that is still open fail this test, and not a later one
