"""``replay-app verify``: the proof that the topics hold what a replay must have published.

The stored events are read and encoded again, and the topics are read as a ``read_committed``
consumer. Both sides are compared record by record (`comparison`); what the comparison means is
decided in `verdicts`. Nothing is written, and memory does not grow with the number of events.
"""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from replay_app.bounds import bounds_of
from replay_app.commands import Filter
from replay_app.comparison import Comparison
from replay_app.destinations import describe_destinations
from replay_app.events import id_of
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.id_texts import delivery_text
from replay_app.published_records import PublishedRecords, Unverifiable
from replay_app.queries import all_of, compile_filter
from replay_app.sources import require_same_source, settings_for, source_of
from replay_app.states import COMPLETED
from replay_app.store import EventStore, TimeLimitExceeded
from replay_app.stored_records import StoredRecords
from replay_app.verdicts import Evidence, Verdict, judge, unverifiable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from replay_app.destinations import Destination
    from replay_app.events import EventMapping
    from replay_app.queries import Query
    from replay_app.sessions import Session
    from replay_app.settings import Settings
    from replay_app.verdicts import Presence

LEAST_TAKE = 500
"""Records of a partition that are read at once, at least."""
MOST_TAKE = 5_000
MAX_LOOKED_UP = 1_000
"""Records without a stored counterpart whose events are looked for in the store."""
LOOK_UP_AT_ONCE = 200
PROGRESS_SECONDS = 2.0


def obstacle(session: Session) -> str | None:
    """Return why a replay is not one that can be verified; None if it is one."""
    replay_id = session.replay_id
    if session.start.dry_run:
        return f"replay {replay_id!r} was a dry run: it has published nothing"
    if session.state not in COMPLETED:
        return f"replay {replay_id!r} is {session.state}: only a completed replay is verified"
    return None


async def verify(
    settings: Settings, session: Session, on_progress: Callable[[int], None] = lambda _: None
) -> Verdict:
    """Compare the topics with the store, for a completed replay.

    ``on_progress`` is called every PROGRESS_SECONDS with the number of records compared.

    Raises
    ------
    Unavailable
        When store or broker do not answer. The same verification may succeed later.
    InvalidSettings
        When the broker refuses a right.

    """
    at, began = datetime.now(UTC), time.monotonic()
    plan, store = session.plan, None
    try:
        _require_one_way(session)
        settings = settings_for(settings, session.start.source)
        store = EventStore(settings)
        require_same_source(
            plan.source if plan else {}, source_of(settings, session.start), can_retry=False
        )
        await store.require_collection()
        names = {*session.offsets, *(plan.partitions if plan else ())}
        topics = await describe_destinations(settings, names)
        published = PublishedRecords(settings, session, topics)
        async with published.reading():
            stored = StoredRecords(settings, store, session, topics, published.partitions)
            comparison = Comparison(published.partitions, stored.grown)
            try:
                await _compare(comparison, stored, published, on_progress)
            finally:
                await stored.close()
        evidence = Evidence(
            failed=stored.failed,
            failed_ids=frozenset(stored.failed_ids),
            unmarked=tuple(
                comparison.describe("unmarked", one, why) for one, why in published.marks.unmarked
            ),
            unmarked_count=published.marks.unmarked_count,
            value_tells=not session.start.transforms and _value_tells(settings.mapping),
            presence=await _presence(settings, store, session, comparison),
        )
        verdict = judge(session, comparison, evidence, at, time.monotonic() - began)
        _require_comparable(verdict, comparison, session, published)
    except (Unverifiable, ReplayFailed) as error:
        return unverifiable(str(error), at, time.monotonic() - began)
    finally:
        if store is not None:
            store.close()
    return verdict


def _require_one_way(session: Session) -> None:
    if session.has_changed:
        msg = (
            "a retry has accepted changes, so that not all records were made in one way: to have a "
            "proof, replay again under a new replay_id"
        )
        raise Unverifiable(msg)


def _require_comparable(
    verdict: Verdict, comparison: Comparison, session: Session, published: PublishedRecords
) -> None:
    """Raise `Unverifiable` if another cause than a fault explains what differs."""
    if comparison.has_other_timestamps:
        raise Unverifiable(
            "no record has the timestamp of its event, and nothing else differs in them: the "
            "workers had REPLAY_RECORD_TIMESTAMP=append. Verify with the same setting"
        )
    if verdict.verification.verdict == "different" and (other := published.made_again()):
        raise Unverifiable(other)
    if verdict.verification.missing and (compacted := _compacted(session, published.topics)):
        raise Unverifiable(
            f"records are missing from {compacted}, which Kafka compacts: it keeps only the "
            "newest record of each key"
        )


async def _compare(
    comparison: Comparison,
    stored: StoredRecords,
    published: PublishedRecords,
    on_progress: Callable[[int], None],
) -> None:
    """Read both sides to their ends, in such turns that little has to wait.

    The store leads: after a page, as many records are taken from each partition as wait for one
    there. Records that belong to another shard let the shard follow of which the least waits. Few
    records of the topics are read ahead, so that none of them is given up where many are missing.
    """
    waiting, early, due_at = comparison.waiting, comparison.early, time.monotonic()
    while stored.open or published.open:
        index = max(published.open, key=lambda one: comparison.waiting_in[one], default=None)
        wanted = 0 if index is None else comparison.waiting_in[index]
        if index is not None and (not stored.open or (wanted and 2 * len(early) <= len(waiting))):
            most = min(MOST_TAKE, max(LEAST_TAKE if not stored.open else 1, wanted))
            comparison.take(await published.take(index, most))
        else:
            lane = min(stored.open, key=lambda one: comparison.waiting_of[one])
            comparison.expect(await stored.next(lane))
        if time.monotonic() >= due_at + PROGRESS_SECONDS:
            due_at = time.monotonic()
            on_progress(comparison.records)


def _value_tells(mapping: EventMapping) -> bool:
    """Return whether the value changes whenever the key or the time of an event changes."""
    used = {mapping.field_key or mapping.field_aggregate, mapping.field_timestamp}
    return mapping.field_value is None and not any(
        field == excluded or field.startswith(f"{excluded}.")
        for field in used
        for excluded in mapping.exclude_fields
    )


def _compacted(session: Session, topics: Mapping[str, Destination]) -> str:
    """Return the names of the topics that hold the replay's records and are compacted."""
    return ", ".join(sorted(name for name in session.offsets if topics[name].is_compacted))


async def _presence(
    settings: Settings, store: EventStore, session: Session, comparison: Comparison
) -> dict[bytes, Presence]:
    """Return what the store has of the first events whose records have no counterpart.

    Empty for the rest, if the store takes longer than ``REPLAY_PLAN_SECONDS`` for an answer.
    """
    plan, start, mapping = session.plan, session.start, settings.mapping
    wanted = [one.delivery_id for one in islice(comparison.early, MAX_LOOKED_UP)]
    found: dict[bytes, Presence] = {}
    if plan is None:
        return found
    within = all_of(compile_filter(start.filter, mapping), bounds_of(start, plan).query(mapping))
    for first in range(0, len(wanted), LOOK_UP_AT_ONCE):
        some = wanted[first : first + LOOK_UP_AT_ONCE]
        texts = [one.decode(errors="replace").partition(":")[2] for one in some]
        query = compile_filter(
            Filter(event_ids=tuple(text for text in texts if _may_be_id(text))), mapping
        )
        if not query:
            continue
        with contextlib.suppress(TimeLimitExceeded):
            looks: tuple[tuple[Presence, Query], ...] = (
                ("outside", query),
                ("inside", all_of(query, within)),
            )
            for presence, part in looks:
                for row in await store.documents([{"$match": part}], settings.plan_seconds):
                    with contextlib.suppress(EventError):
                        text = delivery_text(id_of(row, mapping))
                        found[f"{session.replay_id}:{text}".encode()] = presence
    return found


def _may_be_id(text: str) -> bool:
    return 0 < len(text) <= 1000  # noqa: PLR2004 - what a filter takes
