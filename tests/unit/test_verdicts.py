"""What a comparison means: the receipt decides between a fault and a change in the store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from replay_app.commands import Start
from replay_app.comparison import MAX_LISTED, Comparison, Difference, Expected, Found
from replay_app.reports import Counters, Plan, ShardPlan, ShardProgress
from replay_app.sessions import Receipt, Session, Shard
from replay_app.verdicts import FAULTS, STORE_CHANGES, Evidence, Verdict, judge, unverifiable

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SIZE = 2
"""Bytes of each value."""


def session_of(published: int, failed: int = 0, **start: Any) -> Session:
    counters = Counters(read=published + failed, published=published, skipped=failed)
    timed = ShardPlan(match={}, sort=("timestamp", "_id"))
    plan = Plan(end=NOW, matched=published, shards=(timed, ShardPlan(match={}, sort=("_id",))))
    times = dict.fromkeys(("created_at", "updated_at", "progressed_at", "heard_at"), NOW)
    receipt = Receipt(
        counters=counters,
        by_type={},
        by_topic={},
        bytes=published * SIZE,
        offsets={},
        failures=(),
        seconds=1.0,
    )
    shards = (
        Shard(progress=ShardProgress(counters=counters, failed=failed)),
        Shard(progress=ShardProgress(failed=70)),  # of events without a time
    )
    return Session(
        replay_id="r",
        state="completed",
        start=Start(replay_id="r", **start),
        plan=plan,
        receipt=receipt,
        shards=shards,
        **times,
    )


def verdict_of(
    stored: Mapping[int, bytes],
    records: Mapping[int, bytes] | list[int],
    *,
    published: int = 5,
    failed: int = 0,
    evidence: Evidence | None = None,
    **start: Any,
) -> Verdict:
    """Judge the values of stored events, by number, and those of records, in their order."""
    values = records if isinstance(records, Mapping) else dict.fromkeys(records, b"vv")
    comparison = Comparison([("a", 0)])
    comparison.expect([Expected(b"r:%d" % n, 0, n, 0, b"k", v, b"t") for n, v in stored.items()])
    comparison.take(
        [
            Found(b"r:%d" % n, 0, at, b"k", values[n], b"t")
            for at, n in enumerate(records if isinstance(records, list) else values)
        ]
    )
    session = session_of(published, failed, **start)
    return judge(session, comparison, evidence or Evidence(), NOW, 2.0)


def counts(verdict: Verdict) -> dict[str, int]:
    """Return the counts that are not 0."""
    names = (*FAULTS, *STORE_CHANGES, "left_out")
    found = {name: getattr(verdict.verification, name) for name in names}
    return {name: count for name, count in found.items() if count}


def events(*numbers: int, **changed: bytes) -> dict[int, bytes]:
    return {number: changed.get(f"e{number}", b"vv") for number in numbers}


def inside(*numbers: int) -> Evidence:
    return Evidence(presence={b"r:%d" % number: "inside" for number in numbers})


@pytest.mark.parametrize(
    ("stored", "records", "evidence", "found", "verdict"),
    [
        (events(*range(5)), [0, 1, 2, 3, 4], None, {}, "equal"),
        # The receipt counts five records, and four are there.
        (events(*range(5)), [0, 1, 3, 4], None, {"missing": 1}, "different"),
        (events(*range(5)), [], None, {"missing": 5}, "different"),
        # ... and whether the event is still in the store does not matter.
        (events(*range(4)), [0, 1, 2, 3], None, {"missing": 1}, "different"),
        # All five records are there: an event without one came later.
        (events(*range(6)), [0, 1, 2, 3, 4], None, {"added": 1}, "store-changed"),
        (events(*range(4)), [0, 1, 2, 3, 4], None, {"deleted": 1}, "store-changed"),
        (
            events(*range(4)),
            [0, 1, 2, 3, 4],
            Evidence(presence={b"r:4": "outside"}),
            {"changed": 1},
            "store-changed",
        ),
        (events(*range(5), e3=b"ww"), [0, 1, 2, 3, 4], None, {"changed": 1}, "store-changed"),
        # As many records as counted, but not as many bytes: the record is another one.
        (
            events(*range(5)),
            {0: b"vv", 1: b"vv", 2: b"x", 3: b"vv", 4: b"vv"},
            None,
            {"differing": 1},
            "different",
        ),
        # A record more than counted.
        (events(*range(5)), [0, 1, 2, 3, 4, 9], None, {"unknown": 1}, "different"),
        (events(*range(5)), [0, 1, 2, 3, 4, 4], inside(4), {"repeated": 1}, "different"),
        # One lost and one twice: as many as counted.
        (events(*range(5)), [0, 1, 2, 4, 4], inside(4), {"missing": 1, "repeated": 1}, "different"),
        (events(*range(5)), [0, 1, 3, 2, 4], None, {"unordered": 1}, "different"),
        # A fault and a change.
        (events(*range(6)), [0, 1, 2, 3], None, {"missing": 1, "added": 1}, "different"),
        (
            events(0, 1, 2, 3),
            [0, 1, 2, 3, 4, 9],
            None,
            {"unknown": 1, "deleted": 1},
            "different",
        ),
    ],
)
def test_the_receipt_tells_a_fault_from_a_change_in_the_store(
    stored: dict[int, bytes],
    records: dict[int, bytes] | list[int],
    evidence: Evidence | None,
    found: dict[str, int],
    verdict: str,
) -> None:
    judged = verdict_of(stored, records, evidence=evidence)
    assert counts(judged) == found
    assert judged.verification.verdict == verdict
    assert judged.holds is (verdict == "equal")
    assert bool(judged.differences) is any(
        name in found and not (name == "missing" and len(stored) < 5) for name in found
    )
    failed = [claim for claim, (holds, _) in judged.claims.items() if not holds]
    assert bool(failed) is (verdict != "equal")


def test_each_difference_is_listed_with_its_kind_the_faults_first() -> None:
    evidence = Evidence(
        presence={b"r:4": "inside", b"r:8": "outside"},
        unmarked=(Difference("unmarked", "1", "a", 0, 1),),
        unmarked_count=1,
    )
    judged = verdict_of(events(*range(7)), [0, 1, 2, 3, 4, 4, 8], evidence=evidence)
    assert [(one.kind, one.event_id) for one in judged.differences] == [
        ("repeated", "4"),
        ("unknown", "8"),  # the receipt counts five records
        ("unmarked", "1"),
        ("added", "5"),
        ("added", "6"),
    ]
    assert counts(judged) == {"repeated": 1, "unknown": 1, "unmarked": 1, "added": 2}


def test_no_more_than_the_first_differences_are_listed_and_all_are_counted() -> None:
    judged = verdict_of(events(*range(500)), [], published=500)
    assert judged.verification.missing == 500
    assert len(judged.differences) == MAX_LISTED


def test_events_that_failed_in_the_replay_are_left_out_not_missing() -> None:
    judged = verdict_of(events(*range(7)), [0, 1, 2, 3, 4], failed=2)
    assert counts(judged) == {"left_out": 2}
    assert judged.verification.verdict == "equal"
    # One of the two does not become a record even now.
    judged = verdict_of(events(*range(7)), [0, 1, 2, 3, 4], failed=2, evidence=Evidence(failed=1))
    assert counts(judged) == {"left_out": 1, "added": 1}


def test_an_event_that_cannot_become_a_record_any_more_has_changed() -> None:
    evidence = Evidence(failed=1, failed_ids=frozenset({"4"}), presence={b"r:4": "inside"})
    judged = verdict_of(events(*range(4)), [0, 1, 2, 3, 4], evidence=evidence)
    assert counts(judged) == {"changed": 1}


def test_of_the_first_events_one_may_stand_behind_the_last_now() -> None:
    stored = events(0, 1, 10, 2, 3)  # 10 was stored since, and 4 is the sixth now
    judged = verdict_of(stored, [0, 1, 2, 3, 4], evidence=inside(4), max_events=5)
    assert counts(judged) == {"added": 1, "changed": 1}


@pytest.mark.parametrize(("value_tells", "kind"), [(True, "differing"), (False, "changed")])
def test_another_key_beside_the_same_value_is_no_change_in_the_store_if_the_value_would_show_it(
    value_tells: bool, kind: str
) -> None:
    comparison = Comparison([("a", 0)])
    comparison.expect([Expected(b"r:0", 0, 0, 0, b"k", b"vv", b"t")])
    comparison.take([Found(b"r:0", 0, 0, b"other", b"vv", b"t")])
    judged = judge(session_of(1), comparison, Evidence(value_tells=value_tells), NOW, 2.0)
    assert counts(judged) == {kind: 1}
    assert [one.kind for one in judged.differences] == [kind]


def test_why_nothing_can_be_compared_is_kept() -> None:
    verdict = unverifiable("x" * 5000, NOW)
    assert verdict.verification.verdict == "unverifiable"
    assert len(verdict.verification.reason or "") == 2000
    assert not verdict.holds
