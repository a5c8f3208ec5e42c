"""Transforms in a worker: the guide, and what goes wrong without harm to others."""

from __future__ import annotations

import io
import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import fastavro
import pytest
from command_line import CommandLine, commands_of
from oracle import event_id_of
from shop_transforms import SCHEMA, SCHEMA_ID
from support import Record, create_topics, read_topic, unique_name, wait_until
from workers import Cluster, Worker, events_of

ROOT = Path(__file__).parents[2]
A_MINUTE = 60.0
EVENTS = 1_500


@pytest.fixture
def topic(shop: Cluster) -> str:
    name = unique_name("to")
    create_topics(shop.stack.kafka, {name: 1})
    return name


def read(shop: Cluster, topic: str) -> list[Record]:
    found: list[Record] = read_topic(shop.stack.kafka, [topic])
    return found


def test_the_guide_says_what_the_commands_do(shop: Cluster, worker: Worker, tmp_path: Path) -> None:
    create_topics(shop.stack.kafka, {"orders.avro": 1})
    orders = events_of("order_placed", 6, amount="12.50", customer="ana@example.org")
    orders[1] |= {"customer": "bot@example.test"}
    orders[2] |= {"version": 2, "amount_cents": 99}
    del orders[2]["amount"]
    orders[3] |= {"amount": "1e9"}
    shop.insert(one | {"aggregate_id": "o-guide"} for one in orders)
    replay_app = CommandLine({**shop.environment, "REPLAY_URL": worker.url}, tmp_path)
    plan, start, events, verify, _dry_run_with_schemas = commands_of("transforms.md")

    assert '"amount_cents":1250' in replay_app(*plan).replace(" ", "")
    assert "completed" in replay_app(*start)
    records = read(shop, "orders.avro")
    ids = [(one.headers["replay-delivery-id"] or b"").decode() for one in records]
    assert ids == [f"orders-avro:order_placed-{number}" for number in (0, 2, 3, 4, 5)]
    assert all(one.key == b"o-guide" for one in records)
    values = [avro(one.value or b"") for one in records]
    assert [one["amount_cents"] for one in values] == [1250, 99, 10**11, 1250, 1250]
    session = shop.session("orders-avro")
    assert session["counters"] == {"read": 6, "published": 5, "skipped": 1, "dead_lettered": 0}
    assert session["receipt"]["dropped"] == 1
    described = replay_app("status", "orders-avro")
    assert "no-tests, upcast, checked, avro" in described
    assert "dropped by transforms" in replay_app("receipt", "orders-avro")
    assert len(replay_app(*events).splitlines()) == 5
    assert "equal" in replay_app(*verify)
    with shop.store() as stored:  # other tests ask for all orders
        stored.delete_many({"aggregate_id": "o-guide"})


def avro(value: bytes) -> dict[str, Any]:
    assert struct.unpack(">bI", value[:5]) == (0, SCHEMA_ID)
    found = fastavro.schemaless_reader(io.BytesIO(value[5:]), SCHEMA, None)
    assert isinstance(found, dict)
    return found


def wishes(shop: Cluster, kind: str, *wish: str, **fields: Any) -> dict[str, Any]:
    """Store an event for each wish; return the body of a replay that asks for the wishes."""
    events = events_of(kind, len(wish), **fields)
    shop.insert(one | {"wish": what} for one, what in zip(events, wish, strict=True))
    return {"filter": {"event_types": [kind]}, "transforms": ["as-told"]}


@pytest.mark.parametrize("ordering", ["global", "aggregate"])
def test_an_event_that_a_transform_fails_drops_or_moves_does_not_disturb_the_others(
    shop: Cluster, topic: str, ordering: str
) -> None:
    kind, other = unique_name("wish"), unique_name("other")
    create_topics(shop.stack.kafka, {kind: 1, other: 1})
    all_wishes = ("", "fail", "drop", "nothing", "elsewhere", "")
    body = wishes(shop, kind, *all_wishes, to=other)
    replay_id = unique_name("wishes")
    session = shop.run(replay_id, **body, target={}, ordering=ordering, on_error="dead-letter")
    assert session["state"] == "completed_with_errors", session["error"]
    assert session["counters"] == {"read": 6, "published": 3, "skipped": 1, "dead_lettered": 2}
    assert session["receipt"]["by_topic"] == {kind: 2, other: 1}
    kept = {event_id_of(one): json.loads(one.value or b"") for one in read(shop, kind)}
    assert sorted(kept) == [f"{kind}-0", f"{kind}-5"]
    assert all(one["changed"] and "wish" not in one for one in kept.values())
    (moved,) = read(shop, other)
    assert (moved.key, moved.headers["moved"]) == (b"moved", b"yes")
    assert moved.headers["replay-id"] == replay_id.encode()
    reasons = {
        (one.headers["replay-error"] or b"").decode()
        for one in read(shop, f"{shop.prefix}dead-letters")
        if one.headers.get("replay-id") == replay_id.encode()
    }
    failed, nothing = sorted(reasons)
    assert failed == f"transform 'as-told' has failed: ValueError: no {kind}-1 today"
    assert nothing.startswith("transform 'as-told' has returned None and not a document")


def test_a_transform_that_hangs_fails_its_replay_and_no_other(shop: Cluster, topic: str) -> None:
    kind, others = unique_name("hangs"), unique_name("others")
    body = wishes(shop, kind, "", "hang") | {"target": {"topic": topic}}
    neighbour = wishes(shop, others, *[""] * 20) | {"target": {"topic": topic}, "rate": 2}
    hanging, running = unique_name("hanging"), unique_name("running")
    shop.command(running, **neighbour)
    session = shop.run(hanging, **body)
    assert session["state"] == "failed"
    told = f"transform 'as-told' has not returned event '{kind}-1' within 10 s"
    assert told in session["error"]
    assert shop.wait_for(running, "completed")["counters"]["published"] == 20
    shop.command(hanging, "cancel")


def test_a_slow_transform_only_takes_its_time(shop: Cluster, topic: str) -> None:
    body = wishes(shop, unique_name("slow"), *["slow"] * 150) | {"target": {"topic": topic}}
    session = shop.run(unique_name("slow"), **body)
    assert (session["state"], session["counters"]["published"]) == ("completed", 150)
    assert len(read(shop, topic)) == 150


def test_an_unknown_transform_fails_the_plan_and_names_the_known_ones(shop: Cluster) -> None:
    body = wishes(shop, unique_name("unknown"), "") | {"transforms": ["never"]}
    session = shop.run(unique_name("unknown"), **body)
    assert session["state"] == "failed"
    assert "there is no transform 'never': REPLAY_TRANSFORMS and the installed" in session["error"]
    assert "as-told" in session["error"]


def test_a_changed_transform_is_refused_until_the_change_is_accepted(
    cluster: Cluster, tmp_path: Path
) -> None:
    module = cluster.folder / "own_transform.py"

    def write(version: int) -> None:
        module.write_text(f"def mark(event, context):\n    return event | {{'mark': {version}}}\n")

    write(1)
    cluster.environment |= {
        "REPLAY_TRANSFORMS": '{"mark": "own_transform:mark"}',
        "PYTHONPATH": str(cluster.folder),
        "REPLAY_PAGE_EVENTS": "100",
    }
    topic = unique_name("marked")
    create_topics(cluster.stack.kafka, {topic: 2})
    cluster.seed(EVENTS)
    worker = cluster.start_worker()
    cluster.command("r", rate=200, target={"topic": topic}, transforms=["mark"])
    wait_until(partial(cluster.has_read, "r", 300), A_MINUTE)
    worker.kill()  # in the middle
    write(2)
    cluster.start_worker(0).wait_until_ready()
    session = cluster.wait_for("r", "failed")
    assert "transform mark was 'own_transform:mark sha256:" in session["error"]
    assert "retry with accept_changes (--accept-changes)" in session["error"]
    cluster.command("r", "set-rate", rate=None)
    replay_app = CommandLine(
        {**cluster.environment, "REPLAY_URL": cluster.workers[0].url}, tmp_path
    )
    replay_app("retry", "r", "--accept-changes")
    session = cluster.wait_for("r", "completed")
    assert any("a retry has accepted changes" in one for one in session["warnings"])
    records = read(cluster, topic)
    ids = [event_id_of(record) for record in records]
    assert len(ids) == len(set(ids)) == EVENTS
    marks = [json.loads(record.value or b"")["mark"] for record in records]
    assert {*marks} == {1, 2}
    assert "not all records were made in one way" in replay_app("verify", "r", code=7)


def test_a_dry_run_finds_the_events_that_do_not_fit_their_schema(cluster: Cluster) -> None:
    folder = cluster.folder / "schemas"
    folder.mkdir()
    schema = {"required": ["amount"], "properties": {"amount": {"type": "number"}}}
    (folder / "order.json").write_text(json.dumps(schema))
    (folder / "order.2.json").write_text('{"required": ["cents"]}')
    cluster.environment |= {"REPLAY_SCHEMAS": str(folder)}
    good: list[dict[str, Any]] = [{"amount": 1}, {"version": 2, "cents": 1}, {"event_type": "paid"}]
    bad: list[dict[str, Any]] = [{"amount": "1"}, {"version": 2, "amount": 1}, {"version": 1}]
    events = events_of("order", len(good + bad))
    cluster.insert(one | more for one, more in zip(events, [*good, *bad], strict=True))
    topic = unique_name("checked")
    create_topics(cluster.stack.kafka, {topic: 1})
    cluster.start_worker().wait_until_ready()
    found = cluster.run("dry", target={"topic": topic}, dry_run=True)
    assert found["receipt"]["counters"] == {
        "read": 6, "published": 0, "skipped": 3, "dead_lettered": 0,
    }  # fmt: skip
    reasons = [one["reason"] for one in found["receipt"]["failures"]]
    assert [one.partition(":")[0] for one in reasons] == [
        "it does not fit the schema order.json at 'amount'",
        "it does not fit the schema order.2.json",
        "it does not fit the schema order.json",
    ]
    assert any(
        "no JSON Schema checks the events of the types 'paid'" in w for w in found["warnings"]
    )
    assert cluster.run("all", target={"topic": topic})["counters"]["published"] == 6
    session = cluster.run("checked", target={"topic": topic}, check_schemas=True)
    assert session["state"] == "failed"
    assert "it does not fit the schema order.json" in session["error"]
