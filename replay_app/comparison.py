"""What a replay must have published, compared with what its topics hold: record by record.

Both sides come in any pace. A record that has no counterpart yet waits in memory, in bounds: if
too much waits, the oldest records are given up and count as records without a counterpart.

Pure code, without I/O: `replay_app.verify` reads both sides.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from replay_app.partitioner import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_WAITING = 200_000
"""Records of one side that may wait for their counterparts."""
MAX_WAITING_BYTES = 64 << 20
"""Bytes of the keys and values of one side's records that may wait."""
MAX_LISTED = 100
"""Differences of a verification that are listed; all of them are counted."""

SAME_VALUE, OTHER_VALUE = "same-value", "other-value"
"""The kinds of pairs that differ. The verdict says whether the store has changed."""
CONTENT = ("key", "value", "header replay-original-time", "timestamp")
"""What the pairs of records have in common, in the order of their last members."""


class Expected(NamedTuple):
    """A record that the store says must be in the topics."""

    delivery_id: bytes
    lane: int
    """The shard. Its records are in order within each partition."""
    place: int
    """Place in the lane's order; tied events have the same place."""
    partition: int
    """Index in the list of partitions."""
    key: bytes | None
    value: bytes | None
    time: bytes | None
    """The header ``replay-original-time``."""
    timestamp: int = 0
    """Milliseconds since 1970. 0 where timestamps are not compared."""


class Found(NamedTuple):
    """A record of the replay in its topics."""

    delivery_id: bytes
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    time: bytes | None
    timestamp: int = 0


class Difference(NamedTuple):
    """One difference, for people."""

    kind: str
    event_id: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    detail: str = ""


Item = TypeVar("Item", Expected, Found)


class Unmatched(Generic[Item]):
    """The records of one side that wait for their counterparts, the oldest first."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: dict[bytes, Item] = {}
        self._twins: dict[bytes, deque[Item]] = {}
        """More records with the same delivery id, in their order."""
        self._twin_count = 0
        self._bytes = 0
        """Of the keys and values. Bytes of records that are taken away count until `overflow`."""

    def __len__(self) -> int:
        return len(self._items) + self._twin_count

    def __iter__(self) -> Iterator[Item]:
        for delivery_id, item in self._items.items():
            yield item
            yield from self._twins.get(delivery_id, ())

    def add(self, item: Item) -> None:
        """Let a record wait."""
        self._bytes += _size(item)
        if self._items.setdefault(item.delivery_id, item) is not item:
            self._twins.setdefault(item.delivery_id, deque()).append(item)
            self._twin_count += 1

    def extend(self, items: Sequence[Item]) -> None:
        """Let records wait."""
        ids = [item.delivery_id for item in items]
        if len(set(ids)) == len(ids) and self._items.keys().isdisjoint(ids):
            self._items.update(zip(ids, items, strict=True))
            self._bytes += sum(map(_size, items))
            return
        for item in items:
            self.add(item)

    def pop(self, delivery_id: bytes) -> Item | None:
        """Return the oldest record with this delivery id, which waits no more."""
        item = self._items.pop(delivery_id, None)
        if self._twin_count and (twins := self._twins.pop(delivery_id, None)):
            self._items[delivery_id] = twins.popleft()
            self._twin_count -= 1
            if twins:
                self._twins[delivery_id] = twins
        return item

    def overflow(self) -> Iterator[Item]:
        """Remove and yield the oldest records until the rest is within the bounds."""
        if self._bytes > self._max_bytes:
            self._bytes = sum(map(_size, self))
        while len(self) > self._max_items or (self._bytes > self._max_bytes and len(self) > 1):
            item = self.pop(next(iter(self._items)))
            if item is not None:
                self._bytes -= _size(item)
                yield item


def _size(item: Expected | Found) -> int:
    return len(item.key or b"") + len(item.value or b"")


@dataclass
class Comparison:
    """The comparison of the two sides, in memory that does not grow with the number of records."""

    partitions: list[tuple[str, int]]
    """Topic and number of each partition. The caller may append while records come."""
    grown: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Topics that have more partitions than planned: the planned number, and the present one. A key
    may stand where any number between gives its place."""
    max_waiting: int = MAX_WAITING
    max_waiting_bytes: int = MAX_WAITING_BYTES
    expected: int = 0
    """Records that the store says."""
    records: int = 0
    """Records of the topics."""
    bytes: int = 0
    """Bytes of the values in the topics."""
    by_topic: Counter[str] = field(default_factory=Counter)
    """Records of the topics."""
    differing: int = 0
    """Pairs with another key, value or time."""
    same_value: int = 0
    """Those of them whose values are the same."""
    other_timestamp: int = 0
    """Pairs with another timestamp, and with nothing else that differs."""
    misplaced: int = 0
    """Equal pairs whose partition is not that of the key."""
    unordered: int = 0
    """Equal pairs that stand behind a record which comes later in their lane."""
    lost_waiting: int = 0
    """Records of the store that were given up before their counterpart came."""
    lost_early: int = 0
    """Records of the topics that were given up before their counterpart came."""
    differences: list[Difference] = field(default_factory=list)
    """The first MAX_LISTED of the differences between pairs."""
    given_up: list[Expected | Found] = field(default_factory=list)
    """The first MAX_LISTED records that were given up."""

    def __post_init__(self) -> None:
        """Make what depends on the bounds."""
        self.waiting: Unmatched[Expected] = Unmatched(self.max_waiting, self.max_waiting_bytes)
        """Records of the store without a counterpart yet."""
        self.early: Unmatched[Found] = Unmatched(self.max_waiting, self.max_waiting_bytes)
        """Records of the topics without a counterpart yet."""
        self.waiting_in: Counter[int] = Counter()
        """By partition: how many records of the store wait."""
        self.waiting_of: Counter[int] = Counter()
        """By lane: how many records of the store wait."""
        self._last: defaultdict[int, defaultdict[int, tuple[int, int]]] = defaultdict(
            lambda: defaultdict(lambda: (-1, -1))
        )
        """By partition and lane: the highest place and the highest offset of an equal pair."""

    @property
    def has_other_timestamps(self) -> bool:
        """Whether every pair has another timestamp, and nothing else differs in any of them."""
        matched = self.expected - len(self.waiting) - self.lost_waiting
        return 0 < self.other_timestamp == matched

    def expect(self, records: Sequence[Expected]) -> None:
        """Add records of the store, in the order of their lane."""
        early, waiting = self.early, self.waiting
        self.expected += len(records)
        if early:
            pairs = [(expected, early.pop(expected.delivery_id)) for expected in records]
            records = [expected for expected, found in pairs if found is None]
            for expected, found in pairs:
                if found is not None:
                    self._match(expected, found)
        waiting.extend(records)
        self.waiting_in.update(expected.partition for expected in records)
        self.waiting_of.update(expected.lane for expected in records)
        for expected in waiting.overflow():
            self._forget([expected])
            self.lost_waiting += 1
            self._give_up(expected)

    def take(self, records: Sequence[Found]) -> None:
        """Add records of one partition, in their order."""
        if not records:
            return
        early, pop = self.early, self.waiting.pop
        self.records += len(records)
        self.bytes += sum(len(found.value or b"") for found in records)
        partition = records[0].partition
        self.by_topic[self.partitions[partition][0]] += len(records)
        matched, last = list[Expected](), self._last[partition]
        for found in records:
            expected = pop(found[0])
            if expected is None:
                early.add(found)
                continue
            matched.append(expected)
            place, offset = last[expected[1]]
            is_in_order = place <= expected[2] and offset < found[2]
            if is_in_order and partition == expected[3] and expected[4:] == found[3:]:
                last[expected[1]] = expected[2], found[2]
            else:  # rare
                self._match(expected, found)
        self._forget(matched)
        for found in early.overflow():
            self.lost_early += 1
            self._give_up(found)

    def _forget(self, matched: Sequence[Expected]) -> None:
        """Count records of the store that wait no more."""
        for partition, count in Counter(one.partition for one in matched).items():
            self.waiting_in[partition] -= count
        for lane, count in Counter(one.lane for one in matched).items():
            self.waiting_of[lane] -= count

    def _give_up(self, record: Expected | Found) -> None:
        if len(self.given_up) < MAX_LISTED:
            self.given_up.append(record)

    def _match(self, expected: Expected, found: Found) -> None:
        """Compare a pair.

        A pair is made when the later one of its records comes. If the partition is in the lane's
        order, then pairs are made in this order, however the two sides take turns: place and offset
        both rise from pair to pair.
        """
        _, lane, place, own_partition, *content = expected
        _, partition, offset, *found_content = found
        if content != found_content:
            self.differing += 1
            pairs = zip(CONTENT, content, found_content, strict=True)
            other = " and ".join(name for name, one, another in pairs if one != another)
            has_same_value = content[1] == found_content[1]
            self.same_value += has_same_value
            self.other_timestamp += content[:-1] == found_content[:-1]
            kind = SAME_VALUE if has_same_value else OTHER_VALUE
            self._list(kind, found, f"another {other} than the stored event")
            return  # an event that was changed since may have its place elsewhere
        if own_partition != partition and not self._may_have_moved(expected, found):
            self.misplaced += 1
            topic, number = self.partitions[own_partition]
            self._list("misplaced", found, f"its partition is {topic}[{number}]")
            return
        last_place, last_offset = self._last[partition][lane]
        if place < last_place or offset < last_offset:
            self.unordered += 1
            self._list("unordered", found, "behind a record that comes later in the store's order")
        self._last[partition][lane] = max(place, last_place), max(offset, last_offset)

    def _may_have_moved(self, expected: Expected, found: Found) -> bool:
        topic, number = self.partitions[found.partition]
        if topic not in self.grown or topic != self.partitions[expected.partition][0]:
            return False
        planned, now = self.grown[topic]
        key = expected.key or b""
        return any(partition_of(key, count) == number for count in range(planned, now + 1))

    def _list(self, kind: str, found: Found, detail: str) -> None:
        if len(self.differences) < MAX_LISTED:
            self.differences.append(self.describe(kind, found, detail))

    def describe(self, kind: str, record: Expected | Found, detail: str) -> Difference:
        """Return a difference that names a record and its place."""
        topic, partition = self.partitions[record.partition]
        _, _, event_id = record.delivery_id.decode(errors="replace").partition(":")
        offset = record.offset if isinstance(record, Found) else None
        return Difference(kind, event_id, topic, partition, offset, detail)
