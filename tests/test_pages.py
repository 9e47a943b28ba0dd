"""The pages of the documentation: short lines, and every page in the menu."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
MOST_COLUMNS = 120


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.stem)
def test_lines_are_short(page):
    """But for rows of tables, which cannot be broken."""
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    assert [number for number, line in lines if len(line) > MOST_COLUMNS and not line.startswith("|")] == []


def test_the_menu_has_every_page_once():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    found = re.findall(r"[\w-]+\.md", str(menu))
    assert sorted(found) == [page.name for page in DOCS]
