"""Arguments of the command line: errors in plain words, and the values that options take."""

from __future__ import annotations

import re
from argparse import PARSER, Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, NoReturn, get_args

from replay_app.exceptions import WrongUsage
from replay_app.states import State
from replay_app.times import WrongTime, parse_time, utc_text

AddCommand = Callable[..., ArgumentParser]
"""Adds a command to the program's parser, by name, action and help; returns its parser."""
LAST = "@last"
"""Stands for the id of the newest replay."""
TIME_HELP = (
    "such as 2026-01-10, '2026-01-10 14:00 Europe/Berlin', 2h (ago) or yesterday; local time where "
    "no zone is named"
)
_CHOICE = re.compile(r"argument (\S+): invalid choice: '(.*)' \(choose from (.+)\)", re.DOTALL)
_UNKNOWN = re.compile(r"unrecognized arguments: (.+)", re.DOTALL)
_PLAIN_WORDS = (
    (r"argument (\S+): expected one argument", r"\1 needs a value"),
    (r"argument (\S+): ignored explicit argument (.+)", r"\1 takes no value, but has \2"),
    (r"argument (\S+): (.+)", r"\1 \2"),
    (r"the following arguments are required: (.+)", r"\1 is missing"),
)
"""The messages of argparse, and ours."""


class PlainParser(ArgumentParser):
    """A parser that raises `WrongUsage`; the message names the option and what it takes.

    Where a command, an option or a value is misspelt, the message names the nearest one.
    """

    @property
    def actions(self) -> list[Action]:
        """The arguments and options of this parser."""
        return self._actions

    @property
    def commands(self) -> dict[str, PlainParser]:
        """The parser of each command, if this is the parser of a program."""
        for one in self._actions:
            if self.is_choice_of(one) and isinstance(one.choices, dict):
                return one.choices
        return {}

    def is_choice_of(self, action: Action) -> bool:
        """Return whether an action is the choice of a command."""
        return action.nargs == PARSER

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Namespace, list[str]]:
        """Parse the arguments; refuse those that this parser, and so this command, does not know.

        argparse would leave them to the parser of the whole program, which does not know the
        options of the command.
        """
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        words = self._in_plain_words(message)
        see = " See" if words.endswith("?") else "; see"
        raise WrongUsage(f"{words}{see}: {self.prog} --help")

    def _in_plain_words(self, message: str) -> str:
        if found := _CHOICE.fullmatch(message):
            name, wrong, choices = found.groups()
            meant = nearest(wrong, re.findall(r"'([^']*)'", choices))
            if name == "COMMAND":
                return f"there is no command {wrong!r}{meant}"
            return f"{name} takes one of {choices}, not {wrong!r}{meant}"
        if found := _UNKNOWN.fullmatch(message):
            meant = nearest(found[1].split()[0], self._option_string_actions)
            return f"{found[1]} is unknown{meant}"
        for theirs, ours in _PLAIN_WORDS:
            if found := re.fullmatch(theirs, message, re.DOTALL):
                return found.expand(ours)
        return message


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return a question for the known word that is most like the wrong one; "" without one."""
    meant = get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {meant[0]}?" if meant else ""


def add_replay_id(parser: ArgumentParser, **more: Any) -> None:
    """Add the argument that names a replay; ``replay_app.cli`` puts an id in the place of LAST."""
    parser.add_argument(
        "replay_id", help=f"the id of the replay; {LAST} is the newest replay", **more
    )


def refuse(takes: str, text: str) -> NoReturn:
    """Refuse the value of an option that takes something else."""
    raise ArgumentTypeError(f"takes {takes}, not {text!r}")


def moment(text: str) -> str:
    """Read a time as people write it; return it as a command's body has it, in UTC."""
    now = datetime.now(UTC).replace(microsecond=0)  # nobody means a part of a second
    try:
        return utc_text(parse_time(text, now))
    except WrongTime as error:
        raise ArgumentTypeError(str(error)) from None


def state(text: str) -> str:
    """Read the name of a replay's state."""
    states = get_args(State)
    if text not in states:
        meant = nearest(text, states)
        raise ArgumentTypeError(f"takes one of {', '.join(states)}, not {text!r}{meant}")
    return text


def whole(text: str) -> int:
    """Read a whole number."""
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        refuse("a whole number", text)
    return int(text)


def positive(text: str) -> int:
    """Read a positive whole number."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        refuse("a positive whole number", text)
    return int(text)


def positive_number(text: str) -> float:
    """Read a positive number."""
    number = _number(text)
    if number is None:
        refuse("a positive number", text)
    return number


def rate(text: str) -> float | None:
    """Read a rate: a positive number; None for no limit."""
    number = _number(text)
    if number is None and text not in {"none", "null"}:
        refuse("a positive number of events per second, or none", text)
    return number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None
