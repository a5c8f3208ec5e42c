"""Elements: the fields of a raw BSON document, read without the driver.

The driver loses what its Python values cannot hold: of two fields with one name it keeps the last,
and ``undefined`` becomes None. It refuses a whole document for one text that is not UTF-8. So the
place of an event in the order, and the faults of a document, are read from the bytes.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

UNDEFINED = 0x06
_DOCUMENT = 0x03
_ARRAY = 0x04
_FIXED_BYTES = {
    0x01: 8,  # double
    UNDEFINED: 0,
    0x07: 12,  # ObjectId
    0x08: 1,  # boolean
    0x09: 8,  # date
    0x0A: 0,  # null
    0x10: 4,  # int
    0x11: 8,  # timestamp
    0x12: 8,  # long
    0x13: 16,  # decimal
    0x7F: 0,  # MaxKey
    0xFF: 0,  # MinKey
}
_EXTRA_BYTES = {
    0x02: 4,  # string: its length stands before the bytes that the length counts
    _DOCUMENT: 0,  # the length counts itself
    _ARRAY: 0,
    0x05: 5,  # binary: the length and the subtype
    0x0C: 16,  # DBPointer: the length of the name, and an ObjectId
    0x0D: 4,  # code
    0x0E: 4,  # symbol
    0x0F: 0,  # code with scope
}
"""Bytes of a value beside those that its length counts."""
_REGEX = 0x0B
_LENGTH = struct.Struct("<i")


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value of any BSON type, as its bytes."""

    kind: int
    """The number of the BSON type."""
    content: bytes

    def __str__(self) -> str:
        """Return what a plan shows of the value."""
        return f"unreadable value of BSON type {self.kind}"

    @classmethod
    def of(cls, document: bytes) -> Self:
        """Return the value of the only field of a document, as `under` makes it."""
        ((_, value),) = elements(document)
        return cls(value.kind, value.content)

    def under(self, name: bytes) -> bytes:
        """Return the document that has the value as its only field."""
        body = bytes((self.kind,)) + name + b"\0" + self.content + b"\0"
        return _LENGTH.pack(len(body) + 4) + body


def elements(document: bytes) -> Iterator[tuple[bytes, StoredValue]]:
    """Yield the name and the value of each field of a raw document, or of a raw array.

    Raises
    ------
    ValueError
        When the bytes are not BSON. Documents inside the document are not looked into.

    """
    try:
        at, end = _LENGTH.size, len(document) - 1
        if _LENGTH.unpack_from(document)[0] != len(document) or document[end] != 0:
            raise ValueError(_NO_BSON)
        while at < end:
            kind = document[at]
            start = document.index(b"\0", at + 1) + 1
            after = start + _value_bytes(document, kind, start)
            if after > end:
                raise ValueError(_NO_BSON)
            yield document[at + 1 : start - 1], StoredValue(kind, document[start:after])
            at = after
    except (struct.error, IndexError) as error:
        raise ValueError(_NO_BSON) from error


_NO_BSON = "a length or a type in the document is wrong"


def _value_bytes(document: bytes, kind: int, start: int) -> int:
    if kind in _FIXED_BYTES:
        return _FIXED_BYTES[kind]
    if kind == _REGEX:
        options = document.index(b"\0", start) + 1
        return document.index(b"\0", options) + 1 - start
    length = _LENGTH.unpack_from(document, start)[0]
    if kind not in _EXTRA_BYTES or length < 0:
        raise ValueError(_NO_BSON)
    return int(length) + _EXTRA_BYTES[kind]


def values_at(document: bytes, path: str) -> list[StoredValue | None]:
    """Return the values that a reader may find at a dotted path; None stands for no field.

    There is one value, or several if a name on the path occurs more than once: the readers differ
    in which field they take. The path leads through documents only, not through arrays.

    Raises
    ------
    ValueError
        When the bytes are not BSON.

    """
    name, _, rest = path.partition(".")
    wanted = name.encode()
    fields = [value for field, value in elements(document) if field == wanted]
    found: list[StoredValue | None] = []
    for value in fields:
        if not rest:
            found.append(value)
        elif value.kind == _DOCUMENT:
            found += values_at(value.content, rest)
        else:
            found.append(None)
    return list(dict.fromkeys(found or [None]))


def require_bson(document: bytes) -> None:
    """Check the lengths and types of a document, and of the documents inside.

    Raises
    ------
    ValueError
        When the bytes are not BSON.
    RecursionError
        When the documents are nested too deeply.

    """
    for _ in faults(document, lambda _path: False):
        pass


def faults(document: bytes, is_relevant: Callable[[str], bool]) -> Iterator[str]:
    """Yield what the driver hides: names that occur more than once, and values of type undefined.

    ``is_relevant`` takes the dotted path of a field and says whether a fault there counts.

    Raises
    ------
    ValueError
        When the bytes are not BSON.
    RecursionError
        When the documents are nested too deeply.

    """
    yield from _faults(StoredValue(_DOCUMENT, document), "", is_relevant)


def _faults(outer: StoredValue, path: str, is_relevant: Callable[[str], bool]) -> Iterator[str]:
    fields = [(name.decode(errors="replace"), value) for name, value in elements(outer.content)]
    if outer.kind == _ARRAY:  # the place counts there, not the name
        fields = [(str(number), value) for number, (_, value) in enumerate(fields)]
    for name, count in Counter(name for name, _ in fields).items():
        if count > 1 and is_relevant(path + name):
            yield (
                f"it has the field {path + name!r} {count} times, and the store and the drivers do "
                "not read the same one"
            )
    for name, value in fields:
        if value.kind == UNDEFINED and is_relevant(path + name):
            yield f"field {path + name!r} is undefined, a BSON type which has no mapping to JSON"
        elif value.kind in {_DOCUMENT, _ARRAY}:
            yield from _faults(value, f"{path}{name}.", is_relevant)
