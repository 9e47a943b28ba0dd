"""What a user should look at in rows that can all be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from zofo.tasks.example import Example
from zofo.tasks.readers.look_alikes import label_notes
from zofo.tasks.task import Split, Task

_ENOUGH = 20  # rows in which the first choice is not missing by chance


def likely_mistakes(task: Task, examples: Mapping[Split, Sequence[Example]]) -> list[str]:
    """What looks like a mistake in the labels of rows, but may be meant; one line each.

    Args:
        task: whose rows they are.
        examples: of the splits that were read.
    """
    rows = [one for split in examples.values() for one in split]
    counts = Counter(gold for one in rows for gold in one.golds)
    if task.kind == "classification":
        return label_notes({label: counts[place] for place, label in enumerate(task.label_names) if counts[place]})
    if task.kind != "multiple-choice" or task.labels is not None:
        return []
    notes: list[str] = []
    for name, some in {"": rows, **{f" of {split}": ones for split, ones in examples.items()}}.items():
        known = [gold for one in some for gold in one.golds]
        if len(some) >= _ENOUGH and known and 0 not in known and not notes:
            start = "if its numbers count from 1, say so: labels: [1, 2, ...]"
            notes.append(f"the first choice is right in none of {len(some)} rows{name}; {start}")
    return notes
