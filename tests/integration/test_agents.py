"""The sessions agent where its rows cannot be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest
from support import unique_name

from replay_app.agents import SessionPartitions
from replay_app.commands import Command, Pause, Start
from replay_app.demo.stack import Stack
from replay_app.publisher import Outbox
from replay_app.settings import Settings
from replay_app.slices import Worker
from replay_app.status import Board
from replay_app.store import EventStore
from replay_app.topics import Topics, ensure_topics


class FullDisk(dict[bytes, bytes]):
    """A table on a disk that is full."""

    def __setitem__(self, key: bytes, value: bytes) -> NoReturn:
        raise OSError(28, "No space left on device")


@pytest.fixture
async def worker(settings: Settings, stack: Stack) -> AsyncIterator[Worker]:
    name = unique_name("agents")
    own = {"kafka": stack.kafka, "app_id": name, "topic_prefix": f"{name}.", "partitions": 1}
    settings = settings.model_copy(update=own)
    await ensure_topics(settings)
    worker = Worker(
        settings=settings,
        topics=Topics.of(settings),
        store=EventStore(settings),
        outbox=Outbox(settings),
        board=Board(settings),
        is_leaving=lambda: False,
    )
    await worker.outbox.start()
    yield worker
    await worker.outbox.stop()
    worker.store.close()


async def test_a_command_behind_one_whose_row_could_not_be_written_finds_its_session(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    agent = SessionPartitions(worker, FullDisk())
    await agent.assign([0])

    async def handle(offset: int, command: Command) -> None:
        await agent.handle_request(0, offset, command.model_dump_json().encode())

    following = asyncio.create_task(worker.board.follow())
    await handle(1, Start(replay_id="r0"))
    following.cancel()  # the board has not read on when the next commands come
    worker.board.sessions.clear()
    await handle(2, Start(replay_id="r1"))
    await handle(3, Pause(replay_id="r1"))
    assert "is the disk of REPLAY_DATA_DIR full?" in caplog.text
    following = asyncio.create_task(worker.board.follow())
    async with asyncio.timeout(10):
        while (session := worker.board.sessions.get("r1")) is None or session.revision < 2:
            await asyncio.sleep(0.05)
    following.cancel()
    assert (session.state, session.revision) == ("paused", 2)
    assert worker.board.rejections == {}
    await agent.revoke()
