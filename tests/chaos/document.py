"""The tables of docs/reliability.md: marks around each name the command that makes it."""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def write(made_by: str, text: str) -> None:
    """Replace what the command wrote the last time by a new text."""
    begin, end = f"<!-- begin: made by `{made_by}` -->\n", f"<!-- end: {made_by} -->"
    before, begins, rest = DOCUMENT.read_text().partition(begin)
    _, ends, after = rest.partition(end)
    if not (begins and ends):
        raise ValueError(f"{DOCUMENT} has no place for {made_by}")
    DOCUMENT.write_text(f"{before}{begin}{text}\n{end}{after}")
