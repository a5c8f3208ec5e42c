"""Every private name of another library that this program uses, behind public names.

A private name may change with any version. So the versions are pinned, and a worker that finds
other versions does not start (`check_versions`). Nothing else in this program may use private
names of aiokafka, Faust or PyMongo; `kafka_internals` has those of aiokafka's producer.
"""

from __future__ import annotations

import importlib.metadata
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, Never, Protocol

import bson
from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.admin.config_resource import ConfigResourceType
from aiokafka.errors import KafkaConnectionError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
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
from bson import json_util, raw_bson
from pymongo.cursor import RawBatchCursor

from replay_app.exceptions import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import faust
    from bson.json_util import JSONOptions

__all__ = (
    "BatchBuilder",
    "FinishedBatch",
    "PageCursor",
    "batch_bytes",
    "check_versions",
    "describe_configs",
    "describe_producers",
    "describe_topics",
    "has_lost_membership",
    "request_types",
    "to_json_values",
)

VERSIONS = {"aiokafka": "0.14.0", "faust-streaming": "0.15.3", "pymongo": "4.20.0"}
"""The versions whose private names were read and tested. ``pyproject.toml`` pins the same ones."""


def check_versions() -> None:
    """Compare the installed libraries with `VERSIONS`.

    Raises
    ------
    InvalidSettings
        When another version is installed. The message names the library and both versions.

    """
    for library, wanted in VERSIONS.items():
        found = importlib.metadata.version(library)
        if found != wanted:
            msg = (
                f"{library} {found} is installed, but this program is tested with {wanted} and "
                f"uses private names of that version: pip install {library}=={wanted}"
            )
            raise InvalidSettings(msg)


# aiokafka


class EncodedRecords(Protocol):
    """Encoded and compressed records of one partition: ``replay_native.Batch``."""

    @property
    def size(self) -> int:
        """Bytes of the batch, header included."""

    def seal(self, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
        """Return the batch with its header, for one producer."""


class FinishedBatch(BatchBuilder):  # type: ignore[misc]  # aiokafka ships no types
    """A batch whose records are already encoded. The header is written when the batch is sent.

    ``AIOKafkaProducer.send_batch`` takes it in place of the builder of ``create_batch``.
    """

    def __init__(self, batch: EncodedRecords, records: int) -> None:
        # The base's __init__ would open a builder for records that are encoded already.
        self._unsealed: EncodedRecords | None = batch
        self._size = batch.size
        self._records = records
        self._producer_state = (-1, -1, 0)
        self._sealed = b""

    def append(
        self, *, timestamp: int, key: bytes, value: bytes, headers: Sequence[Any] = ()
    ) -> None:
        """Return None, as a full batch does."""

    def close(self) -> None:
        """Do nothing: the batch is closed."""

    def closed(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the bytes that are sent."""
        return self._size

    def record_count(self) -> int:
        """Return the number of records."""
        return self._records

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        # As in the base: a batch that may have been sent keeps its sequence number.
        assert self._unsealed is not None, "the batch is sealed"  # noqa: S101
        self._producer_state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        # Sealed once: a retry must send the same bytes, and memory holds one copy only.
        if self._unsealed is not None:
            self._sealed = self._unsealed.seal(*self._producer_state)
            self._unsealed = None
        return self._sealed

    def _serialize(self, key: Any, value: Any) -> Never:
        raise NotImplementedError


def batch_bytes(builder: BatchBuilder) -> int:
    """Close a batch, compress it, and return its bytes as the producer sends them."""
    return len(builder._build())  # noqa: SLF001


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


class _TopicsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(
                ("node_id", Int32),
                ("host", String("utf-8")),
                ("port", Int32),
                ("rack", String("utf-8")),
            ),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _TopicsRequestV8(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _TopicsResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    """16 bytes, which aiokafka's types do not have."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _TopicsResponseV10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


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
        )
        for topic in answer.to_object()["topics"]
    ]


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
    if DescribeConfigsRequest.API_KEY not in await request_types(client):
        return {}
    resources = [(ConfigResourceType.TOPIC, topic, list(names)) for topic in topics]
    answer = await client.send(client.get_random_node(), DescribeConfigsRequest(resources))
    return {
        topic: {name: value for name, value, *_ in entries if value is not None}
        for error_code, _, _, topic, entries in answer.resources
        if not error_code
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


def has_lost_membership(app: faust.App) -> bool:
    """Return whether aiokafka has given up the consumer group of a Faust app.

    aiokafka's coordinator ends its task then. Neither aiokafka nor Faust reports this.
    """
    thread = getattr(app._consumer, "_thread", None)  # noqa: SLF001
    coordinator = getattr(getattr(thread, "_consumer", None), "_coordinator", None)
    task = getattr(coordinator, "_coordination_task", None)
    return task is not None and task.done()


# PyMongo


class PageCursor(RawBatchCursor[Any]):
    """The cursor of ``find_raw_batches``, at a third of its cost.

    The base makes an object of each document of a page and throws the object away, while it holds
    the interpreter's lock.
    """

    def _unpack_response(
        self,
        response: Any,
        cursor_id: int | None,  # noqa: ARG002 - the base's signature
        codec_options: Any,  # noqa: ARG002
        user_fields: Any = None,
        legacy_response: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> list[Any]:
        options: Any = raw_bson._RAW_ARRAY_BSON_OPTIONS  # noqa: SLF001
        reply = raw_bson._RawArrayBSONDocument(response.payload_document, options)  # noqa: SLF001
        fields = bson._decode_selective(reply, user_fields, options)  # noqa: SLF001
        bson._convert_raw_document_lists_to_streams(fields)  # noqa: SLF001
        return [fields]


def to_json_values(value: Any, options: JSONOptions) -> Any:
    """Return what ``json_util.dumps`` would write, as plain JSON values instead of text."""
    return json_util._json_convert(value, options)  # noqa: SLF001
