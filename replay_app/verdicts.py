"""The verdict of a verification: what a comparison means for a replay. Pure code.

The receipt is the third witness. Where the topics hold as many records, and as many bytes, as the
receipt counts, nothing is lost or altered in the topics: what differs has changed in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from replay_app.commands import Verification
from replay_app.comparison import (
    MAX_LISTED,
    OTHER_VALUE,
    SAME_VALUE,
    Comparison,
    Difference,
    Expected,
    Found,
)
from replay_app.states import COMPLETED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from replay_app.sessions import Session

FAULTS = ("missing", "repeated", "unknown", "unordered", "misplaced", "unmarked", "differing")
"""Counts of a verification that must be 0."""
STORE_CHANGES = ("added", "deleted", "changed")
"""Counts of what has changed in the store since."""
Presence = Literal["inside", "outside", "gone"]
"""Whether the store has an event: within the replay's filter and range, elsewhere, or not."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read, beside the comparison itself."""

    failed: int = 0
    """Events of the store that cannot be encoded now."""
    failed_ids: frozenset[str] = frozenset()
    """The ids of the first of them."""
    unmarked: tuple[Difference, ...] = ()
    """The first records whose headers are not those of the replay."""
    unmarked_count: int = 0
    value_tells: bool = True
    """Whether the value shows each change of an event: it has the fields of key and time too."""
    presence: Mapping[bytes, Presence] = field(default_factory=dict)
    """By delivery id, of the first records without a stored counterpart."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `replay-app verify` says."""

    verification: Verification
    differences: tuple[Difference, ...] = ()
    """The first MAX_LISTED of all differences."""
    claims: Mapping[str, tuple[bool, str]] = field(default_factory=dict)
    """By claim: whether the claim holds, and the figures."""

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return self.verification.verdict == "equal"


def judge(
    session: Session, comparison: Comparison, evidence: Evidence, at: datetime, seconds: float
) -> Verdict:
    """Return what the comparison means.

    ``at`` is when the comparison began, ``seconds`` how long it took.
    """
    receipt = session.receipt
    published = receipt.counters.published if receipt else 0
    extras = _Extras.of(comparison, evidence, session, published)
    genuine = comparison.records - extras.repeated
    missing, unknown = max(0, published - genuine), max(0, genuine - published)
    absent = len(comparison.waiting) + comparison.lost_waiting
    failed_then = sum(shard.progress.failed for shard in session.timed_shards)
    left_out = min(max(0, absent - missing), max(0, failed_then - evidence.failed))
    is_as_counted = (
        receipt is not None
        and not (missing or unknown or extras.repeated)
        and comparison.bytes == receipt.bytes
    )
    altered = comparison.differing  # pairs for which no change in the store accounts
    if is_as_counted:
        altered = comparison.same_value if evidence.value_tells else 0
    changed_pairs = comparison.differing - altered
    counts: dict[str, Any] = {
        "missing": missing,
        "repeated": extras.repeated,
        "unknown": unknown,
        "unordered": comparison.unordered,
        "misplaced": comparison.misplaced,
        "unmarked": evidence.unmarked_count,
        "differing": altered,
        "added": max(0, absent - missing) - left_out,
        "deleted": max(0, extras.gone - unknown),
        "changed": changed_pairs + max(0, extras.outside - max(0, unknown - extras.gone)),
    }
    if any(counts[name] for name in FAULTS):
        verdict: Literal["different", "store-changed", "equal"] = "different"
    else:
        verdict = "store-changed" if any(counts[name] for name in STORE_CHANGES) else "equal"
    matched = comparison.expected - absent
    verification = Verification(
        verdict=verdict,
        at=at,
        seconds=round(seconds, 3),
        stored=comparison.expected,
        records=comparison.records,
        equal=max(0, matched - comparison.differing),
        left_out=left_out,
        **counts,
    )
    listed = _differences(comparison, evidence, verification, is_as_counted=is_as_counted)
    return Verdict(
        verification, tuple(islice(listed, MAX_LISTED)), claims_of(session, verification)
    )


def unverifiable(reason: str, at: datetime, seconds: float = 0.0) -> Verdict:
    """Return the verdict where nothing can be compared."""
    verification = Verification(
        verdict="unverifiable", at=at, seconds=round(seconds, 3), reason=reason[:2000]
    )
    return Verdict(verification)


@dataclass(frozen=True, slots=True)
class _Extras:
    """The records without a stored counterpart, by what the store says of their events."""

    repeated: int
    outside: int
    gone: int

    @classmethod
    def of(
        cls, comparison: Comparison, evidence: Evidence, session: Session, published: int
    ) -> _Extras:
        places = [presence_of(found, evidence) for found in comparison.early]
        inside, outside = places.count("inside"), places.count("outside")
        repeated = inside
        if session.start.max_events is not None:
            # An event may be behind the last one now, because others were stored before it.
            repeated = min(inside, max(0, comparison.records - published))
        gone = len(places) - inside - outside + comparison.lost_early
        return cls(repeated, outside + inside - repeated, gone)


def presence_of(found: Found, evidence: Evidence) -> Presence:
    """Return what the store says of a record's event; gone if the store was not asked."""
    presence = evidence.presence.get(found.delivery_id, "gone")
    _, _, event_id = found.delivery_id.decode(errors="replace").partition(":")
    if presence == "inside" and event_id in evidence.failed_ids:
        return "outside"  # the event is there, but has no record any more
    return presence


def _differences(
    comparison: Comparison, evidence: Evidence, found: Verification, *, is_as_counted: bool
) -> Iterator[Difference]:
    """Yield the differences, the worst first."""
    absent: list[Expected] = [
        *(one for one in comparison.given_up if isinstance(one, Expected)),
        *islice(comparison.waiting, MAX_LISTED),
    ]
    kind, detail = "missing", "the receipt counts a record that is not in the topics"
    if not found.missing:
        kind, detail = "added", "stored, or moved into the range, after the replay had passed"
        if found.left_out:
            detail = "the event failed in the replay, or was stored after the replay had passed"
    elif found.missing < len(comparison.waiting) + comparison.lost_waiting:
        detail = "lost, or stored after the replay had passed"
    absences = [comparison.describe(kind, one, detail) for one in absent]
    kinds = {
        OTHER_VALUE: "changed" if is_as_counted else "differing",
        SAME_VALUE: "changed" if is_as_counted and not evidence.value_tells else "differing",
    }
    pairs = [one._replace(kind=kinds.get(one.kind, one.kind)) for one in comparison.differences]
    extras = [*_extras(comparison, evidence, found)]
    every = [*absences, *extras, *evidence.unmarked, *pairs]
    yield from (one for one in every if one.kind in FAULTS)
    yield from (one for one in every if one.kind not in FAULTS)


def _extras(
    comparison: Comparison, evidence: Evidence, found: Verification
) -> Iterator[Difference]:
    records: list[Found] = [
        *(one for one in comparison.given_up if isinstance(one, Found)),
        *islice(comparison.early, MAX_LISTED),
    ]
    for record in records:
        match presence_of(record, evidence):
            case "inside" if found.repeated:
                kind, detail = "repeated", "the event has another record"
            case "inside" | "outside" if found.changed or not found.unknown:
                kind, detail = "changed", "the replay's filter and range do not take the event now"
            case "inside" | "outside":
                kind, detail = "unknown", "the replay's filter and range do not take the event"
            case _ if found.unknown:
                kind, detail = "unknown", "no such event is in the store"
            case _:
                kind, detail = "deleted", "the event is not in the store any more"
        yield comparison.describe(kind, record, detail)


# The table


def claims_of(session: Session, found: Verification) -> dict[str, tuple[bool, str]]:
    """Return each claim of a replay with whether the claim holds, and its figures."""
    published = session.counters.published
    counts = (published, found.stored - found.left_out, found.records)

    def none_of(*names: str) -> tuple[bool, str]:
        numbers = {name: getattr(found, name) for name in names}
        figures = ", ".join(f"{number:,} {name}" for name, number in numbers.items())
        return not any(numbers.values()), figures

    return {
        "it completed": (
            session.state in COMPLETED,
            session.state + (f": {session.error}" if session.error else ""),
        ),
        "published = stored = consumed": (
            len(set(counts)) == 1,
            " = ".join(f"{count:,}" for count in counts),
        ),
        "no event is missing": none_of("missing"),
        "no event is there twice": none_of("repeated"),
        "nothing else is there": none_of("unknown"),
        "each partition is in the store's order": none_of("unordered"),
        "each record is in its key's partition": none_of("misplaced"),
        "each record is marked as replayed": none_of("unmarked"),
        "keys, headers and values are the store's": (
            found.differing == 0,
            f"{found.equal:,} of {found.records:,} equal to the byte",
        ),
        "the store is as it was": none_of("added", "deleted", "changed"),
    }
