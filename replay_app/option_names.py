"""Refusals for people who have typed options: the option stands in the place of the member."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("filter", "source", "target")
"""Members of a start command that are objects."""
_PLACE = re.compile(r"(^|; )([a-z_]+(?:\.[^:;\s]+)?)(?=: )")
"""Where a sentence of a refusal names a member, at its begin."""
_ASIDE = re.compile(r"\(([a-z_]+(?:\.[a-z_]+)?)\)")
"""Where a sentence names a member in parentheses, behind the value at fault."""
_RULE_MEMBERS = (
    *("start", "end", "event_types", "exclude_event_types", "aggregate_ids", "event_ids"),
    *("fields", "topic", "topics", "prefix", "shards", "ordering", "speed", "max_gap_seconds"),
    *("max_events", "max_lag", "consumers", "control_records", "transforms"),
)
"""Members that the rules about several members name, in the middle of a sentence."""
_RULE_WORD = re.compile(rf"(?<![-\w'\"])(?:{'|'.join(_RULE_MEMBERS)})(?![\w'\"])")


@dataclass(frozen=True)
class OptionNames:
    """Which members of a start command come from which options."""

    options: Mapping[str, str]
    """The option of each member, such as ``--start`` of ``filter.start``."""
    given: Collection[str]
    """The members whose options are given."""
    in_file: Mapping[str, Any]
    """The command of the ``--file``; its members keep their names."""

    def in_refusal(self, text: str) -> str:
        """Put the option in the place of each member that begins a sentence, or is set aside."""
        return _ASIDE.sub(self._aside, _PLACE.sub(self._place, text))

    def _place(self, found: re.Match[str]) -> str:
        first, *rest = found[2].split(".")
        inside = rest[1:] if first in PARTS else rest
        member = f"{first}.{rest[0]}" if first in PARTS and rest else f"body.{first}"
        if member not in self.given:
            return found[0]
        # The number of a list's item says nothing where each item has an option of its own.
        shown = "" if not inside or inside[0].isdecimal() else f" {'.'.join(inside)}"
        return f"{found[1]}{self.options[member]}{shown}"

    def _aside(self, found: re.Match[str]) -> str:
        member = found[1] if "." in found[1] else f"body.{found[1]}"
        return f"({self.options[member]})" if member in self.given else found[0]

    def in_rule(self, text: str) -> str:
        """Put options in the place of the members that a rule about several members names.

        Only for a refusal of `replay_app.commands`: its rules are about members in these words.
        """
        part, colon, rule = text.partition(": ")
        more: list[str] = []
        if not (colon and part in PARTS):
            part, (rule, *more) = "body", text.split(": ", 1)
        if part == "body" and rule.startswith("--"):
            return text  # about one member, which has its name
        known = {member.partition(".")[2]: option for member, option in self.options.items()}
        in_file = self.in_file if part == "body" else self.in_file.get(part, {})

        def name(found: re.Match[str]) -> str:
            word = found[0]
            is_given = any(f"{one}.{word}" in self.given for one in ("body", *PARTS))
            return word if word in in_file and not is_given else known[word]

        return ": ".join([_RULE_WORD.sub(name, rule), *more])
