"""The sessions agent when it cannot write, or read, its rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest

from replay_app.commands import Command, Filter, Pause, Start
from replay_app.context import WorkerContext
from replay_app.publisher import Outbox
from replay_app.sessions_agent import SessionPartitions
from replay_app.store import EventStore

EVERY = Filter(all=True)


class FullDisk(dict[bytes, bytes]):
    """A table on a disk that is full."""

    def __setitem__(self, key: bytes, value: bytes) -> NoReturn:
        raise OSError(28, "No space left on device")


async def test_a_command_after_a_failed_write_of_a_row_finds_its_session(
    start_worker: Callable[..., Awaitable[WorkerContext]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    worker = await start_worker(EventStore, Outbox)
    agent = SessionPartitions(worker, FullDisk(), lambda: True)
    await agent.assign([0])

    async def handle(offset: int, command: Command) -> None:
        await agent.handle_request(0, offset, command.model_dump_json().encode())

    following = asyncio.create_task(worker.board.follow())
    await handle(1, Start(replay_id="r0", filter=EVERY))
    following.cancel()  # the board stops reading before the next commands
    await asyncio.wait([following])
    worker.board.sessions.clear()
    await handle(2, Start(replay_id="r1", requested_by="ana", filter=EVERY))
    await handle(3, Pause(replay_id="r1"))
    assert "is the disk of REPLAY_DATA_DIR full?" in caplog.text
    following = asyncio.create_task(worker.board.follow())
    async with asyncio.timeout(10):
        while (session := worker.board.sessions.get("r1")) is None or session.revision < 2:
            await asyncio.sleep(0.05)
    following.cancel()
    await asyncio.wait([following])
    assert (session.state, session.revision) == ("paused", 2)
    assert "replay r1: new -> pending, requested by ana" in caplog.text
    assert "replay r1: pending -> paused" in caplog.text
    assert worker.board.rejections == {}
    await agent.revoke()


class DamagedRows(dict[bytes, bytes]):
    """A table whose rows are damaged on the disk, as RocksDB says it."""

    def get(self, *_: object) -> NoReturn:
        msg = "Corruption: block checksum mismatch"
        raise Exception(msg)  # noqa: TRY002 - RocksDB's errors have no class


async def test_a_command_for_a_replay_with_a_damaged_row_finds_the_session_on_the_board(
    start_worker: Callable[..., Awaitable[WorkerContext]],
) -> None:
    worker = await start_worker(EventStore, Outbox)
    following = asyncio.create_task(worker.board.follow())
    agent = SessionPartitions(worker, DamagedRows(), lambda: True)
    await agent.assign([0])
    for offset, command in enumerate([Start(replay_id="r", filter=EVERY), Pause(replay_id="r")]):
        await agent.handle_request(0, offset, command.model_dump_json().encode())
    async with asyncio.timeout(10):
        while (session := worker.board.sessions.get("r")) is None or session.revision < 2:
            await asyncio.sleep(0.05)
    assert session.state == "paused"
    following.cancel()
    await asyncio.wait([following])
    await agent.revoke()
