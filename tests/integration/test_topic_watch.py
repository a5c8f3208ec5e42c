"""A worker sees that its own topics are gone, or are others under the same names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from support import create_topics, delete_topics, unique_name

from replay_app.demo.stack import Stack
from replay_app.settings import Settings, load_settings
from replay_app.topic_watch import OBSTACLE, TopicWatch
from replay_app.topics import Topics, ensure_topics

SECONDS = 60.0
NAMES = list(Topics.__dataclass_fields__)


class Watching:
    """A watch in a task."""

    def __init__(self, settings: Settings) -> None:
        self.obstacles: dict[str, str] = {}
        self.watch = TopicWatch(settings, self.obstacles)
        self.task = asyncio.create_task(self.watch.until_lost())


@pytest.fixture
async def settings(stack: Stack) -> Settings:
    name = unique_name("watched")
    settings = load_settings(
        kafka=stack.kafka,
        # Two names of one broker stand for two clusters.
        target_kafka=stack.kafka.replace("127.0.0.1", "localhost"),
        app_id=name,
        topic_prefix=f"{name}.",
        partitions=1,
    )
    await ensure_topics(settings)
    return settings


@pytest.fixture
async def watching(settings: Settings) -> AsyncIterator[Watching]:
    """A watch that has had its first look."""
    watching = Watching(settings)
    async with asyncio.timeout(SECONDS):
        while len(watching.watch.ids) < len(NAMES):
            await asyncio.sleep(0.1)
    yield watching
    watching.task.cancel()
    await asyncio.wait([watching.task])


@pytest.mark.parametrize("name", NAMES)
async def test_a_deleted_topic_is_shown_and_then_lost(
    settings: Settings, watching: Watching, name: str
) -> None:
    topic = getattr(Topics.of(settings), name).name
    await asyncio.to_thread(delete_topics, settings.kafka, [topic])
    lost = await asyncio.wait_for(watching.task, SECONDS)
    assert lost == f"'{topic}' was deleted while the worker ran"
    assert watching.obstacles[OBSTACLE].startswith(f"the broker does not know '{topic}': deleted")


async def test_a_topic_that_was_created_again_is_lost(
    settings: Settings, watching: Watching
) -> None:
    work = Topics.of(settings).work.name
    await asyncio.to_thread(delete_topics, settings.kafka, [work])
    await asyncio.to_thread(create_topics, settings.kafka, {work: 1})
    lost = await asyncio.wait_for(watching.task, SECONDS)
    assert lost == f"topic '{work}' was deleted and created again"
