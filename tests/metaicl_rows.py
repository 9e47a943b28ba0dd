"""Made-up tasks in MetaICL's rows."""

from __future__ import annotations

from pathlib import Path

from conftest import write_rows

WORDS = ("a joy", "dull", "warm and funny", "it drags on", "an honest picture", "lifeless")


def labelled(name: str, count: int, start: int = 0, options: tuple[str, ...] = ("great", "terrible")):
    """Rows of a classification, whose input tells the output."""
    return [
        {
            "task": name,
            "input": f"{WORDS[i % len(options)]} {name} number {i}",
            "output": options[i % len(options)],
            "options": list(options),
        }
        for i in range(start, start + count)
    ]


def choosing(name: str, count: int, start: int = 0):
    """Rows of a multiple choice, each with options of its own."""
    rows = []
    for i in range(start, start + count):
        options = [f"the {WORDS[i % 6]} {i}", f"a {WORDS[(i + 1) % 6]} {i}", f"no {WORDS[(i + 2) % 6]} {i}"]
        rows.append({"task": name, "input": f"which {name} {i}", "output": options[i % 3], "options": options})
    return rows


TASKS = {
    "mood": labelled,
    "tone": lambda name, count, start=0: labelled(name, count, start, ("good", "bad", "maybe")),
    "pick": choosing,
    "which": choosing,
    "judge": labelled,
}


def write_tasks(root: Path, names=tuple(TASKS), train: int = 30, test: int = 6) -> Path:
    for name in names:
        write_rows(root / name / "train.jsonl", TASKS[name](name, train))
        write_rows(root / name / "test.jsonl", TASKS[name](name, test, train))
    return root
