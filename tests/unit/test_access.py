"""The table of rights, the lines for `kafka-acls.sh` and Strimzi's manifest say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from access import ROOT, Right, granted, section

from replay_app.settings import Settings
from replay_app.topics import Topics

MANIFEST = ROOT / "k8s" / "strimzi" / "users.yaml"
USERS = {
    "worker": "replay-worker",
    "client": "replay-client",
    "consumer": "shop-projection",
    "operator": "replay-operator",
}


def of_table() -> Iterator[tuple[str, Right]]:
    kinds = {"topic": "topic", "group": "group", "transactional": "transactionalId"}
    for row in re.findall(r"(?m)^\| .* \|$", section())[1:]:
        where, who, operations = (cell.strip() for cell in row.strip("|").split(" | "))
        kind = kinds.get(
            re.sub(r"^(all|destination) ", "", where).split()[0].rstrip("s"), "cluster"
        )
        names = re.findall(r"`([^`]+)`", where) or ["*" if kind == "transactionalId" else ""]
        for name in names:
            is_prefix = len(name) > 1 and name.endswith("*")
            for operation in operations.split(", "):
                right = Right(
                    USERS[who], kind, name.rstrip("*") if is_prefix else name, is_prefix, operation
                )
                yield ("target" if where.endswith("\\*") else "kafka"), right


def of_manifest() -> Iterator[Right]:
    for user in yaml.safe_load_all(MANIFEST.read_text()):
        for rule in user["spec"]["authorization"]["acls"]:
            resource = rule["resource"]
            is_prefix = resource.get("patternType") == "prefix"
            for operation in rule["operations"]:
                name = resource.get("name", "")
                yield Right(user["metadata"]["name"], resource["type"], name, is_prefix, operation)


def test_the_table_and_the_lines_grant_the_same() -> None:
    table = list(of_table())
    assert len(table) > 20
    assert sorted(table) == sorted(granted({}))


def test_the_manifest_grants_what_the_lines_grant_on_one_cluster() -> None:
    manifest = list(of_manifest())
    assert len(manifest) == len(set(manifest))
    assert set(manifest) == {right for _, right in granted({})}


@pytest.mark.parametrize("on_target", [False, True])
def test_the_worker_may_use_each_of_its_topics_and_no_other(on_target: bool) -> None:
    cluster = "target" if on_target else "kafka"
    named = {
        right.name
        for where, right in of_table()
        if (where, right.user, right.kind) == (cluster, USERS["worker"], "topic")
    }
    declared = {topic.name for topic in Topics.of(Settings()).all() if topic.on_target is on_target}
    assert named - {"shop."} == declared


def test_only_the_worker_may_write_where_records_are_believed() -> None:
    believed = {topic.name for topic in Topics.of(Settings()).all()} - {"replay.requests"}
    for _, right in of_table():
        if right.operation in {"Write", "Create", "All"} and right.user != USERS["worker"]:
            covered = {name for name in believed if right.is_prefix and name.startswith(right.name)}
            assert not covered
            assert right.name not in believed
