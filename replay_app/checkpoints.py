"""Tokens, checkpoints, and the rule that compares them (docs/protocol.md, "The rule").

A **token** on ``replay.work`` asks for one slice of one shard. A **checkpoint**, written in the
slice's transaction, says how far the shard is. Kafka may deliver a token again, and a repair may
send a token twice. `judge` compares token and checkpoint, so that each slice is committed once.
"""

from __future__ import annotations

import logging
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from replay_app.exceptions import ReplayFailed
from replay_app.reports import Report, ShardId, ShardProgress

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

logger = logging.getLogger(__name__)

CHECKPOINT_KEY = re.compile(r"[^/]+/(\d+|plan|gate|finish)")
TokenKind = Literal["plan", "gate", "emit", "stop", "finish", "forget", "noop"]


class Origin(NamedTuple):
    """Where a token first stood on ``replay.work``: the identity of the token and its copies."""

    partition: int
    offset: int


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def encode(self) -> bytes:
        """Return the record's value on Kafka."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Token(_Record):
    """The order to run one slice."""

    replay_id: str = ""
    shard: ShardId = 0
    epoch: int = 0
    """Number of the chain of tokens. Each resume, retry, stop and repair starts a higher epoch."""
    slice: int = 1
    """Counts from 1 within an epoch."""
    kind: TokenKind = "noop"
    outcome: Literal["end", "cancelled"] = "end"
    """What the control records of a ``finish`` step say."""
    origin: Origin | None = None
    """Only on a requeued copy."""
    requeues: int = 0
    """How often the token was requeued because its session was unknown."""

    @property
    def key(self) -> str:
        """The record's key on Kafka, and the key of the shard's checkpoint."""
        return f"{self.replay_id}/{self.shard}"

    def next(self) -> Token:
        """Return the continuation: the token of the next slice."""
        return self.model_copy(update={"slice": self.slice + 1, "origin": None, "requeues": 0})


class Checkpoint(_Record):
    """How far a shard is: all that the next slice needs, on any worker."""

    token: Token
    """The token of the slice that wrote this checkpoint."""
    src: Origin
    """The origin of ``token``."""
    cursor: str | None = None
    """Sort values of the last event read, as extended JSON. None if no event was read yet."""
    due_at: float = 0.0
    """Seconds since 1970. A throttled shard publishes nothing before this time."""
    report: Report
    """The slice's report. A worker sends it again if the first copy may be lost."""

    @classmethod
    def of_step(cls, token: Token, origin: Origin, state: Any = "live", **report: Any) -> Self:
        """Return the checkpoint of a plan, gate or finish step."""
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
    def of_shard(
        cls,
        token: Token,
        origin: Origin,
        old: Checkpoint | None,
        progress: ShardProgress,
        **update: Any,
    ) -> Self:
        """Return the next checkpoint of a shard.

        ``cursor`` and ``due_at`` stay as in the old checkpoint, unless ``update`` has them.
        """
        place = {"cursor": old.cursor, "due_at": old.due_at} if old else {}
        report = Report(
            replay_id=token.replay_id,
            kind="shard",
            epoch=token.epoch,
            slice=token.slice,
            shard=token.shard,
            progress=progress,
        )
        return cls(token=token, src=origin, report=report, **(place | update))

    @classmethod
    def of_failure(cls, token: Token, origin: Origin, old: Checkpoint | None, error: str) -> Self:
        """Return the checkpoint of a step or shard that failed before it did anything."""
        if token.kind in {"plan", "gate", "finish"}:
            return cls.of_step(token, origin, "failed", error=error)
        failed = {"state": "failed", "error": error, "reason": None}
        return cls.of_shard(token, origin, old, progress_of(old).model_copy(update=failed))

    @classmethod
    def of_waiting(cls, token: Token, origin: Origin, old: Checkpoint | None, reason: str) -> Self:
        """Return the checkpoint of a step or shard that did nothing and waits."""
        if token.kind in {"plan", "gate", "finish"}:
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


def add_checkpoint(found: dict[str, Checkpoint], record: ConsumerRecord) -> None:
    """Add a record of ``replay.checkpoints`` to the newest checkpoint of each key.

    Raises
    ------
    ReplayFailed
        When a shard's checkpoint cannot be read.

    """
    key = (record.key or b"").decode(errors="replace")
    try:
        checkpoint = decode_checkpoint(record.value)
    except ValidationError as error:
        if CHECKPOINT_KEY.fullmatch(key):
            # Perhaps of another version. To go on from an older checkpoint would publish twice.
            msg = (
                f"the checkpoint {key!r} ({record.topic} {record.partition}:{record.offset}) "
                "cannot be read: was it written by a newer version? Run that version"
            )
            raise ReplayFailed(msg) from error
        logger.exception(
            "%s %d:%d, the record %r, is not a checkpoint and is ignored",
            record.topic,
            record.partition,
            record.offset,
            key,
        )
        return
    if checkpoint is None:
        found.pop(key, None)
    else:
        found[key] = checkpoint
