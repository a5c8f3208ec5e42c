"""The plan of a replay that is not started: what people see before they start the replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay_app.bounds import bounds_of
from replay_app.consumer_groups import find_readers
from replay_app.event_records import RecordMaker
from replay_app.exceptions import ReplayError
from replay_app.handover import find_handover
from replay_app.plans import Planner
from replay_app.queries import all_of, compile_filter
from replay_app.reports import OfferedPlan, Plan
from replay_app.store import TimeLimitExceeded
from replay_app.store_checks import LOOK_SECONDS
from replay_app.transforms import run_in_thread

if TYPE_CHECKING:
    from replay_app.commands import Start
    from replay_app.context import WorkerContext
    from replay_app.reports import SampleRecord

SAMPLES = 3
"""Sample records of a plan."""


async def offer_plan(start: Start, context: WorkerContext) -> OfferedPlan:
    """Plan a replay, and find the groups that would get its events, and some sample records.

    Raises
    ------
    ReplayFailed
        When the replay could not succeed.
    Unavailable
        When store or broker do not answer.

    """
    settings, store = context.reads(start)
    # A plan shows to which live topics a replay would go, also where no replay may go there.
    shown = settings.model_copy(update={"allow_original": True})
    planner = Planner(start, shown, store, context.describe)
    plan = await find_handover(settings, start, await planner.plan())
    warnings, readers = plan.warnings, None
    try:
        topics = () if start.dry_run else plan.partitions  # a dry run publishes nothing
        readers, more = await find_readers(settings, topics)
        warnings += more
    except ReplayError as error:
        warnings += (f"the consumer groups of the topics are unknown: {error}",)
    samples: tuple[SampleRecord, ...] = ()
    try:
        samples = await _samples(start, context, plan)
    except TimeLimitExceeded:
        warnings += (f"the store gives no sample of the events within {LOOK_SECONDS:g} s",)
    is_live_cluster = settings.target_bootstrap == settings.kafka
    live = plan.handover.keys() & plan.partitions.keys() if is_live_cluster else ()
    members = {name: getattr(plan, name) for name in Plan.model_fields}
    return OfferedPlan(
        **members
        | {
            "warnings": warnings,
            "consumers": readers,
            "samples": samples,
            "live_topics": tuple(sorted(live)),
        }
    )


async def _samples(start: Start, context: WorkerContext, plan: Plan) -> tuple[SampleRecord, ...]:
    """Return the first matching events that the store finds, as records."""
    settings, store = context.reads(start)
    mapping = settings.mapping
    query = all_of(compile_filter(start.filter, mapping), bounds_of(start, plan).query(mapping))
    maker = RecordMaker(start, settings, mapping)
    pipeline: list[dict[str, Any]] = [{"$match": query}, {"$limit": SAMPLES}]
    documents = await store.raw_documents(pipeline, LOOK_SECONDS)
    records = await run_in_thread(maker.transforms, lambda: [*map(maker.record, documents)])
    return tuple(one.sample() for one in records if one is not None)
