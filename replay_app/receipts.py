"""The receipt as a document to keep: what was asked for, what was done, and how it was proved.

Both forms are made from a session as the API returns it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from replay_app.verdicts import FAULTS, STORE_CHANGES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from replay_app.answers import SessionJson

MAX_ROWS = 5000
"""Rows of one table. A session lists no more partitions."""


def receipt_document(session: SessionJson) -> dict[str, Any]:
    """Return the receipt of an ended replay as JSON values.

    ``verification`` is None if nobody has verified the replay. ``handover`` has None for a live
    topic whose offsets are not known.
    """
    start, plan = session["start"], session["plan"] or {}
    groups = session.get("consumption") or {}
    return {
        "replay_id": session["replay_id"],
        "state": session["state"],
        "name": start["name"],
        "reason": start["reason"],
        "requested_by": start["requested_by"],
        "chain": start.get("chain"),
        "created_at": session["created_at"],
        "started_at": session["started_at"],
        "ended_at": session["ended_at"],
        "attempts": session["attempt"],
        "mapping": (start.get("source") or {}).get("mapping"),
        "filter": _given(start["filter"]),
        "target": _given(start["target"]),
        "redact": start.get("redact") or {},
        "transforms": start.get("transforms") or [],
        "ordering": start["ordering"],
        "dry_run": start["dry_run"],
        "bounds": {"start": start["filter"]["start"], "end": plan.get("end")},
        "until_event_id": start.get("until_event_id"),
        "matched": session["matched"],
        "receipt": session["receipt"],
        "handover": session.get("handover"),
        "consumers": {name: groups.get(name) for name in start.get("consumers") or ()},
        "verification": session.get("verification"),
        "warnings": session["warnings"],
        "source": plan.get("source") or {},
    }


def receipt_markdown(document: Mapping[str, Any]) -> str:
    """Return a `receipt_document` as Markdown."""
    return "\n".join(_lines(document)) + "\n"


def _known_offsets(partitions: Mapping[str, Any] | None) -> Sequence[tuple[Any, Any]]:
    """Return the offsets of a live topic, in the order of its partitions."""
    if partitions is None:
        return [("all", "unknown, see the warnings")]
    if not partitions:
        return [("none", "the topic did not exist")]
    return sorted(partitions.items(), key=_number)


def _given(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that are not empty."""
    return {name: value for name, value in members.items() if value}


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    receipt = document["receipt"] or {}
    yield f"# Receipt of replay {_text(document['replay_id'])}"
    yield ""
    bounds = document["bounds"]
    yield from _table(
        ("what", "value"),
        (
            (name, value)
            for name, value in (
                ("state", document["state"] + (" (dry run)" if document["dry_run"] else "")),
                ("name", document["name"]),
                ("why", document["reason"]),
                ("requested by", document["requested_by"]),
                ("chain", document["chain"]),
                ("created", document["created_at"]),
                ("started", document["started_at"]),
                ("consumers could read all", receipt.get("visible_at")),
                ("ended", document["ended_at"]),
                ("attempts", document["attempts"]),
                ("mapping", document["mapping"]),
                ("filter", _json(document["filter"]) or "every event"),
                ("events from", bounds["start"] or "the oldest one"),
                ("events before", bounds["end"]),
                ("last event", document["until_event_id"]),
                ("target", _json(document["target"]) or "each event's original topic"),
                ("redacted", _json(document["redact"]) or None),
                ("transforms", ", ".join(document["transforms"]) or None),
                ("order", document["ordering"]),
                ("matched", document["matched"]),
            )
            if value is not None
        ),
    )
    yield from _section("Counters")
    counters = dict(receipt.get("counters") or {})
    if receipt.get("dropped"):
        counters["dropped by transforms"] = receipt["dropped"]
    if receipt.get("parked"):
        counters["parked behind failed events"] = receipt["parked"]
    counters["bytes of the values"] = receipt.get("bytes")
    counters["behind the cursor at the end"] = receipt.get("behind")
    rows = ((name, value) for name, value in counters.items() if value is not None)
    yield from _table(("counter", "events"), rows)
    for title, name in (("By type", "by_type"), ("By topic", "by_topic")):
        if receipt.get(name):
            yield from _section(title)
            yield from _table((title.removeprefix("By "), "events"), receipt[name].items())
    yield from _section("Offsets")
    yield from _table(
        ("topic", "partition", "first", "last"),
        (
            (topic, partition, first, last)
            for topic, partitions in sorted((receipt.get("offsets") or {}).items())
            for partition, (first, last) in sorted(partitions.items(), key=_number)
        ),
        empty="Nothing was published.",
    )
    yield from _section("Hand-over to live")
    yield from _table(
        ("live topic", "partition", "read on from"),
        (
            (topic, partition, offset)
            for topic, partitions in sorted((document["handover"] or {}).items())
            for partition, offset in _known_offsets(partitions)
        ),
        empty="No hand-over is known.",
    )
    yield from _section("Consumers")
    yield from _table(
        ("group", "had read all", "records behind, at the last look"),
        (
            (name, (group or {}).get("consumed_at") or "not seen", (group or {}).get("lag"))
            for name, group in document["consumers"].items()
        ),
        empty="The start command names no consumer groups.",
    )
    yield from _section("Verification")
    yield from _verification(document["verification"])
    if document["warnings"]:
        yield from _section("Warnings")
        yield from (f"- {_text(warning)}" for warning in document["warnings"])
    if receipt.get("failures"):
        yield from _section("First failures")
        failures = ((one["event_id"], one["reason"]) for one in receipt["failures"])
        yield from _table(("event", "reason"), failures)
    if document["source"]:
        yield from _section("Source")
        yield from _table(("setting", "value"), sorted(document["source"].items()))


def _verification(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield "Nobody has verified this replay; `replay-app verify` does."
        return
    yield f"**{found['verdict']}**, compared at {found['at']}."
    if found.get("reason"):
        yield ""
        yield _text(found["reason"])
        return
    yield ""
    names = ("stored", "records", "equal", *FAULTS, *STORE_CHANGES, "left_out")
    yield from _table(("count", "records"), ((name, found.get(name, 0)) for name in names))


def _section(title: str) -> tuple[str, ...]:
    return ("", f"## {title}", "")


def _table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = ""
) -> Iterator[str]:
    is_empty = True
    for number, row in enumerate(rows):
        if is_empty:
            yield f"| {' | '.join(columns)} |"
            yield f"|{'---|' * len(columns)}"
            is_empty = False
        if number == MAX_ROWS:
            return
        yield f"| {' | '.join(_cell(value) for value in row)} |"
    if is_empty and empty:
        yield empty


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else _text(value)


def _text(value: object) -> str:
    """Return a text that stays one cell, and that no renderer takes for markup."""
    text = " ".join(str(value).split())
    for mark in "\\|`*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def _number(item: tuple[Any, Any]) -> int:
    return int(item[0])
