"""What rows of a user's own are: one of five formats, recognised by its columns, and checked row by row."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zofo.errors import DataError
from zofo.tasks.reading.format_checks import (
    Problem,
    choices_problem,
    label_problem,
    label_text,
    messages_problem,
    metaicl_problem,
    text_problem,
)
from zofo.tasks.reading.rows import Row, beside_good_row, shown_value

MOST_LABELS = 100
"""More distinct labels than these are taken for numbers or free texts."""

_TEXT = ("text", "sentence", "input")
_LABEL = ("label", "labels", "class")
_PROMPT = ("prompt", "instruction", "question")
_COMPLETION = ("completion", "response", "output", "answer")
_CHOICES = ("choices", "options")
_ANSWER = ("answer", "answerKey", "label")
_MESSAGES = ("messages", "conversations")

_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {  # in the order in which they are tried: role -> names of its column
    "messages": {"messages": _MESSAGES},
    "choices-answer": {"choices": _CHOICES, "answer": _ANSWER},
    "metaicl": {"task": ("task",), "input": ("input",), "output": ("output",), "options": ("options",)},
    "prompt-completion": {"prompt": (*_PROMPT, "input"), "completion": _COMPLETION},
    "text-label": {"text": _TEXT, "label": _LABEL},
}
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "choices-answer": {"prompt": _PROMPT},
    "prompt-completion": {"input": ("input",)},
}
_MAY_BE_MISSING = "input"  # what an instruction is about
_KNOWN = tuple(dict.fromkeys(name for shape in _SHAPES.values() for names in shape.values() for name in names))
_EXPECTED = "rows are read with columns prompt and completion, text and label, choices and answer, or messages"


@dataclass(frozen=True)
class Format:
    """What the rows of own data are.

    Args:
        name: prompt-completion, text-label, choices-answer, metaicl or messages.
        columns: role -> the column that has it. Roles are the words of the name; prompt also of choices-answer, where a
            column asks for the choice.
        about: one line on what was recognised, and which columns are not used.
    """

    name: str
    columns: Mapping[str, str]
    about: str


def detect(rows: Sequence[Row]) -> Format:
    """The format of rows, all of which are checked.

    Args:
        rows: at least one.

    Returns:
        The format of most of the rows, which turned out to be that of all.

    Raises:
        DataError: columns that fit no format, a row of another format than the rest, or one that is wrong; names the
            first of them, the number of such rows, and shows a row that is right. Labels that are all the same, or too
            many to be labels.
    """
    if not rows:
        raise DataError("no rows to recognise a format by", "give at least one row")
    known = {keys: _fit(keys) for keys in dict.fromkeys(tuple(row.fields) for row in rows)}
    counted = Counter(keys for keys in (tuple(row.fields) for row in rows) if known[keys] is not None)
    if not counted:
        raise _no_format(rows[0])
    found = known[counted.most_common(1)[0][0]]
    assert found is not None
    _check(found, rows, known)
    if found.name == "text-label":
        check_labels(found.columns["label"], rows)
    return found


# recognising


def _fit(names: Sequence[str]) -> Format | None:
    """The first format whose columns are all among the names."""
    for shape, roles in _SHAPES.items():
        columns = {role: _column(names, known) for role, known in roles.items()}
        if all(columns.values()):
            columns |= {role: _column(names, known) for role, known in _OPTIONAL.get(shape, {}).items()}
            taken = {columns[role] for role in roles}  # `input` may be the prompt itself
            given = {role: c for role, c in columns.items() if c is not None and (role in roles or c not in taken)}
            return Format(shape, given, _about(shape, given, names))
    return None


def _column(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The name that stands first among the known ones, whatever its capitals."""
    for one in known:
        for name in names:
            if name.lower() == one.lower():
                return name
    return None


def _about(shape: str, columns: Mapping[str, str], names: Sequence[str]) -> str:
    parts = [f"{role} from {column!r}" if role != column else repr(column) for role, column in columns.items()]
    unused = [repr(name) for name in names if name not in columns.values()]
    return f"{shape} ({', '.join(parts)}{'; not used: ' + ', '.join(unused) if unused else ''})"


def _no_format(row: Row) -> DataError:
    names = list(row.fields)
    if not names:
        return DataError(f"{row.where}: the row has no columns", _EXPECTED)
    return DataError(
        f"{row.where}: the columns {', '.join(map(repr, names))} fit no known format", f"{_advice(names)}{_EXPECTED}"
    )


def _advice(names: Sequence[str]) -> str:
    """The nearest known names of columns that have none, or what is missing beside those that have."""
    lower = {name.lower() for name in _KNOWN}
    for name in names:
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7) if name.lower() not in lower else []
        if near:
            return f"did you mean {near[0]!r} by {name!r}? "
    for roles in (roles for shape, roles in _SHAPES.items() if shape != "metaicl"):  # which nobody writes by chance
        present = [column for known in roles.values() if (column := _column(names, known)) is not None]
        missing = [known for known in roles.values() if _column(names, known) is None]
        if present:
            return f"beside {present[0]!r}, a column {' or '.join(map(repr, missing[0]))} is missing: rename yours; "
    return "does the first line name the columns? rename yours, or give a task file that names them; "


# checking


def _check(format: Format, rows: Sequence[Row], known: Mapping[tuple[str, ...], Format | None]) -> None:
    """Refuse the first wrong row, with the number of rows that are wrong in the same way."""
    first: tuple[Row, Problem] | None = None
    alike, good = 0, None
    for row in rows:
        problem = _problem(format, row, known)
        if problem is None:
            good = good or row
        elif first is None:
            first, alike = (row, problem), 1
        elif problem.kind == first[1].kind:
            alike += 1
    if first is not None:
        row, problem = first
        raise beside_good_row(DataError(f"{row.where}: {problem.message}", problem.hint), alike, good)


def _problem(format: Format, row: Row, known: Mapping[tuple[str, ...], Format | None]) -> Problem | None:
    for role, column in format.columns.items():
        if column not in row.fields and role != _MAY_BE_MISSING:
            other = known.get(tuple(row.fields))
            if other is not None and other.name != format.name:
                return Problem(
                    "mixed",
                    f"a row of {other.name}, in a file of {format.name}: the column {column!r} is missing",
                    "put rows of one format in one file",
                )
            has = ", ".join(map(repr, row.fields)) or "nothing"
            return Problem(
                f"missing {column}", f"the column {column!r} is missing; the row has {has}", "add it, or remove the row"
            )
    return _CHECKS[format.name](format.columns, row)


def _texts_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    found = (text_problem(column, row.fields[column]) for role, column in columns.items() if role != _MAY_BE_MISSING)
    return next((problem for problem in found if problem is not None), None)


def _text_label_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    text, label = columns["text"], columns["label"]
    return text_problem(text, row.fields[text]) or label_problem(label, row.fields[label])


def _choices_answer_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    prompt, choices, answer = columns.get("prompt"), columns["choices"], columns["answer"]
    problem = text_problem(prompt, row.fields[prompt]) if prompt is not None else None
    return problem or choices_problem(choices, row.fields[choices], answer, row.fields[answer])


def _metaicl_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    return metaicl_problem(*(row.fields[columns[role]] for role in ("input", "output", "options")))


def _messages_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    return messages_problem(columns["messages"], row.fields[columns["messages"]])


_CHECKS: dict[str, Callable[[Mapping[str, str], Row], Problem | None]] = {
    "messages": _messages_problem,
    "metaicl": _metaicl_problem,
    "choices-answer": _choices_answer_problem,
    "prompt-completion": _texts_problem,
    "text-label": _text_label_problem,
}


def check_labels(column: str, rows: Sequence[Row]) -> None:
    """Refuse labels that are none, all one, too many, or the same but for their writing.

    Args:
        column: which every row has.
        rows: at least one.

    Raises:
        DataError: names the first row that is wrong.
    """
    first: dict[str, Row] = {}
    for row in rows:
        value = row.fields[column]
        problem = label_problem(column, value)
        if problem is not None:
            raise DataError(f"{row.where}: {problem.message}", problem.hint)
        earlier = first.setdefault(label_text(value).casefold(), row)
        if earlier.fields[column] != value:
            other = shown_value(earlier.fields[column])
            raise beside_good_row(
                DataError(
                    f"{row.where}: column {column!r} is {shown_value(value)}, and {other} in other rows",
                    "write a label the same way in all rows",
                ),
                1,
                earlier,
            )
    if len(first) == 1:
        raise one_label(column, rows)
    if len(first) > MOST_LABELS:
        raise DataError(
            f"{rows[0].where}: column {column!r} has {len(first)} different values in {len(rows)} rows, too many for "
            "labels",
            "numbers and free texts are no labels: call the columns prompt and completion, or give a task file",
        )


def one_label(column: str, rows: Sequence[Row]) -> DataError:
    """What is said of rows that all have the same label.

    Args:
        column: that holds it.
        rows: at least one.
    """
    return DataError(
        f"{rows[0].where}: column {column!r} is {shown_value(rows[0].fields[column])} in all {len(rows)} rows, "
        "which leaves nothing to learn",
        "give rows of two labels or more",
    )
