"""The start of a worker: wait for the brokers, say why one cannot be used, create the topics."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationMethodNotSupported,
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)

from replay_app.clusters import answers, cluster_name, connected, refused_rights
from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.kafka_requests import describe_topics
from replay_app.kafka_security import NoToken, kafka_security, variables
from replay_app.topics import Topics, ensure_topics, topics_by_cluster

if TYPE_CHECKING:
    from replay_app.kafka_requests import TopicMetadata
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
"""How long a worker waits for the brokers at its start."""
ASK_AGAIN_SECONDS = 1.0
SAY_AGAIN_SECONDS = 10.0
ANSWER_SECONDS = 5.0
"""How long one broker may take to answer."""
RIGHTS = {"Read": 1 << 3, "Write": 1 << 4}
"""The bits of operations among the rights on a topic (Java's AclOperation)."""
COORDINATOR_SECONDS = 10.0
COORDINATOR_POLL_SECONDS = 0.1
_REFUSED_LOGINS = (
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)


async def prepare_topics(
    settings: Settings, patience_seconds: float = PATIENCE_SECONDS
) -> tuple[str, ...]:
    """Wait until the brokers answer, create the missing topics, and look at the rights on them.

    Return the ids of the worker's topics; a broker before Kafka 2.8 has none. While the worker
    waits, its log says why every `SAY_AGAIN_SECONDS`.

    Raises
    ------
    InvalidSettings
        When waiting would not help: a broker refuses the login or its certificate cannot be
        trusted, `ensure_topics` finds a wrong setting, or the worker lacks a right.
    Unavailable
        When the brokers do not answer within ``patience_seconds``.

    """
    began, said = time.monotonic(), float("-inf")
    while True:
        try:
            for bootstrap in topics_by_cluster(settings):
                await _greet(settings, bootstrap)
            await _await_coordinator(settings)
            await ensure_topics(settings)
            topics = await _describe_own_topics(settings)
        except Unavailable as error:
            now = time.monotonic()
            left = began + patience_seconds - now
            if left <= 0:
                msg = f"{error}; gave up after {patience_seconds:g} s"
                raise Unavailable(msg) from error
            if now - said >= SAY_AGAIN_SECONDS:
                said = now
                logger.warning("%s; waiting for up to %.0f s more", error, left)
            await asyncio.sleep(min(ASK_AGAIN_SECONDS, left))
        else:
            return tuple(sorted(topic.topic_id for topic in topics))


async def _greet(settings: Settings, bootstrap: str) -> None:
    """Connect to a cluster once, and log in.

    aiokafka's clients hide why they cannot connect, and write it into the log as an error.
    """
    cluster, prefix = cluster_name(settings, bootstrap), variables(settings, bootstrap)
    try:
        hosts = collect_hosts(bootstrap)
    except ValueError as error:
        raise InvalidSettings(f"{cluster} is not a list of HOST:PORT, comma-separated") from error
    trouble: Exception | None = None
    for host, port, _ in hosts:
        try:
            connection = await create_conn(
                host,
                port,
                request_timeout_ms=round(ANSWER_SECONDS * 1000),
                **kafka_security(settings, bootstrap),
            )
        except _REFUSED_LOGINS as error:
            msg = (
                f"{cluster} refuses the login: {_text(error)}; check "
                f"{prefix}_SECURITY_PROTOCOL and {prefix}_SASL_*"
            )
            raise InvalidSettings(msg) from error
        except ssl.SSLError as error:
            msg = (
                f"{cluster} cannot be used with TLS: {_text(error)}; check "
                f"{prefix}_SECURITY_PROTOCOL and {prefix}_SSL_*"
            )
            raise InvalidSettings(msg) from error
        except (OSError, KafkaError, TimeoutError) as error:
            trouble = trouble or error
        else:
            connection.close()
            return
    if isinstance(trouble, TimeoutError):
        why = f"no answer within {ANSWER_SECONDS:g} s"
    elif isinstance(trouble, NoToken):
        why = _text(trouble)
    elif isinstance(trouble, KafkaError | ConnectionResetError):
        why = f"the connection is closed at once; does {prefix}_SECURITY_PROTOCOL fit?"
    else:
        why = _text(trouble)
    raise Unavailable(f"{cluster} cannot be reached: {why}")


async def _await_coordinator(settings: Settings) -> None:
    """Wait until the group has a coordinator.

    A new broker creates the topic of the group's offsets when it is asked for the first time.
    Until the topic is there, aiokafka's consumer would write errors into the log.
    """
    cluster = cluster_name(settings, settings.kafka)
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings.kafka, **kafka_security(settings, settings.kafka)
    )
    deadline = time.monotonic() + COORDINATOR_SECONDS
    try:
        await admin.start()
        while True:
            try:
                await admin.find_coordinator(settings.app_id)
            except GroupAuthorizationFailedError as error:
                msg = f"{cluster} refuses the group {settings.app_id!r} (REPLAY_APP_ID): {error}"
                raise InvalidSettings(msg) from error
            except GroupCoordinatorNotAvailableError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(COORDINATOR_POLL_SECONDS)
            else:
                return
    except (KafkaError, TimeoutError) as error:
        raise Unavailable(f"{cluster} has no coordinator for the group: {_text(error)}") from error
    finally:
        await admin.close()


async def _describe_own_topics(settings: Settings) -> list[TopicMetadata]:
    """Return what the brokers tell of the worker's own topics, if the worker may use them.

    The worker needs the rights to read and to write them, where the brokers tell. Without the
    check, most missing rights show when a replay runs, and some never: Faust only logs that a row
    of the table is not in the changelog.
    """
    dead_letters = Topics.of(settings).dead_letters.name
    found: list[TopicMetadata] = []
    for bootstrap, topics in topics_by_cluster(settings).items():
        async with (
            answers(settings, bootstrap, ANSWER_SECONDS),
            connected(settings, bootstrap) as client,
        ):
            described = await describe_topics(client, [topic.name for topic in topics])
        if unknown := [
            one.name for one in described if one.error_code == UnknownTopicOrPartitionError.errno
        ]:  # the broker that was asked has not heard of a new topic yet
            msg = f"{cluster_name(settings, bootstrap)} does not know {', '.join(unknown)} yet"
            raise Unavailable(msg)
        lacking = [
            f"{right} on {topic.name!r}"
            for topic in described
            for right, bit in RIGHTS.items()
            if topic.error_code == TopicAuthorizationFailedError.errno
            or (topic.operations is not None and not topic.operations & bit)
            if (right, topic.name) != ("Read", dead_letters)
        ]
        if lacking:
            raise refused_rights(settings, bootstrap, ", ".join(lacking))
        found += described
    return found


def _text(error: object) -> str:
    return str(error) or type(error).__name__
