"""Requests to Kafka that aiokafka does not have, or has in an older version only.

They tell which requests a broker answers, topics with their ids and this client's rights, the
settings of topics, offsets by time, and open transactions. Private names of aiokafka's client stand
here; their versions are checked in `internals`.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

EARLIEST, LATEST = -2, -1
"""Stand for a time in `list_offsets`: the begin, and the end, of a partition."""
CLIENT = -1
"""Stands for a replica's id in requests that replicas send, too."""
IsolationLevel = Literal["read_uncommitted", "read_committed"]
ISOLATION_LEVELS: dict[IsolationLevel, int] = {"read_uncommitted": 0, "read_committed": 1}
OF_TOPIC = 1
"""Says in DescribeConfigs that a setting is the topic's own (DYNAMIC_TOPIC_CONFIG)."""
RETRY_SECONDS = 0.1


async def request_types(client: AIOKafkaClient) -> frozenset[int]:
    """Return the numbers (API keys) of the requests that a broker answers.

    ``client`` has been bootstrapped. Any broker will do: brokers that are away are passed over.

    Raises
    ------
    aiokafka.errors.KafkaConnectionError
        When no broker can be reached.

    """
    for broker in client.cluster.brokers():
        connection = await client._get_conn(broker.nodeId)  # noqa: SLF001
        if connection is not None:
            return frozenset(connection._versions)  # noqa: SLF001
    msg = "no broker answers at the address that it advertises"
    raise KafkaConnectionError(msg)


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    """16 bytes, which aiokafka's types do not have."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


def _topics_schema(array: type[Array], text: String, *, is_flexible: bool) -> Schema:
    """Return the schema of an answer with topics.

    ``is_flexible``: of the versions with compact types and tags; from version 10 on with topic ids.
    """
    tags = [("tags", TaggedFields)] if is_flexible else []
    topic_id = [("topic_id", _Uuid)] if is_flexible else []
    broker = (("node_id", Int32), ("host", text), ("port", Int32), ("rack", text))
    partition = (
        ("error_code", Int16),
        ("partition", Int32),
        ("leader", Int32),
        ("leader_epoch", Int32),
        ("replicas", array(Int32)),
        ("isr", array(Int32)),
        ("offline_replicas", array(Int32)),
    )
    topic = (
        ("error_code", Int16),
        ("topic", text),
        *topic_id,
        ("is_internal", Boolean),
        ("partitions", array(*partition, *tags)),
        ("authorized_operations", Int32),
    )
    return Schema(
        ("throttle_time_ms", Int32),
        ("brokers", array(*broker, *tags)),
        ("cluster_id", text),
        ("controller_id", Int32),
        ("topics", array(*topic, *tags)),
        ("cluster_authorized_operations", Int32),
        *tags,
    )


class _TopicsResponseV8(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = _topics_schema(Array, String("utf-8"), is_flexible=False)


class _TopicsRequestV8(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _TopicsResponseV8
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _TopicsResponseV10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = _topics_schema(CompactArray, CompactString("utf-8"), is_flexible=True)


class _TopicsRequestV10(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _TopicsResponseV10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(
    Request[MetadataRequest_v5 | _TopicsRequestV8 | _TopicsRequestV10]  # type: ignore[misc]
):
    """Metadata of topics with the client's rights (KIP-430) and the topics' ids (KIP-516).

    aiokafka's own versions end at 5.
    """

    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: Any) -> Any:
        names: list[Any] = list(self._names)
        options: dict[str, Any] = {"allow_auto_topic_creation": False}
        if request_struct_class.API_VERSION >= _TopicsRequestV8.API_VERSION:
            options |= {
                "include_cluster_authorized_operations": False,
                "include_topic_authorized_operations": True,
            }
        if request_struct_class.API_VERSION >= _TopicsRequestV10.API_VERSION:
            names = [(bytes(16), name, {}) for name in names]  # zeros: the topic is named instead
            options["tags"] = {}
        return request_struct_class(topics=names, **options)


class TopicMetadata(NamedTuple):
    """What a broker tells of a topic."""

    name: str
    error_code: int
    """0: the topic exists, and this client may see it."""
    partitions: int
    in_sync: int
    """Replicas in sync of the partition that has the fewest. 0 without partitions."""
    topic_id: str
    """The topic's own id, in hexadecimal: a topic that is created again under the same name has
    another one. Empty if the broker has no ids (before Kafka 2.8)."""
    operations: int | None
    """A bit for each operation that this client may do, at the number of Java's AclOperation. None
    if the broker does not tell."""
    replicas: int = 0
    """Replicas of the partition that has the fewest. 0 without partitions."""


async def describe_topics(client: AIOKafkaClient, names: Sequence[str]) -> list[TopicMetadata]:
    """Return what a broker tells of some topics. No topic is created.

    ``client`` has been bootstrapped.

    Raises
    ------
    aiokafka.errors.KafkaError
        When the broker does not answer.

    """
    answer = await client.send(client.get_random_node(), _TopicsRequest(list(names)))
    unknown = -(2**31)
    return [
        TopicMetadata(
            topic["topic"],
            topic["error_code"],
            len(topic["partitions"]),
            min((len(partition["isr"]) for partition in topic["partitions"]), default=0),
            topic.get("topic_id", b"").hex(),
            None if (rights := topic.get("authorized_operations", unknown)) == unknown else rights,
            min((len(partition["replicas"]) for partition in topic["partitions"]), default=0),
        )
        for topic in answer.to_object()["topics"]
    ]


async def list_offsets(
    client: AIOKafkaClient,
    times: Mapping[TopicPartition, int],
    isolation_level: IsolationLevel = "read_uncommitted",
) -> dict[TopicPartition, tuple[int, int]]:
    """Return the offset, and the timestamp, of the first record of a time, or later.

    ``times`` are milliseconds since 1970, or EARLIEST or LATEST: the partition's begin, or its end.
    Without such a record the offset is -1. To a ``read_committed`` client a partition ends at its
    stable offset. ``client`` has been bootstrapped.

    aiokafka's consumer can ask the same, but learns of one topic after the other, and needs 0.1 s
    more.

    The caller limits the time: while a partition has no leader, this waits.

    Raises
    ------
    aiokafka.errors.KafkaError
        When a broker refuses, or does not answer.

    """
    await client.set_topics({tp.topic for tp in times})
    while True:
        try:
            return await _list_offsets(client, times, ISOLATION_LEVELS[isolation_level])
        except KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(RETRY_SECONDS)
        await client.force_metadata_update()


async def _list_offsets(
    client: AIOKafkaClient, times: Mapping[TopicPartition, int], isolation_level: int
) -> dict[TopicPartition, tuple[int, int]]:
    asked: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for tp, time in times.items():
        leader = client.cluster.leader_for_partition(tp)
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(tp)
        asked.setdefault(leader, {}).setdefault(tp.topic, []).append((tp.partition, time))
    answers = await asyncio.gather(
        *(
            client.send(leader, OffsetRequest(CLIENT, isolation_level, [*topics.items()]))
            for leader, topics in asked.items()
        )
    )
    found: dict[TopicPartition, tuple[int, int]] = {}
    for answer in answers:
        for topic, partitions in answer.topics:
            for number, error_code, timestamp, offset in partitions:
                if error_code:
                    raise for_code(error_code)(f"{topic}[{number}]")
                found[TopicPartition(topic, number)] = (offset, timestamp)
    return found


async def describe_configs(
    client: AIOKafkaClient, topics: Iterable[str], names: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return the named settings of those topics whose settings the broker tells.

    ``client`` has been bootstrapped. A setting that the broker does not know is left out.

    Raises
    ------
    aiokafka.errors.KafkaError
        When the broker does not answer.

    """
    return {
        topic: {name: value for name, value, *_ in entries if value is not None}
        for topic, entries in (await _describe_configs(client, topics, list(names))).items()
    }


async def describe_overrides(
    client: AIOKafkaClient, topics: Iterable[str]
) -> dict[str, dict[str, str]]:
    """Return the settings that topics do not have from their cluster, where the broker tells.

    ``client`` has been bootstrapped.

    Raises
    ------
    aiokafka.errors.KafkaError
        When the broker does not answer.

    """
    return {
        topic: {
            name: value
            for name, value, _, source, *_ in entries
            if value is not None and _is_own(source)
        }
        for topic, entries in (await _describe_configs(client, topics, None)).items()
    }


def _is_own(source: bool | int) -> bool:  # noqa: FBT001 - as in the answer
    """Whether a setting is the topic's own. The oldest version says whether it is a default."""
    return not source if isinstance(source, bool) else source == OF_TOPIC


async def _describe_configs(
    client: AIOKafkaClient, topics: Iterable[str], names: list[str] | None
) -> dict[str, list[tuple[Any, ...]]]:
    """Return the entries of DescribeConfigs, by topic. ``names``: None for every setting."""
    if DescribeConfigsRequest.API_KEY not in await request_types(client):
        return {}
    resources = [(ConfigResourceType.TOPIC, topic, names) for topic in topics]
    answer = await client.send(client.get_random_node(), DescribeConfigsRequest(resources))
    return {
        topic: entries for error_code, _, _, topic, entries in answer.resources if not error_code
    }


class _DescribeProducersResponse(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("error_code", Int16),
                        ("error_message", CompactString("utf-8")),
                        (
                            "active_producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("current_txn_start_offset", Int64),
                                ("tags", TaggedFields),
                            ),
                        ),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeProducersRequestV0(RequestStruct):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribeProducersResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("partition_indexes", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeProducersRequest(Request[_DescribeProducersRequestV0]):  # type: ignore[misc]
    """DescribeProducers (KIP-664), which aiokafka does not have."""

    API_KEY = 61

    def __init__(self, topic: str, partition: int) -> None:
        self._topics: list[tuple[Any, ...]] = [(topic, [partition], {})]

    def build(
        self, request_struct_class: type[_DescribeProducersRequestV0]
    ) -> _DescribeProducersRequestV0:
        return request_struct_class(self._topics, {})


async def describe_producers(
    client: AIOKafkaClient, topic: str, partition: int
) -> list[tuple[int, int]]:
    """Return the producers that have an open transaction on a partition.

    Each is a pair: producer id, and offset at which the transaction begins. ``client`` has been
    bootstrapped. The list is empty if the broker does not tell: an old broker, or missing rights.

    Raises
    ------
    aiokafka.errors.KafkaError
        When the broker does not answer.

    """
    await client._wait_on_metadata(topic)  # noqa: SLF001
    leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    if leader is None or _DescribeProducersRequest.API_KEY not in await request_types(client):
        return []
    answer = await client.send(leader, _DescribeProducersRequest(topic, partition))
    return [
        (producer_id, begin)
        for _, partitions, _ in answer.topics
        for _, _, _, producers, _ in partitions
        for producer_id, _, _, _, _, begin, _ in producers or ()
        if begin >= 0
    ]
