"""The documents say what the code does.

After a change of the settings, ``UPDATE_DOCS=1 pytest tests/unit/test_docs.py`` writes their table.
"""

import ast
import os
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from replay_app.cli import run
from replay_app.settings import INTERNAL, REMOVED_SETTINGS, Settings
from replay_app.topics import Topics

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
OPERATIONS = ROOT / "docs" / "operations.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
BLANK = "\0"
"""Marks the places in a message of the code where the program puts a value."""


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
    known = {f"REPLAY_{name.upper()}" for name in Settings.model_fields} | REMOVED_SETTINGS.keys()
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
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    uses = re.compile(r"(?:`|^)make ([a-z-]+)", re.MULTILINE)
    named = {target for document in DOCUMENTS for target in uses.findall(document.read_text())}
    assert {"test", "chaos-quick"} <= named
    assert named <= defined


def test_every_command_and_option_that_a_document_names_exists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [line for document in DOCUMENTS for line in command_lines(document.read_text())]
    helps: dict[str, str] = {}
    for command in {line.split()[1] for line in lines}:
        with pytest.raises(SystemExit) as ended:
            run([command, "--help"])
        assert ended.value.code == 0, command
        helps[command] = capsys.readouterr().out
    assert {"worker", "start", "watch"} <= helps.keys()
    for line in lines:
        for option in re.findall(r"(?<=\s)--[a-z-]+", line):
            assert re.search(rf"{option}\b(?!-)", helps[line.split()[1]]), line


def test_every_message_in_the_table_of_errors_is_one_that_the_code_can_say() -> None:
    quotes = error_quotes(OPERATIONS.read_text())
    assert len(quotes) > 15
    own_topics = {topic.name for topic in Topics.of(Settings()).all()}
    assert [quote for quote in quotes if quote not in own_topics and not can_be_said(quote)] == []


@pytest.mark.parametrize(
    ("quote", "said"),
    [
        ("there is no replay ...", True),
        ("topic ... has N partitions, but REPLAY_PARTITIONS is M", True),
        ("event ...: its topic ... does not exist", True),  # a message within another
        ("Kafka at ... cannot be reached", True),  # words of the code within a message
        ("destination topics ... missing", False),
        ("no replay there is", False),
        ("web_host=... would let anybody start replays", False),
    ],
)
def test_a_message_is_told_from_one_that_the_code_does_not_say(quote: str, said: bool) -> None:
    assert can_be_said(quote) is said


def error_quotes(text: str) -> list[str]:
    """Return what the first column of the table of errors quotes."""
    table = text.partition("\n## Errors, and what to do\n\n")[2].partition("\n\n")[0]
    shown = [row.split("|")[1] for row in table.splitlines()]
    return [quote for cell in shown for quote in re.findall(r"`([^`]+)`", cell)]


@cache
def messages_of_the_code() -> frozenset[str]:
    """Return all texts of the program's source, with `BLANK` in the place of each value."""
    found = set()
    for path in (ROOT / "replay_app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.JoinedStr(values=parts):
                    texts = [one.value if isinstance(one, ast.Constant) else BLANK for one in parts]
                    found.add("".join(map(str, texts)))
                case ast.Constant(value=str(text)):
                    found.add(re.sub(r"%[a-z]", BLANK, text))  # logging's placeholders
    return frozenset(found)


def can_be_said(quote: str) -> bool:
    """Tell whether a quote is part of a message of the code.

    In the quote ``...``, N, M and ID are any values. In the message a value may be another text of
    the code: "event ...: its topic ... does not exist" is a message within a message.
    """
    if _is_in_a_message(_pattern(quote)):
        return True
    for space in re.finditer(r" (?=\w)", quote):
        outer, inner = quote[: space.end()], re.compile(_pattern(quote[space.end() :]))
        is_a_text = any(map(inner.fullmatch, messages_of_the_code()))
        if is_a_text and _is_in_a_message(_pattern(outer) + BLANK):
            return True
    return False


def _is_in_a_message(pattern: str) -> bool:
    return any(map(re.compile(pattern).search, messages_of_the_code()))


def _pattern(quote: str) -> str:
    return ".*".join(map(re.escape, re.split(r"\.\.\.|\b(?:N|M|ID)\b", quote)))


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
