"""The command line, ``replay-app``.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 refused by the worker. Errors go to
standard error; with ``--json`` also to standard output, as an object with the member ``error``.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from replay_app import __version__
from replay_app.client import (
    PATIENCE_SECONDS,
    Client,
    Endpoint,
    Refused,
    SessionJson,
    produce_command,
)
from replay_app.commands import VERBS, command_of, new_replay_id, read_members
from replay_app.encoder import encoder_name
from replay_app.exceptions import InvalidCommand, InvalidSettings, ReplayError
from replay_app.settings import Settings, load_settings
from replay_app.supervisor import end_with_parent, run_workers
from replay_app.terminal import (
    account,
    amount,
    plan_account,
    say,
    say_json,
    show_progress,
    table,
)
from replay_app.topics import Topics, ensure_topics, partition_counts

DONE, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130
DEMO_EVENTS = 100_000
_CONFLICT = 409


class WrongUsage(ReplayError):
    """The arguments do not make sense; the message says which."""


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code."""
    # Before and after the command alike; as defaults of both, the later one would win.
    options = _parser().parse_args(arguments, argparse.Namespace(json=False, url=None))
    try:
        return int(options.run(options))
    except ReplayError as error:
        if options.json:
            answer: dict[str, Any] = {"error": str(error)}
            if isinstance(error, Refused):
                answer |= {"status": error.status, "state": error.state}
            say_json(answer)
        say(f"error: {error}", error=True)
        if isinstance(error, WrongUsage | InvalidSettings):
            return USAGE
        return REFUSED if isinstance(error, Refused | InvalidCommand) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone (`| head`); Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


# The commands


def _worker(options: argparse.Namespace) -> int:
    if options.end_with_parent:
        end_with_parent()
    chosen = {"web_port": options.web_port, "data_dir": options.data_dir}
    chosen["worker_id"] = options.worker_id
    settings = load_settings(**{name: v for name, v in chosen.items() if v is not None})
    if options.processes > 1:
        return run_workers(settings, options.processes)
    # Imported here: Faust is large, and only a worker needs it.
    from replay_app.app import run_worker  # noqa: PLC0415

    return run_worker(settings)


def _start(options: argparse.Namespace) -> int:
    body = start_body(options)
    body.setdefault("replay_id", new_replay_id(body.get("name")))
    if options.kafka:
        _quiet()
        settings = load_settings()
        topic = Topics.of(settings).requests.name
        answer = asyncio.run(_produce(settings, topic, body))
    else:
        answer = _client(options).start(body)
    replay_id = body["replay_id"]
    if not options.wait:
        _answer(
            options, answer, f"replay {replay_id} is requested; see: replay-app watch {replay_id}"
        )
        return DONE
    return _watch_until_the_end(options, replay_id, body)


async def _produce(settings: Settings, topic: str, body: Mapping[str, Any]) -> Any:
    command_of(body)  # a malformed command is refused before the broker is asked
    if not await partition_counts(settings, settings.kafka, [topic]):
        raise ReplayError(
            f"topic {topic!r} does not exist on {settings.kafka} (REPLAY_KAFKA): start a worker, "
            "or create it with `replay-app topics --create`"
        )
    return await produce_command(settings.kafka, topic, body, **settings.kafka_security())


def _watch(options: argparse.Namespace) -> int:
    return _watch_until_the_end(options, options.replay_id)


def _watch_until_the_end(
    options: argparse.Namespace, replay_id: str, body: Mapping[str, Any] | None = None
) -> int:
    """Show a replay until it has ended; with ``body`` it was started just now, by that."""
    sessions = _client(options).follow(
        replay_id,
        patience_seconds=options.patience,
        just_started=body is not None,
        on_trouble=lambda trouble: say(trouble, error=True),
    )
    if body is not None:
        sessions = _only_of(sessions, body)
    last = show_progress(sessions, as_json=options.json)
    if last["state"] == "completed_with_errors":
        say(
            f"warning: {replay_id} completed, but some events could not be replayed; "
            f"see: replay-app status {replay_id}",
            error=True,
        )
    if last["error"]:
        say(f"error: {last['error']}; then: replay-app retry {replay_id}", error=True)
    return FAILED if last["state"] in {"failed", "cancelled"} else DONE


def _only_of(sessions: Iterator[SessionJson], body: Mapping[str, Any]) -> Iterator[SessionJson]:
    """Pass on a replay's sessions if it is ours, not an older one under the same name."""
    ours = command_of({"command": "start", **body})
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
    if options.json:
        say_json(session)
    else:
        say(account(session))
    return DONE


def _verb(options: argparse.Namespace) -> int:
    answer = _client(options).command(options.replay_id, options.verb, options.requested_by)
    _answer(options, answer, f"{options.verb} of replay {options.replay_id} is requested")
    return DONE


def _set_rate(options: argparse.Namespace) -> int:
    answer = _client(options).set_rate(options.replay_id, options.rate, options.requested_by)
    limit = "no limit" if options.rate is None else f"{options.rate:g} events/s"
    _answer(options, answer, f"{limit} for replay {options.replay_id} is requested")
    return DONE


def _plan(options: argparse.Namespace) -> int:
    plan = _client(options).plan(start_body(options))
    if options.json:
        say_json(plan)
    else:
        say(plan_account(plan))
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
    _quiet()
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
    for topic in Topics.of(settings).all():
        cluster = settings.target_bootstrap if topic.on_target else settings.kafka
        exists = topic.name in await partition_counts(settings, cluster, [topic.name])
        rows.append((topic.name, cluster, topic.partitions, exists, topic.config))
    return rows


def _demo(options: argparse.Namespace) -> int:
    # Imported here: the demo's servers are a development tool.
    from replay_app.demo.run import main as run_demo  # noqa: PLC0415

    return run_demo(events=options.events, keep=options.keep, as_json=options.json)


# Their parts


def _client(options: argparse.Namespace) -> Client:
    endpoint = Endpoint()
    token = endpoint.api_token.get_secret_value() if endpoint.api_token else None
    return Client(options.url or endpoint.url, token)


def _answer(options: argparse.Namespace, answer: Any, text: str) -> None:
    if options.json:
        say_json(answer)
    else:
        say(text)


def _quiet() -> None:
    """Leave it to our own message to say that a broker is away."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def start_body(options: argparse.Namespace) -> dict[str, Any]:
    """Return the body of a start command: the file's, with the options over it."""
    body = _read_body(options.file) if options.file else {}
    filter_ = {
        "start": options.start,
        "end": options.end,
        "event_types": options.event_type,
        "exclude_event_types": options.exclude_event_type,
        "aggregate_ids": options.aggregate_id,
        "event_ids": options.event_id,
        "fields": dict(options.field) or None,
    }
    target = {
        "topic": options.to_topic,
        "topics": dict(options.to) or None,
        "prefix": options.prefix,
    }
    rest = {
        name: getattr(options, name)
        for name in (
            *("replay_id", "name", "reason", "ordering", "shards", "dry_run", "rate"),
            *("max_events", "on_error", "control_records", "include_replayed", "after"),
        )
    }
    given = {
        **_without_nothing(rest),
        "filter": _without_nothing(filter_),
        "target": _without_nothing(target),
    }
    if "requested_by" not in body or options.requested_by is not None:
        given |= _without_nothing({"requested_by": options.requested_by or _user()})
    for part in ("filter", "target"):
        old = body.get(part, {})
        if not isinstance(old, dict):
            raise WrongUsage(f"--file {options.file}: {part} is not a JSON object")
        merged = {**old, **given[part]}
        given[part] = merged
        if not merged:
            del given[part]
    return {"command": "start", **body, **given}


def _without_nothing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given."""
    return {name: value for name, value in options.items() if value not in (None, [], False)}


def _read_body(file: str) -> dict[str, Any]:
    try:
        return read_members(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except OSError as error:
        raise WrongUsage(f"--file {file} cannot be read: {error.strerror}") from error
    except InvalidCommand as error:
        raise WrongUsage(f"--file {file}: {error}") from error


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return None


def settings_rows() -> list[tuple[str, str, str]]:
    """Return each setting's variable, its value with secrets masked, and where it comes from."""
    settings = load_settings()
    environment = EnvSettingsSource(Settings).env_vars
    dotenv = DotEnvSettingsSource(Settings).env_vars
    rows = []
    for name in Settings.model_fields:
        variable = f"replay_{name}"
        if variable in environment:
            source = "environment"
        else:
            source = ".env" if variable in dotenv else "default"
        rows.append((variable.upper(), _shown(name, getattr(settings, name)), source))
    return rows


def _shown(name: str, value: Any) -> str:
    if isinstance(value, SecretStr):
        return masked_uri(value.get_secret_value()) if name == "mongo" else "***"
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


def masked_uri(uri: str) -> str:
    """Return a MongoDB URI without its passwords, those among its options too."""
    uri = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", uri)
    return re.sub(r"(?i)(password|authMechanismProperties)=[^&]*", r"\1=***", uri)


def _pairs(config: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())


# The parser


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for programs"
    )
    remote = argparse.ArgumentParser(add_help=False, parents=[common])
    remote.add_argument(
        "--url",
        default=argparse.SUPPRESS,
        help="any worker's address (REPLAY_URL, http://127.0.0.1:6066); "
        "the token comes from REPLAY_API_TOKEN",
    )
    parser = argparse.ArgumentParser(
        prog="replay-app",
        description="Replay stored events to Kafka: in order, exactly once, watched, controlled.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 refused by the worker.",
        parents=[remote],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        action: Callable[[argparse.Namespace], int],
        text: str,
        parent: argparse.ArgumentParser = remote,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", parents=[parent]
        )
        command.set_defaults(run=action)
        return command

    worker = add("worker", _worker, "run a worker until SIGTERM or Ctrl-C", common)
    worker.add_argument("--web-port", type=int, help="port of the HTTP API (REPLAY_WEB_PORT)")
    worker.add_argument("--data-dir", type=Path, help="folder of its own (REPLAY_DATA_DIR)")
    worker.add_argument("--worker-id", help="stable name (REPLAY_WORKER_ID)")
    worker.add_argument(
        "--processes",
        type=_positive,
        default=1,
        metavar="N",
        help="so many workers, started again when they die; their ports follow upon the first, "
        "their names end in -0, -1 and so on, their folders are in the data folder",
    )
    worker.add_argument(
        "--end-with-parent",
        action="store_true",
        help="die when standard input ends, a pipe from the process that started this one",
    )

    start = add("start", _start, "start a replay")
    _add_start_options(start)
    start.add_argument("--wait", action="store_true", help="show its progress until it has ended")
    start.add_argument(
        "--kafka",
        action="store_true",
        help="put the command on the requests topic (REPLAY_KAFKA) instead of calling a worker",
    )
    _add_patience(start)

    listing = add("list", _list, "list the replays, the newest first")
    listing.add_argument("--state", help="only those in this state")
    listing.add_argument("--limit", type=_positive, help="only so many")

    status = add("status", _status, "tell all that there is to know of a replay")
    status.add_argument("replay_id")

    watch = add("watch", _watch, "show a replay's progress until it has ended")
    watch.add_argument("replay_id")
    _add_patience(watch)

    for verb, text in VERBS.items():
        command = add(verb, _set_rate if verb == "set-rate" else _verb, text)
        command.set_defaults(verb=verb)
        command.add_argument("replay_id")
        if verb == "set-rate":
            command.add_argument("rate", type=_rate, help="events per second, or none for no limit")
        _add_requested_by(command, default=_user())

    _add_start_options(add("plan", _plan, "find out what a replay would do"))

    add("settings", _settings, "print every setting, its value and where it comes from", common)

    topics = add("topics", _topics, "print the program's own topics", common)
    topics.add_argument("--create", action="store_true", help="create those that are missing")

    demo = add("demo", _demo, "run it all on servers of its own, with a shop's history", common)
    demo.add_argument("--events", type=_positive, default=DEMO_EVENTS, help="default: %(default)s")
    demo.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C")
    return parser


def _add_start_options(parser: argparse.ArgumentParser) -> None:
    def add(group: Any, option: str, text: str, **more: Any) -> None:
        group.add_argument(option, help=text, **more)

    many: dict[str, Any] = {"action": "append", "default": []}
    wanted = parser.add_argument_group("which events; all conditions hold together")
    add(wanted, "--start", "from this time on, such as 2026-01-01T00:00:00Z", metavar="TIME")
    add(wanted, "--end", "before this time (default: now)", metavar="TIME")
    add(wanted, "--event-type", "only this type; repeatable", metavar="TYPE", **many)
    add(wanted, "--exclude-event-type", "not this type; repeatable", metavar="TYPE", **many)
    add(wanted, "--aggregate-id", "only this aggregate; repeatable", metavar="ID", **many)
    add(wanted, "--event-id", "only this event; repeatable", metavar="ID", **many)
    add(
        wanted,
        "--field",
        "only events with this value, in JSON or plain text, at a dotted path; repeatable",
        metavar="PATH=VALUE",
        type=_field,
        **many,
    )
    add(wanted, "--max-events", "no more than the first so many", metavar="N", type=_positive)
    add(wanted, "--include-replayed", "also events marked as replayed", action="store_true")

    target = parser.add_argument_group("where to; default: each event's original topic")
    add(target, "--to-topic", "one topic for all", metavar="TOPIC")
    add(
        target,
        "--to",
        "a topic for one type; repeatable",
        metavar="TYPE=TOPIC",
        type=_assignment,
        **many,
    )
    add(target, "--prefix", "put before the original topic's name")

    way = parser.add_argument_group("how")
    add(
        way,
        "--ordering",
        "global: by time (default); aggregate: by time within each aggregate, over many workers",
        choices=["global", "aggregate"],
    )
    add(way, "--shards", "parts, with --ordering aggregate", metavar="N", type=_positive)
    add(way, "--rate", "events per second", metavar="N", type=_positive_number)
    add(
        way,
        "--on-error",
        "what an event that cannot be replayed does (default: fail)",
        choices=["fail", "skip", "dead-letter"],
    )
    add(way, "--dry-run", "do all but publish", action="store_true")
    add(way, "--control-records", "mark begin and end on each partition", action="store_true")
    add(way, "--after", "wait for this replay; repeatable", metavar="ID", **many)

    about = parser.add_argument_group("about it")
    add(about, "--replay-id", "its id; the same again is done once (default: a new one)")
    add(about, "--name", "a title for people")
    add(about, "--reason", "why")
    _add_requested_by(about)
    add(about, "--file", "the command's JSON body, - for standard input; options go over it")


def _add_requested_by(parser: Any, default: str | None = None) -> None:
    parser.add_argument(
        "--requested-by", default=default, metavar="NAME", help="default: the user's name"
    )


def _add_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patience",
        type=_positive_number,
        default=PATIENCE_SECONDS,
        metavar="SECONDS",
        help="how long no worker may answer while waiting (default: %(default)g)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        _wrong(f"{text!r} is no positive whole number")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        _wrong(f"{text!r} is no positive number")
    return number


def _rate(text: str) -> float | None:
    return None if text in {"none", "null"} else _positive_number(text)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        _wrong(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _field(text: str) -> tuple[str, Any]:
    path, text = _assignment(text)
    try:
        value = json.loads(text)
    except ValueError:
        return path, text
    if isinstance(value, dict | list):
        _wrong(f"{text!r} is no single value: text, a number, true, false or null")
    return path, value


def _wrong(message: str) -> NoReturn:
    raise argparse.ArgumentTypeError(message)
