"""`make demo-rebuild`: two corrupted views are rebuilt beside the live stream, and swapped.

The demo starts a broker, a store, a replay worker, the shop (`shop.py`) and its views
(`views.py`). It corrupts the views (`corrupt.py`), builds them again in a second application from
the chain in `chain.yaml`, and kills the replay worker in the middle. Then the second application
reads on live from the hand-over, and takes the place of the first. The shop never stops meanwhile.
At the end the demo compares the views with the truth (`truth.py`). The demo leaves nothing behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from truth import Views, has_all_of, true_views, wrong_rows

from replay_app.client import Client
from replay_app.demo.run import COLLECTION, Place, Worker
from replay_app.demo.shop import seed_store
from replay_app.demo.stack import Reaper, free_port, outside_environment, select_provider
from replay_app.exceptions import ReplayError
from replay_app.terminal import say, show_claims

HERE = Path(__file__).parent
CHAIN_FILE = HERE / "chain.yaml"
CHAIN = "rebuild-shop"
REPLAY_APP = ("-m", "replay_app")
REPLAYS = ("orders", "customers")
SOURCES = ("shop.orders", "shop.customers")
GROUPS = ("views-a", "views-b")
"""The views that are live at first, and those that are built beside them."""
TABLES = ("orders", "customers", "ends")
PARTITIONS = 3
EVENTS_PER_SECOND = 40.0
"""Of the shop, live."""
STEP_SECONDS = 240.0
"""The longest time for each step. A step takes a few seconds on an idle machine."""
PATIENCE = f"{STEP_SECONDS:g}"
"""Of the watched chain, while no worker answers."""
STOP_SECONDS = 20.0
OVERLAP_SECONDS = 5.0
"""Between replay and live stream: longer than the shop's events are late."""
ROWS_TO_CORRUPT = 10
KILL_AT_PERCENT = 25
EQUAL, STORE_CHANGED = 0, 6
"""Exit codes of ``replay-app verify``. The shop stores some late events after the replay has passed
their place. The views get these events live."""
POLL_SECONDS = 0.2

Answer = TypeVar("Answer")


@contextmanager
def interrupted_later() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt behind a block, and not in its middle."""
    came = []
    usual = {
        one: signal.signal(one, lambda number, _: came.append(number))
        for one in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)
    if came:
        raise KeyboardInterrupt


class Programs:
    """The processes of the shop, with their logs. All end with this process, even by SIGKILL."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        """What every program finds in its environment, beside the outside without `REPLAY_`."""
        self.folder = Path(tempfile.mkdtemp(prefix="replay-rebuild-"))
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._reaper = Reaper(self.folder)

    def start(self, name: str, *command: str, shows: bool = False, **environment: str) -> None:
        """Start a Python program. A second program of the name needs `end` first.

        With ``shows`` the program's output is also this process's output.
        """
        # A signal in the middle would leave a program that nobody knows of, and so nobody ends.
        with self._log(name).open("a") as log, interrupted_later():
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own scripts
                [sys.executable, *command],
                env={**outside_environment(), **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=None if shows else subprocess.PIPE,
                stderr=log,
                cwd=self.folder,  # this folder has no .env file
                text=True,
                start_new_session=True,  # only this process gets Ctrl-C
            )
            self._reaper.tell(self._running.values())

    def check(self) -> None:
        """Raise `ReplayError` if a program has ended by itself."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ReplayError(f"{name} ended with code {process.returncode}")

    def exit_code(self, name: str) -> int | None:
        """Return a program's exit code, once, after the program has ended by itself; else None."""
        code = self._running[name].poll()
        if code is not None:
            del self._running[name]
            self._reaper.tell(self._running.values())
        return code

    def end(self, name: str) -> str:
        """End a program in order; return what it printed."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        self._reaper.tell(self._running.values())
        return output or ""

    def logs(self) -> str:
        """Return the end of each program's log."""
        return "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """End every program, and remove the folder."""
        for name in list(self._running):
            self.end(name)
        self._reaper.close()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


@dataclass
class Shop:
    """The running demo: servers, worker, programs."""

    place: Place
    worker: Worker
    programs: Programs
    urls: dict[str, str]
    """The pages of each views application, by its group."""

    def truth(self) -> Views:
        """Return what the views should be now."""
        return true_views(self.place.stack.mongo, self.place.database)

    def start_views(self, group: str, replays: str = "") -> None:
        """Start an application of the views; see `views.py`."""
        folder = self.programs.folder / group
        folder.mkdir(exist_ok=True)
        self.programs.start(
            group,
            *(str(HERE / "views.py"), "worker", "--loglevel", "warn"),
            VIEWS_GROUP=group,
            VIEWS_REPLAYS=replays,
            VIEWS_KAFKA=self.place.stack.kafka,
            VIEWS_FOLDER=str(folder),
            VIEWS_PORT=self.urls[group].rpartition(":")[2],
        )

    def ask(self, group: str, path: str) -> Any:
        """Return the answer of a page of the views; None while the application does not answer."""
        self.programs.check()
        with suppress(OSError), urlopen(self.urls[group] + path, timeout=10) as answer:  # noqa: S310 - http
            return json.load(answer)
        return None

    def wrong_rows(self, group: str) -> dict[str, int] | None:
        """Return how many rows of each view differ from the truth; None without an answer."""
        views = self.ask(group, "/views")
        return None if views is None else wrong_rows(views, self.truth())

    def run(self, *command: str, good: Container[int] = (0,)) -> str:
        """Run a Python program to its end; return what it printed.

        Raises `ReplayError` if the exit code is not among the ``good`` ones.
        """
        ran = subprocess.run(  # noqa: S603 - our own scripts
            [sys.executable, *command],
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
            env={**outside_environment(), **self.programs.environment},
            cwd=self.programs.folder,
        )
        if ran.returncode not in good:
            what, told = " ".join(command), (ran.stderr or ran.stdout)[-2000:]
            raise ReplayError(f"{what} ended with code {ran.returncode}: {told}")
        return ran.stdout


def wait_for(what: str, look: Callable[[], Answer | None]) -> Answer:
    """Return the first true answer of a look; raise `ReplayError` after STEP_SECONDS."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise ReplayError(f"{what}: not after {STEP_SECONDS:g} s, but {answer!r}")
        time.sleep(POLL_SECONDS)


def main(arguments: list[str]) -> int:
    """Run the demo; return 0 if the views are right at the end, else 1."""
    parser = argparse.ArgumentParser(description="Rebuild two views beside the live stream.")
    parser.add_argument("--events", type=int, default=10_000, help="events of the history")
    parser.add_argument("--keep", action="store_true", help="run on at the end, until Ctrl-C")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM cleans up as Ctrl-C does
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        with ExitStack() as running:
            return rebuild(running, options.events, keep=options.keep)
    except ReplayError as error:
        say(f"error: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        return 130


def rebuild(running: ExitStack, events: int, *, keep: bool) -> int:
    """Run the demo; ``running`` ends what the demo has started."""
    began = time.monotonic()

    def tell(text: str) -> None:
        say(f"[{time.monotonic() - began:5.1f} s] {text}")

    tell("Starting a broker and a store")
    # Always servers of its own: groups and topics have the names that stand in the guide.
    place = Place(running.enter_context(select_provider({})()))
    asyncio.run(create_topics(place))
    settings = place.environment()
    settings["REPLAY_HANDOVER_OVERLAP_SECONDS"] = f"{OVERLAP_SECONDS:g}"
    worker = running.enter_context(closing(Worker(settings)))
    programs = running.enter_context(closing(Programs(settings | {"REPLAY_URL": worker.url})))
    urls = {group: f"http://127.0.0.1:{free_port()}" for group in GROUPS}
    shop = Shop(place, worker, programs, urls)
    try:
        return _rebuild(shop, events, tell, keep=keep)
    except ReplayError:
        say(*worker.last_log_lines().splitlines(), *programs.logs().splitlines(), error=True)
        raise


def _rebuild(shop: Shop, events: int, tell: Callable[[str], None], *, keep: bool) -> int:
    worker, programs = shop.worker, shop.programs
    before = open_and_corrupt(shop, events, tell)

    tell(f"Applying {CHAIN_FILE.name}: both views are built beside the live stream")
    say(*shop.run(*REPLAY_APP, "apply", str(CHAIN_FILE)).splitlines())
    killed = follow_chain(shop, tell)
    wait_for("the end of the replays in every partition", lambda: has_every_end(shop))

    tell("Hand-over: views-b goes on live, where the replays ended")
    hand_over(shop)
    current = programs.folder / "current"  # which views the shop's pages ask for
    current.write_text(shop.urls["views-b"])
    programs.end("views-a")
    tell(f"Swapped: the shop's pages now ask {current.read_text()}")

    sold = int(programs.end("shop").splitlines()[-1])
    tell(f"Closed the shop after {sold:,} live events; comparing the views with the truth")
    truth = shop.truth()
    with suppress(ReplayError):  # the verdict tells what is missing
        wait_for("the last live events", lambda: has_all_of(shop.ask("views-b", "/views"), truth))
    after = shop.wrong_rows("views-b") or {}
    for name in REPLAYS:
        verify = (*REPLAY_APP, "verify", f"{CHAIN}.{name}")
        say(*shop.run(*verify, good=(EQUAL, STORE_CHANGED)).splitlines())
    rows = {view: len(rows) for view, rows in truth.items()}
    checks = {
        "the worker was killed in the middle": (killed, "and came back"),
        "the views were wrong before": (all(before.values()), _amounts(before)),
        "the views are right now": (bool(after) and not any(after.values()), _amounts(after)),
        "there were rows to compare": (all(rows.values()), _amounts(rows)),
        "live events are in them": (sold > 0, f"{sold:,} events"),
    }
    show_claims(checks)
    holds = all(is_true for is_true, _ in checks.values())
    say(f"{'It holds' if holds else 'IT FAILED'}.")
    tell("Done")
    if keep:
        say(f"Running until Ctrl-C: {worker.url}/ and {shop.urls['views-b']}/views")
        with suppress(KeyboardInterrupt):
            while worker.is_alive():
                time.sleep(1)
    return 0 if holds else 1


def open_and_corrupt(shop: Shop, events: int, tell: Callable[[str], None]) -> dict[str, int]:
    """Open the shop and corrupt its live views; return how many rows of each view are wrong."""
    place = shop.place
    tell(f"Storing {events:,} events of a shop, of which Kafka has none any more")
    seed_store(place.stack.mongo, place.database, COLLECTION, events)
    where = (place.stack.kafka, place.stack.mongo, place.database)
    tell(f"Opening the shop: {EVENTS_PER_SECOND:g} events/s, to the store and to Kafka")
    shop.programs.start("shop", str(HERE / "shop.py"), *where, str(events), str(EVENTS_PER_SECOND))
    shop.start_views("views-a")
    shop.start_views("views-b", CHAIN)
    shop.worker.wait_until_ready()
    url = shop.urls["views-a"]
    tell(f"The status page is {shop.worker.url}/, the live views are {url}/views")
    wait_for("live rows", lambda: rows_of(shop.ask("views-a", "/views")) >= ROWS_TO_CORRUPT)
    damaged = shop.run(str(HERE / "corrupt.py"), place.stack.kafka, "views-a", url).strip()
    wait_for("the damage", lambda: "lost" in json.dumps(shop.ask("views-a", "/views")))
    wrong = shop.wrong_rows("views-a") or {}
    tell(f"Corrupted {damaged} live rows: {_amounts(wrong)} are wrong or missing")
    return wrong


def rows_of(views: Views | None) -> int:
    """Return the number of rows in the view that has the fewest."""
    return min(len(rows) for rows in views.values()) if views else 0


def hand_over(shop: Shop) -> None:
    """Let the new views go on in the live topics, and wait until they are at the present."""
    shop.programs.end("views-b")
    for name in REPLAYS:
        to = ("--group", "views-b", "--to", "handover", "--execute")
        say(*shop.run(*REPLAY_APP, "offsets", f"{CHAIN}.{name}", *to).splitlines())
    shop.start_views("views-b")
    now = shop.truth()
    wait_for("views-b at the present", lambda: has_all_of(shop.ask("views-b", "/views"), now))


async def create_topics(place: Place) -> None:
    """Create the topics of the shop, those beside them for the replays, and those of the views."""
    await place.create_shop_topics()
    plain = [f"rebuild.{topic}" for topic in SOURCES]
    plain += [f"{group}-{topic}" for group in GROUPS for topic in ("order-changes", "corrections")]
    # Faust creates the changelogs of its tables too, but an event that comes a moment before it
    # knows their partitions is lost to the table.
    tables = [f"{group}-{name}-changelog" for group in GROUPS for name in TABLES]
    compact = {"cleanup.policy": "compact"}
    admin = AIOKafkaAdminClient(bootstrap_servers=place.stack.kafka)
    await admin.start()
    try:
        await admin.create_topics(
            [NewTopic(name, PARTITIONS, 1) for name in plain]
            + [NewTopic(name, PARTITIONS, 1, topic_configs=compact) for name in tables]
        )
    finally:
        await admin.close()


def follow_chain(shop: Shop, tell: Callable[[str], None]) -> bool:
    """Show the chain until the views have read all of it; kill the worker once, in the middle.

    Return whether the worker was killed while events were still to come.
    """
    first = f"{CHAIN}.{REPLAYS[0]}"
    killed = False
    shop.programs.start(
        "chain", *REPLAY_APP, "chain", CHAIN, "--watch", "--patience", PATIENCE, shows=True
    )
    while (code := shop.programs.exit_code("chain")) is None:
        if not killed and (found := progress(shop, first)):
            published, matched = found
            if published * 100 > matched * KILL_AT_PERCENT:
                tell(f"Killing the worker after {published:,} of {matched:,} events of {first}")
                shop.worker.kill()
                shop.worker.start()
                killed = True
                if published >= matched:
                    raise ReplayError("the replay was faster than this demo: give it more --events")
        time.sleep(POLL_SECONDS)
    if code:
        raise ReplayError(f"the chain ended with code {code}")
    return killed


def progress(shop: Shop, replay_id: str) -> tuple[int, int] | None:
    """Return the published and the matching events; None while they are not known."""
    with suppress(ReplayError):
        replay = Client(shop.worker.url).replay(replay_id)
        if replay.matched:
            return replay.counters.published, replay.matched
    return None


def has_every_end(shop: Shop) -> bool:
    """Return whether the new views have read the ``end`` records of both replays."""
    ends = shop.ask("views-b", "/replay") or {}
    return len(ends) == len(SOURCES) * PARTITIONS and all(ends.values())


def _amounts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {view}" for view, count in counts.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
