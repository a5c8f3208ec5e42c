"""Looks at the consumer groups of the replays whose sessions this worker owns.

One look asks for the groups of all replays that are due. What it finds becomes a report on
``replay.progress``, if it changes a session: only the sessions agent writes sessions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from replay_app.consumer_groups import GroupFound, GroupReader
from replay_app.consumption import (
    NOT_WATCHED,
    TOO_MANY,
    WATCHED_DAYS,
    group_lag,
    is_watched,
)
from replay_app.exceptions import ReplayError, Unavailable
from replay_app.reports import MAX_GROUP_REASON, GroupLook, Report, offsets_written, shorten
from replay_app.states import COMPLETED
from replay_app.transitions import on_look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from replay_app.context import WorkerContext
    from replay_app.sessions import Session

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.5
"""Time between two looks if a replay waits for its groups (``max_lag``)."""
LOOK_SECONDS = 2.0
"""Time between two looks at the groups of any other replay."""
MAX_LOOK_SECONDS = 30.0
"""Longest time between two looks. Each look that finds no change doubles the time."""
SEND_SECONDS = 5.0
MAX_METRIC_GROUPS = 100
"""Groups that the metrics name."""


@dataclass(slots=True)
class _Schedule:
    """When a replay's groups are looked at next."""

    seen: tuple[object, ...] = ()
    """What the last look compared."""
    interval_seconds: float = LOOK_SECONDS
    due_at: float = 0.0
    """Monotonic time."""


class GroupWatch:
    """The looks of one worker at the consumer groups of its replays."""

    def __init__(self, context: WorkerContext, owned: Callable[[], Iterable[Session]]) -> None:
        self._context = context
        self._owned = owned
        """Returns the sessions of the partitions that this worker owns now."""
        self._groups = GroupReader(context.settings)
        self._schedules: dict[str, _Schedule] = {}
        context.metrics.show_consumer_lag(self._lags)

    def _lags(self) -> Counter[str]:
        """Return the lag of each group that has not read everything, over the owned sessions."""
        lags: Counter[str] = Counter()
        for session in self._owned():
            for group, one in session.consumption.items():
                if one.consumed_at is None and one.lag is not None and is_watched(session):
                    lags[group] += one.lag
        return Counter(dict(lags.most_common(MAX_METRIC_GROUPS)))

    async def watch(self) -> None:
        """Look until the task is cancelled."""
        try:
            while True:
                await asyncio.sleep(TICK_SECONDS)
                watched = {one.replay_id: one for one in self._owned() if is_watched(one)}
                for replay_id in self._schedules.keys() - watched.keys():
                    del self._schedules[replay_id]
                due = [one for one in watched.values() if self._is_due(one)]
                if due:
                    await self._look(due)
                elif not watched:
                    await self._groups.close()
        finally:
            await self._groups.close()

    def _is_due(self, session: Session) -> bool:
        schedule = self._schedules.setdefault(session.replay_id, _Schedule())
        seen = session.state, offsets_written(session.offsets), session.consumption
        if seen != schedule.seen:  # something moves
            schedule.interval_seconds = LOOK_SECONDS
            schedule.due_at = min(schedule.due_at, time.monotonic() + LOOK_SECONDS)
            schedule.seen = seen
        return self._is_hurried(session) or time.monotonic() >= schedule.due_at

    def _is_hurried(self, session: Session) -> bool:
        return session.start.max_lag is not None and session.state == "running"

    async def _look(self, sessions: list[Session]) -> None:
        now = datetime.now(UTC)
        ended = [one for one in sessions if is_over(one, now)]
        asked = [one for one in sessions if one not in ended]
        found = await self._find(asked)
        patience = timedelta(seconds=self._context.settings.max_lag_patience_seconds)
        for session in sessions:
            report = look_report(session, None if session in ended else found)
            schedule = self._schedules[session.replay_id]
            schedule.due_at = time.monotonic() + schedule.interval_seconds
            schedule.interval_seconds = min(2 * schedule.interval_seconds, MAX_LOOK_SECONDS)
            if on_look(session, report, now, patience).changed:
                await self._send(report)

    async def _find(self, sessions: list[Session]) -> dict[str, GroupFound]:
        wanted: dict[str, set[TopicPartition]] = {}
        for session in sessions:
            partitions = {
                TopicPartition(topic, partition)
                for topic, ranges in session.offsets.items()
                for partition in ranges
            }
            for group in session.start.consumers:
                wanted.setdefault(group, set()).update(partitions)
        if not wanted:
            return {}
        try:
            found = await self._groups.find(wanted)
            places = finished_places(sessions, found)
            ends = await self._groups.ends(places) if places else {}
            return {group: believed(group, one, ends) for group, one in found.items()}
        except ReplayError as error:
            logger.warning("the consumer groups cannot be looked at: %s", error)
            return dict.fromkeys(wanted, GroupFound(error=str(error)))
        except Exception as error:  # whatever a broker answers: the replays and the looks go on
            logger.exception("the consumer groups cannot be looked at")
            return dict.fromkeys(wanted, GroupFound(error=repr(error)))

    async def _send(self, report: Report) -> None:
        outbox, progress = self._context.outbox, self._context.topics.progress
        try:
            await outbox.try_send(progress, report.replay_id, report.encode(), SEND_SECONDS)
        except Unavailable as error:  # the next look finds the same
            logger.warning("%s", error)


def is_over(session: Session, now: datetime) -> bool:
    """Whether a replay has ended so long ago that its groups are not looked at any more."""
    ended_at = session.ended_at
    return ended_at is not None and now - ended_at >= timedelta(days=WATCHED_DAYS)


def finished_places(
    sessions: Iterable[Session], found: Mapping[str, GroupFound]
) -> set[TopicPartition]:
    """Return the partitions of ended replays of which some groups seem to have read everything."""
    return {
        TopicPartition(topic, partition)
        for session in sessions
        if session.state in COMPLETED
        and any(
            group_lag(session.offsets, found[one].committed) == 0 for one in session.start.consumers
        )
        for topic, ranges in session.offsets.items()
        for partition in ranges
    }


def believed(group: str, found: GroupFound, ends: Mapping[TopicPartition, int]) -> GroupFound:
    """Return what is found of a group; an error if the group stands behind the end of a partition.

    A consumer that ran while its topic was deleted and made again may commit its old offset. Such
    a group has read nothing of what the new topic has.
    """
    for place, offset in sorted(found.committed.items()):
        if offset > ends.get(place, offset):
            error = (
                f"consumer group {group!r} stands at offset {offset} of "
                f"{place.topic}[{place.partition}], which ends at {ends[place]}: the offset is of "
                "an older topic of this name. Set the group back, see `replay-app offsets`"
            )
            return GroupFound(error=error)
    return found


def look_report(session: Session, found: dict[str, GroupFound] | None) -> Report:
    """Return the report of a look at a session's groups; ``found`` is None if nobody was asked."""
    return Report(
        replay_id=session.replay_id,
        kind="consumers",
        epoch=session.epoch,
        state="done" if session.state in COMPLETED else "live",
        written=offsets_written(session.offsets),
        consumers={
            group: GroupLook(reason=NOT_WATCHED) if found is None else _judge(session, found[group])
            for group in session.start.consumers
        },
    )


def _judge(session: Session, found: GroupFound) -> GroupLook:
    if not session.lists_all_offsets:
        return GroupLook(reason=TOO_MANY)
    if not session.offsets and session.state in COMPLETED:  # nothing to read, whatever Kafka says
        return GroupLook(state=found.state, lag=0)
    if found.error is not None:
        return GroupLook(reason=shorten(found.error, MAX_GROUP_REASON))
    return GroupLook(state=found.state, lag=group_lag(session.offsets, found.committed))
