"""How the unit tests encode events."""

from __future__ import annotations

from datetime import UTC, datetime

from replay_app.commands import Target
from replay_app.events import EventMapping
from replay_app.pages import EncodeSpec

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SPEC = EncodeSpec(
    mapping=EventMapping(),
    target=Target(topic="t"),
    replay_id="r",
    attempt=1,
    name=None,
    reason=None,
    partitions={"t": 1},
    cursor_fields=("timestamp", "_id"),
    stop_at_failure=False,
    include_replayed=False,
    record_timestamp="append",
    compression="none",
    max_record_bytes=10_000,
)
"""All events go to one partition; no event stops the page."""
