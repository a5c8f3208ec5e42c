"""Helpers of all tests: names, topics, reading a topic, waiting for a condition."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import bson
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
)

from replay_app.events import STRICT
from replay_app.publisher import FencedProducer
from replay_app.settings import Settings

KAFKA_SECONDS = 30.0
POLL_SECONDS = 0.1
AWARE = STRICT.with_options(tz_aware=True)
"""Options to read the store as the program does, but with times in UTC, not without timezone."""

Answer = TypeVar("Answer")
IsolationLevel = Literal["read_committed", "read_uncommitted"]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes | None]


def unique_name(prefix: str) -> str:
    """Return a name that no other test uses, for a topic, a group or a database."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def topic_names(bootstrap: str) -> set[str]:
    """Return the names of all topics that the broker serves."""
    return set(_admin(bootstrap).list_topics(timeout=KAFKA_SECONDS).topics)


def create_topics(
    bootstrap: str, partitions: Mapping[str, int], config: Mapping[str, str] | None = None
) -> None:
    """Create topics, by name with their partition counts, and wait until the broker serves them."""
    admin = _admin(bootstrap)  # kept in a variable: without the client the answers never come
    created = admin.create_topics(
        [
            NewTopic(name, num_partitions=count, config=dict(config or {}))
            for name, count in partitions.items()
        ],
        operation_timeout=KAFKA_SECONDS,
    )
    for done in created.values():
        done.result(KAFKA_SECONDS)
    wait_until(
        lambda: partitions.keys() <= topic_names(bootstrap),
        KAFKA_SECONDS,
        f"the broker never served {sorted(partitions)}",
    )


def alter_topic(bootstrap: str, topic: str, name: str, value: str) -> None:
    """Set one setting of a topic."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = _admin(bootstrap)  # kept in a variable, as above
    altered = admin.incremental_alter_configs([resource])
    for done in altered.values():
        done.result(KAFKA_SECONDS)


def purge_topics(bootstrap: str, *topics: str) -> None:
    """Delete all records of the topics, as their retention does; the next offsets are higher."""
    admin = _admin(bootstrap)
    metadata = admin.list_topics(timeout=KAFKA_SECONDS).topics
    purged = admin.delete_records(
        [
            TopicPartition(topic, partition, OFFSET_END)
            for topic in topics
            for partition in metadata[topic].partitions
        ],
        operation_timeout=KAFKA_SECONDS,
    )
    for done in purged.values():
        done.result(KAFKA_SECONDS)


def delete_topics(bootstrap: str, topics: Collection[str]) -> None:
    """Delete topics and wait until the broker has forgotten them."""
    if not topics:
        return
    admin = _admin(bootstrap)
    deleted = admin.delete_topics(list(topics), operation_timeout=KAFKA_SECONDS)
    for done in deleted.values():
        done.result(KAFKA_SECONDS)
    wait_until(
        lambda: topic_names(bootstrap).isdisjoint(topics),
        KAFKA_SECONDS,
        f"the broker never forgot {sorted(topics)}",
    )


def newest_by_key(bootstrap: str, topic: str) -> dict[bytes, bytes | None]:
    """Return the newest value of each key of a compacted topic; None: the key is deleted."""
    records = sorted(read_topic(bootstrap, topic), key=lambda one: (one.partition, one.offset))
    return {record.key or b"": record.value for record in records}


def read_topic(
    bootstrap: str,
    topics: str | Sequence[str],
    isolation_level: IsolationLevel = "read_committed",
    *,
    deadline_seconds: float = 120.0,
) -> list[Record]:
    """Read topics from their beginning to their present end, with librdkafka.

    Under read_committed the end is where the first open transaction begins. The records of one
    partition are in the order of their offsets; the partitions are mixed.
    """
    names = [topics] if isinstance(topics, str) else list(topics)
    messages = _messages(bootstrap, names, isolation_level, deadline_seconds)
    return [_record(message) for batch in messages for message in batch]


def count_records(bootstrap: str, topics: Sequence[str], *, deadline_seconds: float) -> int:
    """Count the records that a read_committed consumer gets, by reading all of them."""
    messages = _messages(bootstrap, topics, "read_committed", deadline_seconds)
    return sum(len(batch) for batch in messages)


def consumer_from_start(
    bootstrap: str, partitions: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> Consumer:
    """Return a read_committed consumer at the beginning of topics, named with partition counts.

    The consumer has a new group and commits no offsets.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": unique_name("reader"),
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "log_level": 3,  # errors only
            **(options or {}),
        }
    )
    consumer.assign(
        [
            TopicPartition(topic, partition, OFFSET_BEGINNING)
            for topic, count in partitions.items()
            for partition in range(count)
        ]
    )
    return consumer


@contextlib.contextmanager
def open_transactions(bootstrap: str, partitions: Mapping[str, int]) -> Iterator[None]:
    """Hold a transaction of another producer open on every partition of some topics."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "transactional.id": unique_name("foreign"),
            "transaction.timeout.ms": 600_000,  # longer than any test waits
        }
    )
    producer.init_transactions(KAFKA_SECONDS)
    producer.begin_transaction()
    for topic, count in partitions.items():
        for number in range(count):
            producer.produce(topic, b"foreign", b"foreign", partition=number)
    assert producer.flush(KAFKA_SECONDS) == 0
    try:
        yield
    finally:
        producer.abort_transaction(KAFKA_SECONDS)


async def write_transaction(
    settings: Settings,
    topic: str,
    *records: tuple[str, bytes | None],
    partition: int = 0,
    commits: bool = True,
) -> int:
    """Write keys with their values in one transaction of a new producer; return the last offset."""
    producer = await FencedProducer(settings, settings.kafka, unique_name("own")).start()
    try:
        await producer.begin()
        for key, value in records:
            await producer.send(topic, partition=partition, key=key.encode(), value=value)
        *_, ack = producer._unacked
        offset = int((await ack).offset)
        await (producer.commit() if commits else producer.abort())
    finally:
        await producer.discard()
    return offset


def wait_until(
    predicate: Callable[[], Answer | None], deadline_seconds: float, message: str = "not in time"
) -> Answer:
    """Call the predicate until its answer is true, and return the answer.

    Raises `AssertionError` with the message and the last answer when the deadline has passed.
    """
    deadline = time.monotonic() + deadline_seconds
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{message} (after {deadline_seconds} s: {answer!r})")
        time.sleep(POLL_SECONDS)


def processes_of(folder: Path) -> list[int]:
    """Return the ids of the processes whose TMPDIR is the folder."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={folder}\0".encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except (OSError, ValueError):
            continue
    return found


def _admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})  # errors only


def _messages(
    bootstrap: str,
    topics: Sequence[str],
    isolation_level: IsolationLevel,
    deadline_seconds: float,
) -> Iterator[list[Message]]:
    """Yield the messages of topics from their beginning to their present end."""
    partitions = _partition_counts(bootstrap, topics)
    options = {
        "isolation.level": isolation_level,
        "enable.partition.eof": True,  # also after a transaction's marker, which is not a record
        "check.crcs": True,
    }
    consumer = consumer_from_start(bootstrap, partitions, options)
    unread = {(topic, number) for topic, count in partitions.items() for number in range(count)}
    deadline = time.monotonic() + deadline_seconds
    try:
        while unread:
            if time.monotonic() > deadline:
                raise AssertionError(f"{sorted(unread)} not read in {deadline_seconds} s")
            batch = []
            for message in consumer.consume(10_000, timeout=0.2):
                error = message.error()
                if error is None:
                    batch.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic() or "", message.partition() or 0))
                else:
                    raise KafkaException(error)
            yield batch
    finally:
        consumer.close()


def _partition_counts(bootstrap: str, topics: Sequence[str]) -> dict[str, int]:
    admin = _admin(bootstrap)
    counts = {}
    for topic in topics:
        metadata = admin.list_topics(topic, timeout=KAFKA_SECONDS).topics[topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        counts[topic] = len(metadata.partitions)
    return counts


def _record(message: Message) -> Record:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return Record(
        topic,
        partition,
        offset,
        message.timestamp()[1],
        _bytes(message.key()),
        _bytes(message.value()),
        {header[0]: _bytes(header[1]) for header in message.headers() or ()},
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def raw_document(*fields: tuple[str, Any] | bytes) -> bytes:
    """Return a BSON document of names and values. A name may occur twice; bytes are raw fields."""
    body = b""
    for field in fields:
        if isinstance(field, bytes):
            body += field
        else:
            body += bson.encode({field[0]: field[1]}, codec_options=STRICT)[4:-1]
    return (len(body) + 5).to_bytes(4, "little") + body + b"\0"


def raw_field(name: str, kind: int, content: bytes = b"") -> bytes:
    """Return a raw BSON field, for types and values that the driver cannot write."""
    return bytes([kind]) + name.encode() + b"\0" + content


def raw_text(name: str, text: bytes) -> bytes:
    """Return a raw BSON field with a text that may be no UTF-8."""
    return raw_field(name, 0x02, (len(text) + 1).to_bytes(4, "little") + text + b"\0")


@contextlib.contextmanager
def forwarding(port: int, address: str) -> Iterator[None]:
    """Pass each connection to the port on to a server, until the end: the server "comes late"."""
    host, _, upstream_port = address.rpartition(":")

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(upstream_port))) as upstream:
                back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
                back.start()
                pump(self.request, upstream)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server(("127.0.0.1", port), Connection) as server:
        threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
