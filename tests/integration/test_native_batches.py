"""Native batches on a real broker: the broker accepts them, and other clients read them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable

import bson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatch
from support import Record, create_topics, read_topic, unique_name

from replay_app.commands import Target
from replay_app.demo.shop import SHOP_TOPICS, shop_events
from replay_app.demo.stack import Stack, _cache_folder, _kafka_libraries
from replay_app.encoders import make_encoder
from replay_app.events import EventMapping
from replay_app.pages import Batch, EncodedPage, EncodeSpec

pytestmark = pytest.mark.native

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
EVENTS = 3_000
NOW_MS = 1_790_000_000_000
PARTITIONS = 2
PAGE = b"".join(bson.encode(event) for event in shop_events(EVENTS))

#: The records of each topic and partition in their order: key, value, headers.
Contents = dict[tuple[str, int], list[tuple[bytes | None, bytes | None, dict[str, bytes | None]]]]


@pytest.fixture
def prefix(stack: Stack) -> str:
    """Create a shop's topics for this test; return the prefix of their names."""
    prefix = unique_name("native") + "."
    create_topics(stack.kafka, {prefix + name: PARTITIONS for name in SHOP_TOPICS})
    return prefix


@pytest.fixture
async def producer(stack: Stack) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.kafka, transactional_id=unique_name("native"), acks="all"
    )
    await producer.start()
    yield producer
    await producer.stop()


def encode(kind: str, prefix: str, codec: str) -> EncodedPage:
    spec = EncodeSpec(
        mapping=EventMapping(),
        target=Target(prefix=prefix),
        replay_id="r-1",
        attempt=1,
        name=None,
        reason="a projection is lost",
        partitions={prefix + name: PARTITIONS for name in SHOP_TOPICS},
        cursor_fields=("timestamp", "_id"),
        stop_at_failure=True,
        include_replayed=False,
        record_timestamp="append",
        compression=codec,
        max_record_bytes=50_000,  # small: many batches for each partition
    )
    encoded = make_encoder(spec, kind).encode(PAGE, NOW_MS)
    assert encoded.encoded == EVENTS
    return encoded


async def send(producer: AIOKafkaProducer, batches: Iterable[Batch]) -> None:
    """Send batches as the publisher does, and check the offset of each."""
    ends: dict[tuple[str, int], int] = {}
    for batch in batches:
        place = (batch.topic, batch.partition)
        sent = await producer.send_batch(batch.builder, batch.topic, partition=batch.partition)
        first = (await sent).offset
        assert first == ends.get(place, first)
        ends[place] = first + batch.records


def expected(prefix: str) -> Contents:
    """Return what the reference encoder would publish."""
    contents: Contents = defaultdict(list)
    for batch in encode("python", prefix, "none").batches:
        contents[batch.topic, batch.partition] += [
            (record.key, record.value, dict(record.headers))
            for record in DefaultRecordBatch(bytes(batch.builder._build()))
        ]
    return contents


def by_partition(records: Iterable[Record]) -> Contents:
    contents: Contents = defaultdict(list)
    for record in records:
        assert record.timestamp_ms == NOW_MS
        contents[record.topic, record.partition].append(
            (record.key, record.value, dict(record.headers))
        )
    return contents


@pytest.mark.parametrize("codec", CODECS)
async def test_librdkafka_reads_what_was_committed_and_nothing_else(
    stack: Stack, prefix: str, producer: AIOKafkaProducer, codec: str
) -> None:
    batches = encode("native", prefix, codec).batches
    assert len(batches) > 2 * len(SHOP_TOPICS) * PARTITIONS
    await producer.begin_transaction()
    await send(producer, batches[: len(batches) // 2])
    await producer.abort_transaction()
    # Again, in several transactions of one producer: its sequence numbers go on.
    batches = encode("native", prefix, codec).batches
    third = len(batches) // 3
    for part in (batches[:third], batches[third : 2 * third], batches[2 * third :]):
        async with producer.transaction():
            await send(producer, part)
    read = read_topic(stack.kafka, [prefix + name for name in SHOP_TOPICS])
    assert by_partition(read) == expected(prefix)


async def test_kafkas_own_consumer_reads_every_codec(
    stack: Stack, prefix: str, producer: AIOKafkaProducer
) -> None:
    java = shutil.which("java")
    if java is None:
        pytest.skip("there is no Java for Kafka's console consumer")
    orders = f"{prefix}shop.orders"
    for codec in CODECS:
        async with producer.transaction():
            batches = encode("native", prefix, codec).batches
            await send(producer, [batch for batch in batches if batch.topic == orders])
    wanted = expected(prefix)
    values = [value for place in wanted if place[0] == orders for _, value, _ in wanted[place]]
    read = subprocess.run(
        [
            *(java, "-cp", f"{_kafka_libraries(_cache_folder(os.environ))}/*"),
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            *("--bootstrap-server", stack.kafka, "--topic", orders, "--from-beginning"),
            *("--isolation-level", "read_committed", "--command-property", "check.crcs=true"),
            *("--max-messages", str(len(values) * len(CODECS)), "--timeout-ms", "30000"),
        ],
        capture_output=True,
        check=True,
    )
    found = [json.dumps(json.loads(line)) for line in read.stdout.splitlines()]
    assert sorted(found) == sorted(json.dumps(json.loads(value or b"")) for value in values * 5)
