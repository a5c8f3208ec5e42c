"""Chains: replays that wait for each other, checked as a whole before one of them starts.

A chain is one object with its name, defaults, and replays by their short names::

    {"chain": "rebuild-shop", "defaults": {"control_records": true},
     "replays": {"orders": {"filter": {...}, "consumers": ["orders-view"]},
                 "customers": {"filter": {...}, "after": ["orders"]}}}

Each replay is a start command (`replay_app.commands.Start`) with the id ``CHAIN.NAME``. A member
that a replay leaves out has the value of ``defaults``; the members of ``target`` are merged one by
one. ``after`` names replays of the same chain, by their short names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from replay_app.commands import (
    CHOICE_RULE,
    MAX_AFTER,
    MAX_COMMAND_BYTES,
    MAX_SENTENCES,
    REPLAY_ID,
    REPLAY_ID_RULE,
    Fault,
    Filter,
    Start,
    faults_of,
    first_of,
)
from replay_app.exceptions import InvalidCommand

MAX_REPLAYS = 1000
"""Replays of one chain."""
MAX_CHAIN_BYTES = 4_000_000
"""Of a chain as it is written, and of all its start commands together."""
MEMBERS = ("chain", "defaults", "replays")
MADE = ("chain", "command", "replay_id")
"""Members of a start that the names of chain and replay give."""
NOT_COMPARED = ("requested_by", "to_original")
"""Whoever applies a chain again, with whatever consent, is no change of the chain."""
MAX_VALUE = 60
"""Characters of a value in a message."""
MAX_SUGGESTED = 5
MAX_FAULTS = 200
"""After this number the rest of a chain is not checked: who has mended these may try again."""
MAX_PATH = 20
"""Replays of a circle that a message shows."""

Place = tuple[str | int, ...]


class InvalidChain(InvalidCommand):
    """The chain cannot be applied; nothing is sent."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = list(dict.fromkeys(faults))
        """Each fault once: a wrong default is one fault, whatever the number of replays."""
        super().__init__("; ".join(first_of([str(fault) for fault in self.faults])))


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain whose replays can be started."""

    name: str
    levels: tuple[tuple[Start, ...], ...]
    """The start commands, parents first: each waits only for replays of the levels before."""

    @property
    def starts(self) -> tuple[Start, ...]:
        """All start commands, parents first."""
        return tuple(start for level in self.levels for start in level)


def read_chain(members: Mapping[str, Any]) -> Chain:
    """Return the chain that the members describe.

    Raises
    ------
    InvalidChain
        Something is wrong; each fault names its place.

    """
    name, defaults, replays = _parts(members)
    checked = _Checked(name, defaults, replays)
    if not checked.faults:
        # A cycle among replays that are wrong in other ways may end when they are corrected.
        checked.faults += _cycle(checked.parents)
    if checked.faults:
        raise InvalidChain(checked.faults)
    sorter, levels = TopologicalSorter(checked.parents), []
    sorter.prepare()
    while ready := set(sorter.get_ready()):
        levels.append(tuple(start for short, start in checked.starts.items() if short in ready))
        sorter.done(*ready)
    return Chain(name, tuple(levels))


def differences(there: Start, here: Start) -> list[str]:
    """Return in which members two start commands differ; NOT_COMPARED is left out."""
    old, new = (_flat(one.model_dump(mode="json")) for one in (there, here))
    return [
        f"{member} is {_shown(old.get(member))} there and {_shown(new.get(member))} here"
        for member in sorted(old.keys() | new.keys())
        if old.get(member) != new.get(member)
    ]


def _flat(members: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in members.items():
        if name in {"filter", "target"}:
            flat |= {f"{name}.{inner}": one for inner, one in value.items()}
        elif name not in NOT_COMPARED:
            flat[name] = value
    return flat


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def _parts(members: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return name, defaults and replays of a chain, if their form is right."""
    faults = [
        Fault((name,), f"unknown field; a chain has {', '.join(MEMBERS)}")
        for name in members.keys() - set(MEMBERS)
    ]
    name, defaults, replays = members.get("chain"), members.get("defaults"), members.get("replays")
    if not isinstance(name, str) or not REPLAY_ID.match(name):
        faults.append(Fault(("chain",), f"a chain's name is {REPLAY_ID_RULE}"))
    defaults = {} if defaults is None else defaults
    if isinstance(defaults, dict):
        faults += _wrong_defaults(defaults)
    else:
        faults.append(Fault(("defaults",), "must be an object"))
    if not isinstance(replays, dict) or not replays:
        what = "must be an object with at least one replay, by its short name"
        faults.append(Fault(("replays",), what))
    elif len(replays) > MAX_REPLAYS:
        what = f"has {len(replays):,} replays, a chain has at most {MAX_REPLAYS:,}"
        faults.append(Fault(("replays",), what))
    if faults:
        raise InvalidChain(faults)
    return str(name), defaults, dict(replays or {})


def _wrong_defaults(defaults: dict[str, Any]) -> list[Fault]:
    faults = []
    for name in defaults:
        place = ("defaults", name)
        if name in MADE:
            faults.append(Fault(place, "is made from the names of the chain and of the replay"))
        elif name == "after":
            faults.append(Fault(place, "belongs to a replay: not every replay can wait"))
        elif name not in Start.model_fields:
            faults.append(Fault(place, "unknown field"))
    return faults


class _Checked:
    """The replays of a chain: their start commands, and what is wrong with them."""

    def __init__(self, chain: str, defaults: dict[str, Any], replays: dict[str, Any]) -> None:
        self.faults: list[Fault] = []
        self.starts: dict[str, Start] = {}
        """By short name."""
        self.parents: dict[str, list[str]] = {short: [] for short in replays}
        """By short name: the short names of ``after``."""
        self._chain = chain
        self._defaults = defaults
        self._replays = replays
        self._names = list(replays)
        self._bytes = 0
        for short, written in replays.items():
            self._check(short, {} if written is None else written)
            if self._bytes > MAX_CHAIN_BYTES:
                what = (
                    f"with the defaults, the replays have more than {MAX_CHAIN_BYTES:,} bytes: "
                    "name fewer ids, or make several chains"
                )
                self.faults.append(Fault(("replays",), what))
            if len(self.faults) >= MAX_FAULTS or self._bytes > MAX_CHAIN_BYTES:
                return
        self._check_consumed()

    def _check(self, short: str, written: Any) -> None:
        place: Place = ("replays", short)
        replay_id = f"{self._chain}.{short}"
        if not REPLAY_ID.match(short) or not REPLAY_ID.match(replay_id):
            what = f"the replay's id would be {replay_id!r:.160}, and an id is {REPLAY_ID_RULE}"
            self.faults.append(Fault(place, what))
            return
        if not isinstance(written, dict):
            self.faults.append(Fault(place, "must be an object"))
            return
        made = [name for name in MADE if name in written]
        for name in made:
            what = "is made from the names of the chain and of the replay"
            self.faults.append(Fault((*place, name), what))
        if made:
            return
        made_members = {"command": "start", "replay_id": replay_id, "chain": self._chain}
        members = {**self._defaults, **written, **made_members}
        targets = (self._defaults.get("target"), written.get("target"))
        hint = ""
        if all(isinstance(target, dict) for target in targets):
            members["target"] = {**targets[0], **targets[1]}  # type: ignore[dict-item]
            hint = "; the defaults are merged in, and a member with null is left out"
        if isinstance(written.get("after"), list):
            members["after"] = self._parents_of(short, written["after"])
        size = len(json.dumps(members, default=str))
        self._bytes += size
        if size > MAX_COMMAND_BYTES:
            what = f"has {size:,} bytes, at most {MAX_COMMAND_BYTES:,} are allowed"
            self.faults.append(Fault(place, what))
            return
        try:
            start = self.starts[short] = Start.model_validate(members)
        except ValidationError as error:
            self.faults += [
                Fault(
                    self._place_of(short, written, fault.place),
                    fault.what + (hint if fault.place == ("target",) else ""),
                )
                for fault in faults_of(error)
            ]
            return
        if start.filter == Filter():
            where = self._place_of(short, written, ("filter",)) if "filter" in members else place
            self.faults.append(Fault(where, f"filter: {CHOICE_RULE}"))

    def _place_of(self, short: str, written: dict[str, Any], inside: Place) -> Place:
        """Return the place of a member: in the replay, or in the defaults that have it."""
        member, *rest = inside or ("",)
        own, default = written.get(str(member)), self._defaults.get(str(member))
        is_merged = member == "target" and isinstance(own, dict) and isinstance(default, dict)
        if is_merged and rest and rest[0] not in dict(own or {}) and rest[0] in dict(default or {}):
            return ("defaults", *inside)
        if not inside or member in written or member not in self._defaults:
            return ("replays", short, *inside)
        return ("defaults", *inside)

    def _parents_of(self, short: str, after: list[Any]) -> list[Any]:
        """Return ``after`` with ids in the place of short names."""
        if len(after) > MAX_AFTER:
            return after  # refused by the start's own check
        found: list[Any] = []
        for number, one in enumerate(after):
            parent = one.get("replay") if isinstance(one, dict) else one
            if not isinstance(parent, str):
                found.append(one)  # refused by the start's own check
                continue
            if parent not in self._replays:
                what = f"the chain has no replay {parent!r:.160}; {self._suggestion(parent)}"
                self.faults.append(Fault(("replays", short, "after", number), what))
                continue
            self.parents[short].append(parent)
            replay_id = f"{self._chain}.{parent}"
            found.append({**one, "replay": replay_id} if isinstance(one, dict) else replay_id)
        return found

    def _suggestion(self, unknown: str) -> str:
        names, written = self._names, unknown.removeprefix(f"{self._chain}.")
        # The search is slow: not for faults that no message shows, and not for what is no name.
        is_worth_it = len(self.faults) < MAX_SENTENCES and REPLAY_ID.match(written)
        near = get_close_matches(written, names, 1) if is_worth_it else ()
        if near:
            return f"do you mean {near[0]!r}?"
        more = ", ..." if len(names) > MAX_SUGGESTED else ""
        return f"it has {', '.join(names[:MAX_SUGGESTED])}{more}"

    def _check_consumed(self) -> None:
        """Refuse to wait for consumers that a replay does not name."""
        for short, start in self.starts.items():
            for number, parent in enumerate(start.parents):
                name = parent.replay.removeprefix(f"{self._chain}.")
                if parent.consumed and name in self.starts and not self.starts[name].consumers:
                    what = (
                        f"replay {name!r} names no consumers, so nobody can tell when it is "
                        "consumed: name them there, or leave `consumed` out"
                    )
                    self.faults.append(Fault(("replays", short, "after", number), what))


def _cycle(parents: Mapping[str, list[str]]) -> list[Fault]:
    """Return the fault of replays that wait for each other, if there are such."""
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        path: list[str] = list(reversed(error.args[1]))  # each replay waits for the next one
        shown = path
        if len(path) > MAX_PATH:
            shown = [*path[: MAX_PATH - 1], f"({len(path) - MAX_PATH} more)", path[-1]]
        what = f"replays wait for each other: {' -> '.join(shown)}; one of them must not wait"
        return [Fault(("replays", path[0], "after"), what)]
    return []
