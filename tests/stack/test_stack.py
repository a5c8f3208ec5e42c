"""The development stack: where its servers come from, and that no process or file stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pymongo
import pytest
from confluent_kafka import Producer
from support import create_topics, read_topic, unique_name, wait_until

from replay_app.demo.stack import (
    PORTS,
    ContainerServers,
    EmbeddedServers,
    EnvironmentServers,
    Stack,
    StackError,
    docker_answers,
    free_port,
    select_provider,
)

GONE_SECONDS = 10.0
SERVERS = {"REPLAY_KAFKA": "k:9092", "REPLAY_MONGO": "mongodb://m"}


@pytest.mark.parametrize(
    ("environ", "docker", "provider"),
    [
        (SERVERS, False, EnvironmentServers),
        (SERVERS, True, EnvironmentServers),
        ({}, True, ContainerServers),
        ({}, False, EmbeddedServers),
        ({"REPLAY_KAFKA": "", "REPLAY_MONGO": ""}, False, EmbeddedServers),
    ],
)
def test_the_first_provider_that_applies_is_chosen(
    environ: dict[str, str],
    docker: bool,
    provider: type[Stack],
) -> None:
    assert select_provider(environ, lambda: docker) is provider


@pytest.mark.parametrize("name", SERVERS)
def test_half_a_stack_in_the_environment_is_refused(name: str) -> None:
    with pytest.raises(StackError, match=f"only {name} is set"):
        select_provider({name: SERVERS[name]}, lambda: True)


def test_a_missing_java_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"java is not found.*apt-get install openjdk-17"):
        EmbeddedServers({})


@pytest.mark.parametrize("shown", ["1.8.0_392", "11.0.2"])
def test_an_old_java_is_named_with_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: str
) -> None:
    _command(tmp_path / "java", f"""echo 'openjdk version "{shown}"' >&2""")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"is version (8|11)\. Kafka needs Java 17"):
        EmbeddedServers({})


def test_a_missing_store_is_named_with_its_package() -> None:
    with pytest.raises(StackError, match=r"no-such-store is not found: pip install"):
        EmbeddedServers({"REPLAY_STACK_STORE_COMMAND": "/no-such-store"})


def test_a_missing_maven_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _command(tmp_path / "java", """echo 'openjdk version "17.0.1"' >&2""")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match=r"mvn is not found.*apt-get install maven"):
        EmbeddedServers({"REPLAY_STACK_CACHE": str(tmp_path)})


def test_a_failed_download_leaves_no_half_a_broker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _command(tmp_path / "java", """echo 'openjdk version "17.0.1"' >&2""")
    _command(tmp_path / "mvn", "echo no network; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="Maven cannot fetch Kafka: no network"):
        EmbeddedServers({"REPLAY_STACK_CACHE": str(tmp_path)})
    assert [left.name for left in (tmp_path / "kafka").iterdir()] == ["lock"]


def test_a_store_that_dies_at_its_start_shows_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = tmp_path / "store"
    _command(store, "echo the disk is full; exit 7")
    with pytest.raises(StackError, match=r"(?s)the store ended with code 7.*the disk is full"):
        EmbeddedServers({**os.environ, "REPLAY_STACK_STORE_COMMAND": str(store)})
    assert list(tmp_path.iterdir()) == [store]


def test_a_port_is_never_one_that_an_outgoing_connection_may_take() -> None:
    port = free_port()
    assert port in PORTS
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))


def test_killed_servers_come_back_with_their_data_and_leave_nothing_at_the_end(
    own_stack: EmbeddedServers,
) -> None:
    topic = unique_name("kept")
    create_topics(own_stack.kafka, {topic: 1})
    producer = Producer({"bootstrap.servers": own_stack.kafka})
    producer.produce(topic, b"a value", b"a key", headers={"a-header": b"1"})
    assert producer.flush(30) == 0
    producer.close()
    with pymongo.MongoClient[dict[str, int]](own_stack.mongo) as client:
        client["kept"]["events"].insert_one({"_id": 1})

    first_broker, first_store = own_stack.broker_pid, own_stack.store_pid
    own_stack.kill_broker()
    own_stack.kill_store()
    with pytest.raises(StackError, match="the broker does not run"):
        _ = own_stack.broker_pid
    own_stack.start_store()
    own_stack.start_broker()
    with pytest.raises(StackError, match="the broker runs already"):
        own_stack.start_broker()

    (record,) = read_topic(own_stack.kafka, topic)
    assert (record.key, record.value, record.headers) == (b"a key", b"a value", {"a-header": b"1"})
    with pymongo.MongoClient[dict[str, int]](own_stack.mongo) as client:
        assert client["kept"]["events"].count_documents({}) == 1

    servers = [first_broker, first_store, own_stack.broker_pid, own_stack.store_pid]
    own_stack.close()
    assert not own_stack.folder.exists()
    assert not [pid for pid in servers if _runs(pid)]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_leaves_no_process_and_no_folder(
    sent: signal.Signals, tmp_path: Path
) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in SERVERS}
    with subprocess.Popen(
        [sys.executable, "-m", "replay_app.demo.stack"],
        env={**environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as command:
        assert command.stdout is not None
        lines = [command.stdout.readline() for _ in SERVERS]
        assert [line.partition("=")[0] for line in lines] == [f"export {name}" for name in SERVERS]
        started = _processes_in(tmp_path)
        command.send_signal(sent)
        code = command.wait(GONE_SECONDS)
    assert code == (-signal.SIGKILL if sent == signal.SIGKILL else 0)
    if not docker_answers():
        assert len(started) >= 2, "a broker and a store"
    wait_until(lambda: not _processes_in(tmp_path), GONE_SECONDS, f"left running: {started}")
    wait_until(lambda: not list(tmp_path.iterdir()), GONE_SECONDS, "a folder was left")


@pytest.mark.skipif(not docker_answers(), reason="no Docker engine answers")
def test_containers_serve_and_are_removed() -> None:
    with ContainerServers() as servers:
        create_topics(servers.kafka, {"a-topic": 1})
        assert read_topic(servers.kafka, "a-topic") == []


def _command(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _processes_in(folder: Path) -> list[int]:
    """Return the ids of the processes that have the folder among their arguments."""
    found = []
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in arguments.read_bytes():
                found.append(int(arguments.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
