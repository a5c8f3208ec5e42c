"""Tokens, checkpoints, and the rule that decides between them (design section 6).

A **token** on ``replay.work`` asks for one slice of one shard. A **checkpoint**, written in the
slice's own transaction, says how far the shard is. Kafka may deliver a token again, and a repair
may send one twice; `judge` compares the two, so that each slice is committed exactly once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from replay_app.progress import Progress, ShardId

TokenKind = Literal["plan", "gate", "emit", "stop", "finish", "forget", "noop"]


class Origin(NamedTuple):
    """Where a token first stood on ``replay.work``: its identity, kept by requeued copies."""

    partition: int
    offset: int


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def encode(self) -> bytes:
        """Return the record's value on Kafka."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Token(_Record):
    """The permission to run one slice."""

    replay_id: str = ""
    shard: ShardId = 0
    epoch: int = 0
    """The chain it belongs to; each resume, retry, stop and repair starts a higher one."""
    slice: int = 1
    """Counts from 1 within an epoch."""
    kind: TokenKind = "noop"
    outcome: Literal["end", "cancelled"] = "end"
    """What a ``finish`` tells the consumers."""
    origin: Origin | None = None
    """Set on a requeued copy only."""
    requeues: int = 0
    """How often it was put back since its slice last did something."""

    @property
    def key(self) -> str:
        """The record's key; also the key of its checkpoint."""
        return f"{self.replay_id}/{self.shard}"

    def next(self) -> Token:
        """Return the continuation: the token of the following slice."""
        return self.model_copy(update={"slice": self.slice + 1, "origin": None, "requeues": 0})


class Checkpoint(_Record):
    """How far a shard is: everything that the next slice, on any worker, needs."""

    token: Token
    """The token whose slice wrote this."""
    src: Origin
    """That token's origin."""
    cursor: str | None = None
    """The sort values of the last event read, as extended JSON; none: nothing read yet."""
    due_at: float = 0.0
    """Seconds since the epoch before which a throttled shard publishes nothing more."""
    report: Progress
    """What the slice told the sessions agent; sent again when in doubt."""

    @property
    def continuation(self) -> Token | None:
        """The token that must exist as long as this checkpoint is its shard's newest."""
        return self.token.next() if self.report.is_live else None


class Verdict(StrEnum):
    """What to do with a token."""

    RUN = "run"
    """Its slice was not done yet: run it from the checkpoint's cursor."""
    RESEND = "resend"
    """This very record was done, but its progress or continuation may be lost: send them again."""
    DROP = "drop"
    """It belongs to an older epoch, or to a second chain of the same epoch."""


def judge(token: Token, origin: Origin, checkpoint: Checkpoint | None) -> Verdict:
    """Decide on a token that stood at ``origin`` first, against its shard's checkpoint."""
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
    """Return the token of a work record; None for one that is none (it is then ignored)."""
    try:
        return Token.model_validate_json(value or b"")
    except ValueError:
        return None


def decode_checkpoint(value: bytes | None) -> Checkpoint | None:
    """Return the checkpoint of a record; None for a tombstone."""
    return None if value is None else Checkpoint.model_validate_json(value)
