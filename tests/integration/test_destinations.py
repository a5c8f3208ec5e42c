"""What a real broker tells of destination topics, and what a plan makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from pymongo.collection import Collection
from support import create_topics, unique_name

from replay_app.commands import Start
from replay_app.demo.stack import EmbeddedServers, Stack, free_port
from replay_app.destinations import Destination, describe_destinations
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.plans import Planner
from replay_app.reports import Plan
from replay_app.settings import Settings, load_settings
from replay_app.store import EventStore

SECONDS = 30.0
DAY_MS = str(24 * 60 * 60 * 1000)
OLD = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def settings(stack: Stack) -> Settings:
    return load_settings(
        kafka=stack.kafka, mongo=stack.mongo, mongo_database=unique_name("preflight")
    )


@pytest.fixture
def topic(stack: Stack) -> str:
    return unique_name("destination")


async def describe(settings: Settings, topic: str) -> Destination:
    return (await describe_destinations(settings, [topic]))[topic]


async def plan_for(
    settings: Settings, store: EventStore, topic: str, *, original: bool = False, **fields: Any
) -> Plan:
    if original:
        settings = settings.model_copy(update={"record_timestamp": "original"})

    async def ask(names: Any) -> dict[str, Destination]:
        return await describe_destinations(settings, names)

    start = Start.model_validate({"replay_id": "r1", "target": {"topic": topic}, **fields})
    return await Planner(start, settings, store, ask).plan()


async def test_the_broker_tells_partitions_limits_and_rights(
    settings: Settings, topic: str
) -> None:
    create_topics(
        settings.kafka,
        {topic: 3},
        {
            "cleanup.policy": "compact",
            "max.message.bytes": "100000",
            "message.timestamp.before.max.ms": DAY_MS,
            "min.insync.replicas": "2",
            "retention.ms": "1000",
        },
    )
    found = await describe(settings, topic)
    assert (found.partitions, found.may_write, found.in_sync) == (3, True, 1)
    assert (found.batch_bytes, found.is_compacted, found.wanted_in_sync) == (100_000, True, 2)
    assert found.keeps_original_times
    now = datetime.now(UTC)
    assert found.oldest_taken(now) == now - timedelta(days=1)
    assert found.newest_taken(now) == now + timedelta(hours=1)  # Kafka's default
    assert found.oldest_kept(now) is None  # compacted only


async def test_only_topics_that_exist_are_described_and_none_is_created(
    settings: Settings, topic: str
) -> None:
    missing = unique_name("missing")
    create_topics(settings.kafka, {topic: 2})
    for _ in range(2):
        found = await describe_destinations(settings, [topic, missing, "not a name!"])
        assert {name: one.partitions for name, one in found.items()} == {topic: 2}
    assert await describe_destinations(settings, []) == {}


async def test_many_topics_are_asked_for_in_parts(
    settings: Settings, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.destinations.TOPICS_PER_REQUEST", 2)
    names = {f"{topic}-{number}": number + 1 for number in range(5)}
    create_topics(settings.kafka, names)
    found = await describe_destinations(settings, names)
    assert {name: one.partitions for name, one in found.items()} == names


async def test_a_broker_that_is_away_or_silent_is_unavailable_within_a_time_limit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.destinations.ANSWER_SECONDS", 0.5)

    async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    silent, away = free_port(), free_port()
    server = await asyncio.start_server(stay_silent, "127.0.0.1", silent)
    for port in (silent, away):
        asked = settings.model_copy(update={"kafka": f"127.0.0.1:{port}"})
        async with asyncio.timeout(SECONDS):
            with pytest.raises(Unavailable, match="does not describe the destination topics"):
                await describe_destinations(asked, ["t"])
    server.close()


# Plans


@pytest.fixture
def old_events(events: Collection[dict[str, Any]]) -> None:
    events.insert_many(
        {"_id": number, "timestamp": OLD + timedelta(days=number), "event_type": "placed"}
        for number in range(3)
    )


@pytest.mark.usefixtures("old_events")
async def test_a_plan_fails_where_the_topic_would_refuse_the_times_of_the_events(
    settings: Settings, store: EventStore, topic: str
) -> None:
    create_topics(settings.kafka, {topic: 1}, {"message.timestamp.before.max.ms": DAY_MS})
    assert (await plan_for(settings, store, topic)).matched == 3
    with pytest.raises(ReplayFailed, match=f"message.timestamp.before.max.ms.: '{topic}'; raise"):
        await plan_for(settings, store, topic, original=True)


@pytest.mark.usefixtures("old_events")
async def test_a_plan_warns_of_retention_and_of_compaction(
    settings: Settings, store: EventStore, topic: str
) -> None:
    create_topics(
        settings.kafka, {topic: 1}, {"cleanup.policy": "compact,delete", "retention.ms": DAY_MS}
    )
    compaction, retention = (await plan_for(settings, store, topic, original=True)).warnings[-2:]
    assert compaction.startswith(f"compacted topics: '{topic}'")
    assert f"(retention.ms): '{topic}'" in retention
    with pytest.raises(ReplayFailed, match="control records have no key"):
        await plan_for(settings, store, topic, control_records=True)


async def test_times_that_cannot_be_compared_in_time_are_a_warning(
    settings: Settings, store: EventStore, topic: str, events: Collection[dict[str, Any]]
) -> None:
    events.insert_many(
        {"_id": number, "timestamp": OLD, "event_type": "placed"} for number in range(8_000)
    )
    create_topics(settings.kafka, {topic: 1}, {"message.timestamp.before.max.ms": DAY_MS})
    hasty = settings.model_copy(update={"plan_seconds": 0.001})
    plan = await plan_for(hasty, store, topic, original=True)
    told = "could not be compared with the time limits of their topics"
    assert any(told in warning for warning in plan.warnings)


# Rights


@pytest.fixture(scope="module")
def guarded() -> Iterator[EmbeddedServers]:
    """A broker with ACLs. A resource without any ACL is open to everybody."""
    with EmbeddedServers(
        broker_settings={
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }
    ) as servers:
        yield servers


def allow(bootstrap: str, topic: str, *operations: AclOperation) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    bindings = [
        AclBinding(
            ResourceType.TOPIC,
            topic,
            ResourcePatternType.LITERAL,
            principal,
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for principal, operation in [
            ("User:admin", AclOperation.ALL),
            *(("User:ANONYMOUS", operation) for operation in operations),
        ]
    ]
    for done in admin.create_acls(bindings).values():
        done.result(SECONDS)


@pytest.mark.long
@pytest.mark.usefixtures("old_events")
async def test_missing_rights_are_told_by_topic_and_acl(
    guarded: EmbeddedServers, settings: Settings, store: EventStore
) -> None:
    settings = settings.model_copy(update={"kafka": guarded.kafka})
    read_only, write_only, hidden, open_ = map(unique_name, ("read", "write", "hidden", "open"))
    rights: dict[str, tuple[AclOperation, ...]] = {
        read_only: (AclOperation.READ, AclOperation.DESCRIBE_CONFIGS),
        write_only: (AclOperation.WRITE,),
        hidden: (),
        open_: (AclOperation.WRITE, AclOperation.DESCRIBE_CONFIGS),
    }
    create_topics(guarded.kafka, dict.fromkeys(rights, 1))
    for topic, operations in rights.items():
        allow(guarded.kafka, topic, *operations)
    for topic in (read_only, hidden):
        with pytest.raises(ReplayFailed) as failed:
            await plan_for(settings, store, topic)
        assert f"no right to write to '{topic}': add the ACL WRITE" in str(failed.value)
        assert f"--operation Write --topic {topic}`" in str(failed.value)
    unknown = (await plan_for(settings, store, write_only)).warnings
    assert any(f"does not tell the settings of '{write_only}'" in warning for warning in unknown)
    known = (await plan_for(settings, store, open_)).warnings
    assert not any("does not tell" in warning for warning in known)
