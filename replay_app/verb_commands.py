"""The commands that change a replay: pause, resume, step, cancel, retry, release, set-rate."""

from __future__ import annotations

import contextlib
import time
from argparse import ArgumentParser, Namespace
from typing import Any, get_args

from replay_app.arguments import AddCommand, positive, rate
from replay_app.chain_commands import add_replay_or_chain, chosen_chain, steer_chain
from replay_app.client import Client, Refused
from replay_app.commands import VERBS, LeavesOut, Verb
from replay_app.exceptions import ReplayError, WrongUsage
from replay_app.exit_codes import DONE, REFUSED
from replay_app.questions import add_yes, can_ask, require_yes
from replay_app.sessions import MAX_LISTED
from replay_app.start_commands import add_kafka, produce
from replay_app.start_options import add_requested_by, user_name
from replay_app.terminal import answer_with

RETRY_SECONDS = 5.0
"""Longest wait until a retry has taken effect."""
RETRY_POLL_SECONDS = 0.1
_CONFLICT = 409


def add_verb_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    for verb, text in VERBS.items():
        command = add(verb, _verb, text)
        command.set_defaults(verb=verb)
        add_replay_or_chain(command, verb)
        if verb == "set-rate":
            command.add_argument("rate", type=rate, help="events per second, or none for no limit")
        if verb == "step":
            command.add_argument("events", type=positive, nargs="?", default=1, help="default: 1")
        if verb == "retry":
            _add_retry_options(command)
        if verb == "cancel":
            add_yes(command, "on a terminal: cancel without a question")
        if verb != "step":  # a step needs to know what the replay has published
            add_kafka(command)
        add_requested_by(command, "requested_by", user_name())


def _add_retry_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=get_args(LeavesOut),
        help="from here on, go on without an event that cannot be replayed",
    )
    parser.add_argument(
        "--skip-event",
        action="append",
        metavar="ID",
        help="skip this event if it fails; repeatable",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with another mapping to records, other transforms or another key of "
        "hashes than those of the plan",
    )


def _verb(options: Namespace) -> int:
    verb: Verb = options.verb
    chain = chosen_chain(options)
    if verb == "cancel" and can_ask(options) and not options.yes:
        what = f"every replay of chain {chain}" if chain else _named(options)
        require_yes(f"Cancel {what}? A cancelled replay cannot continue.", "nothing is cancelled")
    if getattr(options, "kafka", False):
        return _produce(options, chain)
    client = Client.of_settings(options.url)
    if chain is not None:
        return DONE if steer_chain(client, options) else REFUSED
    replay_id, by = options.replay_id, options.requested_by
    if verb == "set-rate":
        answer = client.set_rate(replay_id, options.rate, by)
    else:
        answer = client.command(replay_id, verb, by, **_members(options, client))
    if verb == "retry":
        _await_retry(client, replay_id)
    answer_with(options, answer.members, _requested(options))
    return DONE


def _named(options: Namespace) -> str:
    """Return a replay with its name and state, as far as a worker is asked for them."""
    if options.kafka:
        return f"replay {options.replay_id}"
    replay = Client.of_settings(options.url).replay(options.replay_id)
    name = f" ({replay.start.name})" if replay.start.name else ""
    return f"replay {replay.replay_id}{name}, which is {replay.state}"


def _requested(options: Namespace) -> str:
    if options.verb != "set-rate":
        return f"{options.verb} of replay {options.replay_id} is requested"
    limit = "no limit" if options.rate is None else f"{options.rate:g} events/s"
    return f"{limit} for replay {options.replay_id} is requested"


def _produce(options: Namespace, chain: str | None) -> int:
    if chain is not None:
        raise WrongUsage("--kafka takes a replay_id: only a worker knows the replays of a chain")
    body = {"command": options.verb, "replay_id": options.replay_id, **_members(options)}
    if options.requested_by:
        body["requested_by"] = options.requested_by
    answer_with(options, produce(body), _requested(options))
    return DONE


def _members(options: Namespace, client: Client | None = None) -> dict[str, Any]:
    """Return the members of a verb's command that not every verb has."""
    if options.verb == "retry":
        wanted = {
            "on_error": options.on_error,
            "skip_events": options.skip_event,
            "accept_changes": options.accept_changes,
        }
        return {name: value for name, value in wanted.items() if value}
    if options.verb == "set-rate":
        return {"rate": options.rate}
    if options.verb != "step" or client is None:
        return {}
    replay = client.replay(options.replay_id)
    if replay.state != "paused":
        msg = f"replay {options.replay_id!r} is {replay.state}: only a paused replay makes a step"
        raise Refused(msg, _CONFLICT, replay.state)
    return {"events": options.events, "published": replay.counters.published}


def _await_retry(client: Client, replay_id: str) -> None:
    """Wait up to RETRY_SECONDS until the replay is not failed any more.

    Else a ``watch`` right after this command would end with the failure before.
    """
    deadline = time.monotonic() + RETRY_SECONDS
    with contextlib.suppress(ReplayError):
        while time.monotonic() < deadline and any(
            replay.replay_id == replay_id
            for replay in client.page(states=("failed",), limit=MAX_LISTED).replays
        ):
            time.sleep(RETRY_POLL_SECONDS)
