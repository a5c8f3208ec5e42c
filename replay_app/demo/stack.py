"""The development stack: a Kafka broker and an event store, for demo, tests and benchmarks.

::

    with Stack.start() as stack:
        print(stack.kafka, stack.mongo)

The servers come from the first of these providers that applies:

- `EnvironmentServers`: ``REPLAY_KAFKA`` and ``REPLAY_MONGO`` name servers that run already.
- `ContainerServers`: a Docker engine answers.
- `EmbeddedServers`: Apache Kafka on Java, with jars from Maven, and SecantusDB, a Python package
  that speaks MongoDB's wire protocol. A test can kill these servers and start them again. The
  Kafka may be a cluster of several brokers.

``python -m replay_app.demo.stack`` starts a stack, prints its addresses, and runs until Ctrl-C.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
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
SERVER_START_SECONDS = 120.0  # an idle machine with two cores takes about 5
SERVER_STOP_SECONDS = 30.0
PROBE_SECONDS = 10.0  # aiokafka's client may hang while it closes, if the broker is just starting
DOCKER_ANSWER_SECONDS = 10.0
LAST_LOG_LINES = 20
MINIMUM_JAVA = 17  # the minimum of Kafka 4
PORTS = range(20_000, 32_000)
"""The ports of servers; `free_port` says why these."""
_given_ports: set[int] = set()

# One small broker that answers at once. transaction.abort.timed.out.transaction.cleanup.interval.ms
# keeps its default: with 1 s, a transaction that expired while a lone broker started was committed.
BROKER_SETTINGS = {
    "process.roles": "broker,controller",
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
    "log.retention.ms": "-1",  # replayed records may have the old timestamps of their events
    "log.cleaner.dedupe.buffer.size": "16777216",
}
REPLICAS = 3
"""Replication factor of every topic in an embedded cluster."""
# What a cluster adds: each record is on two brokers at least before it is acked, so the loss of any
# one broker loses nothing. Every node is a controller too: two of three nodes are a quorum.
CLUSTER_SETTINGS = {
    "default.replication.factor": str(REPLICAS),
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": str(REPLICAS),
    "transaction.state.log.replication.factor": str(REPLICAS),
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": str(REPLICAS),
    "share.coordinator.state.topic.min.isr": "2",
    # Other brokers take over from a dead broker after this time; the default is 9 s.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
}
BROKER_HEAP = "512m"
CLUSTER_HEAP = "384m"  # of each broker: three of them stand beside other tests

# Kills the servers and removes the folder of a stack whose process has ended. However the process
# ends, the system closes the pipe to the reaper then. Each line on the pipe has the process ids of
# all servers that run now. A dying server may still write into the folder: hence the retries.
REAPER = """
trap '' INT TERM HUP
while read -r pids; do live=$pids; done
for pid in $live; do kill -s KILL -- "-$pid"; done
for try in 1 2 3 4 5 6 7 8 9; do rm -rf -- "$1" && break; sleep 0.2; done
"""


def outside_environment() -> dict[str, str]:
    """Return the environment of this process without the program's settings (``REPLAY_*``)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("REPLAY_")}


class Reaper:
    """Cleans up after this process: kills process groups, and removes a folder (see `REAPER`)."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - a constant
            ["/bin/sh", "-c", REAPER, "reaper", str(folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def tell(self, running: Iterable[subprocess.Popen[Any]]) -> None:
        """Say which processes run now."""
        if self._process.stdin is None:
            raise AssertionError  # `__init__` opened the reaper with a pipe
        self._process.stdin.write(" ".join(str(one.pid) for one in running) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Let the reaper kill what still runs, and remove the folder. Again: no effect."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait(SERVER_STOP_SECONDS)


class StackError(ReplayError):
    """A server of the development stack cannot run; the message says what to do."""


class Stack(ABC):
    """Two running servers. As a context manager it ends them with the block."""

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
            When a prerequisite is missing, or a server does not start. The message has the server's
            last log lines.

        """
        return select_provider()()

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point a child process at these servers."""
        return {"REPLAY_KAFKA": self.kafka, "REPLAY_MONGO": self.mongo}

    @abstractmethod
    def close(self) -> None:
        """End the servers and remove their data. A second call has no effect."""

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
    """Servers that run already, named by ``REPLAY_KAFKA`` and ``REPLAY_MONGO``."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.kafka = environ["REPLAY_KAFKA"]
        self.mongo = environ["REPLAY_MONGO"]
        _wait_until_ready(self.kafka, kafka_answers)
        _wait_until_ready(self.mongo, mongo_answers)

    def close(self) -> None:
        """Do nothing: the servers run on."""


class ContainerServers(Stack):
    """Apache Kafka and MongoDB in Docker; testcontainers removes them even after a SIGKILL."""

    def __init__(self) -> None:
        # Imported here, because only this provider needs the package of the extra ``demo``.
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415

        self._containers: list[DockerContainer] = []
        try:
            broker = DockerContainer(KAFKA_IMAGE)
            host = broker.get_docker_client().host()
            # The broker advertises its port to clients, so the port must be known before the start.
            port = free_port()
            self.kafka = f"{host}:{port}"
            settings = BROKER_SETTINGS | _listeners(1, host, port, "0.0.0.0", [free_port()])  # noqa: S104 - inside the container
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

    Their data is in a new folder below the system's temporary folder. The servers end and the
    folder is removed when the stack is closed, and when this process ends, even by SIGKILL.

    With ``durable_store`` every acknowledged write survives `kill_store`, but inserts take twice as
    long. Without ``durable_store``, `kill_store` may lose the writes of the last two seconds.

    With ``brokers`` above 1, Kafka is a cluster of this number of brokers, numbered from 1. Use 3
    or more: every topic has 3 replicas, and writes need two of them.

    With ``proxy_port`` a single broker also listens on `behind_proxy`. To clients of this address
    it advertises ``proxy_port`` on this machine. There the caller runs a proxy to `behind_proxy`.

    ``broker_settings`` are more settings of each broker.
    """

    behind_proxy: str = ""
    """Host and port to which the caller's proxy connects. Empty without ``proxy_port``."""

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        durable_store: bool = False,
        brokers: int = 1,
        proxy_port: int | None = None,
        broker_settings: Mapping[str, str] | None = None,
    ) -> None:
        java = _java()
        store_command = _store_command(environ)
        libraries = _kafka_libraries(_cache_folder(environ))
        self.folder = Path(tempfile.mkdtemp(prefix="replay-stack-"))
        self._reaper = Reaper(self.folder)
        self._lock = threading.Lock()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self.brokers = range(1, brokers + 1)
        """The numbers of the brokers, which are their node ids."""
        ports = {number: free_port() for number in self.brokers}
        self._addresses = {number: f"127.0.0.1:{port}" for number, port in ports.items()}
        self.kafka = ",".join(self._addresses.values())
        store_port = free_port()
        self.mongo = f"mongodb://127.0.0.1:{store_port}"
        heap = BROKER_HEAP if brokers == 1 else CLUSTER_HEAP
        self._jvm = (
            *(java, f"-Xmx{heap}", "-XX:+UseSerialGC", "-Dlog4j2.level=INFO"),
            *("-cp", str(libraries / "*")),
        )
        controllers = [free_port() for _ in self.brokers]
        for number, port in ports.items():
            settings = BROKER_SETTINGS | (CLUSTER_SETTINGS if brokers > 1 else {})
            settings |= _listeners(number, "127.0.0.1", port, "127.0.0.1", controllers)
            if proxy_port is not None and number == 1:
                self.behind_proxy = f"127.0.0.1:{free_port()}"
                settings["listeners"] += f",PROXIED://{self.behind_proxy}"
                settings["advertised.listeners"] += f",PROXIED://127.0.0.1:{proxy_port}"
            settings["log.dirs"] = str(self.folder / f"broker-{number}")
            settings |= broker_settings or {}
            self._configuration(number).write_text(
                "".join(f"{name}={value}\n" for name, value in settings.items())
            )
        self._store_command = (
            *(*store_command, "--host", "127.0.0.1", "--port", str(store_port)),
            *("--storage-path", str(self.folder / "store"), "--cache-size", "1G"),
            *(("--sync-on-commit",) if durable_store else ()),
        )
        try:
            self._launch("store", self._store_command)
            self._format()
            for number in self.brokers:
                self._launch_broker(number)
            for number in self.brokers:
                self._await_broker(number)
            self._await("store", self.mongo, mongo_answers)
        except BaseException:
            self.close()
            raise

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point a child process at these servers."""
        replicas = {"REPLAY_REPLICATION": str(REPLICAS)} if len(self.brokers) > 1 else {}
        return super().environment() | replicas

    @property
    def broker_pid(self) -> int:
        """The first broker's process id. Raises `StackError` while this broker does not run."""
        return self._running(self._broker(1)).pid

    @property
    def store_pid(self) -> int:
        """The store's process id. Raises `StackError` while the store does not run."""
        return self._running("store").pid

    def broker_runs(self, number: int) -> bool:
        """Return whether a broker was started, and not killed or stopped since."""
        return self._broker(number) in self._servers

    def start_broker(self, number: int = 1) -> None:
        """Start a broker and wait until it serves. It keeps its port and data over restarts."""
        self._launch_broker(number)
        self._await_broker(number)

    def stop_broker(self, number: int = 1) -> None:
        """Let a broker shut down in order (SIGTERM)."""
        self._end(self._broker(number), signal.SIGTERM)

    def kill_broker(self, number: int = 1) -> None:
        """Kill a broker (SIGKILL)."""
        self._end(self._broker(number), signal.SIGKILL)

    def run_tool(self, main_class: str, *arguments: str) -> str:
        """Run one of Kafka's command-line tools, and return what it prints."""
        ran = subprocess.run(  # noqa: S603 - our own command
            [*self._jvm, main_class, *arguments],
            capture_output=True,
            text=True,
            timeout=SERVER_START_SECONDS,
            check=False,
        )
        if ran.returncode:
            raise StackError(f"{main_class} failed: {_last_lines(ran.stderr or ran.stdout)}")
        return ran.stdout

    def start_store(self) -> None:
        """Start the store and wait until it answers. It keeps its port and data over restarts."""
        self._launch("store", self._store_command)
        self._await("store", self.mongo, mongo_answers)

    def kill_store(self) -> None:
        """Kill the store (SIGKILL). Only a durable store keeps its last writes."""
        self._end("store", signal.SIGKILL)

    def close(self) -> None:
        """End the servers and remove their data. A second call has no effect."""
        for name in list(self._servers):
            self._end(name, signal.SIGKILL)
        self._reaper.close()

    def _format(self) -> None:
        """Prepare the folders of all brokers, side by side: each takes a JVM's start."""
        cluster_id = str(uuid.uuid4())

        def run(number: int) -> subprocess.CompletedProcess[str]:
            return subprocess.run(  # noqa: S603 - our own command
                [
                    *(*self._jvm, "kafka.tools.StorageTool", "format"),
                    *("-t", cluster_id, "-c", str(self._configuration(number))),
                ],
                capture_output=True,
                text=True,
                cwd=self.folder,
                check=False,
            )

        with ThreadPoolExecutor(len(self.brokers)) as threads:
            for formatted in threads.map(run, self.brokers):
                if formatted.returncode:
                    raise StackError(
                        f"Kafka's storage cannot be formatted: {_last_lines(formatted.stdout)}"
                    )

    def _configuration(self, number: int) -> Path:
        return self.folder / f"broker-{number}.properties"

    def _broker(self, number: int) -> str:
        """Return the name of a broker's process."""
        if number not in self.brokers:
            raise StackError(f"there is no broker {number}: the stack has {len(self.brokers)}")
        return "broker" if len(self.brokers) == 1 else f"broker {number}"

    def _launch_broker(self, number: int) -> None:
        command = (*self._jvm, "kafka.Kafka", str(self._configuration(number)))
        self._launch(self._broker(number), command)

    def _await_broker(self, number: int) -> None:
        address = self._addresses[number]
        self._await(self._broker(number), address, lambda one: kafka_answers(one, number))

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
                    cwd=self.folder,  # this folder has no configuration file of another project
                    start_new_session=True,  # only this process gets Ctrl-C; it ends the servers
                )
            self._reaper.tell(self._servers.values())

    def _end(self, name: str, sent: signal.Signals) -> None:
        server = self._running(name)
        # If the server has ended, its process id may belong to another process by now.
        if server.poll() is None:
            os.killpg(server.pid, sent)
        try:
            server.wait(SERVER_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        with self._lock:
            del self._servers[name]
            self._reaper.tell(self._servers.values())

    def _running(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self._servers:
            starter, _, number = name.partition(" ")
            raise StackError(f"the {name} does not run: start_{starter}({number}) starts it")
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
        return self.folder / f"{name.replace(' ', '-')}.log"

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
        When only one of ``REPLAY_KAFKA`` and ``REPLAY_MONGO`` is set: broker and store must
        belong together.

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
    """Return whether a Docker engine answers and the package testcontainers is installed."""
    docker = shutil.which("docker")
    if docker is None or find_spec("testcontainers") is None:
        return False
    try:
        answer = subprocess.run(  # noqa: S603 - which() found it
            [docker, "version"], capture_output=True, timeout=DOCKER_ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0


def kafka_answers(bootstrap: str, node: int | None = None) -> bool:
    """Return whether a broker answers a request for its cluster, and knows the ``node`` there."""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        # A plain connection first: aiokafka logs an error for each refused connection.
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            break
    else:
        return False
    # In another thread, because the caller may run an event loop.
    with ThreadPoolExecutor(1) as thread, contextlib.suppress(TimeoutError):
        asking = asyncio.wait_for(_brokers(bootstrap), PROBE_SECONDS)
        found = thread.submit(asyncio.run, asking).result()
        return node in found if node is not None else bool(found)
    return False


def mongo_answers(uri: str) -> bool:
    """Return whether a store answers a ping."""
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
    """Return a port on which no process listens, and that this process has not been given before.

    The port lies below the range from which the system takes the ports of outgoing connections. In
    that range, a client that keeps connecting to a killed server would at last get the server's
    port for its own end. It would be connected to itself, and the server could not start again.
    """
    while True:
        port = random.SystemRandom().choice(PORTS)
        if port in _given_ports:  # its server may not listen yet
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given_ports.add(port)
            return port


async def _brokers(bootstrap: str) -> set[int]:
    """Return the node ids of a cluster's brokers. The set is empty if no broker answers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await admin.start()
        return {broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]}
    except aiokafka.errors.KafkaError:
        return set()
    finally:
        await admin.close()


def _wait_until_ready(
    address: str, answers: Callable[[str], bool], check_alive: Callable[[], None] = lambda: None
) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while True:
        check_alive()
        if answers(address):
            return
        if time.monotonic() > deadline:
            shown = re.sub(r"//.*@", "//", address)  # no password in a message
            raise StackError(f"no answer from {shown} in {SERVER_START_SECONDS:.0f} s")
        time.sleep(0.05)


def _listeners(
    node: int, host: str, port: int, bind: str, controllers: Sequence[int]
) -> dict[str, str]:
    """Return the listeners of a node. ``controllers`` has the controller port of each node."""
    voters = [f"{number}@127.0.0.1:{own}" for number, own in enumerate(controllers, start=1)]
    return {
        "node.id": str(node),
        "listeners": f"PLAINTEXT://{bind}:{port},CONTROLLER://127.0.0.1:{controllers[node - 1]}",
        "advertised.listeners": f"PLAINTEXT://{host}:{port}",
        "controller.quorum.voters": ",".join(voters),
    }


def _java() -> str:
    """Return the path of the ``java`` that runs the broker."""
    install = (
        f"Kafka needs Java {MINIMUM_JAVA} or later: apt-get install openjdk-17-jre-headless "
        "(or start Docker, or name servers in REPLAY_KAFKA and REPLAY_MONGO)"
    )
    java = shutil.which("java")
    if java is None:
        raise StackError(f"java is not found. {install}")
    reply = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)  # noqa: S603 - which() found it
    version = re.search(r'version "(?:1\.)?(\d+)', reply.stderr)
    if version is None or int(version[1]) < MINIMUM_JAVA:
        raise StackError(f"{java} is version {version[1] if version else 'unknown'}. {install}")
    return java


def _store_command(environ: Mapping[str, str]) -> list[str]:
    """Return the store's command, or the command in ``REPLAY_STACK_STORE_COMMAND``."""
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
    """Return the folder of Kafka's jars. The first of several processes fills the folder."""
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]  # each version has its folder
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
        # Renamed at the end: a folder of this name is complete.
        Path(partial, "libs").rename(libraries)


def _last_lines(log: str) -> str:
    return "\n".join(log.strip().splitlines()[-LAST_LOG_LINES:])


def main() -> int:
    """Run a stack until Ctrl-C or SIGTERM. Print its addresses as commands for a shell."""
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
