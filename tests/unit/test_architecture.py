"""docs/architecture.md names every module, and the order of the layers that the imports keep."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "replay_app"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text()
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def layers() -> list[str]:
    """Return the modules of the list of layers, from low to high."""
    section = DOCUMENT.partition("## Imports go one way")[2].partition("\n## ")[0]
    lines = re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)
    return [name for line in lines for name in re.findall(r"`([\w.]+)`", line)]


def imported(path: Path) -> set[str]:
    """Return the modules of this package that a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("replay_app"):
            name = (node.module or "").removeprefix("replay_app").removeprefix(".")
            found |= {name} if name else {alias.name for alias in node.names} & MODULES.keys()
    return found


def test_every_module_has_a_line_and_every_line_a_module() -> None:
    section = DOCUMENT.partition("## Modules")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([\w/]+)\.py` \|", section, re.MULTILINE)
    assert sorted(named) == sorted(name.replace(".", "/") for name in MODULES)


def test_imports_go_one_way() -> None:
    order = layers()
    assert len(order) == len(set(order))
    height = {name: place for place, name in enumerate(order)}

    def place(module: str) -> int:
        return height.get(module, height.get(module.partition(".")[0], -1))

    unlisted = {name for name in MODULES if place(name) < 0}
    assert unlisted == set()
    climbing = {
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imported(path)
        if place(other) > place(name)
    }
    assert climbing == set()


def test_the_glossary_has_at_most_twenty_words() -> None:
    words = re.findall(
        r"^\| \*\*([\w ]+)\*\* \|", DOCUMENT.partition("## Glossary")[2], re.MULTILINE
    )
    assert 10 < len(words) <= 20
    assert len(words) == len(set(words))
