"""For consumers: tell replayed records from live ones, and read one replay to its end.

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
consumer, for example one of Faust, must remember each `Provenance.delivery_id`, as above.

To rebuild a view, read the replay to its end, then go on with the live topics. `ReplayReader` says
what each record is and when the replay is complete. `SeenIds` drops an event that came both
from the replay and live. Both keep their state in memory and return it as JSON: save the state
together with the view, in one transaction where there is one::

    reader = ReplayReader("rebuild-1", [("rebuild.shop.orders", 0), ("rebuild.shop.orders", 1)])
    seen = SeenIds(100_000)
    while not reader.is_complete:
        record = ...  # of a consumer that reads these partitions
        kind = reader.take(record.topic, record.partition, record.offset, record.headers)
        if kind == "event" and seen.add(event_id_of(record)):
            rebuild_projection(record)
        elif kind == "cancelled":
            ...  # the replay stopped before its end: throw the view away
    ...  # read the live topics from the hand-over offsets on
    if provenance(record.headers) is None and seen.add(event_id_of(record)):
        rebuild_projection(record)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Self, cast

Control = Literal["begin", "end", "cancelled"]
Handover = dict[str, dict[int, int] | None]
"""By live topic and partition: the offset to read on from. None: a topic's offsets are unknown."""
Kind = Literal["event", "begin", "end", "cancelled", "live", "other", "repeated"]
_CONTROLS = frozenset({"begin", "end", "cancelled"})
_OUTCOMES = frozenset({"end", "cancelled", None})
_MAX_PARTITIONS = 200_000
"""A topic that has more partitions, as a header says, does not exist: the header is damaged."""


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
    partitions: int | None = None
    """On control records: how many partitions of the topic get such a record. None on events, and
    on control records of older workers."""
    handover: Handover | None = field(default=None, hash=False)
    """On end records: from where to read on live. None if the record does not say it."""

    @property
    def event_id(self) -> str | None:
        """The event's id as text: the delivery id without the replay's id; None without one.

        A text, an ObjectId and a UUID are written as usual. Any other id is extended JSON
        (docs/mapping.md, "The event id").
        """
        prefix = f"{self.replay_id}:"
        if self.delivery_id is None or not self.delivery_id.startswith(prefix):
            return None
        return self.delivery_id.removeprefix(prefix)


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
        partitions=_partitions(found.get("replay-partitions")),
        handover=_handover(found.get("replay-handover")),
    )


class ReplayReader:
    """Says what each record is to the reader of one replay, and when the replay is complete.

    The replay needs ``control_records``. ``partitions`` are the topics and partitions that the
    caller reads, each from an offset at or before the replay's first record. Only the topics
    among them count: of a replay that publishes to several topics, a reader may read one.

    - Retries of the replay need no care: each event comes from one attempt only.
    - Records of other replays, and live records between them, change nothing.
    - A record that was taken before, such as after a restart, is "repeated".
    - A partition that the topic got during the replay counts too: see `open`. A partition that the
      topic got after the end does not.
    - A replay that failed has no end. It is complete after a retry, or never.

    The state is in memory. Save `state` together with what the records have changed.

    Raises ValueError if ``partitions`` is empty: such a reader would be complete at once.
    """

    def __init__(self, replay_id: str, partitions: Iterable[tuple[str, int]]) -> None:
        self.replay_id = replay_id
        self._next: dict[tuple[str, int], int] = {}
        self._ended: dict[tuple[str, int], Control] = {}
        self._counts: dict[str, int] = {}
        """Partitions of each topic at the end of the replay, where an end record has the number."""
        self._handover: Handover = {}
        self._read = {(topic, partition) for topic, partition in partitions}
        self._open: frozenset[tuple[str, int]] | None = None
        """What `open` answers; None if a record has changed the answer."""
        if not self._read:
            msg = "a reader of a replay needs the partitions that it reads, and got none"
            raise ValueError(msg)

    def take(self, topic: str, partition: int, offset: int, headers: Any) -> Kind:
        """Take one record; return what the record is.

        ========= =====================================================================
        event     an event of this replay: apply it
        begin     a control record: this replay begins here, or begins again by a retry
        end       a control record: this partition has every event of this replay
        cancelled a control record: this replay was cancelled; it will have no end
        live      a live record
        other     a record of another replay, or one behind this replay's end
        repeated  a record of this replay that was taken before
        ========= =====================================================================

        The offsets of a partition must ascend, but after a restart they may begin again at any
        lower offset. Headers are read as `provenance` reads them.
        """
        found = provenance(headers)
        if found is None:
            return "live"
        if found.replay_id != self.replay_id:
            return "other"
        place = (topic, partition)
        if offset < self._next.get(place, 0):
            return "repeated"
        if place in self._ended:  # the same id may be used again once the replay is forgotten
            return "other"
        if place not in self._read:
            self._read.add(place)
            self._open = None
        self._next[place] = offset + 1
        if found.control is None:
            return "event"
        if found.control != "begin":
            self._open = None
            self._ended[place] = found.control
            if found.partitions is not None:
                self._counts[topic] = found.partitions
            self._handover |= found.handover or {}
        return found.control

    @property
    def open(self) -> frozenset[tuple[str, int]]:
        """Topics and partitions in which the end of this replay is still to come.

        A partition that the caller does not read can be among them: the topic has got this
        partition during the replay. Read it too, from its beginning. One of several consumers of a
        group has done its part when ``open`` has none of the partitions that it reads.
        """
        if self._open is None:
            needed = {
                (topic, number) for topic, count in self._counts.items() for number in range(count)
            }
            needed |= {place for place in self._read if place[0] not in self._counts}
            self._open = frozenset(needed - self._ended.keys())
        return self._open

    @property
    def is_complete(self) -> bool:
        """Whether every event of this replay was taken."""
        return not self.open and not self.is_cancelled

    @property
    def is_cancelled(self) -> bool:
        """Whether the replay was cancelled: what was taken is a part, and no more will come."""
        return "cancelled" in self._ended.values()

    @property
    def handover(self) -> Handover:
        """From where to read on live: by topic and partition, what the end records say.

        None in place of a topic's offsets: they are unknown, and the replay's warnings say why. A
        topic that is not there has no known offset either: ``replay-app offsets`` may know more,
        because a record header has room for some thousand partitions only.
        """
        return {
            topic: dict(places) if places else places for topic, places in self._handover.items()
        }

    @property
    def next_offsets(self) -> dict[tuple[str, int], int]:
        """By topic and partition: the offset behind the last record of this replay that was taken.

        A caller that keeps no offsets in Kafka seeks there after a restart.
        """
        return dict(self._next)

    def state(self) -> dict[str, Any]:
        """Return the whole state in values that JSON has, for `from_state`."""
        return {
            "replay_id": self.replay_id,
            "partitions": [
                [*place, self._next.get(place, 0), self._ended.get(place)]
                for place in sorted(self._read)
            ],
            "counts": dict(self._counts),
            "handover": self._handover,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return a reader that goes on where `state` was called.

        Raises ValueError if this is no such state.
        """
        try:
            places = {
                (str(topic), int(number)): (int(offset), outcome)
                for topic, number, offset, outcome in state["partitions"]
            }
            reader = cls(str(state["replay_id"]), places)
            reader._counts = {str(topic): int(count) for topic, count in state["counts"].items()}
            reader._handover = _offsets_by_number(state["handover"])
            _require_outcomes(outcome for _, outcome in places.values())
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            msg = f"this is no state of a ReplayReader: {type(error).__name__}: {error}"
            raise ValueError(msg) from error
        reader._next = {place: offset for place, (offset, _) in places.items() if offset}
        reader._ended = {place: outcome for place, (_, outcome) in places.items() if outcome}
        return reader


class SeenIds:
    """The newest ids, at most ``limit`` of them: says whether an id is new.

    A replay and the live stream overlap, so that no event is missing between them. An event
    of the overlap comes twice. Give each event's id to `add`, and apply the event if the answer
    is True. Give the same id from both sides: an id of the event's value, or
    `Provenance.event_id` and the id that your producers send.

    ``limit`` must be higher than the number of events in the overlap, late ones included. A view
    whose rows are small can keep the ids in the row that the events change; then a few are enough.

    Raises ValueError if ``limit`` is below 1.
    """

    def __init__(self, limit: int, ids: Iterable[str] = ()) -> None:
        if limit < 1:
            msg = f"the limit of seen ids must be at least 1, not {limit}"
            raise ValueError(msg)
        self.limit = limit
        self._ids: dict[str, None] = {}
        for one in ids:
            self.add(one)

    def add(self, event_id: str) -> bool:
        """Remember an id. Return True if the id is new, False if it was seen before.

        The oldest id goes when there are more than ``limit``.
        """
        if event_id in self._ids:
            return False
        self._ids[event_id] = None
        if len(self._ids) > self.limit:
            del self._ids[next(iter(self._ids))]
        return True

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def state(self) -> list[str]:
        """Return the ids, the oldest first, for ``SeenIds(limit, ids)``."""
        return list(self._ids)


def _require_outcomes(outcomes: Iterable[Any]) -> None:
    """Refuse a state in which a partition has ended in a way that does not exist."""
    for outcome in outcomes:
        if outcome not in _OUTCOMES:
            msg = f"this is no state of a ReplayReader: {outcome!r} is no end of a partition"
            raise ValueError(msg)


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


def _partitions(text: str | None) -> int | None:
    number = _number(text)
    return number if number is not None and number <= _MAX_PARTITIONS else None


def _handover(text: str | None) -> Handover | None:
    """Return the hand-over that a header has; None if the header cannot be read."""
    try:
        return _offsets_by_number(json.loads(text)) if text else None
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None  # JSON may hold an infinite number


def _offsets_by_number(topics: Any) -> Handover:
    """Return offsets by the numbers of partitions, which are text in JSON."""
    return {
        str(topic): None
        if places is None
        else {int(number): int(offset) for number, offset in places.items()}
        for topic, places in topics.items()
    }
