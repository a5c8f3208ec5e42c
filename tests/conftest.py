"""The servers of the integration tests: one broker and one store for the whole session."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tomllib
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from _pytest.capture import CaptureResult
from secret_values import MARK, assert_no_secret
from workers import Cluster
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from replay_app.demo.stack import EmbeddedServers, EnvironmentServers, Stack, StackError

ROOT = Path(__file__).parents[1]
SHARED = pytest.StashKey[Stack]()


# The time of one example, and of making it, depends on the machine more than on the code.
hypothesis.settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no-deadline")


# The brokers of the tests live for minutes: the second compiler costs more than it saves.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.fixture(scope="session", autouse=True)
def _no_secret_in_any_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Search the logs of all worker processes of this run for secrets of the tests, at the end."""
    yield
    for log in tmp_path_factory.getbasetemp().rglob("*.log"):
        if log.is_file():
            assert_no_secret(log.read_text(errors="replace"), str(log))


@pytest.fixture
def capsys(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """Search what a test takes of its output. `pytest_runtest_makereport` searches the rest."""
    taken = capsys.readouterr

    def readouterr() -> CaptureResult[str]:
        output = taken()
        assert_no_secret(output.out + output.err, "the output")
        return output

    capsys.readouterr = readouterr  # type: ignore[method-assign]
    return capsys


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail each test whose captured output or log shows a secret; show why a test failed.

    The logs of the workers of a failed test become a part of the report: where the tests run by
    themselves, nobody can look at the files.
    """
    report = yield
    if report.passed and any(MARK in text for _, text in report.sections):
        report.outcome = "failed"
        report.longrepr = "the captured output shows a secret of the tests (secret_values.py)"
    if report.failed and report.when == "call":
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Cluster):
                report.sections.append(("logs of the workers", value.logs()))
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test of the native encoder only on a machine that cannot build the encoder."""
    if item.get_closest_marker("native") is None:
        return
    if importlib.util.find_spec("replay_native") is None:
        if rust_answers():
            pytest.fail("the native encoder is not installed: run `make native`")
        pytest.skip("the native encoder is not installed, and there is no Rust to build it")


def rust_answers() -> bool:
    """Return whether Rust is installed and new enough, by the same rule as in the Makefile."""
    try:
        answer = subprocess.run(["cargo", "--version"], capture_output=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return False
    manifest = tomllib.loads((ROOT / "native" / "Cargo.toml").read_text())
    needed, found = manifest["package"]["rust-version"], answer.stdout.split()[1].decode()
    return [int(part) for part in found.split(".")[:2]] >= [int(part) for part in needed.split(".")]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Give every xdist worker the same servers; the controller starts and ends the servers.

    Environment variables would not do: they would also change the settings in unit tests.
    """
    config = node.config
    if config.option.collectonly or _only_unit_tests(config):
        return
    if SHARED not in config.stash:
        try:
            config.stash[SHARED] = Stack.start()
        except StackError as error:
            pytest.exit(f"the tests' servers do not start: {error}", returncode=3)
        config.add_cleanup(config.stash[SHARED].close)
    node.workerinput["stack"] = config.stash[SHARED].environment()


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # it ships no types
    """Keeps tests in one process that share a worker or a broker, as each process starts its own.

    Such groups go first. Every other test runs where a process is free, in the order of the
    folders: the last tests are short, and keep all processes busy until the end.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0]) or nodeid


@cache
def _group(module: str) -> str | None:
    # The process that hands out the tests knows their names only.
    text = (ROOT / module).read_text()
    if re.search(r"\bshop: Cluster\b", text):
        return "shop"
    return module if 'scope="module"' in text else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Use our own scheduler. (``--dist loadgroup`` groups nothing under pytest 9.2.)"""
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A broker and a store that all tests share: use `unique_name` for topics and databases.

    A test that ends a server takes `own_stack`.
    """
    workerinput: dict[str, Any] = getattr(request.config, "workerinput", {})
    shared = workerinput.get("stack")
    with EnvironmentServers(shared) if shared else Stack.start() as servers:
        yield servers


@pytest.fixture
def own_stack() -> Iterator[EmbeddedServers]:
    """A broker and a store that only this test uses and may kill."""
    with EmbeddedServers(durable_store=True) as servers:
        yield servers


@pytest.fixture
def cluster(stack: Stack, tmp_path: Path) -> Iterator[Cluster]:
    """An installation that only this test uses; the workers and the events go after the test."""
    cluster = Cluster(stack, tmp_path)
    yield cluster
    cluster.close()


def _only_unit_tests(config: pytest.Config) -> bool:
    return all("unit" in argument.split("::")[0].split("/") for argument in config.args)
