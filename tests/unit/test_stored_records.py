"""How the records that a replay must have published are made again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from replay_app.commands import Start
from replay_app.destinations import Destination
from replay_app.reports import Plan, ShardPlan
from replay_app.sessions import Session
from replay_app.settings import Settings
from replay_app.store import EventStore
from replay_app.stored_records import StoredRecords

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("encoder", ["python", pytest.param("auto", marks=pytest.mark.native)])
def test_a_topic_that_takes_smaller_batches_can_be_verified(encoder: str) -> None:
    settings = Settings.model_validate({"encoder": encoder})
    shard = ShardPlan(match={}, sort=("timestamp", "_id"))
    session = Session(
        replay_id="r",
        start=Start(replay_id="r"),
        created_at=NOW,
        updated_at=NOW,
        progressed_at=NOW,
        heard_at=NOW,
        plan=Plan(end=NOW, matched=1, partitions={"orders": 1}, shards=(shard,)),
    )
    topics = {"orders": Destination(1, config={"max.message.bytes": "2000"})}
    store = EventStore(settings)
    assert StoredRecords(settings, store, session, topics, [("orders", 0)]).open == {0}
    store.close()
