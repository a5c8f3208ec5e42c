"""``replay-app topics --create-destinations``: topics made like the original ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from pymongo.collection import Collection
from support import create_topics, topic_names, unique_name

from replay_app.demo.stack import Stack
from replay_app.destinations import describe_destinations
from replay_app.settings import Settings, load_settings

Document = dict[str, Any]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = {"retention.ms": "7200000", "max.message.bytes": "50000"}


@pytest.fixture
def live() -> str:
    return unique_name("live")


@pytest.fixture
def replay_app(
    settings: Settings, stack: Stack, events: Collection[Document], live: str, tmp_path: Path
) -> CommandLine:
    create_topics(stack.kafka, {live: 3}, SETTINGS)
    events.insert_many(
        {
            "_id": number,
            "event_type": live if number else f"{live}-gone",
            "timestamp": T0 + timedelta(seconds=number),
        }
        for number in range(5)
    )
    environment = {
        "REPLAY_MONGO": settings.mongo.get_secret_value(),
        "REPLAY_MONGO_DATABASE": settings.mongo_database,
        "REPLAY_KAFKA": stack.kafka,
    }
    return CommandLine(environment, tmp_path)


async def test_missing_destinations_are_shown_and_created_like_the_live_topics(
    replay_app: CommandLine, stack: Stack, live: str
) -> None:
    command = ("topics", "--create-destinations", "--event-type", live, "--prefix", "copy.")
    shown = replay_app.popen(*command)
    output, errors = shown.communicate(timeout=60)
    assert shown.returncode == 0, errors
    assert output.splitlines()[1].split()[:5] == [f"copy.{live}", "missing", live, "3", "1"]
    assert "1 topics are missing; to create them, add --execute" in output
    assert f"copy.{live}" not in topic_names(stack.kafka)

    executed = replay_app.popen(*command, "--execute", "--json")
    output, errors = executed.communicate(timeout=60)
    (topic,) = json.loads(output)
    assert (topic["created"], topic["partitions"], topic["config"]) == (True, 3, SETTINGS), errors
    found = await describe_destinations(load_settings(kafka=stack.kafka), [f"copy.{live}"])
    made = found[f"copy.{live}"]
    assert made.partitions == 3
    assert {name: made.config[name] for name in SETTINGS} == SETTINGS

    again = replay_app.popen(*command, "--execute")
    output, _ = again.communicate(timeout=60)
    assert output.splitlines()[1].split()[:2] == [f"copy.{live}", "exists"]


def test_a_topic_without_an_original_is_named_and_not_created(
    replay_app: CommandLine, stack: Stack, live: str
) -> None:
    shown = replay_app(
        *("topics", "--create-destinations", "--all", "--prefix", "copy.", "--execute"), code=1
    )
    gone = f"{live}-gone"
    assert f"topic 'copy.{gone}' is missing, and so is '{gone}'" in shown
    names = topic_names(stack.kafka)
    assert f"copy.{live}" in names
    assert f"copy.{gone}" not in names


def test_one_topic_for_all_events_is_like_the_largest(
    replay_app: CommandLine, stack: Stack, live: str
) -> None:
    create_topics(stack.kafka, {f"{live}-gone": 5})
    one = unique_name("one")
    found = json.loads(
        replay_app("topics", "--create-destinations", "--all", "--to-topic", one, "--json")
    )
    assert [(topic["name"], topic["like"], topic["partitions"]) for topic in found] == [
        (one, f"{live}-gone", 5)
    ]


def test_a_broker_that_refuses_a_topic_is_named(replay_app: CommandLine, live: str) -> None:
    long = "p" * (249 - len(live))
    command = ("topics", "--create-destinations", "--event-type", live, "--execute", "--prefix")
    assert "created" in replay_app(*command, long)
    assert "which events?" in replay_app("topics", "--create-destinations", code=2)
    replay_app.environment["REPLAY_MONGO_COLLECTION"] = "nowhere"
    assert "has no collection" in replay_app(*command, "copy.", code=1)
