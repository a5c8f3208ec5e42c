"""The offsets of a consumer group: to the begin of a replay, or to its hand-over.

``replay-app offsets`` shows, and sets, them. The offsets of a group can be set from outside only
while the group has no members. Everything is checked before anything is changed, and what was set
is read back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    CommitFailedError,
    KafkaError,
    UnknownTopicOrPartitionError,
    for_code,
)
from pydantic import TypeAdapter, ValidationError

from replay_app.clusters import answers, cluster_name, connected
from replay_app.commands import GROUP_RULE, GroupName
from replay_app.destinations import MAX_NAMED_TOPICS, describe_all, name_topics
from replay_app.exceptions import CommandConflict, Unavailable, WrongUsage
from replay_app.kafka_internals import close_client
from replay_app.kafka_requests import EARLIEST, LATEST, list_offsets
from replay_app.kafka_security import kafka_security
from replay_app.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aiokafka import AIOKafkaClient

    from replay_app.settings import Settings

ANSWER_SECONDS = 30.0
"""How long the broker may take to answer all questions, and to set the offsets."""
RETRY_SECONDS = 0.2
CLOCKS_DIFFER = timedelta(minutes=1)
"""How far the clocks of two machines may be apart."""
NO_MEMBERS = frozenset({"", "Empty", "Dead"})
"""The states of a group without members; a group that does not exist is dead."""
NEWER = "newer"
"""Stands for the state of a group whose members the broker does not tell."""

Place = Literal["begin", "handover"]
_Group = TypeAdapter[str](GroupName)


@dataclass(frozen=True, slots=True)
class Wanted:
    """To which offsets a group is to be set, by what a session says."""

    offsets: dict[str, dict[int, int]]
    """By topic and partition."""
    topic_ids: Mapping[str, str]
    """The ids that the topics had when the replay was planned."""
    takes_new_partitions: bool
    """Whether a partition that the topic has got since is read from its beginning."""
    notes: tuple[str, ...] = ()
    since: int | None = None
    """Milliseconds since 1970: other partitions of the topics are read from this time on, because
    they have control records, and the end of the replay must be read in each partition."""


@dataclass(frozen=True, slots=True)
class Move:
    """One partition of a group."""

    topic: str
    partition: int
    now: int | None
    """None: the group has no offset."""
    then: int


@dataclass(frozen=True, slots=True)
class Moves:
    """What would change, or what has changed."""

    cluster: str
    """In words, with the setting that names it."""
    moves: tuple[Move, ...]
    notes: tuple[str, ...]


def require_group(name: str) -> None:
    """Raise `WrongUsage` if no broker allows a group of this name."""
    try:
        _Group.validate_python(name)
    except ValidationError:
        raise WrongUsage(f"--group {name!r}: a consumer group's name is {GROUP_RULE}") from None


def wanted_offsets(session: Mapping[str, Any], to: Place) -> Wanted:
    """Return to which offsets a group is to be set. ``session`` is the API's answer.

    ``begin``: the first record of the replay in each partition. ``handover``: the offsets from
    which the live topics are read on.

    Raises
    ------
    CommandConflict
        When the session does not say it.

    """
    replay_id, plan = session["replay_id"], session["plan"]
    if plan is None:
        msg = (
            f"replay {replay_id!r} is not planned yet (state {session['state']}): wait, then again"
        )
        raise CommandConflict(msg)
    notes: list[str] = []
    if to == "begin":
        offsets, topic_ids = _begin(session, notes), plan.get("topic_ids", {})
    else:
        offsets = _handover(replay_id, session.get("handover", {}), notes)
        topic_ids = plan.get("live_ids", {})
    unknown = sorted(offsets.keys() - topic_ids.keys())
    if unknown:
        notes.append(
            f"whether {name_topics(unknown)} was deleted and made again since is unknown: the "
            "replay has no topic ids"
        )
    since = _created(session) if to == "begin" else None
    return Wanted(offsets, topic_ids, to == "handover", tuple(notes), since)


def _created(session: Mapping[str, Any]) -> int | None:
    """Return the time of a replay with control records, a little earlier; else None."""
    if not session["start"]["control_records"]:
        return None
    created = datetime.fromisoformat(session["created_at"])
    return int((created - CLOCKS_DIFFER).timestamp() * 1000)


def _begin(session: Mapping[str, Any], notes: list[str]) -> dict[str, dict[int, int]]:
    """Return the first offset of a replay in each partition. A replay that goes on is a note."""
    replay_id, state = session["replay_id"], session["state"]
    if not session["offsets"]:
        published = session["counters"]["published"]
        why = "its partitions are too many" if published else "it has published nothing"
        raise CommandConflict(f"replay {replay_id!r} lists no offsets: {why}")
    if state not in TERMINAL:
        notes.append(
            f"the replay is {state}: partitions to which it has not published yet are left out"
        )
    return {
        topic: {int(number): first for number, (first, _) in partitions.items()}
        for topic, partitions in session["offsets"].items()
    }


def _handover(
    replay_id: str, handover: Mapping[str, Mapping[str, int] | None], notes: list[str]
) -> dict[str, dict[int, int]]:
    """Return the offsets of a hand-over. Live topics that did not exist are a note."""
    unknown = sorted(topic for topic, offsets in handover.items() if offsets is None)
    if unknown:
        msg = (
            f"the hand-over of replay {replay_id!r} is unknown for {name_topics(unknown)}: the "
            "replay's warnings say why"
        )
        raise CommandConflict(msg)
    absent = sorted(topic for topic, offsets in handover.items() if offsets == {})
    if len(absent) == len(handover):
        what = f"no live topic existed: {name_topics(absent)}" if absent else "it knows no topic"
        raise CommandConflict(f"replay {replay_id!r} has no hand-over: {what}")
    if absent:
        notes.append(f"{name_topics(absent)} did not exist when the replay was planned: left out")
    return {
        topic: {int(number): offset for number, offset in offsets.items()}
        for topic, offsets in handover.items()
        if offsets
    }


async def find_moves(settings: Settings, group: str, to: Place, wanted: Wanted) -> Moves:
    """Return what would change if the group were set to the wanted offsets.

    Raises
    ------
    CommandConflict
        When the group has members, a topic is gone or was made again, or a partition does not have
        the wanted offset.
    InvalidSettings, Unavailable
        When the cluster refuses a right, or does not answer within ANSWER_SECONDS.

    """
    bootstrap = _bootstrap(settings, to)
    async with (
        answers(settings, bootstrap, ANSWER_SECONDS),
        connected(settings, bootstrap) as client,
    ):
        where = cluster_name(settings, bootstrap)
        offsets, notes = await _require_topics(client, where, wanted)
        now, state = await _committed(settings, bootstrap, group)
        notes += () if state == "Empty" else (_explain_state(group, state),)
        partitions = [
            TopicPartition(topic, number) for topic in sorted(offsets) for number in offsets[topic]
        ]
        beginnings = await list_offsets(client, dict.fromkeys(partitions, EARLIEST))
        ends = await list_offsets(client, dict.fromkeys(partitions, LATEST))
        others = [tp for tp in partitions if offsets[tp.topic][tp.partition] is None]
        begins = {tp: beginnings[tp][0] for tp in others}
        if others and wanted.since is not None:
            firsts = await list_offsets(client, dict.fromkeys(others, wanted.since))
            begins = {tp: ends[tp][0] if at < 0 else at for tp, (at, _) in firsts.items()}
    moves = [
        Move(
            tp.topic,
            tp.partition,
            now.get(tp),
            begins[tp] if (then := offsets[tp.topic][tp.partition]) is None else then,
        )
        for tp in partitions
    ]
    _require_range(moves, beginnings, ends)
    return Moves(where, tuple(moves), (*wanted.notes, *notes))


async def execute_moves(settings: Settings, group: str, to: Place, moves: Sequence[Move]) -> None:
    """Set the offsets of a group, and read them back.

    Raises
    ------
    CommandConflict
        When the group has got members meanwhile. Nothing is changed then.
    InvalidSettings, Unavailable
        When the cluster refuses a right, does not answer, or tells other offsets than those set.

    """
    bootstrap = _bootstrap(settings, to)
    wanted = {TopicPartition(one.topic, one.partition): one.then for one in moves}
    async with answers(settings, bootstrap, ANSWER_SECONDS):
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            **kafka_security(settings, bootstrap),
        )
        try:
            await consumer.start()
            consumer.assign([*wanted])
            # Without a generation: the broker refuses such a commit if the group has members.
            await consumer.commit(wanted)
        except CommitFailedError as error:
            raise CommandConflict(_has_members(group)) from error
        finally:
            await consumer.stop()
        now, _ = await _committed(settings, bootstrap, group, needs_empty=False)
    differing = [tp for tp, offset in wanted.items() if now.get(tp) != offset]
    if differing:
        named = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in differing[:MAX_NAMED_TOPICS])
        msg = (
            f"the offsets of the group {group!r} were set, and the broker tells others for "
            f"{named}: has a consumer of the group committed meanwhile? Stop it, then again"
        )
        raise Unavailable(msg)


def _bootstrap(settings: Settings, to: Place) -> str:
    """Return the cluster whose offsets are set: live events are not on the target cluster."""
    return settings.target_bootstrap if to == "begin" else settings.kafka


async def _require_topics(
    client: AIOKafkaClient, where: str, wanted: Wanted
) -> tuple[dict[str, dict[int, int | None]], tuple[str, ...]]:
    """Return the wanted offsets, with None for new partitions, and notes of these."""
    offsets: dict[str, dict[int, int | None]] = {}
    gone, remade, untold, grown = list[str](), list[str](), list[str](), list[str]()
    for topic in await describe_all(client, sorted(wanted.offsets)):
        name, known = topic.name, wanted.offsets[topic.name]
        if topic.error_code == UnknownTopicOrPartitionError.errno:
            gone.append(name)
        elif topic.error_code:
            untold.append(f"{name!r} ({for_code(topic.error_code).__name__})")
        elif topic.topic_id and wanted.topic_ids.get(name, topic.topic_id) != topic.topic_id:
            remade.append(name)
        else:
            takes_others = wanted.takes_new_partitions or wanted.since is not None
            new = set(range(topic.partitions)) - known.keys() if takes_others else ()
            grown += [name] if new else []
            offsets[name] = dict(sorted((known | dict.fromkeys(new)).items()))
    if gone:
        raise CommandConflict(f"{name_topics(gone)} does not exist on {where}")
    if remade:
        msg = (
            f"{name_topics(remade)} on {where} is not the topic that the replay was planned with: "
            "it was deleted and made again, or this is another cluster. The offsets mean nothing "
            "there: start a new replay"
        )
        raise CommandConflict(msg)
    if untold:
        raise Unavailable(f"{where} does not tell of {', '.join(untold[:MAX_NAMED_TOPICS])}")
    if not grown:
        return offsets, ()
    if wanted.since is not None:
        note = (
            f"some partitions of {name_topics(grown)} have only control records of the replay, if "
            "any: they are read from the time on at which the replay was created"
        )
        return offsets, (note,)
    note = f"{name_topics(grown)} has more partitions since: these are read from their beginning"
    return offsets, (note,)


async def _committed(
    settings: Settings, bootstrap: str, group: str, *, needs_empty: bool = True
) -> tuple[dict[TopicPartition, int], str]:
    """Return the offsets of a group, and the group's state.

    Raises
    ------
    CommandConflict
        When the group has members, and must not have any.

    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **kafka_security(settings, bootstrap))
    try:
        await admin.start()
        while True:
            try:
                return await _ask(admin, group, needs_empty=needs_empty)
            except KafkaError as error:  # such as of a coordinator that is being chosen
                if not error.retriable:
                    raise
            await asyncio.sleep(RETRY_SECONDS)
    finally:
        await close_client(admin)


async def _ask(
    admin: AIOKafkaAdminClient, group: str, *, needs_empty: bool
) -> tuple[dict[TopicPartition, int], str]:
    (answer,) = await admin.describe_consumer_groups([group])
    (told,) = answer.to_object()["groups"]
    if needs_empty and (told["members"] or told["state"] not in NO_MEMBERS):
        raise CommandConflict(_has_members(group, len(told["members"])))
    if told["error_code"]:
        raise for_code(told["error_code"])(group)
    state = told["state"]
    # DescribeGroups does not know the groups of the newer protocol (KIP-848).
    if state != "Empty" and group in {name for name, *_ in await admin.list_consumer_groups()}:
        state = NEWER
    found = await admin.list_consumer_group_offsets(group)
    return {tp: one.offset for tp, one in found.items() if one.offset >= 0}, state


def _explain_state(group: str, state: str) -> str:
    if state == NEWER:
        return (
            f"the group {group!r} uses the newer consumer protocol: whether it has members shows "
            "only when the offsets are set; the broker then refuses"
        )
    return f"the group {group!r} does not exist yet: check its name"


def _has_members(group: str, members: int = 0) -> str:
    how_many = f"{members} " if members else ""
    return (
        f"the group {group!r} has {how_many}members, and they would go on from where they are: "
        "stop its consumers, wait until the broker has given them up (session.timeout.ms), then "
        "again"
    )


def _require_range(
    moves: Iterable[Move],
    beginnings: Mapping[TopicPartition, tuple[int, int]],
    ends: Mapping[TopicPartition, tuple[int, int]],
) -> None:
    """Raise `CommandConflict` if a partition does not have the wanted offset, or has lost it."""
    lost: list[str] = []
    for one in moves:
        tp = TopicPartition(one.topic, one.partition)
        (begin, _), (end, _) = beginnings[tp], ends[tp]
        if one.then < begin:
            lost.append(
                f"{one.topic}[{one.partition}] begins at {begin:,}, and the offset would "
                f"be {one.then:,}: the records between are deleted (retention)"
            )
        elif one.then > end:
            lost.append(
                f"{one.topic}[{one.partition}] ends at {end:,}, and the offset would be "
                f"{one.then:,}: the topic has lost records"
            )
    if lost:
        more = len(lost) - MAX_NAMED_TOPICS
        named = "; ".join(lost[:MAX_NAMED_TOPICS]) + (f"; and {more} more" if more > 0 else "")
        raise CommandConflict(f"{named}. Consumers would miss records: start a new replay")


def offsets_shown(now: int | None, then: int) -> tuple[str, str, str]:
    """Return two offsets of a consumer group, and what a change from one to the other means."""
    if now is None:
        return "none", f"{then:,}", ""
    change = then - now
    words = "unchanged" if not change else "read again" if change < 0 else "skipped"
    return f"{now:,}", f"{then:,}", f"{abs(change):,} {words}" if change else words
