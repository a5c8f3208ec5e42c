"""A worker sees that its own topics are gone, or are others under the same names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from support import create_topics, delete_topics, unique_name

from replay_app.demo.stack import Stack
from replay_app.settings import Settings, load_settings
from replay_app.topic_watch import OBSTACLE, TopicWatch
from replay_app.topics import Topics

SECONDS = 60.0
GONE_SECONDS = 1.0
NAMES = list(Topics.__dataclass_fields__)


class Watching:
    """A watch in a task."""

    def __init__(self, settings: Settings) -> None:
        self.obstacles: dict[str, str] = {}
        self.watch = TopicWatch(settings, self.obstacles)
        self.task = asyncio.create_task(self.watch.until_lost())


@pytest.fixture(scope="module")
def settings(stack: Stack) -> Settings:
    name = unique_name("watched")
    settings = load_settings(
        kafka=stack.kafka,
        # Two names of one broker stand for two clusters.
        target_kafka=stack.kafka.replace("127.0.0.1", "localhost"),
        app_id=name,
        topic_prefix=f"{name}.",
        partitions=1,
    )
    create_topics(settings.kafka, {topic.name: 1 for topic in Topics.of(settings).all()})
    return settings


@pytest.fixture
async def watching(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watching]:
    """A watch that has had its first look."""
    monkeypatch.setattr("replay_app.topic_watch.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("replay_app.topic_watch.GONE_SECONDS", GONE_SECONDS)
    watching = Watching(settings)
    async with asyncio.timeout(SECONDS):
        while len(watching.watch.ids) < len(NAMES):
            await asyncio.sleep(0.1)
    yield watching
    watching.task.cancel()
    await asyncio.wait([watching.task])


@pytest.fixture
def deleted(settings: Settings, watching: Watching, name: str) -> Iterator[str]:
    """A topic that is deleted during the watch; the next test has it again."""
    topic: str = getattr(Topics.of(settings), name).name
    delete_topics(settings.kafka, [topic])
    yield topic
    create_topics(settings.kafka, {topic: 1})


@pytest.mark.parametrize("name", NAMES)
async def test_a_deleted_topic_is_shown_and_then_lost(watching: Watching, deleted: str) -> None:
    lost = await asyncio.wait_for(watching.task, SECONDS)
    assert lost == f"'{deleted}' was deleted while the worker ran"
    assert watching.obstacles[OBSTACLE].startswith(f"the broker does not know '{deleted}': deleted")


async def test_a_topic_that_was_created_again_is_lost(
    settings: Settings, watching: Watching
) -> None:
    work = Topics.of(settings).work.name
    await asyncio.to_thread(delete_topics, settings.kafka, [work])
    await asyncio.to_thread(create_topics, settings.kafka, {work: 1})
    lost = await asyncio.wait_for(watching.task, SECONDS)
    assert lost == f"topic '{work}' was deleted and created again"


async def test_a_connection_is_kept_until_a_look_fails(
    settings: Settings, watching: Watching
) -> None:
    clients = dict(watching.watch._clients)
    assert set(clients) == {settings.kafka, settings.target_bootstrap}
    await look_again(watching)
    assert watching.watch._clients == clients
    old = clients[settings.kafka]
    old.cluster._brokers.clear()  # as if every broker had moved
    async with asyncio.timeout(SECONDS):
        while watching.watch._clients.get(settings.kafka) in {None, old}:
            await asyncio.sleep(0.05)
    await look_again(watching)


async def look_again(watching: Watching) -> None:
    """Wait until the watch has looked at all topics of both clusters once more."""
    watching.watch.ids.clear()
    async with asyncio.timeout(SECONDS):
        while len(watching.watch.ids) < len(NAMES):
            await asyncio.sleep(0.05)
