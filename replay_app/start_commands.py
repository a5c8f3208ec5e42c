"""``replay-app start`` and ``plan``: a person sees the plan, and confirms it, before the start."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from replay_app.accounts import plan_account
from replay_app.arguments import AddCommand
from replay_app.client import Client, body_of, produce_command
from replay_app.commands import Start, new_replay_id, parse_command
from replay_app.exceptions import ReplayError
from replay_app.exit_codes import DONE
from replay_app.kafka_security import kafka_security
from replay_app.logs import silence_aiokafka
from replay_app.questions import add_yes, can_ask, require_original, require_yes
from replay_app.settings import Settings, load_settings
from replay_app.start_options import add_start_options, naming_options, start_body, start_of
from replay_app.terminal import answer_with, command_line, say
from replay_app.topics import Topics, partition_counts
from replay_app.watching import add_patience, watch

REMEDY = "to do so, add --to-original"


def add_start_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    start = add("start", _start, "Start a replay")
    add_start_options(start)
    start.add_argument("--wait", action="store_true", help="show the progress until the end")
    add_yes(start, "on a terminal: start without showing the plan, and without a question")
    add_kafka(start)
    add_patience(start)
    add_start_options(add("plan", _plan, "Show what a replay would do, without starting it"))


def add_kafka(parser: Any) -> None:
    """Add the option that gives a command without a worker."""
    parser.add_argument(
        "--kafka",
        action="store_true",
        help="put the command on the requests topic (REPLAY_KAFKA) instead of calling a worker",
    )


def _start(options: Namespace) -> int:
    body = start_body(options)
    start = start_of(options, replay_id=body.get("replay_id") or new_replay_id(body.get("name")))
    start = _confirmed(options, start)
    replay_id = start.replay_id
    follow = command_line(options, "watch", replay_id)
    try:
        answer = _send(options, start)
    except KeyboardInterrupt:
        say(f"{replay_id} may have been started; see: {follow}", error=True)
        raise
    if options.wait:
        return watch(Client.of_settings(options.url), options, replay_id, start)
    answer_with(options, answer, f"replay {replay_id} is requested; see: {follow}")
    return DONE


def _send(options: Namespace, start: Start) -> Any:
    if options.kafka:
        return produce({"command": "start", **body_of(start)})
    with naming_options(options):
        return Client.of_settings(options.url).start(start).members


def _confirmed(options: Namespace, start: Start) -> Start:
    """Return the start as the person at the terminal confirms it; elsewhere nobody is asked.

    A dry run publishes nothing, and is itself the look before the start.
    """
    needs_consent = start.reaches_originals and not start.to_original
    asks = can_ask(options) and not options.yes and not start.dry_run
    plan = None
    if asks and not options.kafka:
        with naming_options(options):
            plan = Client.of_settings(options.url).plan(start)
        say(*plan_account(_in_short(plan.members)))
    if needs_consent:
        topics = plan.live_topics if plan else ()
        require_original(options, [start.replay_id], topics, REMEDY)
        return start.model_copy(update={"to_original": True})
    if plan:
        require_yes(f"Start replay {start.replay_id}?", "nothing is started")
    return start


def _in_short(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a plan a person reads before a question; `replay-app plan` shows the rest."""
    return {**plan, "samples": plan.get("samples", ())[:1], "handover": {}}


def produce(body: Mapping[str, Any]) -> dict[str, Any]:
    """Put a command on the requests topic of the settings; return the place of its record.

    Raises
    ------
    InvalidCommand
        The command is malformed; no broker is asked.
    ReplayError
        The topic does not exist.
    Unavailable
        The broker does not accept the record.

    """
    silence_aiokafka()
    return asyncio.run(_produce(load_settings(), body))


async def _produce(settings: Settings, body: Mapping[str, Any]) -> dict[str, Any]:
    topic = Topics.of(settings).requests.name
    parse_command(json.dumps(body).encode())  # refused here, before the broker is asked
    if not await partition_counts(settings, settings.kafka, [topic]):
        raise ReplayError(
            f"topic {topic!r} does not exist on {settings.kafka} (REPLAY_KAFKA): start a worker, "
            "or create the topic with `replay-app topics --create`"
        )
    return await produce_command(
        settings.kafka, topic, body, **kafka_security(settings, settings.kafka)
    )


def _plan(options: Namespace) -> int:
    body = start_body(options)
    start = start_of(options, replay_id=new_replay_id(body.get("name")))
    with naming_options(options):
        plan = Client.of_settings(options.url).plan(start).members
    answer_with(options, plan, *([] if options.json else plan_account(plan)))
    return DONE
