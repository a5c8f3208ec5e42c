"""The workers of an installation: the members of their consumer group, as the broker knows them.

The broker tells of a member that has died until the member's session has timed out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata

from replay_app.clusters import answers, connected
from replay_app.consumer_groups import assigned_partitions, group_members
from replay_app.records import Count, Record

if TYPE_CHECKING:
    from replay_app.settings import Settings

ANSWER_SECONDS = 3.0
"""How long the broker may take to tell of the members."""
SUFFIX = len("-12345678-12345678-1234-1234-1234-123456789abc")
"""Characters behind a worker's name in a member's id: the checksum of `app._member_name`, and the
UUID that the broker adds to the name of a static member."""


class Member(Record):
    """A worker."""

    leaves_out_defaults = False  # clients read workers

    worker_id: str
    url: str | None
    """At which address other workers reach the worker. None: unknown."""
    host: str
    """From which host the broker sees the worker come."""
    partitions: Count
    """Partitions of ``replay.work`` that the worker has."""
    is_this: bool
    """Whether this worker has answered."""


async def find_members(settings: Settings, work: str) -> tuple[Member, ...]:
    """Return the workers of the installation, by name. ``work`` is the name of the work topic.

    Raises
    ------
    InvalidSettings
        When the cluster refuses the worker's user the right to see the group.
    Unavailable
        When the cluster does not answer within ANSWER_SECONDS.

    """
    async with (
        answers(settings, settings.kafka, ANSWER_SECONDS),
        connected(settings, settings.kafka) as client,
    ):
        members = await group_members(client, settings.app_id)
    found = []
    for one in members:
        name = one.member_id[:-SUFFIX]
        partitions = assigned_partitions(one.assignment).get(work, ())
        is_this = name == settings.worker_name
        url = _url(one.metadata)
        found.append(
            Member(
                worker_id=name,
                url=url,
                host=one.host.lstrip("/"),
                partitions=len(partitions),
                is_this=is_this,
            )
        )
    return tuple(sorted(found, key=lambda one: one.worker_id))


def _url(metadata: bytes) -> str | None:
    """Return the address in the metadata of Faust's assignor; None if they are not Faust's."""
    # Imported here: Faust is large, and only a worker needs it.
    from faust.assignor.client_assignment import ClientMetadata  # noqa: PLC0415

    try:
        faust_part = ConsumerProtocolMemberMetadata.decode(metadata).user_data
        return str(ClientMetadata.loads(faust_part).url)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
