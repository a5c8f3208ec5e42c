"""Chain files: a chain as YAML, or as JSON, which is YAML too, with the line of each fault.

Values mean what they look like. A time is text, as in JSON. A number with a leading zero, ``yes``
and the like have another meaning in YAML than most people expect, so they are refused. What a
document may hold is bounded before anything is built: size, depth, and all values after aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from replay_app.chains import MAX_CHAIN_BYTES, Chain, InvalidChain, Place, read_chain
from replay_app.commands import first_of
from replay_app.exceptions import WrongUsage

MAX_DEPTH = 20
MAX_VALUES = 200_000
"""Values of a document, those behind each alias counted again."""
MAX_DIGITS = 100
"""Characters of a number. Python refuses to read a very long one, with an error of its own."""
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_PAIR = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE
)
"""JSON's escapes for a character beyond U+FFFF, behind whole pairs of backslashes."""
_TAG = "tag:yaml.org,2002:"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's parser, where PyYAML is built with it: many times faster."""


class WrongChainFile(WrongUsage):
    """The file is no chain; each sentence names the file, the line and the fault."""

    def __init__(self, *sentences: str) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


class _Wrong(Exception):
    """Something in the file is wrong, in a line."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")


@dataclass(slots=True)
class _Node:
    """A collection that is being read, and where it stands."""

    place: Place
    line: int
    value: Any
    """A dict or a list."""
    anchor: str | None
    key: str | None = None
    """The key whose value comes next."""
    values: int = 1
    key_lines: dict[str, int] = field(default_factory=dict)


def read_chain_file(name: str, content: bytes) -> tuple[Chain, dict[str, Any]]:
    """Return the chain of a file, and the members that the file has.

    Raises
    ------
    WrongChainFile
        The file is no chain.

    """
    if len(content) > MAX_CHAIN_BYTES:
        msg = f"{name} has {len(content):,} bytes, at most {MAX_CHAIN_BYTES:,} are allowed"
        raise WrongChainFile(msg)
    if content.lstrip().startswith(b"{"):
        content = _PAIR.sub(_character, content)
    try:
        members, lines = _Reader(content).read()
    except _Wrong as error:
        raise WrongChainFile(f"{name}, {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongChainFile(f"{name} is not YAML: {_yaml_words(error)}") from error
    if not isinstance(members, dict):
        msg = f"{name} is not a chain: write an object with chain and replays"
        raise WrongChainFile(msg)
    try:
        return read_chain(members), members
    except InvalidChain as error:
        told = sorted((_line_of(fault.place, lines), str(fault)) for fault in error.faults)
        sentences = first_of([f"{name}, line {line}: {text}" for line, text in told])
        raise WrongChainFile(*sentences) from error


def _character(pair: re.Match[bytes]) -> bytes:
    """Return the character that JSON writes as two escapes, in UTF-8: YAML knows no such pairs."""
    before, *halves = pair.groups()
    units = b"".join(bytes.fromhex(half.decode()) for half in halves)
    return bytes(before) + units.decode("utf-16-be").encode()


def _line_of(place: Place, lines: dict[Place, int]) -> int:
    """Return the line of a place, or of what stands around it."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _yaml_words(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        context = f" {error.context}" if error.context else ""
        return f"line {error.problem_mark.line + 1}: {error.problem}{context}"
    return str(error).partition("\n")[0]


class _Reader:
    """Builds the value of a YAML document from the parser's events, without recursion."""

    def __init__(self, content: bytes) -> None:
        self._loader = _LOADER(content)
        self._lines: dict[Place, int] = {}
        self._anchors: dict[str, tuple[Any, int]] = {}
        """By anchor: a finished value, and how many values it has."""
        self._open: list[_Node] = []
        self._value: Any = None

    def read(self) -> tuple[Any, dict[Place, int]]:
        """Return the document's value, and the line of each place."""
        documents = 0
        for event in self._events():
            line = event.start_mark.line + 1
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise _Wrong(line, "a second document begins; a file has one chain")
                case yaml.ScalarEvent():
                    self._take_scalar(event, line)
                case yaml.AliasEvent():
                    self._take_alias(event.anchor, line)
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._begin(event, line)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._end()
        if not documents:
            raise _Wrong(1, "the file is empty; write an object with chain and replays")
        return self._value, self._lines

    def _events(self) -> Iterator[Any]:
        try:
            while self._loader.check_event():
                yield self._loader.get_event()
        finally:
            self._loader.dispose()

    def _begin(self, event: Any, line: int) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        kind = "map" if is_mapping else "seq"
        if event.tag not in {None, "!", f"{_TAG}{kind}"}:
            raise _Wrong(line, f"the tag {event.tag!r:.100} is not allowed")
        if len(self._open) >= MAX_DEPTH:
            raise _Wrong(line, f"more than {MAX_DEPTH} lists and objects within each other")
        place = self._next_place(line)
        value: Any = {} if is_mapping else []
        self._open.append(_Node(place, line, value, event.anchor))

    def _end(self) -> None:
        node = self._open.pop()
        self._finish(node.value, node.place, node.line, node.anchor, node.values)

    def _take_scalar(self, event: Any, line: int) -> None:
        node = self._open[-1] if self._open else None
        if node is not None and isinstance(node.value, dict) and node.key is None:
            self._take_key(node, event.value, line)
            return
        value = self._scalar(event, line)
        self._finish(value, self._next_place(line), line, event.anchor, 1)

    def _take_key(self, node: _Node, key: str, line: int) -> None:
        if key == "<<":
            raise _Wrong(line, "'<<' is not supported: write the members out, or under defaults")
        if key in node.key_lines:
            raise _Wrong(line, f"{key!r:.100} is here twice, first in line {node.key_lines[key]}")
        node.key, node.key_lines[key] = key, line
        self._lines[*node.place, key] = line

    def _take_alias(self, anchor: str, line: int) -> None:
        if anchor not in self._anchors:
            raise _Wrong(line, f"*{anchor} has no finished value with the name &{anchor} before it")
        value, values = self._anchors[anchor]
        self._finish(value, self._next_place(line), line, None, values)

    def _next_place(self, line: int) -> Place:
        """Return the place of the value that comes next."""
        if not self._open:
            return ()
        node = self._open[-1]
        if isinstance(node.value, list):
            return (*node.place, len(node.value))
        if node.key is None:
            raise _Wrong(line, "a name must be text")
        return (*node.place, node.key)

    def _finish(self, value: Any, place: Place, line: int, anchor: str | None, values: int) -> None:
        """Put a finished value where it belongs."""
        self._lines.setdefault(place, line)
        if anchor is not None:
            self._anchors[anchor] = (value, values)
        if not self._open:
            self._value = value
            return
        node = self._open[-1]
        node.values += values
        if node.values > MAX_VALUES:
            raise _Wrong(line, f"more than {MAX_VALUES:,} values, those behind aliases included")
        if isinstance(node.value, list):
            node.value.append(value)
        else:
            node.value[node.key] = value
            node.key = None

    def _scalar(self, event: Any, line: int) -> Any:
        """Return the value of a scalar: text, a number, true, false or null."""
        text = event.value
        tag = event.tag
        if tag in {None, "!"}:
            tag = self._loader.resolve(yaml.ScalarNode, text, event.implicit)
        match tag.removeprefix(_TAG):
            case "str" | "timestamp":
                return text
            case "null":
                return None
            case "bool" if text.lower() in {"true", "false"}:
                return text.lower() == "true"
            case "int" | "float" if _NUMBER.fullmatch(text):
                if len(text) > MAX_DIGITS:
                    raise _Wrong(line, f"a number of {len(text):,} digits is too long")
                return int(text) if tag.endswith("int") else float(text)
            case "bool":
                raise _Wrong(line, f"{text!r:.100}: write true or false; put text into quotes")
            case "int" | "float":
                what = f"{text!r:.100}: a number is written as 1000 or 0.5; put text into quotes"
                raise _Wrong(line, what)
            case _:
                raise _Wrong(line, f"{text!r:.100}: put the text into quotes; tags are not allowed")
