"""Looks at a real store before a replay: later events, text times, mapping, empty filters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import Int64
from pymongo.collection import Collection

from replay_app import store_checks
from replay_app.commands import Filter, Start, Target
from replay_app.destinations import Destination
from replay_app.exceptions import ReplayFailed
from replay_app.plans import Planner
from replay_app.reports import Plan
from replay_app.settings import Settings
from replay_app.store import EventStore

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)


async def any_topic(names: Iterable[str]) -> dict[str, Destination]:
    return dict.fromkeys(names, Destination(1))


def event(number: int, **fields: Any) -> Document:
    return {
        "_id": number,
        "timestamp": T0 + timedelta(seconds=number),
        "event_type": "orders",
        "aggregate_id": f"o-{number % 3}",
    } | fields


async def plan_of(store: EventStore, settings: Settings, **fields: Any) -> Plan:
    return await Planner(Start(replay_id="r1", **fields), settings, store, any_topic).plan()


def about(plan: Plan, words: str) -> list[str]:
    """Return the warnings of a plan with these words."""
    return [warning for warning in plan.warnings if words in warning]


# Events at or past the bound


@pytest.mark.parametrize("wanted", [{}, {"start": T0}], ids=["everything", "with a start"])
@pytest.mark.parametrize(
    ("kind", "past", "later", "shown"),
    [
        ("date", T0, datetime.now(UTC) + timedelta(hours=1), '{"$date": "20'),
        ("iso", "2026-01-01T00:00:00Z", "2999-01-01T00:00:00Z", '"2999-01-01T00:00:00Z"'),
        ("iso", "2026-01-01T00:00:00Z", "yesterday", '"yesterday"'),
        # Microseconds, in a field of milliseconds.
        ("epoch_ms", 1767225600000, Int64(1767225600000000), "1767225600000000"),
    ],
)
async def test_events_past_a_bound_that_nobody_asked_for_are_counted_and_named(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    kind: str,
    past: Any,
    later: Any,
    shown: str,
    wanted: dict[str, Any],
) -> None:
    settings = settings.model_copy(update={"timestamp_type": kind})
    events.insert_one(event(1, timestamp=past))
    assert not about(await plan_of(store, settings, filter=Filter(**wanted)), "left out")
    events.insert_many([event(2, timestamp=later), event(3, timestamp=later)])
    plan = await plan_of(store, settings, filter=Filter(**wanted))
    assert plan.matched == 1
    (warning,) = about(plan, "at or past the bound")
    assert warning.startswith("2 matching events are left out: ")
    assert f"such as event '2' with timestamp = {shown}" in warning
    assert "give an end after them" in warning


async def test_microseconds_taken_for_milliseconds_are_not_just_zero_matches(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    settings = settings.model_copy(update={"timestamp_type": "epoch_ms"})
    events.insert_many([event(n, timestamp=1767225600000000 + n) for n in range(4)])
    plan = await plan_of(store, settings, filter=Filter(event_types=("orders",)))
    assert plan.matched == 0
    assert about(plan, "4 matching events are left out")


async def test_events_past_a_bound_that_was_asked_for_need_no_warning(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(1), event(2, timestamp=datetime.now(UTC) + timedelta(hours=1))])
    plan = await plan_of(store, settings, filter=Filter(end=T0 + timedelta(hours=1)))
    assert (plan.matched, about(plan, "left out")) == (1, [])


async def test_events_that_are_stored_while_the_plan_is_made_need_no_warning(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.insert_many([event(1), event(2, timestamp=datetime.now(UTC))])
    checks = store_checks.StoreChecks(Start(replay_id="r1"), settings.mapping, store, {})
    assert await checks.later_events(T0) == []  # the bound was frozen long ago


# Times as text


@pytest.mark.parametrize(
    ("times", "fault"),
    [
        (["2026-01-31 10:00:00", "2026-01-31T11:00:00"], "'2026-01-31 10:00:00' has not the form"),
        (["2026-01-31T10:00:00Z", "2026-01-31T10:00:00.500Z"], "fractions of different lengths"),
        (["2026-01-31T10:00:00+02:00"], "'2026-01-31T10:00:00+02:00' has not the form"),
    ],
)
async def test_text_times_that_do_not_sort_by_time_are_refused_with_an_example(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    times: list[str],
    fault: str,
) -> None:
    settings = settings.model_copy(update={"timestamp_type": "iso"})
    events.insert_many([event(n, timestamp=time) for n, time in enumerate(times)])
    events.insert_one(event(100, timestamp="2026-01-01 00:00:00", event_type="others"))
    with pytest.raises(ReplayFailed, match=re.escape(fault)) as refused:
        await plan_of(store, settings, filter=Filter(event_types=("orders",)))
    assert "REPLAY_TIMESTAMP_TYPE=iso" in str(refused.value)


async def test_an_odd_text_time_is_found_at_the_edges_of_many(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store_checks, "SAMPLE_EVENTS", 1)
    settings = settings.model_copy(update={"timestamp_type": "iso"})
    times = [f"2026-01-{day:02}T00:00:00Z" for day in range(1, 30)]
    for odd in ("2025-12-31 10:00:00", "2026-01-30 10:00:00"):
        events.delete_many({})
        events.insert_many([event(n, timestamp=t) for n, t in enumerate([*times, odd])])
        with pytest.raises(ReplayFailed, match=f"'{odd}' has not the form"):
            await plan_of(store, settings)


async def test_text_times_in_one_form_are_read_in_order_up_to_a_whole_second(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    settings = settings.model_copy(update={"timestamp_type": "iso"})
    events.insert_many([event(n, timestamp=f"2026-01-31T10:00:{n:02}Z") for n in range(5)])
    plan = await plan_of(store, settings)
    assert (plan.matched, plan.end.microsecond) == (5, 0)
    bound = datetime(2026, 1, 31, 10, 0, 3, 500_000, tzinfo=UTC)
    with pytest.raises(ReplayFailed, match="has more digits than the stored times"):
        await plan_of(store, settings, filter=Filter(end=bound))


# A filter or a mapping that fits nothing


@pytest.mark.parametrize(
    "wanted",
    [
        {"event_types": ("OrderPlacd",)},
        {"aggregate_ids": ("o-77",)},
        {"event_ids": ("none",)},
        {"fields": {"user": "u-1"}},
        {"start": T0 + timedelta(days=1)},
        {"end": T0},
    ],
)
async def test_a_filter_that_fits_nothing_is_told_what_is_there(
    store: EventStore, settings: Settings, events: Collection[Document], wanted: dict[str, Any]
) -> None:
    events.insert_many(
        [event(n, event_type=("OrderPlaced", "OrderPaid")[n % 2], note="x" * 900) for n in (1, 2)]
    )
    plan = await plan_of(store, settings, filter=Filter(**wanted))
    assert plan.matched == 0
    (warning,) = about(plan, "the filter fits no event")
    assert "'OrderPlaced'" in warning
    assert "'OrderPaid'" in warning
    assert "aggregate ids such as 'o-" in warning
    assert "times from 2026-01-01T00:00:01Z to 2026-01-01T00:00:02Z" in warning
    assert 'An example: {"_id": ' in warning
    assert warning.endswith("xxx...")
    assert len(warning) < 1000


async def test_a_collection_without_events_says_so(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    events.database.create_collection("events")
    plan = await plan_of(store, settings)
    assert plan.matched == 0
    assert about(plan, "no event was found in ")


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({"field_timestamp": "time"}, r"a time of the type date in field 'time' \(REPLAY_FIELD_TI"),
        ({"timestamp_type": "iso"}, "a time of the type iso in field 'timestamp'"),
        ({"timestamp_type": "epoch_ms"}, "a time of the type epoch_ms in field 'timestamp'"),
        ({"field_type": "kind"}, r"a type in field 'kind' \(REPLAY_FIELD_TYPE\)"),
        ({"field_id": "uuid"}, r"an id in field 'uuid' \(REPLAY_FIELD_ID\)"),
        ({"field_aggregate": "order"}, r"an aggregate id in field 'order' \(REPLAY_FIELD_AGGR"),
        ({"field_topic": "to"}, r"a topic in field 'to' \(REPLAY_FIELD_TOPIC\)"),
        ({"field_key": "key"}, r"a key in field 'key' \(REPLAY_FIELD_KEY\)"),
        ({"field_value": "raw"}, r"a value in field 'raw' \(REPLAY_FIELD_VALUE\)"),
    ],
)
@pytest.mark.parametrize("wanted", [{}, {"event_types": ("orders",)}], ids=["all", "filtered"])
async def test_a_mapping_that_fits_no_event_fails_with_an_example(
    store: EventStore,
    settings: Settings,
    events: Collection[Document],
    mapping: dict[str, Any],
    told: str,
    wanted: dict[str, Any],
) -> None:
    events.insert_many([event(n) for n in range(3)])
    settings = settings.model_copy(update=mapping)
    with pytest.raises(ReplayFailed, match=f"the mapping fits no event: .*none has {told}") as no:
        await plan_of(store, settings, filter=Filter(**wanted))
    assert '"event_type": "orders"' in str(no.value)


@pytest.mark.parametrize("mapping", [{}, {"field_key": "key"}, {"field_topic": "to"}])
async def test_a_mapping_that_fits_one_event_of_the_collection_is_no_error(
    store: EventStore, settings: Settings, events: Collection[Document], mapping: dict[str, Any]
) -> None:
    settings = settings.model_copy(update=mapping)
    events.insert_many([event(1, event_type=None, timestamp=None), event(2, key="k", to="t")])
    plan = await plan_of(store, settings, filter=Filter(event_ids=("1",)))
    assert plan.matched == 1


async def test_a_topic_field_is_not_needed_where_the_command_names_the_topic(
    store: EventStore, settings: Settings, events: Collection[Document]
) -> None:
    settings = settings.model_copy(update={"field_topic": "to"})
    events.insert_one(event(1))
    assert (await plan_of(store, settings, target=Target(topic="all"))).matched == 1
