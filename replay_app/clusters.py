"""A Kafka cluster in messages, a connection to it, and a time limit for what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
)

from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.kafka_internals import close_client
from replay_app.kafka_security import kafka_security

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from replay_app.settings import Settings


def cluster_name(settings: Settings, bootstrap: str) -> str:
    """Return a cluster's addresses, and the setting that names them, for a message."""
    variable = "REPLAY_KAFKA" if bootstrap == settings.kafka else "REPLAY_TARGET_KAFKA"
    return f"Kafka at {bootstrap} ({variable})"


def refused_rights(settings: Settings, bootstrap: str, what: object) -> InvalidSettings:
    """Return the error of a cluster that refuses the worker's user something."""
    return InvalidSettings(
        f"{cluster_name(settings, bootstrap)} refuses rights to the worker's user: {what}; grant "
        "the rights that docs/operations.md lists (Access control)"
    )


@contextlib.asynccontextmanager
async def connected(settings: Settings, bootstrap: str) -> AsyncIterator[AIOKafkaClient]:
    """Give a client that is connected to a cluster.

    Raises
    ------
    aiokafka.errors.KafkaConnectionError
        When the cluster cannot be reached.

    """
    client = AIOKafkaClient(bootstrap_servers=bootstrap, **kafka_security(settings, bootstrap))
    try:
        await client.bootstrap()
        yield client
    finally:
        await close_client(client)


@contextlib.asynccontextmanager
async def answers(settings: Settings, bootstrap: str, seconds: float) -> AsyncIterator[None]:
    """Limit the time of a block that asks a cluster, and explain its errors.

    Raises
    ------
    InvalidSettings
        When the cluster refuses a right.
    Unavailable
        When the cluster cannot be reached, gives another error, or does not answer in time.

    """
    cluster = cluster_name(settings, bootstrap)
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Unavailable(f"{cluster} gave an error: no answer within {seconds:g} s") from error
    except (TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
        raise refused_rights(settings, bootstrap, error) from error
    except KafkaError as error:
        what = "cannot be reached" if isinstance(error, KafkaConnectionError) else "gave an error"
        raise Unavailable(f"{cluster} {what}: {error}") from error
