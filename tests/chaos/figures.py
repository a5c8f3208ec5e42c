"""``make figures``: measure memory, the seconds until a resumed replay goes on, and pauses.

The tables go to standard output, and with ``--write`` also into docs/reliability.md. A long history
needs a fast store: name its command in REPLAY_STACK_STORE_COMMAND.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from chaos.document import write
from chaos.trials import Follower, Size, Trial
from support import newest_by_key, wait_until
from workers import Cluster, Worker

from replay_app.checkpoints import decode_checkpoint
from replay_app.demo.stack import EmbeddedServers, free_port
from replay_app.encoders import encoder_name
from replay_app.queries import after, all_of, from_json
from replay_app.settings import Settings

PARTS = ("memory", "resuming", "pauses")
SAMPLE_SECONDS = 0.2
PAGE = 2_000
ROUNDS = 5
CHANGES = 1
GROUP_SETTLE_SECONDS = 25.0
"""After this time every worker has joined, or the group has evicted the missing worker."""
LONG_EVENTS = 15_000
"""Enough that a replay with a rate outlasts a change of workers."""


@contextmanager
def installation(stack: EmbeddedServers, folder: Path, events: int) -> Iterator[Cluster]:
    """Give a cluster with this number of events and one worker with default settings."""
    folder.mkdir()
    cluster = Cluster(stack, folder, environment={"REPLAY_ENCODER": Settings().encoder})
    began = time.monotonic()
    cluster.seed(events, index=False)  # the development stores use no index to sort
    say(f"{events:,} events stored in {time.monotonic() - began:.0f} s")
    cluster.start_worker().wait_until_ready()
    yield cluster
    cluster.close()


# Memory


def memory(stack: EmbeddedServers, folder: Path, events: int) -> list[str]:
    """Return a row: a worker's resident memory during one replay without a rate."""
    with installation(stack, folder, events) as cluster:
        worker = cluster.workers[0]
        at_rest = resident_mebibytes(worker)
        began = time.monotonic()
        cluster.command("r")
        samples: list[tuple[int, float]] = []
        session: dict[str, Any] = {}
        while session.get("state") != "completed":
            time.sleep(SAMPLE_SECONDS)
            session = cluster.session("r") or session
            if session:
                samples.append((session["counters"]["read"], resident_mebibytes(worker)))
        seconds = time.monotonic() - began
    first = max(mib for read, mib in samples if read <= events / 2)
    second = max(mib for read, mib in samples if read > events / 2)
    shown = " | ".join(f"{mib:.0f}" for mib in (at_rest, first, second))
    return [f"| {events:,} | {shown} | {seconds:.1f} |"]


def resident_mebibytes(worker: Worker) -> float:
    """Return the resident memory of a worker process (VmRSS)."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


# Resuming


def resuming(stack: EmbeddedServers, folder: Path, events: int) -> list[str]:
    """Return rows: from ``resume`` to the next event, near the beginning and near the end."""
    rows: list[str] = []
    with installation(stack, folder, events) as cluster:
        follower = Follower(stack.kafka, cluster.topics(), 3)
        cluster.command("r", rate=events / 50)
        for share in (0.01, 0.99):
            # Fast until shortly before the place, slower up to the place, then almost not at all.
            cluster.command("r", "set-rate", rate=20_000)
            wait_for_share(follower, events, share - 0.05)
            cluster.command("r", "set-rate", rate=events / 50)
            wait_for_share(follower, events, share - 0.005)
            cluster.command("r", "set-rate", rate=events / 5_000)
            seconds = []
            for _ in range(ROUNDS):
                cluster.command("r", "pause")
                cluster.wait_for("r", "paused")
                time.sleep(1)  # so that the replay does not wait for its rate
                resumed_at = time.time()
                cluster.command("r", "resume")
                seen = wait_until(lambda at=resumed_at: follower.seen_after("r", at), 120)  # type: ignore[misc]
                seconds.append((seen or resumed_at) - resumed_at)
            reached = follower.counts["r"] / events
            rows.append(
                f"| {events:,} | {reached:.0%} | {median(seconds):.2f} | {max(seconds):.2f} | "
                f"{first_page_seconds(cluster):.2f} |"
            )
        follower.close()
    return rows


def wait_for_share(follower: Follower, events: int, share: float) -> None:
    """Wait until this share of the events (0 to 1) is published."""
    wait_until(lambda: follower.counts["r"] >= share * events, 600)


def first_page_seconds(cluster: Cluster) -> float:
    """Return the seconds that the store needs for the first page after the checkpoint."""
    found = newest_by_key(cluster.stack.kafka, f"{cluster.prefix}checkpoints")
    checkpoint = decode_checkpoint(found[b"r/0"])
    assert checkpoint is not None
    (shard,) = (cluster.session("r") or {})["plan"]["shards"]
    query = all_of(from_json(shard["match"]), after(checkpoint.cursor, shard["sort"]))
    with cluster.store() as events:
        seconds = []
        for _ in range(ROUNDS):
            began = time.monotonic()
            order = [(field, 1) for field in shard["sort"]]
            assert list(events.find(query).sort(order).limit(PAGE).batch_size(PAGE))
            seconds.append(time.monotonic() - began)
    return median(seconds)


# Rebalances


def pauses(stack: EmbeddedServers, folder: Path) -> list[str]:
    """Return rows: for how long a change of workers stops the replays."""
    folder.mkdir()
    rows: list[str] = []
    with Trial(
        stack, folder, random.Random(1), free_port(), size=Size(events=LONG_EVENTS)
    ) as trial:
        trial.start(2)
        workers = trial.cluster.workers

        def leave() -> None:
            workers[1].terminate()

        def die() -> None:
            workers[1].kill()

        def join() -> None:
            trial.replace(1)

        def come_back() -> None:
            trial.cluster.start_worker(1)

        changes: tuple[tuple[str, tuple[Callable[[], None], ...]], ...] = (
            ("a worker is restarted in order", (leave, come_back)),
            ("a worker is killed and started again", (die, come_back)),
            ("a worker leaves in order for good", (leave,)),
            ("a worker joins", (join,)),
            ("a worker is killed for good", (die,)),
            ("a worker joins", (join,)),
        )
        found: dict[str, list[float]] = {name: [] for name, _ in changes}
        for _ in range(CHANGES):
            for name, steps in changes:
                struck_at, names = trial.aim()
                for step in steps:
                    step()
                trial.go_on(GROUP_SETTLE_SECONDS)
                gaps = [trial.follower.longest_gap(one, struck_at) for one in names]
                found[name].append(max(gaps, default=0.0))
        assert trial.outcome("", 0).is_clean
    for name, seconds in found.items():
        rows.append(f"| {name} | {median(seconds):.1f} | {max(seconds):.1f} |")
    return rows


def main() -> int:
    """Measure; print the tables."""
    parser = argparse.ArgumentParser(prog="make figures", description=__doc__)
    parser.add_argument("--events", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="put the tables into the document")
    options = parser.parse_args()
    store = Path(os.environ.get("REPLAY_STACK_STORE_COMMAND", "secantusd-py")).name
    encoder = encoder_name(Settings().encoder).capitalize()
    lines = [f"{encoder} encoder, default settings, {store} as the store.", ""]
    with (
        tempfile.TemporaryDirectory(prefix="replay-figures-") as name,
        EmbeddedServers() as stack,
    ):
        folder = Path(name)
        if "memory" in options.only:
            lines += [
                "| events | RSS at rest, MiB | max in the first half | in the second | seconds |",
                "|--:|--:|--:|--:|--:|",
            ]
            for events in options.events:
                lines += memory(stack, folder / f"memory-{events}", events)
            lines.append("")
        if "resuming" in options.only:
            lines += [
                "| events | resumed at | next event after, median s | max s | store's part, s |",
                "|--:|--:|--:|--:|--:|",
            ]
            for events in options.events:
                lines += resuming(stack, folder / f"resuming-{events}", events)
            lines.append("")
        if "pauses" in options.only:
            lines += ["| what changes | without progress, median s | max s |", "|---|--:|--:|"]
            lines += pauses(stack, folder / "pauses")
    text = "\n".join(lines)
    print(text)
    if options.write:
        write("make figures", text)
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
