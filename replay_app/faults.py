"""The failures of producers, and when a replay fails for them.

A failed producer is discarded, and its token is put back. `Faults` remembers why, so that the next
run of the token can say so: as the reason for which the replay waits, or, in the end, as the error
with which the replay fails. This is in memory only: a worker that takes the partition over begins
to count anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from replay_app.broker_errors import TopicGone, explain, explain_topic

if TYPE_CHECKING:
    from collections.abc import Collection

    from replay_app.checkpoints import Token

PASSING_SECONDS = 300.0
"""How long one step or shard may fail, while its partition can be opened again. Then the replay
fails. An election of leaders, or a broker that starts again, takes less time."""
TRIES_BEFORE_REASON = 2
"""Failures in a row before the replay shows a reason. A single one is part of each takeover."""


@dataclass
class Fault:
    """Why a token could not be run."""

    epoch: int
    """Of the token that failed."""
    attempt: int
    """Of the replay: a retry counts anew."""
    since: float
    """Monotonic seconds of the first failure in a row."""
    times: int
    error: str
    is_final: bool
    """Whether another run of the same epoch is useless."""
    is_told: bool = False
    """Whether the replay shows the present error as its reason."""


Verdict = Literal["run", "tell", "fail"]


class Faults:
    """The failures of one partition's producer, by the keys of the tokens."""

    def __init__(self, own_topics: Collection[str] = ()) -> None:
        self._own_topics = own_topics
        """Topics of this program. A worker that has lost one starts over, and creates the topic
        again: the replay need not fail."""
        self._faults: dict[str, Fault] = {}

    def note(self, token: Token, attempt: int, error: BaseException, now: float) -> None:
        """Remember why a token could not be run."""
        old = self._of(token, attempt)
        gone = None
        if isinstance(error, TopicGone) and error.topic not in self._own_topics:
            gone = explain_topic(error)
        self._faults[token.key] = Fault(
            epoch=token.epoch,
            attempt=attempt,
            since=old.since if old else now,
            times=old.times + 1 if old else 1,
            error=gone or explain(error),
            is_final=gone is not None,
        )

    def judge(self, token: Token, attempt: int, now: float) -> tuple[Verdict, str]:
        """Return what to do with a token, and the reason, or the error, to say."""
        fault = self._of(token, attempt)
        if fault is None or token.kind == "stop":
            return "run", ""
        if fault.is_final and fault.epoch == token.epoch:
            return "fail", fault.error
        if now - fault.since >= PASSING_SECONDS:
            seconds = f"{now - fault.since:.0f} s"
            return (
                "fail",
                f"the broker has failed for {seconds}: {fault.error}; mend it, then retry",
            )
        if fault.times >= TRIES_BEFORE_REASON and not fault.is_told:
            return "tell", f"the broker fails, trying again: {fault.error}"
        return "run", ""

    def error(self, token: Token, attempt: int) -> str | None:
        """Return why a token cannot be run, if it failed TRIES_BEFORE_REASON times in a row."""
        fault = self._of(token, attempt)
        return fault.error if fault is not None and fault.times >= TRIES_BEFORE_REASON else None

    def told(self, token: Token) -> None:
        """Note that the replay shows the reason: the next run is a real one."""
        fault = self._faults.get(token.key)
        if fault is not None:
            fault.is_told = True

    def clear(self, token: Token) -> None:
        """Forget the failures: the token's work is committed."""
        self._faults.pop(token.key, None)

    def _of(self, token: Token, attempt: int) -> Fault | None:
        fault = self._faults.get(token.key)
        return fault if fault is not None and fault.attempt == attempt else None
