"""``replay-app verify`` and ``replay-app receipt``, on real replays and on forged records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bson import Regex
from command_line import CommandLine
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]
from support import (
    KAFKA_SECONDS,
    Record,
    create_topics,
    delete_topics,
    open_transactions,
    purge_topics,
    read_topic,
    unique_name,
    wait_until,
)
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, events_of

from replay_app.exceptions import Unavailable
from replay_app.sessions import Session, decode_session
from replay_app.settings import Settings, load_settings
from replay_app.times import local
from replay_app.verdicts import FAULTS, STORE_CHANGES, Verdict
from replay_app.verify import verify

PARTITIONS = 2


@pytest.fixture
def topic(shop: Cluster) -> str:
    """A destination topic that only this test uses."""
    name = unique_name("to")
    create_topics(shop.stack.kafka, {name: PARTITIONS})
    return name


@pytest.fixture
def kind() -> str:
    """An event type that only this test uses."""
    return unique_name("kind")


@pytest.fixture
def replay_app(shop: Cluster, tmp_path: Path) -> CommandLine:
    return CommandLine({**shop.environment, "REPLAY_URL": shop.workers[0].url}, tmp_path)


def settings_of(cluster: Cluster, **changes: Any) -> Settings:
    return load_settings(
        mongo=cluster.stack.mongo,
        mongo_database=cluster.name,
        app_id=cluster.name,
        topic_prefix=cluster.prefix,
        max_record_bytes=int(cluster.environment.get("REPLAY_MAX_RECORD_BYTES", "1000000")),
        **{"kafka": cluster.stack.kafka, **changes},
    )


def session_of(members: dict[str, Any]) -> Session:
    session = decode_session(json.dumps(members).encode())
    assert session is not None
    return session


def prove(cluster: Cluster, session: Session, **changes: Any) -> Verdict:
    return asyncio.run(verify(settings_of(cluster, **changes), session))


def counts(verdict: Verdict) -> dict[str, int]:
    """Return the counts of differences that are not 0."""
    names = (*FAULTS, *STORE_CHANGES, "left_out")
    found = {name: getattr(verdict.verification, name) for name in names}
    return {name: count for name, count in found.items() if count}


def assert_equal(verdict: Verdict, records: int) -> None:
    found = verdict.verification
    assert (found.verdict, found.reason, verdict.differences) == ("equal", None, ())
    assert found.records == found.equal == records


def test_a_replay_is_proved_the_verdict_is_kept_and_the_receipt_tells_it(
    shop: Cluster, topic: str, replay_app: CommandLine
) -> None:
    replay_id = unique_name("proved")
    body: dict[str, Any] = {
        "target": {"topic": topic},
        "filter": SHOP_HISTORY,
        "reason": "lost | view",
    }
    shop.command(replay_id, control_records=True, requested_by="ana", **body)
    session = shop.wait_for(replay_id, "completed")
    assert session["verification"] is None
    assert "Nobody has verified this replay" in replay_app("receipt", replay_id)

    shown = replay_app("verify", replay_id)
    assert f"ok      published = stored = consumed              {SHOP_EVENTS:,} = " in shown
    assert "FAILED" not in shown
    assert f"{replay_id}: the topics hold exactly what the replay must have published" in shown
    noted = wait_until(lambda: shop.session(replay_id)["verification"], 30)
    assert (noted["verdict"], noted["records"], noted["equal"]) == (
        "equal",
        SHOP_EVENTS,
        SHOP_EVENTS,
    )
    again = json.loads(replay_app("verify", replay_id, "--json"))
    assert (again["holds"], again["noted"], again["differences"]) == (True, True, [])
    assert all(check["holds"] for check in again["checks"].values())
    newer = wait_until(lambda: shop.session(replay_id)["verification"]["at"] > noted["at"], 30)
    assert newer
    after = shop.session(replay_id)
    assert f"verified      equal, at {local(after['verification']['at'])}" in replay_app(
        "status", replay_id
    )
    changed = {"verification", "updated_at", "revision"}
    assert {name for name in session if session[name] != after[name]} == changed

    document = json.loads(replay_app("receipt", replay_id, "--json"))
    assert document["verification"]["verdict"] == "equal"
    assert (document["requested_by"], document["reason"]) == ("ana", "lost | view")
    assert document["receipt"] == session["receipt"]
    text = replay_app("receipt", replay_id, "--markdown")
    assert text == replay_app("receipt", replay_id)
    assert "| why | lost \\| view |" in text
    assert "**equal**, compared at" in text


def test_what_cannot_be_verified_is_refused_before_anything_is_read(
    shop: Cluster, topic: str, replay_app: CommandLine
) -> None:
    dry, slow = unique_name("dry"), unique_name("slow")
    body: dict[str, Any] = {"target": {"topic": topic}, "filter": SHOP_HISTORY}
    shop.run(dry, dry_run=True, **body)
    assert "was a dry run" in replay_app("verify", dry, code=3)
    assert "# Receipt of replay" in replay_app("receipt", dry)
    shop.command(slow, rate=10, **body)
    shop.wait_for(slow, "running")
    assert "is running: only a completed replay is verified" in replay_app("verify", slow, code=3)
    assert "has its receipt when it has ended" in replay_app("receipt", slow, code=3)
    status, answer = shop.workers[0].request(
        "POST",
        f"/replays/{slow}/verification",
        {"verification": {"verdict": "equal", "at": "2026-01-01T00:00:00Z", "seconds": 1}},
    )
    assert (status, answer["state"]) == (409, "running")
    shop.command(slow, "cancel")
    shop.wait_for(slow, "cancelled")
    assert "is cancelled: only a completed replay" in replay_app("verify", slow, code=3)
    assert "there is no replay" in replay_app("verify", "never", code=10)
    assert "choose one" in replay_app("receipt", dry, "--markdown", "--json", code=2)


def test_what_has_changed_in_the_store_since_is_told_apart(
    shop: Cluster, topic: str, kind: str, replay_app: CommandLine
) -> None:
    shop.insert(events_of(kind, 12))
    replay_id = unique_name("since")
    shop.run(replay_id, filter={"event_types": [kind]}, target={"topic": topic})
    (late,) = events_of(f"{kind}-late", 1, event_type=kind)
    shop.insert([late])
    with shop.store() as events:
        events.delete_one({"event_id": f"{kind}-3"})
        events.update_one({"event_id": f"{kind}-5"}, {"$set": {"amount": 7}})
        events.update_one({"event_id": f"{kind}-7"}, {"$set": {"event_type": f"{kind}-other"}})
    answer = json.loads(replay_app("verify", replay_id, "--json", code=6))
    found = answer["verification"]
    assert found["verdict"] == "store-changed"
    assert {name: found[name] for name in (*FAULTS, *STORE_CHANGES)} == {
        **dict.fromkeys(FAULTS, 0),
        "added": 1,
        "deleted": 1,
        "changed": 2,
    }
    kinds = {(one["kind"], one["event_id"]) for one in answer["differences"]}
    assert kinds == {
        ("added", f"{kind}-late-0"),
        ("deleted", f"{kind}-3"),
        ("changed", f"{kind}-5"),
        ("changed", f"{kind}-7"),
    }
    shown = replay_app("verify", replay_id, code=6)
    assert "the store has changed since" in shown
    assert (
        "FAILED  the store is as it was                     1 added, 1 deleted, 2 changed" in shown
    )


# Records that no replay has written: the copy of a replay's topic, with a fault


def _lost(records: list[Record]) -> None:
    del records[4]


def _altered(records: list[Record]) -> None:
    records[4] = _with(records[4], value=b'{"a":1}')


def _other_key(records: list[Record]) -> None:
    records[4] = _with(records[4], key=b"other")


def _doubled(records: list[Record]) -> None:
    records.append(_with(records[4], partition=records[4].partition))


def _foreign(records: list[Record]) -> None:
    replay_id = (records[4].headers["replay-id"] or b"").decode()
    headers = {**records[4].headers, "replay-delivery-id": f"{replay_id}:never".encode()}
    records.append(_with(records[4], headers=headers))


def _swapped(records: list[Record]) -> None:
    first, second = [n for n, one in enumerate(records) if one.partition == records[0].partition][
        :2
    ]
    records[first], records[second] = records[second], records[first]


def _elsewhere(records: list[Record]) -> None:
    """Move the last record of a partition, so that the order stays."""
    last = records.pop()
    records.append(_with(last, partition=1 - last.partition))


def _unmarked(records: list[Record]) -> None:
    headers = {**records[4].headers, "replay-attempt": b"7"}
    records[4] = _with(records[4], headers=headers)


def _with(record: Record, **changes: Any) -> Record:
    members = {name: getattr(record, name) for name in Record.__dataclass_fields__}
    return Record(**(members | changes))


FORGERIES: dict[str, tuple[Callable[[list[Record]], None], dict[str, int]]] = {
    "nothing": (lambda _: None, {}),
    "lost": (_lost, {"missing": 1}),
    "altered": (_altered, {"differing": 1}),
    "other key": (_other_key, {"differing": 1}),
    "doubled": (_doubled, {"repeated": 1}),
    "foreign": (_foreign, {"unknown": 1}),
    "swapped": (_swapped, {"unordered": 1}),
    "elsewhere": (_elsewhere, {"misplaced": 1}),
    "unmarked": (_unmarked, {"unmarked": 1}),
}


def test_each_kind_of_fault_in_the_topics_is_found_and_named(
    shop: Cluster, topic: str, kind: str
) -> None:
    shop.insert(events_of(kind, 30))
    replay_id = unique_name("forged")
    real = shop.run(replay_id, filter={"event_types": [kind]}, target={"topic": topic})
    records = sorted(
        read_topic(shop.stack.kafka, topic), key=lambda one: (one.partition, one.offset)
    )
    assert_equal(prove(shop, session_of(real)), 30)
    names = {name: unique_name("forged") for name in FORGERIES}
    create_topics(shop.stack.kafka, dict.fromkeys(names.values(), PARTITIONS))
    for name, (forge, found) in FORGERIES.items():
        copies = list(records)
        forge(copies)
        offsets = publish(shop, names[name], copies)
        session = {
            **real,
            "start": {**real["start"], "target": {"topic": names[name]}},
            "plan": {**real["plan"], "partitions": {names[name]: PARTITIONS}},
            "offsets": {names[name]: offsets},
        }
        verdict = prove(shop, session_of(session))
        assert counts(verdict) == found, name
        assert [one.kind for one in verdict.differences] == list(found), name
        assert all(one.event_id.startswith((kind, "never")) for one in verdict.differences), name


def publish(shop: Cluster, topic: str, records: list[Record]) -> dict[int, tuple[int, int]]:
    """Publish copies of records, live ones between them; return the first and last offsets."""
    producer = Producer({"bootstrap.servers": shop.stack.kafka, "acks": "all"})
    offsets: dict[int, list[int]] = {}

    def note(error: Any, message: Any) -> None:
        assert error is None
        offsets.setdefault(message.partition(), []).append(message.offset())

    for record in records:
        producer.produce(topic, b"live", b"live", record.partition)
        producer.produce(
            topic,
            record.value,
            record.key,
            record.partition,
            on_delivery=note,
            headers=list(record.headers.items()),
        )
    assert producer.flush(KAFKA_SECONDS) == 0
    return {partition: (min(some), max(some)) for partition, some in offsets.items()}


# Replays of every kind


def test_replays_of_every_kind_are_proved(shop: Cluster, kind: str) -> None:
    """Shards, limits, retries, failing events, two replays in one topic, and both encoders."""
    names = [unique_name("to") for _ in range(4)]
    create_topics(shop.stack.kafka, dict.fromkeys(names, PARTITIONS))
    sharded, limited, failing, skipping = (unique_name("kinds") for _ in range(4))
    to: list[dict[str, Any]] = [{"target": {"topic": name}} for name in names]
    shop.command(sharded, filter=SHOP_HISTORY, ordering="aggregate", shards=6, **to[0])
    shop.command(limited, filter=SHOP_HISTORY, max_events=70, name="n", reason="r", **to[0])
    assert_equal(prove(shop, session_of(shop.wait_for(sharded, "completed"))), SHOP_EVENTS)
    session = session_of(shop.wait_for(limited, "completed"))
    assert_equal(prove(shop, session), 70)
    assert_equal(prove(shop, session, encoder="python"), 70)
    assert_equal(prove(shop, session, page_events=7), 70)
    other = prove(shop, session, record_timestamp="original").verification
    assert other.verdict == "unverifiable"
    assert "REPLAY_RECORD_TIMESTAMP=append" in (other.reason or "")

    shop.insert(events_of(kind, 8))
    with shop.store() as events:
        events.update_one({"event_id": f"{kind}-4"}, {"$set": {"body": Regex("^x")}})
    shop.run(failing, filter={"event_types": [kind]}, **to[1])
    shop.run(skipping, filter={"event_types": [kind]}, on_error="skip", **to[2])
    whole = session_of(shop.wait_for(skipping, "completed_with_errors"))
    assert_equal(prove(shop, whole), 7)
    with shop.store() as events:
        events.update_one({"event_id": f"{kind}-4"}, {"$set": {"body": "mended"}})
    shop.command(failing, "retry")
    session = session_of(shop.wait_for(failing, "completed"))
    assert session.attempt == 2
    assert_equal(prove(shop, session), 8)
    mended = prove(shop, whole)  # the event that failed is good now
    assert (mended.verification.verdict, counts(mended)) == ("equal", {"left_out": 1})


def test_a_topic_that_grew_is_proved(shop: Cluster, topic: str) -> None:
    replay_id = unique_name("grown")
    body = {"filter": SHOP_HISTORY, "target": {"topic": topic}}
    session = session_of(shop.run(replay_id, **body))
    admin = AdminClient({"bootstrap.servers": shop.stack.kafka, "log_level": 3})
    grown = admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)])
    grown[topic].result(KAFKA_SECONDS)

    def is_equal() -> bool:  # the broker may tell of the new partition a moment later
        assert_equal(prove(shop, session), SHOP_EVENTS)
        return True

    wait_until(is_equal, 30)


def test_records_that_are_gone_or_hidden_cannot_be_verified(
    shop: Cluster, topic: str, kind: str, replay_app: CommandLine
) -> None:
    shop.insert(events_of(kind, 10))
    replay_id = unique_name("gone")
    shop.run(replay_id, filter={"event_types": [kind]}, target={"topic": topic})
    session = session_of(shop.session(replay_id))
    # The marker of the replay's transaction stands behind its last record.
    behind = {number: (first, last + 2) for number, (first, last) in session.offsets[topic].items()}
    longer = session.model_copy(update={"offsets": {topic: behind}})
    short = prove(shop, longer)
    assert short.verification.verdict == "unverifiable"
    assert "ends before the replay's last record" in (short.verification.reason or "")
    with open_transactions(shop.stack.kafka, {topic: PARTITIONS}):
        hidden = prove(shop, longer)
    assert hidden.verification.verdict == "unverifiable"
    assert "consumers do not see all records" in (hidden.verification.reason or "")
    unlisted = prove(shop, session.model_copy(update={"offsets": {}}))
    assert "does not list the offsets" in (unlisted.verification.reason or "")
    other = prove(shop, session, topic_template="other.{event_type}")
    assert "REPLAY_TOPIC_TEMPLATE" in (other.verification.reason or "")

    records = read_topic(shop.stack.kafka, topic)
    purge_topics(shop.stack.kafka, topic)
    shown = replay_app("verify", replay_id, code=7)
    assert f"{replay_id} cannot be verified: records of the replay are gone from {topic}[" in shown
    noted = wait_until(lambda: shop.session(replay_id)["verification"], 30)
    assert noted["verdict"] == "unverifiable"
    assert "**unverifiable**" in replay_app("receipt", replay_id)
    delete_topics(shop.stack.kafka, [topic])
    gone = prove(shop, session)
    assert gone.verification.reason == f"the topics are deleted: '{topic}'"
    create_topics(shop.stack.kafka, {topic: 1})
    again = prove(shop, session)
    assert again.verification.verdict == "unverifiable"
    assert "created again" in (again.verification.reason or "")
    with pytest.raises(Unavailable, match=r"Kafka at 127\.0\.0\.1:9 "):
        prove(shop, session, kafka="127.0.0.1:9")
    elsewhere = prove(shop, session, mongo_collection="none")
    assert "REPLAY_MONGO_COLLECTION was 'events'" in (elsewhere.verification.reason or "")
    delete_topics(shop.stack.kafka, [topic])
    create_topics(shop.stack.kafka, {topic: PARTITIONS})
    for copies in (1, 9):  # the new topic ends before, and behind, the records of the old one
        publish(shop, topic, records[:5] * copies)
        again = prove(shop, session)
        assert again.verification.verdict == "unverifiable"
        assert "not the topics that the replay was planned with" in (
            again.verification.reason or ""
        )


@pytest.fixture
def crashing(cluster: Cluster) -> Cluster:
    """An installation with one worker, whose pages and slices are small."""
    cluster.environment |= {"REPLAY_PAGE_EVENTS": "50", "REPLAY_SLICE_EVENTS": "200"}
    cluster.seed(SHOP_EVENTS)
    cluster.start_worker().wait_until_ready()
    return cluster


def test_a_replay_whose_worker_was_killed_is_proved(crashing: Cluster) -> None:
    crashing.command("killed", rate=1500)
    crashing.command("beside", rate=1500, ordering="aggregate", shards=3)
    wait_until(
        lambda: (crashing.session("killed") or {"counters": {"published": 0}})["counters"][
            "published"
        ],
        60,
    )
    crashing.workers[0].kill()
    crashing.start_worker(0)
    for replay_id in ("killed", "beside"):
        session = session_of(crashing.wait_for(replay_id, "completed"))
        assert_equal(prove(crashing, session), SHOP_EVENTS)
