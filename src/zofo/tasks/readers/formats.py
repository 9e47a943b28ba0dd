"""The five formats of a user's own rows: detected by their columns, and checked row by row."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zofo.errors import ConfigError, DataError, listed, truncate_repr
from zofo.tasks.metrics import number_in
from zofo.tasks.readers.chat_rows import check_turns, trained_places, turns_of
from zofo.tasks.readers.choices import check_choices, check_index_base, check_metaicl, check_right_choice, is_keyed
from zofo.tasks.readers.row import (
    NamedLabel,
    Row,
    RowError,
    all_rows,
    at_row,
    check_label,
    check_text,
    look_alike_key,
    told_apart,
    with_valid_example,
)

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
    "messages": {"system": ("system",), "tools": ("tools",)},
}
_MAY_BE_MISSING = ("input", "system", "tools")  # what an instruction is about; how a chat begins, and what it may call
_EXPECTED = "rows are read with columns prompt and completion, text and label, choices and answer, or messages"


@dataclass(frozen=True)
class DataFormat:
    """The format of a user's own rows.

    Args:
        name: prompt-completion, text-label, choices-answer, metaicl or messages.
        columns: role -> column. Roles are the words of the name; also prompt for choices-answer, if a column has the
            question.
        about: one line on what was detected, and which columns are not used.
    """

    name: str
    columns: Mapping[str, str]
    about: str


def detect(rows: Sequence[Row], named: Collection[Label] = (), answers: bool = True) -> DataFormat:
    """Detect the format of rows, and check all of them.

    Args:
        named: labels for which the user gives verbalizers.
        answers: whether to check the right choices; not if the user specifies the label of each.

    Returns:
        The format of the rows.

    Raises:
        DataError: columns fit no format, or a row has another format than the rest, or is invalid; the message names
            the first such row and their number, and shows a valid one. Also for labels that are all the same, or too
            many to be labels.
    """
    if not rows:
        raise DataError("no rows to recognise a format by", "give at least one row")
    known = {keys: _fit(keys) for keys in dict.fromkeys(tuple(row.fields) for row in rows)}
    counted = Counter(keys for keys in (tuple(row.fields) for row in rows) if known[keys] is not None)
    found = _fit(counted.most_common(1)[0][0], [name for keys in known for name in keys]) if counted else None
    if found is None:
        raise _no_format(rows[0])
    if found.name == "choices-answer" and answers:
        check_index_base(found.columns["choices"], found.columns["answer"], rows)
    all_rows(((row.where, row.fields) for row in rows), lambda fields: _checked(found, fields, known, answers))
    _check_no_verdicts(found, rows)
    if found.name == "text-label":
        _check_no_repeated_header(found.columns["label"], rows)
        check_labels(found.columns["label"], rows, named)
    return found


# recognising


def _fit(names: Sequence[str], others: Sequence[str] = ()) -> DataFormat | None:
    """The first format whose columns are all among the names; optional columns may be present as well."""
    for shape, roles in _SHAPES.items():
        columns = _columns(names, roles)
        if len(columns) < len(roles):
            continue
        every = list(dict.fromkeys((*names, *others)))
        for role, column in _columns(every, _OPTIONAL.get(shape, {})).items():
            if column not in columns.values():  # `input` may be the prompt itself
                columns[role] = column
        parts = [f"{role} from {column!r}" if role != column else repr(column) for role, column in columns.items()]
        unused = listed(name for name in every if name not in columns.values())
        return DataFormat(shape, columns, f"{shape} ({', '.join(parts)}{'; not used: ' + unused if unused else ''})")
    return None


def _columns(names: Sequence[str], roles: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each role, the first known name that is present, ignoring case."""
    given = {name.lower(): name for name in reversed(names)}
    found = {role: [given[one.lower()] for one in known if one.lower() in given] for role, known in roles.items()}
    return {role: columns[0] for role, columns in found.items() if columns}


def _no_format(row: Row) -> DataError:
    names = list(row.fields)
    if not names:
        return DataError(f"{row.where}: the row has no columns", _EXPECTED)
    if (preferences := _preferences(row)) is not None:
        return preferences
    hint = f"{_advice(row.fields)}{_EXPECTED}; others are named by --text COLUMN --label COLUMN, or by task.columns"
    return DataError(f"{row.where}: the columns {listed(names)} fit no known format", hint)


def _preferences(row: Row) -> DataError | None:
    """The error for a row of preferences between two answers; None for any other row."""
    given = {name.lower(): name for name in row.fields}
    if not {"chosen", "rejected"} <= set(given):
        return None
    chosen, prompt = given["chosen"], next((given[one] for one in _PROMPT if one in given), None)
    keys = {"completion": chosen} if prompt is not None else {"messages": chosen}
    written = ", ".join(f"{role}: {column}" for role, column in keys.items())
    return DataError(
        f"{row.where}: rows of preferences, of which {chosen!r} is better than {given['rejected']!r}; "
        "zofo trains on one answer a row",
        f"to train on the better answers alone: 'task.columns={{{written}}}'; to prefer one to the other, "
        "train by a reward: --reward FILE.py:NAME (docs/reward.md)",
    )


def _check_no_verdicts(format: DataFormat, rows: Sequence[Row]) -> None:
    """Raise DataError for answers that are rated good or bad, as for KTO: the bad ones must not be trained on."""
    column = next((name for name in rows[0].fields if name.lower() == "label"), None)
    if format.name != "prompt-completion" or column is None:
        return
    if all(isinstance(row.fields.get(column), bool) for row in rows):
        bad = next((row for row in rows if not row.fields[column]), rows[0])
        raise DataError(
            f"{bad.where}: rows of preferences without pairs: column {column!r} says whether an answer is a good one; "
            "zofo trains on every answer",
            f"keep the rows whose {column!r} is true, and leave that column out",
        )


def _advice(fields: Mapping[str, Any]) -> str:
    """A hint: a known column name close to one of these, or the column that is missing."""
    names = list(fields)
    lower = {name.lower() for shape in _SHAPES.values() for known in shape.values() for name in known}
    for name in names:
        near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.7) if name.lower() not in lower else []
        of_turns = near and near[0] in _MESSAGES and len(names) > 1 and isinstance(fields[name], str)
        if near and not of_turns:
            return f"did you mean {near[0]!r} by {name!r}? "
    label = _columns(names, {"label": _SHAPES["text-label"]["label"]}).get("label")
    texts = [name for name in names if name != label and isinstance(fields[name], str)]
    if label is not None and len(texts) == 1:
        return f"if {texts[0]!r} is the text, --text {texts[0]!r} --label {label!r}; "
    for roles in (roles for shape, roles in _SHAPES.items() if shape != "metaicl"):  # which nobody writes by chance
        present = _columns(names, roles)
        missing = next((known for role, known in roles.items() if role not in present), ())
        if present:
            has = next(iter(present.values()))
            return f"beside {has!r}, a column {' or '.join(map(repr, missing))} is missing: rename yours; "
    begun = "does the first line name the columns? "
    if len(names) == 2:
        return f"{begun}of a text and its label, --text {names[0]!r} --label {names[1]!r} says which is which; "
    return f"{begun}rename yours, or give a task file that names them; "


# checking


def _checked(
    format: DataFormat, fields: Mapping[str, Any], known: Mapping[tuple[str, ...], DataFormat | None], answers: bool
) -> Mapping[str, Any]:
    """The checked columns of a row; raises RowError if they do not have the format."""
    columns = format.columns
    for role, column in columns.items():
        if column not in fields and role not in _MAY_BE_MISSING:
            other = known.get(tuple(fields))
            if other is not None and other.name != format.name:
                what = f"a row of {other.name}, in a file of {format.name}: the column {column!r} is missing"
                raise RowError(what, "put rows of one format in one file", "mixed")
            what = f"the column {column!r} is missing; the row has {listed(fields) or 'nothing'}"
            raise RowError(what, "add it, or remove the row", f"missing {column}")
    if format.name == "messages":
        check_turns(columns["messages"], turns_of(fields, columns["messages"]))
    elif format.name == "metaicl":
        check_metaicl(*(fields[columns[role]] for role in ("input", "output", "options")))
    else:
        for role in ("prompt", "completion", "text"):
            if role in columns:
                check_text(columns[role], fields[columns[role]])
    if format.name == "text-label":
        check_label(columns["label"], fields[columns["label"]])
    if format.name == "choices-answer":
        choices, answer = columns["choices"], columns["answer"]
        check_choices(choices, fields[choices])
        if answers:
            check_right_choice(choices, fields[choices], answer, fields[answer])
    return fields


def check_labels(column: str, rows: Sequence[Row], named: Collection[Label] = ()) -> None:
    """Refuse labels that are missing, all the same, too many, or look alike; and -1 if it may mean no label.

    Args:
        named: labels for which the user gives verbalizers, which are therefore intended.

    Raises:
        DataError: labels are refused; the message names the first such row.
    """
    first: dict[str, Row] = {}
    for row in rows:
        value = row.fields[column]
        with at_row(row.where):
            check_label(column, value)
        earlier = first.setdefault(look_alike_key(value), row)
        known = earlier.fields[column]
        if known != value or isinstance(known, bool) != isinstance(value, bool):
            shown, other = told_apart(value, known)
            what = f"{row.where}: column {column!r} is {shown}, and {other} in other rows"
            raise with_valid_example(DataError(what, "write a label the same way in all rows"), 1, earlier)
    for none in ("-1", "-100"):  # -100 is what PyTorch passes over
        if none in first and not any(str(label) == none for label in named):
            _check_missing_label(column, first, none)
    if len(first) == 1:
        raise single_label_error(column, rows[0].fields[column], rows)
    if len(first) > MOST_LABELS:
        raise DataError(
            f"{rows[0].where}: column {column!r} has {len(first)} different values in {len(rows)} rows, too many for "
            "labels",
            "numbers and free texts are no labels: call the columns prompt and completion, or give a task file",
        )


def _check_no_repeated_header(column: str, rows: Sequence[Row]) -> None:
    """Raise DataError for a label equal to its column's name, as after appending a file with its header."""
    row = next((row for row in rows if look_alike_key(row.fields[column]) == column.strip().casefold()), None)
    if row is not None:
        raise DataError(
            f"{row.where}: column {column!r} is {row.fields[column]!r}, the column's own name: is it a header?",
            "remove the line, as of a file that was put behind another; or rename the column, if it is a label",
        )


def _check_missing_label(column: str, first: Mapping[str, Row], none: str) -> None:
    """Raise DataError for -1 or -100 among labels, which may be a label, or mean that there is none."""
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
    """
    return DataError(
        f"{rows[0].where}: column {column!r} is {truncate_repr(value)} in all {len(rows)} rows, "
        "which leaves nothing to learn",
        "give rows of two labels or more",
    )


def task_shape(found: DataFormat, rows: list[Row]) -> dict[str, Any]:
    """The content of a task file that asks about rows of a format."""
    named = {role: column if column.isidentifier() else f"row[{column!r}]" for role, column in found.columns.items()}
    written = {role: f"{{{{ {name} }}}}" for role, name in named.items()}  # as templates refer to the columns
    if found.name == "text-label":
        shape = labelled_shape(found.columns["label"], rows, f"{written['text']}\nLabel:")
        return {**shape, "texts": [written["text"]]}
    if found.name == "choices-answer":
        if "prompt" not in found.columns:
            raise ConfigError(
                f"{rows[0].where}: choices, but no column that asks for them", "call the question's column prompt"
            )
        keyed = is_keyed(rows[0].fields[found.columns["choices"]])
        return {
            "kind": "multiple-choice",
            "metric": "accuracy",
            "label": found.columns["answer"],
            **({"labels": f"{named['choices']}.label"} if keyed else {}),
            "choices": {"each": f"{named['choices']}.text" if keyed else named["choices"], "text": " {{ choice }}"},
            "prompts": {"default": f"{written['prompt']}\nAnswer:"},
        }
    free = {"kind": "generation", "stop": [], "max_new_tokens": 100}
    if found.name == "messages":
        turns = [turns_of(row.fields, found.columns["messages"]) for row in rows]
        return {**free, **_free_answer_scores(map(_answer_of, turns)), "messages": found.columns["messages"]}
    prompt, optional = written["prompt"], []
    if "input" in found.columns:  # what an instruction may be about
        prompt += f"{{% if {named['input']} %}}\n{written['input']}{{% endif %}}"
        optional = [found.columns["input"]]
    scores = _free_answer_scores(row.fields.get(found.columns["completion"]) for row in rows)
    return {
        **free,
        **scores,
        "answers": named["completion"],
        "prompts": {"default": prompt},
        "optional_columns": optional,
    }


def labelled_shape(label: str, rows: list[Row], template: str) -> dict[str, Any]:
    """A classification whose verbalizers are its labels."""
    labels = sorted({row.fields[label] for row in rows}, key=str)
    texts = {_plain(value): str(value if isinstance(value, bool) else _plain(value)).strip() for value in labels}
    return {
        "kind": "classification",
        "metric": "accuracy",
        "extra_metrics": ["macro-f1"],
        "label": label,
        "verbalizers": {known: f" {text}" for known, text in texts.items()},
        "prompts": {"default": template},
    }


def _plain(value: Any) -> Any:
    """A label as in a task file: the name of its class, if it has one."""
    if isinstance(value, NamedLabel):
        return value.name
    return int(value) if isinstance(value, bool | float) else value


def _free_answer_scores(answers: Iterable[Any]) -> dict[str, Any]:
    """The scores, named as in a task file, for the free answers of a user's own rows.

    Args:
        answers: a text or a list of texts per row; anything else is reported elsewhere.
    """
    texts = [text for one in answers for text in (one if isinstance(one, list | tuple) else [one])]
    if texts and all(isinstance(text, str) and number_in(text) is not None for text in texts):
        return {"metric": "number-match", "extra_metrics": ["exact-match", "token-f1"]}
    return {"metric": "token-f1", "extra_metrics": ["exact-match", "text-match"]}


def _answer_of(turns: Any) -> Any:
    """The content of the answer of a chat; None if there is none."""
    places = trained_places(turns)
    return turns[places[-1]].get("content") if places else None
