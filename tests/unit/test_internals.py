"""The private names of other libraries: their versions, and that nobody else uses such names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from replay_app import internals
from replay_app.exceptions import InvalidSettings

ROOT = Path(__file__).parents[2]


def exact(project: dict[str, Any]) -> list[str]:
    """Return the dependencies that are pinned to one version."""
    return [one for one in project["dependencies"] if "==" in one]


def test_the_installed_versions_are_the_tested_ones() -> None:
    internals.check_versions()


@pytest.mark.parametrize("library", internals.VERSIONS)
def test_another_version_is_refused_by_name(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = internals.VERSIONS[library]
    monkeypatch.setitem(internals.VERSIONS, library, "0.0.1")
    with pytest.raises(InvalidSettings, match=re.escape(f"{library} {found} is installed")):
        internals.check_versions()


def test_the_pinned_versions_are_the_tested_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([a-z-]+)(?:\[.*\])?==([0-9.]+)$", one)[0] for one in exact(project))
    assert {name: pins.get(name) for name in internals.VERSIONS} == internals.VERSIONS


def test_no_other_module_uses_private_names() -> None:
    private = re.compile(r"noqa: SLF001|import _[a-z]|import .*, _[a-z]")
    users = {
        path.name
        for path in (ROOT / "replay_app").rglob("*.py")
        if private.search(path.read_text())
    }
    assert users == {"internals.py", "kafka_internals.py", "kafka_requests.py"}
