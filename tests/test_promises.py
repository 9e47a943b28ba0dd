"""Every promise has a test, and the table of them says what was tried and what held."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from promises import ROWS

TESTS = Path(__file__).parent


def marked(text):
    """The row of every mark in a file, with the names of the tests that it stands at."""
    tree = ast.parse(text)
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            owners, marks = [node.name], node.decorator_list
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            owners, marks = names, node.value.elts if isinstance(node.value, ast.List) else [node.value]
        else:
            continue
        for mark in marks:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                yield [argument.value for argument in mark.args], owners


def test_every_promise_has_a_test():
    held = {}
    for path in TESTS.glob("test_*.py"):
        for rows, owners in marked(path.read_text(encoding="utf-8")):
            for row in rows:
                held.setdefault(row, []).extend(owners)
    assert held.keys() == ROWS.keys()
    assert all(name.startswith("test_") for names in held.values() for name in names)


TABLES = [  # a row without a test, a test more, the exit code, and what the table says of row 9
    (None, None, 0, "tried      1  held      1"),
    (9, None, 1, "none"),
    (None, "def test_it(): assert False", 1, "tried      2  held      1"),
    (
        None,
        "def test_it(tries): assert [i for i in tries(range(4))] and tries(3) is None",
        0,
        "tried      8  held      8",
    ),
    (None, "def test_it(tries):\n for i in tries(range(9)): assert i < 7", 1, "tried      9  held      8"),
    (None, "def test_it(tries, broken): tries(5)", 1, "tried      6  held      5"),
]
EACH = """
import os, sys
import pytest
for folder in sys.argv[1:]:
    if (child := os.fork()) == 0:  # each session in a process of its own, which has not to import pytest
        os.chdir(folder)
        os.dup2(os.open("out", os.O_CREAT | os.O_WRONLY), 1)
        code = pytest.main(["-q", "-p", "no:cacheprovider", "--promises", "."])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_table(tmp_path):
    for number, (left_out, more, _, _) in enumerate(TABLES):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "conftest.py").write_text((TESTS / "promises.py").read_text(encoding="utf-8"), encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    promise(row): holds it\n", encoding="utf-8")
        kept = [row for row in ROWS if row != left_out]
        lines = ["import pytest", *(f"@pytest.mark.promise({row})\ndef test_{row}(): pass" for row in kept)]
        if left_out:
            lines.append(f"@pytest.mark.promise({left_out})\ndef test_skipped(): pytest.skip('no disk')")
        if more:
            lines.append("@pytest.fixture\ndef broken():\n yield\n assert False")
            lines.append(f"@pytest.mark.promise(9)\n{more}")
        (folder / "test_some.py").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-c", EACH, *(str(tmp_path / str(number)) for number in range(len(TABLES)))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [int(code) for code in done.stdout.split()] == [code for _, _, code, _ in TABLES]
    for number, (_, _, _, shown) in enumerate(TABLES):
        (line,) = (line for line in (tmp_path / f"{number}/out").read_text().splitlines() if line.startswith("  9  "))
        assert line.endswith(shown)
