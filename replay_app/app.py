"""The Faust app of a worker: table, agents, connections and views, put together."""

from __future__ import annotations

import asyncio
import logging
import ssl
import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import faust
from faust.auth import OAuthCredentials
from mode import Service

from replay_app.board import Board
from replay_app.context import WorkerContext
from replay_app.encoders import encoder_name
from replay_app.group_watch import GroupWatch
from replay_app.ignored import IgnoredRecords
from replay_app.internals import mend_faust
from replay_app.kafka_security import kafka_security
from replay_app.publisher import BATCH_OVERHEAD, GROUP_HEARTBEAT_SECONDS, Outbox
from replay_app.reports import MAX_INTERNAL_BYTES
from replay_app.sessions_agent import SessionPartitions
from replay_app.store import EventStore
from replay_app.topics import Topic, Topics
from replay_app.web.access import require_access
from replay_app.web.server import HttpServer
from replay_app.web.views import add_views
from replay_app.work_agent import WorkPartitions

if TYPE_CHECKING:
    from faust.types import TP

    from replay_app.settings import Settings

    Handle = Callable[[int, int, bytes | None], Awaitable[None]]

_ROCKSDB = {
    "driver": "rocksdict",
    # The table has a row for each session, not for each event: small buffers are enough. Faust's
    # defaults take gigabytes.
    "write_buffer_size": 4 << 20,
    "max_write_buffer_number": 2,
    "block_cache_size": 16 << 20,
}
logger = logging.getLogger(__name__)

READY_POLL_SECONDS = 0.2
COMMIT_SECONDS = 1.0
"""Interval at which Faust commits the offsets of acked records."""


def create_app(
    settings: Settings,
    obstacles: dict[str, str] | None = None,
    topic_ids: tuple[str, ...] = (),
) -> faust.App:
    """Return a worker's Faust app. Nothing is connected before the app starts.

    ``obstacles`` has what holds the worker up, in words, by the thing that is held up; ``/readyz``
    shows it. ``topic_ids`` are the ids of the worker's own topics.
    """
    app = _faust_app(settings, topic_ids)
    table = app.Table(
        "sessions",
        partitions=settings.partitions,
        key_type=bytes,
        value_type=bytes,
        options=_ROCKSDB,
        help="The session of each replay",
    )
    ignored = IgnoredRecords()
    context = WorkerContext(
        settings=settings,
        topics=Topics.of(settings),
        store=EventStore(settings),
        outbox=Outbox(settings),
        board=Board(settings, ignored),
        is_leaving=lambda: bool(app.rebalancing or app.should_stop),
        ignored=ignored,
        obstacles={} if obstacles is None else obstacles,
    )
    work = WorkPartitions(context)
    sessions = SessionPartitions(
        context, table, lambda: bool(app.tables.actives_ready and not app.rebalancing)
    )
    ready = asyncio.Event()
    _add_connections(app, context, work, sessions, ready)
    for topic, name, handle in (
        (context.topics.requests, "requests", sessions.handle_request),
        (context.topics.progress, "progress", sessions.handle_report),
        (context.topics.work, "work", work.handle),
    ):
        _add_agent(app, topic, name, handle, ready)
    mend_faust(app)
    add_views(app, context, table)
    _limit_the_server(app, context)
    return app


def _limit_the_server(app: faust.App, context: WorkerContext) -> None:
    """Let our server listen in place of Faust's, which takes no limits."""
    web: Any = app.web
    settings = context.settings
    server = HttpServer(
        web.web_app,
        require_access(settings, context.tokens),
        context.metrics,
        settings.bind_host,
        settings.web_port,
    )
    web.start_server, web.stop_server = server.start, server.stop


def _add_agent(
    app: faust.App, topic: Topic, name: str, handle: Handle, ready: asyncio.Event
) -> None:
    """Let ``handle`` process each record of a topic, each partition's records in order."""
    channel = app.topic(
        topic.name,
        key_type=bytes,
        value_type=bytes,
        partitions=topic.partitions,
        replicas=app.conf.topic_replication_factor,
    )

    async def process(stream: Any) -> None:
        async for event in stream.events():
            await ready.wait()  # a record may come before the connections have started
            record = event.message
            try:
                await handle(record.partition, record.offset, record.value)
            except Exception:
                # Whatever a record holds: the records behind it must not wait.
                logger.exception("%s %d:%d failed", topic.name, record.partition, record.offset)

    process.__name__ = process.__qualname__ = f"{name}_agent"  # Faust's log names the function
    app.agent(channel, name=name, isolated_partitions=True)(process)


def _faust_app(settings: Settings, topic_ids: tuple[str, ...]) -> faust.App:
    return faust.App(
        settings.app_id,
        broker=[f"kafka://{server.strip()}" for server in settings.kafka.split(",")],
        broker_credentials=_credentials(settings),
        broker_commit_interval=COMMIT_SECONDS,
        broker_session_timeout=settings.session_timeout_seconds,
        broker_heartbeat_interval=GROUP_HEARTBEAT_SECONDS,
        producer_max_request_size=MAX_INTERNAL_BYTES + BATCH_OVERHEAD,
        consumer_group_instance_id=_member_name(settings, topic_ids),
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


def _member_name(settings: Settings, topic_ids: tuple[str, ...]) -> str:
    """Return the name of the static group member: the worker's name and a checksum.

    The broker gives a member that comes back its former assignment at once. Faust fails on an
    assignment that was made for another address. An assignment that was made while the table's
    changelog was missing does not say who owns a replay. So address and topics belong to the name.
    """
    checked = ",".join((_url(settings), *topic_ids))
    return f"{settings.worker_name}-{zlib.crc32(checked.encode()):08x}"


def _add_connections(
    app: faust.App,
    context: WorkerContext,
    work: WorkPartitions,
    sessions: SessionPartitions,
    ready: asyncio.Event,
) -> None:
    """Add the connections that Faust does not have. Sets ``ready`` once the outbox is connected."""
    groups = GroupWatch(context, sessions.owned)

    @app.service
    class Connections(Service):
        """The outbox, the board, the watchdog, and the producers of the owned partitions."""

        mundane_level = "debug"  # of the lines with which mode says that a service starts and stops

        async def on_start(self) -> None:
            await context.outbox.start()
            ready.set()

        @Service.task
        async def _follow_the_board(self) -> None:
            await context.board.follow()

        @Service.task
        async def _watch_the_sessions(self) -> None:
            await ready.wait()
            await asyncio.gather(sessions.watch(), groups.watch())

        @Service.task
        async def _look_at_the_store(self) -> None:
            await context.store_health.watch()

        @Service.task
        async def _announce_readiness(self) -> None:
            while app.rebalancing or not app.tables.actives_ready or not context.board.is_complete:  # noqa: ASYNC110 - Faust has no event for this
                await asyncio.sleep(READY_POLL_SECONDS)
            logger.info(
                "ready at %s: %d of %d partitions, %s encoder",
                _url(context.settings),
                work.count(),
                context.settings.partitions,
                encoder_name(context.settings.encoder),
            )

        async def on_stop(self) -> None:
            await asyncio.gather(work.revoke(), sessions.revoke())
            await context.outbox.stop()
            context.store.close()

    # Rebalances are eager: another worker may have owned a partition in between.
    async def revoked(*_: Any, **__: Any) -> None:
        await asyncio.gather(work.revoke(), sessions.revoke())

    async def assigned(*arguments: Any, **_: Any) -> None:
        partitions: set[TP] = arguments[1]  # the first argument is the app
        await work.assign(tp.partition for tp in partitions if tp.topic == context.topics.work.name)
        await sessions.assign(
            tp.partition for tp in partitions if tp.topic == context.topics.requests.name
        )

    app.on_partitions_revoked.connect(revoked)
    app.on_partitions_assigned.connect(assigned)


def _credentials(settings: Settings) -> Any:
    """Return the Kafka security settings in the form that Faust takes."""
    options = kafka_security(settings, settings.kafka)
    context: ssl.SSLContext | None = options.get("ssl_context")
    if provider := options.get("sasl_oauth_token_provider"):
        return OAuthCredentials(oauth_cb=provider, ssl_context=context)
    if "SASL" in settings.kafka_security_protocol:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            ssl_context=context,
            mechanism=options["sasl_mechanism"],
        )
    return faust.SSLCredentials(context=context) if context else None
