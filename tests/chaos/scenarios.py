"""The scenarios: each breaks one thing a number of times, in its own trial.

A scenario takes a new trial and the number of faults. If it ends after fewer faults, the suite runs
it again in another trial. It raises `Impossible` if this machine lacks what the scenario needs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from chaos.toxiproxy import Toxiproxy, ToxiproxyMissing, server_command
from chaos.trials import RECOVERY_SECONDS, SESSION_TIMEOUT_SECONDS, Outcome, Trial
from store_proxy import slow_store
from strangers import write_hostile_records
from support import wait_until

from replay_app.demo.stack import REPLICAS

COUNT_SECONDS = 2.5
"""How long a store that counts slowly takes. A replay without a fault takes twice this time."""
EVICTED_SECONDS = SESSION_TIMEOUT_SECONDS + 3
"""A worker that has sent nothing for this time has lost its partitions."""
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
DISK_BYTES = 24 << 20

Scenario = Callable[[Trial, int], Outcome]


class Impossible(Exception):
    """This machine lacks what the scenario needs; the message names it."""


def kill_workers(trial: Trial, times: int) -> Outcome:
    """Kill one, two or all three workers at once; start most of them again, replace the others."""
    trial.start()
    rng, workers = trial.rng, trial.cluster.workers
    kills = 0
    while kills < times:
        victims = rng.sample(range(len(workers)), rng.choice((1, 1, 1, 1, 2, 3)))
        struck_at, names = trial.aim()
        for number in victims:
            workers[number].kill()
        kills += len(victims)
        for number in victims:
            if rng.random() < 0.75:
                trial.cluster.start_worker(number)
            else:
                trial.replace(number)
        if rng.random() < 0.8:  # else the next workers die during the recovery
            trial.await_recovery(struck_at, names)
        trial.go_on(rng.uniform(0, 1.5))
    return trial.outcome("kill -9 of workers", kills)


def kill_counting_workers(trial: Trial, times: int) -> Outcome:
    """Kill workers while a slow store counts the events of the replays that run.

    Some replays end before their count, and some counts move to another worker.
    """
    with slow_store(trial.stack.mongo, COUNT_SECONDS, b"$group") as uri:
        trial.cluster.environment["REPLAY_MONGO"] = uri
        return replace(kill_workers(trial, times), fault="kill -9 of workers while they count")


def kill_chained_workers(trial: Trial, times: int) -> Outcome:
    """Kill workers while replays wait for each other and for a consumer group."""
    with trial.chained():
        return replace(kill_workers(trial, times), fault="kill -9 of workers, replays in chains")


def kill_pacing_workers(trial: Trial, times: int) -> Outcome:
    """Kill workers while replays make steps, keep the events' pace, transform, and park events."""
    trial.mix()
    fault = "kill -9 of workers: steps, pace, transforms, parked aggregates"
    return replace(kill_workers(trial, times), fault=fault)


def join_and_leave(trial: Trial, times: int) -> Outcome:
    """Let a worker leave in order (SIGTERM), then let another worker join."""
    trial.start()
    for turn in range(times):
        number = trial.rng.randrange(3)
        struck_at, names = trial.aim()
        if turn % 2 == 0:
            trial.cluster.workers[number].terminate()
            left = number
        else:
            trial.replace(left).wait_until_ready()
        trial.await_recovery(struck_at, names, reviving=False)
        trial.go_on(trial.rng.uniform(0, 1.5))
    return trial.outcome("workers leave (SIGTERM) and join", times)


def stop_and_wake_workers(trial: Trial, times: int) -> Outcome:
    """Stop a worker until after its session timeout (SIGSTOP) and wake it as a zombie (SIGCONT)."""
    trial.start()
    for _ in range(times):
        worker = trial.rng.choice(trial.cluster.workers)
        struck_at, names = trial.aim()
        worker.signal(signal.SIGSTOP)
        time.sleep(EVICTED_SECONDS)
        worker.signal(signal.SIGCONT)
        trial.await_recovery(struck_at, names)
        trial.go_on(trial.rng.uniform(0, 1.5))
    return trial.outcome("SIGSTOP past the session timeout, SIGCONT", times)


def kill_broker(trial: Trial, times: int) -> Outcome:
    """Kill the only broker and start it at once.

    Such a broker may lose the marker of a transaction that it was killed in. The trial then ends:
    every later replay to the same partition would fail for the same reason.
    """
    trial.start()
    kills = 0
    while kills < times and not trial.hung:
        trial.go_on(trial.rng.uniform(0, 1.5))
        struck_at, names = trial.aim()
        trial.stack.kill_broker()
        kills += 1
        trial.stack.start_broker()
        if not trial.has_lost_markers():
            trial.await_recovery(struck_at, names)
    return trial.outcome("broker kill -9 and restart", kills)


def broker_away(trial: Trial, times: int) -> Outcome:
    """Kill the broker and start it a minute later."""
    trial.start()
    for _ in range(times):
        _, names = trial.aim()
        trial.stack.kill_broker()
        time.sleep(60)
        back_at = time.time()
        trial.stack.start_broker()
        trial.await_recovery(back_at, names)
    return trial.outcome("broker down for 60 s", times, "recovery counts from its new start")


def kill_store(trial: Trial, times: int) -> Outcome:
    """Kill the event store and start it at once."""
    trial.start()
    for _ in range(times):
        trial.go_on(trial.rng.uniform(0, 1.5))
        struck_at, names = trial.aim()
        trial.stack.kill_store()
        trial.stack.start_store()
        trial.await_recovery(struck_at, names)
    return trial.outcome("store kill -9 and restart", times)


def cut_network(trial: Trial, times: int) -> Outcome:
    """Cut a worker off from the broker, silently or not, for a moment or past its timeout."""
    try:
        server_command()
    except ToxiproxyMissing as missing:
        raise Impossible(str(missing)) from missing
    with Toxiproxy(trial.proxy_port, trial.stack.behind_proxy) as network:
        trial.cluster.start_worker(None, REPLAY_KAFKA=f"127.0.0.1:{trial.proxy_port}")
        trial.start(2)
        for turn in range(times):
            trial.go_on(trial.rng.uniform(0, 1.5))
            struck_at, names = trial.aim()
            cut = network.fall_silent if turn % 2 == 0 else network.refuse
            cut()
            time.sleep(EVICTED_SECONDS if turn % 4 < 2 else 2)
            network.heal()
            trial.await_recovery(struck_at, names)
        return trial.outcome("network cut between a worker and the broker", times)


def claim_twice(trial: Trial, times: int) -> Outcome:
    """Start a second worker of the same name: both claim the same partitions."""
    trial.start(2)
    for _ in range(times):
        number = trial.rng.randrange(2)
        struck_at, names = trial.aim()
        twin = trial.twin(number)
        trial.await_recovery(struck_at, names, reviving=False)
        trial.go_on(SESSION_TIMEOUT_SECONDS)
        twin.kill()
        trial.revive()  # the first worker, if it ended
    return trial.outcome("two workers claim the same partitions", times)


def repeat_commands(trial: Trial, times: int) -> Outcome:
    """Send every command three times, as a client does that retries, and kill a worker."""
    trial.start(2)
    trial.repeats = 3
    for _ in range(times):
        trial.go_on(trial.rng.uniform(0, 1.0))
        _, names = trial.aim()
        for command in ("pause", "resume"):
            for name in names:
                for _ in range(3):
                    trial.cluster.command(name, command)
        struck_at = time.time()
        number = trial.rng.randrange(2)
        trial.cluster.workers[number].kill()
        trial.cluster.start_worker(number)
        trial.await_recovery(struck_at, names)
    return trial.outcome("each command three times, and a kill", times)


def fill_disk(trial: Trial, times: int) -> Outcome:
    """Fill the disk of a worker's RocksDB folder, and make room again later."""
    with small_disk(trial.folder / "disk") as disk:
        trial.cluster.start_worker(None, REPLAY_DATA_DIR=str(disk / "data"))
        trial.start(1)
        filler = disk / "filler"
        for _ in range(times):
            struck_at, names = trial.aim()
            with filler.open("wb") as file:
                while True:
                    try:
                        file.write(bytes(1 << 16))
                        file.flush()
                    except OSError:
                        break
            trial.await_recovery(struck_at, names, reviving=False)
            trial.go_on(5)
            filler.unlink()
            trial.revive(REPLAY_DATA_DIR=str(disk / "data"))  # if the worker ended
            trial.go_on(2)
        return trial.outcome("full disk under RocksDB", times)


def jump_clock(trial: Trial, times: int) -> Outcome:
    """Start a worker again with a clock that is an hour ahead of all others, or behind them."""
    if not FAKETIME.exists():
        raise Impossible("libfaketime is not installed (apt-get install faketime)")
    trial.start(2)
    for turn in range(times):
        number = turn % 2
        struck_at, names = trial.aim()
        trial.cluster.workers[number].kill()
        shift = ("+58m", "-60m")[turn // 2 % 2]
        trial.cluster.start_worker(number, LD_PRELOAD=str(FAKETIME), FAKETIME=shift)
        trial.await_recovery(struck_at, names, reviving=False)
        trial.go_on(3)
    return trial.outcome("clock of a worker jumps by an hour", times)


def be_hostile(trial: Trial, times: int) -> Outcome:
    """Write hostile records of every kind to every internal topic, then kill a worker.

    The worker that starts in its place reads the records from the beginning of their topics.
    """
    trial.start()
    for _ in range(times):
        struck_at, names = trial.aim()
        session = wait_until(lambda: trial.cluster.session(names[0]), RECOVERY_SECONDS)  # noqa: B023 - called at once
        write_hostile_records(trial.cluster, session)
        trial.await_recovery(struck_at, names)
        number = trial.rng.randrange(len(trial.cluster.workers))
        struck_at, names = trial.aim()
        trial.cluster.workers[number].kill()
        trial.replace(number)
        trial.await_recovery(struck_at, names)
        trial.go_on(trial.rng.uniform(0, 1.5))
    return trial.outcome("hostile records on every internal topic, and a kill", times)


# A cluster of three brokers


def kill_transaction_coordinator(trial: Trial, times: int) -> Outcome:
    """Kill the broker that coordinates a worker's transactions."""
    return _kill_brokers(trial, times, _transaction_coordinator, "a transaction coordinator's")


def kill_group_coordinator(trial: Trial, times: int) -> Outcome:
    """Kill the broker that coordinates the workers' consumer group."""
    return _kill_brokers(trial, times, _group_coordinator, "the group coordinator's")


def kill_leader(trial: Trial, times: int) -> Outcome:
    """Kill the broker that leads a partition of a destination topic."""
    return _kill_brokers(trial, times, _leader, "a destination leader's")


def lose_broker(trial: Trial, times: int) -> Outcome:
    """Kill a broker that never comes back in this trial."""
    trial.start()
    number = _leader(trial)
    struck_at, names = trial.aim()
    trial.stack.kill_broker(number)
    trial.await_recovery(struck_at, names)
    trial.go_on(10)
    return trial.outcome("a broker gone for good", 1)


def grow_topics(trial: Trial, times: int) -> Outcome:
    """Give a destination topic one partition more."""
    trial.start()
    topics = list(trial.partitions)
    for turn in range(times):
        struck_at, names = trial.aim()
        trial.grow(topics[turn % len(topics)])
        trial.await_recovery(struck_at, names)
        trial.go_on(trial.rng.uniform(0, 1.5))
    return trial.outcome("a destination topic gets one partition more", times)


def _kill_brokers(trial: Trial, times: int, find: Callable[[Trial], int], whose: str) -> Outcome:
    """Kill brokers. Each starts again once the replays go on without it."""
    trial.start()
    for _ in range(times):
        number = find(trial)
        struck_at, names = trial.aim()
        trial.stack.kill_broker(number)
        trial.await_recovery(struck_at, names)
        trial.stack.start_broker(number)
        trial.brokers.wait_until_replicated(REPLICAS)
        trial.go_on(trial.rng.uniform(0, 1.5))
    return trial.outcome(f"kill -9 of {whose} broker", times)


def _transaction_coordinator(trial: Trial) -> int:
    partition = trial.rng.randrange(trial.cluster.partitions)
    return trial.brokers.coordinator("transaction", f"{trial.cluster.name}-work-{partition}")


def _group_coordinator(trial: Trial) -> int:
    return trial.brokers.coordinator("group", trial.cluster.name)


def _leader(trial: Trial) -> int:
    topic = trial.rng.choice(list(trial.partitions))
    return trial.brokers.leader(topic, trial.rng.randrange(trial.partitions[topic]))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small file system for the time of the block."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() != 0 or mount is None or umount is None:
        raise Impossible("a small file system can only be mounted by root")
    folder.mkdir()
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise Impossible(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([umount, "--lazy", str(folder)], check=True)
