"""Feed a test environment: from a production cluster to another one, redacted, by other logins."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import uvloop
from command_line import CommandLine, commands_of
from fortress import Fortress, fortress
from oracle import assert_published_exactly
from secret_values import SECRET_WORD
from support import create_topics, read_topic, topic_names, unique_name, wait_until
from workers import Cluster

from replay_app.brokers import prepare_topics
from replay_app.demo.shop import SHOP_TOPICS, seed_store
from replay_app.demo.stack import Stack
from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.kafka_internals import mend_aiokafka
from replay_app.settings import Settings, load_settings

EVENTS = 2_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    mend_aiokafka()  # as the program does
    with fortress(tmp_path_factory.mktemp("fortress")) as started:
        yield started


def settings_of(guarded: Fortress, mechanism: str, **changes: str) -> Settings:
    name = unique_name("login")
    environment = {
        **guarded.login(mechanism),
        "REPLAY_APP_ID": name,
        "REPLAY_TOPIC_PREFIX": f"{name}.",
        "REPLAY_PARTITIONS": "1",
        **changes,
    }
    with patch.dict(os.environ, {name: value for name, value in environment.items() if value}):
        return load_settings()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512", "OAUTHBEARER"])
def test_a_worker_logs_in_by_each_mechanism(guarded: Fortress, mechanism: str) -> None:
    settings = settings_of(guarded, mechanism)
    # In the worker's event loop, which would wait for a broker that closes late.
    assert uvloop.run(prepare_topics(settings, 30.0))


@pytest.mark.parametrize(
    ("mechanism", "changes", "told"),
    [
        ("SCRAM-SHA-512", {"REPLAY_KAFKA_SASL_PLAIN_PASSWORD": "other"}, "refuses the login"),
        ("OAUTHBEARER", {"REPLAY_KAFKA_SASL_OAUTH_COMMAND": "echo a.b.c"}, "refuses the login"),
        ("PLAIN", {"REPLAY_KAFKA_SSL_CAFILE": ""}, "cannot be used with TLS"),
    ],
)
async def test_a_refused_login_names_the_settings(
    guarded: Fortress, mechanism: str, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(InvalidSettings, match=f"{told}.*check REPLAY_KAFKA_SECURITY_PROTOCOL"):
        await prepare_topics(settings_of(guarded, mechanism, **changes), 30.0)


async def test_a_command_without_a_token_is_named(guarded: Fortress) -> None:
    settings = settings_of(guarded, "OAUTHBEARER", REPLAY_KAFKA_SASL_OAUTH_COMMAND="false")
    with pytest.raises(Unavailable, match="SASL_OAUTH_COMMAND gives no token: exit code 1"):
        await prepare_topics(settings, 5.0)


def test_a_redacted_replay_reaches_another_cluster_although_its_worker_is_killed(
    guarded: Fortress, stack: Stack, tmp_path: Path
) -> None:
    production = Cluster(guarded.servers, tmp_path)
    production.environment |= {
        **guarded.login("OAUTHBEARER"),
        "REPLAY_TARGET_KAFKA": stack.kafka,
        "REPLAY_TARGET_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
        "REPLAY_REDACT_KEY": SECRET_WORD,
        "REPLAY_SLICE_EVENTS": "100",
        "REPLAY_PAGE_EVENTS": "50",
    }
    topics = [f"qa.{topic}" for topic in SHOP_TOPICS]
    create_topics(guarded.servers.kafka, dict.fromkeys(SHOP_TOPICS, 3))
    show, create, plan, start, verify = commands_of("test-environment.md")
    with contextlib.closing(production):
        seed_store(guarded.servers.mongo, production.name, "events", EVENTS)
        dying = production.start_worker().wait_until_ready()
        environment = {**production.environment, "REPLAY_URL": dying.url}
        replay_app = CommandLine(environment, tmp_path)
        assert "5 topics are missing" in replay_app(*show)
        assert "created" in replay_app(*create)
        assert '"data":{}' in replay_app(*plan)

        start.remove("--wait")  # the worker that it asks is killed
        replay_app(*start, "--rate", "500")
        wait_until(lambda: production.has_read("feed-1"), 60)
        dying.kill()
        production.start_worker(0)
        session = production.wait_for("feed-1", "completed")
        assert "equal" in replay_app(*verify)
        stored = production.stored()
    assert session["counters"]["published"] == EVENTS
    records = read_topic(stack.kafka, topics)
    assert_published_exactly(records, [redacted(one) for one in stored], "feed-1", "qa.")
    assert not {*topics} & {*topic_names(guarded.servers.kafka)}


def redacted(event: dict[str, Any]) -> dict[str, Any]:
    """Return a stored event as the guide redacts it."""
    user = event["metadata"]["user_id"].encode()
    hashed = hmac.new(SECRET_WORD.encode(), user, hashlib.sha256).hexdigest()
    return event | {"data": {}, "metadata": event["metadata"] | {"user_id": hashed}}
