"""Arguments of the command line: errors in plain words, and the values that options take."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from typing import NoReturn

from replay_app.exceptions import WrongUsage

AddCommand = Callable[..., ArgumentParser]
"""Adds a command to the program's parser, by name, action and help; returns its parser."""
_PLAIN_WORDS = (
    (r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", r"\1 takes one of \3, not \2"),
    (r"argument (\S+): expected one argument", r"\1 needs a value"),
    (r"argument (\S+): ignored explicit argument (.+)", r"\1 takes no value, but has \2"),
    (r"argument (\S+): (.+)", r"\1 \2"),
    (r"the following arguments are required: (.+)", r"\1 is missing"),
    (r"unrecognized arguments: (.+)", r"\1 is unknown"),
)
"""The messages of argparse, and ours."""


class PlainParser(ArgumentParser):
    """A parser that raises `WrongUsage`; the message names the option and what it takes."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        for theirs, ours in _PLAIN_WORDS:
            if found := re.fullmatch(theirs, message, re.DOTALL):
                message = found.expand(ours)
                break
        raise WrongUsage(f"{message}; see: {self.prog} --help")


def refuse(takes: str, text: str) -> NoReturn:
    """Refuse the value of an option that takes something else."""
    raise ArgumentTypeError(f"takes {takes}, not {text!r}")


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
