"""The counters of a shard, while a slice adds pages to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay_app.commands import LETTERS
from replay_app.reports import (
    MAX_ERROR,
    MAX_LISTED_FAILURES,
    MAX_SHOWN_ID,
    MAX_TYPE_NAME,
    OTHER,
    Counters,
    Failure,
    Offsets,
    ShardProgress,
    bound_offsets,
    shorten,
)

if TYPE_CHECKING:
    from replay_app.pages import EncodedPage

MAX_SHARD_NAMES = 500
"""Types, and topics, that a checkpoint counts by name. The others are counted together."""


class Tally:
    """The counters of a shard, while a slice adds pages to them."""

    def __init__(self, base: ShardProgress) -> None:
        self.read = base.counters.read
        self.published = base.counters.published
        self.skipped = base.counters.skipped
        self.dead_lettered = base.counters.dead_lettered
        self.valid = base.valid
        self.failed = base.failed
        self.dropped = base.dropped
        self.parked = base.parked
        self.bytes = base.bytes
        self.by_type = dict(base.by_type)
        self.by_topic = dict(base.by_topic)
        self.offsets: Offsets = {t: dict(partitions) for t, partitions in base.offsets.items()}
        self.failures = list(base.failures)
        self.waits = base.waits
        self.last_time = base.last_time

    def add(self, page: EncodedPage, *, dry_run: bool, on_error: str) -> None:
        """Add one page."""
        self.read += page.read
        self.valid += page.encoded
        self.bytes += page.bytes
        self.skipped += page.skipped_replays + page.dropped
        self.dropped += page.dropped
        if not dry_run:
            self.published += page.encoded
        if page.read:
            self.last_time = page.last_time
        # With on_error "fail" the page ends before its failure, which is not counted.
        failed = page.read - page.encoded - page.skipped_replays - page.dropped
        self.failed += failed
        self.parked += page.waiting
        if on_error in LETTERS and not dry_run:
            self.dead_lettered += failed
        else:
            self.skipped += failed
        room = max(0, MAX_LISTED_FAILURES - len(self.failures))
        for failure in page.failures[: min(failed, room)]:
            event_id = failure.event_id and shorten(failure.event_id, MAX_SHOWN_ID)
            reason = shorten(failure.reason, MAX_ERROR)
            self.failures.append(Failure(event_id=event_id, reason=reason))
        for total, more in ((self.by_type, page.by_type), (self.by_topic, page.by_topic)):
            for long_name, count in more.items():
                name = shorten(long_name, MAX_TYPE_NAME)
                if name not in total and len(total) >= MAX_SHARD_NAMES:
                    name = OTHER
                total[name] = total.get(name, 0) + count

    def progress(self, **update: Any) -> ShardProgress:
        """Return the shard's progress, with further fields from ``update``."""
        return ShardProgress(
            counters=Counters(
                read=self.read,
                published=self.published,
                skipped=self.skipped,
                dead_lettered=self.dead_lettered,
            ),
            valid=self.valid,
            failed=self.failed,
            dropped=self.dropped,
            parked=self.parked,
            bytes=self.bytes,
            by_type=self.by_type,
            by_topic=self.by_topic,
            offsets=bound_offsets(self.offsets),
            failures=tuple(self.failures),
            waits=self.waits,
            last_time=self.last_time,
            **update,
        )
