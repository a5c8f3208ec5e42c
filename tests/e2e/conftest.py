"""One shop for all end-to-end tests that do not disturb its worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from workers import SHOP_EVENTS, Cluster, Worker

from replay_app.demo.stack import Stack


@pytest.fixture(scope="session")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A shop's history and one worker, which the tests of several modules share.

    A test may start replays under new ids, must leave none of them unfinished, and may add events
    outside `SHOP_HISTORY` to the store. A test that stops the worker takes `cluster`.
    """
    cluster = Cluster(stack, tmp_path_factory.mktemp("shop"))
    # Small, so that a test can store an event that is too large.
    cluster.environment["REPLAY_MAX_RECORD_BYTES"] = "100000"
    cluster.seed(SHOP_EVENTS)
    cluster.start_worker().wait_until_ready()
    yield cluster
    cluster.close()


@pytest.fixture
def worker(shop: Cluster) -> Worker:
    """The shop's worker."""
    return shop.workers[0]
