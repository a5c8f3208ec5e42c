"""The options of ``start`` and ``plan``, and the body of the start command that they make."""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from replay_app.arguments import TIME_HELP, PlainParser, moment, positive, positive_number, refuse
from replay_app.client import Refused
from replay_app.commands import Start, parse_command, read_members
from replay_app.exceptions import InvalidCommand, WrongUsage
from replay_app.option_names import PARTS, OptionNames


class _Options:
    """A group of options.

    The destination of an option is the member of the body, such as ``filter.end`` or
    ``body.rate``. An option that is not given has no destination, so the member is left out.
    """

    def __init__(self, parser: ArgumentParser, title: str) -> None:
        self.group = parser.add_argument_group(title)

    def add(self, option: str, member: str, text: str, **more: Any) -> None:
        self.group.add_argument(option, dest=member, help=text, default=SUPPRESS, **more)

    def add_many(self, option: str, member: str, text: str, **more: Any) -> None:
        self.add(option, member, f"{text}; repeatable", action="append", **more)

    def add_switch(self, option: str, member: str, text: str) -> None:
        self.add(option, member, text, action="store_true")


def add_event_options(parser: ArgumentParser, number: str) -> None:
    """Add the options that say which events, from where, and where to.

    ``number`` is the name of the option for a number of events.
    """
    _add_filter_options(parser, number)
    _add_source_options(parser)
    _add_target_options(parser)


def _add_filter_options(parser: ArgumentParser, number: str) -> None:
    group = _Options(parser, "which events; an event must meet every condition")
    add, add_many, add_switch = group.add, group.add_many, group.add_switch
    time = {"metavar": "TIME", "type": moment}
    add("--start", "filter.start", f"from this time: {TIME_HELP}", **time)
    add("--end", "filter.end", "before this time (default: now)", **time)
    add_many("--event-type", "filter.event_types", "only this type", metavar="TYPE")
    add_many("--exclude-event-type", "filter.exclude_event_types", "not this type", metavar="TYPE")
    add_many("--aggregate-id", "filter.aggregate_ids", "only this aggregate", metavar="ID")
    add_many("--event-id", "filter.event_ids", "only this event", metavar="ID")
    add_many(
        "--field",
        "filter.fields",
        "only events with this value at this dotted path, JSON or plain text, or that meet "
        """conditions, such as 'amount={"gte": 10}'""",
        metavar="PATH=VALUE",
        type=_field,
    )
    add_switch("--all", "filter.all", "every event; needed where no option above names any")
    add(
        "--until-event-id",
        "body.until_event_id",
        "up to this event, and with it, in the order of time",
        metavar="ID",
    )
    add(number, "body.max_events", "only the first N events", metavar="N", type=positive)
    add_switch("--include-replayed", "body.include_replayed", "also events marked as replayed")


def _add_source_options(parser: ArgumentParser) -> None:
    add = _Options(parser, "where from; default: the collection of the settings").add
    add("--database", "source.database", "another database", metavar="NAME")
    add("--collection", "source.collection", "another collection", metavar="NAME")
    add(
        "--mapping",
        "source.mapping",
        "a mapping of the file REPLAY_MAPPINGS, for documents of another form",
        metavar="NAME",
    )


def _add_target_options(parser: ArgumentParser) -> None:
    group = _Options(parser, "where to; default: each event's original topic")
    add, add_many = group.add, group.add_many
    add("--to-topic", "target.topic", "one topic for all events", metavar="TOPIC")
    add_many("--to", "target.topics", "a topic for a type", metavar="TYPE=TOPIC", type=_assignment)
    add("--prefix", "target.prefix", "text before the original topic's name", metavar="TEXT")
    add_many(
        "--redact",
        "body.redact",
        "what becomes of the field at this dotted path: drop, null, mask or hash",
        metavar="PATH=RULE",
        type=_assignment,
    )
    add_many(
        "--transform", "body.transforms", "change each event by this transform", metavar="NAME"
    )


def add_start_options(parser: ArgumentParser) -> None:
    """Add the options of a start command."""
    add_event_options(parser, "--max-events")

    group = _Options(parser, "how")
    add, add_many, add_switch = group.add, group.add_many, group.add_switch
    add(
        "--ordering",
        "body.ordering",
        "global: by time (default); aggregate: by time within each aggregate, on many workers",
        choices=["global", "aggregate"],
    )
    add("--shards", "body.shards", "with --ordering aggregate only", metavar="N", type=positive)
    add(
        "--speed",
        "body.speed",
        "keep the events' own pace, N times faster: 1 is as they happened",
        metavar="N",
        type=positive_number,
    )
    add(
        "--max-gap-seconds",
        "body.max_gap_seconds",
        "with --speed: wait no longer than this for an event",
        metavar="S",
        type=positive_number,
    )
    add("--rate", "body.rate", "events per second", metavar="N", type=positive_number)
    add(
        "--on-error",
        "body.on_error",
        "what to do about an event that cannot be replayed (default: fail)",
        choices=["fail", "skip", "dead-letter", "park"],
    )
    add_switch(
        "--check-schemas",
        "body.check_schemas",
        "fail events that do not fit their JSON Schema (REPLAY_SCHEMAS); a dry run always checks",
    )
    add_switch(
        "--to-original",
        "body.to_original",
        "publish to the events' original topics, which live consumers read",
    )
    add_switch("--dry-run", "body.dry_run", "do everything except publishing")
    add_switch("--paused", "body.paused", "publish nothing before a resume or a step")
    add_switch("--control-records", "body.control_records", "mark begin and end on each partition")
    add(
        "--preflight",
        "body.preflight",
        "full: publish nothing before every event is counted and every topic exists "
        "(default: quick, the events are counted meanwhile)",
        choices=["quick", "full"],
    )
    add_many(
        "--consumer",
        "body.consumers",
        "a consumer group that reads what is published",
        metavar="GROUP",
    )
    add(
        "--max-lag",
        "body.max_lag",
        "publish no more than N records ahead of the slowest --consumer",
        metavar="N",
        type=positive,
    )
    add_many("--after", "body.after", "wait until this replay has completed", metavar="ID")

    group = _Options(parser, "about the replay")
    add = group.add
    add("--replay-id", "body.replay_id", "the id of the replay (default: a new id)", metavar="ID")
    add("--name", "body.name", "a title for people", metavar="TEXT")
    add("--reason", "body.reason", "why the replay is started", metavar="TEXT")
    add_requested_by(group.group, "body.requested_by", SUPPRESS)
    group.group.add_argument(
        "--file", help="the command's JSON body, - for standard input; options override members"
    )


def add_requested_by(parser: Any, member: str, default: Any) -> None:
    """Add the option that names who gives a command."""
    parser.add_argument(
        "--requested-by",
        dest=member,
        default=default,
        metavar="NAME",
        help="who gives the command (default: the user's name)",
    )


def start_body(options: Namespace) -> dict[str, Any]:
    """Return the members of a start command: the members of the file, then the options.

    Raises
    ------
    WrongUsage
        The file cannot be read or does not contain a command, or nothing says which events.

    """
    body = {"command": "start", **_members_of_file(options)}
    if not getattr(options, "body.requested_by", None):
        vars(options).pop("body.requested_by", None)  # an empty name, such as an unset $USER
    body.setdefault("requested_by", user_name())
    parts = {"body": body, **{name: body.get(name, {}) for name in PARTS}}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise WrongUsage(f"--file {options.file}: {name} is not a JSON object")
    for destination, value in vars(options).items():
        name, dot, member = destination.partition(".")
        if dot:
            parts[name][member] = dict(value) if member in {"fields", "topics", "redact"} else value
    if not any(parts["filter"].values()):
        raise WrongUsage(
            "which events? Name a condition, such as --event-type or --start, or ask for every "
            "event with --all"
        )
    return body | {name: parts[name] for name in PARTS if parts[name]}


def start_of(options: Namespace, **defaults: Any) -> Start:
    """Return the start command of the options; ``defaults`` are members that they may leave out.

    The message of an error names the option, where the member comes from an option.

    Raises
    ------
    WrongUsage
        As `start_body` raises it.
    InvalidCommand
        A member is wrong.

    """
    body = json.dumps(start_body(options)).encode()
    with naming_options(options):
        command = parse_command(body, defaults=defaults)
    if not isinstance(command, Start):  # these options have no --file with another command
        raise TypeError(command)
    return command


@contextlib.contextmanager
def naming_options(options: Namespace) -> Iterator[None]:
    """Let refusals within this context name options in the place of members.

    A member of the ``--file`` keeps its name.
    """
    try:
        yield
    except (InvalidCommand, Refused) as error:
        names = OptionNames(option_names(), vars(options).keys(), _members_of_file(options))
        text = names.in_refusal(str(error))
        # Sentences of the worker may have the same words in another meaning.
        error.args = (names.in_rule(text) if isinstance(error, InvalidCommand) else text,)
        raise


@cache
def option_names() -> Mapping[str, str]:
    """Return the option of each member, such as ``--start`` of ``filter.start``."""
    parser = PlainParser()
    add_start_options(parser)
    return {one.dest: one.option_strings[0] for one in parser.actions if "." in one.dest}


def _members_of_file(options: Namespace) -> dict[str, Any]:
    """Return the members of ``--file``; standard input is read once."""
    if options.file is None:
        return {}
    if not hasattr(options, "members_of_file"):
        options.members_of_file = _read_file(options.file)
    members: dict[str, Any] = deepcopy(options.members_of_file)
    return members


def _read_file(file: str) -> dict[str, Any]:
    try:
        return read_members(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except OSError as error:
        raise WrongUsage(f"--file {file} cannot be read: {error.strerror}") from error
    except InvalidCommand as error:
        raise WrongUsage(f"--file {file}: {error}") from error


def user_name() -> str | None:
    """Return the user's name; None if the user has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _assignment(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not (name and value):
        refuse("NAME=VALUE", text)
    return name, value


def _field(text: str) -> tuple[str, Any]:
    path, text = _assignment(text)
    try:
        value = json.loads(text)
    except ValueError:
        return path, text
    if isinstance(value, list):
        refuse("PATH=VALUE with a value, or an object of conditions, as VALUE", f"{path}={text}")
    return path, value
