"""The counters of a shard while a slice adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay_app.progress import (
    MAX_LISTED_FAILURES,
    OTHER,
    Counters,
    Failure,
    Offsets,
    ShardProgress,
    listed_name,
    listed_offsets,
)

if TYPE_CHECKING:
    from replay_app.encoder import EncodedPage

MAX_NAMES = 500
"""Types, and topics, that a checkpoint counts one by one; the others together."""


@dataclass
class Tally:
    """The counters of a shard while a slice adds to them."""

    base: ShardProgress

    def __post_init__(self) -> None:
        """Copy what is added to in place."""
        base = self.base
        self.read = base.counters.read
        self.published = base.counters.published
        self.skipped = base.counters.skipped
        self.dead_lettered = base.counters.dead_lettered
        self.valid = base.valid
        self.failed = base.failed
        self.bytes = base.bytes
        self.by_type = dict(base.by_type)
        self.by_topic = dict(base.by_topic)
        self.offsets: Offsets = {t: dict(partitions) for t, partitions in base.offsets.items()}
        self.failures = list(base.failures)

    def add(self, page: EncodedPage, *, dry_run: bool, on_error: str) -> None:
        """Add one page."""
        self.read += page.read
        self.valid += page.published
        self.bytes += page.bytes
        self.skipped += page.skipped_replays
        if not dry_run:
            self.published += page.published
        # Under "fail" the page ends before its failure, which is not counted.
        failed = page.read - page.published - page.skipped_replays
        self.failed += failed
        if on_error == "dead-letter" and not dry_run:
            self.dead_lettered += failed
        else:
            self.skipped += failed
        room = max(0, MAX_LISTED_FAILURES - len(self.failures))
        for failure in page.failures[: min(failed, room)]:
            self.failures.append(Failure(event_id=failure.event_id, reason=failure.reason))
        for total, more in ((self.by_type, page.by_type), (self.by_topic, page.by_topic)):
            for name, count in more.items():
                listed = listed_name(name)
                if listed not in total and len(total) >= MAX_NAMES:
                    listed = OTHER
                total[listed] = total.get(listed, 0) + count

    def progress(self, **update: Any) -> ShardProgress:
        """Return the sum."""
        return ShardProgress(
            counters=Counters(
                read=self.read,
                published=self.published,
                skipped=self.skipped,
                dead_lettered=self.dead_lettered,
            ),
            valid=self.valid,
            failed=self.failed,
            bytes=self.bytes,
            by_type=self.by_type,
            by_topic=self.by_topic,
            offsets=listed_offsets(self.offsets),
            failures=tuple(self.failures),
            **update,
        )
