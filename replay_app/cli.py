"""The command line, ``replay-app``.

docs/operations.md explains the exit codes. Errors go to standard error; with ``--json``, also to
standard output as an object with the member ``error``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from replay_app import __version__
from replay_app.arguments import PlainParser, positive, positive_number, rate, whole
from replay_app.chain_commands import (
    add_apply_options,
    add_chain_options,
    add_replay_or_chain,
    apply_file,
    chosen_chain,
    show_chain,
    steer_chain,
)
from replay_app.chain_files import WrongChainFile
from replay_app.client import (
    FOLLOW_PATIENCE_SECONDS,
    Client,
    Endpoint,
    Refused,
    SessionJson,
    produce_command,
)
from replay_app.commands import VERBS, LeavesOut, command_of, new_replay_id, parse_command
from replay_app.encoders import encoder_name
from replay_app.event_commands import add_events_command
from replay_app.exceptions import (
    CommandConflict,
    InvalidCommand,
    InvalidSettings,
    ReplayError,
    WrongUsage,
)
from replay_app.group_offsets import execute_moves, find_moves, require_group, wanted_offsets
from replay_app.inspect_command import add_inspect_command
from replay_app.kafka_internals import mend_aiokafka
from replay_app.kafka_security import kafka_security
from replay_app.letter_commands import add_letters_command
from replay_app.logs import configure_logging, silence_aiokafka
from replay_app.proof import add_proof_commands
from replay_app.redrives import add_redrive_command
from replay_app.sessions import MAX_LISTED
from replay_app.settings import Settings, check_names, load_settings, settings_rows
from replay_app.start_options import (
    add_requested_by,
    add_start_options,
    start_body,
    user_name,
)
from replay_app.supervisor import end_with_parent, run_workers
from replay_app.terminal import (
    account,
    amount,
    is_dry_run,
    offsets_shown,
    plan_account,
    replayable,
    say,
    say_json,
    show_progress,
    table,
    warnings_at_the_end,
)
from replay_app.topic_commands import add_topics_command
from replay_app.topics import Topics, partition_counts

DONE, FAILED, USAGE, REFUSED, NONE_REPLAYED, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 failed, cancelled or unanswered; 2 wrong usage or settings; 3 refused; "
    "4 the replay completed, but no event could be replayed; 130 interrupted. Of "
    "verify: 5 the topics differ; 6 the store has changed since; 7 cannot be verified."
)
logger = logging.getLogger(__name__)
DEMO_EVENTS = 100_000
_CONFLICT = 409
RETRY_SECONDS = 5.0
"""Longest wait until a retry has taken effect."""
RETRY_POLL_SECONDS = 0.1


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code."""
    mend_aiokafka()
    # Both parsers read --json and --url; a default of the second would undo the first's value.
    options = argparse.Namespace(json=False, url=None)
    try:
        _parser().parse_args(arguments, options)
        return int(options.run(options))
    except ReplayError as error:
        if options.json or "--json" in arguments:
            answer: dict[str, Any] = {"error": str(error)}
            if isinstance(error, Refused):
                answer |= {"status": error.status, "state": error.state}
            say_json(answer)
        sentences = error.sentences if isinstance(error, WrongChainFile) else (str(error),)
        say(*(f"error: {sentence}" for sentence in sentences), error=True)
        return _code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python must not complain at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _code(error: ReplayError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, WrongUsage | InvalidSettings):
        return USAGE
    return REFUSED if isinstance(error, Refused | InvalidCommand | CommandConflict) else FAILED


# The commands


def _worker(options: argparse.Namespace) -> int:
    if options.end_with_parent:
        end_with_parent()
    chosen = {"web_port": options.web_port, "data_dir": options.data_dir}
    chosen["worker_id"] = options.worker_id
    settings = load_settings(**{name: v for name, v in chosen.items() if v is not None})
    configure_logging(settings.log_level, settings.log_format, settings.secrets())
    try:
        if options.processes > 1:
            return run_workers(settings, options.processes)
        # Imported here: Faust is large, and only a worker needs it.
        from replay_app.worker import run_worker  # noqa: PLC0415

        return run_worker(settings)
    except ReplayError as error:
        if settings.log_format == "text":
            raise
        logger.critical("%s", error)  # every line of such a log is JSON
        return _code(error)


def _start(options: argparse.Namespace) -> int:
    body = start_body(options)
    body.setdefault("replay_id", new_replay_id(body.get("name")))
    if options.kafka:
        silence_aiokafka()
        settings = load_settings()
        topic = Topics.of(settings).requests.name
        answer = asyncio.run(_produce(settings, topic, body))
    else:
        answer = _client(options).start(body)
    replay_id = body["replay_id"]
    if options.wait:
        return _watch_until_the_end(options, replay_id, body)
    _answer(options, answer, f"replay {replay_id} is requested; see: replay-app watch {replay_id}")
    return DONE


async def _produce(settings: Settings, topic: str, body: Mapping[str, Any]) -> Any:
    parse_command(json.dumps(body).encode())  # refused here, before the broker is asked
    if not await partition_counts(settings, settings.kafka, [topic]):
        raise ReplayError(
            f"topic {topic!r} does not exist on {settings.kafka} (REPLAY_KAFKA): start a worker, "
            "or create the topic with `replay-app topics --create`"
        )
    return await produce_command(
        settings.kafka, topic, body, **kafka_security(settings, settings.kafka)
    )


def _watch(options: argparse.Namespace) -> int:
    return _watch_until_the_end(options, options.replay_id)


def _watch_until_the_end(
    options: argparse.Namespace, replay_id: str, body: Mapping[str, Any] | None = None
) -> int:
    """Show a replay until it has ended; ``body`` is the command that has just started it."""
    sessions = _client(options).follow(
        replay_id,
        patience_seconds=options.patience,
        just_started=body is not None,
        on_trouble=lambda trouble: say(trouble, error=True),
    )
    if body is not None:
        sessions = _only_of(sessions, body)
    last = show_progress(sessions, as_json=options.json)
    for line in warnings_at_the_end(last):
        say(line, error=True)
    if is_dry_run(last) and not options.json:
        say(f"{replay_id} was a dry run: {replayable(last):,} events are valid, none was published")
    if last["state"] == "completed_with_errors" and not replayable(last):
        return NONE_REPLAYED
    return FAILED if last["state"] in {"failed", "cancelled"} else DONE


def _only_of(sessions: Iterator[SessionJson], body: Mapping[str, Any]) -> Iterator[SessionJson]:
    """Yield the sessions; refuse them if they belong to an older replay with the same id."""
    ours = command_of(body)
    for session in sessions:
        if command_of(session["start"]) != ours:
            raise Refused(
                f"replay {session['replay_id']!r} exists with another body (state "
                f"{session['state']}); choose a new --replay-id",
                _CONFLICT,
                session["state"],
            )
        yield session


def _list(options: argparse.Namespace) -> int:
    answer = _client(options).sessions(options.state, options.limit)
    if options.json:
        say_json(answer)
        return DONE
    table(
        ("REPLAY", "STATE", "READ", "EVENTS/S", "CREATED", "NAME"),
        (
            (
                session["replay_id"],
                session["state"] + (" (stalled)" if session["stalled"] else ""),
                amount(session),
                f"{session['events_per_second']:,.0f}" if session["events_per_second"] else "",
                f"{datetime.fromisoformat(session['created_at']):%Y-%m-%d %H:%M:%SZ}",
                session["start"]["name"] or "",
            )
            for session in answer["replays"]
        ),
    )
    return DONE


def _status(options: argparse.Namespace) -> int:
    session = _client(options).session(options.replay_id)
    _answer(options, session, *([] if options.json else account(session)))
    return DONE


def _verb(options: argparse.Namespace) -> int:
    client = _client(options)
    if chosen_chain(options) is not None:
        return DONE if steer_chain(client, options) else REFUSED
    members = _members(client, options)
    answer = client.command(options.replay_id, options.verb, options.requested_by, **members)
    if options.verb == "retry":
        _await_retry(client, options.replay_id)
    _answer(options, answer, f"{options.verb} of replay {options.replay_id} is requested")
    return DONE


def _members(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """Return the members of a verb's command that not every verb has."""
    if options.verb == "retry":
        wanted = {
            "on_error": options.on_error,
            "skip_events": options.skip_event,
            "accept_changes": options.accept_changes,
        }
        return {name: value for name, value in wanted.items() if value}
    if options.verb != "step":
        return {}
    session = client.session(options.replay_id)
    state = session["state"]
    if state != "paused":
        msg = f"replay {options.replay_id!r} is {state}: only a paused replay makes a step"
        raise Refused(msg, _CONFLICT, state)
    return {"events": options.events, "published": session["counters"]["published"]}


def _await_retry(client: Client, replay_id: str) -> None:
    """Wait up to RETRY_SECONDS until the replay is not failed any more.

    Else a ``watch`` right after this command would end with the failure before.
    """
    deadline = time.monotonic() + RETRY_SECONDS
    with contextlib.suppress(ReplayError):
        while time.monotonic() < deadline and any(
            session["replay_id"] == replay_id
            for session in client.sessions("failed", MAX_LISTED).get("replays", ())
        ):
            time.sleep(RETRY_POLL_SECONDS)


def _apply(options: argparse.Namespace) -> int:
    succeeded = apply_file(_client(options), options)
    return DONE if succeeded else REFUSED if options.plan else FAILED


def _chain(options: argparse.Namespace) -> int:
    return DONE if show_chain(_client(options), options) else FAILED


def _set_rate(options: argparse.Namespace) -> int:
    answer = _client(options).set_rate(options.replay_id, options.rate, options.requested_by)
    limit = "no limit" if options.rate is None else f"{options.rate:g} events/s"
    _answer(options, answer, f"{limit} for replay {options.replay_id} is requested")
    return DONE


def _plan(options: argparse.Namespace) -> int:
    plan = _client(options).plan(start_body(options))
    _answer(options, plan, *([] if options.json else plan_account(plan)))
    return DONE


def _offsets(options: argparse.Namespace) -> int:
    require_group(options.group)
    session = _client(options).session(options.replay_id)
    wanted = wanted_offsets(session, options.to)
    silence_aiokafka()
    settings = load_settings()
    found = asyncio.run(find_moves(settings, options.group, options.to, wanted))
    if not options.json:
        say(f"group {options.group} on {found.cluster}, to the {options.to} of {options.replay_id}")
        table(
            ("TOPIC", "PARTITION", "NOW", "THEN", "CHANGE"),
            ((one.topic, one.partition, *offsets_shown(one.now, one.then)) for one in found.moves),
        )
        for note in found.notes:
            say(f"note: {note}")
    if options.execute:
        asyncio.run(execute_moves(settings, options.group, options.to, found.moves))
    done = f"{len(found.moves)} offsets are set" if options.execute else "nothing is changed yet"
    answer = {
        "replay_id": options.replay_id,
        "group": options.group,
        "to": options.to,
        "executed": options.execute,
        "cluster": found.cluster,
        "partitions": [asdict(one) for one in found.moves],
        "notes": found.notes,
    }
    _answer(options, answer, done + ("" if options.execute else "; to set them, add --execute"))
    return DONE


def _settings(options: argparse.Namespace) -> int:
    rows = settings_rows()
    active = encoder_name(load_settings().encoder)
    if options.json:
        shown = {name: {"value": value, "source": source} for name, value, source in rows}
        shown["REPLAY_ENCODER"]["active"] = active
        say_json(shown)
    else:
        table(("NAME", "VALUE", "SOURCE"), rows)
        say(f"active encoder: {active}")
    return DONE


def _demo(options: argparse.Namespace) -> int:
    # Imported here: the demo's servers are a development tool.
    from replay_app.demo.run import main as run_demo  # noqa: PLC0415

    return run_demo(events=options.events, keep=options.keep, as_json=options.json)


# The parts


def _client(options: argparse.Namespace) -> Client:
    check_names()
    endpoint = Endpoint()
    token = endpoint.api_token.get_secret_value() if endpoint.api_token else None
    return Client(options.url or endpoint.url, token)


def _answer(options: argparse.Namespace, answer: Any, *lines: str) -> None:
    if options.json:
        say_json(answer)
    else:
        say(*lines)


# The parser


def _parser() -> argparse.ArgumentParser:
    common = PlainParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for programs"
    )
    remote = PlainParser(add_help=False, allow_abbrev=False, parents=[common])
    remote.add_argument(
        "--url",
        default=argparse.SUPPRESS,
        help="the address of any worker (REPLAY_URL, http://127.0.0.1:6066); "
        "the token comes from REPLAY_API_TOKEN",
    )
    parser = PlainParser(
        prog="replay-app",
        allow_abbrev=False,
        description="Replay stored events to Kafka: in order, exactly once, watched, controlled.",
        epilog=EXIT_CODES,
        parents=[remote],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        action: Callable[[argparse.Namespace], int],
        text: str,
        parent: PlainParser = remote,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=f"{text}.", parents=[parent], allow_abbrev=False
        )
        command.set_defaults(run=action)
        return command

    _add_worker_options(add("worker", _worker, "Run a worker until SIGTERM or Ctrl-C", common))

    start = add("start", _start, "Start a replay")
    add_start_options(start)
    start.add_argument("--wait", action="store_true", help="show the progress until the end")
    start.add_argument(
        "--kafka",
        action="store_true",
        help="put the command on the requests topic (REPLAY_KAFKA) instead of calling a worker",
    )
    _add_patience(start)

    listing = add("list", _list, "List the replays, the newest first")
    listing.add_argument("--state", help="only replays in this state")
    listing.add_argument("--limit", type=positive, metavar="N", help="only the newest N replays")

    add("status", _status, "Show everything about a replay").add_argument("replay_id")

    watch = add("watch", _watch, "Show a replay's progress until the replay has ended")
    watch.add_argument("replay_id")
    _add_patience(watch)

    for verb, text in VERBS.items():
        command = add(verb, _set_rate if verb == "set-rate" else _verb, text)
        command.set_defaults(verb=verb)
        add_replay_or_chain(command, verb)
        if verb == "set-rate":
            command.add_argument("rate", type=rate, help="events per second, or none for no limit")
        if verb == "step":
            command.add_argument("events", type=positive, nargs="?", default=1, help="default: 1")
        if verb == "retry":
            command.add_argument(
                "--on-error",
                choices=get_args(LeavesOut),
                help="from here on, go on without an event that cannot be replayed",
            )
            command.add_argument(
                "--skip-event",
                action="append",
                metavar="ID",
                help="skip this event if it fails; repeatable",
            )
            command.add_argument(
                "--accept-changes",
                action="store_true",
                help="go on with another mapping to records, other transforms or another key of "
                "hashes than those of the plan",
            )
        add_requested_by(command, "requested_by", user_name())

    add_proof_commands(add, _client)
    add_redrive_command(add, _client)

    add_start_options(add("plan", _plan, "Show what a replay would do, without starting it"))

    apply = add("apply", _apply, "Start what of a chain file is not started yet")
    add_apply_options(apply)
    _add_patience(apply)

    chain = add("chain", _chain, "Show the replays of a chain as a tree")
    add_chain_options(chain)
    _add_patience(chain)

    for add_command in (
        add_inspect_command,
        add_events_command,
        add_topics_command,
        add_letters_command,
    ):
        add_command(add, common)

    _add_offsets_options(add("offsets", _offsets, "Show, or set, where a consumer group reads on"))

    add("settings", _settings, "Show every setting, its value and the value's source", common)

    demo = add("demo", _demo, "Replay a shop's history on servers that the demo starts", common)
    demo.add_argument("--events", type=positive, default=DEMO_EVENTS, help="default: %(default)s")
    demo.add_argument("--keep", action="store_true", help="keep everything running until Ctrl-C")
    return parser


def _add_worker_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--web-port", type=whole, help="port of the HTTP API (REPLAY_WEB_PORT)")
    parser.add_argument("--data-dir", type=Path, help="this worker's folder (REPLAY_DATA_DIR)")
    parser.add_argument("--worker-id", help="a name that does not change (REPLAY_WORKER_ID)")
    parser.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="run N workers and restart each one that dies; the ports follow the first port, the "
        "names end in -0, -1 and so on, the folders are in the data folder",
    )
    parser.add_argument(
        "--end-with-parent",
        action="store_true",
        help="end when standard input ends: a pipe from the process that started this worker",
    )


def _add_offsets_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replay_id")
    parser.add_argument("--group", required=True, help="the consumer group; it has no members now")
    parser.add_argument(
        "--to",
        required=True,
        choices=["begin", "handover"],
        help="begin: the first record of the replay in each partition; handover: where the live "
        "topics go on after the replay",
    )
    parser.add_argument("--execute", action="store_true", help="set the offsets that are shown")


def _add_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience",
        type=positive_number,
        default=FOLLOW_PATIENCE_SECONDS,
        metavar="SECONDS",
        help="give up after SECONDS without an answer of a worker (default: %(default)g)",
    )
