"""``make chaos``: kill and cut everything, and count lost, repeated and disordered events.

The suite starts its own brokers, store and workers: first a single broker, then a cluster of three.
``--quick`` runs a few faults of the main kinds.
The table goes to standard output, and with ``--write`` also into docs/reliability.md. Exit code 1:
a replay was not exact, or did not end.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import NamedTuple

from chaos import scenarios
from chaos.document import write
from chaos.scenarios import Impossible, Scenario
from chaos.trials import Outcome, Size, Trial
from confluent_kafka import KafkaException

from replay_app.demo.stack import EmbeddedServers, StackError, free_port
from replay_app.encoders import encoder_name
from replay_app.settings import Settings

COLUMNS = (
    *("fault", "brokers", "times", "events"),
    *("duplicates", "losses", "disorder", "wrong counters"),
    *("recovery median, s", "max, s", "note"),
)


class Turn(NamedTuple):
    """A scenario, and the number of its faults."""

    scenario: Scenario
    times: int
    brokers: int = 1

    @property
    def name(self) -> str:
        """The name of the turn's folder."""
        return f"{self.scenario.__name__}-{self.brokers}"


LONG = (
    Turn(scenarios.kill_workers, 110),
    Turn(scenarios.kill_counting_workers, 12),
    Turn(scenarios.kill_chained_workers, 12),
    Turn(scenarios.kill_pacing_workers, 12),
    Turn(scenarios.join_and_leave, 10),
    Turn(scenarios.stop_and_wake_workers, 6),
    Turn(scenarios.kill_broker, 10),
    Turn(scenarios.broker_away, 1),
    Turn(scenarios.kill_store, 6),
    Turn(scenarios.cut_network, 8),
    Turn(scenarios.claim_twice, 3),
    Turn(scenarios.repeat_commands, 6),
    Turn(scenarios.fill_disk, 2),
    Turn(scenarios.jump_clock, 4),
    Turn(scenarios.be_hostile, 5),
    Turn(scenarios.kill_transaction_coordinator, 8, brokers=3),
    Turn(scenarios.kill_group_coordinator, 8, brokers=3),
    Turn(scenarios.kill_leader, 8, brokers=3),
    Turn(scenarios.lose_broker, 2, brokers=3),
    Turn(scenarios.grow_topics, 20, brokers=3),
    Turn(scenarios.kill_workers, 110, brokers=3),
)
# A replay lasts as long as one of the long suite and commits as often, with a third of the events.
QUICK_SIZE = Size(events=1_000, rate=200, slice_events=200)
QUICK = (
    Turn(scenarios.kill_workers, 4),
    Turn(scenarios.kill_counting_workers, 2),
    Turn(scenarios.kill_chained_workers, 2),
    Turn(scenarios.kill_pacing_workers, 2),
    Turn(scenarios.stop_and_wake_workers, 1),
    Turn(scenarios.kill_store, 1),
    Turn(scenarios.kill_broker, 1),
    Turn(scenarios.kill_transaction_coordinator, 1, brokers=3),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that every worker ends
    # Brokers that live for minutes: the second compiler costs more than it saves.
    os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")
    turns = [
        turn._replace(times=options.times or turn.times)
        for turn in (QUICK if options.quick else LONG)
        if not options.only or turn.scenario.__name__ in options.only
    ]
    size = QUICK_SIZE if options.quick else Size()
    began = time.monotonic()
    rows: list[tuple[Turn, Outcome]] = []
    with _folder(options.logs) as folder:
        for brokers, group in groupby(turns, lambda turn: turn.brokers):
            port = free_port()
            with _start_servers(brokers, port if brokers == 1 else None) as stack:
                suite = Suite(stack, Path(folder), options.seed, port, size)
                rows.extend(
                    (turn, outcome) for turn in group if (outcome := suite.run(turn)) is not None
                )
    failed = len(rows) < len(turns)
    outcomes = [outcome for _, outcome in rows]
    table = "\n".join(_table(rows, options.seed, time.monotonic() - began))
    print(table)
    if options.write:
        write("make chaos", table)
    return int(failed or not all(outcome.is_clean for outcome in outcomes))


def _start_servers(brokers: int, proxy_port: int | None) -> EmbeddedServers:
    """Start the servers; once more if they fail, as another process may have taken a port."""
    try:
        return EmbeddedServers(durable_store=True, brokers=brokers, proxy_port=proxy_port)
    except StackError as error:
        _say(str(error))
        return EmbeddedServers(durable_store=True, brokers=brokers, proxy_port=proxy_port)


@dataclass(frozen=True, slots=True)
class Suite:
    """Runs scenarios on one stack."""

    stack: EmbeddedServers
    folder: Path
    seed: int
    proxy_port: int
    size: Size

    def run(self, turn: Turn) -> Outcome | None:
        """Run a scenario, in several trials if it ends early. None: a trial has failed."""
        outcome: Outcome | None = None
        left, trials = turn.times, 0
        while left > 0:
            _say(f"{turn.name}, {left} times")
            trials += 1
            found = self._run_trial(turn, left, trials)
            if found is None:
                return None
            _say(f"  {found}")
            outcome = found if outcome is None else outcome + found
            left = left - found.times if found.times else 0
        return outcome

    def _run_trial(self, turn: Turn, times: int, number: int) -> Outcome | None:
        place = self.folder / f"{turn.name}-{number}"
        place.mkdir()
        # One for each trial: a scenario alone then does the same as in the suite.
        rng = random.Random(f"{self.seed}/{turn.name}/{number}")
        try:
            for broker in self.stack.brokers:
                if not self.stack.broker_runs(broker):  # the trial before has ended without it
                    self.stack.start_broker(broker)
            with Trial(self.stack, place, rng, self.proxy_port, size=self.size) as trial:
                return turn.scenario(trial, times)
        except Impossible as why:
            return Outcome(turn.scenario.__name__, 0, note=f"not done: {why}")
        except (AssertionError, StackError, KafkaException):
            traceback.print_exc()
            _say("".join(log.read_text()[-8000:] for log in sorted(place.glob("*.log"))))
            return None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="chooses victims and moments (default 1)"
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes instead of an hour")
    parser.add_argument("--times", type=int, help="number of faults in each scenario")
    parser.add_argument("--only", nargs="*", metavar="SCENARIO", help="run only these scenarios")
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    parser.add_argument("--logs", type=Path, help="a new folder that keeps the workers' logs")
    return parser.parse_args(arguments)


def _table(rows: Sequence[tuple[Turn, Outcome]], seed: int, seconds: float) -> list[str]:
    faults = sum(outcome.times for _, outcome in rows)
    events = sum(outcome.events for _, outcome in rows)
    encoder = encoder_name(Settings().encoder)
    heading = (
        f"Seed {seed}, {encoder} encoder, {seconds / 60:.0f} minutes, {faults} faults, "
        f"{events:,} events, Python {platform.python_version()}."
    )
    return [
        heading,
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (len(COLUMNS) - 2)}---|",
        *(_row(turn, outcome) for turn, outcome in rows),
    ]


def _row(turn: Turn, outcome: Outcome) -> str:
    seconds = outcome.recoveries
    notes = [outcome.note] if outcome.note else []
    if outcome.hung:
        notes.append(
            f"{outcome.hung} partitions lost a marker: {outcome.refused} replays failed and named "
            f"them, {outcome.waiting} waited"
        )
    cells = (
        outcome.fault,
        turn.brokers,
        outcome.times,
        f"{outcome.events:,}",
        *(outcome.duplicates, outcome.losses, outcome.disorder, outcome.wrong_counters),
        f"{median(seconds):.1f}" if seconds else "",
        f"{max(seconds):.1f}" if seconds else "",
        "; ".join(notes),
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
