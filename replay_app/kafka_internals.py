"""The private names of aiokafka's producer and client, behind public names (`internals` has more).

aiokafka's transactional producer tries for ever: it never gives up a batch, or a partition that
cannot join the transaction. It knows fewer error codes than the broker has, and it throws away
which record of a batch the broker refuses. `TransactionalProducer` differs in these points only.

`mend_aiokafka` changes all clients of this process: they create no topics, and a start that is
cancelled closes its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import aiokafka.client
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.errors import ProducerFenced
from aiokafka.producer.sender import (
    BACKOFF_OVERRIDE,
    AddPartitionsToTxnHandler,
    Sender,
    SendProduceReqHandler,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest_v8

from replay_app.broker_errors import (
    ACCEPTED,
    CONCURRENT_TRANSACTIONS,
    FENCED,
    OPERATION_NOT_ATTEMPTED,
    Kind,
    Refused,
    kind_of,
)

RETRY_MS = 100
"""Pause before a request is sent again."""
CLOSE_SECONDS = 5.0
"""Longest wait for connections to close."""
_COORDINATOR_MOVED = frozenset({15, 16})  # COORDINATOR_NOT_AVAILABLE, NOT_COORDINATOR
_send_token = OAuthAuthenticator.step
_close_in_order = AIOKafkaConnection.close
_build_metadata_request = MetadataRequest.build
_VERSION_OF_DETAILS = 8
"""The first version of the Produce response with the broker's words and the records at fault."""


def mend_aiokafka() -> None:
    """Change four things in every client of this process, Faust's included.

    - No metadata request creates a topic. By default aiokafka lets the broker create each topic
      that a client asks for: a deleted topic would come back, with the broker's default partitions.
    - A client whose start is cancelled, such as by a time limit, closes its first connection.
      aiokafka leaves the connection open, and writes "Unclosed AIOKafkaConnection" into the log.
    - A client whose token the broker refuses learns of the refusal. aiokafka takes the broker's
      answer for a success, and the client then waits for requests on a closed connection.
    - A connection with TLS is closed at once. Else the event loop waits for the broker's part of
      the TLS shutdown, up to 30 s: the broker does not read while it holds a request back.
    """
    MetadataRequest.build = _build_without_creation
    aiokafka.client.create_conn = _connect
    OAuthAuthenticator.step = _send_token_and_take_refusal
    AIOKafkaConnection.close = _close_at_once


def _build_without_creation(request: Any, struct: Any) -> Any:
    request._allow_auto_topic_creation = False  # noqa: SLF001
    return _build_metadata_request(request, struct)


async def _connect(
    host: str, port: int, *, on_close: Any = None, **options: Any
) -> AIOKafkaConnection:
    """Do what aiokafka's ``create_conn`` does."""
    # The connection of a client's start is the only one without a callback.
    kind = _FirstConnection if on_close is None else AIOKafkaConnection
    connection = kind(host, port, on_close=on_close, **options)
    await connection.connect()
    return connection


async def _send_token_and_take_refusal(
    authenticator: Any, answer: bytes | None
) -> tuple[bytes, bool] | None:
    # RFC 7628, 3.2.3: an answer means a refusal. The broker ends it after this byte.
    return (b"\x01", True) if answer else await _send_token(authenticator, answer)


def _close_at_once(connection: Any, reason: Any = None, exc: Any = None) -> Any:
    writer = connection._writer  # noqa: SLF001
    if writer is not None and connection._security_protocol in {"SSL", "SASL_SSL"}:  # noqa: SLF001
        writer.transport.abort()  # every request that matters has its answer
    return _close_in_order(connection, reason, exc)


class _FirstConnection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka ships no types
    """The connection over which a client that starts asks for the brokers."""

    async def send(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().send(*arguments, **options)
        except asyncio.CancelledError:
            self.close()
            raise


async def close_client(client: Any) -> None:
    """Close a client. After CLOSE_SECONDS the client is left alone: aiokafka may hang here."""
    closing = asyncio.ensure_future(client.close())
    await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    closing.cancel()


class TransactionalProducer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka ships no types
    """A transactional producer that gives up batches, and can be ended in any state.

    A batch that the broker has refused, or has not taken within ``request_timeout_ms``, fails with
    `Refused`. After a refusal the transaction may be aborted, and the producer used again.
    """

    def __init__(self, *, request_timeout_ms: int, **options: Any) -> None:
        super().__init__(
            acks="all", request_timeout_ms=request_timeout_ms, retry_backoff_ms=RETRY_MS, **options
        )
        self._sender = _Sender(
            self.client,
            acks=-1,
            txn_manager=self._txn_manager,
            message_accumulator=self._message_accumulator,
            retry_backoff_ms=RETRY_MS,
            request_timeout_ms=request_timeout_ms,
        )

    async def missing_topics(self, topics: Iterable[str]) -> set[str]:
        """Return which of the topics that the producer writes to do not exist.

        The set is empty if the broker does not answer.
        """
        cluster = self.client.cluster
        if not await self.client.force_metadata_update():
            return set()
        known: set[str] = cluster.topics() | cluster.unauthorized_topics
        return set(topics) - known

    async def end(self) -> None:
        """Stop at once, whatever the state. Nothing is sent any more.

        ``stop`` would wait for all batches first, and for batches that cannot be sent for ever.
        """
        self._closed = True
        await self._sender.end()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.client.close(), CLOSE_SECONDS)


class _Sender(Sender):  # type: ignore[misc]
    """aiokafka's sender, with our handlers, and with a list of the tasks that it runs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._requests: set[asyncio.Task[Any]] = set()

    async def end(self) -> None:
        """Cancel the sender and all its requests."""
        tasks = [task for task in (self._sender_task, *self._requests) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

    def _keep_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: the sender makes a task of each request
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    # The rest has the base's names: the base calls it.

    async def _send_produce_req(self, node_id: int, batches: dict[TopicPartition, Any]) -> None:
        self._keep_task()
        await _ProduceHandler(self, batches).do(node_id)
        self._in_flight.remove(node_id)
        self._muted_partitions.difference_update(batches)

    async def _do_add_partitions_to_txn(self, partitions: set[TopicPartition]) -> Any:
        self._keep_task()
        coordinator = await self._find_coordinator(
            CoordinationType.TRANSACTION, self._txn_manager.transactional_id
        )
        return await _AddPartitionsHandler(self, partitions).do(coordinator)

    async def _do_txn_commit(self, result: Any) -> None:
        self._keep_task()
        await super()._do_txn_commit(result)


class _ProduceHandler(SendProduceReqHandler):  # type: ignore[misc]
    def create_request(self) -> Any:
        """Return the request, also in the version whose answer names the records at fault."""
        request = super().create_request()
        request._CLASSES = (*request._CLASSES, ProduceRequest_v8)  # noqa: SLF001
        return request

    def handle_response(self, response: Any) -> None:
        for topic, partitions in response.topics:
            for entry in partitions:
                number, code, offset, timestamp = entry[:4]
                batch = self._batches.get(TopicPartition(topic, number))
                if batch is None:
                    continue
                records: Any = ()
                words = None
                if response.API_VERSION >= _VERSION_OF_DETAILS:
                    *_, records, words = entry
                if code in ACCEPTED:
                    batch.done(offset, timestamp, entry[4] if len(entry) > 4 else None)  # noqa: PLR2004 - from version 5 on
                elif kind_of(code) is Kind.PASSING and not batch.expired():
                    self._client.force_metadata_update()
                    self._to_reenqueue.append(batch)
                elif code in FENCED:
                    batch.failure(exception=ProducerFenced())
                else:
                    self._fail(batch, code, words, records or ())

    def _fail(self, batch: Any, code: int, words: str | None, records: Any) -> None:
        if kind_of(code) in {Kind.EVENT, Kind.TOPIC}:
            # The broker has written nothing: the next batch gets this batch's sequence number. The
            # next batch has no number yet, because a partition has one batch under way.
            manager = self._sender._txn_manager  # noqa: SLF001
            manager.increment_sequence_number(batch.tp, -batch.record_count)
        said = {message for _, message in records if message}
        detail = words or "; ".join(sorted(said)[:1]) or None
        places = tuple(place for place, _ in records)
        batch.failure(exception=Refused(code, batch.tp.topic, detail, places))

    def _can_retry(self, error: Any, batch: Any) -> bool:
        """Whether to send a batch again for which no answer came."""
        return bool(error.retriable) and not batch.expired()


class _AddPartitionsHandler(AddPartitionsToTxnHandler):  # type: ignore[misc]
    def handle_response(self, response: Any) -> float | None:
        """Sort the answers for each partition. Return the pause before the request is repeated."""
        manager, pause = self._sender._txn_manager, None  # noqa: SLF001
        for topic, partitions in response.errors:
            for number, code in partitions:
                partition = TopicPartition(topic, number)
                if code == 0:
                    manager.partition_added(partition)
                elif code == OPERATION_NOT_ATTEMPTED:
                    continue  # another partition of the request is at fault
                elif kind_of(code) is Kind.PRODUCER:
                    raise ProducerFenced if code in FENCED else Refused(code, topic)
                elif kind_of(code) is Kind.PASSING:
                    if code in _COORDINATOR_MOVED:
                        self._sender._coordinator_dead(CoordinationType.TRANSACTION)  # noqa: SLF001
                    # The markers of the transaction before are on their way: do not wait long.
                    is_short = code == CONCURRENT_TRANSACTIONS and not manager.txn_partitions
                    pause = BACKOFF_OVERRIDE if is_short else self._default_backoff
                else:
                    self._refuse(partition, code)
        return pause

    def _refuse(self, partition: TopicPartition, code: int) -> None:
        sender = self._sender
        sender._txn_manager._pending_txn_partitions.discard(partition)  # noqa: SLF001
        for batch in sender._message_accumulator._batches.pop(partition, ()):  # noqa: SLF001
            batch.failure(exception=Refused(code, partition.topic))
