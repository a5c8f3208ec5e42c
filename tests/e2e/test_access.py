"""A worker, a client, a consumer and an operator with the rights that docs/operations.md names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from access import Right, granted
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from oracle import assert_published_exactly
from support import create_topics, forwarding, read_topic, topic_names, unique_name, wait_until
from workers import Cluster

from replay_app.brokers import prepare_topics
from replay_app.demo.shop import seed_store
from replay_app.demo.stack import EmbeddedServers, free_port
from replay_app.exceptions import InvalidSettings
from replay_app.settings import Settings, load_settings

SECONDS = 60.0
SECRET = "secret"  # noqa: S105 - of brokers that live for one test
WORKER, OTHERS = "replay-worker", ("replay-client", "shop-projection", "replay-operator")
KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactionalId": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
EVENTS = 200
DENIED = KafkaError.TOPIC_AUTHORIZATION_FAILED


class Guarded:
    """A broker on which only the tests have all rights; others log in, and need ACLs."""

    def __init__(self, servers: EmbeddedServers, address: str) -> None:
        self.servers = servers
        self.address = address
        """Where users log in."""
        self._admin = AdminClient({"bootstrap.servers": servers.kafka, "log_level": 3})

    def grant(self, *rights: Right) -> None:
        bindings = [self._acl(AclBinding, right, "*") for right in set(rights)]
        for done in self._admin.create_acls(bindings).values():
            done.result(SECONDS)
        for right in rights:  # the controller has the ACLs; the authorizer learns them later
            wait_until(lambda right=right: self._knows(right), SECONDS)  # type: ignore[misc]

    def take(self, right: Right) -> None:
        (taken,) = self._admin.delete_acls([self._acl(AclBindingFilter, right, None)]).values()
        assert len(taken.result(SECONDS)) == 1, right
        wait_until(lambda: not self._knows(right), SECONDS)

    def _knows(self, right: Right) -> bool:
        found = self._admin.describe_acls(self._acl(AclBindingFilter, right, None))
        return bool(found.result(SECONDS))

    def _acl(self, make: Any, right: Right, host: str | None) -> Any:
        return make(
            KINDS[right.kind],
            right.name or "kafka-cluster",
            ResourcePatternType.PREFIXED if right.is_prefix else ResourcePatternType.LITERAL,
            f"User:{right.user}",
            host,
            AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", right.operation).upper()],
            AclPermissionType.ALLOW,
        )

    def login(self, user: str) -> dict[str, Any]:
        """Return the options with which librdkafka logs in."""
        return {
            "bootstrap.servers": self.address,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": SECRET,
            "log_level": 0,
        }

    def run_tool(self, user: str, folder: Path, *arguments: str) -> str:
        """Run ``kafka-transactions.sh`` as a user."""
        options = folder / f"{user}.properties"
        options.write_text(
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\n"
            "sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="{user}" password="{SECRET}";\n'
        )
        common = ("--bootstrap-server", self.address, "--command-config", str(options))
        tool = "org.apache.kafka.tools.TransactionsCommand"
        return self.servers.run_tool(tool, *common, *arguments)


def start_guarded() -> Iterator[Guarded]:
    port = free_port()
    users = " ".join(f'user_{user}="{SECRET}"' for user in (WORKER, *OTHERS))
    login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
    with (
        EmbeddedServers(
            proxy_port=port,
            broker_settings={
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",  # the tests, and the broker itself
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:SASL_PLAINTEXT"
                ),
                "listener.name.proxied.sasl.enabled.mechanisms": "PLAIN",
                "listener.name.proxied.plain.sasl.jaas.config": login,
            },
        ) as servers,
        # The second listener stands behind a proxy: here the proxy only passes bytes on.
        forwarding(port, servers.behind_proxy),
    ):
        yield Guarded(servers, f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def main() -> Iterator[Guarded]:
    yield from start_guarded()


@pytest.fixture(scope="module")
def target() -> Iterator[Guarded]:
    yield from start_guarded()


@pytest.fixture
def cluster(main: Guarded, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(main.servers, tmp_path)
    cluster.target_prefix = unique_name("shop")  # no prefix of the worker's own topics
    cluster.environment |= {
        "REPLAY_KAFKA": main.address,
        "REPLAY_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "REPLAY_KAFKA_SASL_MECHANISM": "PLAIN",
        "REPLAY_KAFKA_SASL_PLAIN_USERNAME": WORKER,
        "REPLAY_KAFKA_SASL_PLAIN_PASSWORD": SECRET,
    }
    yield cluster
    cluster.close()


def documented(cluster: Cluster) -> Iterator[tuple[str, Right]]:
    """Yield the documented rights for an installation, each with the variable of its cluster."""
    return granted(
        {
            "prefix": cluster.prefix,
            "app": cluster.name,
            "destinations": cluster.target_prefix,
            "group": f"{cluster.name}-group",
        }
    )


def run_with_dead_letter_and_resume(cluster: Cluster, main: Guarded, target: Guarded) -> None:
    """Run a replay that a client starts, with a pause and a resume, to its end."""
    create_topics(target.servers.kafka, dict.fromkeys(cluster.topics(), 2))
    seed_store(main.servers.mongo, cluster.name, "events", EVENTS)
    stored = cluster.stored()
    cluster.insert([{**stored[5], "_id": "bad", "event_id": "bad", "aggregate_id": [1]}])
    cluster.start_worker().wait_until_ready()
    send(main, cluster, "r", "start", on_error="dead-letter", rate=100)
    wait_until(lambda: cluster.session("r") and cluster.session("r")["counters"]["read"], SECONDS)
    for command, state in (("pause", "paused"), ("resume", "completed_with_errors")):
        send(main, cluster, "r", command)
        session = cluster.wait_for("r", state, "failed")
        assert session["state"] == state, session["error"]
    assert session["counters"] == {
        "read": EVENTS + 1,
        "published": EVENTS,
        "skipped": 0,
        "dead_lettered": 1,
    }
    assert not [one for one in session["warnings"] if "does not tell" in one]
    published = read_topic(target.servers.kafka, cluster.topics())
    assert_published_exactly(published, stored, "r", cluster.target_prefix)
    (letter,) = read_topic(target.servers.kafka, f"{cluster.prefix}dead-letters")
    assert letter.key == b"bad"


def send(main: Guarded, cluster: Cluster, replay_id: str, command: str, **body: Any) -> None:
    """Send a command over Kafka, as the client."""
    if command == "start":
        body |= {"filter": {"all": True}, "target": {"prefix": cluster.target_prefix}}
    value = json.dumps({"command": command, "replay_id": replay_id, **body})
    error = produce(main, "replay-client", f"{cluster.prefix}requests", value)
    assert error is None, error


def produce(broker: Guarded, user: str, topic: str, value: str = "{}") -> KafkaError | None:
    """Produce one record as a user; return why the broker refuses it."""
    errors: list[KafkaError | None] = []
    producer = Producer(broker.login(user))
    producer.produce(topic, value, b"r", on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(SECONDS) == 0
    return errors[0]


def read_some(broker: Guarded, user: str, topic: str, group: str) -> set[Any]:
    """Read until the first records or the first error, as a member of a group; return the codes."""
    options = {"group.id": group, "auto.offset.reset": "earliest"}
    consumer = Consumer(broker.login(user) | options)
    consumer.subscribe([topic])
    try:
        found = wait_until(lambda: consumer.consume(10, timeout=1), SECONDS)
    finally:
        consumer.close()
    return {error and error.code() for one in found for error in [one.error()]}


def test_the_documented_rights_are_enough_and_not_more(
    main: Guarded, cluster: Cluster, tmp_path: Path
) -> None:
    rights = [right for _, right in documented(cluster)]
    main.grant(*rights)
    run_with_dead_letter_and_resume(cluster, main, main)

    # Nobody but the worker writes where records are believed, or to the destinations.
    beginnings = (cluster.name, cluster.target_prefix)
    own = {topic for topic in topic_names(main.servers.kafka) if topic.startswith(beginnings)}
    assert len(own) == 7 + len(cluster.topics())
    for user in OTHERS:
        for topic in own - {f"{cluster.prefix}requests"}:
            error = produce(main, user, topic)
            assert error is not None, (user, topic)
            assert error.code() == DENIED
    orders, group = f"{cluster.target_prefix}shop.orders", f"{cluster.name}-group"
    assert read_some(main, "shop-projection", orders, group) == {None}
    assert read_some(main, "shop-projection", f"{cluster.prefix}status", group) == {DENIED}

    # The worker may see the group that the replay names; without the right, it says so.
    (describe,) = (r for r in rights if (r.user, r.name) == (WORKER, group) and r.kind == "group")
    main.take(describe)
    send(main, cluster, "read", "start", on_error="skip", consumers=[group])

    def known() -> dict[str, Any]:
        found: dict[str, Any] = (cluster.session("read") or {}).get("consumption", {})
        return dict(found.get(group) or {})

    refused = wait_until(lambda: known().get("reason"), SECONDS)
    assert f"no right to see consumer group {group!r}: add the ACL DESCRIBE on the group" in refused
    main.grant(describe)
    wait_until(lambda: known().get("lag"), SECONDS)

    # Without Read on the destinations the worker cannot tell for whom consumers wait.
    on_destinations = {
        right.operation: right
        for right in rights
        if (right.user, right.name) == (WORKER, cluster.target_prefix)
    }
    main.take(on_destinations["Read"])
    foreign = Producer(
        {"bootstrap.servers": main.servers.kafka, "transactional.id": unique_name("foreign")}
    )
    foreign.init_transactions(SECONDS)
    foreign.begin_transaction()
    foreign.produce(orders, b"foreign", b"foreign", partition=0)
    assert foreign.flush(SECONDS) == 0
    send(main, cluster, "hidden", "start", on_error="skip")

    def reason() -> str:
        return (cluster.session("hidden") or {}).get("reason") or ""

    wait_until(lambda: "TopicAuthorizationFailedError" in reason(), SECONDS)
    main.grant(on_destinations["Read"])

    # The operator ends the transaction with the commands of the message.
    commands = wait_until(lambda: re.findall(r"`kafka-transactions.sh ([^`]*)`", reason()), SECONDS)
    seen, _ = (
        main.run_tool("replay-operator", tmp_path, *shlex.split(command)[2:])
        for command in commands
    )
    assert "CurrentTransactionStartOffset" in seen
    assert "TransactionalId" in main.run_tool("replay-operator", tmp_path, "list")
    cluster.wait_for("hidden", "completed_with_errors")

    # A missing right at the destination is named by the plan.
    main.take(on_destinations["Write"])
    main.take(on_destinations["DescribeConfigs"])
    send(main, cluster, "denied", "start", preflight="full")
    error = cluster.wait_for("denied", "failed")["error"]
    assert f"no right to write to '{cluster.target_prefix}shop.customers'" in error
    main.grant(on_destinations["Write"])
    send(main, cluster, "denied", "retry")
    session = cluster.wait_for("denied", "failed", attempt=2)  # for the bad event
    assert any("the broker does not tell the settings" in one for one in session["warnings"])


def test_the_documented_rights_are_enough_where_the_target_is_another_cluster(
    main: Guarded, target: Guarded, cluster: Cluster
) -> None:
    cluster.environment["REPLAY_TARGET_KAFKA"] = target.address
    brokers = {"kafka": main, "target": target}
    for where, right in documented(cluster):
        brokers[where].grant(right)
    run_with_dead_letter_and_resume(cluster, main, target)

    # Once the topics exist, only Faust still asks to create one: the table's changelog.
    for where, right in documented(cluster):
        if right.operation == "Create" and not right.name.endswith("-changelog"):
            brokers[where].take(right)
    cluster.workers[0].terminate()
    cluster.start_worker(0).wait_until_ready()
    send(main, cluster, "again", "start", on_error="skip")
    assert cluster.wait_for("again")["counters"]["published"] == EVENTS


async def test_a_right_that_is_missing_at_the_start_is_named(
    main: Guarded, cluster: Cluster
) -> None:
    rights = [right for _, right in documented(cluster) if right.user == WORKER]
    settings = settings_of(cluster)
    topics = [right for right in rights if right.kind == "topic" and not right.is_prefix]
    create = [right for right in topics if right.operation == "Create"]
    (group,) = (right for right in rights if right.name == cluster.name and right.kind == "group")
    assert len(topics) == 20
    main.grant(*(right for right in rights if right not in create))
    for right in create:
        with pytest.raises(InvalidSettings, match="needs the right to create topics"):
            await prepare_topics(settings, patience_seconds=0)
        main.grant(right)
    await prepare_topics(settings, patience_seconds=0)
    for right in {*topics, group} - {*create}:
        main.take(right)
        with pytest.raises(InvalidSettings) as refused:
            await prepare_topics(settings, patience_seconds=0)
        assert repr(right.name) in str(refused.value)
        main.grant(right)
    await prepare_topics(settings, patience_seconds=0)


def settings_of(cluster: Cluster) -> Settings:
    """Return the settings of an installation's worker."""
    names = {f"REPLAY_{name.upper()}": name for name in Settings.model_fields}
    given = cluster.environment.items()
    return load_settings(**{names[name]: value for name, value in given if name in names})
