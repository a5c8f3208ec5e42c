"""Whether a shard finds out that Kafka has dropped records of a committed slice."""

from __future__ import annotations

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from support import (
    KAFKA_SECONDS,
    create_topics,
    open_transactions,
    unique_name,
    write_transaction,
)

from replay_app.context import WorkerContext
from replay_app.dropped_slices import LastSlices, find_dropped_records
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.reports import Offsets

RECORD = ("k", b"v")


@pytest.fixture
def topic(context: WorkerContext) -> str:
    name = unique_name("dropped")
    create_topics(context.settings.kafka, {name: 2})
    return name


async def test_records_that_consumers_see_are_found_once_until_an_abort(
    context: WorkerContext, topic: str
) -> None:
    settings = context.settings
    last = await write_transaction(settings, topic, RECORD)
    other = await write_transaction(settings, topic, RECORD, partition=1)
    offsets: Offsets = {topic: {0: (0, last), 1: (0, other)}}
    slices = LastSlices(settings, context.describe)
    await slices.require("r/0", offsets)
    await slices.require("r/1", {})
    dropped = await write_transaction(settings, topic, RECORD, partition=1, commits=False)
    newer: Offsets = {topic: {0: (0, last), 1: (0, dropped)}}
    await slices.require("r/0", newer)  # nothing was aborted, so nobody looks
    slices.aborted()
    with pytest.raises(ReplayFailed, match=rf"partition 1 of '{topic}' \(offset {dropped}\)"):
        await slices.require("r/0", newer)
    with pytest.raises(ReplayFailed):  # and again: a retry does not hide the gap
        await slices.require("r/0", newer)


async def test_records_behind_an_open_transaction_are_looked_at_again(
    context: WorkerContext, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.dropped_slices.LOOK_AGAIN_SECONDS", 0.0)
    settings = context.settings
    slices = LastSlices(settings, context.describe)
    with open_transactions(settings.kafka, {topic: 1}):
        dropped = await write_transaction(settings, topic, RECORD, commits=False)
        await slices.require("r/0", {topic: {0: (0, dropped)}})
        last = await write_transaction(settings, topic, RECORD)
        await slices.require("r/0", {topic: {0: (0, last)}})
    with pytest.raises(ReplayFailed, match=rf"\(offset {dropped}\)"):
        await slices.require("r/0", {topic: {0: (0, last)}})


async def test_deleted_records_are_not_taken_for_dropped(
    context: WorkerContext, topic: str
) -> None:
    settings = context.settings
    dropped = await write_transaction(settings, topic, RECORD, commits=False)
    last = await write_transaction(settings, topic, RECORD)
    admin = AdminClient({"bootstrap.servers": settings.kafka})
    (deletion,) = admin.delete_records([TopicPartition(topic, 0, last + 1)]).values()
    deletion.result(KAFKA_SECONDS)
    for offset in (dropped, last):
        await LastSlices(settings, context.describe).require("r/0", {topic: {0: (0, offset)}})
        assert await find_dropped_records(settings, {topic: {0: offset}}) == {}


async def test_a_topic_that_is_gone_holds_nobody_up(context: WorkerContext) -> None:
    slices = LastSlices(context.settings, context.describe)
    await slices.require("r/0", {unique_name("gone"): {0: (0, 1)}})


async def test_a_broker_that_does_not_answer_is_no_answer(
    context: WorkerContext, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay_app.stable_offsets.ANSWER_SECONDS", 0.0)
    slices = LastSlices(context.settings, context.describe)
    with pytest.raises(Unavailable, match=topic):
        await slices.require("r/0", {topic: {0: (0, 1)}})
