"""Tokens, checkpoints, and the rule that compares them (docs/protocol.md, "The rule").

A **token** on ``replay.work`` asks for one slice of one shard. A **checkpoint**, written in the
slice's transaction, says how far the shard is. Kafka may deliver a token again, and a repair may
send a token twice. `judge` compares token and checkpoint, so that each slice is committed once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError

from replay_app.records import Count, Record
from replay_app.reports import MAX_ERROR, Report, ShardId, ShardProgress, shorten

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

TOKEN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}/(\d{1,3}|plan|count|gate|finish)")
MAX_SHOWN_KEY = 200
"""Characters of a stranger's key that a message shows."""
TokenKind = Literal["plan", "count", "gate", "emit", "stop", "finish", "forget", "noop"]
STEPS = frozenset({"plan", "count", "gate", "finish"})
"""The kinds of the tokens of steps that a replay has once."""


class Origin(NamedTuple):
    """Where a token first stood on ``replay.work``: the identity of the token and its copies."""

    partition: Count
    offset: Count


class Token(Record):
    """The order to run one slice."""

    replay_id: str = ""
    shard: ShardId = 0
    epoch: Count = 0
    """Number of the chain of tokens. Each resume, retry, stop and repair starts a higher epoch."""
    slice: Count = 1
    """Counts from 1 within an epoch."""
    kind: TokenKind = "noop"
    outcome: Literal["end", "cancelled"] = "end"
    """What the control records of a ``finish`` step say."""
    origin: Origin | None = None
    """Only on a requeued copy."""
    requeues: Count = 0
    """How often the token was requeued because its session was unknown."""

    @property
    def key(self) -> str:
        """The record's key on Kafka, and the key of the shard's checkpoint."""
        return f"{self.replay_id}/{self.shard}"

    def next(self) -> Token:
        """Return the continuation: the token of the next slice."""
        return self.model_copy(update={"slice": self.slice + 1, "origin": None, "requeues": 0})


class Checkpoint(Record):
    """How far a shard is: all that the next slice needs, on any worker."""

    token: Token
    """The token of the slice that wrote this checkpoint."""
    src: Origin
    """The origin of ``token``."""
    cursor: str | None = None
    """Sort values of the last event read, as extended JSON. None if no event was read yet."""
    due_at: float = 0.0
    """Seconds since 1970. A throttled shard publishes nothing before this time."""
    paced_at: float = 0.0
    """Seconds since 1970. With ``speed``: when the last event read was due."""
    event_due_at: float = 0.0
    """Likewise: when the next event is due, or was due."""
    parked: dict[str, str] = Field(default_factory=dict)
    """With ``on_error`` "park": by aggregate id, the id of the event that has failed."""
    lost_markers: dict[str, dict[Count, Count]] = Field(default_factory=dict)
    """Of a finish step, by topic and partition: the first offset of a committed slice that had no
    marker there when the step looked."""
    report: Report
    """The slice's report. A worker sends it again if the first copy may be lost."""

    @classmethod
    def of_step(cls, token: Token, origin: Origin, state: Any = "live", **report: Any) -> Self:
        """Return the checkpoint of a plan, count, gate or finish step."""
        return cls(
            token=token,
            src=origin,
            report=Report(
                replay_id=token.replay_id,
                kind=token.kind,
                epoch=token.epoch,
                slice=token.slice,
                shard=token.shard,
                state=state,
                **report,
            ),
        )

    @classmethod
    def of_shard(  # noqa: PLR0913 - what a checkpoint of a shard consists of
        cls,
        token: Token,
        origin: Origin,
        old: Checkpoint | None,
        progress: ShardProgress,
        *,
        reason: str | None = None,
        warnings: tuple[str, ...] = (),
        **update: Any,
    ) -> Self:
        """Return the next checkpoint of a shard.

        ``reason`` and ``warnings`` are those of the report. The place, the due times and what is
        parked stay as in the old checkpoint, unless ``update`` has them.
        """
        kept = ("cursor", "due_at", "paced_at", "event_due_at", "parked")
        place = {name: getattr(old, name) for name in kept} if old else {}
        report = Report(
            replay_id=token.replay_id,
            kind="shard",
            epoch=token.epoch,
            slice=token.slice,
            shard=token.shard,
            progress=progress,
            reason=reason,
            warnings=warnings,
        )
        return cls(token=token, src=origin, report=report, **(place | update))

    @classmethod
    def of_failure(cls, token: Token, origin: Origin, old: Checkpoint | None, error: str) -> Self:
        """Return the checkpoint of a step or shard that failed before it did anything."""
        error = shorten(error, MAX_ERROR)
        if token.kind in STEPS:
            return cls.of_step(token, origin, "failed", error=error)
        failed = {"state": "failed", "error": error, "reason": None}
        return cls.of_shard(token, origin, old, progress_of(old).model_copy(update=failed))

    @classmethod
    def of_waiting(cls, token: Token, origin: Origin, old: Checkpoint | None, reason: str) -> Self:
        """Return the checkpoint of a step or shard that did nothing and waits."""
        if token.kind in STEPS:
            return cls.of_step(token, origin, reason=reason)
        waiting = {"state": "live", "reason": reason}
        return cls.of_shard(token, origin, old, progress_of(old).model_copy(update=waiting))

    @property
    def continuation(self) -> Token | None:
        """The token of the next slice. None if the shard is done, stopped or failed.

        This token must exist as long as the checkpoint is the newest of its shard.
        """
        return self.token.next() if self.report.is_live else None


def progress_of(checkpoint: Checkpoint | None) -> ShardProgress:
    """Return a shard's progress; the progress of a new shard if there is no checkpoint."""
    return (checkpoint and checkpoint.report.progress) or ShardProgress()


def lost_progress(checkpoint: Checkpoint | None, heard: ShardProgress) -> str | None:
    """Return why a shard cannot go on from its checkpoint; None if it can.

    ``heard`` is what the session knows of the shard. The session hears of committed slices only: if
    it knows of more than the newest checkpoint, later checkpoints are lost. To go on would publish
    events again.
    """
    known = progress_of(checkpoint).counters.read
    if heard.counters.read <= known:
        return None
    return (
        f"its checkpoints are lost: {heard.counters.read:,} events of the shard were read, and the "
        f"newest checkpoint knows of {known:,}. To go on would publish events again. If "
        "REPLAY_TARGET_KAFKA was changed, set it back, then retry. If the topic of the checkpoints "
        "was deleted, or has lost records: cancel the replay, and start a new one"
    )


class Verdict(StrEnum):
    """What to do with a token."""

    RUN = "run"
    """The slice is not committed yet: run it from the checkpoint's cursor."""
    RESEND = "resend"
    """This very token's slice is committed. Send its report and its continuation again: they may
    be lost."""
    DROP = "drop"
    """The token belongs to an older epoch, or to a second chain of the same epoch."""


def judge(token: Token, origin: Origin, checkpoint: Checkpoint | None) -> Verdict:
    """Decide what to do with a token, by the newest checkpoint of its shard (None: no checkpoint).

    ``origin`` is where the token first stood on ``replay.work``.
    """
    if checkpoint is None:
        return Verdict.RUN
    done = checkpoint.token
    if token.epoch != done.epoch:
        return Verdict.RUN if token.epoch > done.epoch else Verdict.DROP
    if token.slice > done.slice:
        return Verdict.RUN
    if token.slice == done.slice and origin == checkpoint.src:
        return Verdict.RESEND
    return Verdict.DROP


def decode_token(value: bytes | None) -> Token | None:
    """Return the token in a record's value; None if the value is not a token."""
    try:
        return Token.model_validate_json(value or b"")
    except ValueError:
        return None


def decode_checkpoint(value: bytes | None) -> Checkpoint | None:
    """Return the checkpoint in a record's value; None for a tombstone.

    Raises
    ------
    pydantic.ValidationError
        When the value is not a checkpoint.

    """
    return None if value is None else Checkpoint.model_validate_json(value)


@dataclass
class Checkpoints:
    """The newest checkpoint of each shard of one partition of ``replay.checkpoints``."""

    newest: dict[str, Checkpoint] = field(default_factory=dict)
    """By token key."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """By token key: why the newest checkpoint cannot be read. To go on from an older one, or from
    the start, would publish events again."""

    def add(self, record: ConsumerRecord) -> None:
        """Add one record, in the order of the topic. A newer record of a key replaces an older one.

        Raises
        ------
        ValueError
            When the record's key is not the key of a token. The record is no checkpoint.

        """
        key = (record.key or b"").decode(errors="replace")
        if not TOKEN_KEY.fullmatch(key):
            msg = f"the key {key[:MAX_SHOWN_KEY]!r} is not the key of a checkpoint"
            raise ValueError(msg)
        self.remove(key)
        try:
            checkpoint = decode_checkpoint(record.value)
            if checkpoint is not None and checkpoint.token.key != key:
                msg = f"the value belongs to {checkpoint.token.key[:MAX_SHOWN_KEY]!r}"
                raise ValueError(msg)  # noqa: TRY301 - as unreadable as a value that is no JSON
        except ValueError as error:
            place = f"{record.topic} {record.partition}:{record.offset}"
            self.unreadable[key] = (
                f"the checkpoint {key!r} ({place}) cannot be read: {_first_line(error)}. If a "
                "newer version wrote the checkpoint, run that version and retry; in any other case "
                "cancel the replay and start a new one"
            )
        else:
            if checkpoint is not None:
                self.newest[key] = checkpoint

    def remove(self, key: str) -> None:
        """Remove what is known of a shard."""
        self.newest.pop(key, None)
        self.unreadable.pop(key, None)


def _first_line(error: ValueError) -> str:
    """Return what is wrong with the first member, without the value itself."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        return f"{where[:MAX_SHOWN_KEY]}: {first['msg'][:MAX_SHOWN_KEY]}"
    return str(error)
