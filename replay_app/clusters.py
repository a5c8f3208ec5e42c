"""A Kafka cluster in messages, and a time limit for what a cluster is asked."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
)

from replay_app.exceptions import InvalidSettings, Unavailable

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
