"""For consumers: tell replayed records from live records.

This module needs nothing but Python, so you may also copy it into another project. It reads headers
in the form that each client library gives::

    # aiokafka
    async for record in consumer:
        replayed = provenance(record.headers)

    # confluent-kafka
    message = consumer.poll(1.0)
    replayed = provenance(message.headers())

    # Faust
    async for event in stream.events():
        replayed = provenance(event.headers)

The rest is the same for every library::

    if replayed is None:
        send_confirmation_mail(...)  # a live event: side effects as always
    elif replayed.control is not None:
        ...  # a control record without key and value: the replay begins or ends here
    elif replayed.delivery_id not in seen:
        rebuild_projection(...)  # a replayed event: no mails, no payments

A consumer with ``isolation.level=read_committed`` sees each event of a replay once. Any other
consumer must remember each `Provenance.delivery_id`, as above.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

Control = Literal["begin", "end", "cancelled"]
_CONTROLS = frozenset({"begin", "end", "cancelled"})


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a replayed record comes from. A field is None if the record lacks its header."""

    replay_id: str
    original_time: datetime | None = None
    """When the event happened, in UTC; None on control records."""
    delivery_id: str | None = None
    """The same in every delivery of the event by this replay; None on control records."""
    attempt: int | None = None
    """1, and one more for each retry of the replay; None on control records."""
    name: str | None = None
    """The replay's title, if the start command has one."""
    reason: str | None = None
    """Why the replay was started, if the start command says why."""
    control: Control | None = None
    """On control records: whether the replay begins, has ended or was cancelled. None on events."""


def provenance(headers: Any) -> Provenance | None:
    """Return where a record comes from; None for a live record.

    ``headers`` is an iterable of pairs of name and value, a mapping, or None. Values are bytes,
    text or None. If a header occurs twice, the last one counts.

    Never raises. Every record with the header ``replay-id`` is a replayed record, even if its
    headers are damaged: a consumer that took the record for a live record could send mails again.
    A header that cannot be read is None in the answer. Bytes that are not UTF-8 are replaced by
    U+FFFD. A ``replay-id`` without a value becomes an empty text. Anything that is not a pair of
    name and value is ignored.
    """
    found = dict(_pairs(headers))
    if "replay-id" not in found:
        return None
    control = found.get("replay-control")
    return Provenance(
        replay_id=found["replay-id"] or "",
        original_time=_time(found.get("replay-original-time")),
        delivery_id=found.get("replay-delivery-id"),
        attempt=_number(found.get("replay-attempt")),
        name=found.get("replay-name"),
        reason=found.get("replay-reason"),
        control=cast("Control", control) if control in _CONTROLS else None,
    )


def _pairs(headers: Any) -> Iterable[tuple[str, str | None]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    if not isinstance(pairs, Iterable) or isinstance(pairs, str | bytes):
        return
    for pair in pairs:
        if isinstance(pair, tuple | list) and len(pair) == 2:  # noqa: PLR2004 - name and value
            name = _text(pair[0])
            if name is not None:
                yield name, _text(pair[1])


def _text(value: Any) -> str | None:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode(errors="replace")
    return value if isinstance(value, str) else None


def _time(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text or "")
        return time.astimezone(UTC) if time.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> int | None:
    # int() would also take spaces, underscores and digits of other scripts.
    is_number = text is not None and text.isascii() and text.isdigit() and len(text) < 10  # noqa: PLR2004 - no replay has a billion attempts
    return int(text) if is_number and text else None
