"""The session: the whole state of one replay, and the receipt at its end.

`replay_app.states` has the states, `replay_app.transitions` the rules that lead from one to the
next.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, computed_field

from replay_app.checkpoints import Token
from replay_app.commands import (
    MAX_CONSUMERS,
    MAX_SKIPPED,
    LeavesOut,
    Rate,
    Start,
    Verb,
    Verification,
)
from replay_app.history import MAX_CHANGES, ChangeText, few_changes
from replay_app.records import MAX_LIST, MAX_SHARDS, Count, Counts, Moment, Record, Texts
from replay_app.reports import (
    MAX_INTERNAL_BYTES,
    MAX_LISTED_OFFSETS,
    Counters,
    Failure,
    GroupState,
    Handover,
    Offsets,
    Plan,
    Report,
    ShardId,
    ShardProgress,
    bound_offsets,
    most_common,
)
from replay_app.series import Series
from replay_app.states import COMPLETED, TERMINAL, VERBS_AT_THE_END, VERBS_OF_STATE, State

MAX_LISTED = 1000
"""Replays that one answer of the API lists."""
ASIDE = frozenset({"history", "history_dropped", "series"})
"""Members that the API answers at paths of their own, and leaves out of a session."""
SHORT_LIST = 20
"""Names in the counts by type, and by topic, of a session that would be too large for a record.
All shards together have this number of names."""
MAX_TEXT = 2000
"""Characters of the error and the reason of a session that would be too large for a record."""

_Counted = TypeVar("_Counted", "Plan", "ShardProgress", "Receipt")


class _SessionPart(Record):
    model_config = ConfigDict(extra="ignore")  # a newer version may have written more members
    leaves_out_defaults = False  # clients read sessions too


class Shard(_SessionPart):
    """What the session knows of one shard."""

    epoch: Count = 0
    slice: Count = 0
    progress: ShardProgress = Field(default_factory=ShardProgress)
    """Without offsets: the session keeps them for all shards together."""
    worker: str | None = None
    """The worker that last reported on this shard. None: none has yet."""
    heard_at: Moment | None = None
    """When a worker last reported on this shard, or when the session last sent it a token."""


class Receipt(_SessionPart):
    """The final account of a replay."""

    counters: Counters
    by_type: Counts
    by_topic: Counts
    bytes: Count
    """Bytes of the encoded values."""
    dropped: Count = 0
    """Events that a transform has dropped. They also count as skipped."""
    parked: Count = 0
    """Good events behind a failed one of their aggregate. They also count as dead_lettered."""
    offsets: Offsets
    failures: Annotated[tuple[Failure, ...], Field(max_length=MAX_SHARDS)]
    """The first failures of each shard."""
    seconds: float
    """From the start command to the end, pauses included."""
    visible: bool = False
    """Whether the stable offset of each published partition has passed the replay's last record."""
    visible_at: Moment | None = None
    """When the finish step has seen that."""
    behind: Count | None = None
    """Matching events of the range that lie behind the replay's position and are not published:
    they were stored too late. None if unknown."""
    handover: Handover = Field(default_factory=dict)
    handover_time: Moment | None = None


class Position(_SessionPart):
    """How far in time a replay in global order is."""

    time: Moment
    """Time of the last event that was read."""
    start: Moment | None
    """The command's lower bound. None: the replay began with the oldest event."""
    end: Moment
    """The frozen upper bound."""


class Consumption(_SessionPart):
    """How far one consumer group has read what a replay published."""

    state: GroupState = "unseen"
    lag: Count | None = None
    """Records of the published partitions that the group has not read: last published offset + 1
    less the committed offset, over all partitions. In a partition where the group has committed
    nothing, the records since the replay's first one count. None while unknown."""
    reason: str | None = None
    """Why the last look has found nothing. State and lag are then those of the look before."""
    checked_at: Moment | None = None
    """When the group was last looked at. A look that finds no change is noted now and then only."""
    consumed_at: Moment | None = None
    """When the group was first seen to have read all records of the ended replay."""
    late_since: Moment | None = None
    """Since when the group is behind ``max_lag`` and does not move. None if this is not so."""
    is_awaited: bool = True
    """Whether ``max_lag`` still waits for the group, and not if the group never moves."""


class Session(_SessionPart):
    """The whole state of one replay: the row in the table and the record on ``replay.status``."""

    replay_id: str
    revision: Count = 0
    """1, and one more for each publication on ``replay.status``."""
    state: State = "pending"
    epoch: Count = 1
    attempt: Count = 1
    """1, and one more for each retry; the header ``replay-attempt``."""
    start: Start
    retry_on_error: LeavesOut | None = None
    """What the newest retry that says so wants in place of the start's ``on_error``."""
    skipped_events: Annotated[tuple[str, ...], Field(max_length=MAX_SKIPPED)] = ()
    """Ids of events that retries have asked to skip if they fail."""
    accepts_changes: bool = False
    """Whether the newest retry has accepted changes of how events become records."""
    has_changed: bool = False
    """Whether a retry has done so after the first record: not all records were made in one way."""
    rate: Rate | None = None
    """Events per second over all shards. None: no limit."""
    step_to: Count | None = None
    """The replay pauses when this number of events is published. None: it goes on."""
    created_at: Moment
    updated_at: Moment
    started_at: Moment | None = None
    ended_at: Moment | None = None
    progressed_at: Moment
    """When a counter or the state last changed."""
    heard_at: Moment
    """When a worker last reported, or when tokens were last sent."""
    plan: Plan | None = None
    planned_matches: Annotated[tuple[Count, ...], Field(max_length=MAX_LIST)] = ()
    """The totals that the plans of all attempts found, each once. More than one: the store has
    changed between two attempts."""
    shards: Annotated[tuple[Shard, ...], Field(max_length=MAX_SHARDS)] = ()
    offsets: Offsets = Field(default_factory=dict)
    released: bool = False
    """The gate is open, whatever the replays of ``after`` do."""
    finishing: bool = False
    """All shards are done, and the finish token is sent."""
    stalled: bool = False
    """No counter has moved for ``REPLAY_STALL_SECONDS``."""
    repairs: Count = 0
    """How often the watchdog sent the tokens again."""
    reason: str | None = None
    """Why the replay, or a consumer of its records, waits, while it waits."""
    error: str | None = None
    """Why the replay failed."""
    warnings: Texts = ()
    receipt: Receipt | None = None
    consumption: Annotated[dict[str, Consumption], Field(max_length=MAX_CONSUMERS)] = Field(
        default_factory=dict
    )
    """By consumer group of the start command. A group that was never looked at is missing."""
    hold: str | None = None
    """Why the shards publish nothing for now: a consumer group is behind ``max_lag``."""
    verification: Verification | None = None
    """The newest verdict of `replay-app verify` that was noted."""
    speed_marks: Annotated[tuple[tuple[Moment, Count], ...], Field(max_length=2)] = ()
    """Up to two moments, and the events read until then. The speed counts from the older one."""
    history: Annotated[tuple[ChangeText, ...], Field(max_length=MAX_CHANGES)] = ()
    """What has changed the replay, the oldest first. Not in the API's sessions: see `ASIDE`."""
    history_dropped: Count = 0
    """Changes that the history has lost: it keeps the first ones and the last ones."""
    series: Series | None = None
    """Counters and waits over time. Not in the API's sessions: see `ASIDE`."""
    events_per_second: float | None = None
    """Events read, averaged over the last seconds. None while nothing moves."""

    def answer(self) -> str:
        """Return the session in JSON as the API answers it."""
        return self.model_dump_json(exclude=set(ASIDE))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def counters(self) -> Counters:
        """The sum over the shards."""
        return sum((shard.progress.counters for shard in self.shards), Counters())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def matched(self) -> int | None:
        """Events that match. None while unknown."""
        return self.plan.matched if self.plan else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def handover(self) -> Handover:
        """From where consumers read on in the live topics. Empty until the replay is planned."""
        return self.plan.handover if self.plan else {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def position(self) -> Position | None:
        """How far in time the replay is. None before the first event, and in aggregate order."""
        times = [shard.progress.last_time for shard in self.shards if shard.progress.last_time]
        if self.plan is None or self.start.ordering != "global" or not times:
            return None
        return Position(time=max(times), start=self.start.filter.start, end=self.plan.end)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def percent(self) -> float | None:
        """Read events of the matching events, 0 to 100. None while unknown."""
        if self.state == "completed":
            return 100.0
        if not self.matched:
            return None
        return round(min(100.0, 100 * self.counters.read / self.matched), 1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present speed. None while unknown.

        A replay that keeps the pace of its events comes in bursts: its time left is that of the
        events, if the command says where they end, and if no gap is cut.
        """
        if self.state != "running":
            return None
        start, position = self.start, self.position
        if start.speed is not None:
            if position is None or start.filter.end is None or start.max_gap_seconds is not None:
                return None
            left = position.end - position.time
            return round(max(0.0, left.total_seconds()) / start.speed, 1)
        if self.matched is None or not self.events_per_second:
            return None
        return round(max(0, self.matched - self.counters.read) / self.events_per_second, 1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verbs(self) -> tuple[Verb, ...]:
        """The commands that would change this replay now."""
        if self.state == "running" and self.finishing:
            return VERBS_AT_THE_END
        verbs = VERBS_OF_STATE[self.state]
        allowed = {"release": self.waits_for_others, "step": self.can_step}
        if self.step_to is not None and "resume" not in verbs and "pause" in verbs:
            verbs = ("pause", "resume", *verbs[1:])  # a step becomes the way to the end
        return tuple(verb for verb in verbs if allowed.get(verb, True))

    @property
    def has_made_step(self) -> bool:
        """Whether a running replay has published the events of its step, and has more to read."""
        return (
            self.state == "running"
            and not self.finishing
            and self.step_to is not None
            and self.counters.published >= self.step_to
            and any(shard.progress.state != "done" for shard in self.shards)
        )

    @property
    def can_step(self) -> bool:
        """Whether some next events can be told: shards have no common order."""
        return self.start.ordering == "global" and not self.start.dry_run

    @property
    def is_consumed(self) -> bool:
        """Whether the replay has completed, and each of its consumer groups has read all of it."""
        return self.state in COMPLETED and all(
            group in self.consumption and self.consumption[group].consumed_at is not None
            for group in self.start.consumers
        )

    @property
    def lists_all_offsets(self) -> bool:
        """Whether ``offsets`` has every partition to which the replay has published events."""
        listed = sum(map(len, self.offsets.values()))
        return listed < MAX_LISTED_OFFSETS and (listed > 0 or not self.counters.published)

    @property
    def waits_for_others(self) -> bool:
        """Whether the gate asks for the replays of ``after``, now or when the replay gets there."""
        return bool(self.start.after) and not self.released and self.started_at is None

    def has_heard(self, report: Report) -> bool:
        """Whether this report, or a later report of its shard, is part of the session."""
        if self.state in TERMINAL:
            return True
        if not isinstance(report.shard, int):
            return report.epoch < self.epoch
        if not self.has_shard(report.shard):
            return False
        shard = self.shards[report.shard]
        return (report.epoch, report.slice) <= (shard.epoch, shard.slice)

    def has_shard(self, shard: ShardId) -> bool:
        """Whether the replay has a shard of this number."""
        return isinstance(shard, int) and shard < len(self.shards)

    def has_sent(self, token: Token) -> bool:
        """Whether this session, or an earlier state of the session, sent the token."""
        if self.epoch != token.epoch:
            return self.epoch > token.epoch
        match token.kind:
            case "gate" | "count":
                return self.plan is not None
            case "emit":
                return self.state not in {"pending", "planning", "waiting"}
            case "finish":
                return self.finishing or self.state in TERMINAL
            case _:
                return True

    def wants(self, token: Token) -> bool:
        """Whether a token that the session `has_sent` must still run.

        A crash before a session's publication can leave emit tokens on Kafka. The session may
        then reach the tokens' epoch in another state, such as ``paused``: the tokens must not run.
        """
        if token.kind == "count" and not self.is_counting:
            return False
        return self.epoch == token.epoch and (token.kind != "emit" or self.state == "running")

    @property
    def rules(self) -> Start:
        """The start command with what retries have changed: this is how events are replayed now."""
        if self.retry_on_error is None:
            return self.start
        return self.start.model_copy(update={"on_error": self.retry_on_error})

    @property
    def is_counting(self) -> bool:
        """Whether the events are to be counted beside the gate or the shards, and are not yet."""
        return (
            self.plan is not None
            and self.plan.counted == "running"
            and self.state in {"waiting", "running"}
            and not self.finishing
        )

    @property
    def timed_shards(self) -> tuple[Shard, ...]:
        """The shards of the events that have a time. No other shard publishes a record."""
        plans = self.plan.shards if self.plan else ()
        pairs = zip(self.shards, plans, strict=False)
        return tuple(shard for shard, plan in pairs if not plan.is_untimed)

    @property
    def has_outrun_count(self) -> bool:
        """Whether every event with a time is read, and the events are not counted yet."""
        return self.is_counting and all(
            shard.progress.state == "done" or self.awaits_count(number)
            for number, shard in enumerate(self.shards)
        )

    def awaits_count(self, shard: int) -> bool:
        """Whether a shard does not begin before the count is there, or is not needed any more.

        The shard of the events without a usable time is empty almost always, and no index finds
        such events. The count says whether there are any.
        """
        return self.is_counting and self.plan is not None and self.plan.shards[shard].is_untimed

    @property
    def is_gated(self) -> bool:
        """Whether a gate stands between the plan and the first event."""
        return bool(self.start.after or self.start.control_records)

    @property
    def orders(self) -> tuple[Any, ...]:
        """Fields whose change wakes workers at once."""
        return (
            self.state,
            self.epoch,
            self.rate,
            self.finishing,
            self.is_counting,
            self.released,
            self.is_consumed,
            self.hold is not None,
        )


def fit_record(session: Session, max_bytes: int = MAX_INTERNAL_BYTES) -> tuple[Session, bytes]:
    """Return the session and its encoded record, made smaller until a record can hold it.

    A record has at most ``max_bytes``. A session whose lists were shortened has a warning. A
    session that is too large even without its lists has failed; its record may still be too large.
    """
    record = session.encode()
    for make_smaller in (_shorten_course, _shorten, _strip, lambda s: _fail_for_size(s, max_bytes)):
        if len(record) <= max_bytes:
            break
        session = make_smaller(session)
        record = session.encode()
    return session, record


def _shorten_course(session: Session) -> Session:
    """Return the session with a short history and no series: nothing depends on them."""
    history = few_changes(session.history)
    dropped = session.history_dropped + len(session.history) - len(history)
    update = {"history": history, "history_dropped": dropped, "series": None}
    return session.model_copy(update=update)


def _shorten(session: Session, names: int = SHORT_LIST) -> Session:
    """Return the session with short lists, and with a warning."""

    def shorten(counted: _Counted, names: int = names) -> _Counted:
        lists = {"by_type": counted.by_type, "by_topic": counted.by_topic}
        return counted.model_copy(
            update={name: most_common(counts, names) for name, counts in lists.items()}
        )

    warning = "too many types, topics and partitions to list them all: the lists are shortened"
    no_lists: dict[str, Any] = {"topic_ids": {}, "live_ids": {}, "handover": {}}
    return session.model_copy(
        update={
            "plan": session.plan and shorten(session.plan).model_copy(update=no_lists),
            "shards": tuple(
                shard.model_copy(
                    update={"progress": shorten(shard.progress, names // len(session.shards))}
                )
                for shard in session.shards
            ),
            "offsets": {},
            "receipt": session.receipt
            and shorten(session.receipt).model_copy(update={"offsets": {}, "handover": {}}),
            "warnings": (*(w for w in session.warnings if w != warning), warning),
        }
    )


def _strip(session: Session) -> Session:
    """Return the session without lists, except for the shards."""
    session = _shorten(session, names=0)
    shards = tuple(
        shard.model_copy(update={"progress": shard.progress.model_copy(update={"failures": ()})})
        for shard in session.shards
    )
    no_failures = {"failures": ()}
    return session.model_copy(
        update={
            # The partitions stay: the control records are written by them.
            "plan": session.plan and session.plan.model_copy(update={"warnings": ()}),
            "shards": shards,
            "receipt": session.receipt and session.receipt.model_copy(update=no_failures),
            "warnings": session.warnings[-1:],  # of the shortened lists
            "error": session.error and session.error[:MAX_TEXT],
            "reason": session.reason and session.reason[:MAX_TEXT],
        }
    )


def _fail_for_size(session: Session, max_bytes: int) -> Session:
    """Return the session as failed. Without its shards, if no shard has begun."""
    failed: dict[str, Any] = {
        "state": "failed",
        "error": f"the session is larger than the {max_bytes:,} bytes of a record: start "
        "again under a new id, with fewer ids in the filter, or fewer shards",
        "reason": None,
        "finishing": False,
        "ended_at": session.updated_at,
    }
    if all(shard.epoch == 0 for shard in session.shards):
        failed |= {"plan": None, "shards": ()}
    return session.model_copy(update=failed)


def decode_session(value: bytes | None) -> Session | None:
    """Return the session of a row or a status record; None for a tombstone.

    Raises
    ------
    ValueError
        When the value is not a session, or is one that cannot be shown: the sums of its counters
        may be too large, for example.

    """
    if value is None:
        return None
    session = Session.model_validate_json(value)
    for name in Session.model_computed_fields:  # all that an answer adds to the record
        getattr(session, name)
    return session


def make_receipt(session: Session, now: datetime, finish: Report | None = None) -> Receipt:
    """Return the sums over the shards, and what the finish step has found."""
    by_type: Counter[str] = Counter()
    by_topic: Counter[str] = Counter()
    for shard in session.shards:
        by_type.update(shard.progress.by_type)
        by_topic.update(shard.progress.by_topic)
    return Receipt(
        counters=session.counters,
        by_type=dict(by_type),
        by_topic=dict(by_topic),
        bytes=sum(shard.progress.bytes for shard in session.shards),
        dropped=sum(shard.progress.dropped for shard in session.shards),
        parked=sum(shard.progress.parked for shard in session.shards),
        offsets=session.offsets,
        failures=tuple(f for shard in session.shards for f in shard.progress.failures),
        seconds=(now - session.created_at).total_seconds(),
        visible=finish is not None and finish.visible_at is not None,
        visible_at=finish and finish.visible_at,
        behind=finish and finish.behind,
        handover=session.handover,
        handover_time=session.plan and session.plan.handover_time,
    )


def merge_offsets(known: Offsets, more: Offsets) -> Offsets:
    """Return the ranges of ``known``, widened by the ranges of ``more``."""
    merged = {topic: dict(partitions) for topic, partitions in known.items()}
    for topic, partitions in more.items():
        into = merged.setdefault(topic, {})
        for partition, (first, last) in partitions.items():
            low, high = into.get(partition, (first, last))
            into[partition] = (min(low, first), max(high, last))
    return bound_offsets(merged)
