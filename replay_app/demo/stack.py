"""The development stack: one Kafka broker and one event store, for demo, tests and benchmarks.

::

    with Stack.start() as stack:
        print(stack.kafka, stack.mongo)

Where the servers come from is the first of these that applies:

- `EnvironmentServers`: ``REPLAY_KAFKA`` and ``REPLAY_MONGO`` name servers that are there already.
- `ContainerServers`: a Docker engine answers.
- `EmbeddedServers`: Apache Kafka on Java, its jars from Maven, and SecantusDB, which speaks
  MongoDB's wire protocol, from Python's packages. These can be killed and started again.

``python -m replay_app.demo.stack`` starts one, prints where it is, and runs until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiokafka.errors
import pymongo
import pymongo.errors
from aiokafka.admin import AIOKafkaAdminClient

from replay_app.exceptions import ReplayError

POM = Path(__file__).with_name("kafka") / "pom.xml"
KAFKA_IMAGE = "apache/kafka:4.3.1"
MONGO_IMAGE = "mongo:8"
START_SECONDS = 60.0  # a cold machine with two cores takes about 5
STOP_SECONDS = 30.0
DOCKER_SECONDS = 10.0
LAST_LOG_LINES = 20
MINIMUM_JAVA = 17  # Kafka 4's
PORTS = range(20_000, 32_000)

# One small broker that answers at once. transaction.abort.timed.out.transaction.cleanup.interval.ms
# keeps its default: with 1 s, a transaction that expired while a lone broker started was committed.
BROKER_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": (
        "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"
    ),
    "auto.create.topics.enable": "false",  # a missing topic must be an error, as in production
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",  # crash tests use sessions of a few seconds
    "log.retention.ms": "-1",  # demo events keep their own old timestamps if so set
    "log.cleaner.dedupe.buffer.size": "16777216",
}

# Ends what a stack leaves behind, whatever ended the stack: the pipe to the reaper closes with
# the process that holds it, by exit, exception, SIGTERM or SIGKILL alike. Each line names the
# servers that live now. A dying server may still write into its folder, hence the repetition.
REAPER = """
trap '' INT TERM HUP
while read -r pids; do live=$pids; done
for pid in $live; do kill -s KILL -- "-$pid"; done
for try in 1 2 3 4 5 6 7 8 9; do rm -rf -- "$1" && break; sleep 0.2; done
"""


class StackError(ReplayError):
    """A server of the development stack cannot run; the message says what to do."""


class Stack(ABC):
    """Two running servers; as a context manager they end with the block."""

    kafka: str
    """Bootstrap servers."""
    mongo: str
    """URI of the event store."""

    @staticmethod
    def start() -> Stack:
        """Start the servers of the first provider that applies and wait until they answer.

        Raises
        ------
        StackError
            A prerequisite is missing, or a server does not start: with its last log lines.

        """
        return select_provider()()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point a child process at these servers."""
        return {"REPLAY_KAFKA": self.kafka, "REPLAY_MONGO": self.mongo}

    @abstractmethod
    def close(self) -> None:
        """End the servers and remove their data; again has no effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class EnvironmentServers(Stack):
    """Servers that somebody else runs, named by ``REPLAY_KAFKA`` and ``REPLAY_MONGO``."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.kafka = environ["REPLAY_KAFKA"]
        self.mongo = environ["REPLAY_MONGO"]
        _wait_until_ready(self.kafka, kafka_answers)
        _wait_until_ready(self.mongo, mongo_answers)

    def close(self) -> None:
        """Leave the servers alone."""


class ContainerServers(Stack):
    """Apache Kafka and MongoDB in Docker; testcontainers removes them even after a SIGKILL."""

    def __init__(self) -> None:
        # Imported here, because only this provider needs the demo extra's package.
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415

        self._containers: list[DockerContainer] = []
        try:
            broker = DockerContainer(KAFKA_IMAGE)
            host = broker.get_docker_client().host()
            # The broker tells its clients where it is, so its port must be known beforehand.
            port = free_port()
            self.kafka = f"{host}:{port}"
            settings = BROKER_SETTINGS | _listeners(host, port, "0.0.0.0", free_port())  # noqa: S104 - inside the container
            for name, value in settings.items():
                broker.with_env(f"KAFKA_{name.replace('.', '_').upper()}", value)
            store = DockerContainer(MONGO_IMAGE).with_exposed_ports(27017)
            for container in (broker.with_bind_ports(port, port), store):
                self._containers.append(container)
                container.start()
            self.mongo = f"mongodb://{host}:{store.get_exposed_port(27017)}"
            _wait_until_ready(self.kafka, kafka_answers)
            _wait_until_ready(self.mongo, mongo_answers)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop and remove the containers."""
        while self._containers:
            self._containers.pop().stop()


class EmbeddedServers(Stack):
    """Apache Kafka and SecantusDB as children of this process, on free loopback ports.

    Their data is in a folder of its own below the system's temporary folder. They end, and the
    folder goes, when the stack is closed and when this process ends, however it ends.

    With ``durable_store`` every acknowledged write survives `kill_store`, but inserts take twice
    the time; without it, those of the last two seconds may be lost.

    With ``proxy_port`` the broker also listens on `behind_proxy`, and tells whoever comes that way
    to keep to ``proxy_port`` on this machine: there a proxy of the caller's forwards to it.
    """

    behind_proxy: str = ""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        durable_store: bool = False,
        proxy_port: int | None = None,
    ) -> None:
        java = _java()
        store_command = _store_command(environ)
        libraries = _kafka_libraries(_cache_folder(environ))
        self.folder = Path(tempfile.mkdtemp(prefix="replay-stack-"))
        self._reaper = subprocess.Popen(  # noqa: S603 - a constant
            ["/bin/sh", "-c", REAPER, "reaper", str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        broker_port, controller_port, store_port = free_port(), free_port(), free_port()
        self.kafka = f"127.0.0.1:{broker_port}"
        self.mongo = f"mongodb://127.0.0.1:{store_port}"
        configuration = self.folder / "broker.properties"
        listeners = _listeners("127.0.0.1", broker_port, "127.0.0.1", controller_port)
        if proxy_port is not None:
            self.behind_proxy = f"127.0.0.1:{free_port()}"
            listeners["listeners"] += f",PROXIED://{self.behind_proxy}"
            listeners["advertised.listeners"] += f",PROXIED://127.0.0.1:{proxy_port}"
        settings = BROKER_SETTINGS | listeners | {"log.dirs": str(self.folder / "broker")}
        configuration.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        jvm = (
            *(java, "-Xmx512m", "-XX:+UseSerialGC", "-Dlog4j2.level=INFO"),
            *("-cp", str(libraries / "*")),
        )
        self._format_command = (
            *(*jvm, "kafka.tools.StorageTool", "format"),
            *("-t", str(uuid.uuid4()), "-c", str(configuration)),
        )
        self._broker_command = (*jvm, "kafka.Kafka", str(configuration))
        self._store_command = (
            *(*store_command, "--host", "127.0.0.1", "--port", str(store_port)),
            *("--storage-path", str(self.folder / "store"), "--cache-size", "1G"),
            *(("--sync-on-commit",) if durable_store else ()),
        )
        try:
            self._launch("store", self._store_command)
            self._format()
            self.start_broker()
            self._await("store", self.mongo, mongo_answers)
        except BaseException:
            self.close()
            raise

    @property
    def broker_pid(self) -> int:
        """The broker's process id; `StackError` while it does not run."""
        return self._running("broker").pid

    @property
    def store_pid(self) -> int:
        """The store's process id; `StackError` while it does not run."""
        return self._running("store").pid

    def start_broker(self) -> None:
        """Start the broker, on the same port and data as before, and wait until it answers."""
        self._launch("broker", self._broker_command)
        self._await("broker", self.kafka, kafka_answers)

    def stop_broker(self) -> None:
        """Let the broker shut down in order (SIGTERM)."""
        self._end("broker", signal.SIGTERM)

    def kill_broker(self) -> None:
        """Kill the broker (SIGKILL)."""
        self._end("broker", signal.SIGKILL)

    def start_store(self) -> None:
        """Start the store, on the same port and data as before, and wait until it answers."""
        self._launch("store", self._store_command)
        self._await("store", self.mongo, mongo_answers)

    def kill_store(self) -> None:
        """Kill the store (SIGKILL); only a durable store then keeps its last writes."""
        self._end("store", signal.SIGKILL)

    def close(self) -> None:
        """End the servers and remove their data; again has no effect."""
        for name in list(self._servers):
            self._end(name, signal.SIGKILL)
        if self._reaper.stdin is not None and not self._reaper.stdin.closed:
            self._reaper.stdin.close()
        self._reaper.wait(STOP_SECONDS)

    def _format(self) -> None:
        formatted = subprocess.run(  # noqa: S603 - our own command
            self._format_command, capture_output=True, text=True, cwd=self.folder, check=False
        )
        if formatted.returncode:
            raise StackError(
                f"Kafka's storage cannot be formatted: {_last_lines(formatted.stdout)}"
            )

    def _launch(self, name: str, command: Sequence[str]) -> None:
        with self._lock:
            if name in self._servers:
                raise StackError(f"the {name} runs already, process {self._servers[name].pid}")
            with self._log(name).open("ab") as log:
                self._servers[name] = subprocess.Popen(  # noqa: S603 - our own command
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,  # where no configuration file of another project is found
                    start_new_session=True,  # Ctrl-C is for us; we end the servers in order
                )
            self._tell_reaper()

    def _end(self, name: str, sent: signal.Signals) -> None:
        server = self._running(name)
        if server.poll() is None:  # else its process id may be somebody else's by now
            os.killpg(server.pid, sent)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        with self._lock:
            del self._servers[name]
            self._tell_reaper()

    def _tell_reaper(self) -> None:
        if self._reaper.stdin is None:
            raise AssertionError  # it was opened with a pipe
        self._reaper.stdin.write(" ".join(str(one.pid) for one in self._servers.values()) + "\n")
        self._reaper.stdin.flush()

    def _running(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self._servers:
            raise StackError(f"the {name} does not run: start_{name}() starts it")
        return self._servers[name]

    def _await(self, name: str, address: str, answers: Callable[[str], bool]) -> None:
        server = self._running(name)

        def check_alive() -> None:
            if server.poll() is not None:
                raise StackError(f"the {name} ended with code {server.returncode}")

        try:
            _wait_until_ready(address, answers, check_alive)
        except StackError as error:
            with contextlib.suppress(StackError):
                self._end(name, signal.SIGKILL)
            raise StackError(f"{error}\n{self._tail(name)}") from error

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _tail(self, name: str) -> str:
        return _last_lines(self._log(name).read_text(errors="replace"))


def select_provider(
    environ: Mapping[str, str] = os.environ,
    docker_available: Callable[[], bool] | None = None,
) -> type[EnvironmentServers | ContainerServers | EmbeddedServers]:
    """Choose where the servers come from: the environment, Docker, or embedded.

    Raises
    ------
    StackError
        Only one of ``REPLAY_KAFKA`` and ``REPLAY_MONGO`` is set: half a stack would be a
        broker and a store that do not belong together.

    """
    named = [name for name in ("REPLAY_KAFKA", "REPLAY_MONGO") if environ.get(name)]
    if len(named) == 1:
        raise StackError(f"only {named[0]} is set: set REPLAY_KAFKA and REPLAY_MONGO, or neither")
    if named:
        return EnvironmentServers
    if (docker_available or docker_answers)():
        return ContainerServers
    return EmbeddedServers


def docker_answers() -> bool:
    """Tell whether a Docker engine answers, and the package that would talk to it is there."""
    docker = shutil.which("docker")
    if docker is None or find_spec("testcontainers") is None:
        return False
    try:
        asked = subprocess.run(  # noqa: S603 - which() found it
            [docker, "version"], capture_output=True, timeout=DOCKER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def kafka_answers(bootstrap: str) -> bool:
    """Tell whether a broker is ready to serve, by one metadata round trip."""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        # Asked first, because aiokafka logs an error for each connection that is refused.
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            break
    else:
        return False
    # In a thread of its own, because the caller may run an event loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _has_brokers(bootstrap)).result()


def mongo_answers(uri: str) -> bool:
    """Tell whether a store is ready to serve, by one ping."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        uri, serverSelectionTimeoutMS=1000, connectTimeoutMS=1000
    )
    try:
        client.admin.command("ping")
    except pymongo.errors.PyMongoError:
        return False
    finally:
        client.close()
    return True


def free_port() -> int:
    """Return a port on which nobody listens.

    It lies below the range from which the system takes the ports of outgoing connections: a
    client that keeps on connecting to a killed server would, from that range, in the end get the
    server's own port and be connected to itself, and the server could not start again.
    """
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def _has_brokers(bootstrap: str) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except aiokafka.errors.KafkaError:
        return False
    finally:
        await admin.close()


def _wait_until_ready(
    address: str, answers: Callable[[str], bool], check_alive: Callable[[], None] = lambda: None
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        check_alive()
        if answers(address):
            return
        if time.monotonic() > deadline:
            shown = re.sub(r"//.*@", "//", address)  # no password in a message
            raise StackError(f"no answer from {shown} in {START_SECONDS:.0f} s")
        time.sleep(0.05)


def _listeners(host: str, port: int, bind: str, controller_port: int) -> dict[str, str]:
    return {
        "listeners": f"PLAINTEXT://{bind}:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
    }


def _java() -> str:
    """Return the Java that runs the broker."""
    install = (
        f"Kafka needs Java {MINIMUM_JAVA} or later: apt-get install openjdk-17-jre-headless "
        "(or start Docker, or name servers in REPLAY_KAFKA and REPLAY_MONGO)"
    )
    java = shutil.which("java")
    if java is None:
        raise StackError(f"java is not found. {install}")
    shown = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)  # noqa: S603 - which() found it
    version = re.search(r'version "(?:1\.)?(\d+)', shown.stderr)
    if version is None or int(version[1]) < MINIMUM_JAVA:
        raise StackError(f"{java} is version {version[1] if version else 'unknown'}. {install}")
    return java


def _store_command(environ: Mapping[str, str]) -> list[str]:
    """Return the store's command; ``REPLAY_STACK_STORE_COMMAND`` names one with equal flags."""
    command = shlex.split(environ.get("REPLAY_STACK_STORE_COMMAND", "")) or [
        str(Path(sysconfig.get_path("scripts")) / "secantusd-py")
    ]
    if shutil.which(command[0]) is None:
        raise StackError(f"{command[0]} is not found: pip install 'event-replay[demo]'")
    return command


def _cache_folder(environ: Mapping[str, str]) -> Path:
    if named := environ.get("REPLAY_STACK_CACHE"):
        return Path(named).absolute()
    checkout = Path(__file__).parents[2]
    root = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return root / ".stack"


def _kafka_libraries(cache: Path) -> Path:
    """Return the folder of Kafka's jars, filled on first use; safe for processes at once."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]  # another version, another folder
    libraries = cache / "kafka" / f"libs-{digest}"
    libraries.parent.mkdir(parents=True, exist_ok=True)
    with (libraries.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not libraries.exists():
            _download(libraries)
    return libraries


def _download(libraries: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise StackError(
            "mvn is not found. It fetches Kafka on first use: apt-get install maven "
            "(or start Docker, or name servers in REPLAY_KAFKA and REPLAY_MONGO)"
        )
    with tempfile.TemporaryDirectory(dir=libraries.parent) as partial:
        goal = ("dependency:copy-dependencies", f"-DoutputDirectory={partial}/libs")
        copied = subprocess.run(  # noqa: S603 - our own command
            [maven, "-q", "-B", "-f", str(POM), *goal],
            capture_output=True,
            text=True,
            check=False,
        )
        if copied.returncode:
            raise StackError(f"Maven cannot fetch Kafka: {_last_lines(copied.stdout)}")
        # Renamed whole, so that a folder that is there is complete.
        Path(partial, "libs").rename(libraries)


def _last_lines(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-LAST_LOG_LINES:])


def main() -> int:
    """Run a stack until Ctrl-C or SIGTERM; its endpoints go to standard output for a shell."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does
    try:
        with Stack.start() as stack:
            for name, value in stack.environment().items():
                print(f"export {name}={shlex.quote(value)}", flush=True)  # noqa: T201 - the output
            print("Running until Ctrl-C.", file=sys.stderr, flush=True)  # noqa: T201
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except StackError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
