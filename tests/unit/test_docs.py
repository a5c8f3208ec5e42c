"""The documents say what the code does.

After a change of the settings, ``UPDATE_DOCS=1 pytest tests/unit/test_docs.py`` writes their table.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from replay_app.settings import INTERNAL, Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def test_the_table_of_settings_is_that_of_the_code() -> None:
    before, _, rest = SETTINGS.read_text().partition(BEGIN)
    shown, _, after = rest.partition(END)
    if os.environ.get("UPDATE_DOCS"):
        SETTINGS.write_text(f"{before}{BEGIN}{settings_table()}{END}{after}")
        return
    assert shown == settings_table(), "run UPDATE_DOCS=1 pytest tests/unit/test_docs.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_a_document_names_exists(document: Path) -> None:
    # These belong to the command line and to the development stack; REPLAY_FIELD_* names a family.
    known = {f"REPLAY_{name.upper()}" for name in Settings.model_fields}
    known |= {"REPLAY_URL", "REPLAY_STACK_STORE_COMMAND"}
    named = set(re.findall(r"\bREPLAY_[A-Z_]*[A-Z](?![A-Z_*])", document.read_text()))
    assert named <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_every_make_target_that_a_document_names_exists() -> None:
    defined = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:`|^)make ([a-z]+)", document.read_text(), re.MULTILINE))
        assert named <= defined, document


def test_every_command_and_option_that_a_document_names_exists() -> None:
    lines = [line for document in DOCUMENTS for line in command_lines(document.read_text())]
    helps: dict[str, str] = {}
    for line in lines:
        command = line.split()[1]
        if command not in helps:
            answer = subprocess.run(
                [sys.executable, "-m", "replay_app", command, "--help"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert answer.returncode == 0, f"{line}: {answer.stderr}"
            helps[command] = answer.stdout
        for option in re.findall(r"(?<=\s)--[a-z-]+", line):
            assert re.search(rf"{option}\b(?!-)", helps[command]), line


def command_lines(text: str) -> list[str]:
    """Return the uses of replay-app in code, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"(?:^|`)(replay-app [a-z][^`\n#]*)", text, re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """Return the anchors that a rendered document has, one for each heading."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def settings_table() -> str:
    """Return the table of the settings that are not internal, in the order of the code."""
    rows = ["| setting | default | values | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if field.json_schema_extra == INTERNAL:
            continue
        cells = (f"`REPLAY_{name.upper()}`", default_of(field), values_of(field))
        meaning = (field.description or "").removesuffix(".")
        rows.append(f"| {' | '.join(cells)} | {meaning} |")
    return "\n".join(rows) + "\n"


def default_of(field: FieldInfo) -> str:
    """Return a default as it would be written in the environment."""
    default: Any = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, tuple):
        default = ",".join(default)
    return "" if default is None or default in ("", {}) else f"`{default}`"


def values_of(field: FieldInfo) -> str:
    """Return what a setting may be: its words, or its range."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    limits = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{words} {getattr(rule, limit)}"
        for rule in field.metadata
        for limit, words in limits.items()
        if getattr(rule, limit, None) is not None
    ]
    return ", ".join(found)
