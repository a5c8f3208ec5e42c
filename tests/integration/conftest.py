"""A collection for each test, and the program's objects on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pymongo
import pytest
from pymongo.collection import Collection
from support import AWARE, unique_name

from replay_app.board import Board
from replay_app.context import WorkerContext
from replay_app.demo.stack import Stack
from replay_app.kafka_internals import mend_aiokafka
from replay_app.publisher import Outbox
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore
from replay_app.topics import Topics, ensure_topics


@pytest.fixture(scope="session", autouse=True)
def _aiokafka_of_a_worker() -> None:
    """Mend aiokafka as every command of the program does."""
    mend_aiokafka()


@pytest.fixture
def settings(stack: Stack) -> Settings:
    # The development store reads all events for a sample, and other tests run beside this one.
    return load_settings(mongo=stack.mongo, mongo_database=unique_name("store"), cut_seconds=60)


@pytest.fixture
def events(settings: Settings) -> Iterator[Collection[dict[str, Any]]]:
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        settings.mongo.get_secret_value()
    )
    yield client[settings.mongo_database].get_collection("events", codec_options=AWARE)
    client.drop_database(settings.mongo_database)
    client.close()


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[EventStore]:
    store = EventStore(settings)
    yield store
    store.close()


@pytest.fixture
async def start_worker(
    settings: Settings, stack: Stack
) -> AsyncIterator[Callable[..., Awaitable[WorkerContext]]]:
    """Give a function that makes a worker's context without Faust; topics have one partition."""
    name = unique_name("worker")
    own = {"kafka": stack.kafka, "app_id": name, "topic_prefix": f"{name}.", "partitions": 1}
    settings = settings.model_copy(update=own)
    started: list[WorkerContext] = []

    async def start(store: type[EventStore], outbox: type[Outbox]) -> WorkerContext:
        await ensure_topics(settings)
        worker = WorkerContext(
            settings=settings,
            topics=Topics.of(settings),
            store=store(settings),
            outbox=outbox(settings),
            board=Board(settings),
            is_leaving=lambda: False,
        )
        started.append(worker)
        await worker.outbox.start()
        return worker

    yield start
    for worker in started:
        await worker.outbox.stop()
        worker.store.close()


@pytest.fixture
async def context(
    start_worker: Callable[..., Awaitable[WorkerContext]],
) -> AsyncIterator[WorkerContext]:
    """A worker's context whose board follows the topic."""
    context = await start_worker(EventStore, Outbox)
    following = asyncio.create_task(context.board.follow())
    yield context
    following.cancel()
    await asyncio.wait([following])
