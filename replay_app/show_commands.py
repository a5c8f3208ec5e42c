"""The commands that show one replay: status, describe, watch and open."""

from __future__ import annotations

import webbrowser
from argparse import Namespace
from typing import Any

from replay_app.accounts import account, history_lines
from replay_app.arguments import AddCommand, add_replay_id
from replay_app.client import Client
from replay_app.exit_codes import DONE
from replay_app.terminal import answer_with, say
from replay_app.watching import add_patience, watch


def add_show_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    add_replay_id(add("status", _status, "Show everything about a replay as it is now"))
    describe = add("describe", _describe, "Show everything about a replay, and what has changed it")
    add_replay_id(describe)
    watching = add("watch", _watch, "Show a replay's progress until the replay has ended")
    add_replay_id(watching)
    add_patience(watching)
    add_replay_id(add("open", _open, "Open a replay's page in the browser, and print its address"))


def _status(options: Namespace) -> int:
    session = Client.of_settings(options.url).replay(options.replay_id).members
    answer_with(options, session, *([] if options.json else account(session)))
    return DONE


def _describe(options: Namespace) -> int:
    client = Client.of_settings(options.url)
    session = client.replay(options.replay_id).members
    history = client.history(options.replay_id).members
    answer: dict[str, Any] = {**session, "history": history}
    lines = [] if options.json else [*account(session), *history_lines(history)]
    answer_with(options, answer, *lines)
    return DONE


def _watch(options: Namespace) -> int:
    return watch(Client.of_settings(options.url), options, options.replay_id)


def _open(options: Namespace) -> int:
    client = Client.of_settings(options.url)
    replay_id = client.replay(options.replay_id).replay_id  # a wrong id needs no browser
    address = client.page_address(replay_id)
    answer_with(options, {"replay_id": replay_id, "url": address}, address)
    if not options.json and not webbrowser.open(address):
        say("there is no browser here: open the address in yours", error=True)
    return DONE
