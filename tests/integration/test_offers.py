"""The plan that is offered before a replay is started: sample records, live topics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pymongo.collection import Collection
from support import create_topics, unique_name

from replay_app.commands import Start
from replay_app.context import WorkerContext
from replay_app.offers import SAMPLES, offer_plan
from replay_app.publisher import Outbox
from replay_app.store import EventStore

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def live() -> str:
    """The original topic of the events. A copy of the topic has the prefix ``copy.``."""
    return unique_name("live")


@pytest.fixture
async def context(
    start_worker: Callable[..., Awaitable[WorkerContext]],
    events: Collection[dict[str, Any]],
    live: str,
) -> WorkerContext:
    events.insert_many(
        {
            "_id": number,
            "event_type": live,
            "aggregate_id": "a",
            "timestamp": T0 + timedelta(seconds=number),
            "text": "x" * 5_000 * (number == 0),
        }
        for number in range(5)
    )
    worker = await start_worker(EventStore, Outbox)
    create_topics(worker.settings.kafka, {live: 2, f"copy.{live}": 1})
    return worker


def start(**fields: Any) -> Start:
    return Start.model_validate({"replay_id": "r", "filter": {"all": True}, **fields})


@pytest.mark.parametrize("prefix", ["", "copy."])
async def test_a_plan_shows_records_and_names_the_live_topics(
    context: WorkerContext, live: str, prefix: str
) -> None:
    offered = await offer_plan(start(target={"prefix": prefix} if prefix else {}), context)
    assert offered.live_topics == (() if prefix else (live,))
    assert len(offered.samples) == SAMPLES
    assert {one.event_id for one in offered.samples} <= {str(number) for number in range(5)}
    for sample in offered.samples:
        assert (sample.error, sample.topic, sample.key) == (None, prefix + live, "a")
        headers = {one.key: one.value for one in sample.headers}
        assert headers["replay-delivery-id"].startswith("r:")
        assert sample.value.startswith('{"event_type":')
        assert len(sample.value) <= 2_000


async def test_an_event_that_would_fail_says_why(
    context: WorkerContext, events: Collection[dict[str, Any]]
) -> None:
    events.update_one({"_id": 1}, {"$set": {"event_type": 7}})
    offered = await offer_plan(start(filter={"event_ids": ["1"]}, on_error="skip"), context)
    (sample,) = offered.samples
    assert sample.event_id == "1"
    assert "event_type" in (sample.error or "")


async def test_nothing_to_show_is_no_sample(context: WorkerContext, live: str) -> None:
    offered = await offer_plan(start(filter={"event_types": ["none"]}), context)
    assert (offered.samples, offered.live_topics) == ((), ())
    assert any(f"the types '{live}'" in warning for warning in offered.warnings)
