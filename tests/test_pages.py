"""The pages of the documentation: short lines, and every page in the menu."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import zofo

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
SOURCE = Path(zofo.__file__).parent
MOST_COLUMNS = 120


@pytest.mark.parametrize(
    "page",
    [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *DOCS],
    ids=lambda page: page.stem,
)
def test_lines_are_short(page):
    """But for rows of tables, which cannot be broken."""
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    assert [number for number, line in lines if len(line) > MOST_COLUMNS and not line.startswith("|")] == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_no_empty_line_breaks_a_table_or_a_list(page):
    """What comes after it in a table would be shown with its bars."""
    lines = [*page.read_text(encoding="utf-8").splitlines(), "", ""]
    for number, (before, empty, row, rule) in enumerate(zip(lines, lines[1:], lines[2:], lines[3:], strict=False), 2):
        if not empty.strip():
            assert not (before.startswith("|") and row.startswith("|") and not rule.startswith("|--")), number
            assert not (before.startswith("- ") and row.startswith("- ")), number


def test_the_changelog_says_nothing_twice():
    """As where two changes to it were joined: each section stands once in a version, and no line stands twice."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for version in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^### (.*)", version, re.MULTILINE) == ["Added", "Changed", "Fixed"]
        lines = [line for line in version.splitlines() if line.strip()]
        assert [line for line in set(lines) if lines.count(line) > 1] == []


def test_the_menu_has_every_page_once():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    found = re.findall(r"[\w-]+\.md", str(menu))
    assert sorted(found) == [page.name for page in DOCS]


def texts_of_source() -> str:
    """Every text in the source, with `...` for what is filled in, a line each."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_messages_of_troubleshooting_are_those_of_the_source():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    shown = [
        line
        for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL)
        for line in block.replace("\n  ", " ").splitlines()
    ]
    texts = texts_of_source()
    assert len(shown) > 25
    assert [line for line in shown if line not in texts] == []


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    parts = {name: getattr(zofo, name) for name in zofo.__all__}
    shown = dict(re.findall(r"^### `zofo\.(\w+)`\n\n::: (.*)$", page, re.MULTILINE))
    assert shown == {name: f"{part.__module__}.{part.__qualname__}" for name, part in parts.items()}
