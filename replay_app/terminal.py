"""Output for people: a replay's progress, accounts and tables."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from replay_app.client import ENDED, SessionJson
from replay_app.logs import escaped

LINE_SECONDS = 1.0  # between two plain lines if only the counters have changed
PIPED_COLUMNS = 200
"""The width of a table that is not printed to a terminal."""
COUNTING = ("waiting", "running")
"""States in which the events are counted beside the replay, until they are counted."""
MAX_SHOWN_FAILURES = 10
SHOWN_CHARACTERS = 500
"""Characters of a value that a plan shows."""
GROUP_STATES = {"unseen": "not seen yet", "empty": "no members", "active": "active"}


def say(*lines: str, error: bool = False) -> None:
    """Print lines of text. Control characters are escaped: any client may have named the replay."""
    # A new console each time: standard output may have changed.
    text = "\n".join(map(escaped, lines))
    Console(stderr=error, highlight=False).print(Text(text), soft_wrap=True)


def say_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON to standard output, and flush. Control characters are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    print("\n".join(map(escaped, text.split("\n"))), flush=True)  # noqa: T201 - the output


def cut(text: str, most: int) -> str:
    """Return a text of ``most`` characters at most."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(escaped(str(cell))) for cell in row))
    console.print(grid)


def show_claims(claims: Mapping[str, tuple[bool, str]]) -> None:
    """Print a line for each claim: whether the claim holds, and the figures."""
    say("")
    for claim, (holds, figures) in claims.items():
        say(f"  {'ok    ' if holds else 'FAILED'}  {claim:<42} {figures}")
    say("")


def show_progress(sessions: Iterable[SessionJson], *, as_json: bool = False) -> SessionJson:
    """Show a replay's progress until ``sessions`` ends; return the last session.

    With ``as_json`` each changed session is a line of JSON. Otherwise a terminal shows a bar, and a
    file or pipe gets a line of text for each change.
    """
    if as_json:
        sessions = _print_json_lines(sessions)
    elif sys.stdout.isatty():
        sessions = _draw_bar(sessions)
    else:
        sessions = _print_lines(sessions)
    return deque(sessions, maxlen=1).pop()


def _print_json_lines(sessions: Iterable[SessionJson]) -> Iterator[SessionJson]:
    last = None
    for session in sessions:
        if session != last:
            say_json(session, indent=None)
        last = session
        yield session


def _print_lines(sessions: Iterable[SessionJson]) -> Iterator[SessionJson]:
    shown, shown_at = None, 0.0
    for session in sessions:
        line = progress_line(session)
        state = (session["state"], session["reason"], session["stalled"])
        is_due = time.monotonic() - shown_at >= LINE_SECONDS
        if shown is None or state != shown[0] or (line != shown[1] and is_due):
            shown, shown_at = (state, line), time.monotonic()
            say(line)
        yield session


def _draw_bar(sessions: Iterable[SessionJson]) -> Iterator[SessionJson]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
    )
    with Progress(*columns, console=Console(highlight=False)) as progress:
        bar = progress.add_task("", total=None, amount="")
        for session in sessions:
            progress.update(
                bar,
                description=f"{session['replay_id']} {session['state']}",
                total=session["matched"],
                completed=session["counters"]["read"],
                amount=escaped(", ".join(_amounts(session))),
            )
            if session["state"] in ENDED:
                progress.stop_task(bar)
            yield session


def progress_line(session: SessionJson) -> str:
    """Return a line about a replay's state and progress."""
    return f"{session['replay_id']} {session['state']}: {', '.join(_amounts(session))}"


def _amounts(session: SessionJson) -> Iterator[str]:
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
    """Return how far in time a replay is, such as "at 2026-01-09 14:02 of 2026-01-21 00:00"."""
    at, of = (position[name][:16].replace("T", " ") for name in ("time", "end"))
    return f"at {at} of {of}"


def duration(seconds: float) -> str:
    """Return a duration in at most two units, such as "1 h 5 min"."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s" if seconds >= 1 else f"{seconds:.1f} s"


def is_dry_run(session: SessionJson) -> bool:
    """Return whether the replay publishes nothing."""
    return bool(session.get("start", {}).get("dry_run"))


def replayable(session: SessionJson) -> int:
    """Return how many events were published, or could have been in a dry run."""
    if is_dry_run(session):
        return sum(shard["progress"]["valid"] for shard in session["shards"])
    return int(session["counters"]["published"])


def warnings_at_the_end(session: SessionJson) -> Iterator[str]:
    """Yield what a person must know about a replay that has ended."""
    replay_id, error = session["replay_id"], session["error"]
    if session["state"] == "completed_with_errors":
        how_many = "some" if replayable(session) else "all"
        yield (
            f"warning: {replay_id} completed, but {how_many} events could not be replayed; "
            f"see: replay-app status {replay_id}"
        )
    if error:
        yield f"error: {_with_command(error, replay_id)}"


def _with_command(error: str, replay_id: str) -> str:
    """Return an error with the command for what it advises, unless a retry would not help."""
    command = f"replay-app retry {replay_id}"
    if error.endswith("then retry"):
        return f"{error.removesuffix(' retry')}: {command}"
    if "retry" in error:
        return f"{error} (the command is: {command})"
    return error if "new id" in error else f"{error}; then: {command}"


def account(session: SessionJson) -> list[str]:
    """Return everything about a replay, as lines of text."""
    start = session["start"]
    parts = [
        progress_line(session),
        *_facts(
            ("name", start["name"]),
            ("why", start["reason"]),
            ("requested by", start["requested_by"]),
            ("created", session["created_at"]),
            ("started", session["started_at"]),
            ("ended", session["ended_at"]),
            ("attempt", session["attempt"]),
            ("ordering", start["ordering"] + (" (dry run)" if start["dry_run"] else "")),
            ("rate", f"{session['rate']:g} events/s" if session["rate"] else "unlimited"),
            ("speed", _speed(start)),
            ("filter", _conditions(start["filter"]) or "every event"),
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
                ("visible", receipt.get("visible_at")),
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
        return f"has read all since {found['consumed_at']}"
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
        yield from ("", f"Hand-over, to live records from {plan['handover_time']} on")
    for topic, offsets in sorted(plan.get("handover", {}).items()):
        if not offsets:
            yield f"  {topic:<13} {'unknown' if offsets is None else 'does not exist'}"
        for partition, offset in sorted((offsets or {}).items(), key=lambda one: int(one[0])):
            yield from _facts((f"{topic}[{partition}]", f"offset {offset}"))


def offsets_shown(now: int | None, then: int) -> tuple[str, str, str]:
    """Return two offsets of a consumer group, and what a change from one to the other means."""
    if now is None:
        return "none", f"{then:,}", ""
    change = then - now
    words = "unchanged" if not change else "read again" if change < 0 else "skipped"
    return f"{now:,}", f"{then:,}", f"{abs(change):,} {words}" if change else words


def _verified(found: dict[str, Any] | None) -> str | None:
    """Return the newest verdict on a replay, and when its comparison began."""
    if found is None:
        return None
    why = f": {found['reason']}" if found["reason"] else ""
    return f"{found['verdict']}, at {found['at']}{why}"


def plan_account(plan: dict[str, Any], *, warnings: bool = True) -> list[str]:
    """Return what a replay would do, as lines of text."""
    matched = plan["matched"]
    parts = _facts(
        ("matched", "unknown" if matched is None else f"{matched:,} events"),
        ("source", _source(plan)),
        ("up to", plan["end"]),
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
