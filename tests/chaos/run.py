"""``make chaos``: kill and cut everything, and count lost, repeated and disordered events.

The suite starts its own broker, store and workers. ``--quick`` runs a few faults of the main kinds.
The table goes to standard output, and with ``--write`` also into docs/reliability.md. Exit code 1:
a replay was not exact, or did not end.
"""

from __future__ import annotations

import argparse
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import NamedTuple

from chaos import scenarios
from chaos.document import write
from chaos.scenarios import Impossible, Scenario
from chaos.trials import Outcome, Trial

from replay_app.demo.stack import EmbeddedServers, StackError, free_port
from replay_app.encoders import encoder_name
from replay_app.settings import Settings

COLUMNS = (
    *("fault", "times", "events", "duplicates", "losses", "disorder", "wrong counters"),
    *("recovery median, s", "max, s", "note"),
)


class Turn(NamedTuple):
    """A scenario, and the number of its faults."""

    scenario: Scenario
    times: int


LONG = (
    Turn(scenarios.kill_workers, 110),
    Turn(scenarios.join_and_leave, 10),
    Turn(scenarios.stop_and_wake_workers, 6),
    Turn(scenarios.kill_broker, 4),
    Turn(scenarios.broker_away, 1),
    Turn(scenarios.kill_store, 5),
    Turn(scenarios.cut_network, 8),
    Turn(scenarios.claim_twice, 3),
    Turn(scenarios.repeat_commands, 5),
    Turn(scenarios.fill_disk, 2),
    Turn(scenarios.jump_clock, 4),
)
QUICK = (
    Turn(scenarios.kill_workers, 4),
    Turn(scenarios.stop_and_wake_workers, 1),
    Turn(scenarios.kill_store, 1),
    Turn(scenarios.kill_broker, 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that every worker ends
    turns = [
        Turn(turn.scenario, options.times or turn.times)
        for turn in (QUICK if options.quick else LONG)
        if not options.only or turn.scenario.__name__ in options.only
    ]
    began = time.monotonic()
    outcomes: list[Outcome] = []
    failed = False
    port = free_port()
    with (
        _folder(options.logs) as folder,
        EmbeddedServers(durable_store=True, proxy_port=port) as stack,
    ):
        for turn in turns:
            name = turn.scenario.__name__
            _say(f"{name}, {turn.times} times")
            place = Path(folder, name)
            place.mkdir()
            # One for each scenario: a scenario alone then does the same as in the suite.
            rng = random.Random(f"{options.seed}/{name}")
            with Trial(stack, place, rng, port) as trial:
                try:
                    outcome = turn.scenario(trial, turn.times)
                except Impossible as why:
                    outcome = Outcome(name, 0, note=f"not done: {why}")
                except (AssertionError, StackError):
                    traceback.print_exc()
                    _say(trial.cluster.logs())
                    failed = True
                    continue
            _say(f"  {outcome}")
            outcomes.append(outcome)
    table = "\n".join(_table(outcomes, options.seed, time.monotonic() - began))
    print(table)
    if options.write:
        write("make chaos", table)
    return int(failed or not all(outcome.is_clean for outcome in outcomes))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="chooses victims and moments (default 1)"
    )
    parser.add_argument("--quick", action="store_true", help="a minute instead of half an hour")
    parser.add_argument("--times", type=int, help="number of faults in each scenario")
    parser.add_argument("--only", nargs="*", metavar="SCENARIO", help="run only these scenarios")
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    parser.add_argument("--logs", type=Path, help="a new folder that keeps the workers' logs")
    return parser.parse_args(arguments)


def _table(outcomes: Sequence[Outcome], seed: int, seconds: float) -> list[str]:
    total = sum(outcome.events for outcome in outcomes)
    encoder = encoder_name(Settings().encoder)
    heading = (
        f"Seed {seed}, {encoder} encoder, {seconds / 60:.0f} minutes, {total:,} events, "
        f"Python {platform.python_version()}."
    )
    return [
        heading,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (len(COLUMNS) - 2)}---|",
        *map(_row, outcomes),
    ]


def _row(outcome: Outcome) -> str:
    seconds = outcome.recoveries
    cells = (
        outcome.fault,
        outcome.times,
        f"{outcome.events:,}",
        *(outcome.duplicates, outcome.losses, outcome.disorder, outcome.wrong_counters),
        f"{median(seconds):.1f}" if seconds else "",
        f"{max(seconds):.1f}" if seconds else "",
        outcome.note,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _folder(named: Path | None) -> AbstractContextManager[str]:
    if named is None:
        return tempfile.TemporaryDirectory(prefix="replay-chaos-")
    named.mkdir(parents=True)
    return nullcontext(str(named))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
