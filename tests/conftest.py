"""The servers of the integration tests: one broker and one store for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workers import Cluster
from xdist.workermanage import WorkerController

from replay_app.demo.stack import EmbeddedServers, EnvironmentServers, Stack, StackError

SHARED = pytest.StashKey[Stack]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    """Give every xdist worker the same servers; they belong to the controller, which outlives them.

    Not by environment variables: those would also change what tests of the settings see.
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


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A broker and a store that all tests share: take `unique_name` for whatever is put there.

    A test that ends a server takes `own_stack`.
    """
    workerinput: dict[str, Any] = getattr(request.config, "workerinput", {})
    shared = workerinput.get("stack")
    with EnvironmentServers(shared) if shared else Stack.start() as servers:
        yield servers


@pytest.fixture
def own_stack() -> Iterator[EmbeddedServers]:
    """A broker and a store of this test alone, which it may kill."""
    with EmbeddedServers(durable_store=True) as servers:
        yield servers


@pytest.fixture
def cluster(stack: Stack, tmp_path: Path) -> Iterator[Cluster]:
    """An installation of this test alone: its workers are ended and its events dropped."""
    cluster = Cluster(stack, tmp_path)
    yield cluster
    cluster.close()


def _only_unit_tests(config: pytest.Config) -> bool:
    return all("unit" in argument.split("::")[0].split("/") for argument in config.args)
