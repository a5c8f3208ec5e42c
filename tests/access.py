"""The ACLs of docs/operations.md: what its lines for ``kafka-acls.sh`` grant."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OPERATIONS = ROOT / "docs" / "operations.md"
TOOL = """#!/bin/sh
printf '%s\\t' "$@"; echo
"""
"""Stands for ``kafka-acls.sh`` and prints its arguments."""


class Right(NamedTuple):
    """One operation that a user may do on a resource, or on all whose names begin like it."""

    user: str
    kind: str
    name: str
    is_prefix: bool
    operation: str


def section() -> str:
    """Return the section about access control."""
    return OPERATIONS.read_text().partition("\n### Access control\n")[2].partition("\n### ")[0]


def granted(names: Mapping[str, str]) -> Iterator[tuple[str, Right]]:
    """Yield what the lines of the document grant: the name of a cluster's variable, and a right.

    ``names`` are new values of the variables at the top. The variables ``kafka`` and ``target`` get
    values that differ.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap-server", choices=["kafka", "target"])
    parser.add_argument("--command-config")
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal")
    parser.add_argument("--operation", action="append")
    parser.add_argument("--resource-pattern-type", choices=["prefixed"])
    parser.add_argument("--cluster", action="append_const", const="", default=[])
    for option in ("--topic", "--group", "--transactional-id"):
        parser.add_argument(option, action="append", default=[])
    for line in _run_lines({"kafka": "kafka", "target": "target", **names}).splitlines():
        given = parser.parse_args(line.rstrip("\t").split("\t"))
        user = given.allow_principal.removeprefix("User:")
        is_prefix = given.resource_pattern_type is not None
        for kind, found in (
            ("topic", given.topic),
            ("group", given.group),
            ("transactionalId", given.transactional_id),
            ("cluster", given.cluster),
        ):
            for name in found:
                for operation in given.operation:
                    yield given.bootstrap_server, Right(user, kind, name, is_prefix, operation)


def _run_lines(names: Mapping[str, str]) -> str:
    (lines,) = re.findall(r"```sh\n(.*?)```", section(), re.DOTALL)
    for name, value in names.items():
        lines, replaced = re.subn(rf"(?m)(^| ){name}=\S+", rf"\g<1>{name}={value}", lines, count=1)
        assert replaced, f"the lines have no variable {name}"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "kafka-acls.sh")
        script.write_text(TOOL)
        script.chmod(0o755)
        return subprocess.run(
            ["/bin/sh", "-eu", "-c", lines],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
