"""docs/reliability.md: its tables stand between marks and are made by the commands they name."""

from __future__ import annotations

from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def write(made_by: str, text: str) -> None:
    """Put the text in the place of what the command wrote the last time."""
    begin, end = f"<!-- begin: made by `{made_by}` -->\n", f"<!-- end: {made_by} -->"
    before, found, rest = DOCUMENT.read_text().partition(begin)
    _, closed, behind = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{DOCUMENT} has no place for {made_by}")
    DOCUMENT.write_text(f"{before}{begin}{text}\n{end}{behind}")
