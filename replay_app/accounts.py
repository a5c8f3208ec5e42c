"""What people read about a replay: one line, everything, or its plan. Times are local."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from replay_app.answers import SessionJson
from replay_app.client import ENDED
from replay_app.terminal import cut, duration
from replay_app.times import local, local_minute, zone_of

COUNTING = ("waiting", "running")
"""States in which the events are counted beside the replay, until they are counted."""
MAX_SHOWN_FAILURES = 10
SHOWN_CHARACTERS = 500
"""Characters of a value that a plan shows."""
GROUP_STATES = {"unseen": "not seen yet", "empty": "no members", "active": "active"}


def progress_line(session: SessionJson) -> str:
    """Return a line about a replay's state and progress."""
    return f"{session['replay_id']} {session['state']}: {', '.join(amounts(session))}"


def amounts(session: SessionJson) -> Iterator[str]:
    """Yield what a line says of a replay's progress, each part for itself."""
    yield amount(session)
    if session.get("position") and session["state"] not in ENDED:
        yield place(session["position"])
    if session["events_per_second"] and session["state"] not in ENDED:
        yield f"{session['events_per_second']:,.0f} events/s"
    if session["eta_seconds"] is not None:
        yield f"{duration(session['eta_seconds'])} left"
    if session["stalled"]:
        yield "stalled"
    if session["error"] or session["reason"]:
        yield session["error"] or session["reason"]


def amount(session: SessionJson) -> str:
    """Return how many of the matching events were read, such as "5 of 10 events (50 %)"."""
    read, matched, percent = session["counters"]["read"], session["matched"], session["percent"]
    if matched is None:
        return f"{read:,} events"
    share = "" if percent is None else f" ({percent:g} %)"
    return f"{read:,} of {matched:,} events{share}"


def place(position: dict[str, Any]) -> str:
    """Return how far in time a replay is, such as "at 2026-01-09 14:02 of 2026-01-21 00:00 CET"."""
    at, of = position["time"], position["end"]
    zone = "" if zone_of(at) == zone_of(of) else f" {zone_of(at)}"  # clocks change in between
    return f"at {local_minute(at)}{zone} of {local_minute(of)} {zone_of(of)}"


def is_dry_run(session: SessionJson) -> bool:
    """Return whether the replay publishes nothing."""
    return bool(session.get("start", {}).get("dry_run"))


def replayable(session: SessionJson) -> int:
    """Return how many events were published, or could have been in a dry run."""
    if is_dry_run(session):
        return sum(shard["progress"]["valid"] for shard in session["shards"])
    return int(session["counters"]["published"])


def account(session: SessionJson) -> list[str]:
    """Return everything about a replay, as lines of text."""
    start = session["start"]
    parts = [
        progress_line(session),
        *_facts(
            ("name", start["name"]),
            ("why", start["reason"]),
            ("requested by", start["requested_by"]),
            ("created", _time(session["created_at"])),
            ("started", _time(session["started_at"])),
            ("ended", _time(session["ended_at"])),
            ("attempt", session["attempt"]),
            ("ordering", start["ordering"] + (" (dry run)" if start["dry_run"] else "")),
            ("rate", f"{session['rate']:g} events/s" if session["rate"] else "unlimited"),
            ("speed", _speed(start)),
            ("filter", _filter(start["filter"]) or "every event"),
            ("source", _source(session["plan"], start.get("source"))),
            ("target", _conditions(start["target"]) or "each event's original topic"),
            ("redact", _conditions(start.get("redact") or {}) or None),
            ("transforms", ", ".join(start.get("transforms") or ()) or None),
            ("max lag", f"{start['max_lag']:,} records" if start.get("max_lag") else None),
            ("chain", start.get("chain")),
            ("after", ", ".join(map(parent_text, start["after"]))),
            ("released", "yes" if session.get("released") else None),
            ("verbs now", ", ".join(session.get("verbs", ()))),
            ("position", session.get("position") and place(session["position"])),
            ("counters", _counts(session["counters"])),
        ),
    ]
    if session["plan"]:
        parts += ["", "Plan", *plan_account(session["plan"], warnings=False)]
        if session["plan"].get("counted") == "running" and session["state"] in COUNTING:
            parts += ["  the matching events are being counted"]
    if start.get("consumers"):
        parts += ["", "Consumers", *consumer_lines(session)]
    if session["receipt"]:
        receipt = session["receipt"]
        parts += [
            "",
            "Receipt",
            *_facts(
                ("took", duration(receipt["seconds"])),
                ("counters", _counts(receipt["counters"])),
                ("by type", _counts(receipt["by_type"])),
                ("by topic", _counts(receipt["by_topic"])),
                ("bytes", f"{receipt['bytes']:,}"),
                ("dropped", f"{receipt['dropped']:,}" if receipt.get("dropped") else None),
                ("parked", f"{receipt['parked']:,}" if receipt.get("parked") else None),
                ("visible", _time(receipt.get("visible_at"))),
                ("stored behind", _stored_behind(receipt)),
                ("verified", _verified(session.get("verification"))),
                *(
                    (f"{topic}[{partition}]", f"offsets {first} to {last}")
                    for topic, partitions in sorted(receipt["offsets"].items())
                    for partition, (first, last) in sorted(partitions.items())
                ),
            ),
        ]
    if session["warnings"]:
        parts += ["", "Warnings", *(f"  {warning}" for warning in session["warnings"])]
    failures = [f for shard in session["shards"] for f in shard["progress"]["failures"]]
    if failures:
        shown = [f"  {f['event_id']}: {f['reason']}" for f in failures[:MAX_SHOWN_FAILURES]]
        parts += ["", f"Failures, the first {len(shown)}", *shown]
    return parts


def _speed(start: dict[str, Any]) -> str | None:
    if not start.get("speed"):
        return None
    gap = start.get("max_gap_seconds")
    return f"{start['speed']:g} times the original pace" + (
        f", gaps of at most {gap:g} s" if gap else ""
    )


def consumer_lines(session: SessionJson) -> Iterator[str]:
    """Yield a line for each consumer group of a replay: how far the group has read."""
    known = session.get("consumption", {})
    for group in session["start"]["consumers"]:
        found = known.get(group)
        yield f"  {group:<24} {'not looked at yet' if found is None else _consumption(found)}"


def _consumption(found: dict[str, Any]) -> str:
    if found["consumed_at"]:
        return f"has read all since {local(found['consumed_at'])}"
    parts = [
        GROUP_STATES[found["state"]],
        "lag unknown" if found["lag"] is None else f"{found['lag']:,} records behind",
    ]
    if found["reason"]:
        parts.append(found["reason"])
    if not found["is_awaited"]:
        parts.append("max_lag does not wait for the group")
    return ", ".join(parts)


def parent_text(parent: str | dict[str, Any]) -> str:
    """Return a replay of ``after``, such as "orders" or "orders (consumed)"."""
    if isinstance(parent, str):
        return parent
    return f"{parent['replay']} (consumed)" if parent.get("consumed") else str(parent["replay"])


def _stored_behind(receipt: dict[str, Any]) -> str | None:
    """Return how many events lie behind the replay's position; None if an old receipt."""
    if "behind" not in receipt:
        return None
    behind = receipt["behind"]
    return "unknown" if behind is None else f"{behind:,} events of the range"


def _handover(plan: dict[str, Any]) -> Iterator[str]:
    """Yield from where consumers read on in the live topics. An old plan does not say it."""
    if plan.get("handover"):
        yield from ("", f"Hand-over, to live records from {_time(plan['handover_time'])} on")
    for topic, offsets in sorted(plan.get("handover", {}).items()):
        if not offsets:
            yield f"  {topic:<13} {'unknown' if offsets is None else 'does not exist'}"
        for partition, offset in sorted((offsets or {}).items(), key=lambda one: int(one[0])):
            yield from _facts((f"{topic}[{partition}]", f"offset {offset}"))


def _verified(found: dict[str, Any] | None) -> str | None:
    """Return the newest verdict on a replay, and when its comparison began."""
    if found is None:
        return None
    why = f": {found['reason']}" if found["reason"] else ""
    return f"{found['verdict']}, at {local(found['at'])}{why}"


def plan_account(plan: dict[str, Any], *, warnings: bool = True) -> list[str]:
    """Return what a replay would do, as lines of text."""
    matched = plan["matched"]
    parts = _facts(
        ("matched", "unknown" if matched is None else f"{matched:,} events"),
        ("source", _source(plan)),
        ("up to", _time(plan["end"])),
        ("by type", _counts(plan["by_type"])),
        ("by topic", _counts(plan["by_topic"])),
        ("shards", len(plan["shards"])),
    )
    if plan.get("live_topics"):
        topics = ", ".join(plan["live_topics"])
        parts += _facts(("live topics", f"{topics}: these are the original topics"))
    for sample in plan.get("samples", ()):
        parts += ["", *sample_lines(sample)]
    parts += _handover(plan)
    readers = plan.get("consumers") or {}
    if readers:
        parts += ["", "Consumer groups that will get these events"]
        parts += [f"  {group:<24} {_reader(one)}" for group, one in readers.items()]
    if warnings and plan["warnings"]:
        parts += ["", "Warnings", *(f"  {warning}" for warning in plan["warnings"])]
    return parts


def _source(plan: Mapping[str, Any] | None, source: Mapping[str, Any] | None = None) -> str | None:
    """Return where the events are: the collection of the plan, and the mapping of the command."""
    planned, source = (plan or {}).get("source") or {}, source or {}
    database = planned.get("REPLAY_MONGO_DATABASE", source.get("database"))
    collection = planned.get("REPLAY_MONGO_COLLECTION", source.get("collection"))
    name = ".".join(part for part in (database, collection) if part)
    return f"{name}, mapping {source['mapping']}" if source.get("mapping") else name or None


def sample_lines(sample: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a sample record."""
    yield f"Sample record, event {sample['event_id']}"
    if sample["error"]:
        yield from _facts(("cannot be replayed", sample["error"]))
        return
    headers = ", ".join(f"{one['key']}={one['value']}" for one in sample["headers"])
    yield from _facts(
        ("topic", sample["topic"]),
        ("key", sample["key"]),
        ("headers", headers),
        ("value", cut(sample["value"], SHOWN_CHARACTERS)),
    )


def _reader(reader: dict[str, Any]) -> str:
    lag = "nothing committed" if reader["lag"] is None else f"{reader['lag']:,} records behind"
    return f"{GROUP_STATES[reader['state']]}, {lag}: {', '.join(reader['topics'])}"


def _facts(*facts: tuple[str, object]) -> list[str]:
    return [f"  {name:<13} {value}" for name, value in facts if value is not None and value != ""]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _conditions(conditions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {json.dumps(v)}" for name, v in conditions.items() if v)


def _filter(conditions: dict[str, Any]) -> str:
    """Return the conditions of a filter, with its times in the local time zone."""
    times = {name: local(conditions[name]) for name in ("start", "end") if conditions.get(name)}
    return _conditions(conditions | times)


def _time(text: str | None) -> str | None:
    return local(text) if text else None


def history_lines(history: Mapping[str, Any]) -> Iterator[str]:
    """Yield the changes of a replay, the oldest first, under a title."""
    yield from ("", "History")
    if history["dropped"]:
        yield f"  {history['dropped']:,} changes between the first and the last ones are not kept"
    for change in history["changes"]:
        what = change["command"] or "-"
        by = f" by {change['by']}" if change["by"] else ""
        rate = f", {change['rate']:g} events/s" if change["rate"] else ""
        detail = f": {change['detail']}" if change["detail"] else ""
        yield f"  {local(change['at'])}  {what}{by} -> {change['state']}{rate}{detail}"
