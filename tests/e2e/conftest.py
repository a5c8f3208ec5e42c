"""One shop for all end-to-end tests that do not disturb its worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import chromium, opened, wait_until_live
from playwright.sync_api import Browser, Page
from secret_values import SECRET_WORD
from workers import SHOP_EVENTS, Cluster, Worker

from replay_app.demo.stack import Stack

ROOT = Path(__file__).parents[2]
COVERAGE = {
    "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
    "COVERAGE_FILE": str(
        ROOT / ".coverage"
    ),  # pytest-cov adds the data of the files beside this file
}
"""Environment of the only worker process whose coverage is measured; tests kill the others."""

LEGACY_MAPPING = {
    "REPLAY_FIELD_ID": "uuid",
    "REPLAY_FIELD_TIMESTAMP": "at",
    "REPLAY_TIMESTAMP_TYPE": "iso",
    "REPLAY_FIELD_TYPE": "kind",
    "REPLAY_FIELD_AGGREGATE": "order",
    "REPLAY_FIELD_HEADERS": "headers",
    "REPLAY_EXCLUDE_FIELDS": "_id,uuid,headers",
}
"""The mapping ``legacy`` of the shop's worker, for its collections ``legacy_...``."""


BODIES_MAPPING = {"REPLAY_FIELD_VALUE": "body", "REPLAY_NULL_VALUES": "tombstone"}
"""The mapping ``bodies``: one field of an event is the value."""
TRANSFORMS = {
    "no-tests": "shop_transforms:no_tests",
    "upcast": "shop_transforms:upcast",
    "checked": "shop_transforms:checked",
    "avro": "shop_transforms:avro",
    "as-told": "odd_transforms:as_told",
}
"""The transforms of the shop's worker."""


@pytest.fixture(scope="session")
def shop(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Cluster]:
    """A shop's history and one worker, which the tests of several modules share.

    A test may start replays under new ids, but leaves no replay running. A test may add events
    outside `SHOP_HISTORY` to the store. A test that stops the worker takes `cluster`.
    """
    cluster = Cluster(stack, tmp_path_factory.mktemp("shop"))
    # Small: a test stores an event that is too large.
    cluster.environment["REPLAY_MAX_RECORD_BYTES"] = "100000"
    mappings = cluster.folder / "mappings.json"
    mappings.write_text(json.dumps({"legacy": LEGACY_MAPPING, "bodies": BODIES_MAPPING}))
    cluster.environment |= {
        "REPLAY_SOURCES": f"{cluster.name}.legacy_*",
        "REPLAY_MAPPINGS": str(mappings),
        "REPLAY_REDACT_KEY": SECRET_WORD,
        "REPLAY_TRANSFORMS": json.dumps(TRANSFORMS),
        "PYTHONPATH": f"{ROOT / 'examples'}:{ROOT / 'tests'}",
    }
    cluster.seed(SHOP_EVENTS)
    is_covered = pytestconfig.pluginmanager.hasplugin("_cov")
    worker = cluster.start_worker(None, **(COVERAGE if is_covered else {}))
    worker.wait_until_ready()
    yield cluster
    if is_covered:
        worker.terminate()  # a killed process writes no coverage data
    cluster.close()


@pytest.fixture
def worker(shop: Cluster) -> Worker:
    """The shop's worker."""
    return shop.workers[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser. Not for the whole session: Playwright would hold the event loop of other tests."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, worker: Worker) -> Iterator[Page]:
    """The console of the shop's worker, which must stay without a single error."""
    with opened(browser, worker.url) as page:
        wait_until_live(page)
        yield page
