"""The receipt as a document."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from replay_app.commands import Filter, Start, Target, Verification
from replay_app.receipts import receipt_document, receipt_markdown
from replay_app.reports import Counters, Failure, Plan
from replay_app.sessions import Consumption, Receipt, Session

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def session(**members: Any) -> dict[str, Any]:
    """Return an ended session as the API answers it."""
    start = Start(
        replay_id="r",
        requested_by="ana",
        reason="orders | view <lost>",
        filter=Filter(event_types=("order_placed",)),
        target=Target(prefix="rebuild."),
        consumers=("orders-view", "other"),
    )
    receipt = Receipt(
        counters=Counters(read=1200, published=1199, skipped=1),
        by_type={"order_placed": 1199},
        by_topic={"rebuild.orders": 1199},
        bytes=5000,
        offsets={"rebuild.orders": {10: (3, 4), 2: (5, 1201)}},
        failures=(Failure(event_id="e-1", reason="bad"),),
        seconds=2.0,
    )
    whole = Session(
        replay_id="r",
        state="completed_with_errors",
        start=start,
        created_at=NOW,
        updated_at=NOW,
        progressed_at=NOW,
        heard_at=NOW,
        ended_at=NOW,
        plan=Plan(end=NOW, matched=1200, source={"REPLAY_MONGO_DATABASE": "shop"}),
        receipt=receipt,
        warnings=("look here",),
        consumption={"orders-view": Consumption(lag=0, consumed_at=NOW)},
        verification=Verification(verdict="equal", at=NOW, seconds=1.0, records=1199),
    )
    return {**json.loads(whole.model_dump_json()), **members}


def test_it_has_who_why_what_and_how_it_was_proved() -> None:
    document = receipt_document(session())
    assert (document["requested_by"], document["reason"]) == ("ana", "orders | view <lost>")
    assert document["filter"] == {"event_types": ["order_placed"]}
    assert document["target"] == {"prefix": "rebuild."}
    assert document["bounds"] == {"start": None, "end": "2026-01-01T00:00:00Z"}
    assert document["receipt"]["counters"]["published"] == 1199
    assert document["consumers"]["orders-view"]["consumed_at"] == "2026-01-01T00:00:00Z"
    assert document["consumers"]["other"] is None
    assert document["verification"]["verdict"] == "equal"
    assert document["handover"] == {}
    assert json.loads(json.dumps(document)) == document


def test_markdown_has_the_same_in_tables() -> None:
    handover = {"orders": {"0": 77}, "lost": None, "none": {}}
    text = receipt_markdown(receipt_document(session(handover=handover)))
    for line in (
        "# Receipt of replay r",
        "| why | orders \\| view \\<lost\\> |",
        "| requested by | ana |",
        "| events before | 2026-01-01T00:00:00Z |",
        "| published | 1,199 |",
        "| rebuild.orders | 1,199 |",
        "| orders | 0 | 77 |",
        "| lost | all | unknown, see the warnings |",
        "| none | none | the topic did not exist |",
        "| orders-view | 2026-01-01T00:00:00Z | 0 |",
        "| other | not seen |  |",
        "**equal**, compared at 2026-01-01T00:00:00Z.",
        "- look here",
        "| e-1 | bad |",
        "| REPLAY\\_MONGO\\_DATABASE | shop |",
    ):
        assert line in text.split("\n")
    first, last = (
        text.index("| rebuild.orders | 2 | 5 | 1,201 |"),
        text.index("rebuild.orders | 10"),
    )
    assert first < last  # in the order of numbers


def test_what_nobody_has_done_is_said() -> None:
    bare = session(verification=None, consumption={}, warnings=[])
    bare["start"]["consumers"] = []
    bare["receipt"] |= {"offsets": {}, "failures": []}
    text = receipt_markdown(receipt_document(bare))
    assert "Nobody has verified this replay" in text
    assert "Nothing was published." in text
    assert "No hand-over is known." in text
    assert "names no consumer groups" in text
    assert "## Warnings" not in text
    failed = {"verdict": "unverifiable", "at": "now", "reason": "records are gone"}
    text = receipt_markdown(receipt_document(session(verification=failed)))
    assert "**unverifiable**, compared at now.\n\nrecords are gone" in text


def test_a_session_of_an_older_version_has_a_receipt_too() -> None:
    old = session()
    for member in ("verification", "consumption"):
        del old[member]
    for member in ("consumers", "chain", "max_lag"):
        del old["start"][member]
    assert receipt_document(old)["consumers"] == {}
    assert "# Receipt of replay r" in receipt_markdown(receipt_document(old))
