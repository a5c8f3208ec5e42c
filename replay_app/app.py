"""The Faust app: topics, table, agents and services put together."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import platform
import shutil
import ssl
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import faust
import uvloop
from faust.exceptions import ConsistencyError
from mode import Service

from replay_app.agents import SessionPartitions
from replay_app.encoder import encoder_name
from replay_app.logs import configure_logging
from replay_app.progress import MAX_INTERNAL_BYTES
from replay_app.publisher import BATCH_OVERHEAD, HEARTBEAT_SECONDS, Outbox
from replay_app.slices import Worker, WorkPartitions
from replay_app.status import Board
from replay_app.store import EventStore
from replay_app.topics import Topic, Topics, ensure_topics
from replay_app.web.views import add_views

if TYPE_CHECKING:
    from faust.types import TP

    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

_ROCKSDB = {
    "driver": "rocksdict",
    # A row a session, not a row an event: small buffers are plenty (the defaults take gigabytes).
    "write_buffer_size": 4 << 20,
    "max_write_buffer_number": 2,
    "block_cache_size": 16 << 20,
}
MMAP_THRESHOLD = 16 << 20
"""Bytes from which on a buffer is mapped, and unmapped when it is freed: a page is smaller."""
TRIM_THRESHOLD = 64 << 20
"""Freed bytes from which on memory is given back."""
ARENAS = 2
"""Heaps from which all threads allocate, each of which keeps what it has."""
COMMIT_SECONDS = 1.0
MEMBERSHIP_SECONDS = 1.0


def create_app(settings: Settings) -> faust.App:
    """Return a worker's Faust app; nothing is connected before it starts."""
    app = _faust_app(settings)
    topics = Topics.of(settings)
    table = app.Table(
        "sessions",
        partitions=settings.partitions,
        key_type=bytes,
        value_type=bytes,
        options=_ROCKSDB,
        help="The session of each replay",
    )
    worker = Worker(
        settings=settings,
        topics=topics,
        store=EventStore(settings),
        outbox=Outbox(settings),
        board=Board(settings),
        is_leaving=lambda: bool(app.rebalancing or app.should_stop),
    )
    work = WorkPartitions(worker)
    sessions = SessionPartitions(worker, table)
    ready = asyncio.Event()
    _add_connections(app, worker, work, sessions, ready)

    def subscribed(topic: Topic) -> Any:
        return app.topic(
            topic.name,
            key_type=bytes,
            value_type=bytes,
            partitions=topic.partitions,
            replicas=settings.replication,
        )

    @app.agent(subscribed(topics.requests), name="requests", isolated_partitions=True)
    async def requests_agent(stream: Any) -> None:
        async for event in stream.events():
            await ready.wait()
            record = event.message
            await sessions.handle_request(record.partition, record.offset, record.value)

    @app.agent(subscribed(topics.progress), name="progress", isolated_partitions=True)
    async def progress_agent(stream: Any) -> None:
        async for event in stream.events():
            await ready.wait()
            record = event.message
            await sessions.handle_progress(record.partition, record.offset, record.value)

    @app.agent(subscribed(topics.work), name="work", isolated_partitions=True)
    async def work_agent(stream: Any) -> None:
        async for event in stream.events():
            await ready.wait()
            record = event.message
            await work.handle(record.partition, record.offset, record.value)

    add_views(app, worker, table)
    return app


def _faust_app(settings: Settings) -> faust.App:
    return faust.App(
        settings.app_id,
        broker=[f"kafka://{server.strip()}" for server in settings.kafka.split(",")],
        broker_credentials=_credentials(settings),
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=HEARTBEAT_SECONDS,
        producer_max_request_size=MAX_INTERNAL_BYTES + BATCH_OVERHEAD,
        consumer_group_instance_id=_member_name(settings),
        consumer_auto_offset_reset="earliest",
        store="rocksdb://",
        datadir=str(settings.data_dir),
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_allow_declare=True,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=True,
        key_serializer="raw",
        value_serializer="raw",
        web_bind=settings.bind_host,
        web_host=settings.bind_host,
        web_port=settings.web_port,
        canonical_url=_url(settings),
        web_tables_enabled=False,
        web_router_enabled=False,
        web_stats_enabled=False,
        web_graph_enabled=False,
        web_metrics_enabled=False,
        autodiscover=False,
        worker_redirect_stdouts=False,
    )


def _url(settings: Settings) -> str:
    return settings.canonical_url or f"http://127.0.0.1:{settings.web_port}"


def _member_name(settings: Settings) -> str:
    """Return the static member's name: the worker's, and a trace of its address.

    The broker gives a member that comes back its former assignment at once, and Faust dies of one
    that was made for another address.
    """
    return f"{settings.worker_name}-{zlib.crc32(_url(settings).encode()):08x}"


def _add_connections(
    app: faust.App,
    worker: Worker,
    work: WorkPartitions,
    sessions: SessionPartitions,
    ready: asyncio.Event,
) -> None:
    """Add what the agents need beside Faust's own connections; sets ``ready`` when it is there."""

    @app.service
    class Connections(Service):
        """The outbox, the board, the watchdog, and the fenced producers of owned partitions."""

        async def on_start(self) -> None:
            await worker.outbox.start()
            ready.set()

        @Service.task
        async def _follow_the_board(self) -> None:
            await worker.board.follow()

        @Service.task
        async def _watch_the_sessions(self) -> None:
            await ready.wait()
            await sessions.watch()

        async def on_stop(self) -> None:
            await asyncio.gather(work.revoke(), sessions.revoke())
            await worker.outbox.stop()
            worker.store.close()

    # Rebalances are eager: whatever is assigned next, another worker may have had it in between.
    async def revoked(*_: Any, **__: Any) -> None:
        await asyncio.gather(work.revoke(), sessions.revoke())

    async def assigned(*arguments: Any, **_: Any) -> None:
        partitions: set[TP] = arguments[1]  # behind the app
        await work.assign(tp.partition for tp in partitions if tp.topic == worker.topics.work.name)
        await sessions.assign(
            tp.partition for tp in partitions if tp.topic == worker.topics.requests.name
        )

    app.on_partitions_revoked.connect(revoked)
    app.on_partitions_assigned.connect(assigned)


def run_worker(settings: Settings) -> int:
    """Create the topics that are missing, then run a worker until SIGTERM or Ctrl-C.

    Raises
    ------
    InvalidSettings
        When the topics do not fit the settings, or the encoder that they ask for is not there.
    Unavailable
        When the broker does not answer.

    """
    configure_logging(settings.log_level)
    logger.info("pages are encoded by the %s encoder", encoder_name(settings.encoder))
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    tune_memory()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(ensure_topics(settings))
    app = create_app(settings)
    worker = faust.Worker(
        app,
        loop=loop,
        loglevel=settings.log_level,
        quiet=True,
        redirect_stdouts=False,
        override_logging=False,
    )
    watch = loop.create_task(_end_without_membership(app))
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        if isinstance(worker.crash_reason, ConsistencyError):
            _start_over(Path(app.conf.tabledir))
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        watch.cancel()


def tune_memory() -> None:
    """Fit the cycle collector and the C library's allocator to pages that come and go."""
    # Documents are freed by reference counting: the collector would search them for nothing.
    gc.set_threshold(250_000, 50, 100)
    if platform.libc_ver()[0] != "glibc":
        return
    # It gives large buffers back to the system at once, by default, and has each of their pages
    # cleared again when it asks for the next: a quarter of the cost of encoding.
    libc = ctypes.CDLL(None)
    # The options' numbers are those of malloc.h.
    for option, value in ((-3, MMAP_THRESHOLD), (-1, TRIM_THRESHOLD), (-8, ARENAS)):
        libc.mallopt(option, value)


async def _end_without_membership(app: faust.App) -> None:
    """End the process once aiokafka has given up the group: nothing else would show it.

    No task of a service: those start with the first assignment, which then never comes.
    """
    while True:
        await asyncio.sleep(MEMBERSHIP_SECONDS)
        # The private way there: neither Faust nor aiokafka tells.
        thread = getattr(app._consumer, "_thread", None)  # noqa: SLF001
        coordinator = getattr(getattr(thread, "_consumer", None), "_coordinator", None)
        task = getattr(coordinator, "_coordination_task", None)
        if task is not None and task.done() and not app.should_stop:
            logger.critical("the membership in the group is lost: ending, to be started again")
            os._exit(1)


def _start_over(tables: Path) -> NoReturn:
    """Run this command again without the local rows, which are newer than what Kafka still has.

    Faust refuses such rows for ever. They are a cache: ``replay.status`` has every session.
    """
    logger.warning("the table's changelog was lost: starting again without %s", tables)
    shutil.rmtree(tables)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this very command


def _credentials(settings: Settings) -> Any:
    """Return the Kafka security settings as Faust takes them."""
    options = settings.kafka_security()
    context: ssl.SSLContext | None = options.get("ssl_context")
    if "SASL" in settings.kafka_security_protocol:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            ssl_context=context,
            mechanism=options["sasl_mechanism"],
        )
    return faust.SSLCredentials(context=context) if context else None
