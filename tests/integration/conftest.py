"""A collection of the test's own, and the program's view of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pymongo
import pytest
from pymongo.collection import Collection
from support import unique_name

from replay_app.demo.stack import Stack
from replay_app.events import STRICT
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore


@pytest.fixture
def settings(stack: Stack) -> Settings:
    return load_settings(mongo=stack.mongo, mongo_database=unique_name("store"))


@pytest.fixture
def events(settings: Settings) -> Iterator[Collection[dict[str, Any]]]:
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        settings.mongo.get_secret_value()
    )
    yield client[settings.mongo_database].get_collection("events", codec_options=STRICT)
    client.drop_database(settings.mongo_database)
    client.close()


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[EventStore]:
    store = EventStore(settings)
    yield store
    store.close()
