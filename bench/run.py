"""Run all contenders in turns, each in its own process.

``run.py`` writes the raw figures, the plot and RESULTS.md (see `report`). ``run.py --quick`` runs
every contender once with few events, to check that it works and publishes all events. The figures
of a quick run mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import history
import psutil
import report
from cases import SMALL, Case, Group, History, Replay, Script, groups
from history import aggregate_id
from support import (
    consumer_from_start,
    count_records,
    create_topics,
    delete_topics,
    topic_names,
)
from worker import Workers, peak_rss_bytes, spread_id, workers

from replay_app.demo.stack import EmbeddedServers, StackError

BENCH = Path(__file__).parent
RUST_STORE = BENCH.parent / ".stack" / "secantusd-rs" / "bin" / "secantusd-rs"
STORE_COMMAND = "REPLAY_STACK_STORE_COMMAND"
SCRIPT_SECONDS = 600.0
COUNT_SECONDS = 300.0

Figures = dict[str, Any]


class WrongResultError(Exception):
    """A contender has published too few or too many records."""


class Bench:
    """The servers, and the cases that run on them one after another."""

    def __init__(self, stack: EmbeddedServers, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._runs = 0
        self._histories: set[History] = set()

    def seed(self, histories: set[History]) -> None:
        """Fill the store with these histories only, so that it can keep them in memory."""
        for one in self._histories - histories:
            history.drop(self._stack.mongo, one.collection)
        for one in histories - self._histories:
            started = time.perf_counter()
            history.seed(self._stack.mongo, one.collection, one.events, one.size, one.per_aggregate)
            seconds = time.perf_counter() - started
            print(
                f"  seeded {one.events:,} events of {one.size:,} B in {seconds:.0f} s", flush=True
            )
        self._histories = histories

    def run(self, case: Case) -> Figures:
        """Run a case once, on new topics; return its figures.

        Raises
        ------
        WrongResultError
            When the topics hold too few or too many records afterwards.

        """
        self._runs += 1
        name = f"run-{self._runs}"
        topics = {f"{name}.{topic}": history.PARTITIONS for topic in history.TOPICS}
        kafka = self._stack.kafka
        create_topics(kafka, topics)
        try:
            match case:
                case Script():
                    figures = self._script(case, f"{name}.")
                case Replay():
                    figures = self._replay(case, name, topics)
            events = _events_of(case)
            published = count_records(kafka, list(topics), deadline_seconds=COUNT_SECONDS)
            is_cut = isinstance(case, Replay) and case.cancelled
            if not is_cut and published != (events if case.publishes else 0):
                raise WrongResultError(
                    f"{case.label}: {published} records stand in the topics, not {events}"
                )
        finally:
            # Also the changelog of the table: its name begins with the app's id.
            own = [one for one in topic_names(kafka) if one.startswith((f"{name}.", f"{name}-"))]
            delete_topics(kafka, own)
        return {**figures, "events": events, "bytes": events * case.history.size}

    def _script(self, case: Script, prefix: str) -> Figures:
        command = [sys.executable, str(BENCH / "contenders.py"), case.name]
        options = {
            "mongo": self._stack.mongo,
            "kafka": self._stack.kafka,
            "collection": case.history.collection,
            "query": json.dumps(case.query),
            "prefix": prefix,
            "codec": case.codec,
            "limit": str(case.limit),
            "order": case.order,
        }
        for name, value in options.items():
            command += [f"--{name}", value]
        figures: Figures = {}
        with self._measure_servers(figures):
            output = subprocess.run(
                command, stdout=subprocess.PIPE, check=True, timeout=SCRIPT_SECONDS
            ).stdout
        return {**figures, **json.loads(output)}

    def _replay(self, case: Replay, name: str, topics: dict[str, int]) -> Figures:
        settings = {"REPLAY_ENCODER": case.encoder, **case.settings}
        if case.codec is not None:
            settings["REPLAY_COMPRESSION"] = case.codec
        figures: Figures = {}
        with workers(
            self._stack,
            name,
            self._folder,
            case.history.collection,
            count=case.workers,
            settings=settings,
        ) as running:
            body = {"target": {"prefix": f"{name}."}, **case.body}
            if case.verified:
                running.start(name, **body)
                running.completed()
                with self._measure_servers(figures):
                    figures |= running.verify(name)
                return figures
            with self._measure_servers(figures), _measure_workers(running, figures):
                if case.replays == 1:
                    figures |= self._one(running, case, name, body, topics)
                elif case.at_once:
                    bodies = [_small(body, name, number) for number in range(case.replays)]
                    running.start_many(bodies)
                    running.completed(case.replays)
                else:
                    figures["replay_seconds"] = statistics.median(
                        _seconds_of(running, _small(body, name, number))
                        for number in range(case.replays)
                    )
            figures["waited_seconds"] = running.waited_seconds()
        return figures

    def _one(
        self,
        running: Workers,
        case: Replay,
        name: str,
        body: dict[str, Any],
        topics: dict[str, int],
    ) -> Figures:
        replay_id = spread_id(name, case.shards, running.partitions)
        if not case.first_event:
            running.start(replay_id, **body)
            (session,) = running.completed()
            return {"plan_seconds": _seconds_between(session, "created_at", "started_at")}
        consumer = consumer_from_start(self._stack.kafka, topics, {"fetch.wait.max.ms": 10})
        try:
            consumer.poll(1.0)  # connects; the topics are empty
            started = time.perf_counter()
            running.start(replay_id, **body)
            while consumer.poll(0.1) is None:
                pass
            figures = {"first_event_seconds": time.perf_counter() - started}
        finally:
            consumer.close()
        if case.cancelled:
            running.cancel(replay_id)
        running.completed()
        return figures

    @contextmanager
    def _measure_servers(self, figures: Figures) -> Iterator[None]:
        servers = {"broker": self._stack.broker_pid, "store": self._stack.store_pid}
        processes = {name: psutil.Process(pid) for name, pid in servers.items()}
        before = {name: _cpu_seconds(process) for name, process in processes.items()}
        yield
        for name, process in processes.items():
            figures[f"{name}_cpu_seconds"] = _cpu_seconds(process) - before[name]


@contextmanager
def _measure_workers(running: Workers, figures: Figures) -> Iterator[None]:
    processes = running.processes
    before, started = sum(map(_cpu_seconds, processes)), time.perf_counter()
    yield
    figures["seconds"] = time.perf_counter() - started
    figures["cpu_seconds"] = sum(map(_cpu_seconds, processes)) - before
    figures["peak_rss_bytes"] = max(peak_rss_bytes(process.pid) for process in processes)


def _seconds_of(running: Workers, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    running.start(**body)
    running.completed()
    return time.perf_counter() - started


def _small(body: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """Return the start of a replay of one aggregate's few events."""
    ids = [aggregate_id(number)]
    return {**body, "replay_id": f"{name}-{number}", "filter": {"aggregate_ids": ids}}


def _events_of(case: Case) -> int:
    match case:
        case Script():
            return case.limit or case.events or case.history.events
        case Replay():
            if case.replays > 1:
                return case.replays * SMALL
            return case.events or case.history.events


def _seconds_between(session: dict[str, Any], begin: str, end: str) -> float:
    moments = [datetime.fromisoformat(session[name]) for name in (begin, end)]
    return (moments[1] - moments[0]).total_seconds()


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def run_groups(bench: Bench, wanted: Sequence[Group]) -> Iterator[Figures]:
    """Run every case of every group, in turns; every other round backwards."""
    for group in wanted:
        print(f"\n{group.title}", flush=True)
        bench.seed({case.history for case in group.cases})
        for turn in range(group.rounds):
            for case in group.cases[:: -1 if turn % 2 else 1]:
                figures = bench.run(case)
                rate = figures["events"] / figures["seconds"]
                cpu = 1e6 * figures["cpu_seconds"] / figures["events"]
                print(f"  {case.label:45} {rate:10,.0f} events/s {cpu:8.2f} us", flush=True)
                yield {"group": group.title, "label": case.label, "round": turn, **figures}


def machine() -> dict[str, Any]:
    """Return facts about this machine."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": model[0] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few events; writes files only with --output"
    )
    parser.add_argument("--output", type=Path, help=f"folder to write to; default: {BENCH}")
    parser.add_argument("--only", default="", help="groups whose titles contain this")
    parser.add_argument("--rounds", type=int, help="how often each case runs; default: 3")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does
    environment = dict(os.environ)
    if STORE_COMMAND not in environment and RUST_STORE.exists():
        environment[STORE_COMMAND] = str(RUST_STORE)
    store = Path(environment.get(STORE_COMMAND, "secantusd-py").split()[0]).name
    print(f"store: {store}", flush=True)
    wanted = [g for g in groups(quick=options.quick) if options.only in g.title]
    if options.rounds:
        wanted = [replace(g, rounds=options.rounds) for g in wanted]
    about = {**machine(), "store": store}
    runs: list[Figures] = []
    started = time.perf_counter()
    try:
        with (
            EmbeddedServers(environment) as stack,
            tempfile.TemporaryDirectory(prefix="replay-bench-") as folder,
        ):
            for run in run_groups(Bench(stack, Path(folder)), wanted):
                runs.append(run)  # noqa: PERF402 - so that Ctrl-C keeps what there is
    except KeyboardInterrupt:
        ran = {(run["group"], run["label"]) for run in runs}
        wanted = [g for g in wanted if all((g.title, case.label) in ran for case in g.cases)]
        print("\nstopped; the groups that were not reached are left out", flush=True)
    except (StackError, WrongResultError, subprocess.CalledProcessError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.perf_counter() - started
    print(f"\n{len(runs)} runs in {seconds:.0f} s; each published what it should")
    output = options.output or (None if options.quick else BENCH)
    if output is not None and wanted:
        peers = {
            g.title: {"note": g.note, "peers": g.peers, "labels": [c.label for c in g.cases]}
            for g in wanted
        }
        report.write(
            {"about": {**about, "seconds": round(seconds)}, "groups": peers, "runs": runs}, output
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
