"""Consumer groups of the target cluster: their state, and up to where they have read.

A group's committed offset in a partition is the offset of the next record that the group reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaClient, TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import (
    BrokerResponseError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import (
    DescribeGroupsRequest_v0,
    DescribeGroupsRequest_v1,
    DescribeGroupsRequest_v2,
    ListGroupsRequest_v1,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from replay_app.clusters import answers, connected
from replay_app.kafka_internals import close_client
from replay_app.kafka_requests import LATEST, describe_topics, list_offsets
from replay_app.kafka_security import kafka_security
from replay_app.reports import GroupState, TopicReader
from replay_app.stable_offsets import target_consumer

if TYPE_CHECKING:
    from replay_app.kafka_requests import TopicMetadata
    from replay_app.settings import Settings

ANSWER_SECONDS = 10.0
"""How long a cluster may take to tell of some groups."""
REQUESTS_AT_ONCE = 20
"""Groups that are asked for at the same time."""
MAX_SEARCHED = 500
"""Groups of a cluster whose offsets a search looks at."""
GROUP = 0
"""The kind of coordinator in Kafka's FindCoordinator request."""
CONSUMERS = "consumer"
"""The protocol type of groups whose members share topics."""
NO_OFFSET = -1
"""Kafka's answer where a group has committed nothing."""


class _ListGroupsResponseV4(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 16
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "groups",
            CompactArray(
                ("group", CompactString("utf-8")),
                ("protocol_type", CompactString("utf-8")),
                ("state", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _ListGroupsRequestV4(RequestStruct):  # type: ignore[misc]
    API_KEY = 16
    API_VERSION = 4
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _ListGroupsResponseV4
    SCHEMA = Schema(("states", CompactArray(CompactString("utf-8"))), ("tags", TaggedFields))


class _ListGroupsRequest(Request[ListGroupsRequest_v1 | _ListGroupsRequestV4]):  # type: ignore[misc]
    """The groups of a broker with their states (KIP-518), also those of the newer protocol.

    aiokafka's own versions end at 2, and have no states. DescribeGroups knows nothing of groups
    with the newer protocol (KIP-848).
    """

    API_KEY = 16

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class.API_VERSION < _ListGroupsRequestV4.API_VERSION:
            return request_struct_class()
        return request_struct_class(states=[], tags={})


class _DescribeGroupsRequest(
    Request[DescribeGroupsRequest_v0 | DescribeGroupsRequest_v1 | DescribeGroupsRequest_v2]  # type: ignore[misc]
):
    """The members of groups. aiokafka's own request cannot read its newest version's answer."""

    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._groups)


@dataclass(frozen=True, slots=True)
class GroupFound:
    """What a cluster tells of one group."""

    state: GroupState = "unseen"
    committed: Mapping[TopicPartition, int] = field(default_factory=dict)
    """By partition where the group has committed: the offset of the next record to read."""
    error: str | None = None
    """Why nothing is known of the group."""


class GroupReader:
    """Asks the target cluster for consumer groups, over a connection that stays open."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AIOKafkaClient | None = None

    async def find(self, wanted: Mapping[str, Collection[TopicPartition]]) -> dict[str, GroupFound]:
        """Return what the cluster tells of some groups, and of their offsets in some partitions.

        Raises
        ------
        InvalidSettings
            When the cluster refuses a right on everything.
        Unavailable
            When the cluster does not answer within ANSWER_SECONDS.

        """
        async with self._connected() as client:
            return await _find(client, wanted)

    async def ends(self, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Return where some partitions end: behind their last records, visible or not.

        A partition that does not exist ends at 0. Raises as `find` does.
        """
        async with self._connected() as client:
            topics = await describe_topics(client, sorted({place.topic for place in places}))
            numbers = {one.name: _partitions(one) for one in topics}
            there = [one for one in places if one.partition < numbers.get(one.topic, 0)]
            found = await list_offsets(client, dict.fromkeys(there, LATEST)) if there else {}
        return {place: found.get(place, (0, 0))[0] for place in places}

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[AIOKafkaClient]:
        """Give the connection for one question. A question that fails closes the connection."""
        settings, bootstrap = self._settings, self._settings.target_bootstrap
        try:
            async with answers(settings, bootstrap, ANSWER_SECONDS):
                if self._client is None:
                    self._client = AIOKafkaClient(
                        bootstrap_servers=bootstrap, **kafka_security(settings, bootstrap)
                    )
                    await self._client.bootstrap()
                yield self._client
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection. The next question opens another one."""
        client, self._client = self._client, None
        if client is not None:
            await close_client(client)


def _partitions(topic: TopicMetadata) -> int:
    if topic.error_code == UnknownTopicOrPartitionError.errno:
        return 0
    _require_success(topic.error_code, topic.name)
    return topic.partitions


async def _find(
    client: AIOKafkaClient, wanted: Mapping[str, Collection[TopicPartition]]
) -> dict[str, GroupFound]:
    at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)
    nodes: set[int] = set()

    async def look(group: str) -> GroupFound:
        try:
            async with at_once:
                node = await _coordinator(client, group)
                nodes.add(node)
                return GroupFound("empty", await _committed(client, node, group, wanted[group]))
        except (GroupAuthorizationFailedError, TopicAuthorizationFailedError) as error:
            return GroupFound(error=_no_right(group, error))
        except BrokerResponseError as error:
            return GroupFound(error=f"Kafka does not tell of the group: {error}")

    found = dict(zip(wanted, await asyncio.gather(*map(look, wanted)), strict=True))
    states: dict[str, GroupState] = {}
    for known in await asyncio.gather(*(_states(client, node) for node in nodes)):
        states |= known
    return {
        group: one
        if one.error
        else replace(one, state=states.get(group, "empty" if one.committed else "unseen"))
        for group, one in found.items()
    }


def _no_right(group: str, error: KafkaError) -> str:
    what = "group" if isinstance(error, GroupAuthorizationFailedError) else "its topics"
    return (
        f"the worker's user has no right to see consumer group {group!r}: add the ACL DESCRIBE on "
        f"the {what} (docs/operations.md, Access control)"
    )


async def _coordinator(client: AIOKafkaClient, group: str) -> int:
    """Return the broker that keeps a group's offsets."""
    request = FindCoordinatorRequest(group, GROUP)
    answer = await client.send(client.get_random_node(), request)
    _require_success(answer.error_code, group)
    return int(answer.coordinator_id)


async def _committed(
    client: AIOKafkaClient, node: int, group: str, partitions: Collection[TopicPartition] | None
) -> dict[TopicPartition, int]:
    """Return a group's committed offsets, in those of the partitions where the group has some.

    None stands for every partition.
    """
    by_topic: dict[str, list[int]] = {}
    for topic, partition in partitions or ():
        by_topic.setdefault(topic, []).append(partition)
    asked = None if partitions is None else list(by_topic.items())
    answer = await client.send(node, OffsetFetchRequest(group, asked))
    _require_success(getattr(answer, "error_code", 0), group)
    committed: dict[TopicPartition, int] = {}
    for topic, rows in answer.topics:
        for partition, offset, _, error_code in rows:
            if error_code != UnknownTopicOrPartitionError.errno:  # a deleted topic has no offsets
                _require_success(error_code, group)
            if offset != NO_OFFSET:
                committed[TopicPartition(topic, partition)] = offset
    return committed


async def _states(client: AIOKafkaClient, node: int) -> dict[str, GroupState]:
    """Return the groups of one broker that this client may see.

    Brokers before Kafka 2.6 tell no states: their groups count as active.
    """
    answer = await client.send(node, _ListGroupsRequest())
    _require_success(answer.error_code, "the list of groups")
    states: dict[str, GroupState] = {}
    for name, _, *more in answer.groups:
        state = more[0] if more else ""
        if state != "Dead":
            states[name] = "empty" if state == "Empty" else "active"
    return states


def _require_success(error_code: int, what: str) -> None:
    if error_code:
        raise for_code(error_code)(what)


# Who reads some topics


async def find_readers(
    settings: Settings, topics: Collection[str]
) -> tuple[dict[str, TopicReader], tuple[str, ...]]:
    """Return the groups that read some topics of the target cluster, and warnings.

    A group reads a topic if it has committed an offset there, or if a member has one of the topic's
    partitions. The search looks at the first MAX_SEARCHED groups of the cluster, by name.

    Raises
    ------
    InvalidSettings
        When the cluster refuses a right on everything.
    Unavailable
        When the cluster does not answer within ANSWER_SECONDS, or then tells no offsets.

    """
    if not topics:
        return {}, ()
    bootstrap = settings.target_bootstrap
    async with (
        answers(settings, bootstrap, ANSWER_SECONDS),
        connected(settings, bootstrap) as client,
    ):
        found, left_out = await _search(client, frozenset(topics))
    ends: dict[TopicPartition, int] = {}
    if places := {place for one, _ in found.values() for place in one.committed}:
        async with target_consumer(settings, places, "read_committed") as consumer:
            ends = await consumer.end_offsets(list(places))
    warning = (
        f"the cluster has {MAX_SEARCHED + left_out:,} consumer groups; only the first "
        f"{MAX_SEARCHED} by name were asked whether they read the destination topics"
    )
    readers = {name: _reader(*found[name], ends) for name in sorted(found)}
    return readers, (warning,) if left_out else ()


def _reader(
    found: GroupFound, assigned: frozenset[str], ends: Mapping[TopicPartition, int]
) -> TopicReader:
    unread = [max(0, ends[place] - at) for place, at in found.committed.items()]
    return TopicReader(
        state=found.state,
        lag=sum(unread) if unread else None,
        topics=tuple(sorted(assigned | {place.topic for place in found.committed})),
    )


async def _search(
    client: AIOKafkaClient, topics: frozenset[str]
) -> tuple[dict[str, tuple[GroupFound, frozenset[str]]], int]:
    """Return what is known of the groups that read some topics, and how many were not looked at.

    Each group comes with those of the topics that its members have partitions of.
    """
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    known = await asyncio.gather(*(_states(client, node) for node in nodes))
    every = sorted(
        (name, node, state)
        for node, states in zip(nodes, known, strict=True)
        for name, state in states.items()
    )
    searched = every[:MAX_SEARCHED]
    assigned: dict[str, frozenset[str]] = {}
    for node in nodes:
        active = [name for name, at, state in searched if at == node and state == "active"]
        for first in range(0, len(active), REQUESTS_AT_ONCE):
            assigned |= await _assigned(client, node, active[first : first + REQUESTS_AT_ONCE])
    at_once = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def look(name: str, node: int, state: GroupState) -> GroupFound:
        async with at_once:
            committed = await _committed(client, node, name, None)
        ours = {place: at for place, at in committed.items() if place.topic in topics}
        return GroupFound(state, ours)

    looked = await asyncio.gather(*(look(*one) for one in searched))
    readers: dict[str, tuple[GroupFound, frozenset[str]]] = {}
    for (name, _, _), found in zip(searched, looked, strict=True):
        own = assigned.get(name, frozenset()) & topics
        if own or found.committed:
            readers[name] = found, own
    return readers, len(every) - len(searched)


async def _assigned(
    client: AIOKafkaClient, node: int, groups: list[str]
) -> dict[str, frozenset[str]]:
    """Return the topics of which the members of some groups have partitions.

    Empty for groups of the newer protocol, of which this request tells nothing.
    """
    answer = await client.send(node, _DescribeGroupsRequest(groups))
    return {
        group: frozenset(
            topic
            for *_, assignment in members
            if protocol_type == CONSUMERS
            for topic in assigned_partitions(assignment)
        )
        for _, group, _, protocol_type, _, members in answer.groups
    }


def assigned_partitions(assignment: bytes) -> dict[str, tuple[int, ...]]:
    """Return a member's partitions by topic; none if a stranger's assignor has written them."""
    try:
        decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    except ValueError:
        return {}
    return {topic: tuple(numbers) for topic, numbers in decoded.assignment or ()}


class GroupMember(NamedTuple):
    """A member of a consumer group, as the broker's answer has it."""

    member_id: str
    client_id: str
    host: str
    metadata: bytes
    assignment: bytes


async def group_members(client: AIOKafkaClient, group: str) -> list[GroupMember]:
    """Return the members of a group; none if there is no such group.

    Raises
    ------
    aiokafka.errors.KafkaError
        When the cluster does not tell.

    """
    node = await _coordinator(client, group)
    answer = await client.send(node, _DescribeGroupsRequest([group]))
    found: list[GroupMember] = []
    for error_code, *_, members in answer.groups:
        _require_success(error_code, group)
        found += [GroupMember(*one) for one in members]
    return found
