"""When a replay says that its producer fails, and when the replay fails for it."""

from __future__ import annotations

import pytest

from replay_app.broker_errors import Refused, TopicGone
from replay_app.checkpoints import Token
from replay_app.faults import PASSING_SECONDS, Faults

PASSING = Refused(19, "orders", "too few replicas")


def token(epoch: int = 1, kind: str = "emit") -> Token:
    return Token.model_validate({"replay_id": "r", "shard": 0, "epoch": epoch, "kind": kind})


def judged(faults: Faults, now: float, one: Token | None = None, attempt: int = 1) -> str:
    return faults.judge(one or token(), attempt, now)[0]


def test_without_a_failure_a_token_runs() -> None:
    assert Faults().judge(token(), 1, 0.0) == ("run", "")


def test_a_topic_that_is_gone_fails_the_replay_at_once() -> None:
    faults = Faults()
    faults.note(token(), 1, TopicGone("orders"), 0.0)
    verdict, error = faults.judge(token(), 1, 0.0)
    assert verdict == "fail"
    assert error.startswith("topic 'orders' is gone")


def test_a_stop_is_tried_again_and_its_error_is_known_after_the_second_time() -> None:
    faults, stop = Faults(), token(kind="stop")
    assert faults.error(stop, 1) is None
    faults.note(stop, 1, PASSING, 0.0)
    assert faults.error(stop, 1) is None
    faults.note(stop, 1, PASSING, 1.0)
    assert faults.error(stop, 1) == "NOT_ENOUGH_REPLICAS (too few replicas)"
    assert faults.error(stop, 2) is None
    assert judged(faults, PASSING_SECONDS + 1.0, stop) == "run"


def test_a_topic_of_the_program_itself_that_is_gone_fails_no_replay() -> None:
    faults = Faults(["replay.checkpoints"])
    for _ in range(2):
        faults.note(token(), 1, TopicGone("replay.checkpoints"), 0.0)
    verdict, reason = faults.judge(token(), 1, 0.0)
    assert verdict == "tell"
    assert reason == "the broker fails, trying again: topic 'replay.checkpoints' is gone"


@pytest.mark.parametrize(("epoch", "attempt"), [(2, 1), (2, 2)], ids=["resumed", "retried"])
def test_after_a_resume_or_a_retry_the_topic_may_be_there_again(epoch: int, attempt: int) -> None:
    faults = Faults()
    faults.note(token(), 1, TopicGone("orders"), 0.0)
    assert judged(faults, 1.0, token(epoch), attempt) == "run"


def test_a_passing_failure_is_tried_again_then_told_then_fails_the_replay() -> None:
    faults = Faults()
    faults.note(token(), 1, PASSING, 0.0)
    assert judged(faults, 1.0) == "run"
    faults.note(token(), 1, PASSING, 30.0)
    assert faults.judge(token(), 1, 31.0) == (
        "tell",
        "the broker fails, trying again: NOT_ENOUGH_REPLICAS (too few replicas)",
    )
    faults.told(token())
    assert judged(faults, 32.0) == "run"  # between two reasons is a real try
    faults.note(token(), 1, PASSING, 60.0)
    assert judged(faults, 61.0) == "tell"
    verdict, error = faults.judge(token(), 1, PASSING_SECONDS)
    assert verdict == "fail"
    assert "failed for 300 s: NOT_ENOUGH_REPLICAS (too few replicas); mend it, then retry" in error


def test_a_repair_does_not_make_the_time_begin_anew() -> None:
    faults = Faults()
    faults.note(token(1), 1, PASSING, 0.0)
    faults.note(token(2), 1, PASSING, 200.0)
    assert judged(faults, PASSING_SECONDS, token(3)) == "fail"


def test_a_retry_makes_the_time_begin_anew() -> None:
    faults = Faults()
    faults.note(token(1), 1, PASSING, 0.0)
    faults.note(token(2), 2, PASSING, 290.0)
    assert judged(faults, PASSING_SECONDS, token(2), attempt=2) == "run"


def test_a_committed_slice_clears_the_failures() -> None:
    faults = Faults()
    faults.note(token(), 1, PASSING, 0.0)
    faults.clear(token())
    faults.note(token(), 1, PASSING, 290.0)
    assert judged(faults, PASSING_SECONDS) == "run"


def test_a_stop_is_always_tried() -> None:
    faults = Faults()
    faults.note(token(kind="stop"), 1, TopicGone("orders"), 0.0)
    assert judged(faults, PASSING_SECONDS, token(kind="stop")) == "run"
