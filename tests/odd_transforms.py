"""Transforms for the workers of the end-to-end tests. An event says what becomes of it."""

from __future__ import annotations

import time
from typing import Any

from replay_app.transforms import DROP, EventContext, Output


def same(event: dict[str, Any], _context: EventContext) -> Any:
    """Return the event as it is."""
    return event


def as_told(event: dict[str, Any], context: EventContext) -> Any:
    """Do what the field ``wish`` of an event says, and count how many events are published."""
    wish = event.pop("wish", None)
    if wish == "drop":
        return DROP
    if wish == "fail":
        msg = f"no {context.event_id} today"
        raise ValueError(msg)
    if wish == "nothing":
        return None
    if wish == "hang":
        time.sleep(3_600)
    if wish == "slow":
        time.sleep(0.02)
    if wish == "elsewhere":
        return Output(topic=event["to"], key=b"moved", headers=[("moved", b"yes")])
    return event | {"changed": True}
