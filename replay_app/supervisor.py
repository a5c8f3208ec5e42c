"""Several worker processes on one machine: start them, restart a dead one, end them together.

Each process is an ordinary worker with its own name, port and folder. No worker outlives the
process that started it: see `end_with_parent`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from replay_app.exceptions import InvalidSettings, ReplayError
from replay_app.settings import Settings

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "replay_app", "worker", "--end-with-parent")
"""Starts a worker that ends with the process that holds the pipe to its standard input."""
RESTART_SECONDS = 0.5
"""The wait before a restart. It doubles while the process dies within `SETTLED_SECONDS`."""
MAX_RESTART_SECONDS = 10.0
SETTLED_SECONDS = 120.0
"""A process that has lived this long has started well, and its end has another cause. A start takes
less, even if it waits for a broker in vain."""
WORKER_STOP_SECONDS = 30.0
"""How long a worker may take to end its slices and leave the group."""
WRONG_SETTINGS = 2
"""The exit code of a worker whose settings are wrong."""
MAX_PORT = 65_535


def restart_seconds(code: int, lived_seconds: float, waited_seconds: float | None) -> float | None:
    """Return how many seconds to wait before a worker is restarted; None: do not restart.

    ``code`` is the worker's exit code; a negative code is a signal. ``waited_seconds`` is the wait
    before the run that has ended; None for the first run. A worker that fails at its first start
    would fail again. A worker that has run before may only have to wait for the broker.
    """
    settled = lived_seconds >= SETTLED_SECONDS
    could_not_start = waited_seconds is None and code > 0 and not settled
    if code == WRONG_SETTINGS or could_not_start:
        return None
    if waited_seconds is None or settled:
        return RESTART_SECONDS
    return min(2 * waited_seconds, MAX_RESTART_SECONDS)


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """The name, port, folder and address of one of several workers."""

    worker_id: str
    web_port: int
    data_dir: Path
    canonical_url: str
    """Empty: the worker's own default."""

    def options(self) -> tuple[str, ...]:
        """Return the options of ``replay-app worker``."""
        return (
            *("--worker-id", self.worker_id),
            *("--web-port", str(self.web_port)),
            *("--data-dir", str(self.data_dir)),
        )


def worker_places(settings: Settings, processes: int) -> list[WorkerPlace]:
    """Return the place of each worker, derived from the settings of a single worker.

    Raises
    ------
    InvalidSettings
        When too few ports follow ``REPLAY_WEB_PORT``, or ``REPLAY_CANONICAL_URL`` has no port.

    """
    if settings.web_port + processes - 1 > MAX_PORT:
        msg = (
            f"REPLAY_WEB_PORT={settings.web_port}: {processes} processes need ports above "
            f"{MAX_PORT}; choose a lower port"
        )
        raise InvalidSettings(msg)
    return [
        WorkerPlace(
            worker_id=f"{settings.worker_name}-{number}",
            web_port=settings.web_port + number,
            data_dir=settings.data_dir / f"worker-{number}",
            canonical_url=_url_of(settings.canonical_url, number),
        )
        for number in range(processes)
    ]


def _url_of(canonical_url: str, number: int) -> str:
    """Return a worker's address: the port is the first worker's port plus the number."""
    if not canonical_url:
        return ""
    parts = urlsplit(canonical_url)
    host, _, port = parts.netloc.rpartition(":")
    if not (host and port.isdecimal()):
        msg = (
            f"REPLAY_CANONICAL_URL={canonical_url}: several processes need a port in the URL, "
            "such as http://this-host:6066; each process adds its number to the port"
        )
        raise InvalidSettings(msg)
    return parts._replace(netloc=f"{host}:{int(port) + number}").geturl()


def run_workers(settings: Settings, processes: int) -> int:
    """Run several workers until SIGTERM or Ctrl-C; return 0. The log must be configured.

    Raises
    ------
    ReplayError
        When a worker cannot start. Its message is on standard error, and all workers have ended.

    """
    places = worker_places(settings, processes)
    if processes > settings.partitions:
        logger.warning(
            "%d processes, but REPLAY_PARTITIONS is only %d: some processes will be idle",
            processes,
            settings.partitions,
        )
    asyncio.run(_run_until_signalled(places))
    return 0


async def _run_until_signalled(places: Sequence[WorkerPlace]) -> None:
    stop = asyncio.Event()
    for sent in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sent, stop.set)
    try:
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(_keep(place)) for place in places]
            await stop.wait()
            for keeper in keepers:
                keeper.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


async def _keep(place: WorkerPlace) -> NoReturn:
    """Run a worker and restart it whenever it dies; end it in order when cancelled."""
    waited_seconds: float | None = None
    while True:
        began = time.monotonic()
        process = await _start(place)
        try:
            code = await process.wait()
        finally:
            await _end(process, place)
        lived_seconds = time.monotonic() - began
        waited_seconds = restart_seconds(code, lived_seconds, waited_seconds)
        if waited_seconds is None:
            why = "its settings are wrong" if code == WRONG_SETTINGS else "it could not start"
            msg = (
                f"worker {place.worker_id} ended with code {code} after {lived_seconds:.1f} s: "
                f"{why}; the cause is in the lines above"
            )
            raise ReplayError(msg)
        ended = f"signal {-code}" if code < 0 else f"code {code}"
        logger.warning(
            "worker %s ended with %s and restarts in %g s",
            place.worker_id,
            ended,
            waited_seconds,
        )
        await asyncio.sleep(waited_seconds)


async def _start(place: WorkerPlace) -> Process:
    own = {"REPLAY_CANONICAL_URL": place.canonical_url} if place.canonical_url else {}
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *place.options(),
        env={**os.environ, **own},
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,  # only this process gets Ctrl-C; it ends the workers in order
    )
    logger.info("worker %s is process %d, on port %d", place.worker_id, process.pid, place.web_port)
    return process


async def _end(process: Process, place: WorkerPlace) -> None:
    """Tell a worker to end its slices and leave the group; kill it if it takes too long."""
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), WORKER_STOP_SECONDS)
    except TimeoutError:
        logger.warning(
            "worker %s did not end in %g s: killed", place.worker_id, WORKER_STOP_SECONDS
        )
        process.kill()
        await process.wait()


def end_with_parent() -> None:
    """Kill this process when its standard input ends: a pipe that the starting process holds.

    The system closes the pipe when the starting process ends, even by kill -9.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        # Nothing can delay kill -9, and no work is lost by it.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
