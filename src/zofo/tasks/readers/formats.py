"""The five formats of the user's own rows: recognised by their columns, and checked row by row."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zofo.errors import DataError, truncate_repr
from zofo.tasks.readers.choices import choices_problem, metaicl_problem, refuse_unknown_start, right_choice_problem
from zofo.tasks.readers.look_alikes import look_alike_key, told_apart
from zofo.tasks.readers.row import NamedLabel, Row, with_valid_example
from zofo.tasks.readers.row_checks import Problem, label_problem, messages_problem, text_problem

Label = int | str
MOST_LABELS = 100
"""With more distinct labels than this, they are taken for numbers or free texts."""

_SHOWN = 3  # labels in a hint
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
    "messages": {"tools": ("tools",)},
}
_MAY_BE_MISSING = ("input", "tools")  # what an instruction is about, and what may be called in a chat
_KNOWN = tuple(dict.fromkeys(name for shape in _SHAPES.values() for names in shape.values() for name in names))
_EXPECTED = "rows are read with columns prompt and completion, text and label, choices and answer, or messages"


@dataclass(frozen=True)
class Format:
    """The format of the user's own rows.

    Args:
        name: prompt-completion, text-label, choices-answer, metaicl or messages.
        columns: role -> the column that has it. Roles are the words of the name; prompt also of choices-answer, where a
            column asks for the choice.
        about: one line on what was recognised, and which columns are not used.
    """

    name: str
    columns: Mapping[str, str]
    about: str


def detect(rows: Sequence[Row], named: Collection[Label] = (), answers: bool = True) -> Format:
    """The format of rows, all of which are checked.

    Args:
        rows: at least one.
        named: labels that the user gives a verbalizer each.
        answers: whether the right choices are looked at; not where the user says what stands for each.

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
    found = _of_all(known, counted.most_common(1)[0][0])
    if found.name == "choices-answer" and answers:
        refuse_unknown_start(found.columns["choices"], found.columns["answer"], rows)
    _check(found, rows, known, answers)
    if found.name == "text-label":
        _refuse_header(found.columns["label"], rows)
        check_labels(found.columns["label"], rows, named)
    return found


# recognising


def _fit(names: Sequence[str]) -> Format | None:
    """The first format whose columns are all among the names."""
    for shape, roles in _SHAPES.items():
        columns = {role: column for role, known in roles.items() if (column := _column(names, known)) is not None}
        if len(columns) == len(roles):
            return _with_optional(shape, columns, names)
    return None


def _of_all(known: Mapping[tuple[str, ...], Format | None], most: tuple[str, ...]) -> Format:
    """The format of most rows, with optional and unused columns from all rows."""
    found = known[most]
    assert found is not None
    required = {role: found.columns[role] for role in _SHAPES[found.name]}
    return _with_optional(found.name, required, list(dict.fromkeys(name for keys in (most, *known) for name in keys)))


def _with_optional(shape: str, required: Mapping[str, str], names: Sequence[str]) -> Format:
    """A format with its required and its optional columns."""
    columns = dict(required)
    for role, known in _OPTIONAL.get(shape, {}).items():
        column = _column(names, known)
        if column is not None and column not in required.values():  # `input` may be the prompt itself
            columns[role] = column
    return Format(shape, columns, _about(shape, columns, names))


def _column(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The name that comes first among the known ones; case does not matter."""
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
    """A hint: a known column name near to one of these, or the column that is missing."""
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


def _check(format: Format, rows: Sequence[Row], known: Mapping[tuple[str, ...], Format | None], answers: bool) -> None:
    """Raises DataError for the first bad row, with the number of rows with the same problem."""
    first: tuple[Row, Problem] | None = None
    alike, good = 0, None
    for row in rows:
        problem = _problem(format, row, known, answers)
        if problem is None:
            good = good or row
        elif first is None:
            first, alike = (row, problem), 1
        elif problem.kind == first[1].kind:
            alike += 1
    if first is not None:
        row, problem = first
        raise with_valid_example(DataError(f"{row.where}: {problem.message}", problem.hint), alike, good)


def _problem(format: Format, row: Row, known: Mapping[tuple[str, ...], Format | None], answers: bool) -> Problem | None:
    for role, column in format.columns.items():
        if column not in row.fields and role not in _MAY_BE_MISSING:
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
    problem = _CHECKS[format.name](format.columns, row)
    if problem is None and format.name == "choices-answer" and answers:
        choices, answer = format.columns["choices"], format.columns["answer"]
        problem = right_choice_problem(choices, row.fields[choices], answer, row.fields[answer])
    return problem


def _texts_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    found = (
        text_problem(column, row.fields[column]) for role, column in columns.items() if role not in _MAY_BE_MISSING
    )
    return next((problem for problem in found if problem is not None), None)


def _text_label_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    text, label = columns["text"], columns["label"]
    return text_problem(text, row.fields[text]) or label_problem(label, row.fields[label])


def _choices_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    prompt, choices = columns.get("prompt"), columns["choices"]
    problem = text_problem(prompt, row.fields[prompt]) if prompt is not None else None
    return problem or choices_problem(choices, row.fields[choices])


def _metaicl_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    return metaicl_problem(*(row.fields[columns[role]] for role in ("input", "output", "options")))


def _messages_problem(columns: Mapping[str, str], row: Row) -> Problem | None:
    return messages_problem(columns["messages"], row.fields[columns["messages"]])


_CHECKS: dict[str, Callable[[Mapping[str, str], Row], Problem | None]] = {
    "messages": _messages_problem,
    "metaicl": _metaicl_problem,
    "choices-answer": _choices_problem,
    "prompt-completion": _texts_problem,
    "text-label": _text_label_problem,
}


def check_labels(column: str, rows: Sequence[Row], named: Collection[Label] = ()) -> None:
    """Refuse labels that are none, all one, too many, or look the same; and -1 where it may stand for no label.

    Args:
        column: which every row has.
        rows: at least one.
        named: labels that the user gives a verbalizer each, so that they are what they say.

    Raises:
        DataError: names the first row that is wrong.
    """
    first: dict[str, Row] = {}
    for row in rows:
        value = row.fields[column]
        problem = label_problem(column, value)
        if problem is not None:
            raise DataError(f"{row.where}: {problem.message}", problem.hint)
        earlier = first.setdefault(look_alike_key(value), row)
        known = earlier.fields[column]
        if known != value or isinstance(known, bool) != isinstance(value, bool):
            shown, other = told_apart(value, known)
            raise with_valid_example(
                DataError(
                    f"{row.where}: column {column!r} is {shown}, and {other} in other rows",
                    "write a label the same way in all rows",
                ),
                1,
                earlier,
            )
    for none in ("-1", "-100"):  # -100 is what PyTorch passes over
        if none in first and not any(str(label) == none for label in named):
            _refuse_no_label(column, first, none)
    if len(first) == 1:
        raise single_label_error(column, rows[0].fields[column], rows)
    if len(first) > MOST_LABELS:
        raise DataError(
            f"{rows[0].where}: column {column!r} has {len(first)} different values in {len(rows)} rows, too many for "
            "labels",
            "numbers and free texts are no labels: call the columns prompt and completion, or give a task file",
        )


def _refuse_header(column: str, rows: Sequence[Row]) -> None:
    """Raises DataError for a label that is its column's name, as where a second file was appended with its header."""
    row = next((row for row in rows if look_alike_key(row.fields[column]) == column.strip().casefold()), None)
    if row is not None:
        raise DataError(
            f"{row.where}: column {column!r} is {row.fields[column]!r}, the column's own name: is it a header?",
            "remove the line, as of a file that was put behind another; or rename the column, if it is a label",
        )


def _refuse_no_label(column: str, first: Mapping[str, Row], none: str) -> None:
    """Raises DataError for -1 or -100 among labels: it may be a label, or mean that there is none."""
    others = [key for key in first if key != none]
    if any(isinstance(row.fields[column], NamedLabel) for row in first.values()):
        where, hint = first[none].where, "remove the rows without a label, or take a split that has its labels"
        raise DataError(
            f"{where}: column {column!r} is {none}, which is none of its classes: the row has no label", hint
        )
    if len(others) < 2 or any(re.fullmatch(r"-\d+", key) for key in others):
        return
    row = first[none]
    shown = ", ".join(f"{label}: ' ...'" for label in (none, *sorted(others)[:_SHOWN]))
    raise DataError(
        f"{row.where}: column {column!r} is {none}, which is a label, or says that the row has none",
        f"remove the rows without a label; or say that {none} is one, with task.verbalizers={{{shown}}}",
    )


def single_label_error(column: str, value: Any, rows: Sequence[Row]) -> DataError:
    """The error for rows that all have the same label.

    Args:
        column: the label column, or an expression of columns.
        value: the label.
        rows: at least one.
    """
    return DataError(
        f"{rows[0].where}: column {column!r} is {truncate_repr(value)} in all {len(rows)} rows, "
        "which leaves nothing to learn",
        "give rows of two labels or more",
    )
