"""A worker process: checks, memory, the event loop, and the end of the process."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import faust
import uvloop
from faust.exceptions import ConsistencyError

from replay_app.app import create_app
from replay_app.brokers import prepare_topics
from replay_app.encoders import encoder_name
from replay_app.exceptions import ReplayError
from replay_app.internals import check_versions, has_lost_membership
from replay_app.tokens import Tokens
from replay_app.topic_watch import TopicWatch
from replay_app.transform_names import import_transforms

if TYPE_CHECKING:
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

MMAP_THRESHOLD = 16 << 20
"""Bytes. A larger buffer is mapped, and unmapped when it is freed. A page is smaller."""
TRIM_THRESHOLD = 64 << 20
"""The C library gives memory back if more freed bytes than this are at the top of a heap."""
ARENAS = 2
"""Heaps from which all threads allocate. Each heap keeps its freed memory."""
DAMAGED_ROWS = ("Corruption: ", "IO error: No such file or directory: ")
"""How RocksDB's errors about damaged or missing files begin; its errors have no class."""
MEMBERSHIP_SECONDS = 1.0
"""Interval at which a worker checks its membership in the group."""
STOP_SECONDS = 25.0
"""Longest time from SIGTERM to the end of the process. `supervisor` and Kubernetes wait longer."""
THREADS_SECONDS = 3.0
"""How long the process waits for its last threads after that."""
STOP_POLL_SECONDS = 0.5


def run_worker(settings: Settings) -> int:
    """Wait for Kafka, create the missing topics, then run a worker until SIGTERM or Ctrl-C.

    Return the exit code. The log must be configured.

    Raises
    ------
    InvalidSettings
        When the topics do not fit the settings, the broker has no transactions, a library has
        another version than the tested one, or the encoder is not installed.
    Unavailable
        When the broker does not answer in time.
    ReplayError
        When the port of the HTTP API is taken, or the folder cannot be used.

    """
    check_versions()
    encoder_name(settings.encoder)  # raises if the encoder cannot be used
    import_transforms(settings)
    Tokens(settings)  # raises if the file is wrong: before the broker is asked
    _require_free_port(settings)
    _require_folder(settings.data_dir)
    tune_memory()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    topic_ids = loop.run_until_complete(_prepare_topics(settings))
    if topic_ids is None:
        return 0
    obstacles: dict[str, str] = {}
    app = create_app(settings, obstacles, topic_ids)
    worker = faust.Worker(
        app,
        loop=loop,
        loglevel=settings.log_level,
        quiet=True,
        redirect_stdouts=False,
        override_logging=False,
    )
    worker.spinner = None  # it would write escape sequences, even into a file
    watch = loop.create_task(_end_without_membership(app))
    topics = loop.create_task(_start_over_without_topics(TopicWatch(settings, obstacles), app))
    limit = loop.create_task(_limit_the_end(worker))
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        # Rows that Faust never accepts again. They are a cache: the status topic has the sessions.
        tables = Path(app.conf.tabledir)
        if isinstance(worker.crash_reason, ConsistencyError):
            logger.warning("the table's changelog was lost: starting again without %s", tables)
            shutil.rmtree(tables)
            _start_over()
        if str(worker.crash_reason).startswith(DAMAGED_ROWS):
            aside = tables.with_name(f"{tables.name}.damaged")
            logger.warning(
                "the local rows are damaged (%s): starting again without them; they are in %s now",
                worker.crash_reason,
                aside,
            )
            shutil.rmtree(aside, ignore_errors=True)
            tables.rename(aside)
            _start_over()
        code = ended.code if isinstance(ended.code, int) else 1
        if limit.done() and not limit.cancelled():
            limit.result().cancel()
        # All is stopped in order. But Python waits for threads, and one may wait for the store.
        _end_after(THREADS_SECONDS, code)
        return code
    finally:
        watch.cancel()
        topics.cancel()
        limit.cancel()


def _require_free_port(settings: Settings) -> None:
    """Bind the port of the HTTP API once: Faust would say with a traceback that it is taken."""
    family = socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((settings.bind_host, settings.web_port))
        except OSError as error:
            msg = (
                f"{settings.bind_host}:{settings.web_port} (REPLAY_WEB_HOST, REPLAY_WEB_PORT) "
                f"cannot be bound: {error.strerror}; choose another port, or end the process that "
                "uses it"
            )
            raise ReplayError(msg) from error


def _require_folder(folder: Path) -> None:
    """Create the folder, and a file in it for a moment."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        msg = (
            f"the folder {folder} (REPLAY_DATA_DIR) cannot be used: {error.strerror}; choose "
            "another folder, or let this user write there"
        )
        raise ReplayError(msg) from error


async def _prepare_topics(settings: Settings) -> tuple[str, ...] | None:
    """Wait for Kafka and create the topics; return their ids, or None after SIGTERM.

    As process 1 of a container, a worker without a handler would not hear SIGTERM.
    """
    loop, waiting = asyncio.get_running_loop(), asyncio.ensure_future(prepare_topics(settings))
    loop.add_signal_handler(signal.SIGTERM, waiting.cancel)
    try:
        return await waiting
    except asyncio.CancelledError:
        return None
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def tune_memory() -> None:
    """Fit the cycle collector and the C library's allocator to pages that come and go."""
    # Reference counting frees documents: the collector would search them in vain.
    gc.set_threshold(250_000, 50, 100)
    if platform.libc_ver()[0] != "glibc":
        return
    # By default, glibc gives large buffers back to the system at once, and the system clears each
    # memory page when it is used again: a quarter of the cost of encoding.
    libc = ctypes.CDLL(None)
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_ARENA_MAX of malloc.h.
    for option, value in ((-3, MMAP_THRESHOLD), (-1, TRIM_THRESHOLD), (-8, ARENAS)):
        libc.mallopt(option, value)


async def _end_without_membership(app: faust.App) -> None:
    """End the process once aiokafka has given up the group. Nothing else would show the loss.

    This is not a task of a Faust service: services start with the first assignment, and a worker
    without a membership may never get one.
    """
    while True:
        await asyncio.sleep(MEMBERSHIP_SECONDS)
        if has_lost_membership(app) and not app.should_stop:
            logger.critical("the membership in the group is lost: ending, to be started again")
            os._exit(1)


async def _start_over_without_topics(watch: TopicWatch, app: faust.App) -> None:
    """Start over when one of the worker's own topics was deleted, or created again.

    Nothing is stopped in order before: much of that would wait for the lost topic. No work is lost,
    as after kill -9.
    """
    lost = await watch.until_lost()
    if not app.should_stop:
        logger.critical("%s: starting over", lost)
        _start_over()


async def _limit_the_end(worker: faust.Worker) -> threading.Timer:
    """Wait for SIGTERM. Return the timer that ends the process STOP_SECONDS later.

    Faust waits for the records under way, and a record may wait for a broker that is away. No work
    is lost: what is not committed is done again, as after kill -9.
    """
    while not worker.should_stop:  # noqa: ASYNC110 - Faust has no event for this
        await asyncio.sleep(STOP_POLL_SECONDS)
    return _end_after(STOP_SECONDS, 1)


def _end_after(seconds: float, code: int) -> threading.Timer:
    """End the process after some seconds, if it does not end by itself."""

    def end() -> None:
        logger.warning("the process did not end within %g s: ended at once", seconds)
        logging.shutdown()
        os._exit(code)

    # A thread, because Faust stops and closes the loop while it ends.
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _start_over() -> NoReturn:
    """Run this command again, in this process: its number stays the same."""
    logging.shutdown()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command
