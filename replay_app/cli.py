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
from datetime import datetime
from pathlib import Path
from typing import Any

from replay_app import __version__
from replay_app.arguments import PlainParser, positive, positive_number, rate, whole
from replay_app.client import (
    FOLLOW_PATIENCE_SECONDS,
    Client,
    Endpoint,
    Refused,
    SessionJson,
    produce_command,
)
from replay_app.commands import VERBS, command_of, new_replay_id, parse_command
from replay_app.encoders import encoder_name
from replay_app.exceptions import InvalidCommand, InvalidSettings, ReplayError, WrongUsage
from replay_app.kafka_internals import mend_aiokafka
from replay_app.logs import configure_logging
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
    plan_account,
    replayable,
    say,
    say_json,
    show_progress,
    table,
    warnings_at_the_end,
)
from replay_app.topics import Topics, ensure_topics, partition_counts, topics_by_cluster

DONE, FAILED, USAGE, REFUSED, NONE_REPLAYED, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 failed, cancelled or unanswered; 2 wrong usage or settings; 3 refused "
    "by the worker; 4 the replay completed, but no event could be replayed; 130 interrupted."
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
        say(f"error: {error}", error=True)
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
    return REFUSED if isinstance(error, Refused | InvalidCommand) else FAILED


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
        _silence_aiokafka()
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
    return await produce_command(settings.kafka, topic, body, **settings.kafka_security())


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
    answer = client.command(options.replay_id, options.verb, options.requested_by)
    if options.verb == "retry":
        _await_retry(client, options.replay_id)
    _answer(options, answer, f"{options.verb} of replay {options.replay_id} is requested")
    return DONE


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


def _set_rate(options: argparse.Namespace) -> int:
    answer = _client(options).set_rate(options.replay_id, options.rate, options.requested_by)
    limit = "no limit" if options.rate is None else f"{options.rate:g} events/s"
    _answer(options, answer, f"{limit} for replay {options.replay_id} is requested")
    return DONE


def _plan(options: argparse.Namespace) -> int:
    plan = _client(options).plan(start_body(options))
    _answer(options, plan, *([] if options.json else plan_account(plan)))
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


def _topics(options: argparse.Namespace) -> int:
    _silence_aiokafka()
    settings = load_settings()
    if options.create:
        for name in asyncio.run(ensure_topics(settings)):
            say(f"created {name}", error=options.json)
    rows = asyncio.run(_topic_rows(settings))
    if options.json:
        names = ("name", "cluster", "partitions", "exists", "config")
        say_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        table(
            ("TOPIC", "CLUSTER", "PARTITIONS", "EXISTS", "CONFIGURATION"),
            (
                (name, cluster, count, "yes" if exists else "no", _pairs(config))
                for name, cluster, count, exists, config in rows
            ),
        )
    return DONE


async def _topic_rows(settings: Settings) -> list[tuple[str, str, int, bool, dict[str, str]]]:
    rows = []
    for cluster, topics in topics_by_cluster(settings).items():
        existing = await partition_counts(settings, cluster, [topic.name for topic in topics])
        rows += [
            (topic.name, cluster, topic.partitions, topic.name in existing, topic.config)
            for topic in topics
        ]
    return rows


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


def _silence_aiokafka() -> None:
    """Silence aiokafka's log: our own message says that a broker does not answer."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _pairs(config: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())


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

    worker = add("worker", _worker, "Run a worker until SIGTERM or Ctrl-C", common)
    worker.add_argument("--web-port", type=whole, help="port of the HTTP API (REPLAY_WEB_PORT)")
    worker.add_argument("--data-dir", type=Path, help="this worker's folder (REPLAY_DATA_DIR)")
    worker.add_argument("--worker-id", help="a name that does not change (REPLAY_WORKER_ID)")
    worker.add_argument(
        "--processes",
        type=positive,
        default=1,
        metavar="N",
        help="run N workers and restart each one that dies; the ports follow the first port, the "
        "names end in -0, -1 and so on, the folders are in the data folder",
    )
    worker.add_argument(
        "--end-with-parent",
        action="store_true",
        help="end when standard input ends: a pipe from the process that started this worker",
    )

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
        command.add_argument("replay_id")
        if verb == "set-rate":
            command.add_argument("rate", type=rate, help="events per second, or none for no limit")
        add_requested_by(command, "requested_by", user_name())

    add_start_options(add("plan", _plan, "Show what a replay would do, without starting it"))

    add("settings", _settings, "Show every setting, its value and the value's source", common)

    topics = add("topics", _topics, "Show the program's own topics", common)
    topics.add_argument("--create", action="store_true", help="create the missing topics")

    demo = add("demo", _demo, "Replay a shop's history on servers that the demo starts", common)
    demo.add_argument("--events", type=positive, default=DEMO_EVENTS, help="default: %(default)s")
    demo.add_argument("--keep", action="store_true", help="keep everything running until Ctrl-C")
    return parser


def _add_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience",
        type=positive_number,
        default=FOLLOW_PATIENCE_SECONDS,
        metavar="SECONDS",
        help="give up after SECONDS without an answer of a worker (default: %(default)g)",
    )
