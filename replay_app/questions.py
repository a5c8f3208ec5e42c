"""Questions on a terminal, before a command does what cannot be taken back.

Nothing is asked where standard input or output is no terminal, or where ``--json`` is given: a
program has no answer.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence

from replay_app.exceptions import ReplayError, WrongUsage
from replay_app.logs import escaped
from replay_app.terminal import say

YES = ("y", "yes")


class NotConfirmed(ReplayError):
    """The person at the terminal has not confirmed the command; nothing is done."""


def add_yes(parser: ArgumentParser, text: str) -> None:
    """Add the option that skips a question."""
    parser.add_argument("--yes", action="store_true", help=text)


def can_ask(options: Namespace) -> bool:
    """Return whether a person sits at the terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not options.json


def require_yes(question: str, done: str) -> None:
    """Ask a question. Raises `NotConfirmed` if the answer is not yes; ``done`` says what is not."""
    if _answer(f"{question} [y/N] ").casefold() not in YES:
        raise NotConfirmed(f"not confirmed: {done}")


def require_original(
    options: Namespace, replays: Iterable[str], topics: Sequence[str], remedy: str
) -> None:
    """Ask for the consent to publish to live topics: yes, "original", or one of the topics.

    ``replays`` are the replays that may reach them, ``remedy`` is how a program gives the consent.

    Raises
    ------
    WrongUsage
        Nobody can be asked.
    NotConfirmed
        The answer is not yes.

    """
    which = ", ".join(replays)
    what = f"{which} publishes to the events' original topics, which live consumers read"
    if not can_ask(options) or getattr(options, "yes", False):
        raise WrongUsage(f"{what}: {remedy}, or choose another target with --prefix or --to-topic")
    named = ", ".join(topics) or "not known beforehand: the topic of each event"
    say(f"{what}.", f"The live topics: {named}")
    answer = _answer("Type yes, or the name of a topic, to publish there: ")
    if answer.casefold() not in {"yes", "original"} and answer not in topics:
        raise NotConfirmed("not confirmed: nothing is started")


def _answer(question: str) -> str:
    """Return the answer; the end of the input is no answer."""
    sys.stdout.write(escaped(question))
    sys.stdout.flush()
    line = ""
    try:
        line = sys.stdin.readline()
    finally:
        if not line:  # Ctrl-C or Ctrl-D: no line has ended the question
            sys.stdout.write("\n")
    return line.strip()
