"""The command line, ``replay-app``: the parser, and how a command ends.

`replay_app.exit_codes` has the exit codes. Errors go to standard error; with ``--json``, also to
standard output as an object with the member ``error``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from replay_app import __version__
from replay_app.arguments import LAST, PlainParser, positive, whole
from replay_app.chain_commands import add_chain_commands
from replay_app.chain_files import WrongChainFile
from replay_app.client import Client, NotFound, NoWorker, Refused
from replay_app.completion import add_completion_command
from replay_app.encoders import encoder_name
from replay_app.event_commands import add_events_command
from replay_app.exceptions import (
    CommandConflict,
    InvalidCommand,
    InvalidSettings,
    ReplayError,
    WrongUsage,
)
from replay_app.exit_codes import (
    DONE,
    FAILED,
    INTERRUPTED,
    NO_SUCH_REPLAY,
    REFUSED,
    USAGE,
    exit_code_lines,
)
from replay_app.help_examples import epilog
from replay_app.inspect_command import add_inspect_command
from replay_app.kafka_internals import mend_aiokafka
from replay_app.letter_commands import add_letters_command
from replay_app.lists import add_list_command
from replay_app.logs import configure_logging
from replay_app.offsets_command import add_offsets_command
from replay_app.proof import add_proof_commands
from replay_app.redrives import add_redrive_command
from replay_app.settings import load_settings, settings_rows
from replay_app.show_commands import add_show_commands
from replay_app.start_commands import add_start_commands
from replay_app.supervisor import end_with_parent, run_workers
from replay_app.terminal import say, say_json, table
from replay_app.topic_commands import add_topics_command
from replay_app.verb_commands import add_verb_commands

logger = logging.getLogger(__name__)
DEMO_EVENTS = 100_000


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return the exit code."""
    mend_aiokafka()
    # Both parsers read --json and --url; a default of the second would undo the first's value.
    options = argparse.Namespace(json=False, url=None, asks_last=False)
    try:
        program_parser().parse_args(arguments, options)
        _take_last(options)
        return int(options.run(options))
    except ReplayError as error:
        _tell(error, options, as_json=options.json or "--json" in arguments)
        return _code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python must not complain at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _tell(error: ReplayError, options: argparse.Namespace, *, as_json: bool) -> None:
    if isinstance(error, NoWorker) and _needs_no_worker(options):
        error.args = (f"{error}; with --kafka, this command needs no worker",)
    if as_json:
        answer: dict[str, Any] = {"error": str(error)}
        if isinstance(error, Refused):
            answer |= {"status": error.status, "state": error.state}
        say_json(answer)
    sentences = error.sentences if isinstance(error, WrongChainFile) else (str(error),)
    say(*(f"error: {sentence}" for sentence in sentences), error=True)


def _needs_no_worker(options: argparse.Namespace) -> bool:
    """Whether the same command can go through Kafka. Only a worker knows chains, LAST, progress."""
    needs = getattr(options, "chain", None) or getattr(options, "wait", False)
    return getattr(options, "kafka", None) is False and not needs and not options.asks_last


def _code(error: ReplayError) -> int:
    """Return the exit code of an error."""
    if isinstance(error, WrongUsage | InvalidSettings):
        return USAGE
    if isinstance(error, NotFound):
        return NO_SUCH_REPLAY
    return REFUSED if isinstance(error, Refused | InvalidCommand | CommandConflict) else FAILED


def _take_last(options: argparse.Namespace) -> None:
    """Put the id of the newest replay in the place of LAST, and say which one it is."""
    after: list[str] = getattr(options, "body.after", [])
    if LAST not in (getattr(options, "replay_id", None), *after):
        return
    if getattr(options, "kafka", False):
        raise WrongUsage(f"{LAST} needs a worker that knows the replays: name the id with --kafka")
    options.asks_last = True
    newest = Client.of_settings(options.url).newest().replay_id
    say(f"{LAST} is {newest}", error=True)
    if getattr(options, "replay_id", None) == LAST:
        options.replay_id = newest
    after[:] = [newest if one == LAST else one for one in after]


# The commands of a worker's machine


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


# The parser


def program_parser() -> PlainParser:
    """Return the parser of the whole program."""
    common = PlainParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON for programs"
    )
    remote = PlainParser(add_help=False, allow_abbrev=False, parents=[common])
    remote.add_argument(
        "--url",
        default=argparse.SUPPRESS,
        help="the address of any worker (REPLAY_URL; else this machine, REPLAY_WEB_PORT); "
        "the token comes from REPLAY_API_TOKEN",
    )
    parser = PlainParser(
        prog="replay-app",
        allow_abbrev=False,
        description="Replay stored events to Kafka: in order, exactly once, watched, controlled.",
        epilog=exit_code_lines(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            name,
            help=text,
            description=f"{text}.",
            epilog=epilog(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[parent],
            allow_abbrev=False,
        )
        command.set_defaults(run=action)
        return command

    _add_worker_options(add("worker", _worker, "Run a worker until SIGTERM or Ctrl-C", common))
    for add_commands in (
        add_start_commands,
        add_list_command,
        add_show_commands,
        add_verb_commands,
        add_proof_commands,
        add_redrive_command,
        add_chain_commands,
        add_offsets_command,
    ):
        add_commands(add)
    for add_local in (
        add_inspect_command,
        add_events_command,
        add_topics_command,
        add_letters_command,
    ):
        add_local(add, common)
    add_completion_command(add, common, program_parser)
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
